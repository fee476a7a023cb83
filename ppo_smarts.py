"""Proximal Policy Optimization (PPO) for several agents that share one policy.

Four cars come to a crossing, one from each side, among other traffic. Every agent acts on its own
observation with the same network, which learns from the steps of all agents. A clipped objective
removes the incentive to move the policy far from the one that collected the data.

    act        for num_steps steps: sample a ~ π_old(a|s) for every live agent
    advantage  A = Σ (γλ)^k δ_k,  δ = r + γ (1 - terminated) V(s') - V(s)
    policy     maximise min(ratio A, clip(ratio, 1 - ε, 1 + ε) A),  ratio = π(a|s) / π_old(a|s)
    value      minimise (V(s) - R)²,  R = A + V_old(s)

Paper:  Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347
Run:    python ppo_smarts.py                                   (SMARTS, see requirements-smarts.txt)
        python ppo_smarts.py --env-id mpe2/simple_spread_v3 --num-envs 8 --num-steps 128
Expect: in light traffic, 54% of the cars arrive and 14% collide after 41k steps (two seeds); if
        all keep their lanes, 52% arrive and 48% collide
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TextIO, TypeVar
from uuid import uuid4

import filelock
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from pydantic import (
    Field,
    NonNegativeFloat,
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
    num_envs: Fixed[PositiveInt] = 1  # parallel environments; each of SMARTS is a process
    seed: Fixed[Seed] = 1  # random seed of the networks, the actions and the environments
    action_type: Fixed[Literal["lane", "continuous"]] = "lane"  # discrete moves, or steering

    # The crossing; only with smarts/intersection-4lane-v0
    traffic: Fixed[Literal["none", "light", "dense"]] = "light"  # other cars
    turn: Fixed[Literal["any", "left", "straight", "right"]] = "any"  # any: sampled per agent
    image: Fixed[bool] = False  # observe the surroundings from above as well, in 32 x 32 pixels
    horizon: Fixed[PositiveInt] = 400  # steps of 0.1 s after which an episode is truncated
    collision_reward: float = -50.0  # for hitting another car, which terminates the agent
    off_road_reward: float = -50.0  # for leaving the road or the route, which terminates the agent
    goal_reward: float = 20.0  # for arriving
    progress_reward: float = 0.1  # per metre nearer to the goal
    distance_reward: float = 0.05  # per metre driven

    # Networks
    hidden_sizes: Fixed[tuple[PositiveInt, ...]] = (64, 64)  # units of each hidden layer

    # Learning
    num_steps: PositiveInt = 1024  # steps of every environment per rollout
    num_minibatches: PositiveInt = 8  # minibatches per rollout; an update learns from one
    update_epochs: PositiveInt = 10  # passes over a rollout
    learning_rate: NonNegativeFloat = 3e-4  # of Adam
    anneal_lr: bool = True  # anneal the learning rate linearly to 0 over the run
    gamma: Fraction = 0.99  # discount factor
    gae_lambda: Fraction = 0.95  # 0: one-step advantages, biased; 1: from all steps, high variance
    reward_scale: NonNegativeFloat = 0.1  # factor that multiplies the rewards for learning
    clip_coef: NonNegativeFloat = 0.2  # no gain from moving the ratio further than this from 1
    clip_value_loss: bool = False  # clip the change of the value likewise, as OpenAI's code does
    norm_advantage: bool = True  # scale advantages to mean 0, standard deviation 1 per minibatch
    entropy_coef: NonNegativeFloat = 0.01  # weight of the entropy bonus
    value_coef: NonNegativeFloat = 0.5  # weight of the value loss
    max_grad_norm: NonNegativeFloat = 0.5  # gradients are scaled down to this norm
    target_kl: NonNegativeFloat | None = None  # skip the remaining epochs if approx_kl exceeds this

    # Evaluation, in a separate environment. An episode's return is the sum over the agents.
    eval_interval: PositiveInt = 10_000  # steps between evaluations
    eval_episodes: PositiveInt = 10  # episodes per evaluation
    greedy_eval: bool = True  # play the most probable action instead of sampling one
    stop_at_return: float | None = None  # stop when the last 3 evaluations all reach it
    capture_video: bool = False  # film the first episode of every evaluation
    evaluate: Baseline | Path | None = None  # only evaluate a baseline, a run folder or a .pt file

    # Run folder
    run_dir: Path | None = None  # default: runs/{env_id}__{exp_name}__{seed}__{time}
    exp_name: str = SCRIPT  # part of the folder's name
    resume: Path | None = None  # run folder to resume; flags given here override the saved ones
    save_interval: PositiveInt = 10_000  # steps between checkpoints
    progress: bool = True  # progress bar, if there is a terminal
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "FolioRL"  # W&B project
    wandb_entity: str | None = None  # W&B user or team

    # Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if there is one
    compile: bool = True  # compile acting and learning: up to a minute at the start, then faster
    bfloat16: bool = False  # matrix products in bfloat16: faster, less exact
    torch_deterministic: bool = True  # only deterministic cuDNN kernels

    def __post_init__(self) -> None:
        steps, parts = self.num_envs * self.num_steps, max(self.num_minibatches, 1)
        if steps % parts:
            fail(f"--num-minibatches is {parts}; it must divide {steps} steps")
        if self.total_timesteps < steps:
            fail(f"--total-timesteps is {self.total_timesteps}; a rollout alone has {steps} steps")
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
# [shared: orthogonal]
def orthogonal(layer: nn.Conv2d | nn.Linear, gain: float = math.sqrt(2)) -> nn.Module:
    """Orthogonal weights, zero biases: usual for on-policy learning. sqrt(2) suits ReLU."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]
    return layer


