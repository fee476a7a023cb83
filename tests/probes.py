"""Environments so small that the right answer is known, or with one fault each.

Importing this module registers them: the id is "probes:NAME-v0", also for a process of its own.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Probe(gym.Env):
    """The observation is 0, the reward 1, and the episode ends after `length` steps, by `end`.

    Its constructor takes nothing, not even a render_mode.
    """

    observation_space: gym.spaces.Space = gym.spaces.Box(-10, 10, (1,), np.float32)
    action_space: gym.spaces.Space = gym.spaces.Box(-1, 1, (1,), np.float32)
    length, end = 1, "terminated"

    def __init__(self) -> None:
        self.t = 0

    def observe(self) -> Any:
        return [0.0]

    def reward(self, action: np.ndarray) -> Any:
        return 1.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.array(self.observe()), {}

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        reward = self.reward(action)
        self.t += 1
        obs, over = np.array(self.observe()), self.t >= self.length
        ends = over and self.end == "terminated", over and self.end == "truncated"
        return obs, reward, *ends, {}


class Endless(Probe):
    """No episode ends."""

    length = 10**9


class Clock(Probe):
    """The observation is the environment's number, the episode's and the time.

    The environments' episodes have 3, 4 and 5 steps; every second episode is cut by a time limit.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    made = 0

    def __init__(self) -> None:
        super().__init__()
        self.number, self.episode = Clock.made, 0
        self.length = 3 + self.number
        Clock.made += 1

    def reset(self, **seed: Any) -> Any:
        self.episode += 1
        self.end = "truncated" if self.episode % 2 else "terminated"
        return super().reset(**seed)

    def observe(self) -> Any:
        return [self.number, self.episode, self.t]


class Recorder(Probe):
    """Remembers the actions that reach it; every dimension has bounds of its own."""

    low, high = np.array([-1, 0, -50], np.float32), np.array([3, 0.5, 100], np.float32)
    action_space = gym.spaces.Box(low, high)
    length = 20
    taken: list[np.ndarray] = []

    def reward(self, action: np.ndarray) -> float:
        self.taken.append(action.copy())
        return 0.0


class RewardOfShapeOne(Probe):
    """As many environments give it."""

    length = 10

    def reward(self, action: np.ndarray) -> Any:
        return np.ones(1)


# Numbers that are not finite: ten steps an episode; something is wrong from step 450 on.


class Faulty(Probe):
    length, bad = 10, float("nan")

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return super().step(action)

    @property
    def wrong(self) -> bool:
        return self.steps >= 450


class NanReward(Faulty):
    def reward(self, action: np.ndarray) -> float:
        return self.bad if self.wrong else 1.0


class RewardBeyondFloat32(NanReward):
    bad = 1e39


class HugeReward(NanReward):
    """Its square is more than a float32 can be: the loss is infinite."""

    bad = 1e30


class NanObservation(Faulty):
    def observe(self) -> Any:
        return [self.bad if self.wrong and self.t == self.at else 0.0]

    at = 3


class NanObservationAtReset(NanObservation):
    at = 0


class ObservationBeyondFloat32(NanObservation):
    bad = 1e300


class NanObservationInEvaluation(NanObservation):
    """The first environment that is made, of the training, is sound."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        NanObservationInEvaluation.made += 1
        self.sound = NanObservationInEvaluation.made % 2 == 1

    @property
    def wrong(self) -> bool:
        return not self.sound


# Spaces and frames that the scripts do not take


class Integers(Probe):
    action_space = gym.spaces.Box(-1, 1, (2,), np.int64)


class Bytes(Probe):
    action_space = gym.spaces.Box(0, 255, (2,), np.uint8)


class FixedDimension(Probe):
    action_space = gym.spaces.Box(np.array([-1, 0], np.float32), np.array([1, 0], np.float32))


class Unbounded(Probe):
    action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


class AlmostUnbounded(Probe):
    action_space = gym.spaces.Box(-3.4e38, 3.4e38, (2,), np.float32)


class Grid(Probe):
    action_space = gym.spaces.Box(-1, 1, (2, 2))


class SequenceObservation(Probe):
    observation_space = gym.spaces.Sequence(gym.spaces.Discrete(3))


class GraphObservation(Probe):
    observation_space = gym.spaces.Graph(gym.spaces.Discrete(3), None)


class RendersNothing(Probe):
    metadata = {"render_modes": ["rgb_array"]}
    frame: Any = None

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        return self.frame


class RendersGrey(RendersNothing):
    frame = np.zeros((8, 8), np.uint8)


class RendersAList(RendersNothing):
    frame = [np.zeros((8, 8, 3), np.uint8)] * 2


for name, probe in list(globals().items()):
    if isinstance(probe, type) and issubclass(probe, Probe):
        gym.register(f"{name}-v0", entry_point=f"probes:{name}")
