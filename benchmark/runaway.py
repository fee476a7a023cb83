"""SAC's temperature on walker-walk, with and without what bounds it (claim C19).

    python benchmark/runaway.py --out benchmark/results/sac_runaway

Short runs, one after another: two densities and two clamps of log σ, as in temperature.py, of which
one pair is sac_continuous.py's own. In all of them --tau is 0.995 in place of 0.005, as someone
sets it who takes it for the share of the target that stays: the targets then follow the critics at
once, the critics err, and the actor's mean is far out within a thousand updates. Each run's
losses.csv goes into a folder of its own, and runaway.svg and runaway.png show all. Further flags go
to sac_continuous.py, except for the length and the folder of a run, which are this program's.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib.ticker import FuncFormatter
from plot import save, start_figure, thousands, tidy
from temperature import CLAMPS, DENSITIES
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import sac_continuous as sac  # noqa: E402

VARIANTS = list(itertools.product(DENSITIES, CLAMPS))
FLAGS = ["--env-id=dm_control/walker-walk-v0", "--learning-starts=1000", "--no-progress"]
FLAGS += ["--tau=0.995", "--gamma=0.99", "--init-alpha=0.1", "--max-alpha=1e30"]
FLAGS += [f"--{name}-learning-rate=1e-3" for name in ("actor", "critic", "alpha")]


def plain_mean_and_std(actor: sac.Actor, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Actor.mean_and_std with a clamp that stops the gradient beyond its bounds."""
    mean, log_std = actor.net(obs).chunk(2, dim=1)
    return mean, log_std.clamp(-20, 2).exp()


def inexact_sample(actor: sac.Actor, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Actor.sample with 1e-6 in the density, which beyond |u| = 8 is a constant."""
    mean, std = actor.mean_and_std(obs)
    xi = torch.randn_like(mean)
    action = torch.tanh(mean + std * xi)
    gaussian = -0.5 * xi.square() - std.log() - 0.5 * math.log(2 * math.pi)
    return action, (gaussian - torch.log(1 - action.square() + 1e-6)).sum(1)


def train(density: str, clamp: str, flags: list[str]) -> None:
    """Train sac_continuous.py with these flags and these two parts of its actor."""
    if clamp == "plain":
        sac.Actor.mean_and_std = plain_mean_and_std  # type: ignore[assignment]
    if density == "epsilon":
        sac.Actor.sample = inexact_sample  # type: ignore[assignment]
    sys.argv[1:] = flags
    sac.main()


def draw(out: Path) -> None:
    """The temperature and the entropy by steps, a line for each run: runaway.svg and .png."""
    figure, axes = start_figure(columns=2, rows=1)
    for ax, name in zip(axes, ("alpha", "entropy")):
        for number, variant in enumerate(VARIANTS):
            for path in sorted(out.glob(f"*__sac_{'_'.join(variant)}__*/losses.csv")):
                rows = list(csv.DictReader(path.open()))
                first = path.parent.name.endswith("__1")
                label = "density {}, clamp {}".format(*variant) if first else None
                steps, y = ([float(row[key]) for row in rows] for key in ("env_step", name))
                ax.plot(steps, y, color=f"C{number}", label=label)
        ax.set(xlabel="environment steps", title=name)
        ax.xaxis.set_major_formatter(FuncFormatter(thousands))
        tidy(ax)
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].axhline(-6, color="0.4", linewidth=1, linestyle="--")  # walker-walk's target
    save(figure, out, "runaway")


def main() -> None:
    """Read the flags, run every variant, and draw the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--steps", type=int, default=20_000, help="length of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # this density, this clamp, here
    args, flags = parser.parse_known_args()
    if args.one:
        return train(args.one[0], args.one[1], flags)
    for flag in flags:
        if flag.startswith(("--total-timesteps", "--run-dir", "--seed")):
            parser.error(f"{flag} is this program's own: it takes --steps, --seeds and --out")
    for seed, variant in itertools.product(args.seeds, VARIANTS):
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            command = [sys.executable, __file__, "--out", ".", "--one", *variant, *FLAGS, *flags]
            command += ["--seed", str(seed), "--run-dir", str(run_dir)]
            command += ["--total-timesteps", str(args.steps), "--eval-interval", str(args.steps)]
            print(" ".join(map(str, command[1:])), flush=True)
            code = subprocess.run(command).returncode
            if code not in (0, 1):  # 1: a loss that is not finite, and the log shows how it came
                raise SystemExit(code)
            kept = args.out / f"dm_control-walker-walk-v0__sac_{'_'.join(variant)}__{seed}"
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(run_dir / "losses.csv", kept)
    draw(args.out)


if __name__ == "__main__":
    main()
