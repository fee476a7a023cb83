"""The bias of TD3's values: evaluations that also log Q and the discounted return (claim C22).

    python benchmark/bias.py --env-id HopperBulletEnv-v0 --num-critics 1

trains as td3_continuous.py does with these flags, and adds two columns to evaluations.csv:
mean_value, the mean of Q_1(s, μ(s)), and mean_discounted_return, the mean discounted return from
the same states. An episode that a time limit ends counts only up to where gamma^(actions left) is
1%, since the return of later states is incomplete. The episodes are those of the evaluation, played
once more, so the rest of the run is td3_continuous.py's.

It is a program of its own because a reader of TD3 does not need it: in the script, it would stand
in the middle of the evaluation, which three scripts share.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import td3_continuous as td3

Args = td3.Args


def returns_to_go(rewards: list[float], args: td3.Args) -> list[float]:
    """The discounted return from every step of an episode, from the last step to the first."""
    returns = [0.0]
    for reward in reversed(rewards):
        returns.append(reward + args.gamma * returns[-1])
    return returns[1:]


@torch.no_grad()
def bias(agent: td3.Agent, env: gym.Env, args: td3.Args, env_step: int) -> dict[str, float]:
    """The two columns, over the episodes of the evaluation at this step; nan without a state."""
    values, returns = [], []
    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=td3.episode_seed(args.seed, 10_000, env_step, episode))
        rewards: list[float] = []
        seen: list[float] = []
        length, ended = 0, False
        while not ended:
            state = td3.to_tensor(obs, args.device).unsqueeze(0)
            action = agent.actor(state)
            seen.append(float(agent.critics[0](state, action)))
            obs, reward, terminated, truncated, _ = env.step(action.squeeze(0).cpu().numpy())
            rewards.append(float(reward))
            length += args.action_repeat
            ended = terminated or truncated or length >= td3.MAX_EPISODE
        for left, (value, to_go) in enumerate(zip(seen[::-1], returns_to_go(rewards, args)), 1):
            if terminated or args.gamma**left <= 0.01:
                values.append(value)
                returns.append(to_go)
    means = [float(np.mean(x)) if x else math.nan for x in (values, returns)]
    return dict(zip(("mean_value", "mean_discounted_return"), means))


class Run(td3.Run):
    """td3_continuous.py's Run, with two more columns in each evaluation."""

    def __init__(self, args: td3.Args, checkpoint: dict[str, Any] | None, **parts: Any) -> None:
        super().__init__(args, checkpoint, **parts)
        self.env = td3.make_env(args)

    def evaluate_if_due(self, evaluate: Callable[[], dict[str, Any]]) -> None:
        """As in td3_continuous.py; the bias is measured after the evaluation."""
        agent = self.parts["agent"]
        super().evaluate_if_due(
            lambda: evaluate() | bias(agent, self.env, self.args, self.env_step)
        )


def main() -> None:
    """Train as td3_continuous.py does, with this Run."""
    td3.Run = Run  # type: ignore[misc]
    td3.main()


if __name__ == "__main__":
    main()
