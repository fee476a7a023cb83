"""What happens to a run that is killed, interrupted, attacked, out of disk or out of numbers."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    ATARI,
    ROOT,
    SCRIPTS,
    SMARTS,
    Probe,
    Run,
    continuous_only,
    curves,
    flags,
    kind,
    make_args,
    rows,
    weights,
)

KILLS = -(-20 // len(SCRIPTS))  # in each script


def saved_step(script: ModuleType, run_dir: Path) -> int:
    """The step of the checkpoint, which loads; 0 before the first."""
    path = run_dir / "checkpoint.pt"
    return script.load_checkpoint(path)["run"]["env_step"] if path.exists() else 0


def wait_for(condition: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 300
        time.sleep(0.001)


def wait_for_row(path: Path) -> None:
    wait_for(lambda: path.exists() and len(rows(path)) > 0)


def written(run_dir: Path) -> set[tuple[str, int]]:
    """The run's checkpoint files, finished and not, and when they were written."""
    with contextlib.suppress(FileNotFoundError):  # renamed in between
        return {(path.name, path.stat().st_mtime_ns) for path in run_dir.glob("checkpoint.*")}
    return set()


def same_weights(script: ModuleType, *run_dirs: Path) -> bool:
    """Bit for bit: shows what returns alone would not, such as an optimizer that begins anew."""
    one, other = (weights(script, run_dir) for run_dir in run_dirs)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Killed and interrupted


def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(
    script: ModuleType, tmp_path: Path
) -> None:
    # The buffer makes the file large, so that writing it takes a while.
    changes = {
        "continuous": {"save_interval": 150, "buffer_size": 200_000, "total_timesteps": 3000},
        "atari": {"save_interval": 64, "eval_interval": 400, "total_timesteps": 1024},
        "smarts": {"save_interval": 100, "total_timesteps": 3000},
    }[kind(script)]
    whole = script.train(make_args(script, run_dir=tmp_path / "whole", **changes))
    moments, run_dir, kills = random.Random(1), tmp_path / "run", 0
    while True:
        before = saved_step(script, run_dir)
        if before == changes["total_timesteps"]:
            assert curves(run_dir) == curves(whole)
            assert same_weights(script, run_dir, whole)
            if kills >= KILLS:
                break
            run_dir = tmp_path / f"run-after-{kills}"  # once more, for the kills that are left
        fresh = not (run_dir / "checkpoint.pt").exists()
        words = flags(script, run_dir=run_dir, **changes) if fresh else ["--resume", str(run_dir)]
        checkpoints = written(run_dir)
        run = Run(script, words, tmp_path)
        if kills < KILLS:
            if kills % 2:  # while it writes a checkpoint
                while written(run_dir) == checkpoints and run.process.is_alive():
                    time.sleep(0.001)
                time.sleep(moments.uniform(0, 0.01))
            else:
                time.sleep(moments.uniform(0.1, 1.0))
            run.send(signal.SIGKILL)
        code, _, err = run.wait()
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), err
        after = saved_step(script, run_dir)
        assert after >= before or fresh
        if (run_dir / "episodes.csv").exists():
            played = [int(row["env_step"]) for row in rows(run_dir / "episodes.csv")]
            assert max(played, default=0) - after <= 200  # it saves as often as it can


# Environments whose state is their generator's, so that a resumed run is the same run.
LONG = {"total_timesteps": 3000, "eval_interval": 1000, "eval_episodes": 1}
CASES: list[tuple[int, dict[str, Any]]] = [
    (signal.SIGTERM, {}),
    (signal.SIGINT, {"env_id": "InvertedPendulum-v5", "total_timesteps": 2000}),
    (signal.SIGTERM, {"env_id": "dm_control/cartpole-balance-v0", **LONG}),
    (signal.SIGTERM, {"noise_type": "ou", "ou_theta": 0.5, "ou_dt": 0.1}),
    # An actor that hardly moves, so that sigma falls steadily and not up and down.
    (signal.SIGINT, {"noise_type": "parameter", "noise_std": 0.5, "actor_learning_rate": 1e-6}),
    # A draw of W that lasts beyond the checkpoint.
    (signal.SIGTERM, {"use_sde": True, "sde_sample_interval": 300}),
]


