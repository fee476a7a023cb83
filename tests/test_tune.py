"""benchmark/tune.py: trials are runs, poor ones are pruned, and a stopped search goes on."""

from __future__ import annotations

import importlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import optuna
import pytest
from conftest import ROOT, flags, rows
from test_benchmark import load

tune: Any = load("tune")
# A script that evaluates ten times; the return is better the nearer tau is to 0.01.
FAKE = """
import dataclasses, pathlib, sys, time

@dataclasses.dataclass
class Args:
    tau: float = 0.02
    pause: float = 0.0  # seconds between evaluations
    fault: int = 0  # the exit code of all runs but the one with the default tau

if __name__ == "__main__":
    flags = dict(word.split("=") for word in sys.argv if "=" in word)
    tau, fault = float(flags["--tau"]), int(flags.get("--fault", 0))
    folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
    folder.mkdir()
    if fault and tau != 0.02:
        print("starting\\nfake: something is wrong")
        sys.exit(fault)
    with (folder / "evaluations.csv").open("w", buffering=1) as file:
        file.write("env_step,mean_return\\n")
        for step in range(10):
            file.write(f"{step},{-1000 * abs(tau - 0.01)}\\n")
            time.sleep(float(flags.get("--pause", 0)))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("fake.py").write_text(FAKE)
    return tmp_path / "fake.py"


def words_of(script: Path, *more: str, trials: int = 3) -> list[str]:
    words = ["--script", str(script), "--env-id", "Pendulum-v1", "--folder", "search"]
    return [*words, "--trials", str(trials), *more]


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, str]]:
    """A function that searches; its exit code and output, or for 2, what stderr says."""

    def call(*words: str) -> tuple[int, str]:
        tune.stop.clear()
        tune.refused.clear()
        monkeypatch.setattr(sys, "argv", ["tune.py", *words])
        code = 0
        try:
            tune.main()
        except SystemExit as ending:
            code = int(ending.code or 0)
        out, err = capsys.readouterr()
        return code, err if code == 2 else out

    return call


def study() -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=None, storage="sqlite:///search/study.db").trials


def evaluated(number: int) -> int:
    return len(tune.evaluations(Path(f"search/trial-{number}")))


def test_a_trial_below_the_median_is_ended_and_the_best_is_printed(fake: Path, search: Any) -> None:
    code, out = search(*words_of(fake, "--", "--pause=0.2", trials=7))
    assert code == 0
    trials = study()
    assert trials[0].params == {"tau": 0.02}, "the first has the script's defaults"
    states = [trial.state.name for trial in trials]
    pruned = [trial.number for trial in trials if trial.state.name == "PRUNED"]
    assert states[:4] == ["COMPLETE"] * 4 and pruned
    assert all(evaluated(n) < 10 for n in pruned)
    *lines, counts, best, command = out.splitlines()
    assert len(lines) == 7 and all("pruned" in lines[number] for number in pruned)
    assert counts == f"{7 - len(pruned)} trials finished, {len(pruned)} were pruned, 0 failed"
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert all(evaluated(trial.number) == 10 for trial in complete)
    first = max(complete, key=lambda trial: trial.value or 0.0)
    assert best == f"best: trial {first.number}, {first.value:.1f}"
    prefix = shlex.join(["python", str(fake), "--env-id", "Pendulum-v1", "--pause=0.2"])
    assert command == f"{prefix} --tau={first.params['tau']:.4g}"


def test_a_larger_number_of_trials_goes_on_with_the_same_study(fake: Path, search: Any) -> None:
    search(*words_of(fake, trials=2))
    before = study()
    code, out = search(*words_of(fake, trials=2))
    assert code == 0 and "2 trials finished" in out and study() == before
    search(*words_of(fake, trials=4))
    assert len(study()) == 4 and study()[:2] == before
    assert len({trial.params["tau"] for trial in study()}) == 4, "no trial comes twice"


def test_two_workers_never_take_the_same_trial(fake: Path, search: Any) -> None:
    for trials in 2, 6:  # the first trial waits in the study, and both could take it
        code, out = search(*words_of(fake, "--workers", "2", "--", "--pause=0.01", trials=trials))
        assert code == 0 and f"{trials} trials finished" in out
    assert len({trial.params["tau"] for trial in study()}) == 6


def test_an_interrupted_trial_begins_anew(fake: Path, search: Any) -> None:
    words = words_of(fake, "--", "--pause=0.3", trials=1)
    command = [sys.executable, str(ROOT / "benchmark" / "tune.py"), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not evaluated(0):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in process.communicate()[1] and process.returncode == 130
    assert evaluated(0) < 10, "the run was ended too"
    code, out = search(*words)
    assert code == 0 and "1 trials finished, 0 were pruned, 0 failed" in out
    assert [trial.params for trial in study()] == [{"tau": 0.02}] * 2


def test_failed_trials_are_counted(fake: Path, search: Any) -> None:
    code, out = search(*words_of(fake, "--", "--fault=1"))
    assert code == 0 and "1 trials finished, 0 were pruned, 2 failed" in out


def test_a_script_that_refuses_its_flags_ends_the_search(fake: Path, search: Any) -> None:
    code, err = search(*words_of(fake, "--", "--fault=2"))
    assert (code, err.splitlines()[-1]) == (2, "tune: fake: something is wrong")
    assert len(study()) == 2


def test_bad_input_is_one_sentence(fake: Path, search: Any) -> None:
    for words, said in (
        (words_of(Path("nothing.py")), "there is no script nothing.py"),
        (words_of(fake, trials=0), "--trials and --workers must be at least 1"),
        (words_of(fake, "--", "--tau=0.1"), "has no flag left to search"),
    ):
        code, err = search(*words)
        assert code == 2 and said in err and err.count("\n") == 1
    assert search(*words_of(fake, "--", "--no-such-flag"))[0] == 2
    search(*words_of(fake, trials=1))
    code, err = search(*words_of(fake, "--", "--pause=0.1"))
    assert code == 2 and "has the study of" in err and err.count("\n") == 1
    with filelock.FileLock("search/lock"):
        code, err = search(*words_of(fake))
    assert code == 2 and "cannot open the study in search" in err and err.count("\n") == 1
    Path("search/study.db").write_text("not a database, but long enough to be taken for one" * 99)
    code, err = search(*words_of(fake))
    assert code == 2 and "cannot open the study in search" in err and err.count("\n") == 1


def test_defaults_are_within_the_ranges_of_the_search(script: ModuleType) -> None:
    searched = {name: values for name, values in tune.RANGES.items() if hasattr(script.Args, name)}
    assert len(searched) >= 3
    for name, values in searched.items():
        default = getattr(script.Args, name)
        assert values._contains(values.to_internal_repr(default)), name


def test_trials_are_runs_of_the_script(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    td3 = importlib.import_module("td3_continuous")
    small = flags(td3, total_timesteps=300, eval_interval=100, eval_episodes=1)
    at = small.index("--env-id")
    del small[at : at + 2]
    script = ROOT / "td3_continuous.py"
    code, out = search(*words_of(script, "--workers", "2", "--", *small, trials=2))
    assert code == 0 and "2 trials finished" in out, out
    command = shlex.split(out.splitlines()[-1])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", command[1:])
        args, _ = td3.read_flags()
    assert args.total_timesteps == 300 and args.batch_size == 16, "given, so not searched"
    params = study()[0].params
    assert set(params) == {"actor_learning_rate", "critic_learning_rate", "gamma", "tau"}
    for trial in study():
        run_dir = Path(f"search/trial-{trial.number}")
        assert trial.intermediate_values == dict(tune.evaluations(run_dir))
        assert len(rows(run_dir / "evaluations.csv")) == 3 and (run_dir / "best.pt").exists()
        assert not (run_dir / "checkpoint.pt").exists()
