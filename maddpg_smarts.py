"""Multi-Agent Deep Deterministic Policy Gradient (MADDPG): several agents learn side by side.

Each of N agents learns as in DDPG: an actor μ(o) acts, and a critic Q rates its actions. But each
agent's environment includes the others, so it changes while they learn. The critics, which only
learning needs, therefore see the observations x = (o_1 .. o_N) and the actions of all agents. An
actor sees its own observation only, so that after learning each agent can act alone.

    act        a_i = μ_i(o_i) + noise, and store (x, a, r, terminated, x')
    critic i   minimise (Q_i(x, a) - y)²,  y = r_i + γ (1 - terminated_i) Q'_i(x', μ'(x'))
    actor i    maximise Q_i(x, a) with a_i = μ_i(o_i), the other actions as stored
    targets    θ' = τ θ + (1 - τ) θ'

Papers: Lowe et al. 2017, Multi-Agent Actor-Critic for Mixed Cooperative-Competitive Environments,
        arXiv:1706.02275; Schaul et al. 2016, Prioritized Experience Replay, arXiv:1511.05952
Run:    python maddpg_smarts.py --env-id mpe2/simple_spread_v3 --num-envs 8 --update-interval 24
            --learning-starts 5000 --noise-decay-steps 60000 --total-timesteps 1000000
            --actor-learning-rate 1e-2 --critic-learning-rate 1e-2
        python maddpg_smarts.py    (the crossing; see requirements-smarts.txt)
Expect: on simple_spread -39 after 1M steps (mean of three seeds; random actions: -79). On the
        crossing 61% of the cars arrive after 50k steps (two seeds; 52% if all keep their lanes)
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import dataclasses
import difflib
import importlib
import json
import math
import os
import pkgutil
import shlex
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TextIO, TypeVar
from uuid import uuid4

import filelock
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = Path(__file__).stem
MAX_EPISODE = 100_000  # steps after which an evaluation cuts an episode off
T = TypeVar("T")
Fixed = Annotated[T, "fixed"]  # a flag that --resume and --evaluate cannot change
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Baseline = Literal["untrained", "random", "keep-lane", "rules"]  # that need no checkpoint


@dataclasses.dataclass
class Args:
    # Task. Lengths are in environment steps, summed over all parallel environments; in one step
    # all agents of an environment act.
    env_id: Fixed[str] = "smarts/intersection-4lane-v0"  # or PettingZoo's, as mpe2/simple_spread_v3
    total_timesteps: PositiveInt = 100_000  # length of the training
    num_envs: Fixed[PositiveInt] = 1  # parallel environments
    seed: Fixed[Seed] = 1  # random seed of the networks, the noise and the environments
    action_type: Fixed[Literal["lane", "continuous"]] = "lane"  # discrete moves, or steering

    # The crossing
    traffic: Fixed[Literal["none", "light", "dense"]] = "light"  # other cars
    turn: Fixed[Literal["any", "left", "straight", "right"]] = "any"  # any: sampled per agent
    image: Fixed[bool] = False  # observe the surroundings from above as well, in 32 x 32 pixels
    horizon: Fixed[PositiveInt] = 400  # steps of 0.1 s after which an episode is truncated
    collision_reward: float = -50.0  # for hitting another car, which terminates the agent
    off_road_reward: float = -50.0  # for leaving the road or the route, which terminates the agent
    goal_reward: float = 20.0  # for arriving
    progress_reward: float = 0.1  # per metre nearer to the goal
    distance_reward: float = 0.05  # per metre driven

    # Networks, one of each per agent
    actor_hidden_sizes: Fixed[tuple[PositiveInt, ...]] = (64, 64)  # units of each hidden layer
    critic_hidden_sizes: Fixed[tuple[PositiveInt, ...]] = (64, 64)  # units of each hidden layer
    critic: Fixed[Literal["joint", "own"]] = "joint"  # joint sees all agents; own: independent DDPG

    # Learning
    gamma: Fraction = 0.95  # discount factor
    tau: Fraction = 0.01  # weight of the online network in each update of its target
    actor_learning_rate: NonNegativeFloat = 1e-4  # of Adam; the paper's is 1e-2
    critic_learning_rate: NonNegativeFloat = 1e-3  # of Adam; the paper's is 1e-2
    batch_size: PositiveInt = 1024  # transitions per update
    buffer_size: Fixed[PositiveInt] = 1_000_000  # transitions stored; new ones overwrite the oldest
    learning_starts: NonNegativeInt = 8_192  # steps of uniform random actions before learning
    update_interval: PositiveInt = 4  # environment steps between updates; the paper's is 100
    max_grad_norm: NonNegativeFloat = 0.5  # gradients of each actor and critic are cut to this norm
    gumbel_temperature: PositiveFloat = 1.0  # of the softmax that gives discrete actions a gradient
    output_penalty: NonNegativeFloat = 1e-3  # weight of the actor's squared outputs in its loss

    # Prioritized replay, with priorities for each agent
    prioritized_replay: Fixed[bool] = False  # sample transitions with large errors more often
    per_variant: Fixed[Literal["proportional", "rank"]] = "proportional"  # to error, or to 1 / rank
    per_alpha: Fixed[NonNegativeFloat] = 0.6  # exponent of the priorities; 0 samples uniformly
    per_beta_start: Fraction = 0.4  # exponent of the importance weights; 1 removes the bias
    per_beta_end: Fraction = 1.0  # exponent of the importance weights at the end of the run

    # Exploration: Gaussian noise on continuous actions, Gumbel noise on the logits of discrete ones
    noise_start: NonNegativeFloat = 1.0  # initial scale of the noise; 1: sample the softmax
    noise_end: NonNegativeFloat = 0.1  # value that noise_start decays to, linearly
    noise_decay_steps: NonNegativeInt = 50_000  # length of the decay; 0 keeps noise_start

    # Evaluation, without noise, in a separate environment. Returns are sums over the agents.
    eval_interval: PositiveInt = 10_000  # steps between evaluations
    eval_episodes: PositiveInt = 10  # episodes per evaluation
    stop_at_return: float | None = None  # stop when the last 3 evaluations all reach it
    capture_video: bool = False  # film the first episode of every evaluation
    evaluate: Baseline | Path | None = None  # only evaluate a baseline, a run folder or a .pt file

    # Run folder
    run_dir: Path | None = None  # default: runs/{env_id}__{exp_name}__{seed}__{time}
    exp_name: str = SCRIPT  # part of the folder's name
    resume: Path | None = None  # run folder to resume; flags given here override the saved ones
    save_interval: PositiveInt = 50_000  # steps between checkpoints
    progress: bool = True  # progress bar, if there is a terminal
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "FolioRL"  # W&B project
    wandb_entity: str | None = None  # W&B user or team

    # Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if there is one
    compile: bool = True  # compile the update: up to a minute at the first start, then faster
    bfloat16: bool = False  # matrix products of the update in bfloat16: faster, less exact
    torch_deterministic: bool = True  # only deterministic cuDNN kernels

    def __post_init__(self) -> None:
        if self.buffer_size < self.num_envs:
            fail(f"--buffer-size is {self.buffer_size}, less than --num-envs {self.num_envs}")
        for field in dataclasses.fields(self):
            unused = field.name.startswith("per_") and not self.prioritized_replay
            if unused and getattr(self, field.name) != field.default:
                fail(f"--{field.name.replace('_', '-')} needs --prioritized-replay")
        check_crossing(self)


# [shared: agents step]
class Step(NamedTuple):
    """The result of an environment step, for the N agents in a fixed order.

    Where E environments step together (Envs, below), every part is [E, N, ...].
    """

    obs: np.ndarray  # [N, O] float32, what each agent acts on next; zeros where it is not live
    reward: np.ndarray  # [N] float32
    terminated: np.ndarray  # [N] bool, the agent's task ended in this step
    truncated: np.ndarray  # [N] bool, the agent was cut off in this step, as by a time limit
    live: np.ndarray  # [N] bool, the agent acts next; the episode is over when no agent does
    last_obs: np.ndarray  # [N, O], obs, but with the last observation of agents that ended now


# [/shared]
class StackedLinear(nn.Module):
    """A linear layer for each of n agents, side by side: [n, B, I] -> [n, B, O]."""

    def __init__(self, n: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        bound = fan_in**-0.5  # as in nn.Linear
        self.weight = nn.Parameter(torch.empty(n, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, 1, fan_out).uniform_(-bound, bound))

    def forward(self, *parts: Tensor) -> Tensor:
        """The output for concatenated inputs [n, B, I_k]: x W = x_1 W_1 + x_2 W_2 + ...

        An input that is equal for all agents can be given once, as [1, B, I_k], so that it is not
        repeated. No gradient is computed for an input that needs none, such as observations.
        """
        output: Tensor = self.bias
        for x, weight in zip(parts, self.weight.split([x.shape[2] for x in parts], dim=1)):
            shared = len(x) < len(weight)
            product = torch.einsum("bi,nio->nbo", x[0], weight) if shared else x @ weight
            output = output + product
        return output


class StackedNet(nn.Module):
    """A network for each of n agents, which sees the observations and actions of M agents.

    obs [n, B, M, O], action [n, B, M, A] (none for an actor) -> [n, B, outputs]. What is equal for
    all networks can be given once, as [1, B, M, ...].
    """

    def __init__(self, env: MultiAgentEnv, seen: int, action_size: int, sizes: list[int]) -> None:
        super().__init__()
        n = len(env.names)
        self.encoder = StackedConvNet(env, n, seen) if env.pixels else nn.Flatten(2)
        inputs = seen * (env.obs_size - env.pixels + action_size) + (64 if env.pixels else 0)
        layers = zip([inputs, *sizes], sizes)  # the inputs and outputs of each
        self.layers = nn.ModuleList(StackedLinear(n, i, o) for i, o in layers)

    def forward(self, obs: Tensor, *action: Tensor) -> Tensor:
        # Agent after agent: [n, B, M, O] -> [n, B, M * O]
        x = self.layers[0](self.encoder(obs), *(a.flatten(2) for a in action))
        for layer in self.layers[1:]:
            x = layer(F.relu(x))
        return x


class Batch(NamedTuple):
    """Transitions sampled from the replay buffer.

    One batch for all agents, C = 1; with prioritized replay one for each agent, C = N.
    """

    obs: Tensor  # [C, B, N, O]
    action: Tensor  # [C, B, N, A], in [-1, 1]; discrete actions are one-hot
    reward: Tensor  # [C, B, N]
    terminated: Tensor  # [C, B, N], 1 where the agent's task itself ended, 0 at a time limit
    live: Tensor  # [C, B, N], 1 where the agent acted; elsewhere its other parts are ignored
    next_obs: Tensor  # [C, B, N, O]; for an agent that ended, its last observation
    indices: Tensor  # [C, B], places in the buffer
    weight: Tensor  # [C, B], importance weight; 1 without priorities


class ReplayBuffer(nn.Module):
    """The last transitions, in preallocated tensors; new ones overwrite the oldest."""

    STORED: tuple[str, ...] = Batch._fields[:6]

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        super().__init__()
        # A multiple of num_envs, so that one step of all environments is never split.
        self.capacity = args.buffer_size // args.num_envs * args.num_envs
        self.pixels = env.pixels

        def allocate(like: Tensor) -> nn.Buffer:  # uses no memory before it is written to
            shape = self.capacity, len(env.names), *like.shape
            tensor = torch.empty(shape, dtype=like.dtype, device=args.device)
            return nn.Buffer(tensor, persistent=False)

        obs, number = pack(torch.zeros(env.obs_size), env.pixels), torch.zeros(())
        self.obs, self.next_obs = allocate(obs), allocate(obs)
        self.action = allocate(torch.zeros(env.action_size))
        self.reward, self.terminated, self.live = (allocate(number) for _ in range(3))
        self.added = 0  # transitions added so far, including overwritten ones

    @property
    def size(self) -> int:
        return min(self.added, self.capacity)

    def add(self, *transition: np.ndarray | Tensor) -> None:
        """Store a transition of every environment: its parts in Batch's order, each [E, N, ...]."""
        start = self.added % self.capacity
        self.added += len(transition[0])
        for name, value in zip(self.STORED, transition):
            value = torch.as_tensor(value)
            value = pack(value, self.pixels) if "obs" in name else value
            getattr(self, name)[start : start + len(value)] = value

    def sample(self, batch_size: int, beta: float) -> Batch:
        """One batch for all agents, sampled uniformly, with replacement."""
        index = torch.randint(self.size, (1, batch_size), device=self.obs.device)
        return self.batch(index, torch.ones_like(index, dtype=torch.float32))

    def batch(self, index: Tensor, weight: Tensor) -> Batch:
        """The transitions at index [C, B]."""
        parts = {name: getattr(self, name)[index] for name in ReplayBuffer.STORED}
        for name in "obs", "next_obs":
            parts[name] = unpack(parts[name], self.pixels)
        return Batch(**parts, indices=index, weight=weight)

    def refresh(self, index: Tensor, td_error: Tensor, first: int = 0) -> None:
        """Called with the Bellman errors of a batch; only PrioritizedReplayBuffer uses them."""

    def get_extra_state(self) -> dict[str, Any]:
        """The stored transitions, for a checkpoint."""
        # Copies, since torch.save writes all the memory behind a view
        tensors = {name: getattr(self, name)[: self.size].clone() for name in self.STORED}
        return {"added": self.added} | tensors

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.added = state["added"]
        for name in self.STORED:
            getattr(self, name)[: self.size] = state[name]


