"""Multi-Agent Deep Deterministic Policy Gradient (MADDPG): several agents learn side by side.

To each agent the others are a part of the world, and a part that changes as they learn. So while
learning, each agent's critic sees what all of them see and do: what a step leads to then stays the
same, however the others change. An actor needs its own observation only, so that afterwards each
agent plays by itself. Steps that surprised an agent can be drawn more often than the rest
(--prioritized-replay), and the work can be spread over processes and machines (--num-collectors,
--num-learners).

Papers: Lowe et al. 2017, Multi-Agent Actor-Critic for Mixed Cooperative-Competitive Environments,
        arXiv:1706.02275; Schaul et al. 2016, Prioritized Experience Replay, arXiv:1511.05952
Run:    python maddpg_smarts.py
        python maddpg_smarts.py --env-id mpe2/simple_spread_v3 --num-envs 8 --update-interval 24
            --learning-starts 5000 --noise-decay-steps 60000 --total-timesteps 1000000
            --actor-learning-rate 1e-2 --critic-learning-rate 1e-2
Score:  simple_spread -39 after 1,000,000 steps, independent DDPG -45, three seeds each;
        random actions -79. Light traffic: 61% of the cars cross after 50,000 steps, 54% after
        100,000 (two seeds), and 52% of those that only keep their lane
Watch:  tensorboard --logdir runs
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import dataclasses
import difflib
import importlib
import json
import math
import multiprocessing
import os
import pkgutil
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TextIO

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from gymnasium.utils.save_video import save_video
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = Path(__file__).stem


@dataclass
class Args:
    # Task. Every length below is in environment steps, summed over all parallel environments; in
    # one step all agents act.
    env_id: str = "smarts/intersection-4lane-v0"  # or PettingZoo's, as mpe2/simple_spread_v3
    total_timesteps: int = 100_000  # length of the training
    num_envs: int = 1  # environments side by side; those of SMARTS in processes of their own
    seed: int = 1  # of the networks, the actions and the episodes
    action_type: Literal["lane", "continuous"] = "lane"  # choose a move, or steer; MPE has both

    # The crossing; other environments have no use for these
    traffic: Literal["none", "light", "dense"] = "light"  # other cars on it
    turn: Literal["any", "left", "straight", "right"] = "any"  # any: drawn for each agent, episode
    image: bool = False  # see the surroundings from above as well, in 32 x 32 pixels
    horizon: int = 400  # steps of 0.1 s after which an episode is cut off
    collision_reward: float = -50.0  # for hitting another car, which ends an agent's task
    off_road_reward: float = -50.0  # for leaving the road or the route, which ends it as well
    goal_reward: float = 20.0  # for arriving
    progress_reward: float = 0.1  # for every metre that the goal has come nearer
    distance_reward: float = 0.05  # for every metre driven

    # Networks, one of each kind per agent
    actor_hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer
    critic_hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer
    critic: Literal["joint", "own"] = "joint"  # it sees all agents, or its own: independent DDPG

    # Learning
    gamma: float = 0.95  # discount per step
    tau: float = 0.01  # share of the online network that flows into its target at an update
    actor_learning_rate: float = 1e-4  # Adam's step size; the paper's is 1e-2
    critic_learning_rate: float = 1e-3  # Adam's step size; the paper's is 1e-2
    batch_size: int = 1024  # transitions per update; an agent learns from those in which it lived
    buffer_size: int = 1_000_000  # transitions remembered; the oldest are overwritten
    learning_starts: int = 8_192  # steps of uniform random actions before the first update
    update_interval: int = 4  # steps from one update to the next; the paper's is 100
    max_grad_norm: float = 0.5  # largest gradient norm, of each agent's actor and of its critic
    gumbel_temperature: float = 1.0  # of the softmax that gives discrete actions their gradient
    output_penalty: float = 1e-3  # weight of the actor's squared raw outputs in its loss

    # Prioritised replay: each agent draws with priorities of its own
    prioritized_replay: bool = False  # draw more often what the critic got wrong
    per_variant: Literal["proportional", "rank"] = "proportional"  # to the error, or 1 / its rank
    per_alpha: float = 0.6  # 0: all transitions alike; 1: in proportion to the priorities
    per_beta_start: float = 0.4  # exponent of the importance weights; 1 undoes the draws' bias
    per_beta_end: float = 1.0  # what it has risen to by the end of the run

    # Exploration: Gaussian noise on continuous actions, Gumbel noise on the logits of discrete ones
    noise_start: float = 1.0  # its scale at first; with 1, discrete actions are the policy's draws
    noise_end: float = 0.1  # what it falls to, linearly, within noise_decay_steps
    noise_decay_steps: int = 50_000  # length of that fall

    # Spread over processes, with Ray: on this machine, or on the cluster that RAY_ADDRESS names
    num_collectors: int = 0  # processes that play, each in an environment of its own
    num_learners: int = 0  # processes that learn, each for agents of its own

    # Evaluation, without noise and in an environment of its own. A return is the agents' sum.
    eval_interval: int = 10_000  # steps from one evaluation to the next
    eval_episodes: int = 10  # episodes in an evaluation
    stop_at_return: float | None = None  # stop once the last 3 evaluations are all at least this
    capture_video: bool = False  # film the first episode of every evaluation
    evaluate: str | None = None  # play: a run folder, a .pt file, untrained, random or keep-lane

    # Run folder
    run_dir: Path | None = None  # default: runs/{env_id}__{exp_name}__{seed}__{time}
    exp_name: str = SCRIPT  # part of the folder's name
    resume: Path | None = None  # run folder to resume; flags given with this one override its own
    save_interval: int = 50_000  # steps from one checkpoint to the next
    progress: bool = True  # progress bar, where there is a terminal
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "FolioRL"  # its project
    wandb_entity: str | None = None  # its user or team

    # Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    compile: bool = True  # compile the update: 10 to 20 s at the first start, then faster
    bfloat16: bool = False  # multiply matrices in bfloat16 while learning: faster, less exact
    torch_deterministic: bool = True  # ask cuDNN for deterministic kernels only


# [shared: several agents]
class Step(NamedTuple):
    """What a step of all N agents led to; each part holds the agents in the order of names."""

    obs: np.ndarray  # [N, O] float32, what each live agent acts on next; zeros where not live
    reward: np.ndarray  # [N] float32
    terminated: np.ndarray  # [N] bool: in this step the agent's task ended, by itself
    truncated: np.ndarray  # [N] bool: in this step the agent was cut off, as by a time limit
    live: np.ndarray  # [N] bool: acts in the next step; the episode is over when none does
    last_obs: np.ndarray  # [N, O], like obs, but not zero for an agent that ended in this step


class MultiAgentEnv:
    """An environment of N agents with PettingZoo's parallel interface, as arrays of fixed order.

    An agent that has ended stays dead until the reset: it is not live, its observation is zero, it
    earns nothing, and what it is told to do is ignored. An observation that is shorter than another
    agent's is padded with zeros. An episode is determined by its seed and its actions: an
    unfinished one is saved as these two, and resumed by playing them again.
    """

    def __init__(self, args: Args, film: bool = False) -> None:
        self.env: Any = make_parallel(args, film)
        self.names: list[str] = list(self.env.possible_agents)
        spaces = [self.env.action_space(name) for name in self.names]
        self.space: Any = spaces[0]
        self.discrete = isinstance(self.space, gym.spaces.Discrete)
        bounded = isinstance(self.space, gym.spaces.Box) and self.space.is_bounded()
        if not (self.discrete or bounded) or any(space != self.space for space in spaces):
            kinds = " and ".join(sorted({str(space) for space in spaces}))
            fail(f"{args.env_id} has actions {kinds}; all agents need one Discrete or bounded Box")
        self.action_size = gym.spaces.flatdim(self.space)  # of a Discrete, its number of actions
        sizes = [gym.spaces.flatdim(self.env.observation_space(name)) for name in self.names]
        self.obs_size = max(sizes)
        self.pixels = getattr(self.env, "pixels", 0)  # an image [3, 32, 32] ends the observation
        self.fps = self.env.metadata.get("render_fps", 10)

    def reset(self, seed: int) -> Step:
        """Begin an episode: all agents are live, and nothing is earned yet."""
        self.seed, self.actions = seed, list[np.ndarray]()
        self.live = np.ones(len(self.names), bool)
        return self.begin()

    def step(self, action: np.ndarray) -> Step:
        """Act: [N] integers, or [N, A] numbers in [-1, 1]."""
        self.send(action)
        return self.receive()

    def send(self, action: np.ndarray) -> None:
        """The first half of step; other environments can be sent theirs before receive."""
        self.actions.append(np.array(action))

    def receive(self) -> Step:
        """The second half of step."""
        step = self.advance()
        self.live = step.live
        return step

    def state(self) -> dict[str, Any]:
        """The episode so far, for restore."""
        return {"seed": self.seed, "actions": [action.tolist() for action in self.actions]}

    def restore(self, state: dict[str, Any]) -> Step:
        """Play again what state holds; returns the last step."""
        step = self.reset(state["seed"])
        for action in state["actions"]:
            step = self.step(np.array(action, np.int64 if self.discrete else np.float32))
        return step

    def begin(self) -> Step:
        obs, _ = self.env.reset(seed=self.seed)
        nothing = dict.fromkeys(self.names, 0.0)
        return self.pack(obs, nothing, {}, {})

    def advance(self) -> Step:
        if self.discrete:
            moves = self.actions[-1] + self.space.start
        else:
            low, high = self.space.low, self.space.high
            share = (np.clip(self.actions[-1], -1, 1) + 1) / 2
            moves = low + share.reshape(-1, *low.shape).astype(np.float32) * (high - low)
        acting = {name: move for name, move, live in zip(self.names, moves, self.live) if live}
        return self.pack(*self.env.step(acting)[:4])

    def pack(self, obs: dict, reward: dict, terminated: dict, truncated: dict) -> Step:
        """A Step of what PettingZoo tells by agent."""
        last_obs = np.zeros((len(self.names), self.obs_size), np.float32)
        rewards = np.zeros(len(self.names), np.float32)
        over, cut_off = np.zeros((2, len(self.names)), bool)
        for i, name in enumerate(self.names):
            if self.live[i]:
                flat: Any = gym.spaces.flatten(self.env.observation_space(name), obs[name])
                last_obs[i, : len(flat)] = flat
                rewards[i], over[i] = reward[name], terminated.get(name, False)
                # Where both are true, the end of the task counts: nothing more can be earned.
                cut_off[i] = truncated.get(name, False) and not over[i]
        live = self.live & ~over & ~cut_off
        return Step(last_obs * live[:, None], rewards, over, cut_off, live, last_obs)

    def frame(self) -> np.ndarray:
        """What a camera above sees now: [H, W, 3] uint8."""
        return self.env.render()

    def metrics(self) -> dict[str, float]:
        """Figures of the episode besides returns: on the crossing those of METRICS, else none."""
        return self.env.metrics() if hasattr(self.env, "metrics") else {}

    def close(self) -> None:
        self.env.close()


def episode_seed(*numbers: int) -> int:
    """A seed of 32 bits; other numbers give another one, but for rare chance."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def make_env(args: Args, film: bool = False) -> MultiAgentEnv:
    """The environment of --env-id; SMARTS in a process of its own, as the housekeeping says."""
    return (SubprocessEnv if args.env_id.startswith("smarts/") else MultiAgentEnv)(args, film)


