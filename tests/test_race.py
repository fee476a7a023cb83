"""The race in the stadium: every robot moves as it did in training, whoever runs beside it."""

from __future__ import annotations

import csv
import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pybullet
import pytest
import torch
import tyro
from conftest import ROOT, make_args
from pybullet_utils.bullet_client import BulletClient

import ddpg_continuous as ddpg
import sac_continuous as sac
import td3_continuous as td3

sys.path.insert(0, str(ROOT / "scenarios" / "stadium"))
import film
import race

SCRIPTS: dict[str, ModuleType] = {"Hopper": ddpg, "Walker2D": td3, "HalfCheetah": td3, "Ant": sac}


def write_run(folder: Path, robot: str, **changes: Any) -> Path:
    """A run folder with an untrained policy, whose actions are large."""
    script: Any = SCRIPTS.get(robot, td3)
    args = make_args(
        script, env_id=f"{robot}BulletEnv-v0", weights_init="normal", bias_init="uniform", **changes
    )
    torch.manual_seed(0)
    agent = script.Agent(*script.dimensions(script.make_env(args)), args)
    state = {"script": script.SCRIPT, "args": dataclasses.asdict(args)}
    folder.mkdir(exist_ok=True)
    torch.save(state | {"agent": agent.state_dict()}, folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder for each robot."""
    folder = tmp_path_factory.mktemp("runs")
    return {robot: write_run(folder / robot, robot) for robot in SCRIPTS}


def settings(**changes: Any) -> race.Args:
    return race.Args(runs=(), **{"seconds": 5.0} | changes)


def trajectories(runners: list[race.Runner], args: race.Args) -> list[np.ndarray]:
    """The observations of each runner in a race: [steps + 1, O]."""
    seen: list[list[Any]] = [[] for _ in runners]

    def watch(simulator: Any, runners: list[race.Runner], now: float) -> None:
        for runner, observations in zip(runners, seen):
            observations.append(np.asarray(runner.obs, np.float32))

    race.race(runners, 1, args, watch)
    return [np.array(observations) for observations in seen]


@torch.no_grad()
def alone(runner: race.Runner, steps: int) -> np.ndarray:
    """The observations of the policy in the environment that it was trained in: [steps + 1, O]."""
    env = runner.script.make_env(runner.args)
    obs, _ = env.reset(seed=runner.script.episode_seed(1, runner.lane))
    seen = [obs]
    for _ in range(steps):
        action = runner.agent.actor(torch.as_tensor(obs).unsqueeze(0)).squeeze(0)
        obs, *_ = env.step(action.numpy())
        seen.append(obs)
    return np.array(seen)


@pytest.fixture
def no_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let robots that have fallen struggle on, since untrained ones fall within half a second."""
    from pybullet_envs_gymnasium.gym_locomotion_envs import WalkerBaseBulletEnv

    monkeypatch.setattr(WalkerBaseBulletEnv, "_isDone", lambda self: False)


@pytest.mark.usefixtures("no_falls")
@pytest.mark.parametrize("lane", [0, 5])
@pytest.mark.parametrize("robot", SCRIPTS)
def test_a_robot_moves_as_it_does_alone_in_its_own_environment(
    robot: str, lane: int, runs: dict[str, Path]
) -> None:
    runner = race.Runner(runs[robot], lane)
    (found,) = trajectories([runner], settings())
    expected = alone(runner, len(found) - 1)
    assert len(found) > 300 and np.abs(found[-1] - found[0]).max() > 0.1
    print(f"{robot}, lane {lane}: {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if lane == 0 else 1e-6)


@pytest.mark.usefixtures("no_falls")
def test_a_policy_that_repeats_actions_does_so_in_the_race(tmp_path: Path) -> None:
    runner = race.Runner(write_run(tmp_path / "run", "Hopper", action_repeat=3), 0)
    (found,) = trajectories([runner], settings())
    np.testing.assert_array_equal(found[::3], alone(runner, (len(found) - 1) // 3))


@pytest.mark.parametrize("width", [race.LANE, 0.0])
def test_robots_do_not_influence_each_other(
    width: float, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with lanes of no width, in which they run through each other; all fall and get up."""
    monkeypatch.setattr(race, "LANE", width)
    robots, args = ["Ant", "HalfCheetah", "Hopper"], settings(get_up=True)
    runners = [race.Runner(runs[robot], lane) for lane, robot in enumerate(robots)]
    together = trajectories(runners, args)
    assert runners[2].falls > 2
    for runner, found in zip(runners, together):
        np.testing.assert_array_equal(found, trajectories([runner], args)[0])


def test_all_robots_have_the_same_clock() -> None:
    for robot in race.ROBOTS:
        env: Any = td3.make_env(make_args(td3, env_id=f"{robot}BulletEnv-v0")).unwrapped
        scene = env.create_single_player_scene(BulletClient(pybullet.DIRECT))
        assert (scene.timestep, scene.frame_skip) == (0.0165 / 4, 4)
        assert scene.dt == film.STEP


def test_a_robot_that_falls_is_out(runs: dict[str, Path]) -> None:
    runner = race.Runner(runs["Hopper"], 0)
    (row,) = race.race([runner], 1, settings())
    found = row["result"], row["falls"], row["time_s"]
    assert found == ("fell", 1, pytest.approx(runner.time, abs=1e-4)) and 0.1 < runner.time < 2
    assert runner.bullet_env._isDone()


@pytest.mark.parametrize("robot", ["Hopper", "Ant", "Humanoid"])
def test_a_robot_gets_up_where_it_fell(robot: str, tmp_path: Path) -> None:
    runner = race.Runner(write_run(tmp_path / "run", robot), 1)
    heights, ways, places, falls, observed = [], [], [], [], []

    def watch(simulator: Any, runners: Any, now: float) -> None:
        heights.append(runner.bullet_env.robot.body_real_xyz[2])
        ways.append(runner.distance)  # before it gets up
        places.append(runner.x - runner.start_x)
        falls.append(runner.falls)
        observed.append(runner.obs[0])  # the height above that at the start

    (row,) = race.race([runner], 1, settings(get_up=True, seconds=8.0), watch)
    ups = np.flatnonzero(np.diff(falls)) + 1  # the moments just after it was put on its feet
    assert row["result"] == "time limit" and row["falls"] == falls[-1] >= 2
    assert [heights[i] for i in ups] == pytest.approx([heights[0]] * len(ups), abs=0.02)
    assert [observed[i] for i in ups] == pytest.approx([observed[0]] * len(ups), abs=0.02)
    assert np.abs(ways).max() > 0.02 and places == pytest.approx(ways, abs=1e-6)


def result(name: str, result: str, time: float, distance: float) -> Any:
    more = {"robot": "Ant", "algorithm": "sac", "falls": 0, "lane": 0, "run": Path(name)}
    return SimpleNamespace(result=result, time=time, distance=distance, **more)


def test_those_who_finish_are_ranked_by_time_and_the_others_by_distance() -> None:
    runners = [
        result("limit", "", 30.0, 7.0),
        result("second", "finished", 9.0, 10.1),
        result("fell late", "fell", 20.0, 9.0),
        result("first", "finished", 8.0, 10.0),
        result("also second", "finished", 9.0, 10.1),
        result("fell early", "fell", 2.0, 1.0),
    ]
    rows = race.table(runners, seed=4)
    assert [(row["place"], row["run"]) for row in rows] == [
        (1, "first"),
        (2, "second"),
        (2, "also second"),
        (4, "fell late"),
        (5, "limit"),
        (6, "fell early"),
    ]
    assert rows[3]["mean_speed_m_s"] == 0.45 and rows[4]["result"] == "time limit"


def test_means_over_races_and_the_rate_of_wins() -> None:
    def row(lane: int, place: int, result: str, time: float) -> dict[str, Any]:
        more = {"robot": "Ant", "algorithm": "sac", "falls": 1, "mean_speed_m_s": 1.0}
        return {
            "lane": lane,
            "place": place,
            "result": result,
            "time_s": time,
            "distance_m": time,
        } | more

    rows = [row(1, 1, "finished", 6.0), row(2, 2, "fell", 1.0)]
    rows += [row(2, 1, "finished", 5.0), row(1, 2, "finished", 8.0)]
    rows += [row(2, 1, "finished", 6.0), row(1, 2, "fell", 1.0)]
    best, other = race.means(rows)
    assert (best["lane"], best["win_rate"], best["finished"], best["time_s"]) == (
        2, 0.667, "2 of 3", 5.5,
    )  # fmt: skip
    assert (other["win_rate"], other["mean_place"], other["distance_m"]) == (0.333, 1.667, 5.0)


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["race.py", *map(str, words)])
    race.main()


def test_the_table_is_printed_and_written(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "new" / "race.csv"
    words: list[str | Path] = [*runs.values(), "--seconds", "2", "--csv", path]
    call(monkeypatch, *words)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[-5:]]
    assert [row["place"] for row in rows] == ["1", "2", "3", "4"]
    assert {(row["robot"], row["algorithm"]) for row in rows} == {
        (robot, script.SCRIPT.split("_")[0]) for robot, script in SCRIPTS.items()
    }
    assert shown[0] == list(rows[0])
    for row, line in zip(rows, shown[1:]):
        assert " ".join(row.values()).split() == line
    call(monkeypatch, *words, "--races", "2")
    with path.open() as file:
        again = list(csv.DictReader(file))
    assert again[:4] == rows and [row["seed"] for row in again[4:]] == ["2"] * 4
    assert "win_rate" in capsys.readouterr().out


def test_the_commands_on_the_page_have_flags_that_there_are() -> None:
    page = (ROOT / "docs" / "stadium.md").read_text()
    commands = re.findall(r"^python scenarios/stadium/race.py (.*runs/.*)$", page, re.M)
    assert len(commands) > 2
    for command in commands:
        assert len(tyro.cli(race.Args, args=command.split()).runs) == 2


def test_a_run_of_the_script_itself_can_race(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    length = {"total_timesteps": 300, "eval_interval": 300, "eval_episodes": 1}
    env_id = "HopperBulletEnv-v0"
    run = td3.train(make_args(td3, env_id=env_id, run_dir=tmp_path / "run", **length))
    call(monkeypatch, run, run, "--distance", "0.001")
    assert capsys.readouterr().out.count("Hopper ") == 2


def test_the_race_is_filmed_and_filming_changes_nothing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = runs["Ant"], runs["HalfCheetah"], "--seconds", "0.4"
    call(monkeypatch, *words)
    expected = capsys.readouterr().out.splitlines()[-3:]
    call(monkeypatch, *words, "--capture-video", tmp_path / "race.mp4")
    assert capsys.readouterr().out.splitlines()[-3:] == expected
    frames = imageio.imread(tmp_path / "race.mp4").astype(int)
    assert frames.shape == (13, film.HEIGHT, film.WIDTH, 3)  # of the 26 moments, every second
    assert frames.std() > 20 and np.abs(frames[-1] - frames[0]).max() > 100


def test_the_window_follows_the_runners(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a simulator without a window, which takes the same calls."""
    slept: list[float] = []
    monkeypatch.setattr(pybullet, "GUI", pybullet.DIRECT)
    monkeypatch.setattr(film.time, "sleep", slept.append)
    monkeypatch.setenv("DISPLAY", ":0")
    call(monkeypatch, runs["Ant"], runs["HalfCheetah"], "--seconds", "0.1", "--render")
    assert len(slept) == 8 and set(slept) == {film.STEP}


BAD_INPUT = {
    "one": "a race has two to six runners, a run folder each; 1 given",
    "seven": "a race has two to six runners, a run folder each; 7 given",
    "pendulum": "is a run of InvertedPendulumBulletEnv-v0; a runner is one of Hopper, Walker2D",
    "empty": "holds no best.pt; give the folder of a run",
    "damaged": "is damaged or not a checkpoint",
    "atari": "was written by ppo_atari.py; a race takes runs of ddpg_continuous",
    "other flags": "was written by a version of td3_continuous.py with other flags",
    "--csv /proc/race.csv": "cannot write /proc/race.csv: ",
    "--distance 0": "--distance is 0.0: Input should be greater than 0",
    "--races 0": "--races is 0: Input should be greater than 0",
    "--capture-video race.gif": "--capture-video is race.gif; give a file that ends in .mp4",
    "--render": "--render needs a screen; --capture-video FILE.mp4 does not",
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_sentence(
    case: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    run, bad = runs["Ant"], tmp_path / "run"
    bad.mkdir()
    if case == "pendulum":
        write_run(bad, "InvertedPendulum")
    elif case == "damaged":
        (bad / "best.pt").write_bytes((run / "best.pt").read_bytes()[:1000])
    elif case == "atari":
        torch.save({"script": "ppo_atari", "args": {}, "agent": {}}, bad / "best.pt")
    elif case == "other flags":
        state = {"script": "td3_continuous", "args": {"color": 1}, "agent": {}}
        torch.save(state, bad / "best.pt")
    words: list[str | Path] = [run, bad]
    if case in ("one", "seven"):
        words = [run] * {"one": 1, "seven": 7}[case]
    elif case.startswith("--"):
        words = [run, run, *case.split()]
    with pytest.raises(SystemExit) as ending:
        call(monkeypatch, *words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ending.value.code == 2 and line.startswith("race: ") and BAD_INPUT[case] in line
