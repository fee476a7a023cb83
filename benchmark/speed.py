"""Environment steps per second: FolioRL's scripts beside Stable-Baselines3, sb3-contrib and SBX.

Every contender trains in a process of its own with the same sizes: acting, learning, logging, and
in continuous control evaluation, all that a run does. They take turns: one runs a segment while the
others wait, in an order that is drawn anew every round, so that a machine that slows down slows
them all. Start-up and compilation come before the first segment, and are not counted.

CPU seconds are those of the whole process. On a machine that does other work too, trust them
rather than the wall clock. With --threads 1 each contender is held to one core, JAX included.

The floor by products is the time that the matrix products of our updates would take alone, at the
rate of a product of 256 x 256 x 256 on the same core in the same round: its share of a step's time
says how much is left to gain, on any processor.

    pip install -r benchmark/requirements.txt
    python benchmark/speed.py
    python benchmark/speed.py --algorithms ddpg --threads all --out /tmp/speed
    python benchmark/speed.py --algorithms ppo a2c --bfloat16
    python benchmark/speed.py --variant "FolioRL, 8 updates=--update-every 8"
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
import re
import runpy
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {name: f"{name}_continuous.py" for name in ("ddpg", "td3", "sac")}
SCRIPTS |= {"ppo": "ppo_atari.py", "a2c": "a2c_lstm_atari.py"}
# The packages to compare with. Ratios are to the first.
PEERS = {name: {"Stable-Baselines3": "stable_baselines3", "SBX": "sbx"} for name in SCRIPTS}
PEERS |= {"ppo": {"Stable-Baselines3": "stable_baselines3"}, "a2c": {"RecurrentPPO": "sb3_contrib"}}
FLOAT32, BFLOAT16 = "FolioRL", "FolioRL, bfloat16"
FOREVER = 10**9
LEARNING_STARTS = 1_000
# What all contenders share: their own defaults differ, and would be compared instead.
SIZES = {"batch_size": 256, "buffer_size": 200_000, "gamma": 0.98, "tau": 0.005}
# On Atari each script has its defaults, and the peers those of the paper's runs, which are PPO's.
ON_POLICY = {"learning_rate": 2.5e-4, "n_steps": 128, "batch_size": 256, "n_epochs": 4}
ON_POLICY |= {"clip_range": 0.1, "ent_coef": 0.01, "vf_coef": 0.5}
# All lengths that are learnt from divide this one, so that every segment has its share of learning.
ATARI_SEGMENT = 5_120


def ours(args: argparse.Namespace) -> dict[str, str]:
    """Our contenders' names, and the flags of each."""
    variants = dict(variant.split("=", 1) for variant in args.variant)
    return {FLOAT32: ""} | ({BFLOAT16: "--bfloat16"} if args.bfloat16 else {}) | variants


def family(algorithm: str) -> str:
    return SCRIPTS[algorithm].removesuffix(".py").split("_")[-1]  # continuous or atari


def fail(message: str) -> NoReturn:
    print(f"speed: {message}", file=sys.stderr)
    raise SystemExit(2)


# The worker: one contender, in its own process and interpreter.