class Agent(nn.Module):
    """N agents: for each an actor, a critic and a target copy of both; and their updates."""

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        super().__init__()
        n, num_actions = len(env.names), env.action_size
        self.num_agents, self.num_actions, self.discrete = n, num_actions, env.discrete
        self.gamma, self.tau, self.max_grad_norm = args.gamma, args.tau, args.max_grad_norm
        self.temperature, self.output_penalty = args.gumbel_temperature, args.output_penalty
        self.joint = args.critic == "joint"
        seen = n if self.joint else 1
        self.actor = StackedNet(env, 1, 0, [*args.actor_hidden_sizes, num_actions])
        self.critic = StackedNet(env, seen, num_actions, [*args.critic_hidden_sizes, 1])
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = Adam(self.actor.parameters(), args.actor_learning_rate)
        self.critic_optimizer = Adam(self.critic.parameters(), args.critic_learning_rate)
        self.identity = nn.Buffer(torch.eye(n, dtype=torch.bool), persistent=False)

    def random(self, num_envs: int) -> Tensor:
        """Uniform random actions [E, N, A]."""
        shape = num_envs, self.num_agents
        if self.discrete:
            return self.one_hot(torch.randint(self.num_actions, shape))
        return 2 * torch.rand(*shape, self.num_actions) - 1

    @torch.no_grad()
    def act(self, obs: Tensor, noise: float) -> Tensor:
        """Noisy actions [E, N, A] for the observations [E, N, O].

        The argmax of logits plus Gumbel noise of scale 1 is a sample from their softmax.
        """
        output = self.outputs(self.actor, obs)
        if self.discrete:
            return self.greedy(output + noise * self.gumbel(output))
        return (self.greedy(output) + noise * torch.randn_like(output)).clamp(-1, 1)

    def eval_action(self, obs: Tensor) -> Tensor:
        """Actions without noise for the observations [N, O]: [N] integers, or [N, A] numbers."""
        action = self.greedy(self.outputs(self.actor, obs.unsqueeze(0))).squeeze(0)
        return action.argmax(1) if self.discrete else action

    def outputs(self, actor: nn.Module, obs: Tensor) -> Tensor:
        """The actors' outputs [E, N, A] for the observations [E, N, O]."""
        return actor(obs.transpose(0, 1).unsqueeze(2)).transpose(0, 1)

    def greedy(self, output: Tensor) -> Tensor:
        """Actions [..., A] without noise: the most likely one, as one-hot, or tanh."""
        return self.one_hot(output.argmax(-1)) if self.discrete else torch.tanh(output)

    def one_hot(self, action: Tensor) -> Tensor:
        return F.one_hot(action, self.num_actions).float()

    @staticmethod
    def gumbel(output: Tensor) -> Tensor:
        return -(-torch.rand_like(output).clamp(min=1e-20).log()).log()

    def per_agent(self, part: Tensor) -> Tensor:
        """Each agent's own entries in its own batch: [C, B, N, ...] -> [N, B, ...]."""
        return torch.stack([part[i % len(part), :, i] for i in range(self.num_agents)])

    def value(self, critic: nn.Module, obs: Tensor, action: Tensor, live: Tensor) -> Tensor:
        """Each agent's value Q_i(x, a_1 .. a_N), x = (o_1 .. o_N), in its own batch: [N, B].

        Critics see zeros in place of the observations and actions of agents that are not live.
        """
        obs, action = obs * live.unsqueeze(-1), action * live.unsqueeze(-1)
        if not self.joint:  # each critic sees its own agent only
            obs, action = self.per_agent(obs).unsqueeze(2), self.per_agent(action).unsqueeze(2)
        return critic(obs, action).squeeze(2)

    def mean(self, loss: Tensor, batch: Batch) -> Tensor:
        """The weighted mean over the steps in which the agent was live: [N, B] -> [N]."""
        live = self.per_agent(batch.live)
        return (batch.weight * live * loss).sum(1) / live.sum(1).clamp(min=1)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean squared Bellman error (paper, equation 6) [N], and the Bellman errors [N, B]."""
        with torch.no_grad():
            next_obs = batch.next_obs.flatten(0, 1)  # [C * B, N, O]
            next_action = self.greedy(self.outputs(self.target_actor, next_obs))
            next_action = next_action.unflatten(0, batch.next_obs.shape[:2])  # [C, B, N, A]
            # A terminated agent is not live in the next step; a truncated one counts as live.
            next_live = batch.live * (1 - batch.terminated)
            next_value = self.value(self.target_critic, batch.next_obs, next_action, next_live)
            # y_i = r_i + γ (1 - terminated_i) Q'_i(x', μ'_1(o'_1) .. μ'_N(o'_N))   [N, B]
            not_terminated = 1 - self.per_agent(batch.terminated)
            target = self.per_agent(batch.reward) + self.gamma * not_terminated * next_value
        td_error = self.value(self.critic, batch.obs, batch.action, batch.live) - target
        return self.mean(td_error.square(), batch), td_error.detach()

    def actor_loss(self, batch: Batch) -> Tensor:
        """Minus the value of the actor's action, -mean Q_i(x, a_1 .. μ_i(o_i) .. a_N) [N].

        The other agents' actions are those of the batch (paper, equation 5). A discrete action is
        sampled by Gumbel-softmax: one-hot forward, as critics know actions, and with the gradient
        of the softmax backward ("straight-through"; Jang et al. 2017, arXiv:1611.01144).
        """
        output = self.actor(self.per_agent(batch.obs).unsqueeze(2))  # [N, B, A]
        if self.discrete:
            soft = ((output + self.gumbel(output)) / self.temperature).softmax(-1)
            action = self.greedy(soft) + soft - soft.detach()
        else:
            action = torch.tanh(output)
        own = self.identity[:, None, :, None]  # [N, 1, N, 1]
        actions = torch.where(own, action.unsqueeze(2), batch.action)  # [N, B, N, A]
        value = self.value(self.critic, batch.obs, actions, batch.live)
        # Without the penalty, logits grow until the softmax has no gradient.
        return self.mean(self.output_penalty * output.square().mean(2) - value, batch)

    def update(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Learn from one batch (algorithm 1); returns the Bellman errors [N, B], and the losses."""
        critic_loss, td_error = self.critic_loss(batch)
        self.critic_optimizer.step(self.clipped_grads(critic_loss, self.critic))

        actor_loss = self.actor_loss(batch)  # its gradient passes through the critics to the actors
        self.actor_optimizer.step(self.clipped_grads(actor_loss, self.actor))

        self.update_target(self.target_critic, self.critic)
        self.update_target(self.target_actor, self.actor)
        return td_error, {
            "qf_loss": critic_loss.mean().detach(),
            "actor_loss": actor_loss.mean().detach(),
        }

    def clipped_grads(self, loss: Tensor, net: nn.Module) -> list[Tensor]:
        """Each agent's gradient of its loss [N], scaled down to max_grad_norm if it is longer."""
        # An agent's parameters are in no other agent's loss, so this is each agent's own gradient.
        grads = torch.autograd.grad(loss.sum(), list(net.parameters()))
        rows = [grad.reshape(len(loss), -1) for grad in grads]
        norm = torch.cat(rows, dim=1).norm(dim=1, keepdim=True)  # [N, 1]
        scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        return [(row * scale).reshape_as(grad) for row, grad in zip(rows, grads)]

    @torch.no_grad()
    def update_target(self, target: nn.Module, online: nn.Module) -> None:
        """θ' = τ θ + (1 - τ) θ'."""
        for target_param, param in zip(target.parameters(), online.parameters()):
            target_param.lerp_(param, self.tau)