CASES_OF_ATARI: list[tuple[int, dict[str, Any]]] = [
    (signal.SIGTERM, {"save_interval": 64, **LONG, "total_timesteps": 1400}),
    # Lives are lost.
    (signal.SIGINT, {"env_id": "ALE/Breakout-v5", "max_episode_frames": 250, "eval_interval": 500}),
]
CASES_OF_SMARTS: list[tuple[int, dict[str, Any]]] = [
    (signal.SIGTERM, {}),
    (signal.SIGINT, {"action_type": "continuous", "num_envs": 1}),
]
CASES_OF = dict.fromkeys(ATARI, CASES_OF_ATARI) | dict.fromkeys(SMARTS, CASES_OF_SMARTS)


@pytest.mark.parametrize(
    ("name", "number", "changes"),
    [
        pytest.param(name, number, changes, id=f"{name}-{signal.Signals(number).name}-{changes}")
        for name in SCRIPTS
        for number, changes in CASES_OF.get(name, CASES)
        if all(f"    {flag}:" in (ROOT / f"{name}.py").read_text() for flag in changes)
    ],
)
def test_an_interrupted_run_says_how_to_go_on_and_then_ends_as_if_it_had_not_been(
    name: str, number: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    script = importlib.import_module(name)
    changes = {"total_timesteps": 1400, "save_interval": 10_000} | changes
    if hasattr(script.Args, "temperature_init"):  # it falls with the games that are finished
        changes |= {"temperature_init": 3.0, "temperature_decay_episodes": 20}
    whole = script.train(make_args(script, run_dir=tmp_path / "whole", **changes))
    run = Run(script, flags(script, run_dir="run", **changes), tmp_path)
    wait_for_row(tmp_path / "run" / "episodes.csv")
    time.sleep(random.Random(name + str(changes)).uniform(0, 0.3))
    run.send(number)
    code, out, err = run.wait()
    assert code == 128 + number, err
    assert err.endswith(f"\n{name}: saving as soon as it can; again to end at once\n")
    said = re.search(r"saved step (\d+); go on with: (.*)\n", out)
    assert said
    python, path, *words = shlex.split(said[2])
    assert (python, path) == (sys.executable, script.__file__)
    assert int(said[1]) == saved_step(script, tmp_path / "run") < changes["total_timesteps"]
    code, _, err = Run(script, words, tmp_path).wait()
    assert code == 0, err
    assert curves(tmp_path / "run") == curves(whole)
    assert same_weights(script, tmp_path / "run", whole)


def test_a_second_signal_ends_the_run_at_once(script: ModuleType, tmp_path: Path) -> None:
    # Signalled at its first evaluation it would save some hundred updates later.
    many: dict[str, dict[str, Any]] = {
        "ppo_atari": {"update_epochs": 100},
        "a2c_lstm_atari": {"chunk_size": 5000, "total_timesteps": 100_000},
        "maddpg_smarts": {"batch_size": 2000, "update_interval": 1},
        "ppo_smarts": {"update_epochs": 300},
    }
    changes = many.get(script.__name__, {"updates_per_step": 100}) | {"run_dir": "run"}
    changes |= {"eval_interval": 100}
    run = Run(script, flags(script, **changes), tmp_path)
    wait_for_row(tmp_path / "run" / "evaluations.csv")
    run.send(signal.SIGTERM)
    wait_for(lambda: b"again to end at once" in (tmp_path / "stderr.txt").read_bytes())
    run.send(signal.SIGTERM)
    assert run.wait()[0] == -signal.SIGTERM


# Attacked


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = str(victim)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.victim,)


