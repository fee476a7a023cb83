"""What happens to a run that is killed, interrupted, out of disk or out of numbers."""

from __future__ import annotations

import importlib
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import (
    ATARI,
    Run,
    continuous_only,
    curves,
    failed,
    flags,
    kind,
    make_args,
    rows,
    weights,
)
from probes import Clock, NanObservationInEvaluation
from test_house import assert_tensorboard_is_csv

DDPG = importlib.import_module("ddpg_continuous")


def saved_step(script: ModuleType, run_dir: Path) -> int:
    """The step of the checkpoint, which loads; 0 before the first."""
    path = run_dir / "checkpoint.pt"
    return script.load_checkpoint(path)["run"]["env_step"] if path.exists() else 0


def written(path: Path) -> int:
    """When the file was written; 0 if there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for(condition: Callable[[], bool], run: Run | None = None) -> None:
    """Wait until the condition holds, or the run has ended."""
    start = time.monotonic()
    while not condition() and not (run and not run.process.is_alive()):
        assert time.monotonic() - start < 300
        time.sleep(0.001)


def same_weights(script: ModuleType, *run_dirs: Path) -> bool:
    """Bit for bit: shows what returns alone would not, such as an optimizer that begins anew."""
    one, other = (weights(script, run_dir) for run_dir in run_dirs)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Killed and interrupted


def test_a_run_killed_at_any_instant_leaves_a_whole_checkpoint_and_goes_on_from_there(
    script: ModuleType, tmp_path: Path
) -> None:
    """Killed while it writes a checkpoint, and at a random moment between two of them."""
    changes: dict[str, Any] = {"total_timesteps": 1200, "save_interval": 128, "eval_interval": 400}
    if kind(script) == "continuous":
        changes["buffer_size"] = 200_000  # a large file, so that writing it takes a while
    run_dir = tmp_path / "run"
    writing, path = run_dir / "checkpoint.pt.tmp", run_dir / "checkpoint.pt"
    words, kills = flags(script, run_dir="run", **changes), 0
    for part in "writing", "between", "to the end":
        before, at = saved_step(script, run_dir), written(path)
        run = Run(script, words, tmp_path)
        if part == "writing":
            wait_for(lambda: path.exists() and writing.exists(), run)
        elif part == "between":
            wait_for(lambda: written(path) > at, run)  # noqa: B023
            time.sleep(random.Random(script.__name__).uniform(0, 0.3))
        if part != "to the end":
            run.send(signal.SIGKILL)
        code, _, err = run.wait()
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), err
        assert saved_step(script, run_dir) > before
        if saved_step(script, run_dir) >= changes["total_timesteps"]:
            break
        words = ["--resume", "run"]
    assert kills > 0 and saved_step(script, run_dir) >= changes["total_timesteps"]
    for name in "episodes", "evaluations", "losses":
        steps = [int(row["env_step"]) for row in rows(run_dir / f"{name}.csv")]
        assert steps == sorted(steps)
    assert len(rows(run_dir / "evaluations.csv")) == 3
    assert_tensorboard_is_csv(run_dir)


EXACT: list[dict[str, Any]] = [
    {"noise_type": "gaussian", "anneal_lr": True},
    {"noise_type": "ou", "ou_theta": 0.5, "ou_dt": 0.1, "noise_decay_steps": 500},
    # An actor that hardly moves, so that sigma falls steadily and not up and down
    {"noise_type": "parameter", "noise_std": 0.5, "actor_learning_rate": 1e-6},
    {"anneal_lr": True},
]


@continuous_only
@pytest.mark.parametrize("changes", EXACT, ids=lambda changes: changes.get("noise_type", "plain"))
def test_a_resumed_run_of_one_environment_equals_one_that_was_not_cut_off(
    changes: dict[str, Any],
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, from a checkpoint at the end of an episode."""
    if hasattr(script.Args, "noise_type") != ("noise_type" in changes):
        pytest.skip("it has other flags")
    changes = changes | {"total_timesteps": 800, "save_interval": 400, "eval_interval": 200}
    changes |= {"learning_starts": 50, "eval_episodes": 1}
    whole = script.train(make_args(script, run_dir=tmp_path / "whole", **changes))
    run_dir, save = tmp_path / "run", script.Run.save

    def save_and_die(run: Any, name: str, **parts: Any) -> None:
        save(run, name, **parts)
        if name == "checkpoint.pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script.Run, "save", save_and_die)
        assert failed(script, make_args(script, run_dir=run_dir, **changes)) == "interrupted"
    assert saved_step(script, run_dir) == 400
    code, _, err = Run(script, ["--resume", str(run_dir)], tmp_path).wait()
    assert code == 0, err
    assert curves(run_dir) == curves(whole)
    assert same_weights(script, run_dir, whole)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: signal.Signals(n).name
)
def test_an_interrupted_run_says_how_to_resume_it(
    number: int, script: ModuleType, tmp_path: Path
) -> None:
    if number != signal.SIGTERM and script is not DDPG:
        pytest.skip("they share what handles signals")
    changes = dict.fromkeys(["total_timesteps", "save_interval", "eval_interval"], 50_000)
    run = Run(script, flags(script, run_dir="run", **changes), tmp_path)
    path = tmp_path / "run" / "episodes.csv"
    wait_for(lambda: path.exists() and len(rows(path)) > 0)
    run.send(number)
    code, out, err = run.wait()
    assert code == 128 + number, err
    assert err == f"{script.__name__}: saving at the next step; interrupt again to end at once\n"
    said = re.search(r"saved step (\d+); resume with: (.*)\n", out)
    assert said
    python, file, *words = shlex.split(said[2])
    assert (python, file) == (sys.executable, script.__file__)
    step = saved_step(script, tmp_path / "run")
    assert int(said[1]) == step < changes["total_timesteps"]
    code, _, err = Run(script, [*words, "--total-timesteps", str(step + 200)], tmp_path).wait()
    assert code == 0, err
    assert saved_step(script, tmp_path / "run") >= step + 200


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    changes = {"run_dir": "run", "updates_per_step": 10_000, "learning_starts": 10}
    run = Run(DDPG, flags(DDPG, **changes), tmp_path)
    wait_for(lambda: (tmp_path / "run" / "args.json").exists())
    time.sleep(0.5)
    run.send(signal.SIGTERM)
    wait_for(lambda: "interrupt again to end at once" in (tmp_path / "stderr.txt").read_text())
    run.send(signal.SIGTERM)
    assert run.wait()[0] == -signal.SIGTERM


