"""Environment steps per second: FolioRL's scripts beside Stable-Baselines3 and SBX.

Every contender trains in a process of its own with the same sizes: acting, learning, logging and
evaluation, all that a run does. They take turns: one runs a segment while the others wait, in an
order that is drawn anew every round, so that a machine that slows down slows them all. Start-up and
compilation come before the first segment, and are not counted.

CPU seconds are those of the whole process. On a machine that does other work too, trust them
rather than the wall clock. With --threads 1 each contender is held to one core, JAX included.

    pip install -r benchmark/requirements.txt
    python benchmark/speed.py
    python benchmark/speed.py --algorithms ddpg --threads all --out /tmp/speed
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib
import importlib.util
import json
import os
import platform
import random
import runpy
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
ALGORITHMS = ("ddpg", "td3", "sac")
PEERS = {"Stable-Baselines3": "stable_baselines3", "SBX": "sbx"}
FOREVER = 10**9
LEARNING_STARTS = 1_000
# What all contenders share. Their own defaults differ, and would be compared in its place.
SIZES = {"batch_size": 256, "buffer_size": 200_000, "gamma": 0.98, "tau": 0.005}


def fail(message: str) -> NoReturn:
    print(f"speed: {message}", file=sys.stderr)
    raise SystemExit(2)


# The worker: one contender, in its own process and interpreter.


class Gate:
    """Called at every environment step; at the end of a segment it reports and waits.

    The report is one line of JSON to the driver; a line from the driver starts the next segment.
    """

    def __init__(self, segment: int) -> None:
        # The pipe to the driver, kept apart: what contenders print must not reach it.
        self.pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        # The first segment ends when everything is compiled and warm, and is not counted.
        self.segment, self.left = segment, LEARNING_STARTS + segment
        self.wall, self.cpu = 0.0, 0.0

    def __call__(self) -> None:
        self.left -= 1
        if self.left > 0:
            return
        if self.wall:
            wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
            print(json.dumps({"steps": self.segment, "wall": wall, "cpu": cpu}), file=self.pipe)
        else:
            print(json.dumps({"ready": True}), file=self.pipe)
        self.pipe.flush()
        if not sys.stdin.readline():  # the driver is done with this contender, or is gone
            os._exit(0)
        self.left = self.segment
        self.wall, self.cpu = time.perf_counter(), time.process_time()


def run_ours(algorithm: str, env_id: str, segment: int, gate: Gate, folder: str) -> None:
    """Import the script, and train with a logger that calls the gate at every step."""
    path = ROOT / f"{algorithm}_continuous.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    log_step = module.Logger.step

    def step(self: Any, *args: Any) -> None:
        log_step(self, *args)
        gate()

    module.Logger.step = step
    args = module.Args(
        env_id=env_id,
        run_dir=Path(folder) / "run",
        total_timesteps=FOREVER,
        learning_starts=LEARNING_STARTS,
        eval_interval=segment,
        eval_episodes=1,
        save_interval=FOREVER,
        device="cpu",
        progress=False,
        actor_hidden_sizes=(256, 256),
        critic_hidden_sizes=(256, 256),
        **SIZES,
    )
    module.train(args)


def run_peer(
    package: str, algorithm: str, env_id: str, segment: int, gate: Gate, folder: str
) -> None:
    """Train Stable-Baselines3's or SBX's class, evaluated and logged as often as ours."""
    import gymnasium as gym
    import numpy as np
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.noise import NormalActionNoise

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            gate()
            return True

    if "BulletEnv" in env_id:
        import pybullet_envs_gymnasium  # noqa: F401
    env, eval_env = Monitor(gym.make(env_id)), Monitor(gym.make(env_id))
    assert env.action_space.shape
    zeros = np.zeros(env.action_space.shape)
    more: dict[str, Any] = {"device": "cpu"} if package == "stable_baselines3" else {}
    if algorithm != "sac":
        more["action_noise"] = NormalActionNoise(zeros, zeros + 0.1)
    model = getattr(importlib.import_module(package), algorithm.upper())(
        "MlpPolicy",
        env,
        learning_rate=7e-4,
        learning_starts=LEARNING_STARTS,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": [256, 256]},
        tensorboard_log=folder,
        seed=1,
        **SIZES,
        **more,
    )
    evaluation = EvalCallback(eval_env, n_eval_episodes=1, eval_freq=segment, verbose=0)
    model.learn(FOREVER, callback=CallbackList([evaluation, Count()]))


def run_external(command: str, gate: Gate) -> None:
    """Run another project's script as it is, counting the steps of its SyncVectorEnv."""
    import gymnasium as gym
    import pybullet_envs_gymnasium  # noqa: F401

    env_step = gym.vector.SyncVectorEnv.step

    def step(self: Any, actions: Any) -> Any:
        result = env_step(self, actions)
        gate()
        return result

    gym.vector.SyncVectorEnv.step = step  # type: ignore[method-assign]
    sys.argv = shlex.split(command)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