def noise_scale(args: Args, env_step: int) -> float:
    """The scale of the noise: noise_start, decayed linearly to noise_end."""
    done = min(env_step / args.noise_decay_steps, 1.0) if args.noise_decay_steps else 0.0
    return args.noise_start + done * (args.noise_end - args.noise_start)


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint; returns the run folder."""
    start_torch(args)
    envs, eval_env = Envs(args), make_env(args, film=args.capture_video)
    agent = Agent(eval_env, args).to(args.device)
    make_buffer = PrioritizedReplayBuffer if args.prioritized_replay else ReplayBuffer
    buffer = make_buffer(eval_env, args)
    run = Run(args, checkpoint, agent=agent, buffer=buffer)
    update = compiled(agent.update, args)
    ended: np.ndarray = np.ones(args.num_envs, bool)  # every environment begins an episode

    while not run.done:
        if ended.any():
            step = envs.reset(run.episode_seeds(), ended)
            run.check_finite(observation=step.obs)

        # Act: uniformly at first, so that the buffer starts with diverse actions
        obs, live = step.obs, step.live  # [E, N, O], [E, N]
        if run.env_step < args.learning_starts:
            action = agent.random(args.num_envs)
        else:
            noise = noise_scale(args, run.env_step)
            action = agent.act(to_tensor(obs, args.device), noise).cpu()

        # Step and store; actions of agents that are not live are zeroed
        step = envs.step((action.argmax(2) if agent.discrete else action).numpy())
        run.check_finite(observation=step.last_obs, reward=step.reward)
        action *= torch.from_numpy(live).unsqueeze(2)
        buffer.add(obs, action, step.reward, step.terminated, live, step.last_obs)
        ended = np.logical_not(step.live.any(axis=1))
        run.step(step.reward.sum(axis=1), ended)

        # Learn
        interval = args.update_interval
        updates = run.env_step // interval - (run.env_step - args.num_envs) // interval
        if updates and run.env_step > args.learning_starts:
            beta = per_beta(args, run.env_step)
            for _ in range(updates):
                run.updates += 1
                batch = buffer.sample(args.batch_size, beta)
                td_error, losses = update(batch)
                buffer.refresh(batch.indices, td_error)
            run.log_losses(losses)

        run.evaluate_if_due(lambda: evaluate(agent.eval_action, eval_env, args, run.env_step))
        run.save_if_due(episode_ended=bool(ended.all()))

    envs.close()
    eval_env.close()
    return run.close()


# [shared: agents evaluation]
@torch.no_grad()
def evaluate(
    policy: Callable[[Tensor], Tensor], env: MultiAgentEnv, args: Args, env_step: int
) -> dict[str, Any]:
    """Play whole episodes with policy ([N, O] -> [N] or [N, A]); returns evaluations.csv's columns.

    An episode's return is the sum of its agents' returns; agent_returns has each agent's mean.
    Episodes and samples depend on the step only, so a resumed run gives the same evaluations.
    """
    returns, lengths, metrics, frames = [], [], [], []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(args.seed + env_step)
        for episode in range(args.eval_episodes):
            step = env.reset(episode_seed(args.seed, 10_000, env_step, episode))
            episodic_return, length = np.zeros(len(env.names)), 0
            while step.live.any() and length < MAX_EPISODE:
                check_finite(f"in the evaluation at step {env_step}", observation=step.obs)
                if args.capture_video and episode == 0:
                    frames.append(env.env.render())
                step = env.step(policy(to_tensor(step.obs, args.device)).cpu().numpy())
                episodic_return, length = episodic_return + step.reward, length + 1
            returns.append(episodic_return)
            lengths.append(length)
            metrics.append(env.metrics())
    if frames:
        save_video(frames, env.fps, args, env_step)
    result: dict[str, Any] = dict(summary(np.sum(returns, axis=1), lengths))
    result["agent_returns"] = " ".join(f"{mean:.2f}" for mean in np.mean(returns, axis=0))
    for name in metrics[0]:  # a time is nan in episodes in which no agent arrived
        values = [values[name] for values in metrics if not math.isnan(values[name])]
        result[name] = float(np.mean(values)) if values else ""
    return result


# [/shared]
# Housekeeping: prioritized replay, images, environments, run folder, checkpoints, flags.


class PrioritizedReplayBuffer(ReplayBuffer):
    """Samples a batch for each agent by its own priorities (Schaul et al. 2016, section 3).

    P(i) = p_i^α / Σ_k p_k^α (equation 1), where p_i = |δ_i| + ε, or 1 / rank(i) by |δ_i|. A new
    transition gets the largest error so far, so that it is soon sampled; one in which the agent was
    not live has the priority 0.
    """

    STORED = *ReplayBuffer.STORED, "error", "priority"
    SORT = 1_000  # updates between two sortings; in between, ranks are looked up in the last one

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        super().__init__(env, args)
        self.alpha, self.by_rank = args.per_alpha, args.per_variant == "rank"
        self.error = nn.Buffer(torch.zeros_like(self.reward), persistent=False)  # |δ|; -1: not live
        # p^α. In float32, a sum of a million has errors larger than its smallest terms.
        priority = torch.zeros_like(self.reward, dtype=torch.float64)
        self.priority = nn.Buffer(priority, persistent=False)
        self.largest = nn.Buffer(torch.ones(len(env.names), device=args.device))  # |δ| so far
        self.sorted = torch.empty(len(env.names), 0, device=args.device)  # |δ| at the last sorting
        self.entered = self.refreshed = 0  # transitions with a priority; updates

    def sample(self, batch_size: int, beta: float) -> Batch:
        """A batch for each agent, with importance weights w_i = (n P(i))^-β / max_j w_j.

        So transitions that are sampled more often count for less (section 3.4). The number of
        transitions n and the sum of priorities cancel out. That sum is cut into B equal parts; each
        gives one sample, which a cumulative sum finds. A sum tree takes 2.0 ms instead of 0.7 ms
        with 100,000 transitions, and 2.2 ms instead of 5.0 ms with a million.
        """
        new = torch.arange(max(self.entered, self.added - self.capacity), self.added)
        new, self.entered = new.to(self.obs.device) % self.capacity, self.added
        indices, weights = [], []
        for agent, largest in enumerate(self.largest):
            self.set_error(agent, new, torch.where(self.live[new, agent] > 0, largest, -1.0))
            cumulative = self.priority[: self.size, agent].cumsum(0)
            part = torch.arange(1, batch_size + 1) - torch.rand(batch_size, dtype=torch.float64)
            index = torch.searchsorted(
                cumulative, (part / batch_size).to(new.device) * cumulative[-1]
            )
            priority = self.priority[index, agent].clamp(min=1e-12)  # 0 if the agent never was live
            indices.append(index)
            weights.append((priority / priority.min()).pow(-beta).float())
        return self.batch(torch.stack(indices), torch.stack(weights))

    def refresh(self, index: Tensor, td_error: Tensor, first: int = 0) -> None:
        """Store the Bellman errors [n, B] of transitions [n, B], for n agents from first on."""
        for agent, (places, errors) in enumerate(zip(index, td_error.abs()), start=first):
            error = torch.where(self.error[places, agent] < 0, -1.0, errors)
            self.largest[agent] = torch.maximum(self.largest[agent], error.max())
            self.set_error(agent, places, error)
        self.refreshed += 1
        # Also early: until the first sorting, all ranks are 1, and sampling is uniform
        if self.by_rank and (self.refreshed % self.SORT == 0 or self.refreshed in (10, 100)):
            self.sort()

    def set_error(self, agent: int, index: Tensor, error: Tensor) -> None:
        """Set an agent's errors [K], -1 where it was not live, and the priorities that follow."""
        if self.by_rank:  # rank = 1 + number of larger errors
            not_larger = torch.searchsorted(self.sorted[agent], error, right=True)
            priority = 1 / (1 + self.sorted.shape[1] - not_larger.double())
        else:
            priority = error.clamp(min=0).double() + 1e-6
        self.error[index, agent] = error
        self.priority[index, agent] = priority**self.alpha * (error >= 0)

    def sort(self) -> None:
        """Sort the errors, and set all priorities by their ranks."""
        self.sorted, order = self.error[: self.size].T.contiguous().sort()  # [N, size]
        rank = torch.arange(self.size, 0, -1, device=order.device).double()
        for agent in range(len(order)):
            self.priority[order[agent], agent] = rank**-self.alpha * (self.sorted[agent] >= 0)

    def get_extra_state(self) -> dict[str, Any]:
        more = {name: getattr(self, name) for name in ("sorted", "entered", "refreshed")}
        return super().get_extra_state() | more

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.sorted = state["sorted"].to(self.error.device)
        self.entered, self.refreshed = state["entered"], state["refreshed"]