def test_without_an_end_of_the_episode_a_signal_saves_at_the_next_step(tmp_path: Path) -> None:
    """In training, and in an evaluation, which is left."""
    changes = {"env_id": "probes:Endless-v0", "total_timesteps": 10**6, "save_interval": 500}
    run = Run(DDPG, flags(DDPG, run_dir="run", eval_interval=10**7, **changes), tmp_path)
    run_dir, steps = tmp_path / "run", []
    wait_for(lambda: saved_step(DDPG, run_dir) > 0, run)  # after two save intervals
    for words in ["--resume", "run", "--eval-interval", "1"], []:
        time.sleep(0.5)
        run.send(signal.SIGTERM)
        code, out, err = run.wait()
        assert code == 128 + signal.SIGTERM, err
        assert "saved step" in out
        steps.append(saved_step(DDPG, run_dir))
        if words:  # the evaluation of the next step, which never ends
            at = written(run_dir / "args.json")
            run = Run(DDPG, words, tmp_path)
            wait_for(lambda: written(run_dir / "args.json") > at, run)  # noqa: B023
    assert steps[0] > 1000 and steps[1] == steps[0] + 1


def test_an_evaluation_without_an_end_is_cut_off(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "MAX_EPISODE", 20)
    result = script.play(make_args(script, evaluate="untrained"), None)
    assert result["mean_length"] == 20
    assert "without an end was cut off after 20 steps" in capsys.readouterr().out