def work(args: argparse.Namespace) -> None:
    """Train one contender for ever, a segment whenever the driver says so."""
    if args.threads == "1" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gate = Gate(args.segment)
    with tempfile.TemporaryDirectory() as folder:
        if args.worker == "FolioRL":
            run_ours(args.algorithms[0], args.env_id, args.segment, gate, folder)
        elif args.worker in PEERS:
            package = PEERS[args.worker]
            run_peer(package, args.algorithms[0], args.env_id, args.segment, gate, folder)
        else:
            run_external(args.external[0], gate)


# The driver: starts the workers, gives each its turns, and writes the table.


class Contender(NamedTuple):
    """A worker that waits for its turn."""

    name: str
    algorithm: str
    process: subprocess.Popen[str]
    log: Path


def start(name: str, algorithm: str, args: argparse.Namespace, logs: Path) -> Contender:
    """Start a worker; returns at once."""
    ours = name == "FolioRL"
    command = [sys.executable if ours else args.peers_python, str(Path(__file__).resolve())]
    command += ["--worker", name, "--algorithms", algorithm, "--env-id", args.env_id]
    command += ["--segment", str(args.segment), "--threads", args.threads]
    for external in args.external:
        if external.split("=", 1)[0] == name:
            command += ["--external", external.split("=", 1)[1]]
    environment = dict(os.environ)
    if args.threads == "1":
        single = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "XLA_FLAGS": single}
    else:  # every library takes the cores that it finds
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS"):
            environment.pop(variable, None)
    log = logs / f"{algorithm}-{name}.log"
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=log.open("w"),
        env=environment,
        cwd=logs,
        text=True,
    )
    return Contender(name, algorithm, process, log)


def answer(contender: Contender) -> dict[str, float] | None:
    """What the worker reports when its segment ends; None where it ended instead."""
    assert contender.process.stdout
    line = contender.process.stdout.readline()
    if line:
        return json.loads(line)
    reason = (contender.log.read_text().strip().splitlines() or ["no message"])[-1]
    print(f"speed: {contender.algorithm} of {contender.name} ended: {reason}", file=sys.stderr)
    return None


def measure(args: argparse.Namespace, logs: Path) -> list[dict[str, Any]]:
    """All rounds of all algorithms: one row for every segment."""
    rows: list[dict[str, Any]] = []
    for algorithm in args.algorithms:
        names = ["FolioRL", *PEERS] if (ROOT / f"{algorithm}_continuous.py").exists() else [*PEERS]
        names += [external.split("=", 1)[0] for external in args.external]
        contenders = []
        try:
            for name in names:
                contender = start(name, algorithm, args, logs)
                contenders.append(contender)
                print(f"{algorithm}: {name} warms up", file=sys.stderr)
                if answer(contender) is None:
                    contenders.pop()
            for number in range(args.rounds):
                for contender in random.Random(number).sample(contenders, len(contenders)):
                    assert contender.process.stdin
                    contender.process.stdin.write("go\n")
                    contender.process.stdin.flush()
                    report = answer(contender)
                    if report is None:
                        contenders.remove(contender)
                        continue
                    row = {"algorithm": algorithm, "contender": contender.name, "round": number}
                    rows.append(row | report)
                print(f"{algorithm}: round {number + 1} of {args.rounds}", file=sys.stderr)
        finally:
            for contender in contenders:
                contender.process.kill()
                contender.process.wait()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Medians and quartiles in Markdown; the ratio is the median of the rounds' own ratios."""
    head = "| algorithm | contender | steps / CPU second (quartiles) | steps / second (quartiles) |"
    lines = [head + " CPU ratio to SB3 | ratio to SB3 |", "|---|---|---|---|---|---|"]
    for algorithm in dict.fromkeys(row["algorithm"] for row in rows):
        mine = [row for row in rows if row["algorithm"] == algorithm]
        for name in dict.fromkeys(row["contender"] for row in mine):
            rates, ratios = [], []
            for clock in ("cpu", "wall"):
                speeds = {(r["contender"], r["round"]): r["steps"] / r[clock] for r in mine}
                own = {number: speed for (who, number), speed in speeds.items() if who == name}
                low, middle, high = quartiles(list(own.values()))
                rates.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
                base = {n: speeds.get(("Stable-Baselines3", n)) for n in own}
                pairs = [speed / other for n, speed in own.items() if (other := base[n])]
                ratios.append(f"{statistics.median(pairs):.2f}" if pairs else "")
            lines.append(f"| {algorithm.upper()} | {' | '.join([name, *rates, *ratios])} |")
    return "\n".join(lines)