def test_a_checkpoint_from_a_stranger_runs_no_code(script: ModuleType, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    torch.save({"script": script.__name__, "args": Malice(victim)}, path)
    for words in ["--resume", "run"], ["--evaluate", str(path)]:
        code, _, err = Run(script, words, tmp_path).wait()
        assert (code, err.count("\n")) == (2, 1), err
        assert str(path.relative_to(tmp_path)) in err and "damaged" in err
        assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the file was harmless"


# Out of disk


def test_a_full_disk_keeps_the_checkpoint_before_it(script: ModuleType, tmp_path: Path) -> None:
    run_dir = script.train(make_args(script, total_timesteps=200, run_dir=tmp_path / "run"))
    path = run_dir / "checkpoint.pt"
    before, before_step = path.read_bytes(), saved_step(script, run_dir)
    words = ["--resume", "run", "--total-timesteps", "2000", "--eval-interval", "5000"]
    code, _, err = Run(script, words, tmp_path, file_limit=len(before) - 1).wait()
    assert (code, err.count("\n")) == (1, 1), err
    assert "checkpoint.pt" in err and "the checkpoint before it is kept" in err
    assert path.read_bytes() == before
    assert not list(run_dir.glob("*.tmp"))
    assert saved_step(script, run_dir) == before_step


@pytest.mark.parametrize("file_limit", [100, 5000])
def test_a_disk_full_from_the_start_ends_in_one_sentence(
    file_limit: int, script: ModuleType, tmp_path: Path
) -> None:
    code, _, err = Run(script, flags(script, run_dir="run"), tmp_path, file_limit=file_limit).wait()
    assert (code, err.count("\n")) == (1, 1), err


# Out of numbers


class Broken(Probe):
    """Ten steps an episode; the reward of step 450 is `broken`."""

    length, broken = 10, float("nan")

    def __init__(self, **render_mode: Any) -> None:
        super().__init__()
        self.steps = 0

    def reward(self, action: np.ndarray) -> float:
        self.steps += 1
        return self.broken if self.steps == 450 else 1.0


class Huge(Broken):
    """A reward whose square is more than a float32 can be."""

    broken = 1e30


@continuous_only
@pytest.mark.parametrize(
    ("probe", "sentence"),
    [(Broken, r"Broken-v0 .*reward.*nan.* step 450"), (Huge, r"loss is (inf|nan) at step 4\d\d")],
)
def test_numbers_that_are_not_finite_end_the_run_and_are_not_saved(
    probe: type[Broken],
    sentence: str,
    script: ModuleType,
    register: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"save_interval": 200, "buffer_size": 20, "eval_interval": 10_000}
    args = make_args(script, env_id=register(probe), run_dir=tmp_path / "run", **changes)
    with pytest.raises(SystemExit) as ending:
        script.train(args)
    err = capsys.readouterr().err
    assert (ending.value.code, err.count("\n")) == (1, 1), err
    assert re.search(sentence, err), err
    checkpoint = script.load_checkpoint(args.run_dir / "checkpoint.pt")
    assert checkpoint["run"]["env_step"] == 400
    numbers = [*checkpoint["agent"].values(), checkpoint["buffer"]["reward"]]
    assert all(torch.isfinite(number).all() for number in numbers)


@pytest.mark.parametrize("script", [*ATARI, "ppo_smarts"], indirect=True)
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = make_args(script, run_dir=tmp_path / "run", total_timesteps=64, anneal_lr=False)
    script.train(args)
    before = (args.run_dir / "checkpoint.pt").read_bytes()
    checkpoint = script.load_checkpoint(args.run_dir / "checkpoint.pt")
    changes = {"resume": args.run_dir, "total_timesteps": 1024, "learning_rate": 1e30}
    phases: list[dict[str, Any]] = [{}]
    if hasattr(args, "update_epochs"):  # also where no loss is left to show it
        phases += [{"update_epochs": 1, "num_minibatches": 1}]
    for phase in phases:
        with pytest.raises(SystemExit) as ending:
            script.train(make_args(script, anneal_lr=False, **changes, **phase), checkpoint)
        err = capsys.readouterr().err
        assert (ending.value.code, err.count("\n")) == (1, 1), err
        named = "policy_loss" if hasattr(args, "update_epochs") and not phase else "weight_norm"
        assert re.search(rf"{named} is (nan|inf) at step (100|128); the last checkpoint", err), err
        assert (args.run_dir / "checkpoint.pt").read_bytes() == before