# [/shared]
class Network(nn.Module):
    """Layers with ReLU between them: observation [B, O] -> [B, outputs]."""

    def __init__(self, env: MultiAgentEnv, outputs: int, gain: float, args: Args) -> None:
        super().__init__()
        self.split = [env.obs_size - env.pixels, env.pixels]
        sizes = [self.split[0], *args.hidden_sizes]
        if env.pixels:
            self.convolutions = nn.Sequential(
                nn.Unflatten(1, (3, 32, 32)),
                orthogonal(nn.Conv2d(3, 16, 4, stride=2)),  # [B, 16, 15, 15]
                nn.ReLU(),
                orthogonal(nn.Conv2d(16, 32, 3, stride=2)),  # [B, 32, 7, 7]
                nn.ReLU(),
                nn.Flatten(),
                orthogonal(nn.Linear(32 * 7 * 7, 64)),
                nn.ReLU(),
            )
            sizes[0] += 64
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(sizes, sizes[1:]):
            layers += [orthogonal(nn.Linear(fan_in, fan_out)), nn.ReLU()]
        self.layers = nn.Sequential(*layers, orthogonal(nn.Linear(sizes[-1], outputs), gain))

    def forward(self, obs: Tensor) -> Tensor:
        if self.split[1]:
            numbers, image = obs.split(self.split, dim=1)
            obs = torch.cat([numbers, self.convolutions(image)], dim=1)
        return self.layers(obs).float()


class ActorCritic(nn.Module):
    """The policy and the value, in separate networks.

    For discrete actions the policy's network gives their logits. For continuous ones it gives the
    mean of a normal distribution; its standard deviation is learned, equal for all observations.
    """

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        super().__init__()
        self.discrete = env.discrete
        # The small gain makes all actions about equally probable at first.
        self.policy = Network(env, env.action_size, 0.01, args)
        self.value = Network(env, 1, 1.0, args)
        self.log_std = nn.Parameter(torch.full((env.action_size,), -0.5))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [B, O] -> logits or means [B, A], value [B]."""
        return self.policy(obs), self.value(obs).squeeze(1)

    def sample(self, policy: Tensor) -> Tensor:
        """Actions sampled from logits or means [B, A]: [B] integers, or [B, A] numbers."""
        if self.discrete:  # Gumbel noise makes argmax a sample of the softmax; it compiles
            return (policy - torch.rand_like(policy).log().neg().log()).argmax(1)
        return policy + self.log_std.exp() * torch.randn_like(policy)

    def mode(self, policy: Tensor) -> Tensor:
        """The most probable actions."""
        return policy.argmax(1) if self.discrete else policy

    def log_prob(self, policy: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability of the action [B], and the policy's entropy [B]."""
        if self.discrete:
            log_probs = policy.log_softmax(1)  # [B, A]
            entropy = -(log_probs.exp() * log_probs).sum(1)
            return log_probs.gather(1, action.unsqueeze(1)).squeeze(1), entropy
        # Per dimension: log N(a; μ, σ) = -(a - μ)²/2σ² - log σ - log(2π)/2, and the entropy is
        # log σ + log(2πe)/2.
        z = (action - policy) / self.log_std.exp()
        half = 0.5 * math.log(2 * math.pi)
        entropy = (self.log_std + half + 0.5).sum().expand(len(policy))
        return (-0.5 * z.square() - self.log_std - half).sum(1), entropy


class Transition(NamedTuple):
    """A step of the M = E x N agents of all environments. A rollout is a list of T of these."""

    obs: Tensor  # [M, O]
    action: Tensor  # [M] or [M, A]
    log_prob: Tensor  # [M], of the action under the policy that sampled it
    live: Tensor  # [M], 1 where the agent acted; where it is 0, other parts have no meaning
    reward: Tensor  # [M]
    terminated: Tensor  # [M], 1 where the agent's task itself ended
    truncated: Tensor  # [M], 1 where the agent was cut off, as by a time limit
    next_obs: Tensor  # [M, O]; for an agent that ended, its last observation


