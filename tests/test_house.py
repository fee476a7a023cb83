"""What every script does the same way: one test for each promise.

What belongs to the shared blocks "run" and "continuous environment", the same text in all scripts,
is tested in one script where the test is slow.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import (
    ATARI,
    CONTINUOUS,
    ROOT,
    SCRIPTS,
    Run,
    atari_only,
    continuous_only,
    curves,
    flags,
    kind,
    make_args,
    rows,
    run_python,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Finished = Callable[[ModuleType], Path]


def evaluations(run_dir: Path) -> list[str]:
    """The steps at which a run was evaluated."""
    return [row["env_step"] for row in rows(run_dir / "evaluations.csv")]


# Reproducibility


def test_the_same_seed_gives_the_same_run_however_often_it_is_evaluated(
    script: ModuleType, finished: Finished, tmp_path: Path
) -> None:
    run_dir, interval = finished(script), make_args(script).eval_interval
    args = make_args(script, eval_interval=interval // 2, run_dir=tmp_path / "run")
    again = script.train(args)
    assert rows(again / "episodes.csv") == rows(run_dir / "episodes.csv")
    (before, _), (now, _) = curves(run_dir), curves(again)
    assert len(now) > len(before)
    assert [row for row in now if row["env_step"] in evaluations(run_dir)] == before


def test_another_seed_gives_another_run(
    script: ModuleType, finished: Finished, tmp_path: Path
) -> None:
    changes = {"seed": 2, "eval_interval": 10_000, "eval_episodes": 1}
    other = script.train(make_args(script, run_dir=tmp_path / "run", **changes))
    one, two = (rows(folder / "losses.csv")[-1] for folder in (finished(script), other))
    assert one.keys() == two.keys() and one["env_step"] == two["env_step"]
    assert all(one[name] != two[name] for name in one if name.endswith("_loss"))
    if kind(script) != "atari":  # short games of Pong often end alike
        assert rows(finished(script) / "episodes.csv") != rows(other / "episodes.csv")


# The run folder and the terminal


def test_the_run_folder_holds_settings_and_curves(script: ModuleType, finished: Finished) -> None:
    run_dir = finished(script)
    settings = dataclasses.asdict(make_args(script, run_dir="run"))
    assert json.loads((run_dir / "args.json").read_text()) == json.loads(json.dumps(settings))
    headers = {path.stem: path.open().readline().strip() for path in run_dir.glob("*.csv")}
    assert headers["episodes"] == "env_step,episodic_return,episodic_length,seconds"
    assert headers["evaluations"].startswith(
        "env_step,seconds,mean_return,std_return,min_return,max_return,mean_length,episodes"
    )
    assert headers["losses"].startswith("env_step,seconds,") and len(headers) == 3
    logged = {"sac_continuous": "alpha"} | dict.fromkeys(ATARI, "grad_norm")
    assert logged.get(script.__name__, "env_step") in headers["losses"].split(",")
    # On Atari at the end of the rollout of 64 steps in which an evaluation falls due; two games or
    # episodes at a time there and with several agents.
    steps = {
        "continuous": ([300, 600, 900, 1000], [200, 400, 600, 800, 1000]),
        "atari": ([192, 320, 512], [200, 200, 400, 400]),
        "smarts": ([300, 600, 900, 1000], [50 * (i // 2 + 1) for i in range(40)]),
    }
    evaluated, ended = steps[kind(script)]
    if script.__name__ == "a3c_lstm_atari":  # one game
        ended = [100, 200, 300, 400, 500]
    assert evaluations(run_dir) == [str(step) for step in evaluated]
    assert [int(row["env_step"]) for row in rows(run_dir / "episodes.csv")] == ended
    assert {path.name for path in run_dir.glob("*.pt*")} == {"best.pt", "checkpoint.pt"}


def test_the_terminal_shows_every_evaluation(script: ModuleType, finished: Finished) -> None:
    run_dir = finished(script)
    out, err = ((run_dir.parent / f"{name}.txt").read_text() for name in ("stdout", "stderr"))
    assert err == "" and out.endswith("\ndone: run\n") and out.isascii()
    shown = re.findall(r"step (\d+), \d+ s: evaluation -?\d+\.\d \+/- \d+\.\d", out)
    assert shown == evaluations(run_dir)


def assert_tensorboard_is_csv(run_dir: Path) -> None:
    events = EventAccumulator(str(run_dir))
    events.Reload()
    tags = {tag for tag in events.Tags()["scalars"] if not tag.startswith("losses/")}
    assert len(tags) < len(events.Tags()["scalars"])  # there are losses
    shown = {
        "charts/episodic_return": ("episodes", "episodic_return"),
        "charts/episodic_length": ("episodes", "episodic_length"),
        "eval/episodic_return": ("evaluations", "mean_return"),
        "eval/episodic_length": ("evaluations", "mean_length"),
    }
    assert tags >= {*shown, "charts/SPS"}
    for tag, (name, column) in shown.items():
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        written = [(int(r["env_step"]), float(r[column])) for r in rows(run_dir / f"{name}.csv")]
        assert np.allclose(points, written), tag
    for path, tag in ((run_dir / "losses.csv", "losses/"),):
        for row in rows(path):
            values = {k: float(v) for k, v in row.items() if k != "env_step"}
            for column, value in values.items():
                points = [(event.step, event.value) for event in events.Scalars(tag + column)]
                assert any(s == int(row["env_step"]) and np.isclose(v, value) for s, v in points)


def test_tensorboard_shows_what_the_csv_files_say(script: ModuleType, finished: Finished) -> None:
    assert_tensorboard_is_csv(finished(script))


def test_three_evaluations_at_the_wanted_return_end_the_run(
    script: ModuleType, tmp_path: Path
) -> None:
    changes = {"stop_at_return": -1e9, "eval_interval": 64, "total_timesteps": 1000}
    args = make_args(script, eval_episodes=1, run_dir=tmp_path / "run", **changes)
    assert len(evaluations(script.train(args))) == 3


def wandb_records(path: Path) -> list[Any]:
    """The records of a file of Weights & Biases, which is a log of LevelDB behind 7 bytes."""
    Record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record

    content, at, records, whole = path.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block, too short for a header
            at += 32768 - at % 32768
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            records.append(Record.FromString(whole))
            whole = b""
    return records


def history_rows(folder: Path) -> tuple[int, set[str]]:
    """The rows that Weights & Biases holds of a run, and the ids of the run, for all its parts."""
    paths = folder.glob("wandb/offline-run-*/run-*.wandb")
    records = [record for path in paths for record in wandb_records(path)]
    count = sum(record.WhichOneof("record_type") == "history" for record in records)
    return count, {record.run.run_id for record in records if record.HasField("run")}


def test_weights_and_biases_gets_each_row_of_the_csv_files_once(tmp_path: Path) -> None:
    """One run in two parts: with a name and an environment id that are no id for W&B."""
    script, run_dir = importlib.import_module("ddpg_continuous"), tmp_path / "a=1,b" / "run"
    changes = {"track": True, "env_id": "probes:RewardOfShapeOne-v0", "total_timesteps": 1200}
    words = flags(script, run_dir=run_dir, **changes)
    environ = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONPATH": str(ROOT / "tests")}
    run_python([str(script.__file__), *words], tmp_path, **environ)
    words = ["--resume", ".", "--total-timesteps", "1300"]
    run_python([str(script.__file__), *words], run_dir, **environ)
    first, ids = history_rows(tmp_path)
    second, same_ids = history_rows(run_dir)
    written = [len(rows(path)) for path in run_dir.glob("*.csv")]
    assert written and first + second == sum(written)
    assert ids == same_ids and len(ids) == 1 and re.fullmatch(r"\w+", min(ids))
    assert len(list(run_dir.glob("*.tfevents.*"))) == 2  # one for each part
    assert not list(tmp_path.rglob("wandb/**/*.tfevents.*"))


# Evaluation and video


def printed_return(out: str) -> float:
    match = re.search(r"^return (\S+) \+/- \S+ over \d+ episodes, .*\n\Z", out, re.M)
    assert match, out
    return float(match[1])


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """A function that runs a script's main(); returns its exit code, stdout and stderr."""

    def run(script: ModuleType, *words: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", [str(script.__file__), *words])
        capsys.readouterr()
        code: Any = 0
        try:
            script.main()
        except SystemExit as ending:
            code = ending.code
        return code, *capsys.readouterr()

    return run


@continuous_only
def test_films_of_dm_control_have_its_speed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "check_video", lambda env, env_id: None)  # it needs OpenGL
    for task, fps in ("cartpole-swingup", 100), ("walker-walk", 40):
        env = script.make_env(make_args(script, env_id=f"dm_control/{task}-v0"), film=True)
        assert env.metadata["render_fps"] == fps


