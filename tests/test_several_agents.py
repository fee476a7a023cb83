"""Environments of several agents as arrays. The block is shared, so one script stands for all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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


@pytest.mark.parametrize("action_type", ["lane", "continuous"])
def test_an_episode_is_played_again_from_its_seed_and_actions(action_type: str) -> None:
    args, random = make_args(ppo, action_type=action_type), np.random.default_rng(1)
    one, two = ppo.make_env(args), ppo.make_env(args)

    def act() -> np.ndarray:
        if one.discrete:
            return random.integers(one.action_size, size=3)
        return random.uniform(-1, 1, (3, one.action_size)).astype(np.float32)

    one.reset(7)
    for _ in range(10):
        before = one.step(act())
    for mine, other in zip(before, two.restore(one.state())):
        assert np.array_equal(mine, other)
    for _ in range(15):
        action = act()
        for mine, other in zip(one.step(action), two.step(action)):
            assert np.array_equal(mine, other)
    assert not one.live.any()


def test_episode_seeds_differ_and_fit_numpy() -> None:
    seeds = {ppo.episode_seed(*numbers) for numbers in np.ndindex(5, 5, 5)}
    assert len(seeds) == 125 and max(seeds) < 2**32
    assert ppo.episode_seed(1, 2, 3) == ppo.episode_seed(1, 2, 3)


def test_agents_with_different_actions_are_refused(
    toy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mixed(Toy):
        def action_space(self, name: str) -> gym.Space:
            return gym.spaces.Discrete(2 + "abc".index(name))

    with pytest.raises(SystemExit) as ending:
        toy(Mixed)
    assert ending.value.code == 2
    assert "Discrete(2) and Discrete(3) and Discrete(4)" in capsys.readouterr().err


def test_without_smarts_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "smarts.py").write_text("raise ModuleNotFoundError('No module named smarts')")
    monkeypatch.syspath_prepend(tmp_path)  # which the simulator's process takes over
    with pytest.raises(SystemExit) as ending:
        ppo.make_env(make_args(ppo, env_id="smarts/intersection-4lane-v0"))
    err = capfd.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1), err
    assert "pip install -r requirements-smarts.txt" in err