def per_beta(args: Args, env_step: int) -> float:
    """The exponent of the importance weights, which rises linearly over the run."""
    done = min(env_step / args.total_timesteps, 1.0)
    return args.per_beta_start + done * (args.per_beta_end - args.per_beta_start)


class StackedConvNet(nn.Module):
    """A small convolutional network for each of n agents, for the images in observations.

    obs [C, B, M, O], C = n or 1 -> [n, B, M * (O - pixels) + 64]. Grouped convolutions, one group
    for each agent, compute all of them at once.
    """

    def __init__(self, env: MultiAgentEnv, n: int, seen: int) -> None:
        super().__init__()
        self.pixels = env.pixels  # 3 x 32 x 32
        self.convolutions = nn.Sequential(
            nn.Conv2d(n * seen * 3, n * 16, 4, stride=2, groups=n),  # [B, n * 16, 15, 15]
            nn.ReLU(),
            nn.Conv2d(n * 16, n * 32, 5, stride=2, groups=n),  # [B, n * 32, 6, 6]
            nn.ReLU(),
        )
        self.linear = StackedLinear(n, 32 * 6 * 6, 64)

    def forward(self, obs: Tensor) -> Tensor:
        n = len(self.linear.bias)
        numbers, images = obs.expand(n, -1, -1, -1).tensor_split([-self.pixels], dim=3)
        images = images.unflatten(3, (3, 32, 32)).flatten(2, 3)  # [n, B, M * 3, 32, 32]
        maps = self.convolutions(images.transpose(0, 1).flatten(1, 2))
        maps = maps.unflatten(1, (n, 32)).transpose(0, 1)  # [n, B, 32, 6, 6]
        return torch.cat([numbers.flatten(2), F.relu(self.linear(maps.flatten(2)))], dim=2)