class Batch(NamedTuple):
    """Steps of a rollout to learn from, B = T x M of them or a minibatch."""

    obs: Tensor  # [B, O]
    action: Tensor  # [B] or [B, A]
    log_prob: Tensor  # [B]
    live: Tensor  # [B]
    value: Tensor  # [B], before the updates
    advantage: Tensor  # [B]
    returns: Tensor  # [B], the target of the value


# [shared: advantages]
def advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor, args: Args
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16), all [T, N].

    next_value is the value of the observation after the action: at the end of an episode, of its
    last observation. ended is 1 where an episode terminated or was truncated: there the sum stops.
    """
    delta = reward + args.gamma * (1 - terminated) * next_value - value  # δ = r + γ V(s') - V(s)
    advantage, gae = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        gae = delta[t] + args.gamma * args.gae_lambda * (1 - ended[t]) * gae  # A = δ + γ λ A'
        advantage[t] = gae
    return advantage


# [/shared]
def live_mean(x: Tensor, live: Tensor) -> Tensor:
    """The mean of x [B] over the agents that were live."""
    return (x * live).sum() / live.sum().clamp(min=1)


class Agent(nn.Module):
    """The actor-critic that all agents share, and its updates."""

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        super().__init__()
        self.args = args
        self.net = ActorCritic(env, args)
        self.optimizer = torch.optim.Adam(
            self.parameters(), args.learning_rate, eps=1e-5, fused=True
        )

    @torch.no_grad()
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled actions [M] or [M, A] for observations [M, O], and their log-probability [M]."""
        policy = self.net.policy(obs)
        action = self.net.sample(policy)
        return action, self.net.log_prob(policy, action)[0]

    def eval_action(self, obs: Tensor) -> Tensor:
        """Actions for an evaluation: the most probable, or sampled with --no-greedy-eval."""
        policy = self.net.policy(obs)
        return self.net.mode(policy) if self.args.greedy_eval else self.net.sample(policy)

    @torch.no_grad()
    def batch(self, rollout: list[Transition]) -> Batch:
        """The steps of a rollout with their values and advantages, as one batch."""
        steps = Transition(*map(torch.stack, zip(*rollout)))  # [T, M, ...]
        value, next_value = (
            self.net.value(obs.flatten(0, 1)).view_as(steps.reward)
            for obs in (steps.obs, steps.next_obs)
        )
        # An agent ends at its own time; later rows of its column belong to the next episode.
        advantage = advantages(
            self.args.reward_scale * steps.reward,
            value,
            next_value,
            steps.terminated,
            torch.maximum(steps.terminated, steps.truncated),
            self.args,
        )
        parts = *steps[:4], value, advantage, advantage + value
        return Batch(*(part.flatten(0, 1) for part in parts))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative objective of the paper (equation 9) over live agents, and what to log."""
        policy, value = self.net(batch.obs)
        log_prob, entropies = self.net.log_prob(policy, batch.action)
        entropy = live_mean(entropies, batch.live)
        advantage, clip = batch.advantage, self.args.clip_coef
        if self.args.norm_advantage:
            centred = advantage - live_mean(advantage, batch.live)
            advantage = centred / (live_mean(centred.square(), batch.live).sqrt() + 1e-8)

        # L = E min(r A, clip(r, 1 - ε, 1 + ε) A),  r = π(a|s) / π_old(a|s)   (equation 7)
        log_ratio = (log_prob - batch.log_prob) * batch.live
        ratio = log_ratio.exp()
        gain = torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        policy_loss = -live_mean(gain, batch.live)

        error = (value - batch.returns).square()
        if self.args.clip_value_loss:
            change = (value - batch.value).clamp(-clip, clip)
            error = torch.max(error, (batch.value + change - batch.returns).square())
        value_loss = 0.5 * live_mean(error, batch.live)

        loss = policy_loss + self.args.value_coef * value_loss - self.args.entropy_coef * entropy
        return loss, {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            # An estimate of the Kullback-Leibler divergence that is never negative, with less
            # variance than the mean of -log r (Schulman 2020, joschu.net/blog/kl-approx.html)
            "approx_kl": live_mean(ratio - 1 - log_ratio, batch.live).detach(),
            "clipfrac": live_mean(((ratio - 1).abs() > clip).float(), batch.live),
        }

    def gradients(self, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The gradient of the loss with respect to every parameter, and what to log."""
        loss, losses = self.loss(batch)
        params = list(self.parameters())  # with discrete actions, log_std is unused: gradient 0
        grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        return list(grads), losses

    def step(self, grads: list[Tensor]) -> None:
        """A step of the optimizer, with gradients scaled down to a norm of max_grad_norm."""
        for param, grad in zip(self.parameters(), grads):
            param.grad = grad
        nn.utils.clip_grad_norm_(self.parameters(), self.args.max_grad_norm)
        self.optimizer.step()

    def anneal_lr(self, env_step: int) -> None:
        """Set the learning rate: constant, or with --anneal-lr falling linearly to 0."""
        left = max(1 - env_step / self.args.total_timesteps, 0.0) if self.args.anneal_lr else 1.0
        self.optimizer.param_groups[0]["lr"] = self.args.learning_rate * left


