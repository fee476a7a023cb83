"""SAC's temperature on walker-walk, with and without what keeps it from growing for ever.

    python benchmark/runaway.py --out benchmark/results/sac_runaway

Four short runs, one after the other: two densities and two clamps of log σ, as in temperature.py,
of which one pair is sac_continuous.py's own. In all of them --tau is 0.995 in place of 0.005, as
someone sets it who takes it for the share of the target that stays: the targets then follow the
critics at once, the critics err, and the actor's mean runs far out within a thousand updates.
Writes losses.csv (by step), runaway.svg and runaway.png. Further flags go to sac_continuous.py,
but for the length and the folder of a run, which are this program's.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.ticker import FuncFormatter
from plot import save, start_figure, thousands, tidy
from temperature import CLAMPS, DENSITIES
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import sac_continuous as sac  # noqa: E402

VARIANTS = list(itertools.product(DENSITIES, CLAMPS))
LOSSES = "alpha", "entropy", "qf_loss"
FLAGS = ["--env-id=dm_control/walker-walk-v0", "--learning-starts=1000", "--no-progress"]
FLAGS += ["--tau=0.995", "--gamma=0.99", "--init-alpha=0.1", "--max-alpha=1e30"]
FLAGS += [f"--{name}-learning-rate=1e-3" for name in ("actor", "critic", "alpha")]


def plain_forward(actor: sac.Actor, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Actor.forward with a clamp that lets no gradient through beyond its bounds."""
    features = actor.body(obs)
    mean, log_std = actor.head(features).float().chunk(2, dim=1)
    return mean, log_std.clamp(-20, 2).exp(), features


def inexact_sample(actor: sac.Actor, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Actor.sample with 1e-6 in the density, which beyond |u| = 8 is a constant."""
    mean, std, _ = actor(obs)
    xi = torch.randn_like(mean)
    action = torch.tanh(mean + std * xi)
    gaussian = -0.5 * xi.square() - std.log() - 0.5 * math.log(2 * math.pi)
    return action, (gaussian - torch.log(1 - action.square() + 1e-6)).sum(1)


def train(density: str, clamp: str, flags: list[str]) -> None:
    """sac_continuous.py with these flags and, of its actor, these two pieces."""
    if clamp == "plain":
        sac.Actor.forward = plain_forward  # type: ignore[assignment]
    if density == "with 1e-6":
        sac.Actor.sample = inexact_sample  # type: ignore[assignment]
    sys.argv[1:] = flags
    sac.main()


def read_losses(run_dir: Path) -> list[list[float]]:
    """Rows of the step and LOSSES, one for every thousand steps or so."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    columns = [events.Scalars(f"losses/{name}") for name in LOSSES]
    return [[row[0].step, *(float(f"{event.value:.6g}") for event in row)] for row in zip(*columns)]


def draw(rows: list[list[Any]], out: Path) -> None:
    """The temperature and the entropy by steps, a line for each variant: runaway.svg and .png."""
    figure, axes = start_figure(columns=2, rows=1)
    for column, (ax, name) in enumerate(zip(axes, ("temperature α", "entropy, nats")), start=3):
        for density, clamp in VARIANTS:
            run = [row for row in rows if row[:2] == [density, clamp]]
            label = f"density {density}, clamp {clamp}"
            ax.plot([row[2] for row in run], [row[column] for row in run], label=label)
        ax.set(xlabel="environment steps", title=name)
        ax.xaxis.set_major_formatter(FuncFormatter(thousands))
        tidy(ax)
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].axhline(-6, color="0.4", linewidth=1, linestyle="--")  # walker-walk's target
    save(figure, out, "runaway")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--steps", type=int, default=20_000, help="length of each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # this density, this clamp, here
    args, flags = parser.parse_known_args()
    if args.one:
        density, clamp = args.one
        return train(density, clamp, flags)
    for flag in flags:
        if flag.startswith(("--total-timesteps", "--run-dir")):
            parser.error(f"{flag} is this program's own: it takes --steps and --out")
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[list[Any]] = []
    for variant in VARIANTS:  # each in a process of its own, as a run may end for its losses
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            command = [sys.executable, __file__, "--out", ".", "--one", *variant, *FLAGS, *flags]
            command += ["--seed", str(args.seed), "--run-dir", str(run_dir)]
            command += ["--total-timesteps", str(args.steps), "--eval-interval", str(args.steps)]
            print(" ".join(map(str, command[1:])), flush=True)
            code = subprocess.run(command).returncode
            if code not in (0, 1):  # 1: a loss that is not finite, and the log shows how it came
                raise SystemExit(code)
            rows += [[*variant, *row] for row in read_losses(run_dir)]
    with (args.out / "losses.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["density", "clamp", "env_step", *LOSSES], *rows])
    draw(rows, args.out)


if __name__ == "__main__":
    main()