class Envs:
    """num_envs environments side by side, in each of them episode after episode.

    An episode's seed follows from the run's, the number of the process that plays, the
    environment's and the episode's.
    """

    def __init__(self, args: Args, number: int = 0, subprocesses: bool = True) -> None:
        make = make_env if subprocesses else MultiAgentEnv
        self.seed = args.seed, number
        self.envs = [make(args) for _ in range(args.num_envs)]
        self.episodes = [0] * args.num_envs
        self.steps = [self.begin(i) for i in range(args.num_envs)]

    def begin(self, i: int) -> Step:
        """The first step of environment i's next episode."""
        self.episodes[i] += 1
        return self.envs[i].reset(episode_seed(*self.seed, i, self.episodes[i]))

    def part(self, name: str) -> np.ndarray:
        """A part of the last step of all E environments, [E, N, ...]."""
        return np.stack([getattr(step, name) for step in self.steps])

    def step(self, action: np.ndarray) -> None:
        """Act in all of them: [E, N] integers, or [E, N, A] numbers in [-1, 1]."""
        for env, part in zip(self.envs, action):  # first all are told, then all are waited for
            env.send(part)
        self.steps = [env.receive() for env in self.envs]

    def reset(self) -> np.ndarray:
        """Begin anew where an episode is over; returns where that was, [E] bool."""
        over = np.logical_not(self.part("live").any(1))
        for i in np.flatnonzero(over).tolist():
            self.steps[i] = self.begin(i)
        return over

    def state(self) -> dict[str, Any]:
        """How the episodes began, and what was played since; for restore."""
        return {"episodes": self.episodes, "envs": [env.state() for env in self.envs]}

    def restore(self, state: dict[str, Any]) -> None:
        """Play again what state holds."""
        self.episodes = state["episodes"]
        self.steps = [env.restore(saved) for env, saved in zip(self.envs, state["envs"])]

    def close(self) -> None:
        for env in self.envs:
            env.close()


# [/shared]
# The environment has N agents, and what learns has the networks of n of them: of all N, but for a
# learner of a cluster (at the end), which has some that follow one another.
ALL = slice(None)


