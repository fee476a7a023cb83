"""Environments of several agents as arrays. The block is shared, so one script stands for all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from conftest import make_args

import ppo_smarts as ppo


class Toy:
    """Agents a, b and c see 1, 2 and 3 numbers: their index, the time, and what they last did.

    a's task is over after 2 steps, b's after 3, at a time limit, and c is cut off after 4.
    """

    possible_agents = ["a", "b", "c"]
    metadata = {"render_fps": 7}
    actions: gym.Space = gym.spaces.Discrete(5)

    def action_space(self, name: str) -> gym.Space:
        return self.actions

    def observation_space(self, name: str) -> gym.spaces.Box:
        size = 1 + self.possible_agents.index(name)
        return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def look(self, name: str) -> np.ndarray:
        i = self.possible_agents.index(name)
        return np.array([10 * (i + 1), self.t, np.sum(self.did.get(name, -1))], np.float32)[: i + 1]

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seed, self.t, self.agents = seed, 0, list(self.possible_agents)
        self.did: dict[str, Any] = {}
        return {name: self.look(name) for name in reversed(self.agents)}, {}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        assert set(actions) == set(self.agents), "the dead do not act"
        self.t, self.did = self.t + 1, actions
        names = list(reversed(self.agents))  # another order than theirs
        obs = {name: self.look(name) for name in names}
        reward = {name: 1.0 + "abc".index(name) for name in names}
        over = {"a": self.t == 2, "b": self.t == 3, "c": False}
        late = {"a": False, "b": self.t == 3, "c": self.t == 4}
        terminated = {name: over[name] for name in names}
        truncated = {name: late[name] for name in names}
        self.agents = [name for name in self.agents if not (over[name] or late[name])]
        return obs, reward, terminated, truncated, {}

    def close(self) -> None:
        pass


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ppo.MultiAgentEnv]:
    """A function that makes the toy the environment toys/toy_v0, and one of it."""

    def make(cls: type = Toy, **changes: Any) -> ppo.MultiAgentEnv:
        module = ModuleType("toys.toy_v0")
        module.parallel_env = cls  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "toys", ModuleType("toys"))
        monkeypatch.setitem(sys.modules, "toys.toy_v0", module)
        return ppo.make_env(make_args(ppo, env_id="toys/toy_v0", **changes))

    return make


def test_agents_keep_their_order_and_short_observations_are_padded(toy: Any) -> None:
    env = toy()
    assert (env.names, env.obs_size, env.action_size, env.discrete, env.fps) == (
        ["a", "b", "c"],
        3,
        5,
        True,
        7,
    )
    step = env.reset(3)
    assert env.env.seed == 3
    assert step.obs.tolist() == [[10, 0, 0], [20, 0, 0], [30, 0, -1]]
    assert step.obs.dtype == step.reward.dtype == np.float32
    assert step.live.all() and not (step.reward.any() or step.terminated.any())
    step = env.step(np.array([4, 3, 2]))
    assert step.obs.tolist() == [[10, 0, 0], [20, 1, 0], [30, 1, 2]]
    assert step.reward.tolist() == [1, 2, 3]


def test_each_agent_ends_at_its_own_time_and_in_its_own_way(toy: Any) -> None:
    env = toy()
    env.reset(1)
    steps = [env.step(np.arange(3)) for _ in range(4)]
    t, f = True, False
    assert [s.terminated.tolist() for s in steps] == [[f, f, f], [t, f, f], [f, t, f], [f, f, f]]
    assert [s.truncated.tolist() for s in steps] == [[f, f, f], [f, f, f], [f, f, f], [f, f, t]]
    assert [s.live.tolist() for s in steps] == [[t, t, t], [f, t, t], [f, f, t], [f, f, f]]
    assert [s.reward.tolist() for s in steps] == [[1, 2, 3], [1, 2, 3], [0, 2, 3], [0, 0, 3]]


def test_the_last_observation_is_told_once_and_then_all_is_zero(toy: Any) -> None:
    env = toy()
    env.reset(1)
    steps = [env.step(np.arange(3)) for _ in range(4)]
    assert steps[1].obs[0].tolist() == [0, 0, 0] and steps[1].last_obs[0].tolist() == [10, 0, 0]
    assert steps[2].last_obs[0].tolist() == [0, 0, 0]
    assert steps[3].obs.tolist() == [[0, 0, 0]] * 3
    assert steps[3].last_obs.tolist() == [[0, 0, 0], [0, 0, 0], [30, 4, 2]]
    assert env.reset(1).live.all()


class Levers(Toy):
    """Acts in [0, 2] and [-5, 15]."""

    low, high = np.array([0, -5], np.float32), np.array([2, 15], np.float32)
    actions = gym.spaces.Box(low, high)


def test_continuous_actions_fill_the_bounds_of_every_dimension(toy: Any) -> None:
    env = toy(Levers)
    assert (env.discrete, env.action_size) == (False, 2)
    env.reset(1)
    env.step(np.array([[-1, 1], [0, 0], [7, -0.5]]))
    done = [env.env.did[name].tolist() for name in env.names]
    assert done == [[0, 15], [1, 5], [2, 0]]


class Counted(Toy):
    """Its actions are 3 and 4."""

    actions = gym.spaces.Discrete(2, start=3)


def test_actions_are_counted_from_the_spaces_own_start(toy: Any) -> None:
    env = toy(Counted)
    env.reset(1)
    env.step(np.array([0, 1, 0]))
    assert env.env.did == {"a": 3, "b": 4, "c": 3}


def test_environments_side_by_side_begin_with_their_own_seeds_when_their_episode_is_over(
    toy: Any,
) -> None:
    toy()
    envs = ppo.Envs(make_args(ppo, env_id="toys/toy_v0", num_envs=2))
    step = envs.reset([5, 6], np.array([True, True]))
    assert step.obs.shape == (2, 3, 3) and step.live.shape == (2, 3) and step.live.all()
    assert [env.env.seed for env in envs.envs] == [5, 6]
    step = envs.step(np.array([[4, 3, 2], [1, 0, 4]]))
    assert step.obs[:, 2].tolist() == [[30, 1, 2], [30, 1, 4]]
    step = envs.reset([7, 8], np.array([False, True]))
    assert step.obs[:, 2].tolist() == [[30, 1, 2], [30, 0, -1]]
    assert [env.env.seed for env in envs.envs] == [5, 8]


def test_episode_seeds_differ_and_fit_numpy() -> None:
    seeds = {ppo.episode_seed(*numbers) for numbers in np.ndindex(5, 5, 5)}
    assert len(seeds) == 125 and max(seeds) < 2**32
    assert ppo.episode_seed(1, 2, 3) == ppo.episode_seed(1, 2, 3)


class Late(Toy):
    """b comes after 2 steps, a leaves then without notice, and c is there all 4 of them."""

    def present(self) -> list[str]:
        return [n for n in "abc" if {"a": self.t < 2, "b": self.t >= 2, "c": True}[n]]

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed)
        self.agents = self.present()
        return {name: self.look(name) for name in self.agents}, {}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        assert set(actions) == set(self.agents)
        self.t, self.did = self.t + 1, actions
        self.agents = self.present()
        reward = {name: 1.0 for name in self.agents}
        obs = {name: self.look(name) for name in self.agents}
        truncated = {name: self.t == 4 for name in self.agents}
        if self.t == 4:
            self.agents = []
        return obs, reward, dict.fromkeys(obs, False), truncated, {}


def test_agents_are_live_from_their_first_observation_until_they_are_gone(toy: Any) -> None:
    env = toy(Late)
    steps = [env.reset(1), *(env.step(np.arange(3)) for _ in range(4))]
    t, f = True, False
    live = [[t, f, t], [t, f, t], [f, t, t], [f, t, t], [f, f, f]]
    assert [step.live.tolist() for step in steps] == live
    assert [s.truncated.tolist() for s in steps[2:]] == [[t, f, f], [f, f, f], [f, t, t]]
    assert not any(step.terminated.any() for step in steps)
    # Of one that leaves without notice, the last observation is the one before.
    assert steps[2].last_obs[0].tolist() == [10, 0, 0] and not steps[2].obs[0].any()
    assert not steps[1].obs[1].any() and steps[2].obs[1].tolist() == [20, 2, 0]
    assert [step.reward.tolist() for step in steps[1:3]] == [[1, 0, 1], [0, 0, 1]]


def test_an_agent_that_is_observed_but_not_among_the_agents_is_not_live(toy: Any) -> None:
    class Ghost(Toy):
        def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
            obs, *rest = super().step(actions)
            self.agents = [name for name in self.agents if name != "c"]
            return obs, *rest

    env = toy(Ghost)
    env.reset(1)
    step = env.step(np.arange(3))
    assert step.live.tolist() == [True, True, False] == (~step.truncated).tolist()
    assert step.last_obs[2].tolist() == [30, 1, 2] and not step.obs[2].any()


def test_rewards_may_be_arrays_of_one_number(toy: Any) -> None:
    class Arrays(Toy):
        def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
            obs, reward, *rest = super().step(actions)
            return obs, {name: np.array([value]) for name, value in reward.items()}, *rest

    env = toy(Arrays)
    env.reset(1)
    assert env.step(np.arange(3)).reward.tolist() == [1, 2, 3]


def test_an_environment_that_takes_no_render_mode_is_given_one_only_for_films(
    toy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    toy()  # its constructor takes nothing
    args = make_args(ppo, env_id="toys/toy_v0")
    ppo.make_env(args)
    with pytest.raises(SystemExit):
        ppo.make_env(args, film=True)
    assert "render_mode" in capsys.readouterr().err

    class Blind(Toy):
        modes: ClassVar[list[str]] = []

        def __init__(self, render_mode: str = "") -> None:
            self.modes.append(render_mode)

        def render(self) -> None:
            return None

    toy(Blind)
    with pytest.raises(SystemExit):
        ppo.make_env(args, film=True)
    assert Blind.modes == ["", "rgb_array"]
    err = capsys.readouterr().err
    assert "--capture-video" in err and "RGB" in err and err.count("\n") == 1


BOX = gym.spaces.Box
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"actions": BOX(0, 3, (2,), np.int64)}, ["int64", "Box of floats"]),
    ({"actions": BOX(0, 3, (2,), np.uint8)}, ["uint8", "Box of floats"]),
    ({"actions": BOX(np.array([0.0, 1.0]), np.array([1.0, 1.0]), (2,))}, ["low < high"]),
    ({"actions": BOX(-np.inf, np.inf, (2,))}, ["finite bounds"]),
    ({"actions": gym.spaces.MultiDiscrete([2, 3])}, ["MultiDiscrete"]),
    (
        {"action_space": lambda env, name: gym.spaces.Discrete(2 + "abc".index(name))},
        ["Discrete(2) and Discrete(3) and Discrete(4)"],
    ),
    (
        {"observation_space": lambda env, name: gym.spaces.Sequence(BOX(0, 1))},
        ["Sequence", "do not flatten"],
    ),
    ({"possible_agents": []}, ["possible_agents"]),
]


@pytest.mark.parametrize(("changes", "named"), REFUSED)
def test_spaces_that_cannot_be_used_are_refused_in_one_sentence(
    changes: dict[str, Any], named: list[str], toy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        toy(type("Odd", (Toy,), changes))
    err = capsys.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1)
    assert all(part in err for part in ["toys/toy_v0", *named]), err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"env_id": "toys/toy_v0", "action_type": "continuous"}, ["--action-type"]),
        ({"env_id": "toys/toy_v0", "traffic": "none"}, ["--traffic"]),
        ({"env_id": "toys/toy_v0", "goal_reward": 1.0}, ["--goal-reward"]),
        ({"env_id": "toys/toy_v0", "evaluate": "keep-lane"}, ["keep-lane", "random"]),
        (
            {"env_id": "smarts/x", "evaluate": "keep-lane", "action_type": "continuous"},
            ["keep-lane", "--action-type lane"],
        ),
    ],
)
def test_flags_that_would_be_ignored_are_refused(
    changes: dict[str, Any], named: list[str], toy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    toy()
    with pytest.raises(SystemExit) as ending:
        ppo.make_env(make_args(ppo, **changes))
    err = capsys.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1)
    assert all(part in err for part in named), err


def test_a_name_that_fails_to_import_is_not_proposed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "broken_games"
    package.mkdir()
    for name in "__init__", "chess_v1":
        (package / f"{name}.py").write_text("")
    (package / "chess_v2.py").write_text("import a_module_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    for name in "chess_v2", "chess_v3":
        with pytest.raises(SystemExit):
            ppo.make_env(make_args(ppo, env_id=f"broken_games/{name}"))
        err = capsys.readouterr().err
        assert f"did you mean broken_games/{name}" not in err
        assert "did you mean broken_games/chess_v" in err and err.count("\n") == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
@pytest.mark.parametrize("quantity", ["observation", "reward"])
def test_numbers_that_are_not_finite_end_a_run_in_one_sentence_and_are_not_saved(
    quantity: str, value: float, toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Toy):
        def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
            obs, reward, *rest = super().step(actions)
            if self.t == 3 and self.seed == ppo.episode_seed(1, 0, 5):
                if quantity == "reward":
                    reward["b"] = value
                else:
                    obs["b"] = np.array([20, value])
            return obs, reward, *rest

        def observation_space(self, name: str) -> gym.spaces.Box:
            space = super().observation_space(name)
            return BOX(-np.inf, np.inf, space.shape, np.float64)

    toy(Broken)
    changes = {"num_envs": 1, "num_steps": 4, "total_timesteps": 40, "save_interval": 4}
    with pytest.raises(SystemExit) as ending:
        ppo.train(make_args(ppo, env_id="toys/toy_v0", run_dir=tmp_path / "run", **changes))
    err = capsys.readouterr().err
    assert (ending.value.code, err.count("\n")) == (1, 1)
    assert quantity in err and "after step 22" in err
    checkpoint = ppo.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert checkpoint["run"]["env_step"] == 20


def test_without_smarts_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "smarts.py").write_text("raise ModuleNotFoundError('No module named smarts')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the simulator's process
    with pytest.raises(SystemExit) as ending:
        ppo.make_env(make_args(ppo, env_id="smarts/intersection-4lane-v0"))
    err = capfd.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1), err
    assert "pip install -r requirements-smarts.txt" in err
