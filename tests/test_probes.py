"""Probe environments with a known answer, each of which needs one thing more than the one before.

If a probe fails, what it adds is where to look: the critic's regression, the bootstrap, the
observation, the actor, the time limit.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import continuous_only, make_args, trained
from probes import Probe

pytestmark = continuous_only

GAMMA = 0.8


def solve(script: ModuleType, env_id: str, run_dir: Path, **changes: Any) -> Any:
    """The agent after a few seconds of training."""
    learning: dict[str, Any] = {
        "total_timesteps": 1500,
        "learning_starts": 200,
        "eval_interval": 10_000,
        "eval_episodes": 1,
        "save_interval": 10_000,
        "actor_hidden_sizes": (32,),
        "critic_hidden_sizes": (32,),
        "gamma": GAMMA,
        "tau": 0.05,
        "actor_learning_rate": 3e-3,
        "critic_learning_rate": 3e-3,
        "batch_size": 64,
    }
    if hasattr(script.Args, "alpha"):  # next to nothing for entropy: the values are those below
        learning |= {"autotune": False, "alpha": 1e-3}
    args = make_args(script, env_id=env_id, run_dir=run_dir, **learning | changes)
    agent, _ = trained(script, script.train(args))
    return agent


@torch.no_grad()
def action(agent: Any, obs: float) -> torch.Tensor:
    """The action without exploration [1, 1]."""
    return agent.actor(torch.tensor([[obs]]))


@torch.no_grad()
def value(agent: Any, obs: float) -> float:
    """What the critics expect on average where the policy's action follows the observation."""
    critics = getattr(agent, "critics", None) or [agent.critic]
    values = [critic(torch.tensor([[obs]]), action(agent, obs)) for critic in critics]
    return torch.stack(values).mean().item()


class OneStep(Probe):
    """Reward 1, and the episode is over."""


class TwoSteps(Probe):
    """Reward 0, then reward 1; the observation is the time."""

    length = 2

    def observe(self) -> Any:
        return [float(self.t)]

    def reward(self, action: np.ndarray) -> float:
        return float(self.t)


class Sign(Probe):
    """The observation is -1 or 1 at random, and is the reward."""

    sign = 0.0

    def observe(self) -> Any:
        if self.t == 0:
            self.sign = float(self.np_random.choice([-1, 1]))
        return [self.sign]

    def reward(self, action: np.ndarray) -> float:
        return self.sign


class Target(Sign):
    """The best action is half the observation, and the observation is -1 or 1."""

    def reward(self, action: np.ndarray) -> float:
        return 1 - float((action[0] - 0.5 * self.sign) ** 2)


class Endless(Probe):
    """Reward 1 forever, of which episodes show 4 steps; nothing tells the steps apart."""

    length, end = 4, "truncated"


class Ending(Endless):
    """The same, but the task itself ends after 4 steps."""

    end = "terminated"


def test_the_value_of_a_constant_reward_is_that_reward(
    script: ModuleType, register: Any, tmp_path: Path
) -> None:
    agent = solve(script, register(OneStep), tmp_path / "run")
    assert value(agent, 0.0) == pytest.approx(1, abs=0.05)


def test_a_reward_one_step_later_is_discounted_once(
    script: ModuleType, register: Any, tmp_path: Path
) -> None:
    agent = solve(script, register(TwoSteps), tmp_path / "run")
    assert value(agent, 0.0) == pytest.approx(GAMMA, abs=0.05)
    assert value(agent, 1.0) == pytest.approx(1, abs=0.05)


def test_the_value_follows_the_observation(
    script: ModuleType, register: Any, tmp_path: Path
) -> None:
    agent = solve(script, register(Sign), tmp_path / "run")
    assert [value(agent, -1.0), value(agent, 1.0)] == pytest.approx([-1, 1], abs=0.05)


def test_the_actor_finds_the_best_action(script: ModuleType, register: Any, tmp_path: Path) -> None:
    agent = solve(script, register(Target), tmp_path / "run", total_timesteps=2500)
    actions = [action(agent, -1.0).item(), action(agent, 1.0).item()]
    assert actions == pytest.approx([-0.5, 0.5], abs=0.2)


def test_a_time_limit_keeps_the_value_of_what_would_have_come(
    script: ModuleType, register: Any, tmp_path: Path
) -> None:
    agent = solve(script, register(Endless), tmp_path / "run")
    assert value(agent, 0.0) == pytest.approx(1 / (1 - GAMMA), rel=0.05)


def test_the_end_of_the_task_cuts_the_value(
    script: ModuleType, register: Any, tmp_path: Path
) -> None:
    # One step in four is the last: Q = 1 + γ (1 - 1/4) Q.
    agent = solve(script, register(Ending), tmp_path / "run")
    assert value(agent, 0.0) == pytest.approx(1 / (1 - GAMMA * 3 / 4), rel=0.05)


def test_three_environments_side_by_side_learn_the_same_values(
    script: ModuleType, register: Any, tmp_path: Path
) -> None:
    agent = solve(script, register(TwoSteps), tmp_path / "run", num_envs=3)
    assert [value(agent, 0.0), value(agent, 1.0)] == pytest.approx([GAMMA, 1], abs=0.05)