class Gate:
    """Called with environment steps that are done; at the end of a segment it reports and waits.

    The report is one line of JSON to the driver; a line from the driver starts the next segment.
    """

    def __init__(self, segment: int, learning_starts: int) -> None:
        # The pipe to the driver, kept apart: what contenders print must not reach it.
        self.pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        # The first segment ends when everything is compiled and warm, and is not counted.
        self.segment, self.left = segment, learning_starts + segment
        self.wall, self.cpu = 0.0, 0.0
        self.products = Products()

    def __call__(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left > 0:
            return
        if self.wall:
            wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
            row = {"steps": self.segment, "wall": wall, "cpu": cpu}
            print(json.dumps(row | {"products": self.products.seconds()}), file=self.pipe)
        else:
            print(json.dumps({"ready": True}), file=self.pipe)
        self.pipe.flush()
        if not sys.stdin.readline():  # the driver is done with this contender, or is gone
            os._exit(0)
        self.left, self.products.calls = self.segment, 0
        self.wall, self.cpu = time.perf_counter(), time.process_time()


class Products:
    """The matrix products of an update: how many operations they are, and how long they take."""

    def __init__(self) -> None:
        self.flops: list[int] = []  # of each of the first updates
        self.calls = 0  # updates in this segment
        self.dtype: Any = None

    def count(self, update: Callable, compiled: Callable) -> Callable:
        """The compiled update; its first calls run uncompiled, and their products are counted."""
        from torch.utils.flop_counter import FlopCounterMode

        def counted(*inputs: Any) -> Any:
            self.calls += 1
            if len(self.flops) >= 4:  # TD3's are alternately with and without the actor's
                return compiled(*inputs)
            with FlopCounterMode(display=False) as counter:
                result = update(*inputs)
            self.flops.append(counter.get_total_flops())
            return result

        return counted

    def seconds(self) -> float | None:
        """The products of this segment, at the rate that this core has now."""
        if not self.flops:
            return None
        import torch

        a, b, c = torch.randn(3, 256, 256, dtype=self.dtype)
        start, rounds = time.process_time(), 0
        while (elapsed := time.process_time() - start) < 0.1 or rounds < 20:
            torch.mm(a, b, out=c)
            rounds += 1
        rate = rounds * 2 * 256**3 / elapsed
        return self.calls * statistics.mean(self.flops) / rate


def run_ours(args: argparse.Namespace, gate: Gate, folder: str) -> None:
    """Import the script, and train with a Run that tells the gate of every step."""
    import torch

    path = ROOT / SCRIPTS[args.algorithms[0]]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    count_step, compile_update = module.Run.step, module.compiled

    def step(self: Any, reward: Any, *rest: Any, **more: int) -> None:
        count_step(self, reward, *rest, **more)
        gate(len(reward) * more.get("steps", 1))

    module.Run.step = step
    if family(args.algorithms[0]) == "continuous":
        bfloat16 = "--bfloat16" in ours(args)[args.worker].split()
        gate.products.dtype = torch.bfloat16 if bfloat16 else torch.float32
        module.compiled = lambda f, more: gate.products.count(f, compile_update(f, more))
    settings: dict[str, Any] = {"eval_interval": FOREVER}
    if family(args.algorithms[0]) == "continuous":
        settings = {"actor_hidden_sizes": (256, 256), "critic_hidden_sizes": (256, 256), **SIZES}
        settings |= {"eval_interval": args.segment, "eval_episodes": 1}
        settings |= {"learning_starts": LEARNING_STARTS}
    settings |= {"env_id": args.env_id, "run_dir": Path(folder) / "run", "device": "cpu"}
    settings |= {"total_timesteps": FOREVER, "save_interval": FOREVER, "progress": False}
    settings |= {"compile": args.compile}
    flags = shlex.split(ours(args)[args.worker])
    module.train(module.tyro.cli(module.Args, args=flags, default=module.Args(**settings)))


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


def run_atari_peer(package: str, env_id: str, gate: Gate, folder: str) -> None:
    """Train Stable-Baselines3's PPO, or sb3-contrib's RecurrentPPO with our LSTM of 256."""
    import ale_py
    import gymnasium as gym
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            gate(self.training_env.num_envs)
            return True

    gym.register_envs(ale_py)
    name, policy, more = "PPO", "CnnPolicy", {}
    env = make_atari_env(without_frame_skip(env_id), n_envs=8, seed=1)
    if package == "sb3_contrib":
        name, policy = "RecurrentPPO", "CnnLstmPolicy"
        memory = {"lstm_hidden_size": 256, "shared_lstm": True, "enable_critic_lstm": False}
        more = {"policy_kwargs": memory}
    model = getattr(importlib.import_module(package), name)(
        policy,
        VecFrameStack(env, n_stack=4),
        tensorboard_log=folder,
        seed=1,
        device="cpu",
        **ON_POLICY,
        **more,
    )
    model.learn(FOREVER, callback=Count())


def without_frame_skip(env_id: str) -> str:
    """The id under which wrappers, and not the game, skip frames: PongNoFrameskip-v4."""
    return env_id.removeprefix("ALE/").removesuffix("-v5") + "NoFrameskip-v4"


def run_external(command: str, gate: Gate) -> None:
    """Run another project's script as it is, counting the steps of its SyncVectorEnv."""
    import gymnasium as gym

    for package in "pybullet_envs_gymnasium", "ale_py":
        if importlib.util.find_spec(package):
            gym.register_envs(importlib.import_module(package))
    # As gymnasium called them before 1.0.
    names = {"GrayScaleObservation": "GrayscaleObservation", "FrameStack": "FrameStackObservation"}
    for old, new in names.items():
        setattr(gym.wrappers, old, getattr(gym.wrappers, new))

    env_step = gym.vector.SyncVectorEnv.step

    def step(self: Any, actions: Any) -> Any:
        result = env_step(self, actions)
        gate(self.num_envs)
        return result

    gym.vector.SyncVectorEnv.step = step  # type: ignore[method-assign]
    sys.argv = shlex.split(command)
    folder = Path(sys.argv[0]).parent
    sys.path[:1] = [str(folder), str(folder.parent)]
    runpy.run_path(sys.argv[0], run_name="__main__")


def work(args: argparse.Namespace) -> None:
    """Train one contender for ever, a segment whenever the driver says so."""
    if args.threads == "1" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    algorithm = args.algorithms[0]
    atari = family(algorithm) == "atari"
    gate = Gate(args.segment, 0 if atari else LEARNING_STARTS)
    with tempfile.TemporaryDirectory() as folder:
        if args.external:
            run_external(args.external[0], gate)
        elif args.worker in ours(args):
            run_ours(args, gate, folder)
        elif atari:
            run_atari_peer(PEERS[algorithm][args.worker], args.env_id, gate, folder)
        else:
            package = PEERS[algorithm][args.worker]
            run_peer(package, algorithm, args.env_id, args.segment, gate, folder)


# The driver: starts the workers, gives each its turns, and writes the table.


class Contender(NamedTuple):
    """A worker that waits for its turn."""

    name: str
    algorithm: str
    process: subprocess.Popen[str]
    log: Path


def start(name: str, algorithm: str, args: argparse.Namespace, logs: Path) -> Contender:
    """Start a worker; returns at once."""
    python = sys.executable if name in ours(args) else args.peers_python
    command = [python, str(Path(__file__).resolve())]
    command += ["--worker", name, "--algorithms", algorithm, "--env-id", args.env_id]
    command += ["--segment", str(args.segment), "--threads", args.threads]
    command += [] if args.compile else ["--no-compile"]
    command += ["--bfloat16"] if args.bfloat16 else []
    command += [f"--variant={variant}" for variant in args.variant]
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
        names = [*ours(args), *PEERS[algorithm]]
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
    """Medians and quartiles in Markdown; the ratio is the median of the rounds' own ratios.

    A2C's ratios are to sb3-contrib's RecurrentPPO.
    """
    head = "| algorithm | contender | steps / CPU second (quartiles) | steps / second (quartiles) |"
    lines = [head + " CPU ratio to SB3 | ratio to SB3 |", "|---|---|---|---|---|---|"]
    for algorithm in dict.fromkeys(row["algorithm"] for row in rows):
        mine = [row for row in rows if row["algorithm"] == algorithm]
        first = next(iter(PEERS[algorithm]), "")
        for name in dict.fromkeys(row["contender"] for row in mine):
            rates, ratios = [], []
            for clock in ("cpu", "wall"):
                speeds = {(r["contender"], r["round"]): r["steps"] / r[clock] for r in mine}
                own = {number: speed for (who, number), speed in speeds.items() if who == name}
                low, middle, high = quartiles(list(own.values()))
                rates.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
                base = {n: speeds.get((first, n)) for n in own}
                pairs = [speed / other for n, speed in own.items() if (other := base[n])]
                ratios.append(f"{statistics.median(pairs):.2f}" if pairs else "")
            lines.append(f"| {algorithm.upper()} | {' | '.join([name, *rates, *ratios])} |")
    return "\n".join([*lines, *floors(rows)])


def floors(rows: list[dict[str, Any]]) -> list[str]:
    """A table of the time of our updates' products in a step, and its share of the step's."""
    counted = [row for row in rows if row.get("products")]
    head = "| algorithm | contender | products, ms a step | share of the CPU time |"
    lines = ["", head, "|---|---|---|---|"] if counted else []
    for key in dict.fromkeys((row["algorithm"], row["contender"]) for row in counted):
        mine = [row for row in counted if (row["algorithm"], row["contender"]) == key]
        each = statistics.median(row["products"] / row["steps"] for row in mine)
        share = statistics.median(row["products"] / row["cpu"] for row in mine)
        lines.append(f"| {key[0].upper()} | {key[1]} | {1000 * each:.2f} | {share:.0%} |")
    return lines


def quartiles(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


SETTINGS = {
    "continuous": """\
- all: batch 256, two hidden layers of 256, one update a step, buffer 200,000, one environment,
  learning rate 7e-4, gamma 0.98, Gaussian noise 0.1 (DDPG, TD3), TensorBoard on, one evaluation
  episode every {segment:,} steps; no checkpoints; the rest is each library's default""",
    "atari": """\
- PPO: the paper's settings in all (8 games x 128 steps, 4 epochs of 4 minibatches of 256)
- A2C: 16 games x 20 steps, LSTM of 256; RecurrentPPO has PPO's settings and an LSTM of 256, as
  wide as ours, shared by policy and value
- all: TensorBoard on; no evaluations and no checkpoints; a step is four frames of one game""",
}


def describe(args: argparse.Namespace) -> str:
    """What the numbers were measured with, in Markdown."""
    query = (
        "import json; from importlib.metadata import distributions as found; "
        "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in found()}))"
    )
    packages = ["torch", "stable-baselines3", "sb3-contrib", "sbx-rl", "jax", "gymnasium", "ale-py"]
    found = subprocess.run(
        [args.peers_python, "-c", query], capture_output=True, text=True, check=False
    ).stdout
    versions = json.loads(found or "{}")
    peers = ", ".join(f"{p} {versions[p]}" for p in packages if p in versions) or "unknown"
    try:
        ours = f"torch {version('torch')}"
    except PackageNotFoundError:
        ours = "no torch"
    machine = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        # The family and the model too: a cloud calls all its processors "AMD EPYC".
        facts = dict(re.findall(r"^(.+?)\s*: (.*)$", cpuinfo.read_text(), re.M))
        if {"model name", "cpu family", "model"} <= facts.keys():
            machine = "{model name}, family {cpu family}, model {model}".format(**facts)

    # Paths are a matter of one machine.
    flags, paths = list(sys.argv[1:]), ("--peers-python", "--external", "--out")
    flags = ["..." if i and flags[i - 1] in paths else flag for i, flag in enumerate(flags)]
    command = " ".join(["python benchmark/speed.py", *flags])
    external = "- external contenders: sizes, logging and evaluation as their own flags say\n"
    external = external if args.external else ""
    return f"""# Steps per second on {args.env_id}

- command: `{command}`
- date: {datetime.date.today()}; load average before: {args.load}
- machine: {machine}, {os.cpu_count()} cores, {platform.system()}; threads: {args.threads}
- FolioRL: Python {platform.python_version()}, {ours}; peers: {peers}
{SETTINGS[family(args.algorithms[0])].format(segment=args.segment)}
{external}- {args.rounds} rounds of {args.segment:,} steps; start-up and compilation are not counted
"""


def main() -> None:
    """Read the flags, measure, and write speed.md and speed.csv."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env-id", help="default: HopperBulletEnv-v0, or ALE/Pong-v5 for Atari")
    default = ["ddpg", "td3", "sac"]
    parser.add_argument("--algorithms", nargs="+", choices=[*SCRIPTS], default=default)
    parser.add_argument("--bfloat16", action="store_true", help="our scripts also in bfloat16")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'NAME=FLAGS'",
        help="our script with these flags: 'FolioRL, 8 updates=--update-every 8'",
    )
    text = "our scripts without compiling the update"
    parser.add_argument("--no-compile", dest="compile", action="store_false", help=text)
    parser.add_argument("--threads", choices=("1", "all"), default="1", help="for each contender")
    parser.add_argument("--rounds", type=int, default=10, help="segments of each contender")
    text = f"environment steps in a segment; default: 2500, or {ATARI_SEGMENT} for Atari"
    parser.add_argument("--segment", type=int, help=text)
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument(
        "--external",
        action="append",
        default=[],
        metavar="'NAME=SCRIPT FLAGS'",
        help="another script that steps a gymnasium SyncVectorEnv, by its absolute path, run by "
        "the peers' interpreter; set its flags to the same sizes",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark" / "results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    families = {family(algorithm) for algorithm in args.algorithms}
    if len(families) > 1:
        fail("--algorithms takes continuous control or Atari, since a table has one environment")
    atari = families == {"atari"}
    args.env_id = args.env_id or ("ALE/Pong-v5" if atari else "HopperBulletEnv-v0")
    args.segment = args.segment or (ATARI_SEGMENT if atari else 2_500)
    if args.worker:
        work(args)
        return
    if min(args.rounds, args.segment) < 1:
        fail("--rounds and --segment must be at least 1")
    if any("=" not in variant for variant in args.variant):
        fail("--variant takes NAME=FLAGS, such as --variant 'Small batch=--batch-size 64'")
    if any("=" not in external for external in args.external):
        fail("--external takes NAME=SCRIPT FLAGS, such as --external 'Mine=/home/me/ddpg.py'")
    peers_python = shutil.which(args.peers_python)
    if not peers_python:
        fail(f"--peers-python is {args.peers_python}, and there is no such program")
    # The workers start in another folder. Not resolved: a link is what tells Python its packages.
    args.peers_python = str(Path(peers_python).absolute())
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