def pack(obs: Tensor, pixels: int) -> Tensor:
    """Observations for the buffer: if they have an image, as bytes, one for each pixel value."""
    if not pixels:
        return obs
    numbers, image = obs.tensor_split([-pixels], dim=-1)
    return torch.cat([numbers.contiguous().view(torch.uint8), (255 * image).round().byte()], -1)


def unpack(packed: Tensor, pixels: int) -> Tensor:
    """The inverse of pack."""
    if not pixels:
        return packed
    numbers, image = packed.tensor_split([-pixels], dim=-1)
    return torch.cat([numbers.contiguous().view(torch.float32), image / 255], -1)


# [shared: adam]
class Adam(nn.Module):
    """Adam (Kingma & Ba 2015, section 2), computing what torch.optim.Adam does.

    With it, a whole update compiles to one graph, which is 1.2 times as fast. In a compiled graph,
    the step of torch.optim.Adam has no effect (torch 2.13).
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
        bias1 = 1 - torch.exp(self.t * math.log(beta1))  # 1 - β1^t
        bias2 = 1 - torch.exp(self.t * math.log(beta2))  # 1 - β2^t
        step_size, eps = self.learning_rate * bias2.sqrt() / bias1, self.eps * bias2.sqrt()
        for p, g, m, v in zip(self.params, grads, self.m, self.v):
            m.lerp_(g, 1 - beta1)  # m = β1 m + (1 - β1) g
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)  # v = β2 v + (1 - β2) g²
            p.sub_(step_size * m / (v.sqrt() + eps))


# [/shared]
# [shared: several agents]
class MultiAgentEnv:
    """The N agents of a PettingZoo environment (parallel interface), as arrays in a fixed order.

    An agent is live from its first observation until it ends. Otherwise its observation and reward
    are zero, and its action is ignored. An agent that disappears counts as truncated.
    Observations that are shorter than another agent's are padded with zeros.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.names = env, list(env.possible_agents)
        self.space: Any = env.action_space(self.names[0])  # the same for all agents
        self.discrete = isinstance(self.space, gym.spaces.Discrete)
        self.action_size = gym.spaces.flatdim(self.space)  # if Discrete, the number of actions
        self.obs_spaces = [env.observation_space(name) for name in self.names]
        self.obs_size = max(map(gym.spaces.flatdim, self.obs_spaces))
        self.pixels = getattr(env, "pixels", 0)  # length of the image at an observation's end
        self.fps = env.metadata.get("render_fps", 10)
        self.subprocess = hasattr(env, "receive")  # a simulator in a process of its own

    def reset(self, seed: int | None) -> Step:
        """Begin an episode."""
        self.obs = np.zeros((len(self.names), self.obs_size), np.float32)
        self.live = np.zeros(len(self.names), bool)
        obs, _ = self.env.reset(seed=seed)
        return self.pack(obs, {}, {}, {})

    def step(self, action: np.ndarray) -> Step:
        """Act: [N] integers, or [N, A] numbers in [-1, 1]."""
        self.send(action)
        return self.receive()

    def send(self, action: np.ndarray) -> None:
        """The first half of step: simulators in processes of their own compute until receive."""
        if self.discrete:
            actions = action + self.space.start
        else:
            low, high = self.space.low, self.space.high
            share = (np.clip(action, -1, 1) + 1) / 2
            actions = low + share.reshape(-1, *low.shape).astype(np.float32) * (high - low)
        acting = {name: a for name, a, live in zip(self.names, actions, self.live) if live}
        self.result = self.env.send(acting) if self.subprocess else self.env.step(acting)

    def receive(self) -> Step:
        """The second half of step."""
        result = self.env.receive() if self.subprocess else self.result
        return self.pack(*result[:4])

    def pack(self, obs: dict, reward: dict, terminated: dict, truncated: dict) -> Step:
        """What PettingZoo returns by name, as a Step."""
        before, last_obs = self.live, self.obs.copy()
        rewards, ends = np.zeros(len(self.names), np.float32), np.zeros(len(self.names), bool)
        self.live = np.zeros(len(self.names), bool)
        for i, name in enumerate(self.names):
            if name in obs:
                flat: Any = gym.spaces.flatten(self.obs_spaces[i], obs[name])
                last_obs[i, : len(flat)] = flat
            if before[i]:
                rewards[i] = np.asarray(reward.get(name, 0.0)).item()
                ends[i] = terminated.get(name, False)  # if both are true, terminated counts
            ended = terminated.get(name, False) or truncated.get(name, False)
            self.live[i] = name in obs and name in self.env.agents and not ended
        self.obs = np.where(self.live[:, None], last_obs, np.float32(0))
        last_obs[~(before | self.live)] = 0.0
        return Step(self.obs, rewards, ends, before & ~self.live & ~ends, self.live, last_obs)

    def metrics(self) -> dict[str, float]:
        """Measures of the episode besides its return, such as the crossing's completion_rate."""
        return self.env.metrics() if hasattr(self.env, "metrics") else {}

    def close(self) -> None:
        self.env.close()


class Envs:
    """The E = num_envs parallel environments of a run."""

    def __init__(self, args: Args) -> None:
        self.envs = [make_env(args) for _ in range(args.num_envs)]
        self.steps: list[Any] = [None] * args.num_envs  # the last one of each environment

    def reset(self, seeds: list[int | None], where: np.ndarray) -> Step:
        """Begin an episode in the environments where the mask [E] is true."""
        for i in np.flatnonzero(where).tolist():
            self.steps[i] = self.envs[i].reset(seeds[i])
        return self.stack()

    def step(self, action: np.ndarray) -> Step:
        """Act in all environments: [E, N] integers, or [E, N, A] numbers in [-1, 1]."""
        for env, part in zip(self.envs, action):  # simulators in processes compute at the same time
            env.send(part)
        self.steps = [env.receive() for env in self.envs]
        return self.stack()

    def stack(self) -> Step:
        return Step(*map(np.stack, zip(*self.steps)))

    def close(self) -> None:
        for env in self.envs:
            env.close()


# [/shared]
# [shared: agents environment]
def make_env(args: Args, film: bool = False) -> MultiAgentEnv:
    """The environment of --env-id."""
    env = make_crossing(args) if args.env_id.startswith("smarts/") else make_parallel(args, film)
    if not getattr(env, "possible_agents", None):
        fail(f"{args.env_id} does not name its agents in advance (possible_agents)")
    spaces = [env.action_space(name) for name in env.possible_agents]
    space, discrete = spaces[0], isinstance(spaces[0], gym.spaces.Discrete)
    floats = isinstance(space, gym.spaces.Box) and space.dtype.kind == "f"
    bounded = floats and space.is_bounded() and bool((space.low < space.high).all())
    if not (discrete or bounded) or any(other != space for other in spaces):
        kinds = " and ".join(sorted({str(space) for space in spaces}))
        needs = "one Discrete, or one Box of floats with finite bounds and low < high"
        fail(f"{args.env_id} has actions {kinds}; all agents need {needs}")
    if discrete and args.action_type == "continuous":
        fail(f"{args.env_id} has no continuous actions; leave out --action-type")
    for name in env.possible_agents:
        if not env.observation_space(name).is_np_flattenable:
            kind = env.observation_space(name)
            fail(f"{args.env_id} has observations {kind}, which do not flatten to a vector")
    if film:
        check_video(env, args.env_id)
    return MultiAgentEnv(env)


