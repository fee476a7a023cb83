"""Search the hyperparameters of a script in an environment, with Optuna.

    python benchmark/tune.py --script sac_continuous.py --env-id HopperBulletEnv-v0 --workers 2 \
        --folder runs/tune -- --total-timesteps 200_000 --eval-interval 10_000

A trial is a run of the script with flags from RANGES; the first has the script's defaults. What
follows -- goes to every run, and a flag that stands there is not searched. A trial's score is the
mean return of its last three evaluations. SIGTERM ends (prunes) one whose evaluation is worse than
the median of the trials before it at this step. After an interruption, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import filelock
import optuna
import tyro
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

RATE = FloatDistribution(1e-5, 1e-2, log=True)
RANGES: dict[str, BaseDistribution] = {  # by flag; a script is searched in those that it has
    "learning_rate": RATE,
    "actor_learning_rate": RATE,
    "critic_learning_rate": RATE,
    "entropy_coef": FloatDistribution(1e-4, 0.1, log=True),
    "tau": FloatDistribution(1e-3, 0.1, log=True),
    "gamma": CategoricalDistribution([0.9, 0.95, 0.98, 0.99, 0.995, 0.999]),
    "gae_lambda": CategoricalDistribution([0.8, 0.9, 0.95, 0.98, 1.0]),
    "batch_size": CategoricalDistribution([64, 128, 256, 512, 1024]),
}
stop = threading.Event()  # set by Ctrl-C, by SIGTERM, and if the script refuses its flags
refused: list[str] = []  # why it refuses them
asking = threading.Lock()


def flags_of(params: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value:.4g}" for name, value in params.items()]


def evaluations(run_dir: Path) -> list[tuple[int, float]]:
    """Step and mean return of a run's evaluations so far."""
    path = run_dir / "evaluations.csv"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = (line for line in lines if line.endswith("\n"))  # the last may not be written yet
    return [(int(row["env_step"]), float(row["mean_return"])) for row in csv.DictReader(whole)]


def run_trial(
    study: optuna.Study, ranges: dict[str, BaseDistribution], command: list[str], folder: Path
) -> None:
    """Run the command with the flags of one more trial, in a folder of its own."""
    if stop.is_set():
        return
    with asking:  # in SQLite, two workers may get the same trial
        trial = study.ask(ranges)
    run_dir, flags = folder / f"trial-{trial.number}", flags_of(trial.params)
    command = [*command, *flags, "--no-progress", "--run-dir", str(run_dir)]
    environ = {"OMP_NUM_THREADS": "1"} | os.environ
    pruned, seen, code = False, 0, None
    with run_dir.with_suffix(".log").open("w+") as log:
        process = subprocess.Popen(  # in a session of its own, which Ctrl-C does not reach
            command, stdout=log, stderr=log, env=environ, start_new_session=True
        )
        while code is None and not pruned and not stop.is_set():
            time.sleep(0.5)
            code = process.poll()
            for step, value in evaluations(run_dir)[seen:]:
                trial.report(value, step)
                pruned, seen = code is None and trial.should_prune(), seen + 1
        if code is None:
            process.terminate()
            process.wait()
        log.seek(0)
        said = (log.read().strip().splitlines() or ["it printed nothing"])[-1]
    (run_dir / "checkpoint.pt").unlink(missing_ok=True)  # it may hold a large replay buffer
    if code == 2:  # as in all other trials
        refused.append(said)
        stop.set()
    if stop.is_set() and code in (None, 2):
        return  # it stays in the study as running, and begins anew the next time
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
        said = "pruned"
    elif code or not seen:
        trial.set_user_attr("exit_code", code)
        study.tell(trial, state=TrialState.FAIL)
        said = f"failed with exit code {code}: {said}"
    else:
        score = statistics.fmean(value for _, value in evaluations(run_dir)[-3:])
        study.tell(trial, score)
        said = f"{score:.1f}"
    print(f"trial {trial.number}: {said}", *flags, flush=True)


def interrupt(number: int, frame: Any) -> None:
    """Let the runs end; a second signal ends this program at once."""
    print("stopping; the same command goes on", file=sys.stderr)
    stop.set()
    signal.signal(number, signal.SIG_DFL)


def fail(message: str) -> NoReturn:
    """End the program with one sentence; 2 stands for bad input."""
    print(f"tune: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Read the flags, run the trials that are missing, and print the best."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--env-id", required=True)
    parser.add_argument("--trials", type=int, default=30, help="of the whole study")
    parser.add_argument("--workers", type=int, default=1, help="trials at the same time")
    parser.add_argument("--folder", type=Path, required=True, help="of the runs and study.db")
    parser.add_argument("flags", nargs="*", help="after --: flags for every run")
    args = parser.parse_args()
    if not args.script.is_file():
        fail(f"there is no script {args.script}")
    if args.trials < 1 or args.workers < 1:
        fail("--trials and --workers must be at least 1")
    sys.path.insert(0, str(args.script.resolve().parent))
    defaults = importlib.import_module(args.script.stem).Args
    tyro.cli(defaults, args=args.flags)  # ends the program if there is no such flag
    given = {flag.partition("=")[0].lstrip("-").replace("-", "_") for flag in args.flags}
    ranges = {k: v for k, v in RANGES.items() if hasattr(defaults, k) and k not in given}
    if not ranges:
        fail(f"{args.script} has no flag left to search; it takes {', '.join(RANGES)}")

    command = [str(args.script), "--env-id", args.env_id, *args.flags]
    name, storage = shlex.join(command), f"sqlite:///{args.folder / 'study.db'}"
    args.folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(args.folder / "lock", timeout=0)
    try:
        lock.acquire()
        others = {*optuna.get_all_study_names(storage)} - {name}
    except Exception as error:  # in use, or SQLAlchemy's many kinds
        fail(f"cannot open the study in {args.folder}: {str(error).splitlines()[0]}")
    if others:
        fail(f"{args.folder} has the study of {min(others)}; give another --folder")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction="maximize", pruner=pruner
    )
    # Another seed when it goes on, since the same one would give the same trials again
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # cut off: they begin anew
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    if not study.trials:
        study.enqueue_trial({name: getattr(defaults, name) for name in ranges})
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, interrupt)

    def counts() -> list[int]:  # finished, pruned, failed; trials that were cut off do not count
        ended = [t.state for t in study.trials if t.state != TrialState.FAIL or t.user_attrs]
        return [ended.count(s) for s in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)]

    job = study, ranges, [sys.executable, *command], args.folder
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda _: run_trial(*job), range(args.trials - sum(counts()))))
    if refused:
        fail(refused[0])
    if stop.is_set():
        raise SystemExit(130)
    print("{} trials finished, {} were pruned, {} failed".format(*counts()))
    if not counts()[0]:
        raise SystemExit(1)
    print(f"best: trial {study.best_trial.number}, {study.best_value:.1f}")
    print(shlex.join(["python", *command, *flags_of(study.best_params)]))


if __name__ == "__main__":
    main()