def quartiles(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def describe(args: argparse.Namespace) -> str:
    """What the numbers were measured with, in Markdown."""
    query = "import importlib.metadata as m,sys;print(*(m.version(p) for p in sys.argv[1:]))"
    packages = ["torch", "stable-baselines3", "sbx-rl", "jax", "gymnasium"]
    found = subprocess.run(
        [args.peers_python, "-c", query, *packages], capture_output=True, text=True, check=False
    ).stdout.split()
    peers = ", ".join(f"{p} {v}" for p, v in zip(packages, found)) or "versions unknown"
    try:
        ours = f"torch {version('torch')}"
    except PackageNotFoundError:
        ours = "no torch"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model

    # Paths are a matter of one machine.
    flags, paths = list(sys.argv[1:]), ("--peers-python", "--external", "--out")
    flags = ["..." if i and flags[i - 1] in paths else flag for i, flag in enumerate(flags)]
    command = " ".join(["python benchmark/speed.py", *flags])
    external = "- external contenders: sizes, logging and evaluation as their own flags say\n"
    external = external if args.external else ""
    return f"""# Steps per second on {args.env_id}

- command: `{command}`
- date: {datetime.date.today()}; load average before: {args.load}
- machine: {model}, {os.cpu_count()} cores, {platform.system()}; threads: {args.threads}
- FolioRL: Python {platform.python_version()}, {ours}; peers: {peers}
- all: batch 256, two hidden layers of 256, one update a step, buffer 200,000, one environment,
  learning rate 7e-4, gamma 0.98, Gaussian noise 0.1 (DDPG, TD3), TensorBoard on, one evaluation
  episode every {args.segment:,} steps; no checkpoints; the rest is each library's default
{external}- {args.rounds} rounds of {args.segment:,} steps; start-up and compilation are not counted
"""


def main() -> None:
    """Read the flags, measure, and write speed.md and speed.csv."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env-id", default="HopperBulletEnv-v0", help="environment to train in")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=[*ALGORITHMS])
    parser.add_argument("--threads", choices=("1", "all"), default="1", help="for each contender")
    parser.add_argument("--rounds", type=int, default=10, help="segments of each contender")
    parser.add_argument("--segment", type=int, default=2_500, help="environment steps in a segment")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument(
        "--external",
        action="append",
        default=[],
        metavar="'NAME=SCRIPT FLAGS'",
        help="another script that steps a gymnasium SyncVectorEnv, run by the peers' interpreter; "
        "set its flags to the same sizes",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark" / "results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    if min(args.rounds, args.segment) < 1:
        fail("--rounds and --segment must be at least 1")
    if any("=" not in external for external in args.external):
        fail("--external takes NAME=SCRIPT FLAGS, such as --external 'Mine=/home/me/ddpg.py'")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # workers end too
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    args.load = ", ".join(f"{number:.1f}" for number in load) or "unknown"
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as logs:
        rows = measure(args, Path(logs))
    if not rows:
        fail(
            "no contender ran; the lines above say why (pip install -r benchmark/requirements.txt)"
        )
    name = "speed" if args.threads == "1" else "speed_all_threads"
    with (args.out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    text = f"{describe(args)}\n{table(rows)}\n"
    (args.out / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