def test_two_processes_never_write_to_one_run_folder(tmp_path: Path) -> None:
    """Neither two new runs nor two resumed ones; a killed one does not keep the folder."""
    changes = {"total_timesteps": 10**6, "save_interval": 10**6}  # they hold no checkpoint
    DDPG.train(make_args(DDPG, total_timesteps=150, run_dir=tmp_path / "old"))
    resume = ["--resume", str(tmp_path / "old"), "--total-timesteps", "1000000"]
    (tmp_path / "second").mkdir()
    for folder, words in (
        (tmp_path / "new", flags(DDPG, run_dir=tmp_path / "new", **changes)),
        (tmp_path / "old", resume),
    ):
        at = written(folder / "episodes.csv")
        for _ in range(2):
            first = Run(DDPG, words, tmp_path)
            wait_for(lambda: written(folder / "episodes.csv") > at, first)  # noqa: B023
            code, _, err = Run(DDPG, words, tmp_path / "second").wait()
            assert (code, err.count("\n")) == (2, 1) and "in use by another process" in err, err
            first.send(signal.SIGKILL)
            assert first.wait()[0] == -signal.SIGKILL
            at = written(folder / "episodes.csv")


def test_closed_streams_and_a_closed_terminal_do_not_end_a_run(tmp_path: Path) -> None:
    """A closed stderr, a reader of stdout that leaves, and SIGHUP that nohup has ignored."""
    words = flags(DDPG, run_dir="run", total_timesteps=600, eval_interval=100)
    command = shlex.join([sys.executable, str(DDPG.__file__), *words])
    line = f"trap '' HUP; ({command} 2>&- & echo $! > pid; wait $!; echo $? > code) | head -n 1"
    process = subprocess.Popen(["sh", "-c", line], cwd=tmp_path, stdout=subprocess.DEVNULL)
    path = tmp_path / "run" / "evaluations.csv"
    wait_for(lambda: path.exists() and len(rows(path)) > 0)
    subprocess.run(["kill", "-HUP", (tmp_path / "pid").read_text().strip()])
    process.wait()
    wait_for(lambda: (tmp_path / "code").exists() and (tmp_path / "code").read_text() != "")
    assert (tmp_path / "code").read_text() == "0\n"
    assert saved_step(DDPG, tmp_path / "run") == 600


# Out of disk


def test_a_full_disk_keeps_the_checkpoint_before_it(script: ModuleType, tmp_path: Path) -> None:
    changes = {"total_timesteps": 128, "eval_episodes": 1}
    run_dir = script.train(make_args(script, run_dir=tmp_path / "run", **changes))
    path = run_dir / "checkpoint.pt"
    before, before_step = path.read_bytes(), saved_step(script, run_dir)
    words = ["--resume", "run", "--total-timesteps", "2000", "--eval-interval", "5000"]
    code, _, err = Run(script, words, tmp_path, file_limit=len(before) - 1).wait()
    assert (code, err.count("\n")) == (1, 1), err
    assert "checkpoint.pt" in err and "the previous checkpoint is kept" in err
    assert path.read_bytes() == before
    assert not list(run_dir.glob("*.tmp"))
    assert saved_step(script, run_dir) == before_step


@pytest.mark.parametrize("file_limit", [100, 5000])
def test_a_disk_full_from_the_start_ends_in_one_sentence(file_limit: int, tmp_path: Path) -> None:
    code, _, err = Run(DDPG, flags(DDPG, run_dir="run"), tmp_path, file_limit=file_limit).wait()
    assert (code, err.count("\n")) == (1, 1), err