def make_crossing(args: Args) -> Any:
    """The crossing, in a process of its own."""
    name = args.env_id.removeprefix("smarts/").removesuffix("-v0")
    folder = Path(__file__).resolve().parent / "scenarios" / name
    if not (folder / "process.py").exists():
        known = "smarts/intersection-4lane-v0, from the folder scenarios beside the script"
        fail(f"cannot make {args.env_id}: there is no {folder}; {SCRIPT} has {known}")
    sys.path.insert(0, str(folder))
    rewards = "collision", "off_road", "goal", "progress", "distance"
    try:
        return importlib.import_module("process").CrossingProcess(
            continuous=args.action_type == "continuous",
            rewards=tuple(getattr(args, f"{reward}_reward") for reward in rewards),
            **{name: getattr(args, name) for name in ("traffic", "turn", "image", "horizon")},
        )
    except ChildProcessError as error:
        fail(f"cannot make {args.env_id}: {error}; pip install -r requirements-smarts.txt")


def check_crossing(args: Args) -> None:
    """Fail if a flag of the crossing is set for another environment."""
    if args.env_id.startswith("smarts/"):
        if args.evaluate in ("keep-lane", "rules") and args.action_type != "lane":
            fail(f"--evaluate {args.evaluate} needs --action-type lane")
        return
    if args.evaluate in ("keep-lane", "rules"):
        fail(f"--evaluate {args.evaluate} drives a car, and {args.env_id} has none; use random")
    flags = "traffic turn image horizon collision_reward off_road_reward goal_reward"
    for name in (flags + " progress_reward distance_reward").split():
        if getattr(args, name) != getattr(Args, name):
            fail(f"--{name.replace('_', '-')} is for smarts/intersection-4lane-v0 only")


def make_parallel(args: Args, film: bool) -> Any:
    """A PettingZoo environment: package/name is the module that defines its parallel_env."""
    package, _, name = args.env_id.replace("/", ".").rpartition(".")
    mode = {"render_mode": "rgb_array"} if film else {}
    try:
        make = importlib.import_module(f"{package}.{name}").parallel_env
        try:  # MPE has both kinds of actions
            return make(continuous_actions=args.action_type == "continuous", **mode)
        except TypeError:
            return make(**mode)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        near, how = "", " with a render_mode, for --capture-video" if film else ""
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
            names = [module.name for module in modules if module.name != name]
            near = "".join(difflib.get_close_matches(name, names, n=1))
            near = near and f"; did you mean {package}/{near}?"
        fail(
            f"cannot make {args.env_id}{how}: {error}{near} (it takes package/name, as in "
            "mpe2/simple_spread_v3, which pip install -r requirements-smarts.txt installs)"
        )


