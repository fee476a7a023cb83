"""The crossing in the real SMARTS, with SUMO's traffic."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Run, curves, flags, make_args, rows, small
from test_house import assert_film

import maddpg_ray
import maddpg_smarts as maddpg
import ppo_smarts as ppo

pytest.importorskip("smarts")
SOURCE = ROOT / "scenarios" / "intersection-4lane"
sys.path.insert(0, str(SOURCE))
import crossing  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build into a folder of the tests' own."""
    before = os.environ.get("FOLIORL_CACHE")
    os.environ["FOLIORL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["FOLIORL_CACHE"]
    else:
        os.environ["FOLIORL_CACHE"] = before


@pytest.fixture(scope="module")
def env(cache: None) -> Iterator[Any]:
    """A crossing in this process, for what does not depend on the order in sets."""
    env = crossing.Crossing(image=True, horizon=30)
    yield env
    env.close()


def args(**changes: Any) -> ppo.Args:
    return make_args(ppo, env_id="smarts/intersection-4lane-v0", num_envs=1, **changes)


# The simulator


def test_two_simulators_agree_to_the_bit_and_an_episode_repeats_itself() -> None:
    envs = [ppo.make_env(args(traffic="dense")) for _ in range(2)]
    actions = np.random.default_rng(1).integers(4, size=(50, 4))

    def episode(env: ppo.MultiAgentEnv, seed: int) -> list[ppo.Step]:
        steps = [env.reset(seed)]
        while steps[-1].live.any() and len(steps) < len(actions):
            steps.append(env.step(actions[len(steps)]))
        env.close()
        return steps

    envs[1].reset(2)  # its SUMO is not as fresh as the other's
    one, two = (episode(env, 1) for env in envs)
    assert len(one) == len(two) > 20
    for mine, other in zip(one, two):
        assert all(np.array_equal(a, b) for a, b in zip(mine, other))


@pytest.mark.parametrize(
    ("traffic", "continuous"), [("light", False), ("dense", False), ("dense", True)]
)
def test_the_fast_step_equals_smarts_own_to_the_bit(traffic: str, continuous: bool) -> None:
    process = importlib.import_module("process")

    def play(fast: bool) -> list[Any]:
        env = process.CrossingProcess(traffic=traffic, continuous=continuous, fast=fast)
        moments: list[Any] = []
        for seed in range(2):  # the second in a SUMO that has been in use
            moments.append(env.reset(seed))
            for t in range(60):
                random = np.random.default_rng([seed, t])
                actions: Any = random.uniform([-0.5, -0.3], [1, 0.3], (4, 2))
                if not continuous:
                    actions = random.choice(4, 4, p=[0.7, 0.1, 0.1, 0.1])
                moments.append(env.step({a: actions[crossing.ARMS.index(a)] for a in env.agents}))
                if not env.agents:
                    break
            moments.append(env.metrics())
        env.close()
        return moments

    fast, own = play(True), play(False)
    assert len(fast) == len(own) > 70
    for mine, smarts in zip(fast, own):
        assert pickle.dumps(mine) == pickle.dumps(smarts)


def test_another_version_of_smarts_keeps_its_own_step(
    env: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.reset(seed=1)
    fast = importlib.import_module("fast")
    assert type(env.sim) is fast.FastSmarts
    monkeypatch.setattr(fast, "VERSION", "2.0.2")
    env.start_simulator()
    assert type(env.sim).__name__ == "SMARTS" and type(env.sumo) is fast.SumoTraffic
    env.reset(seed=1)
    env.step(dict.fromkeys(env.agents, 0))
    env.close()


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_sumo_that_dies_cuts_the_episode_off_and_the_next_one_has_a_new_one(
    capfd: pytest.CaptureFixture[str],
) -> None:
    env: Any = ppo.make_env(args())
    env.reset(1)
    for _ in range(3):
        step = env.step(np.zeros(4, int))
    assert step.live.all()
    simulator = env.env.process.pid
    (sumo,) = children(simulator)
    assert "sumo" in Path(f"/proc/{sumo}/cmdline").read_text()
    assert b"PYTHONHASHSEED=0" in Path(f"/proc/{simulator}/environ").read_bytes()
    assert os.getpgid(sumo) != os.getpgid(0), "Ctrl-C would end it"
    os.kill(sumo, signal.SIGKILL)
    step = env.step(np.zeros(4, int))
    assert step.truncated.all() and not step.terminated.any() and not step.live.any()
    assert step.last_obs.any(axis=1).all() and not step.reward.any()
    assert env.metrics()["collision_rate"] == 0
    said = capfd.readouterr().out
    assert said == "SUMO has died; the episode is cut off, and a new simulator started\n"
    step = env.reset(2)
    for _ in range(3):
        step = env.step(np.zeros(4, int))
    assert step.live.all()
    (new,) = children(simulator)
    assert new != sumo
    env.close()


def gone(pid: int) -> bool:
    """Whether a process ends within 20 seconds."""
    for _ in range(200):
        path = Path(f"/proc/{pid}/stat")
        if not path.exists() or path.read_text().rsplit(")")[-1].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_simulator_ends_with_its_run_whatever_it_is_doing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    env: Any = ppo.make_env(args())
    env.reset(1)
    simulator = env.env.process
    (sumo,) = children(simulator.pid)
    os.kill(simulator.pid, signal.SIGTERM)  # as a scheduler sends to all processes of a job
    env.send(np.zeros(4, int))  # of which the answer is never taken
    start = time.time()
    env.close()
    assert time.time() - start < 8 and simulator.returncode == 0 and gone(sumo)

    env = ppo.make_env(args())
    env.reset(1)
    simulator = env.env.process
    (sumo,) = children(simulator.pid)
    os.kill(simulator.pid, signal.SIGSTOP)  # it hangs
    monkeypatch.setattr(sys.modules["process"], "PATIENCE", 1)
    env.close()
    assert simulator.returncode == -signal.SIGKILL and gone(sumo)
    assert capfd.readouterr() == ("", "")


def test_a_simulators_process_that_dies_ends_the_run_in_one_sentence() -> None:
    env: Any = ppo.make_env(args())
    env.env.process.kill()
    with pytest.raises(ChildProcessError, match="ended with exit code -9"):
        env.reset(1)
    env.close()
    assert issubclass(ChildProcessError, OSError)  # which main answers with a sentence


def test_a_run_is_interrupted_resumed_evaluated_and_filmed(tmp_path: Path) -> None:
    changes = {"horizon": 25, "num_steps": 40, "eval_interval": 40, "eval_episodes": 1}
    env_id = "smarts/intersection-4lane-v0"
    words = flags(ppo, env_id=env_id, num_envs=1, total_timesteps=4000, run_dir="run", **changes)
    run = Run(ppo, words, tmp_path)
    while not (tmp_path / "run" / "evaluations.csv").exists():
        time.sleep(0.1)
        assert run.process.is_alive(), run.wait()
    processes = children(run.process.pid or 0)
    run.send(signal.SIGTERM)
    code, out, err = run.wait()
    assert code == 128 + signal.SIGTERM and "--resume run" in out and err.count("\n") == 1, err
    assert all(map(gone, processes)) and len(processes) == 2
    checkpoint = ppo.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    env_step = checkpoint["run"]["env_step"]
    assert env_step >= 40

    total = (env_step // 40 + 2) * 40
    words = ["--resume", "run", "--total-timesteps", str(total), "--capture-video"]
    code, out, err = Run(ppo, words, tmp_path).wait()
    assert (code, err) == (0, ""), err
    evaluations, episodes = curves(tmp_path / "run")
    assert evaluations[-1]["env_step"] == str(total) and len(episodes) >= 2
    for row in evaluations:
        assert 0 <= float(row["completion_rate"]) + float(row["collision_rate"]) <= 1
        assert len(row["agent_returns"].split()) == 4
    (film,) = (tmp_path / "run" / "videos").glob(f"step-{total}-*.mp4")
    assert_film(film, int(float(evaluations[-1]["mean_length"])))

    words = ["--evaluate", "run", "--traffic", "none", "--eval-episodes", "1"]
    code, out, err = Run(ppo, words, tmp_path).wait()
    assert (code, err) == (0, "") and "completion_rate 0.0" in out


def test_collectors_of_ray_drive_and_a_learner_learns_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    changes = {"env_id": "smarts/intersection-4lane-v0", "horizon": 25, "total_timesteps": 600}
    changes |= {"num_envs": 1, "num_collectors": 2, "num_learners": 1, "update_interval": 10}
    changes |= {"eval_interval": 600, "eval_episodes": 1, "save_interval": 600}
    args = maddpg_ray.Args(**small(maddpg) | changes, run_dir=tmp_path)
    run_dir = maddpg_ray.train(args)
    checkpoint = maddpg.load_checkpoint(run_dir / "checkpoint.pt")
    run = checkpoint["run"]
    assert run["updates"] > 0 and run["env_step"] >= 600
    assert all(torch.isfinite(p).all() for p in checkpoint["agent"].values())
    lengths = [int(row["episodic_length"]) for row in rows(run_dir / "episodes.csv")]
    assert max(lengths) == 25 and sum(lengths) == run["env_step"], "whole episodes are stored"


# The environment


def test_it_has_pettingzoos_parallel_interface(env: Any) -> None:
    from pettingzoo.test import parallel_api_test

    parallel_api_test(env, num_cycles=40)


def test_agents_begin_in_their_arms_on_lanes_that_lead_to_their_goals(env: Any) -> None:
    env.reset(seed=1)  # there is a road map only with a scenario
    where = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])  # of the arms, clockwise
    seen = set()
    for seed in range(30):
        for arm, mission in enumerate(env.missions(np.random.default_rng(seed)).values()):
            start, goal = np.array(mission.start.position), np.array(mission.goal.position[:2])
            assert 65 < where[arm] @ start < 86  # 50 m and more to where the lanes end
            lane_of_start = abs(np.cross(where[arm], start)) > 3.2  # the right one, lane 0, is out
            to = int(np.argmax(where @ goal))
            lane_of_goal = abs(np.cross(where[to], goal)) > 3.2
            turn = (to - arm) % 4
            seen.add((turn, bool(lane_of_start)))
            assert lane_of_start == lane_of_goal
    assert seen == {(1, False), (2, False), (2, True), (3, True)}


@pytest.mark.parametrize("traffic", ["light", "dense"])
@pytest.mark.parametrize("move", ["slow_down", "keep_lane"])
def test_a_car_that_enters_is_not_hit_before_it_can_do_anything_about_it(
    traffic: str, move: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under 1% in three seconds; CROSSING_EPISODES=200 gives the numbers in docs/ppo_smarts.md."""
    episodes = int(os.environ.get("CROSSING_EPISODES", 10))
    env, ends = crossing.Crossing(traffic=traffic, horizon=30), list[str]()
    speeds = []
    for seed in range(episodes):
        obs, _ = env.reset(seed=seed)
        speeds += [15 * numbers[3] for numbers in obs.values()]
        while env.agents:
            infos = env.step(dict.fromkeys(env.agents, crossing.MANOEUVRES.index(move)))[4]
            ends += [info["end"] for info in infos.values() if info]
    env.close()
    crashes = ends.count("collision")
    print(f"{traffic}, {move}: {crashes} crashes of {len(ends)} cars")
    assert len(ends) == 4 * episodes and crashes < max(2, 0.01 * len(ends)), capfd.readouterr().out
    assert np.allclose(speeds, crossing.ENTRY_SPEED, atol=0.5), "they enter in motion"


def test_agents_of_all_arms_enter_in_the_same_step_and_where_they_were_to(env: Any) -> None:
    for seed in range(3):
        env.reset(seed=seed)
        assert env.sim.step_count == 1
        for name, mission in env.scenario.missions.items():
            there = env.last[name].ego_vehicle_state.position[:2]
            assert np.linalg.norm(np.subtract(there, mission.start.position[:2])) < 1.5


def test_every_agent_is_cut_off_at_the_horizon_and_none_is_terminated_by_it(env: Any) -> None:
    env.reset(seed=3)
    for t in range(30):
        truncated = env.step(dict.fromkeys(env.agents, 1))[3]  # slow down
        assert all(late == (t == 29) for late in truncated.values())
    assert len(truncated) == 4 and not env.agents and env.metrics()["completion_rate"] == 0


def test_a_reset_empties_the_caches_that_smarts_only_fills(env: Any) -> None:
    from smarts.core import coordinates

    poison = coordinates.Point(1e6, 1e6)
    assert poison.as_np_array is not None and poison.as_shapely is not None
    assert poison in coordinates._numpy_points and poison in coordinates._shapely_points
    env.reset(seed=4)
    assert poison not in coordinates._numpy_points and poison not in coordinates._shapely_points


def test_an_episode_does_not_begin_with_an_agent_that_has_crashed_already(
    env: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seeds = env.enter, []

    def enter(seed: int, attempt: int) -> dict[str, Any]:
        seeds.append((seed, attempt))
        monkeypatch.setattr(env, "judge", lambda a, b: (0.0, "collision" * (attempt < 2)))
        return real(seed, attempt)

    monkeypatch.setattr(env, "enter", enter)
    obs, _ = env.reset(seed=6)
    assert seeds == [(6, 0), (6, 1), (6, 2)] and list(obs) == env.agents == crossing.ARMS


def test_a_car_on_the_line_between_two_lanes_is_on_the_road(env: Any) -> None:
    from smarts.core.coordinates import Point
    from smarts.core.sensors import Sensors

    env.reset(seed=6)
    roads = env.sim.local_constants.road_map

    def off_road(x: float) -> bool:
        point = Point(x, 50.0, -0.05)
        near = tuple(lane for lane, _ in roads.nearest_lanes(point, radius=7))
        state = SimpleNamespace(pose=SimpleNamespace(point=point))
        return Sensors._vehicle_is_off_road(roads, state, near)

    for line in -3.2, 0.0, 3.2:
        assert not any(off_road(line + shift) for shift in (-0.0005, 0.0, 0.0005))
    for edge in -6.4, 6.4:
        assert off_road(edge * 1.0001) and not off_road(edge * 0.9999)


def test_an_agent_that_smarts_loses_cuts_the_episode_off(
    env: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    env.reset(seed=6)
    step = env.sim.step
    monkeypatch.setattr(env.sim, "step", lambda moves: ({"north": step(moves)[0]["north"]},))
    _, rewards, terminated, truncated, _ = env.step(dict.fromkeys(env.agents, 1))
    assert all(truncated.values()) and not any(terminated.values()) and not env.agents
    assert set(rewards.values()) == {0.0}
    assert "SMARTS has lost an agent" in capfd.readouterr().out


def test_the_flag_that_crashes_sumo_is_dropped(env: Any) -> None:
    env.reset(seed=4)
    flags = env.sumo._base_sumo_load_params()
    assert any(flag.startswith("--seed") for flag in flags)
    assert not any("lanechange" in flag for flag in flags)


# Observations and rewards, by hand


def seen(position: Any, heading: float = 0.0, others: Any = (), **events: bool) -> Any:
    """An observation as SMARTS gives it: a straight lane to the north, a goal at (30, 40)."""
    position = (*position, 0.0)
    size = SimpleNamespace(length=4.0, width=2.0)
    goal = SimpleNamespace(goal=SimpleNamespace(position=(30.0, 40.0, 0.0)))
    point = SimpleNamespace(
        dist_to=lambda p: 0.0,
        signed_lateral_error=lambda p: 0.8,
        lane_width=3.2,
        relative_heading=lambda h: -float(h),
    )
    names = "collisions", "off_road", "off_route", "reached_goal"
    cars = [
        SimpleNamespace(position=(x, y, 0.0), heading=0.0, speed=v, bounding_box=size)
        for x, y, v in others
    ]
    return SimpleNamespace(
        ego_vehicle_state=SimpleNamespace(
            position=position, heading=heading, speed=7.5, steering=0.1, mission=goal
        ),
        waypoint_paths=[[point] * 3],
        neighborhood_vehicle_states=cars,
        events=SimpleNamespace(**dict.fromkeys(names, False) | events),
    )


def test_an_agent_sees_the_world_in_axes_of_its_own_car(env: Any) -> None:
    east = -np.pi / 2  # headings run anticlockwise from north
    others = [(10.0, -5.0, 15.0), (3.0, 0.0, 7.5)]
    look = env.look(seen((0, 0), east, others))[: crossing.NUMBERS]
    near, enlarged = look[25:65].reshape(8, 5), look[65:].reshape(9, 2)
    # The goal, 30 m east and 40 m north, is 30 m ahead and 40 m to the left.
    assert look[:5] == pytest.approx([0.3, -0.4, 0.25, 0.5, 0.1], abs=1e-6)
    assert look[5:25] == pytest.approx(np.full(20, np.pi / 2))
    # The nearest comes first. Both drive to the north, which is to the left, and it to the east.
    assert near[0] == pytest.approx([3 / 50, 3 / 50, 0, -0.5, -0.5], abs=1e-6)
    assert near[1] == pytest.approx([125**0.5 / 50, 10 / 50, 5 / 50, -0.5, -1], abs=1e-6)
    assert near[2:].tolist() == [[1, 1, 0, 0, 0]] * 6
    # Up to 10 m of the goal, and 5 m of the others.
    assert enlarged[:3].ravel() == pytest.approx([1, -1, 0.6, 0, 1, 1], abs=1e-6)
    assert enlarged[3:].tolist() == [[1, 0]] * 6


def test_the_image_shows_what_is_ahead_above_the_middle(env: Any) -> None:
    west = np.pi / 2
    look = env.look(seen((-60, 4.8), west, [(-60 - 9, 4.8, 5.0), (-60, 4.8 + 7.5, 5.0)]))
    image = look[crossing.NUMBERS :].reshape(32, 32)
    rows, columns = np.nonzero(image == 1)
    ahead = columns < 18  # the other is north of it, to its right
    assert abs(15.5 - rows[ahead].mean() - 6) < 1 and abs(columns[ahead].mean() - 15.5) < 1
    assert abs(rows[~ahead].mean() - 15.5) < 1.5 and abs(columns[~ahead].mean() - 20.5) < 1
    road = image[20] > 0  # four lanes of 3.2 m, of which it drives on the right one
    assert 12.8 / 1.5 - 1 <= road.sum() <= 13.4 / 1.5 + 1
    left = np.flatnonzero(road)[0]
    assert left < 10 and not road[20:].any()


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        ((0, -4, 0.0), "hit from behind"),
        ((0.5, 4, 0.2), "ran into rear"),
        ((2, 0.5, 0.0), "side"),  # it changed lanes, or the other did
        ((0, 3, np.pi / 2), "side"),  # into the flank of a car that crosses
        ((2, 2, -np.pi / 2), "side"),
    ],
)
def test_a_collision_says_who_ran_into_whom(other: Any, kind: str) -> None:
    x, y, heading = other
    obs = seen((10, 10), others=[(40, 40, 3.0), (10 + x, 10 + y, 3.0)])
    obs.neighborhood_vehicle_states[1].heading = heading
    assert crossing.collision(obs) == kind
    # The same in the axes of a car that drives to the west: north is to its right.
    obs = seen((10, 10), np.pi / 2, others=[(10 - y, 10 + x, 3.0)])
    obs.neighborhood_vehicle_states[0].heading = heading + np.pi / 2
    assert crossing.collision(obs) == kind


@pytest.mark.parametrize(
    ("events", "extra", "end"),
    [
        ({}, 0.0, ""),
        ({"reached_goal": True}, 7.0, "goal"),
        ({"collisions": True}, -3.0, "collision"),
        ({"off_road": True}, -5.0, "off road"),
        ({"off_route": True}, -5.0, "off road"),
        ({"collisions": True, "off_road": True, "reached_goal": True}, -3.0, "collision"),
    ],
)
def test_the_reward_equals_its_formula(events: Any, extra: float, end: str, env: Any) -> None:
    env.rewards, before = (-3.0, -5.0, 7.0, 0.5, 0.25), env.rewards
    # From (0, 0) to (6, 8): 10 m driven, and the goal at (30, 40) from 50 to 40 m away.
    reward = env.judge(seen((0, 0)), seen((6, 8), **events))
    # And back: 10 m driven, and the goal 10 m further away.
    back, _ = env.judge(seen((6, 8)), seen((0, 0)))
    env.rewards = before
    assert reward == (pytest.approx(0.5 * 10 + 0.25 * 10 + extra), end)
    assert back == pytest.approx(-0.5 * 10 + 0.25 * 10)


def test_rates_count_how_each_agents_task_ended(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset(seed=3)
    ends = iter(
        [
            {"north": {"reached_goal": True}, "east": {}, "south": {}, "west": {}},
            {"east": {"collisions": True}, "south": {"off_route": True}, "west": {}},
            {"west": {"reached_goal": True}},
        ]
    )

    def step(moves: Any) -> Any:
        events = next(ends)
        assert set(moves) == set(events)  # who has ended is asked no more
        return ({name: seen((0, 0), **what) for name, what in events.items()},)

    monkeypatch.setattr(env.sim, "step", step)
    env.last = {name: seen((0, 0)) for name in crossing.ARMS}
    while env.agents:
        _, _, terminated, truncated, _ = env.step(dict.fromkeys(env.agents, 0))
        assert not any(truncated.values())
    assert terminated == {"west": True}
    metrics = env.metrics()
    assert {name: metrics[name] for name in list(metrics)[:7]} == {
        "completion_rate": 0.5,
        "collision_rate": 0.25,
        "hit_from_behind_rate": 0,
        "ran_into_rear_rate": 0,
        "side_collision_rate": 0.25,
        "off_road_rate": 0.25,
        "seconds_to_cross": pytest.approx((0.1 + 0.3) / 2),
    }


def test_an_agent_that_ends_is_told_how_it_has_driven(
    env: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.reset(seed=3)
    drives = iter(
        [  # speed, place in the lane, another car so many metres ahead
            (10.0, 0.1, 20.0),
            (8.0, 0.45, 6.0),
            (6.0, -0.45, 9.0),  # over the line to the lane on its left
            (0.0, 0.0, 30.0),
        ]
    )

    def step(moves: Any) -> Any:
        speed, place, ahead = next(drives)
        what = seen((0, 0), others=[(0, ahead, 5.0)], reached_goal=speed == 0)
        what.ego_vehicle_state.speed = speed
        what.waypoint_paths[0][0].signed_lateral_error = lambda p: 3.2 * place
        return (dict.fromkeys(moves, what),)

    monkeypatch.setattr(env.sim, "step", step)
    env.last = {name: seen((0, 0)) for name in crossing.ARMS}
    for move in 0, 1, 3, 3:
        infos = env.step(dict.fromkeys(env.agents, move))[4]
    expected = {"mean_speed": 6.0, "lane_changes": 1.0, "closest_approach": 6.0}
    shares = {"keep_lane": 0.25, "slow_down": 0.25, "change_lane_right": 0, "change_lane_left": 0.5}
    expected |= {f"share_{move}": share for move, share in shares.items()}
    assert set(infos) == set(crossing.ARMS)
    for info in infos.values():
        how = info.pop("end"), info.pop("collision"), info.pop("seconds")
        assert how == ("goal", "", 0.4)
        assert info == pytest.approx(expected, abs=1e-5)
    assert {name: env.metrics()[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_the_rule_goes_if_the_way_is_clear_and_brakes_if_it_is_not(env: Any) -> None:
    rules = importlib.import_module("rules")

    def action(*others: Any, speed: float = 7.5) -> str:
        obs = seen((0, 0), others=others)
        obs.ego_vehicle_state.speed = speed
        return crossing.MANOEUVRES[rules.actions([env.look(obs).tolist()])[0]]

    assert action() == "keep_lane"
    assert action((0, 12, 0.0)) == "slow_down"  # one stands ahead
    assert action((0, 12, 12.0)) == "keep_lane"  # one drives away
    assert action((0, -6, 12.0)) == "keep_lane"  # one comes from behind, and looks out itself
    assert action((0, 3, 0.0), speed=0.0) == "slow_down"
    # A lane that turns to the left leads past the car ahead.
    turned = seen((0, 0), others=[(0, 15, 0.0)])
    for point in (points := turned.waypoint_paths[0]):
        point.relative_heading = lambda h: 0.12 * 10
    assert len(points) == 3 and rules.actions([env.look(turned).tolist()]) == [0]


def test_keep_lane_keeps_its_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    policies: list[Any] = []
    result = {"agent_returns": ""}

    def evaluate(policy: Any, *rest: Any) -> dict[str, Any]:
        policies.append(policy)
        return result

    monkeypatch.setattr(ppo, "evaluate", evaluate)
    monkeypatch.setattr(ppo, "say", lambda _: None)
    env = SimpleNamespace(names=crossing.ARMS, action_size=4, discrete=True, obs_size=7, pixels=0)
    env.close = lambda: None
    monkeypatch.setattr(ppo, "make_env", lambda *_, **__: env)
    ppo.play(args(evaluate="keep-lane"), None)
    moves = policies[0](torch.zeros(4, 7))
    assert [crossing.MANOEUVRES[move] for move in moves] == ["keep_lane"] * 4
    ppo.play(args(evaluate="rules"), None)
    obs = torch.zeros(4, crossing.FRAMES * crossing.NUMBERS)  # other cars are where the agent is
    assert [crossing.MANOEUVRES[move] for move in policies[1](obs)] == ["keep_lane"] * 4


def test_the_flags_of_the_script_reach_the_crossing(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"collision_reward": -1.0, "off_road_reward": -2.0, "goal_reward": 3.0}
    changes |= {"progress_reward": 4.0, "distance_reward": 5.0}
    sys.modules.pop("process", None)
    monkeypatch.setitem(sys.modules, "process", ModuleType("process"))
    sys.modules["process"].CrossingProcess = crossing.Crossing  # type: ignore[attr-defined]
    env: Any = ppo.make_crossing(
        args(**changes, traffic="dense", turn="left", horizon=7, action_type="continuous")
    )
    assert env.rewards == (-1, -2, 3, 4, 5)
    assert (env.traffic, env.turn, env.horizon, env.image) == ("dense", "left", 7, False)
    assert env.move(np.array([0.5, -1])) == (0.5, 0.0, -1.0)
    assert env.move(np.array([-2, 0.25])) == (0.0, 1.0, 0.25)


def test_the_picture_shows_the_four_agents_and_their_goals(env: Any) -> None:
    env.turn = "straight"  # no two of them to the same place
    env.reset(seed=5)
    env.turn = "any"
    picture = env.render()
    assert picture.shape == (720, 720, 3)
    for name, colour in zip(crossing.ARMS, crossing.AGENTS):
        rows, columns = np.nonzero((picture == colour).all(axis=2))
        x, y = (columns + 0.5) / 4 - 90, 90 - (rows + 0.5) / 4
        ego = env.last[name].ego_vehicle_state
        for place in ego.position[:2], ego.mission.goal.position[:2]:
            assert (np.hypot(x - place[0], y - place[1]) < 2.2).sum() > 20
    car = picture[(picture == 235).all(axis=2)]
    assert len(car) > 60  # one of SUMO's at least


# The build


def build(folder: str, cache: str) -> str:
    os.environ["FOLIORL_CACHE"] = cache
    sys.path.insert(0, folder)
    import crossing

    return str(crossing.built())


def test_two_processes_that_build_at_once_get_one_whole_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = set(pool.starmap(build, [(str(SOURCE), str(tmp_path))] * 2))
    (folder,) = map(Path, folders)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert {path.name for path in folder.iterdir()} == {
        "map.net.xml",
        "light.rou.xml",
        "dense.rou.xml",
        "ground.npy",
    }
    assert str(tmp_path) not in (folder / "map.net.xml").read_text()


def test_a_changed_source_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    copy = shutil.copytree(SOURCE, tmp_path / "source")
    monkeypatch.setenv("FOLIORL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(crossing, "__file__", str(copy / "crossing.py"))
    before = crossing.built()
    assert crossing.built() == before
    edges = copy / "crossing.edg.xml"
    edges.write_text(edges.read_text().replace('speed="13.89"', 'speed="8.33"'))
    assert crossing.built() != before
    (copy / "crossing.nod.xml").write_text("<nodes")
    with pytest.raises(RuntimeError, match="netconvert"):
        crossing.built()
