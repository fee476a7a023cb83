"""--action-repeat: each action is held, and everything still counts the simulator's steps."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from conftest import continuous_only, failed, make_args, rows


class FiveSteps(gym.Env):
    """An episode of five steps; the reward is the number of the step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        obs = np.full(1, self.steps, np.float32)
        return obs, float(self.steps), self.steps == 5, False, {}


@continuous_only
def test_rewards_are_added_and_an_episode_ends_within_the_repeat(
    script: ModuleType, register: Any
) -> None:
    env = script.make_env(make_args(script, env_id=register(FiveSteps), action_repeat=2))
    env.reset()
    steps = [env.step(env.action_space.sample())[:3] for _ in range(3)]
    assert [(obs.item(), reward, ended) for obs, reward, ended in steps] == [
        (2.0, 1.0 + 2.0, False),
        (4.0, 3.0 + 4.0, False),
        (5.0, 5.0, True),
    ]


@continuous_only
def test_lengths_are_in_steps_and_each_action_has_its_updates(
    script: ModuleType, tmp_path: Path
) -> None:
    args = make_args(script, action_repeat=4, run_dir=tmp_path / "run", num_envs=2)
    assert failed(script, args) == 0
    checkpoint = script.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert checkpoint["buffer"]["_extra_state"] == 1000 // 4  # transitions stored
    assert checkpoint["run"]["updates"] == 2 * len(range(104, 1001, 4 * 2))
    evaluations, episodes = (
        rows(tmp_path / "run" / f"{name}.csv") for name in ("evaluations", "episodes")
    )
    assert [row["env_step"] for row in evaluations] == ["304", "600", "904", "1000"]
    assert {row["mean_length"] for row in evaluations} == {"200.0"}
    assert [(row["env_step"], row["episodic_length"]) for row in episodes] == [
        (str(step), "200") for step in (400, 400, 800, 800)
    ]
    # A swing of four steps costs what four steps cost: an episode earns less than -200, not -50.
    assert all(float(row["mean_return"]) < -500 for row in evaluations)