def test_a_run_leaves_the_reader_s_own_files_alone(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("mine\n")
    DDPG.train(make_args(DDPG, total_timesteps=20, eval_episodes=1, run_dir=tmp_path))
    assert (tmp_path / "data.csv").read_text() == "mine\n"


# Out of numbers


@continuous_only
@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        ("NanReward", "reward after step 449: nan"),
        ("RewardBeyondFloat32", r"reward after step 449: 1e\+39"),
        ("HugeReward", r"(loss|weights) after step 4\d\d: (inf|nan)"),
        ("NanObservation", "observation after step 452: nan"),
        ("NanObservationAtReset", "observation after step 450: nan"),
        ("ObservationBeyondFloat32", "observation after step 452: inf"),
        ("NanObservationInEvaluation", "observation in the evaluation at step 450: nan"),
    ],
)
def test_numbers_that_are_not_finite_end_the_run_and_are_not_saved(
    probe: str, sentence: str, script: ModuleType, tmp_path: Path, capfd: Any
) -> None:
    NanObservationInEvaluation.made = 0
    changes = {"save_interval": 200, "eval_interval": 450, "batch_size": 100, "eval_episodes": 1}
    if probe != "NanObservationInEvaluation":
        changes["eval_interval"] = 10_000
    args = make_args(script, env_id=f"probes:{probe}-v0", run_dir=tmp_path / "run", **changes)
    code, err = failed(script, args), capfd.readouterr().err
    assert (code, err.count("\n")) == (1, 1), err
    sentence += " is not a finite float32; the last"
    assert re.match(rf"{script.__name__}: [\w ]*{sentence}", err), err
    checkpoint = script.load_checkpoint(args.run_dir / "checkpoint.pt")
    assert checkpoint["run"]["env_step"] == 400
    parts = {**checkpoint["agent"], **checkpoint["buffer"]}.values()
    numbers = [number for number in parts if torch.is_tensor(number)]
    assert len(numbers) > 10 and all(torch.isfinite(number).all() for number in numbers)
    args = script.Args(**checkpoint["args"])
    args.resume, args.total_timesteps, args.eval_interval = tmp_path / "run", 500, 10_000
    NanObservationInEvaluation.made = -100  # the environments made now are sound
    if probe != "NanObservationInEvaluation":
        assert script.train(args, checkpoint) == tmp_path / "run"


def test_weights_that_are_not_finite_are_not_saved(
    script: ModuleType, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """The last update may ruin them, where no loss is left to show it."""
    args = make_args(script, total_timesteps=128, eval_episodes=1, run_dir=tmp_path / "run")
    script.train(args)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    checkpoint = script.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    args = script.Args(**checkpoint["args"])
    args.resume, args.total_timesteps = tmp_path / "run", 256
    save = script.Run.save

    def ruin(run: Any, name: str, **parts: Any) -> None:
        next(p for p in parts["agent"].parameters() if p.dim()).data[0] = float("nan")
        save(run, name, **parts)

    monkeypatch.setattr(script.Run, "save", ruin)
    code, err = failed(script, args, checkpoint), capsys.readouterr().err
    assert (code, err.count("\n")) == (1, 1) and "is not a finite float32" in err, err
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("script", [*ATARI, "ppo_smarts"], indirect=True)
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the first loss is finite, and the update ruins the weights."""
    args = make_args(script, run_dir=tmp_path / "run", learning_rate=1e30, anneal_lr=False)
    if hasattr(args, "update_epochs"):
        args.update_epochs = args.num_minibatches = 1
    code, err = failed(script, args), capsys.readouterr().err
    assert (code, err.count("\n")) == (1, 1), err
    assert "is not a finite float32; the last checkpoint is kept" in err
    assert not (args.run_dir / "checkpoint.pt").exists()


@continuous_only
def test_no_transition_crosses_the_end_of_an_episode(script: ModuleType, tmp_path: Path) -> None:
    Clock.made = 0
    changes = {"num_envs": 3, "total_timesteps": 600, "eval_episodes": 1, "eval_interval": 10_000}
    args = make_args(script, env_id="probes:Clock-v0", run_dir=tmp_path / "run", **changes)
    script.train(args)
    checkpoint = script.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    buffer = {k: v[:600] for k, v in checkpoint["buffer"].items() if torch.is_tensor(v)}
    number, episode, moment = buffer["obs"].T
    # Each next observation is the one a step later, also where an episode ends.
    assert torch.equal(buffer["next_obs"], buffer["obs"] + torch.tensor([0, 0, 1]))
    last = moment + 1 == 3 + number
    assert torch.equal(buffer["terminated"], (last & (episode % 2 == 0)).float())
    for i in range(3):  # Every step of every episode is there, once and in order.
        mine = (number == i).nonzero().flatten()
        step = torch.arange(200)
        assert torch.equal(moment[mine], (step % (3 + i)).float())
        assert torch.equal(episode[mine], (1 + step // (3 + i)).float())
    lengths = [row["episodic_length"] for row in rows(tmp_path / "run" / "episodes.csv")]
    assert set(lengths) == {*"345"} and len(lengths) == 200 // 3 + 200 // 4 + 200 // 5