@continuous_only
def test_evaluate_closes_its_environment(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it does not, DM Control prints errors at the end of a program that has rendered."""
    closed = []
    original = script.make_env

    def make_env(*words: Any, **flags: Any) -> Any:
        env = original(*words, **flags)
        monkeypatch.setattr(env, "close", lambda: closed.append(True))
        return env

    monkeypatch.setattr(script, "make_env", make_env)
    script.play(make_args(script, evaluate="untrained"), None)
    assert closed == [True]


def test_evaluate_plays_the_best_policy_of_a_run(
    script: ModuleType, finished: Finished, call: Any
) -> None:
    run_dir = finished(script)
    returns = [float(row["mean_return"]) for row in rows(run_dir / "evaluations.csv")]
    assert len(set(returns)) > 1
    for source, expected in (
        (run_dir, max(returns)),
        (run_dir / "checkpoint.pt", returns[-1]),
    ):
        code, out, err = call(script, "--evaluate", str(source))
        assert (code, err) == (0, "")
        assert printed_return(out) == pytest.approx(expected, abs=0.06)


def test_a_checkpoint_from_a_gpu_is_evaluated_on_the_episodes_of_any_seed(
    script: ModuleType, finished: Finished, tmp_path: Path, call: Any
) -> None:
    checkpoint = torch.load(finished(script) / "best.pt")
    checkpoint["args"]["device"] = "cuda"
    torch.save(checkpoint, tmp_path / "best.pt")
    outputs = [
        call(script, "--evaluate", str(tmp_path), "--seed", seed)[1] for seed in ("1", "1", "7")
    ]
    assert outputs[0] == outputs[1]
    if kind(script) != "atari":  # short games of Pong often end alike
        assert outputs[0] != outputs[2]


def test_evaluate_plays_an_untrained_and_a_random_policy(
    script: ModuleType, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = []
    for policy in "untrained", "random", "random":
        code, out, err = call(script, *flags(script, evaluate=policy))
        assert (code, err) == (0, "")
        values.append(printed_return(out))
    assert values[1] == values[2]
    if kind(script) != "atari":  # in Pong an untrained policy is as good as random
        assert values[0] != values[1]
    assert not list(tmp_path.iterdir())


@atari_only
def test_a_random_policy_samples_its_actions_whatever_the_flags(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, taken = script.AtariGames.step, set[int]()

    def note(games: Any, action: torch.Tensor) -> Any:
        taken.update(action.tolist())
        return step(games, action)

    monkeypatch.setattr(script.AtariGames, "step", note)
    script.play(make_args(script, evaluate="random", greedy_eval=True), None)
    assert taken == set(range(6))


def assert_film(path: Path, length: int) -> None:
    """An MP4 of a whole episode in which there is something to see, and it moves."""
    frames = imageio.imread(path)
    assert len(frames) == pytest.approx(length, abs=2)
    assert min(frame.std() for frame in frames) > 5
    assert (frames[20].astype(int) - frames[0]).std() > 1


def test_every_evaluation_is_filmed(script: ModuleType, tmp_path: Path, call: Any) -> None:
    length = {"continuous": 200, "atari": 100, "smarts": 25}[kind(script)]
    run_dir = tmp_path / "run"
    changes = {"capture_video": True, "total_timesteps": 128, "eval_episodes": 1}
    code, _, err = call(script, *flags(script, run_dir=run_dir, **changes))
    assert code == 0, err
    (film,) = (run_dir / "videos").glob("*.mp4")
    assert "128" in film.name
    assert_film(film, length)
    shutil.rmtree(run_dir / "videos")
    code, _, err = call(script, "--evaluate", str(run_dir), "--capture-video")
    assert code == 0, err
    (film,) = (run_dir / "videos").glob("*.mp4")
    assert_film(film, length)


# Bad input


BAD: dict[str, list[tuple[dict[str, Any], list[str]]]] = {
    "continuous": [
        ({"env_id": "Pendullum-v1"}, ["Pendullum", "Did you mean", "`Pendulum`"]),
        ({"env_id": "Pendulum-v99"}, ["v99", "v1"]),
        ({"env_id": "HoperBulletEnv-v0"}, ["HoperBulletEnv", "HopperBulletEnv"]),
        ({"env_id": "dm_control/cartpole-fly-v0"}, ["cartpole-fly"]),
        ({"env_id": "CartPole-v1"}, ["CartPole-v1", "Discrete(2)", "Pendulum-v1"]),
        ({"batch_size": 0}, ["--batch-size", "0", "greater than 0"]),
        ({"actor_hidden_sizes": (16, 0)}, ["--actor-hidden-sizes", "0", "greater than 0"]),
        ({"buffer_size": 2, "num_envs": 3}, ["--buffer-size", "--num-envs"]),
    ],
    "atari": [
        ({"env_id": "ALE/Pongg-v5"}, ["Pongg", "Did you mean", "`Pong`"]),
        ({"env_id": "Pendulum-v1"}, ["Pendulum-v1", "ALE/Pong-v5"]),
        ({"max_episode_frames": 0}, ["--max-episode-frames", "0", "greater than 0"]),
        ({"sticky_actions": 1.5}, ["--sticky-actions", "1.5", "less than or equal to 1"]),
        ({"actions": ("NOOP", "JUMP")}, ["JUMP", "RIGHTFIRE", "--full-action-space"]),
    ],
    "smarts": [
        ({"env_id": "mpe2/simple_spred_v3"}, ["simple_spred", "did you mean", "simple_spread_v3"]),
        ({"env_id": "CartPole-v1"}, ["CartPole-v1", "package/name", "mpe2/simple_spread_v3"]),
        ({"env_id": "smarts/crossing-v0"}, ["smarts/crossing-v0", "smarts/intersection-4lane-v0"]),
        ({"env_id": "mpe2/simple_speaker_listener_v4"}, ["Discrete(3)", "Discrete(5)"]),
        ({"evaluate": "keep-lane"}, ["keep-lane", "mpe2/simple_spread_v3", "random"]),
        ({"horizon": 7}, ["--horizon", "smarts/intersection-4lane-v0 only"]),
        ({"env_id": "smarts/intersection-4lane-v0", "horizon": 0}, ["--horizon is 0"]),
    ],
    "sac_continuous": [({"init_alpha": 0.0}, ["--init-alpha is 0", "greater than 0"])],
    "ppo_atari": [({"num_minibatches": 3}, ["--num-minibatches", "3", "64"])],
    "ppo_smarts": [({"num_minibatches": 0}, ["--num-minibatches", "0"])],
    "a2c_lstm_atari": [
        ({"temperature_init": 0.5}, ["--temperature-min", "--temperature-init"]),
        ({"model": "linear", "batch_norm": True}, ["--batch-norm", "--model linear"]),
    ],
    "maddpg_smarts": [({"gumbel_temperature": 0.0}, ["--gumbel-temperature", "0"])],
}
BAD_ANYWHERE: list[tuple[dict[str, Any], list[str]]] = [
    ({"gamma": 2.0}, ["--gamma is 2.0", "less than or equal to 1"]),
    ({"gamma": float("nan")}, ["--gamma is nan"]),
    ({"eval_episodes": 0}, ["--eval-episodes is 0", "greater than 0"]),
    ({"seed": 2**31}, ["--seed is 2147483648", "less than 2147483648"]),
    ({"device": "cuda"}, ["--device", "GPU", "cpu"]),
    ({"resume": "nowhere"}, ["nowhere", "run folder"]),
    ({"resume": __file__}, [__file__, "run folder"]),
    ({"resume": "one", "run_dir": "other"}, ["--resume, --evaluate and --run-dir"]),
    ({"evaluate": "nowhere"}, ["nowhere", "run folder"]),
    ({"evaluate": "nowhere.pt"}, ["nowhere.pt"]),
]


def assert_refused(answer: tuple[Any, str, str], *named: str) -> None:
    """Exit code 2, and one line on stderr with all that it should name."""
    code, out, err = answer
    assert (code, out, err.count("\n")) == (2, "", 1), answer
    assert re.match(r"\w+: ", err) and err.isascii()
    assert all(part in err for part in named), (err, named)


def test_bad_input_ends_in_one_sentence(
    script: ModuleType, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for changes, named in BAD[kind(script)] + BAD.get(script.__name__, []) + BAD_ANYWHERE:
        assert_refused(call(script, *flags(script, **changes)), *named)
    assert not list(tmp_path.iterdir())


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = str(victim)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.victim,)


OTHER = {"continuous": "--layer-norm", "atari": "--no-norm-obs", "smarts": "--num-envs 3"}


def test_a_fixed_flag_cannot_be_changed_in_resuming_nor_in_evaluating(
    script: ModuleType, finished: Finished, call: Any
) -> None:
    """A policy that is not the one that learned would play otherwise, without a word."""
    run_dir = str(finished(script))
    changes = [OTHER[kind(script)].split()]
    changes += [["--activation", "silu"]] if script.__name__ == "a2c_lstm_atari" else []
    changes += [["--action-repeat", "2"]] if kind(script) == "continuous" else []
    for words in changes:
        name = words[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        for source in ["--resume", run_dir, "--total-timesteps", "2000"], ["--evaluate", run_dir]:
            before = f"{name} {getattr(make_args(script), name)}"
            assert_refused(call(script, *source, *words), before, "cannot be changed")


def test_unusable_run_folders_end_in_one_sentence(
    script: ModuleType, finished: Finished, tmp_path: Path, call: Any
) -> None:
    run_dir, victim = shutil.copytree(finished(script), tmp_path / "run"), tmp_path / "victim"
    path = run_dir / "checkpoint.pt"
    content, folder = path.read_bytes(), str(run_dir)
    again = flags(script, run_dir=run_dir)
    assert_refused(call(script, *again), folder, "--resume", "--run-dir")
    assert_refused(call(script, "--resume", folder), "finished", "--total-timesteps")
    resume = ["--resume", folder, "--total-timesteps", "2000"]
    assert_refused(call(script, *resume, "--seed", "5"), "seed 1", "cannot be changed")

    checkpoint = torch.load(path)
    renamed = {f"old.{name}": weight for name, weight in checkpoint["agent"].items()}
    for change, reason in (
        ({"script": "dqn_atari"}, "dqn_atari"),
        ({"args": checkpoint["args"] | {"old_flag": 1}}, "old_flag"),
        ({"agent": renamed}, "networks"),
        ({"args": Malice(victim)}, "damaged"),
    ):
        torch.save(checkpoint | change, path)
        assert_refused(call(script, *resume), "checkpoint", reason)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the file was harmless"
    for damaged in (content[: len(content) // 2], content[:-1], b"", b"hello", bytes(1000)):
        path.write_bytes(damaged)
        assert_refused(call(script, *resume), "checkpoint.pt", "damaged")


@pytest.mark.parametrize(
    ("package", "changes"),
    [
        ("wandb", {"track": True}),
        ("moviepy", {"capture_video": True}),
        ("pybullet_envs_gymnasium", {"env_id": "HopperBulletEnv-v0"}),
        ("shimmy", {"env_id": "dm_control/cartpole-balance-v0"}),
    ],
)
def test_a_missing_package_ends_in_one_sentence(
    package: str, changes: dict[str, Any], call: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    script = importlib.import_module("ddpg_continuous")
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # an import fails
    words = flags(script, run_dir=tmp_path / "run", **changes)
    assert_refused(call(script, *words), package, "pip install")


def test_tracking_without_a_key_ends_in_one_sentence(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "WANDB_API_KEY", "WANDB_MODE":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    script = importlib.import_module("ddpg_continuous")
    code, _, err = Run(script, flags(script, track=True, run_dir="run"), tmp_path).wait()
    assert_refused((code, "", err), "--track", "API key", "WANDB_MODE=offline")


UNUSABLE = {
    "Grid": "flat Box of floats",
    "Integers": "flat Box of floats",
    "Bytes": "flat Box of floats",
    "FixedDimension": "low < high",
    "Unbounded": "finite bounds",
    "AlmostUnbounded": "finite bounds",
    "SequenceObservation": "do not flatten",
    "GraphObservation": "do not flatten",
}


@pytest.mark.parametrize("script", CONTINUOUS, indirect=True)
def test_spaces_that_it_cannot_use_are_refused(script: ModuleType, call: Any) -> None:
    for name, reason in UNUSABLE.items():
        env_id = f"probes:{name}-v0"
        assert_refused(call(script, *flags(script, env_id=env_id)), env_id, reason)


@pytest.mark.parametrize("name", ["Endless", "RendersNothing", "RendersGrey", "RendersAList"])
def test_an_environment_that_cannot_be_filmed_is_refused_before_training(
    name: str, call: Any, tmp_path: Path
) -> None:
    script, env_id = importlib.import_module("ddpg_continuous"), f"probes:{name}-v0"
    words = flags(script, env_id=env_id, capture_video=True, run_dir=tmp_path / "run")
    assert_refused(call(script, *words), env_id, "render")
    assert not list(tmp_path.iterdir())


# One file is all there is


def test_the_file_runs_alone_in_an_empty_folder_and_a_plain_terminal(
    script: ModuleType, tmp_path: Path
) -> None:
    path = shutil.copy(str(script.__file__), tmp_path)
    changes = {"total_timesteps": 128, "eval_episodes": 1, "evaluate": "untrained"}
    if script.__name__ == "ddpg_continuous":
        del changes["evaluate"]  # one script trains, and names its folder
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": ""}
    out, _ = run_python([str(path), *flags(script, **changes)], tmp_path, **plain)
    if "evaluate" in changes:
        assert printed_return(out) < 1000
        return
    env_id = make_args(script).env_id.replace("/", "-")
    (run_dir,) = tmp_path.glob(f"runs/{env_id}__*")
    assert out.endswith(f"done: {run_dir.relative_to(tmp_path)}\n")
    assert (run_dir / "checkpoint.pt").exists()
    assert "--total-timesteps" in run_python([str(path), "--help"], tmp_path, **plain)[0]


def test_the_help_is_plain_ascii(script: ModuleType) -> None:
    source = Path(str(script.__file__)).read_text()
    (args,) = re.findall(r"^@dataclasses.dataclass\nclass Args:\n(.+?)^\S", source, re.M | re.S)
    assert args.isascii(), [line for line in args.splitlines() if not line.isascii()]


def test_a_flag_that_scripts_share_means_the_same_in_all() -> None:
    """Its type and its explanation are equal; defaults may differ."""
    meaning: dict[str, dict[str, list[str]]] = {}
    for name in SCRIPTS:
        source = (ROOT / f"{name}.py").read_text()
        for flag, hint, comment in re.findall(
            r"^    (\w+): ([^#=]+?) = [^#]+  # (.+)$", source, re.M
        ):
            meaning.setdefault(flag, {}).setdefault(comment + " | " + hint, []).append(name)
    different = {flag: told for flag, told in meaning.items() if len(told) > 1}
    for flag in ("eval_interval", "save_interval", "resume", "device", "track", "run_dir"):
        assert flag in meaning and flag not in different, different[flag]


def test_dm_control_shows_no_warnings_of_other_packages(tmp_path: Path) -> None:
    code = """
import warnings
import ddpg_continuous
before = list(warnings.filters)
ddpg_continuous.make_env(ddpg_continuous.Args(env_id="dm_control/cartpole-balance-v0"))
assert warnings.filters == before, warnings.filters
"""
    _, err = run_python(["-c", code], tmp_path, PYTHONPATH=str(ROOT), MUJOCO_GL="off")
    assert err == ""


# Machines


def test_a_compiler_that_does_not_work_is_found_out_before_training(tmp_path: Path) -> None:
    """It is PyTorch's own compiler that is tried: CXX, if it is set, and not g++."""
    for name in "my-compiler", "g++", "clang++":
        tool = tmp_path / name
        tool.write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/asked\nexit 1\n")
        tool.chmod(0o755)
    code = (
        "import ddpg_continuous as s, torch\n"
        "f = s.compiled(lambda x: x + 1, s.Args(device='cpu'))\n"
        "print(f(torch.zeros(1)).item())\n"
    )
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CXX": str(tmp_path / "my-compiler")}
    environ |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    out, err = run_python(["-c", code], tmp_path, **environ)
    assert out == "1.0\n"
    assert err.count("\n") == 1 and "cannot compile here" in err, err
    assert set((tmp_path / "asked").read_text().split()) == {"my-compiler"}
