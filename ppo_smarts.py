"""Environment blocks for several agents (first version; the script is being written)."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np


# [shared: several agents]
class Step(NamedTuple):
    """What a step of all N agents led to; each part holds the agents in the order of names."""

    obs: np.ndarray  # [N, O] float32, what each live agent acts on next; zeros where not live
    reward: np.ndarray  # [N] float32
    terminated: np.ndarray  # [N] bool: in this step the agent's task ended, by itself
    truncated: np.ndarray  # [N] bool: in this step the agent was cut off, as by a time limit
    live: np.ndarray  # [N] bool: acts in the next step; the episode is over when none does
    last_obs: np.ndarray  # [N, O], like obs, but of an agent that ended in this step its last one


class MultiAgentEnv:
    """An environment of N agents: what the two kinds below have in common.

    An agent that has ended stays dead until the reset: it is not live, its observation is zero, it
    earns nothing and what it is told to do is ignored. An observation that is shorter than another
    agent's is padded with zeros. Every episode follows from its seed and its actions alone.
    """

    names: list[str]  # of the agents
    obs_size: int  # O
    pixels = 0  # the last numbers of an observation that are an image, [3, 32, 32]
    action_size: int  # how many actions there are to choose from, or dimensions of an action
    discrete: bool
    fps = 10  # of a film

    def reset(self, seed: int) -> Step:
        """Begin an episode: all agents are live, and nothing is earned yet."""
        self.seed, self.actions = seed, list[np.ndarray]()
        self.live = np.ones(len(self.names), bool)
        return self.begin(seed)

    def step(self, action: np.ndarray) -> Step:
        """Act: [N] integers, or [N, A] numbers in [-1, 1]."""
        self.send(action)
        return self.receive()

    def send(self, action: np.ndarray) -> None:
        """The first half of step; other environments can be sent theirs before receive."""
        self.actions.append(np.array(action))

    def receive(self) -> Step:
        """The second half of step."""
        step = self.advance(self.actions[-1])
        self.live = step.live
        return step

    def state(self) -> dict[str, Any]:
        """The episode so far, to be played again by restore."""
        return {"seed": self.seed, "actions": [action.tolist() for action in self.actions]}

    def restore(self, state: dict[str, Any]) -> Step:
        """Play again what state holds; returns the last step."""
        step = self.reset(state["seed"])
        for action in state["actions"]:
            step = self.step(np.array(action, np.int64 if self.discrete else np.float32))
        return step

    def begin(self, seed: int) -> Step:
        raise NotImplementedError

    def advance(self, action: np.ndarray) -> Step:
        raise NotImplementedError

    def frame(self) -> np.ndarray:
        """What a camera above sees now: [H, W, 3] uint8."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """What there is to say about the episode that has just ended, beside its returns."""
        return {}

    def close(self) -> None:
        """Let go of windows and processes."""

    def pack(self, obs: dict[str, np.ndarray], ended: dict[str, tuple[bool, bool, float]]) -> Step:
        """A Step from what is known of each agent by name: last observation, and what it brought.

        ended holds terminated, truncated and reward of the agents that acted.
        """
        nobody = (False, False, 0.0)
        rows = [ended.get(name, nobody) for name in self.names]
        terminated, truncated = (np.array([row[i] for row in rows]) for i in (0, 1))
        live = self.live & ~(terminated | truncated)
        last_obs = np.zeros((len(self.names), self.obs_size), np.float32)
        for row, name in zip(last_obs, self.names):
            if name in obs:
                flat = np.asarray(obs[name], np.float32).ravel()
                row[: len(flat)] = flat
        last_obs[~self.live] = 0.0
        reward = np.array([row[2] for row in rows], np.float32)
        return Step(last_obs * live[:, None], reward, terminated, truncated, live, last_obs)


# [/shared]
# [shared: pettingzoo]
class PettingZoo(MultiAgentEnv):
    """Any environment with PettingZoo's parallel interface."""

    def __init__(self, env_id: str, continuous: bool, film: bool) -> None:
        package, name = env_id.replace("/", ".").rsplit(".", 1)
        mode = {"render_mode": "rgb_array"} if film else {}
        try:
            make = importlib.import_module(f"{package}.{name}").parallel_env
            try:
                self.env = make(continuous_actions=continuous, **mode)  # MPE has both kinds
            except TypeError:
                self.env = make(**mode)
        except (ImportError, AttributeError) as error:
            near = ""
            if importlib.util.find_spec(package.split(".")[0]):
                modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
                names = difflib.get_close_matches(name, [module.name for module in modules])
                near = f"; did you mean {' or '.join(names)}?" if names else ""
            fail(f"cannot make {env_id}: {error}{near} (pip install -r requirements-smarts.txt)")
        self.names = list(self.env.possible_agents)
        spaces = [self.env.action_space(name) for name in self.names]
        self.space = spaces[0]
        self.discrete = isinstance(self.space, gym.spaces.Discrete)
        bounded = isinstance(self.space, gym.spaces.Box) and self.space.is_bounded()
        if not (self.discrete or bounded) or any(space != self.space for space in spaces):
            kinds = ", ".join(map(str, dict.fromkeys(map(str, spaces))))
            fail(f"{env_id} has the actions {kinds}; all agents need one Discrete or bounded Box")
        sizes = [gym.spaces.flatdim(self.env.observation_space(name)) for name in self.names]
        self.obs_size = max(sizes)
        self.action_size = gym.spaces.flatdim(self.space)  # of a Discrete, its number of actions
        self.fps = self.env.metadata.get("render_fps", 10)

    def begin(self, seed: int) -> Step:
        obs, _ = self.env.reset(seed=seed)
        return self.pack(self.flat(obs), {})

    def advance(self, action: np.ndarray) -> Step:
        if self.discrete:
            moves = [int(move) + int(self.space.start) for move in action]
        else:
            low, high = self.space.low, self.space.high
            share = (np.clip(action, -1, 1).astype(np.float32) + 1) / 2
            moves = [low + part.reshape(low.shape) * (high - low) for part in share]
        acting = {name: moves[i] for i, name in enumerate(self.names) if self.live[i]}
        obs, reward, terminated, truncated, _ = self.env.step(acting)
        ended = {
            # That a time limit came in the same step changes nothing: the task is over.
            name: (terminated[name], truncated[name] and not terminated[name], reward[name])
            for name in acting
        }
        return self.pack(self.flat(obs), ended)

    def flat(self, obs: dict[str, Any]) -> dict[str, np.ndarray]:
        space = self.env.observation_space
        return {name: gym.spaces.flatten(space(name), value) for name, value in obs.items()}

    def frame(self) -> np.ndarray:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def make_env(args: Args, film: bool = False) -> MultiAgentEnv:
    """The environment of --env-id; fails if there is none, or its agents' actions differ."""
    if "/" not in args.env_id:
        fail(f"--env-id is {args.env_id}; give a package and a name, as mpe2/simple_spread_v3")
    return PettingZoo(args.env_id, args.action_type == "continuous", film)


# [/shared]