class StackedLinear(nn.Module):
    """A linear layer for each of n agents, side by side: [n, B, I] -> [n, B, O]."""

    def __init__(self, n: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        bound = fan_in**-0.5  # nn.Linear's own
        self.weight = nn.Parameter(torch.empty(n, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, 1, fan_out).uniform_(-bound, bound))

    def forward(self, *parts: Tensor) -> Tensor:
        """The input in parts [n, B, I_k], as if they were joined: x W = x_1 W_1 + x_2 W_2 + ...

        A part that is the same for all agents can be given once, [1, B, I_k]. And for a
        part that needs no gradient, such as observations, none is computed.
        """
        output: Tensor = self.bias
        for x, weight in zip(parts, self.weight.split([x.shape[-1] for x in parts], 1)):
            if len(x) == 1:  # one product for all, and no copy of x for each
                output = output + torch.einsum("bi,nio->nbo", x[0], weight)
            else:
                output = output + x @ weight
        return output


class StackedEye(nn.Module):
    """A small convolutional network for each of n agents: [n, B, C, 32, 32] -> [n, B, 64].

    Grouped convolutions, a group for each agent, make it one product too.
    """

    def __init__(self, n: int, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(n * channels, n * 16, 4, stride=2, groups=n),  # [B, n * 16, 15, 15]
            nn.ReLU(),
            nn.Conv2d(n * 16, n * 32, 5, stride=2, groups=n),  # [B, n * 32, 6, 6]
            nn.ReLU(),
        )
        self.linear = StackedLinear(n, 32 * 6 * 6, 64)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.convolutions(image.transpose(0, 1).flatten(1, 2))
        features = maps.unflatten(1, (len(image), 32)).transpose(0, 1).flatten(2)
        return F.relu(self.linear(features))


class StackedNet(nn.Module):
    """A network for each of n agents, on the observations and actions of the M agents it sees.

    obs [n, B, M, O], action [n, B, M, A] (an actor's has none) -> [n, B, outputs]. If all see the
    same, [1, B, M, ...] will do.
    """

    def __init__(
        self,
        env: MultiAgentEnv,
        n: int,
        seen: int,
        action_size: int,
        hidden: tuple[int, ...],
        outputs: int,
    ) -> None:
        super().__init__()
        self.n = n
        self.numbers = env.obs_size - env.pixels  # what comes before the image
        self.eye = StackedEye(n, seen * 3) if env.pixels else None
        inputs = seen * (self.numbers + action_size) + (64 if self.eye else 0)
        sizes = [inputs, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(sizes, sizes[1:]):
            layers += [StackedLinear(n, fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, StackedLinear(n, sizes[-1], outputs))

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        parts = [obs[..., : self.numbers].flatten(2)]  # agent after agent: [n, B, M * O]
        if action is not None:
            parts.append(action.flatten(2))  # [n, B, M * A]
        if self.eye:
            image = obs[..., self.numbers :].unflatten(-1, (3, 32, 32)).flatten(2, 3)
            parts.append(self.eye(image.expand(self.n, -1, -1, -1, -1)))
        return self.layers[1:](self.layers[0](*parts))


class Transition(NamedTuple):
    """What one step of E environments brought."""

    obs: np.ndarray  # [E, N, O]
    action: Tensor  # [E, N, A]: numbers in [-1, 1], or a discrete action as a one-hot row
    reward: np.ndarray  # [E, N]
    terminated: np.ndarray  # [E, N], true where the agent's task itself ended, not its time
    live: np.ndarray  # [E, N], true where the agent acted; else its other parts are zero
    next_obs: np.ndarray  # [E, N, O]; for an agent that ended, the last thing it saw
    ended: np.ndarray  # [E], true where the episode is over


class Batch(NamedTuple):
    """Transitions to learn from: C draws of B steps. C is n if each agent draws its own, else 1."""

    obs: Tensor  # [C, B, N, O]
    action: Tensor  # [C, B, N, A]
    reward: Tensor  # [C, B, N]
    terminated: Tensor  # [C, B, N], 0 or 1
    live: Tensor  # [C, B, N], 0 or 1
    next_obs: Tensor  # [C, B, N, O]
    weight: Tensor  # [C, B], importance weights; 1 without priorities


class ReplayBuffer:
    """The last transitions, in tensors made once; when they are full, the oldest go first."""

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        # A multiple of num_envs, so that one step of all environments is never split.
        self.capacity = args.buffer_size // args.num_envs * args.num_envs
        if self.capacity == 0:
            fail(f"--buffer-size is {args.buffer_size}, and must not be below --num-envs")
        n, self.pixels, self.device = len(env.names), env.pixels, args.device
        numbers = env.obs_size - env.pixels
        sizes = {"obs": (numbers,), "next_obs": (numbers,), "action": (env.action_size,)}
        self.parts: dict[str, Tensor] = {}
        for name in Transition._fields[:-1]:  # on a CPU, memory not yet written to takes no room
            shape = self.capacity, n, *sizes.get(name, ())
            self.parts[name] = torch.empty(shape, device=args.device)
            if self.pixels and "obs" in name:  # images in bytes
                image = torch.empty(self.capacity, n, self.pixels, dtype=torch.uint8)
                self.parts[f"{name}_image"] = image.to(args.device)
        self.position = self.size = 0
        self.priorities = Priorities(n, self.capacity, args) if args.prioritized_replay else None

    def add(self, transition: Transition) -> None:
        """Store one step of every environment."""
        start, end = self.position, self.position + len(transition.obs)
        for name, value in zip(transition._fields[:-1], transition):
            part: Any = torch.tensor(value) if isinstance(value, np.ndarray) else value
            if f"{name}_image" in self.parts:
                part, image = part.split([part.shape[-1] - self.pixels, self.pixels], -1)
                self.parts[f"{name}_image"][start:end] = (255 * image).round()
            self.parts[name][start:end] = part
        self.position = end % self.capacity
        self.size = max(self.size, end)
        if self.priorities:
            self.priorities.add(torch.arange(start, end), torch.tensor(transition.live))

    def part(self, name: str, place: Tensor) -> Tensor:
        part = self.parts[name][place]
        if f"{name}_image" not in self.parts:
            return part
        return torch.cat([part, self.parts[f"{name}_image"][place] / 255], -1)

    def sample(self, batch_size: int, beta: float, members: slice = ALL) -> tuple[Tensor, Batch]:
        """The transitions' places [C, B], and what they hold; uniform, or by priority."""
        if self.priorities:
            index, weight = self.priorities.draw(batch_size, beta, members)
        else:
            index = torch.randint(self.size, (1, batch_size))
            weight = torch.ones(1, batch_size)
        place = index.to(self.device)
        parts = {name: self.part(name, place) for name in Transition._fields[:-1]}
        return index, Batch(**parts, weight=weight.to(self.device))

    def state_dict(self) -> dict[str, Any]:
        """What is stored, without the room that is still free."""
        # Copies: of a view, torch.save would write all the memory that lies behind it.
        state: dict[str, Any] = {name: p[: self.size].clone() for name, p in self.parts.items()}
        state |= {"position": self.position, "size": self.size}
        return state | (self.priorities.state_dict(self.size) if self.priorities else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what state_dict of another buffer gave."""
        self.position, self.size = state["position"], state["size"]
        for name, part in self.parts.items():
            part[: self.size] = state[name].to(self.device)
        if self.priorities:
            self.priorities.load_state_dict(state)


# [shared: adam]
class Adam(nn.Module):
    """Adam (Kingma & Ba 2015, section 2), computing what torch.optim.Adam does.

    Written out so that a whole update compiles to one graph: 1.2 times as fast. Within a graph the
    step of torch.optim.Adam has no effect (torch 2.13).
    """

    def __init__(self, params: Iterable[Tensor], learning_rate: float, eps: float = 1e-8) -> None:
        super().__init__()
        self.params, self.eps = list(params), eps
        # A tensor, since a compiled graph would keep a plain number as a constant
        self.learning_rate = nn.Buffer(torch.tensor(learning_rate), persistent=False)
        self.m = nn.ParameterList(torch.zeros_like(p) for p in self.params).requires_grad_(False)
        self.v = nn.ParameterList(torch.zeros_like(p) for p in self.params).requires_grad_(False)
        self.t = nn.Buffer(torch.zeros(()))

    @torch.no_grad()
    def step(self, grads: Iterable[Tensor], beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.t.add_(1)
        bias1, bias2 = (
            1 - torch.exp(self.t * math.log(beta)) for beta in (beta1, beta2)
        )  # 1 - β^t
        step_size, eps = self.learning_rate * bias2.sqrt() / bias1, self.eps * bias2.sqrt()
        for p, g, m, v in zip(self.params, grads, self.m, self.v):
            m.lerp_(g, 1 - beta1)  # m = β1 m + (1 - β1) g
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)  # v = β2 v + (1 - β2) g²
            p.sub_(step_size * m / (v.sqrt() + eps))


# [/shared]
class Agent(nn.Module):
    """All agents: for each an actor, a critic, a target copy of each; and how they learn.

    With members, those n of the N agents alone, as a learner of a cluster has them: what they need
    to know of the others is the target actors.
    """

    def __init__(self, env: MultiAgentEnv, args: Args, members: slice = ALL) -> None:
        super().__init__()
        self.num_agents, self.num_actions = len(env.names), env.action_size
        self.members = range(self.num_agents)[members]  # their numbers
        self.rows = members  # their rows in what is stacked for all N, such as priorities
        self.discrete, self.joint = env.discrete, args.critic == "joint"
        self.gamma, self.tau, self.max_grad_norm = args.gamma, args.tau, args.max_grad_norm
        if args.gumbel_temperature == 0:
            fail("--gumbel-temperature is 0, and must be above it")
        self.temperature, self.output_penalty = args.gumbel_temperature, args.output_penalty
        n, seen = len(self.members), self.num_agents if self.joint else 1
        self.actor = StackedNet(env, n, 1, 0, args.actor_hidden_sizes, env.action_size)
        self.critic = StackedNet(env, n, seen, env.action_size, args.critic_hidden_sizes, 1)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = Adam(self.actor.parameters(), args.actor_learning_rate)
        self.critic_optimizer = Adam(self.critic.parameters(), args.critic_learning_rate)

    def one_hot(self, index: Tensor) -> Tensor:
        return F.one_hot(index, self.num_actions).float()

    @staticmethod
    def gumbel(output: Tensor) -> Tensor:
        """Noise that makes the largest of the logits plus noise a draw from their softmax."""
        return -(-torch.rand_like(output).log()).log()

    @torch.no_grad()
    def act(self, obs: Tensor, noise: float = 0.0) -> Tensor:
        """Actions [E, N, A] for the observations [E, N, O]; discrete ones as one-hot rows.

        Without noise the likeliest action; Gumbel noise of scale 1 on the logits draws an action
        with the policy's probabilities.
        """
        output = self.actor(obs.transpose(0, 1).unsqueeze(2)).transpose(0, 1)  # [E, N, A]
        if self.discrete:
            output = output + noise * self.gumbel(output) if noise else output
            return self.one_hot(output.argmax(-1))
        action = torch.tanh(output)
        return (action + noise * torch.randn_like(action)).clamp(-1, 1) if noise else action

    def eval_action(self, obs: Tensor) -> Tensor:
        """The best actions for the observations [N, O]: [N] integers, or [N, A] numbers."""
        action = self.act(obs.unsqueeze(0)).squeeze(0)
        return action.argmax(-1) if self.discrete else action

    def random(self, num_envs: int) -> Tensor:
        """Actions [E, N, A] drawn uniformly."""
        shape = num_envs, self.num_agents
        if self.discrete:
            return self.one_hot(torch.randint(self.num_actions, shape))
        return 2 * torch.rand(*shape, self.num_actions) - 1

    def own(self, part: Tensor) -> Tensor:
        """Each agent's own share of its own draw: [C, B, N, ...] -> [n, B, ...]."""
        return torch.stack([part[c % len(part), :, i] for c, i in enumerate(self.members)])

    def value(self, critic: nn.Module, obs: Tensor, action: Tensor, live: Tensor) -> Tensor:
        """Each agent's value Q_i(x, a_1 .. a_N), x = (o_1 .. o_N), in its own draw's steps [n, B].

        Of a dead agent the critics see zeros: neither where it was, nor what it would have done.
        """
        obs, action = obs * live.unsqueeze(-1), action * live.unsqueeze(-1)
        if not self.joint:  # each sees only itself; a joint critic's [C, B, N, ...] fits as it is
            obs, action = self.own(obs).unsqueeze(2), self.own(action).unsqueeze(2)
        return critic(obs, action).squeeze(2)

    def target_actions(self, next_obs: Tensor) -> Tensor:
        """What the target actors do in the next observations, [C, B, N, A]."""
        rows = next_obs.flatten(0, 1).transpose(0, 1).unsqueeze(2)  # [N, C * B, 1, O]
        output = self.target_actor(rows).transpose(0, 1).unflatten(0, next_obs.shape[:2])
        return self.one_hot(output.argmax(-1)) if self.discrete else torch.tanh(output)

    def mean(self, loss: Tensor, batch: Batch) -> Tensor:
        """The importance-weighted mean over the steps in which an agent lived, [n, B] -> [n]."""
        live = self.own(batch.live)
        return (batch.weight * live * loss).sum(1) / live.sum(1).clamp(min=1)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean squared Bellman error (paper, equation 6) [n], and the Bellman errors [n, B]."""
        with torch.no_grad():
            # An agent whose task ended is dead in the next step. One that was cut off would have
            # gone on, and so would the world around it.
            next_live = batch.live * (1 - batch.terminated)
            next_action = self.target_actions(batch.next_obs)
            next_value = self.value(self.target_critic, batch.next_obs, next_action, next_live)
            # y_i = r_i + γ (1 - terminated_i) Q'_i(x', μ'_1(o'_1) .. μ'_N(o'_N))   [n, B]
            going_on = 1 - self.own(batch.terminated)
            target = self.own(batch.reward) + self.gamma * going_on * next_value
        td_error = self.value(self.critic, batch.obs, batch.action, batch.live) - target
        return self.mean(td_error.square(), batch), td_error.detach()

    def actor_loss(self, batch: Batch) -> Tensor:
        """Minus the value of what the actor would do now, -mean Q_i(x, a_1 .. μ_i(o_i) .. a_N).

        The others' actions are those that they took (paper, equation 5). A discrete action is
        drawn by Gumbel-softmax: one-hot, as the critic knows actions, with the gradient that the
        softmax would have ("straight-through"; Jang et al. 2017, arXiv:1611.01144).
        """
        output = self.actor(self.own(batch.obs).unsqueeze(2))  # [n, B, A]
        if self.discrete:
            soft = ((output + self.gumbel(output)) / self.temperature).softmax(-1)
            fresh = self.one_hot(soft.argmax(-1)) + soft - soft.detach()
        else:
            fresh = torch.tanh(output)
        everyone = torch.eye(self.num_agents, dtype=torch.bool, device=output.device)
        mine = self.share(everyone)  # [n, N]: which of the actions is the agent's own
        action = torch.where(mine[:, None, :, None], fresh.unsqueeze(2), batch.action)
        value = self.value(self.critic, batch.obs, action, batch.live)
        # Without the penalty, logits run off to where the softmax has no gradient left.
        return self.mean(self.output_penalty * output.square().mean(2) - value, batch)

    def gradients(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], Tensor, dict]:
        """The critics' and the actors' gradients, the Bellman errors [n, B], and what to log."""
        critic_loss, td_error = self.critic_loss(batch)
        # An agent's parameters appear in no other agent's loss, so that the sum's gradient is
        # each one's own.
        critic_grads = torch.autograd.grad(critic_loss.sum(), list(self.critic.parameters()))
        actor_loss = self.actor_loss(batch)  # flows through the critics, and moves the actors only
        actor_grads = torch.autograd.grad(actor_loss.sum(), list(self.actor.parameters()))
        losses = {"qf_loss": critic_loss.mean().detach(), "actor_loss": actor_loss.mean().detach()}
        return list(critic_grads), list(actor_grads), td_error, losses

    @torch.no_grad()
    def step(self, critic_grads: list[Tensor], actor_grads: list[Tensor]) -> None:
        """A step of Adam; then the targets follow."""
        self.critic_optimizer.step(self.clip(critic_grads))
        self.actor_optimizer.step(self.clip(actor_grads))
        self.soft_update(self.target_critic.parameters(), self.critic.parameters())
        ours = (self.share(param) for param in self.target_actor.parameters())
        self.soft_update(ours, self.actor.parameters())

    def soft_update(self, target: Iterable[Tensor], online: Iterable[Tensor]) -> None:
        """θ' = τ θ + (1 - τ) θ'."""
        for target_param, param in zip(target, online):
            target_param.lerp_(param, self.tau)

    def share(self, stacked: Tensor) -> Tensor:
        """A view of the members' share of a parameter [N * k, ...] of all agents' networks."""
        k = len(stacked) // self.num_agents  # 1, but for convolutions: their channels
        return stacked[k * self.members.start : k * self.members.stop]

    def clip(self, grads: list[Tensor]) -> list[Tensor]:
        """Each agent's gradient, scaled down to max_grad_norm where it is longer."""
        rows = [grad.reshape(len(self.members), -1) for grad in grads]
        norm = torch.stack([row.square().sum(1) for row in rows]).sum(0).sqrt()  # [n]
        scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1)
        return [(row * scale).reshape_as(grad) for row, grad in zip(rows, grads)]

    def update(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Learn from one batch (paper, algorithm 1): Bellman errors [n, B], losses by name."""
        critic_grads, actor_grads, td_error, losses = self.gradients(batch)
        self.step(critic_grads, actor_grads)
        return td_error, losses


class SumTree:
    """For each of N agents a binary tree: leaves are priorities, other nodes their children's sum.

    nodes [N, 2 * leaves]: node 1 is the root, and the children of node k are 2k and 2k + 1. So
    drawing in proportion to the priorities takes log2(leaves) steps down, in place of a sum over
    all leaves, and changing a priority as many steps up (Schaul et al. 2016, appendix B).
    """

    def __init__(self, num_agents: int, capacity: int) -> None:
        self.leaves = 1 << (capacity - 1).bit_length()
        # In float32 the sums of a million leaves would be off by whole leaves.
        self.nodes = torch.zeros(num_agents, 2 * self.leaves, dtype=torch.float64)

    def set(self, index: Tensor, priority: Tensor, members: slice = ALL) -> None:
        """Give the leaves index [n, B] the priorities [n, B], and all nodes above their sums."""
        node, nodes = index + self.leaves, self.nodes[members]
        nodes.scatter_(1, node, priority.double())
        while node[0, 0] > 1:
            node = node // 2
            children = nodes.gather(1, 2 * node), nodes.gather(1, 2 * node + 1)
            nodes.scatter_(1, node, children[0] + children[1])

    def get(self, index: Tensor, members: slice = ALL) -> Tensor:
        return self.nodes[members].gather(1, index + self.leaves)

    def draw(self, batch_size: int, members: slice = ALL) -> Tensor:
        """Leaves [n, B], each with the probability priority / total.

        The total is cut into B equal parts and one point drawn in each, so that a batch has some
        of everything.
        """
        nodes = self.nodes[members]
        random = torch.rand(len(nodes), batch_size, dtype=torch.float64)
        rest = (torch.arange(batch_size) + random) / batch_size * nodes[:, 1:2]
        node = torch.ones_like(rest, dtype=torch.int64)
        while node[0, 0] < self.leaves:
            left, right = nodes.gather(1, 2 * node), nodes.gather(1, 2 * node + 1)
            to_the_right = (rest >= left) & (right > 0)  # rounding must not lead to an empty leaf
            rest = torch.where(to_the_right, rest - left, rest)
            node = 2 * node + to_the_right
        return node - self.leaves


class Priorities:
    """Which transitions each of N agents draws (Schaul et al. 2016, section 3).

    P(i) = p_i^α / Σ_k p_k^α (equation 1), where p_i = |δ_i| + ε, or 1 / rank(i) by |δ_i|. A new
    transition enters with the largest error so far, so that it is soon learnt from; one in which
    an agent was dead has the priority 0 for it.
    """

    SORT = 1_000  # updates between two sortings; in between, a rank is looked up in the last one

    def __init__(self, num_agents: int, capacity: int, args: Args) -> None:
        self.alpha, self.by_rank = args.per_alpha, args.per_variant == "rank"
        self.tree = SumTree(num_agents, capacity)
        self.error = torch.full((num_agents, capacity), -1.0)  # |δ|, below 0 where there is none
        self.largest = torch.ones(num_agents, 1)
        self.sorted = torch.zeros(num_agents, 0)  # errors in ascending order, at the last sorting
        self.refreshed = 0
        self.new: list[tuple[Tensor, Tensor]] = []

    def add(self, index: Tensor, live: Tensor) -> None:
        """Note new transitions [K]; live [K, N] tells which agents acted."""
        self.new.append((index, live))

    def enter(self) -> None:
        """Let all new transitions in at once, which is much faster than one by one."""
        if self.new:
            index, live = (torch.cat(part) for part in zip(*self.new))
            self.new = []
            rows = index.expand(len(self.error), -1)
            self.put(rows, torch.where(live.T > 0, self.largest, -1.0))

    def refresh(self, index: Tensor, td_error: Tensor, members: slice = ALL) -> None:
        """Take in the Bellman errors [n, B] that an update found for transitions index [n, B]."""
        dead = self.error[members].gather(1, index) < 0
        error = torch.where(dead, -1.0, td_error.abs())
        largest = torch.maximum(self.largest[members], error.amax(1, keepdim=True))
        self.largest[members] = largest
        self.put(index, error, members)
        self.refreshed += 1
        # Soon after the start too: until the first sorting all ranks are 1, and draws uniform.
        if self.by_rank and (self.refreshed % self.SORT == 0 or self.refreshed in (10, 100)):
            self.sort()

    def put(self, index: Tensor, error: Tensor, members: slice = ALL) -> None:
        self.error[members].scatter_(1, index, error)
        if self.by_rank:  # 1 + how many were larger
            sorted_errors = self.sorted[members]
            not_larger = torch.searchsorted(sorted_errors, error.contiguous(), right=True)
            priority = 1 / (1 + self.sorted.shape[1] - not_larger.double())
        else:
            priority = error.clamp(min=0).double() + 1e-6
        self.tree.set(index, priority**self.alpha * (error >= 0), members)

    def sort(self) -> None:
        self.sorted, order = self.error.sort(1)
        rank = order.shape[1] - torch.arange(order.shape[1], dtype=torch.float64)
        self.tree.set(order, rank**-self.alpha * (self.sorted >= 0))

    def draw(self, batch_size: int, beta: float, members: slice = ALL) -> tuple[Tensor, Tensor]:
        """Transitions and their importance weights, both [n, B].

        w_i = (n P(i))^-β / max_j w_j over the batch (section 3.4): what is drawn too often counts
        for less. The number of transitions n and the tree's total cancel out.
        """
        self.enter()
        index = self.tree.draw(batch_size, members)
        priority = self.tree.get(index, members).clamp(min=1e-12)  # 0: dead in all that is stored
        return index, (priority / priority.amin(1, keepdim=True)).pow(-beta).float()

    def state_dict(self, size: int) -> dict[str, Any]:
        """The errors and priorities of the first transitions, so many as are stored."""
        self.enter()
        first = torch.arange(size).expand(len(self.error), -1)
        return {
            "error": self.error[:, :size].clone(),
            "priority": self.tree.get(first),
            "sorted": self.sorted,
            "largest": self.largest.clone(),
            "refreshed": self.refreshed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        size = state["error"].shape[1]
        self.error[:, :size], self.sorted = state["error"], state["sorted"]
        self.largest, self.refreshed = state["largest"], state["refreshed"]
        self.tree.set(torch.arange(size).expand(len(self.error), -1), state["priority"])


def play_step(envs: Envs, agent: Agent, args: Args, noise: float, at_random: bool) -> Transition:
    """One step of every environment; those whose episode it ended begin another."""
    obs, live = envs.part("obs"), envs.part("live")
    if at_random:
        action = agent.random(len(obs))
    else:
        action = agent.act(to_tensor(obs, args.device), noise).cpu()
    envs.step((action.argmax(-1) if agent.discrete else action).numpy())
    action *= torch.from_numpy(live).unsqueeze(-1)  # what the dead are told is nothing
    reward, terminated, last_obs = map(envs.part, ("reward", "terminated", "last_obs"))
    ended = envs.reset()  # after the last step has been read, which this replaces
    return Transition(obs, action, reward, terminated, live, last_obs, ended)


class SingleProcess:
    """Plays and learns by turns, in this process."""

    def __init__(self, agent: Agent, buffer: ReplayBuffer, args: Args) -> None:
        self.agent, self.buffer, self.args, self.envs = agent, buffer, args, Envs(args)
        self.batch_size = args.batch_size
        self.update = compiled(agent.update, args)

    def collect(self, noise: float, at_random: bool) -> list[Transition]:
        return [play_step(self.envs, self.agent, self.args, noise, at_random)]

    def learn(self, updates: int, beta: float) -> tuple[int, dict[str, Tensor]]:
        """Make so many updates; returns how many were made, and the losses of the last."""
        losses: dict[str, Tensor] = {}
        for _ in range(updates):
            index, batch = self.buffer.sample(self.batch_size, beta)
            td_error, losses = self.update(batch)
            if self.buffer.priorities:
                self.buffer.priorities.refresh(index, td_error.cpu())
        return updates, losses

    def close(self) -> None:
        self.envs.close()


def linear(start: float, end: float, share: float) -> float:
    """From start to end, as share goes from 0 to 1."""
    return start + min(share, 1.0) * (end - start)


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint, and return the run folder."""
    start_torch(args)
    eval_env = make_env(args, film=args.capture_video)
    agent = Agent(eval_env, args).to(args.device)
    buffer = ReplayBuffer(eval_env, args)
    run = restore(checkpoint, agent, buffer) if checkpoint else Progress()
    crew: SingleProcess | Cluster
    if args.num_collectors + args.num_learners > 0:
        crew = Cluster(eval_env, agent, buffer, args, run.env_step)
    else:
        crew = SingleProcess(agent, buffer, args)
    run_dir = open_run(args)
    logger = AgentsLogger(args, run_dir, run.env_step, run.seconds)
    if checkpoint and isinstance(crew, SingleProcess) and checkpoint["envs"]:
        crew.envs.restore(checkpoint["envs"])
        logger.returns, logger.lengths = map(np.array, checkpoint["unfinished"])
    interrupt = Interrupt()
    saved_at, owed, finished = run.env_step, 0, False

    while not finished:
        # Play: at random at first, so that the buffer begins with actions of every kind
        before, starts = run.env_step, args.learning_starts
        noise = linear(args.noise_start, args.noise_end, before / max(args.noise_decay_steps, 1))
        for transition in crew.collect(noise, at_random=before < starts):
            run.env_step += args.num_envs
            reward = transition.reward
            if not np.isfinite(reward).all():
                fail(f"{args.env_id} gave the reward {reward} at step {run.env_step}", code=1)
            buffer.add(transition)
            logger.step(run.env_step, reward.sum(1), transition.ended)

        # Learn
        if run.env_step > starts:
            interval = args.update_interval
            owed += run.env_step // interval - max(before, starts) // interval
            beta = linear(args.per_beta_start, args.per_beta_end, before / args.total_timesteps)
            updates, losses = crew.learn(owed, beta)
            run.updates, owed = run.updates + updates, owed - updates
            if updates:
                logger.losses(run.env_step, losses)

        # Evaluate
        finished = run.env_step >= args.total_timesteps
        if finished or run.env_step // args.eval_interval > before // args.eval_interval:
            result = evaluate(agent.eval_action, eval_env, args, run.env_step, run_dir / "videos")
            logger.evaluation(run.env_step, result)
            run.evaluations.append(result["mean_return"])
            if result["mean_return"] > run.best_return:
                run.best_return = result["mean_return"]
                save_checkpoint(run_dir / "best.pt", args, run, {"agent": agent.state_dict()})
            if args.stop_at_return is not None and len(run.evaluations) >= 3:
                finished |= min(run.evaluations[-3:]) >= args.stop_at_return

        # Save
        if finished or interrupt.number or run.env_step - saved_at >= args.save_interval:
            saved_at, run.seconds = run.env_step, logger.seconds()
            everything = whole_state(agent, buffer, crew)
            everything["unfinished"] = [logger.returns.tolist(), logger.lengths.tolist()]
            save_checkpoint(run_dir / "checkpoint.pt", args, run, everything)
            if interrupt.number:
                break

    logger.close()
    crew.close()
    eval_env.close()
    interrupt.end(run, run_dir, finished)
    return run_dir


# [shared: agents evaluation]
METRICS = "completion_rate", "collision_rate", "off_road_rate", "seconds_to_cross"


@torch.no_grad()
def evaluate(
    policy: Callable[[Tensor], Tensor],
    env: MultiAgentEnv,
    args: Args,
    env_step: int,
    video_dir: Path,
) -> dict[str, Any]:
    """Play whole episodes with policy ([N, O] -> [N] or [N, A]); returns evaluations.csv's columns.

    An episode's return is the sum of its agents' returns; agent_returns are the means of each.
    Episodes and draws follow from the step, and from no generator of the training, so that a
    resumed run is evaluated like one that was never interrupted.
    """
    returns, lengths, metrics, frames = [], [], [], []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(args.seed + env_step)
        for episode in range(args.eval_episodes):
            step = env.reset(episode_seed(args.seed, 10_000, env_step, episode))
            episodic_return, length = np.zeros(len(env.names)), 0
            while step.live.any():
                if args.capture_video and episode == 0:
                    frames.append(env.frame())
                step = env.step(policy(to_tensor(step.obs, args.device)).cpu().numpy())
                episodic_return, length = episodic_return + step.reward, length + 1
            returns.append(episodic_return)
            lengths.append(length)
            metrics.append(env.metrics())
    if frames:
        prefix = f"step-{env_step}"
        save_video(frames, str(video_dir), lambda _: True, fps=env.fps, name_prefix=prefix)
    sums, rates = np.sum(returns, axis=1), {}
    for name in METRICS:  # SMARTS has these; seconds are not a number where nobody arrived
        values = [values[name] for values in metrics if not math.isnan(values.get(name, math.nan))]
        rates[name] = float(np.mean(values)) if values else ""
    return rates | {
        "mean_return": float(sums.mean()),
        "std_return": float(sums.std()),
        "min_return": float(sums.min()),
        "max_return": float(sums.max()),
        "mean_length": float(np.mean(lengths)),
        "episodes": len(sums),
        "agent_returns": " ".join(f"{value:.2f}" for value in np.mean(returns, axis=0)),
    }


# [/shared]
# From here on housekeeping: processes, the log, checkpoints, flags. The algorithm ends here.


# [shared: agents processes]
class SubprocessEnv(MultiAgentEnv):
    """A MultiAgentEnv in a process of its own, started with PYTHONHASHSEED=0.

    SMARTS needs that: without it the order in Python's sets, and so what SMARTS computes, would
    differ from run to run. And several simulators can run at the same time.
    """

    def __init__(self, args: Args, film: bool = False) -> None:
        os.environ["PYTHONHASHSEED"] = "0"  # for processes that begin from now on
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, args, film), daemon=True)
        self.process.start()
        theirs.close()
        atexit.register(self.close)
        vars(self).update(self.answer())

    def ask(self, *request: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # answer says why
            self.pipe.send(request)

    def answer(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            if self.process.exitcode in (1, 2):
                raise SystemExit(self.process.exitcode) from None  # it has said why
            fail(f"the simulator's process ended with exit code {self.process.exitcode}", code=1)

    def begin(self) -> Step:
        self.ask("reset", self.seed)
        return self.answer()

    def send(self, action: np.ndarray) -> None:
        super().send(action)
        self.ask("step", action)

    def advance(self) -> Step:
        return self.answer()

    def frame(self) -> np.ndarray:
        self.ask("frame")
        return self.answer()

    def metrics(self) -> dict[str, float]:
        self.ask("metrics")
        return self.answer()

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def serve(pipe: Connection, args: Args, film: bool) -> None:
    """Run an environment for another process: answer what it asks, until it hangs up."""
    # Ctrl-C goes to the whole process group and would kill SUMO, while the run must first finish
    # its step and save.
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        env = MultiAgentEnv(args, film)
        facts = "names", "discrete", "action_size", "obs_size", "pixels", "fps"
        pipe.send({name: getattr(env, name) for name in facts})
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                method, *arguments = pipe.recv()
                pipe.send(getattr(env, method)(*arguments))
        env.close()
    except (RuntimeError, OSError) as error:
        fail(f"{args.env_id}: {error}", code=1)


def make_parallel(args: Args, film: bool) -> Any:
    """The environment of --env-id as PettingZoo has it; fails if there is none."""
    continuous = args.action_type == "continuous"
    if args.env_id.startswith("smarts/"):
        scenario = args.env_id.removeprefix("smarts/").removesuffix("-v0")
        path = Path(__file__).parent / "scenarios" / scenario / "crossing.py"
        if not path.exists():
            known = "smarts/intersection-4lane-v0, from the folder scenarios/ beside it"
            fail(f"cannot make {args.env_id}: there is no {path}; {SCRIPT}.py has {known}")
        sys.path.insert(0, str(path.parent))
        try:
            module = importlib.import_module("crossing")
        except ImportError as error:
            fail(f"{args.env_id}: {error}; pip install -r requirements-smarts.txt")
        for_driving = args.progress_reward, args.distance_reward
        rewards = args.collision_reward, args.off_road_reward, args.goal_reward, *for_driving
        world = args.traffic, args.turn, args.image, args.horizon
        return module.Crossing(continuous, *world, rewards)
    package, _, name = args.env_id.replace("/", ".").rpartition(".")
    mode = {"render_mode": "rgb_array"} if film else {}
    try:
        make = importlib.import_module(f"{package}.{name}").parallel_env
        try:  # MPE has both kinds of actions
            return make(continuous_actions=continuous, **mode)
        except TypeError:
            return make(**mode)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        near = ""
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
            near = "".join(difflib.get_close_matches(name, [m.name for m in modules], n=1))
            near = near and f"; did you mean {package}/{near}?"
        fail(
            f"cannot make {args.env_id}: {error}{near} (it takes package/name as in "
            "mpe2/simple_spread_v3; pip install -r requirements-smarts.txt installs that one)"
        )


# [/shared]
class Collector:
    """Plays whole episodes, in a process of its own that Ray starts."""

    def __init__(self, agent: Agent, args: Args, number: int) -> None:
        torch.manual_seed(args.seed + number)
        self.agent, self.args, self.envs = agent, args, Envs(args, number, subprocesses=False)

    def collect(self, actor: dict, noise: float, at_random: bool) -> list[Transition]:
        """Whole episodes, at least a hundred steps in all, with the actors that it is sent."""
        self.agent.actor.load_state_dict(actor)
        steps: list[Transition] = []
        while len(steps) < 100 or not steps[-1].ended.all():
            steps.append(play_step(self.envs, self.agent, self.args, noise, at_random))
        return steps


class Learner:
    """Makes the updates of some of the agents, in a process of its own that Ray starts."""

    def __init__(self, group: Agent, args: Args, number: int) -> None:
        torch.manual_seed(args.seed + number)
        self.group, self.update = group, compiled(group.update, args)

    def learn(self, state: dict[str, Tensor], batch: Batch) -> tuple[dict, Tensor, dict]:
        """One update; what it makes of the state, the Bellman errors [n, B], losses by name."""
        self.group.load_state_dict(state)
        td_error, losses = self.update(batch)
        return self.group.state_dict(), td_error, losses


class Cluster:
    """Collectors and learners, as Ray actors on this machine or on the cluster at RAY_ADDRESS.

    A collector plays a hundred steps or more with the actors that it was sent. The agents are
    shared out among the learners, and no update waits for another learner's: an agent's updates
    follow one another, and of the other agents it needs the target actors only, which move slowly.
    Were two to learn the same agents, gradients would be older than the networks that they change,
    and Adam's momentum turns a delay of a single update into oscillation. Collectors rest while a
    learner is MAX_OWED updates behind, so that no run ends before it has learnt; a learner that is
    ahead of it rests when it has made what is due. Whoever dies is replaced.
    """

    MAX_OWED = 100  # updates; a hundred steps of a collector add 25 with the default interval

    def __init__(
        self, env: MultiAgentEnv, agent: Agent, buffer: ReplayBuffer, args: Args, env_step: int
    ) -> None:
        try:
            import ray
        except ImportError:
            fail(
                "--num-collectors and --num-learners need Ray: "
                "pip install -r requirements-smarts.txt"
            )
        self.ray, self.agent, self.buffer, self.args = ray, agent, buffer, args
        self.batch_size = args.batch_size
        count = {Collector: args.num_collectors, Learner: args.num_learners}
        if 0 in count.values() or args.num_envs > 1 or args.device != "cpu":
            together = "--num-collectors and --num-learners go together, each 1 or more"
            fail(f"{together}, and with --num-envs 1 and --device cpu")
        n, m = agent.num_agents, args.num_learners
        if m > n:
            fail(f"--num-learners is {m}, and {args.env_id} has {n} agents to share out")
        self.groups = [Agent(env, args, slice(n * k // m, n * (k + 1) // m)) for k in range(m)]
        for group in self.groups:
            group.target_actor = copy.deepcopy(agent.target_actor)  # all N: what the others do next
            for whole, own in self.shares(group):
                own.copy_(whole)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address := os.environ.get("RAY_ADDRESS"):
            ray.init(address=address, **quiet)
        else:  # with more processes than processors they take turns
            ray.init("local", num_cpus=sum(count.values()), include_dashboard=False, **quiet)
        self.started = env_step  # a resumed run's collectors get other seeds
        self.deaths = dict.fromkeys(count, 0)  # in a row, of each kind
        self.idle = {kind: {k: self.start(kind, k) for k in range(c)} for kind, c in count.items()}
        self.working: dict[Any, tuple] = {}  # what Ray promised: kind, number, worker, the places
        self.updates: list[tuple] = []  # have arrived and are not taken over yet
        self.ahead = [0] * m  # each learner's updates that not all have made
        self.owed = 0  # updates that are due and not made by all
        self.losses: dict[int, dict[str, Tensor]] = {}  # each learner's last

    def start(self, kind: type, number: int) -> Any:
        self.started += 1
        # What SMARTS computes depends on PYTHONHASHSEED; see SubprocessEnv.
        actor: Any = self.ray.remote(runtime_env={"env_vars": {"PYTHONHASHSEED": "0"}})(kind)
        agent = self.agent if kind is Collector else self.groups[number]
        return actor.remote(agent, self.args, self.started)

    def shares(self, group: Agent) -> Iterable[tuple[Tensor, Tensor]]:
        """Of each tensor what is the group's, in the state of all agents and in the group's own."""
        for whole, own in zip(self.agent.state_dict().values(), group.state_dict().values()):
            if whole.ndim == 0:  # Adam's count of steps
                yield whole, own
            elif len(own) == len(whole):  # the target actors, of which a group has all N
                yield group.share(whole), group.share(own)
            else:
                yield group.share(whole), own

    def collect(self, noise: float, at_random: bool) -> list[Transition]:
        """Wait for a worker, a second at most; returns the steps that have come, if any have."""
        while self.idle[Collector] and self.owed < self.MAX_OWED:
            number, worker = self.idle[Collector].popitem()
            promise = worker.collect.remote(self.agent.actor.state_dict(), noise, at_random)
            self.working[promise] = (Collector, number, worker, None)
        steps: list[Transition] = []
        for promise in self.ray.wait(list(self.working), timeout=1.0)[0]:
            kind, number, worker, index = self.working.pop(promise)
            try:
                result = self.ray.get(promise)
                self.deaths[kind] = 0
                if kind is Collector:
                    steps += result
                else:
                    self.updates.append((number, index, *result))
            except self.ray.exceptions.RayError as error:
                self.deaths[kind] += 1
                reason = str(error).strip().split("\n")[-1]
                if self.deaths[kind] > 5:
                    fail(f"a {kind.__name__} died, the sixth in a row: {reason}", code=1)
                print(
                    f"{SCRIPT}: a {kind.__name__} died and is replaced ({reason})", file=sys.stderr
                )
                worker = self.start(kind, number)
            self.idle[kind][number] = worker
        return steps

    def learn(self, updates: int, beta: float) -> tuple[int, dict[str, Tensor]]:
        """Take over the updates that have come, and ask for more where they are owed.

        Returns how many more updates every agent has made, and the losses of the last.
        """
        for number, index, state, td_error, losses in self.updates:
            group = self.groups[number]
            group.load_state_dict(state)
            for whole, own in self.shares(group):
                whole.copy_(own)
            self.ahead[number] += 1
            self.losses[number] = losses
            if self.buffer.priorities:
                self.buffer.priorities.refresh(index, td_error, group.rows)
        self.updates = []
        done = min(self.ahead)
        self.ahead = [ahead - done for ahead in self.ahead]
        self.owed = updates - done
        for number in [k for k in self.idle[Learner] if self.ahead[k] < self.owed]:
            worker, group = self.idle[Learner].pop(number), self.groups[number]
            index, batch = self.buffer.sample(self.batch_size, beta, group.rows)
            group.target_actor.load_state_dict(self.agent.target_actor.state_dict())
            promise = worker.learn.remote(group.state_dict(), batch)
            self.working[promise] = (Learner, number, worker, index)
        if not done:
            return 0, {}
        share = torch.tensor([len(g.members) / self.agent.num_agents for g in self.groups])
        logs = [self.losses[k] for k in range(len(share))]
        means = {name: share @ torch.stack([log[name] for log in logs]) for name in logs[0]}
        return done, means | {"updates_owed": torch.tensor(self.owed)}

    def close(self) -> None:
        self.ray.shutdown()


# [shared: logger]
class Logger:
    """A run folder's episodes.csv, evaluations.csv and TensorBoard events; the progress bar."""

    COLUMNS = {
        "episodes": "env_step,episodic_return,episodic_length,seconds",
        "evaluations": "env_step,seconds,mean_return,std_return,min_return,max_return,mean_length,"
        "episodes",
    }

    def __init__(self, args: Args, run_dir: Path, env_step: int, seconds: float) -> None:
        self.started, self.seconds_before = (env_step, time.time()), seconds
        self.files = {name: self.open_csv(run_dir, name, env_step) for name in self.COLUMNS}
        if args.track:
            self.start_wandb(args, run_dir)  # before TensorBoard's writer, which it listens to
        self.tensorboard = SummaryWriter(str(run_dir), purge_step=env_step)
        hide = None if args.progress else True  # None hides it where there is no terminal
        total = args.total_timesteps
        self.bar = tqdm(total=total, initial=env_step, unit=" steps", disable=hide)
        self.returns = np.zeros(args.num_envs)
        self.lengths = np.zeros(args.num_envs, dtype=int)
        self.next_losses = env_step

    def open_csv(self, run_dir: Path, name: str, env_step: int) -> TextIO:
        """Open to append, cut back to env_step: a resumed run forgets what its checkpoint lacks."""
        path, size = run_dir / f"{name}.csv", 0
        for row in path.read_text().splitlines(keepends=True) if path.exists() else []:
            step = row.split(",")[0]
            if not row.endswith("\n") or (step.isdigit() and int(step) > env_step):
                break
            size += len(row)
        file = path.open("a", buffering=1)  # a row reaches the disk when it is complete
        file.truncate(size)
        if size == 0:
            file.write(self.COLUMNS[name] + "\n")
        return file

    def start_wandb(self, args: Args, run_dir: Path) -> None:
        try:
            import wandb
        except ImportError:
            fail("--track needs the package wandb: pip install wandb")
        try:
            wandb.init(
                project=args.wandb_project_name,
                entity=args.wandb_entity,
                id=run_dir.name,  # the same in a resumed run, so that it goes on with its curves
                resume="allow",
                dir=run_dir,
                config=dataclasses.asdict(args),
                sync_tensorboard=True,
            )
        except wandb.Error as error:  # no key, no network
            fail(f"--track: {error}; WANDB_MODE=offline logs to files for the time being")

    def seconds(self) -> float:
        """Time in training, over all the parts of a resumed run."""
        return self.seconds_before + time.time() - self.started[1]

    def row(self, name: str, env_step: int, values: dict[str, Any]) -> None:
        """Append a row to episodes.csv or evaluations.csv."""
        values = {**values, "env_step": env_step, "seconds": round(self.seconds(), 2)}
        columns = self.COLUMNS[name].split(",")
        self.files[name].write(",".join(str(values[column]) for column in columns) + "\n")

    def step(self, env_step: int, reward: np.ndarray, ended: np.ndarray) -> None:
        """Count a step of all environments, and log the episodes that it ended."""
        self.bar.update(len(reward))
        self.returns += reward
        self.lengths += 1
        for i in np.flatnonzero(ended):
            episode = {"episodic_return": self.returns[i], "episodic_length": self.lengths[i]}
            self.row("episodes", env_step, episode)
            for tag, value in episode.items():
                self.tensorboard.add_scalar(f"charts/{tag}", value, env_step)
            self.bar.set_postfix_str(f"return {self.returns[i]:.1f}", refresh=False)
            self.returns[i], self.lengths[i] = 0.0, 0

    def losses(self, env_step: int, losses: dict[str, Tensor]) -> None:
        """Fail if a loss is not finite; log the losses and the speed every thousand steps."""
        for name, loss in losses.items():
            if not math.isfinite(loss):
                fail(f"{name} is {loss:g} at step {env_step}; the last checkpoint is kept", code=1)
        if env_step < self.next_losses:
            return
        self.next_losses = env_step + 1_000
        for name, loss in losses.items():
            self.tensorboard.add_scalar(f"losses/{name}", float(loss), env_step)
        first_step, start = self.started
        sps = (env_step - first_step) / (time.time() - start)
        self.tensorboard.add_scalar("charts/SPS", sps, env_step)

    def evaluation(self, env_step: int, result: dict[str, float]) -> None:
        self.row("evaluations", env_step, result)
        for name in ("return", "length"):
            self.tensorboard.add_scalar(f"eval/episodic_{name}", result[f"mean_{name}"], env_step)
        mean, std = result["mean_return"], result["std_return"]
        self.bar.write(
            f"step {env_step}, {self.seconds():.0f} s: evaluation {mean:.1f} ± {std:.1f}"
        )

    def close(self) -> None:
        self.bar.close()
        self.tensorboard.close()
        for file in self.files.values():
            file.close()


# [/shared]
# [shared: agents logger]
class AgentsLogger(Logger):
    """A log whose evaluations.csv has the agents' own returns, and SMARTS's rates."""

    COLUMNS = Logger.COLUMNS | {
        "evaluations": ",".join([Logger.COLUMNS["evaluations"], "agent_returns", *METRICS])
    }


# [/shared]
# [shared: checkpoint]
@dataclass
class Progress:
    """The counters of a run."""

    env_step: int = 0
    updates: int = 0
    seconds: float = 0.0
    best_return: float = -math.inf
    evaluations: list[float] = dataclasses.field(default_factory=list)  # mean returns


def save_checkpoint(path: Path, args: Args, run: Progress, state: dict[str, Any]) -> None:
    """Write beside path, then rename: a kill at any instant leaves the old file or the new one."""
    settings = dataclasses.asdict(args) | {"resume": None, "evaluate": None, "run_dir": None}
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"script": SCRIPT, "args": settings, "run": vars(run), **state}, file)
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # RuntimeError is what torch makes of a full disk
        temporary.unlink(missing_ok=True)
        fail(f"cannot write {path} ({error}); the checkpoint before it is kept", code=1)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what save_checkpoint wrote. weights_only: a file from a stranger runs no code."""
    if not path.is_file():
        fail(f"there is no {path}; give a run folder that holds one, such as runs/Pendulum-v1__...")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        script = checkpoint["script"]
    except Exception as error:  # what a damaged or malicious file raises is open-ended
        reason = str(error).split("\n")[0]
        fail(f"{path} is damaged or not a checkpoint, and nothing in it was run ({reason})")
    if script != SCRIPT:
        fail(f"{path} was written by {script}.py, and only that script can use it")
    return checkpoint


# [/shared]
def whole_state(
    agent: Agent, buffer: ReplayBuffer, crew: SingleProcess | Cluster
) -> dict[str, Any]:
    """What a run is: networks, optimizers, buffer, generators, and the unfinished episodes.

    A cluster's episodes and generators are not in it: there a resumed run begins new episodes.
    """
    return {
        "agent": agent.state_dict(),
        "buffer": buffer.state_dict(),
        "torch_rng": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
        "envs": crew.envs.state() if isinstance(crew, SingleProcess) else None,
    }


def restore(checkpoint: dict[str, Any], agent: Agent, buffer: ReplayBuffer) -> Progress:
    """Put back what whole_state took, but for the episodes; returns the run's counters."""
    agent.load_state_dict(checkpoint["agent"])
    buffer.load_state_dict(checkpoint["buffer"])
    torch.set_rng_state(checkpoint["torch_rng"][0])
    for i, state in enumerate(checkpoint["torch_rng"][1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, i)
    return Progress(**checkpoint["run"])


# [shared: interrupt]
class Interrupt:
    """Notes Ctrl-C or SIGTERM, for the run to save and end; a second one ends it at once."""

    def __init__(self) -> None:
        self.number = 0
        signal.signal(signal.SIGINT, self.note)
        signal.signal(signal.SIGTERM, self.note)

    def note(self, number: int, frame: Any) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        print(f"\n{SCRIPT}: saving as soon as it can; again to end at once", file=sys.stderr)

    def end(self, run: Progress, run_dir: Path, finished: bool) -> None:
        """Say that the run is done; or how to go on with it, and exit as the signal does."""
        if finished:
            print(f"done: {run_dir}")
        else:
            command = shlex.join([sys.executable, sys.argv[0], "--resume", str(run_dir)])
            print(f"saved step {run.env_step}; go on with: {command}")
            raise SystemExit(128 + self.number)


# [/shared]
# [shared: torch]
def start_torch(args: Args) -> None:
    """Seed, choose the device, and let float32 products run on the fastest path."""
    torch.manual_seed(args.seed)
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device is cuda, and PyTorch finds no GPU here; use --device cpu")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.deterministic = args.torch_deterministic
    # On a CPU this takes oneDNN in place of MKL: products in half the time on some (Zen 5), in
    # float32 unless the CPU has units for bfloat16 matrices. On a GPU it means TF32 or bfloat16.
    torch.set_float32_matmul_precision("medium")


def compiled(function: Callable, args: Args) -> Callable:
    """The function in one compiled graph; plain with --no-compile or without a C++ compiler."""
    if args.bfloat16:  # no cache of cast weights: they change in the middle of an update
        function = torch.autocast(args.device, torch.bfloat16, cache_enabled=False)(function)
    if not args.compile:
        return function
    if args.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        print(f"{SCRIPT}: no C++ compiler is found, so it runs uncompiled, and slower")
        return function
    torch._dynamo.config.trace_autograd_ops = True  # lets the graph hold torch.autograd.grad
    return torch.compile(function, fullgraph=True)


def to_tensor(array: np.ndarray, device: str) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32, device=device)


# [/shared]
# What a flag may be, and which flags a resumed run may not change.
AT_LEAST_1 = """total_timesteps num_envs actor_hidden_sizes critic_hidden_sizes batch_size
    buffer_size update_interval horizon eval_interval eval_episodes save_interval"""
AT_LEAST_0 = """seed actor_learning_rate critic_learning_rate learning_starts noise_start noise_end
    noise_decay_steps max_grad_norm gumbel_temperature output_penalty num_collectors num_learners
    per_alpha"""
FROM_0_TO_1 = "gamma tau per_beta_start per_beta_end"
FIXED = """env_id seed num_envs action_type traffic turn image horizon actor_hidden_sizes
    critic_hidden_sizes critic buffer_size prioritized_replay per_variant per_alpha"""
UNSEEN = "seed traffic turn horizon"  # of these, what an evaluation may change all the same
FLOORS = "untrained", "random", "keep-lane"  # policies that need no checkpoint


# [shared: bad input]
def fail(message: str, code: int = 2) -> NoReturn:
    """End the program with one sentence and an exit code: 2 for bad input, 1 for a fault."""
    print(f"{SCRIPT}: {message}", file=sys.stderr)
    raise SystemExit(code)


def check_args(args: Args) -> None:
    """Fail if a flag is out of its range."""
    ranges = (AT_LEAST_1, 1, math.inf), (AT_LEAST_0, 0, math.inf), (FROM_0_TO_1, 0, 1)
    for names, low, high in (*ranges, ("seed", 0, 2**31 - 1)):
        for name in names.split():
            for value in np.atleast_1d(getattr(args, name)).tolist():
                if value is not None and not low <= value <= high:
                    flag = name.replace("_", "-")
                    fail(f"--{flag} is {value}, and must lie between {low} and {high}")


# [/shared]
# [shared: run folder]
def open_run(args: Args) -> Path:
    """Make the run folder, or take the one to resume, and write args.json there."""
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.time_ns()}".replace("/", "-")
    run_dir = args.resume or args.run_dir or Path("runs") / name
    if not args.resume and (run_dir / "checkpoint.pt").exists():
        fail(f"{run_dir} holds a run: go on with --resume {run_dir}, or take another --run-dir")
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "args.json").write_text(json.dumps(dataclasses.asdict(args), default=str, indent=2))
    return run_dir


# [/shared]
def play(args: Args, checkpoint: dict[str, Any] | None, path: Path | None) -> None:
    """Print what the policy that --evaluate names returns over whole episodes."""
    start_torch(args)
    if args.evaluate == "keep-lane" and not args.env_id.startswith("smarts/"):
        fail(f"--evaluate keep-lane drives a car, and {args.env_id} has none; take random")
    env = make_env(args, film=args.capture_video)
    agent = Agent(env, args).to(args.device)
    policy: Callable[[Tensor], Tensor] = agent.eval_action
    if args.evaluate in FLOORS[1:]:
        policy = floor(str(args.evaluate), env)
    env_step, videos = 0, Path("videos")
    if checkpoint and path:
        agent.load_state_dict(checkpoint["agent"])
        env_step, videos = checkpoint["run"]["env_step"], path.parent / "videos"
    result = evaluate(policy, env, args, env_step, videos)
    env.close()
    print(summary(result))


# [shared: agents play]
def summary(result: dict[str, Any]) -> str:
    """A line about what evaluate returned."""
    text = (
        "return {mean_return:.1f} ± {std_return:.1f} over {episodes:.0f} episodes, from "
        "{min_return:.1f} to {max_return:.1f}; mean length {mean_length:.0f}; of each agent "
        "{agent_returns}"
    ).format(**result)
    rates = [f"{name} {result[name]:.3f}" for name in METRICS if result[name] != ""]
    return "; ".join([text, *rates])


def floor(name: str, env: MultiAgentEnv) -> Callable[[Tensor], Tensor]:
    """The policy that acts at random, or the one that only ever keeps its lane."""
    size = (len(env.names), env.action_size)
    if name == "keep-lane":
        if not env.discrete:
            fail("--evaluate keep-lane needs --action-type lane")
        return lambda obs: torch.zeros(size[0], dtype=torch.int64)
    if env.discrete:
        return lambda obs: torch.randint(size[1], (size[0],))
    return lambda obs: 2 * torch.rand(size) - 1


# [/shared]
# [shared: main]
def main() -> None:
    """Read the flags; with --resume or --evaluate, those not given are taken from the run."""
    args, checkpoint, path = tyro.cli(Args), None, None
    if sum(value is not None for value in (args.resume, args.evaluate, args.run_dir)) > 1:
        fail("give one of --resume, --evaluate and --run-dir: the first two name a run themselves")
    if args.resume:
        path = args.resume / "checkpoint.pt"
    elif args.evaluate not in (None, *FLOORS):
        path = Path(str(args.evaluate))
        path = path if path.suffix == ".pt" else path / "best.pt"
    if path:
        checkpoint = load_checkpoint(path)
        try:
            saved = Args(**checkpoint["args"])
        except TypeError as error:
            fail(f"{path} was written by a version with other flags: {error}")
        if saved.device == "cuda" and not torch.cuda.is_available():
            saved.device = "auto"  # it comes from a machine with a GPU, and here there is none
        args = tyro.cli(Args, default=saved)
        for name in FIXED.split():
            if args.evaluate and name in UNSEEN.split():
                continue
            if getattr(args, name) != getattr(saved, name):
                fail(f"{path} has {name} {getattr(saved, name)}, which cannot be changed")
        if args.resume and checkpoint["run"]["env_step"] >= args.total_timesteps:
            fail(f"{args.resume} is finished; a larger --total-timesteps makes it go on")
    check_args(args)
    try:
        if args.evaluate:
            play(args, checkpoint, path)
        else:
            train(args, checkpoint)
    except OSError as error:  # a full disk, a folder that may not be written
        fail(str(error), code=1)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):  # PyTorch's words where networks do not fit
            raise
        reason = str(error).split("\n")[1].strip()
        fail(f"{path} was written by a version with other networks: {reason}")


if __name__ == "__main__":
    main()
# [/shared]


# What this file needs, for "uv run" and "pip install --requirements-from-script" (PEP 723):
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch==2.13.0",
#     "gymnasium==1.4.0",
#     'numpy==2.4.6; python_version >= "3.11"',
#     'numpy==2.2.6; python_version < "3.11"',
#     "pygame-ce==2.5.8",
#     "box2d==2.3.10",
#     "mujoco==3.17.0",
#     "dm-control==1.0.50",
#     "shimmy==2.0.1",
#     "pybullet==3.2.7",
#     "pybullet-envs-gymnasium==0.6.0",
#     "ale-py==0.12.1",
#     "tyro==1.0.17",
#     "tensorboard==2.21.0",
#     "wandb==0.31.0",
#     "tqdm==4.70.1",
#     "moviepy==2.2.1",
#     "smarts==2.0.1",
#     "eclipse-sumo==1.28.0",
#     "libsumo==1.28.0",
#     "rtree==1.4.1",
#     'shapely==2.2.0; python_version >= "3.11"',
#     'shapely==2.1.2; python_version < "3.11"',
#     "trimesh==5.2.0",
#     'scipy==1.17.1; python_version >= "3.11"',
#     'scipy==1.15.3; python_version < "3.11"',
#     "pettingzoo==1.27.0",
#     "mpe2==1.1.1",
#     "ray==2.60.0",
# ]
# ///