# [/shared]
# [shared: agents play]
def play(args: Args, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """Evaluate the policy that --evaluate names."""
    start_torch(args)
    env = make_env(args, film=args.capture_video)
    agent = Agent(env, args).to(args.device)
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"])
    policies: dict[Any, Callable[[Tensor], Tensor]] = {
        "random": lambda obs: random_action(env),
        "keep-lane": lambda obs: torch.zeros(len(env.names), dtype=torch.int64),
        "rules": lambda obs: torch.tensor(importlib.import_module("rules").actions(obs.tolist())),
    }
    policy = policies.get(args.evaluate, agent.eval_action)
    result = evaluate(policy, env, args, checkpoint["run"]["env_step"] if checkpoint else 0)
    env.close()
    further = list(result)[list(result).index("agent_returns") :]
    say("; ".join(f"{name} {result[name]}" for name in further))
    return result


def random_action(env: MultiAgentEnv) -> Tensor:
    """Uniform random actions [N] or [N, A]."""
    if env.discrete:
        return torch.randint(env.action_size, (len(env.names),))
    return 2 * torch.rand(len(env.names), env.action_size) - 1


# [/shared]
# [shared: run]
class Run:
    """Everything about a run except its algorithm: folder, counters, logs and checkpoints.

    parts are the objects whose state_dict a checkpoint holds; "agent" is one of them.
    """

    COUNTERS = """env_step updates episodes evaluations next_evaluation losses next_losses seconds
        csv_bytes wandb_id"""

    def __init__(self, args: Args, checkpoint: dict[str, Any] | None, **parts: Any) -> None:
        self.args, self.parts = args, parts
        self.env_step = self.updates = self.signal = self.next_losses = 0
        self.episodes = [0] * args.num_envs  # finished episodes of each environment
        self.evaluations: list[float] = []  # mean returns
        self.losses: dict[str, float] = {}  # the latest value of each
        self.next_evaluation, self.seconds, self.wandb_id = math.inf, 0.0, uuid4().hex
        self.csv_bytes: dict[str, int] = {}  # lengths of the CSV files at the last checkpoint
        self.returns, self.lengths = np.zeros(args.num_envs), np.zeros(args.num_envs, int)
        self.done = self.stopped = self.evaluating = False
        if checkpoint:
            vars(self).update(checkpoint["run"])
            for name, part in parts.items():
                part.load_state_dict(checkpoint[name])
            torch.set_rng_state(checkpoint["torch_rng"])
            if torch.cuda.is_available() and checkpoint["cuda_rng"]:
                torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])
        interval = args.eval_interval
        due = (self.env_step // interval + 1) * interval
        self.next_evaluation = min(self.next_evaluation, due)
        self.first_step = self.saved_at = self.env_step
        self.start = time.time() - self.seconds
        self.open_folder()
        self.tensorboard = SummaryWriter(str(self.folder), purge_step=self.env_step + 1)
        self.wandb = self.start_wandb() if args.track else None
        hide = None if args.progress else True  # None: tqdm hides it if there is no terminal
        total = args.total_timesteps
        self.bar = tqdm(total=total, initial=self.env_step, unit=" steps", disable=hide)
        for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)}:
            # SIGHUP stays ignored under nohup; SIGINT is handled also in a shell's background job.
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.interrupt)

    def open_folder(self) -> None:
        """Make the run folder, or take the one to resume; lock it, and write args.json there."""
        args = self.args
        name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.time_ns()}".replace("/", "-")
        self.folder = args.run_dir = args.resume or args.run_dir or Path("runs") / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = filelock.FileLock(self.folder / ".lock", blocking=False)
        try:
            self.lock.acquire()
        except filelock.Timeout:
            fail(f"{self.folder} is in use by another process")
        if not args.resume and (self.folder / "checkpoint.pt").exists():
            fail(f"{self.folder} holds a run; --resume continues it, or give another --run-dir")
        for name in "episodes.csv", "evaluations.csv", "losses.csv":
            path = self.folder / name  # cut off the rows written after the checkpoint
            if path.exists():
                os.truncate(path, min(path.stat().st_size, self.csv_bytes.get(name, 0)))
        settings = json.dumps(dataclasses.asdict(args), default=str, indent=2)
        (self.folder / "args.json").write_text(settings)

    def start_wandb(self) -> Any:
        """Begin a run of Weights & Biases; its id is kept in the checkpoint."""
        try:
            import wandb
        except ImportError:
            fail("--track needs the package wandb: pip install wandb")
        try:
            return wandb.init(
                project=self.args.wandb_project_name,
                entity=self.args.wandb_entity,
                id=self.wandb_id,
                name=self.folder.resolve().name,
                resume="allow",
                config=dataclasses.asdict(self.args),
            )
        except wandb.Error as error:  # no key, no network
            fail(f"--track: {error} (with WANDB_MODE=offline it logs to files)")

    @property
    def finished(self) -> bool:
        return self.stopped or self.env_step >= self.args.total_timesteps

    def elapsed(self) -> float:
        """Seconds of training so far, including those before the run was resumed."""
        return round(time.time() - self.start, 2)

    def episode_seeds(self) -> list[int | None]:
        """A seed for each environment's next episode, the same in a resumed run."""
        return [episode_seed(self.args.seed, i, n) for i, n in enumerate(self.episodes)]

    def check_finite(self, **quantities: Any) -> None:
        """Exit if a number is not finite, before the agent learns from it or saves it."""
        check_finite(f"after step {self.env_step}", **quantities)

    def step(self, reward: np.ndarray, ended: np.ndarray, first: int = 0, steps: int = 1) -> None:
        """Count steps of the environments from `first` on, and log the episodes that ended."""
        self.env_step += steps * len(reward)
        self.bar.update(steps * len(reward))
        self.returns[first : first + len(reward)] += reward
        self.lengths[first : first + len(reward)] += steps
        for i in first + np.flatnonzero(ended):
            row = {"episodic_return": self.returns[i], "episodic_length": self.lengths[i]}
            self.log(charts=row)
            self.write_row("episodes", row | {"seconds": self.elapsed()})
            self.bar.set_postfix_str(f"return {self.returns[i]:.1f}", refresh=False)
            self.returns[i], self.lengths[i] = 0.0, 0
            self.episodes[i] += 1

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        """Check that the losses are finite, and log them every thousand steps."""
        self.losses |= {name: float(loss) for name, loss in losses.items()}
        self.check_finite(**self.losses)
        # The first row comes after 1000 steps of learning, when every loss has a value.
        self.next_losses = self.next_losses or self.env_step + 1_000
        if self.env_step >= self.next_losses or self.finished:
            self.next_losses = self.env_step + 1_000
            self.write_row("losses", {"seconds": self.elapsed()} | self.losses)
            steps, seconds = self.env_step - self.first_step, self.elapsed() - self.seconds
            self.log(losses=self.losses, charts={"SPS": steps / max(seconds, 0.01)})

    def evaluate_if_due(self, evaluate: Callable[[], dict[str, Any]]) -> None:
        """If an evaluation is due, run it, log its result, and keep the best agent in best.pt."""
        if self.signal or (self.env_step < self.next_evaluation and not self.finished):
            return
        with contextlib.suppress(KeyboardInterrupt):  # raised by interrupt
            self.evaluating = True
            result = evaluate()
            self.evaluating = False
        if self.signal:
            return
        mean, interval = result["mean_return"], self.args.eval_interval
        self.next_evaluation = (self.env_step // interval + 1) * interval
        self.check_finite(evaluation_return=mean)
        self.write_row("evaluations", {"seconds": self.elapsed()} | result)
        self.log(eval={f"episodic_{key}": result[f"mean_{key}"] for key in ("return", "length")})
        score = f"{mean:.1f} +/- {result['std_return']:.1f}"
        say(f"step {self.env_step}, {self.elapsed():.0f} s: evaluation {score}")
        if mean > max(self.evaluations, default=-math.inf):
            self.save("best.pt", agent=self.parts["agent"])
        self.evaluations.append(mean)
        last, goal = self.evaluations[-3:], self.args.stop_at_return
        self.stopped = goal is not None and len(last) == 3 and min(last) >= goal

    def save_if_due(self, episode_ended: bool = True) -> None:
        """Save if due, preferably when an episode ended: a resumed run begins a new episode."""
        signalled, steps = self.signal, self.env_step - self.saved_at
        due = steps >= self.args.save_interval * (1 if episode_ended else 2)
        if due or signalled or self.finished:
            self.save("checkpoint.pt", **self.parts)
            self.saved_at, self.done = self.env_step, bool(signalled) or self.finished

    def save(self, name: str, **parts: Any) -> None:
        """Write a temporary file, then rename it: a kill leaves the old file or the new one."""
        self.check_finite(weights=[float(p.detach().sum()) for p in parts["agent"].parameters()])
        unset = dict.fromkeys(("resume", "evaluate", "run_dir"))
        self.csv_bytes = {path.name: path.stat().st_size for path in self.folder.glob("*.csv")}
        counters = {counter: getattr(self, counter) for counter in self.COUNTERS.split()}
        state = {
            "script": SCRIPT,
            "args": dataclasses.asdict(self.args) | unset,
            "run": counters | {"seconds": self.elapsed()},
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }
        state |= {part: value.state_dict() for part, value in parts.items()}
        self.tensorboard.flush()  # so that a killed run has all points up to the checkpoint
        path, temporary = self.folder / name, self.folder / f"{name}.tmp"
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
            temporary.unlink(missing_ok=True)
            fail(f"cannot write {path} ({error}); the previous checkpoint is kept", code=1)

    def write_row(self, name: str, values: dict[str, Any]) -> None:
        """Append a row to a CSV file of the run folder."""
        row = {"env_step": self.env_step} | values
        with (self.folder / f"{name}.csv").open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)

    def log(self, **groups: dict[str, float]) -> None:
        """Send values to TensorBoard, and with --track to Weights & Biases."""
        tags = {f"{group}/{name}": row[name] for group, row in groups.items() for name in row}
        for tag, value in tags.items():
            self.tensorboard.add_scalar(tag, value, self.env_step)
        if self.wandb:
            self.wandb.log(tags | {"global_step": self.env_step})

    def interrupt(self, number: int, frame: Any) -> None:
        """At a signal, let the run save at its next step and end; at a second one, end at once."""
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        say(f"{SCRIPT}: saving at the next step; interrupt again to end at once", sys.stderr)
        if self.evaluating:
            raise KeyboardInterrupt

    def close(self) -> Path:
        """Say that the run is done, or how to resume it and exit with the signal's code."""
        self.bar.close()
        self.tensorboard.close()
        self.lock.release()
        if self.wandb:
            self.wandb.finish()
        if self.finished:
            say(f"done: {self.folder}")
            return self.folder
        command = shlex.join([sys.executable, sys.argv[0], "--resume", str(self.folder)])
        say(f"saved step {self.env_step}; resume with: {command}")
        raise SystemExit(128 + self.signal)