def minibatches(batch: Batch, args: Args) -> Iterator[Batch]:
    """The batch in num_minibatches random parts."""
    order = torch.randperm(len(batch.live)).to(args.device)
    for index in order.chunk(args.num_minibatches):
        yield Batch(*(part[index] for part in batch))


def explained_variance(batch: Batch) -> Tensor:
    """The share of the returns' variance that the value explains: 1 at best, 0 for a constant."""
    live = batch.live > 0
    left = (batch.returns - batch.value)[live].var(correction=0)
    return 1 - left / batch.returns[live].var(correction=0).clamp(min=1e-8)


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint; returns the run folder."""
    start_torch(args)
    envs, eval_env = Envs(args), make_env(args, film=args.capture_video)
    agent = Agent(eval_env, args).to(args.device)
    run = Run(args, checkpoint, agent=agent, optimizer=agent.optimizer)
    act, gradients = compiled(agent.act, args), compiled(agent.gradients, args)
    rollout: list[Transition] = []
    ended = np.ones(args.num_envs, bool)  # every environment begins an episode

    while not run.done:
        if ended.any():
            step = envs.reset(run.episode_seeds(), ended)
            run.check_finite(observation=step.obs)

        # Act
        obs, live = (flat(part, args) for part in (step.obs, step.live))
        action, log_prob = act(obs)

        # Step and store
        step = envs.step(action.unflatten(0, step.live.shape).cpu().numpy())
        run.check_finite(observation=step.last_obs, reward=step.reward)
        parts = step.reward, step.terminated, step.truncated, step.last_obs
        rollout.append(
            Transition(obs, action, log_prob, live, *(flat(part, args) for part in parts))
        )
        ended = np.logical_not(step.live.any(axis=1))
        run.step(step.reward.sum(axis=1), ended)

        # Learn from a whole rollout: several epochs, each in newly shuffled minibatches
        if len(rollout) == args.num_steps:
            agent.anneal_lr(run.env_step - args.num_steps * args.num_envs)  # as at its first step
            batch, logs = agent.batch(rollout), []
            for _ in range(args.update_epochs):
                for minibatch in minibatches(batch, args):
                    grads, losses = gradients(minibatch)
                    agent.step(grads)
                    run.updates += 1
                    logs.append(losses)
                if args.target_kl is not None and losses["approx_kl"] > args.target_kl:
                    break
            losses = {name: torch.stack([log[name] for log in logs]).mean() for name in losses}
            run.log_losses(losses | {"explained_variance": explained_variance(batch)})
            rollout.clear()

        run.evaluate_if_due(lambda: evaluate(agent.eval_action, eval_env, args, run.env_step))
        run.save_if_due(episode_ended=not rollout)  # a resumed run begins a new rollout

    envs.close()
    eval_env.close()
    return run.close()


def flat(part: np.ndarray, args: Args) -> Tensor:
    """A part of a Step of all environments, [E, N, ...] -> [M, ...]."""
    return to_tensor(part, args.device).flatten(0, 1)


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
# Housekeeping: environments as arrays, run folder, checkpoints, flags. The algorithm ends here.


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
#   "torch==2.13.0", "gymnasium==1.4.0", "pettingzoo==1.27.0", "mpe2==1.1.1",
#   "smarts==2.0.1", "eclipse-sumo==1.28.0", "libsumo==1.28.0", "rtree==1.4.1", "trimesh==5.2.0",
#   'shapely==2.2.0; python_version >= "3.11"', 'shapely==2.1.2; python_version < "3.11"',
#   'scipy==1.17.1; python_version >= "3.11"', 'scipy==1.15.3; python_version < "3.11"',
#   'numpy==2.4.6; python_version >= "3.11"', 'numpy==2.2.6; python_version < "3.11"',
#   "tyro==1.0.17", "pydantic==2.14.4", "filelock==4.3.1", "tqdm==4.70.1", "tensorboard==2.21.0",
# ]
# ///