def episode_seed(*numbers: int) -> int:
    """A seed of 32 bits; different numbers give different seeds (up to hash collisions)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def check_finite(when: str, **quantities: Any) -> None:
    """Exit if a number is not finite, or too large for float32."""
    for name, value in quantities.items():
        numbers = np.ravel(value)
        finite = np.abs(numbers) < np.finfo(np.float32).max  # false for nan
        if not finite.all():
            what = f"{name.replace('_', ' ')} {when}: {numbers[~finite][0]} is not a finite float32"
            fail(f"{what}; the last checkpoint is kept", code=1)


def summary(returns: Any, lengths: Any) -> dict[str, float]:
    """The columns of evaluations.csv, from the returns and lengths of the episodes."""
    if max(lengths) >= MAX_EPISODE:
        say(f"an evaluation episode without an end was cut off after {MAX_EPISODE} steps")
    numbers = np.mean(returns), np.std(returns), np.min(returns), np.max(returns), np.mean(lengths)
    names = "mean_return", "std_return", "min_return", "max_return", "mean_length"
    return dict(zip(names, map(float, numbers))) | {"episodes": len(returns)}


def check_video(env: Any, env_id: str) -> None:
    """Exit before training if --capture-video cannot work."""
    try:
        import moviepy  # noqa: F401
    except ImportError:
        fail("--capture-video needs the package moviepy: pip install moviepy")
    env.reset(seed=0)
    if np.shape(env.render())[2:] != (3,):
        fail(f"--capture-video: {env_id} does not render RGB images")


def save_video(frames: list, fps: int, args: Args, env_step: int) -> None:
    """Write an episode's frames, [H, W, 3] each, to an MP4 file in the run folder's videos/."""
    from gymnasium.utils import save_video  # needs moviepy

    folder, name = str((args.run_dir or Path()) / "videos"), f"step-{env_step}"
    save_video.save_video(frames, folder, lambda _: True, fps=fps, name_prefix=name)


def start_torch(args: Args) -> None:
    """Seed PyTorch, and choose the device and the precision of float32 matrix products."""
    torch.manual_seed(args.seed)
    np.seterr(over="ignore")  # too large for float32 becomes infinite; check_finite exits
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device is cuda, but PyTorch finds no GPU here; use --device cpu")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.deterministic = args.torch_deterministic
    # On a CPU, oneDNN: twice as fast as MKL on Zen 5, equally fast on Zen 4. On a GPU, TF32.
    torch.set_float32_matmul_precision("medium")


def compiled(function: Callable, args: Args) -> Callable:
    """The function as one compiled graph; unchanged with --no-compile or without a compiler."""
    if args.bfloat16:  # no cache of cast weights: they change within an update
        function = torch.autocast(args.device, torch.bfloat16, cache_enabled=False)(function)
    if not args.compile:
        return function
    torch._dynamo.config.trace_autograd_ops = True  # allows torch.autograd.grad in a graph
    options: dict[str, Any] = {
        "cpp_wrapper": args.device == "cpu",  # compiles in half the time, and calls are faster
        "fallback_random": True,  # same random numbers as the uncompiled function
    }
    try:
        torch.compile(torch.sin, options=options)(torch.zeros(1, device=args.device))
    except Exception as error:  # a broken compiler may raise anything
        reason = str(error).strip().split("\n")[0]
        say(f"{SCRIPT}: cannot compile here, so learning is slower: {reason}", sys.stderr)
        return function
    say("compiling at the first use: up to a minute, and a few seconds in later runs")
    # Skip the check at every call whether modules changed, which takes 3% of an update: only their
    # tensors change, and these are inputs of the graph. isolate_recompiles gives each agent a graph
    # of its own; otherwise a second agent would run the graph of the first.
    options["guard_filter_fn"] = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    settings: dict[str, Any] = {"fullgraph": True, "isolate_recompiles": True, "options": options}
    return torch.compile(function, **settings)


def to_tensor(array: np.ndarray, device: str) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32, device=device)


def say(message: str, stream: TextIO | None = None) -> None:
    """Print a line above the progress bar; a closed pipe or terminal does not end a run."""
    stream = stream or sys.stdout
    try:
        with tqdm.external_write_mode():
            print(message, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def fail(message: str, code: int = 2) -> NoReturn:
    """End the program with one sentence and an exit code: 2 for bad input, 1 for a fault."""
    say(f"{SCRIPT}: {message}", sys.stderr)
    raise SystemExit(code)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint. With weights_only, a file from a stranger runs no code."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        script = checkpoint["script"]
    except (FileNotFoundError, NotADirectoryError):
        fail(f"there is no {path}; give a run folder that holds one, such as runs/Pendulum-v1__...")
    except Exception as error:  # a damaged or malicious file may raise anything
        reason = str(error).split("\n")[0]
        fail(f"{path} is damaged or not a checkpoint, and nothing in it was run ({reason})")
    if script != SCRIPT:
        fail(f"{path} was written by {script}.py, and only that script can use it")
    return checkpoint


def read_flags() -> tuple[Args, dict[str, Any] | None]:
    """The flags, and the checkpoint of --resume or --evaluate, which sets the flags not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in "--resume", "--evaluate", "--run-dir":  # read first: a checkpoint sets the defaults
        parser.add_argument(flag)
    given, _ = parser.parse_known_args()
    if sum(value is not None for value in vars(given).values()) > 1:
        fail("give only one of --resume, --evaluate and --run-dir: the first two name a run folder")
    saved, checkpoint = Args(), None
    if given.resume or given.evaluate not in (None, *typing.get_args(Baseline)):
        path = Path(given.resume or given.evaluate)
        if given.resume or path.suffix != ".pt":
            path /= "checkpoint.pt" if given.resume else "best.pt"
        checkpoint = load_checkpoint(path)
        try:
            saved = Args(**checkpoint["args"])
        except TypeError as error:
            fail(f"{path} was written by a version with other flags: {error}")
        if saved.device == "cuda" and not torch.cuda.is_available():
            saved.device = "auto"
    args = tyro.cli(Args, default=saved)
    if checkpoint:
        # A policy can be evaluated in other episodes than those that it learned from.
        episodes = ["seed", "sticky_actions", "traffic", "turn", "horizon"]
        for name, hint in typing.get_type_hints(Args, include_extras=True).items():
            before, now = getattr(saved, name), getattr(args, name)
            free = args.evaluate and name in episodes
            if before != now and "fixed" in typing.get_args(hint) and not free:
                fail(f"{path} has {name} {before}, which cannot be changed")
        if args.resume and checkpoint["run"]["env_step"] >= args.total_timesteps:
            fail(f"{args.resume} is finished; a larger --total-timesteps continues it")
        if args.evaluate:
            args.run_dir = path.parent  # for videos
    try:
        TypeAdapter(Args).validate_python(dataclasses.asdict(args))
    except ValidationError as error:
        wrong = error.errors()[0]
        fail(f"--{str(wrong['loc'][0]).replace('_', '-')} is {wrong['input']}: {wrong['msg']}")
    return args, checkpoint


def main() -> None:
    """Train or evaluate, as the flags say."""
    for name in ("stdout", "stderr"):  # a stream may be closed, or not show all characters
        setattr(sys, name, getattr(sys, name) or Path(os.devnull).open("w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        args, checkpoint = read_flags()
        if not args.evaluate:
            train(args, checkpoint)
            return
        result = play(args, checkpoint)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as error:  # a full disk, a folder without write permission
        fail(str(error), code=1)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):  # PyTorch's message for other sizes
            raise
        fail("the checkpoint has other networks: " + str(error).split("\n")[1].strip())
    say(
        "return {mean_return:.1f} +/- {std_return:.1f} over {episodes} episodes, from "
        "{min_return:.1f} to {max_return:.1f}; mean length {mean_length:.0f}".format(**result)
    )


if __name__ == "__main__":
    main()
# [/shared]

# Dependencies, for "uv run" and "pip install --requirements-from-script" (PEP 723):
# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "torch==2.13.0", "gymnasium==1.4.0",
#   'numpy==2.4.6; python_version >= "3.11"', 'numpy==2.2.6; python_version < "3.11"',
#   "tyro==1.0.17", "pydantic==2.14.4", "filelock==4.3.1", "tqdm==4.70.1", "tensorboard==2.21.0",
#   "smarts==2.0.1", "eclipse-sumo==1.28.0", "libsumo==1.28.0", "rtree==1.4.1",
#   'shapely==2.2.0; python_version >= "3.11"', 'shapely==2.1.2; python_version < "3.11"',
#   "trimesh==5.2.0",
#   'scipy==1.17.1; python_version >= "3.11"', 'scipy==1.15.3; python_version < "3.11"',
#   "pettingzoo==1.27.0",
# ]
# ///
