"""Proximal Policy Optimization (PPO) for several agents that share one policy.

Four cars come to a crossing, one from each side, among other traffic. Every agent acts on what it
sees itself, but all of them with the same network, which learns from what happened to each: what
one has lived through teaches the others. An agent that has crashed or arrived is out of the game
until the next episode, and nothing is learnt from its empty time.

Paper: Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347
Run:   python ppo_smarts.py                                    (SMARTS, see requirements-smarts.txt)
       python ppo_smarts.py --env-id mpe2/simple_spread_v3 --num-envs 8 --num-steps 128
Score: light traffic, two seeds: 54% of the cars cross and 14% collide after 41,000 steps; of cars
       that only keep their lane 52% cross and 48% collide
Watch: tensorboard --logdir runs
"""

from __future__ import annotations

import atexit
import contextlib
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
import tyro
from gymnasium.utils.save_video import save_video
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = Path(__file__).stem


@dataclass
class Args:
    # Task. Every length below is in environment steps, summed over all parallel environments; in
    # one step all agents of an environment act.
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

    # Networks
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    # Learning
    num_steps: int = 1024  # steps of every environment between two learning phases
    num_minibatches: int = 8  # parts into which these steps are split for learning
    update_epochs: int = 10  # passes over these steps
    learning_rate: float = 3e-4  # Adam's step size
    anneal_lr: bool = True  # let it fall to 0 over the run, linearly
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # 0: advantages from one step, biased; 1: from all, noisy
    reward_scale: float = 0.1  # rewards are multiplied by this for learning
    clip_coef: float = 0.2  # a ratio further than this from 1 gains nothing more
    clip_value_loss: bool = False  # clip the value's change likewise, as OpenAI's code does
    norm_advantage: bool = True  # scale advantages to mean 0, standard deviation 1 per minibatch
    entropy_coef: float = 0.01  # weight of the entropy bonus
    value_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # largest norm of the gradient, over all parameters together
    target_kl: float | None = None  # end a learning phase when the policy has moved this far

    # Evaluation, in an environment of its own. The return of an episode is the agents' sum.
    eval_interval: int = 10_000  # steps from one evaluation to the next
    eval_episodes: int = 10  # episodes in an evaluation
    greedy_eval: bool = True  # the likeliest action, not a drawn one; a car may then wait for ever
    stop_at_return: float | None = None  # stop once the last 3 evaluations are all at least this
    capture_video: bool = False  # film the first episode of every evaluation
    evaluate: str | None = None  # play: a run folder, a .pt file, untrained, random or keep-lane

    # Run folder
    run_dir: Path | None = None  # default: runs/{env_id}__{exp_name}__{seed}__{time}
    exp_name: str = SCRIPT  # part of the folder's name
    resume: Path | None = None  # run folder to resume; flags given with this one override its own
    save_interval: int = 10_000  # steps from one checkpoint to the next
    progress: bool = True  # progress bar, where there is a terminal
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "FolioRL"  # its project
    wandb_entity: str | None = None  # its user or team

    # Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    compile: bool = True  # compile acting and learning: slow to start, then faster
    bfloat16: bool = False  # multiply matrices in bfloat16: faster, less exact
    torch_deterministic: bool = True  # ask cuDNN for deterministic kernels only


# [shared: several agents]
class Step(NamedTuple):
    """What all N agents got from a step, in the order of the environment's names.

    In Envs every part has one dimension more, [E, N, ...], for E environments.
    """

    obs: np.ndarray  # [N, O] float32, what each agent acts on next; zeros where it is not live
    reward: np.ndarray  # [N] float32
    terminated: np.ndarray  # [N] bool, the agent's task ended in this step
    truncated: np.ndarray  # [N] bool, the agent was cut off in this step, as by a time limit
    live: np.ndarray  # [N] bool, the agent acts next; the episode is over when none does
    last_obs: np.ndarray  # [N, O], as obs, but not zero where an agent ended in this step


class MultiAgentEnv:
    """The N agents of a PettingZoo environment (parallel interface) as arrays of fixed order.

    An agent is live from its first observation until it ends. Otherwise its observation and reward
    are zero, and its action is ignored. An agent that leaves without notice counts as truncated.
    Observations that are shorter than another agent's are padded with zeros.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.names = env, list(env.possible_agents)
        self.space: Any = env.action_space(self.names[0])  # that of all agents
        self.discrete = isinstance(self.space, gym.spaces.Discrete)
        self.action_size = gym.spaces.flatdim(self.space)  # of a Discrete, its number of actions
        self.obs_spaces = [env.observation_space(name) for name in self.names]
        self.obs_size = max(map(gym.spaces.flatdim, self.obs_spaces))
        self.pixels = getattr(env, "pixels", 0)  # length of the image that ends an observation
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
                ends[i] = terminated.get(name, False)  # where both are true, this one counts
            ended = terminated.get(name, False) or truncated.get(name, False)
            self.live[i] = name in obs and name in self.env.agents and not ended
        self.obs = last_obs * self.live[:, None]
        last_obs = last_obs * (before | self.live)[:, None]
        return Step(self.obs, rewards, ends, before & ~self.live & ~ends, self.live, last_obs)

    def metrics(self) -> dict[str, float]:
        """Figures of the episode besides its return, such as the crossing's completion_rate."""
        return self.env.metrics() if hasattr(self.env, "metrics") else {}


class Envs:
    """The E = num_envs environments of a run side by side."""

    def __init__(self, args: Args) -> None:
        self.envs = [make_env(args) for _ in range(args.num_envs)]
        self.steps: dict[int, Step] = {}  # the last one of each environment

    def reset(self, seeds: list[int | None], where: np.ndarray) -> Step:
        """Begin an episode in the environments where the mask [E] is true."""
        for i in np.flatnonzero(where).tolist():
            self.steps[i] = self.envs[i].reset(seeds[i])
        return self.stack()

    def step(self, action: np.ndarray) -> Step:
        """Act in all environments: [E, N] integers, or [E, N, A] numbers in [-1, 1]."""
        for env, part in zip(self.envs, action):  # all compute, then all are waited for
            env.send(part)
        self.steps = {i: env.receive() for i, env in enumerate(self.envs)}
        return self.stack()

    def stack(self) -> Step:
        return Step(*(np.stack(parts) for parts in zip(*map(self.steps.get, range(len(self.envs))))))

    def close(self) -> None:
        for env in self.envs:
            env.env.close()


# [/shared]
# [shared: orthogonal]
def orthogonal(layer: nn.Conv2d | nn.Linear, gain: float = math.sqrt(2)) -> nn.Module:
    """The layer, initialised as is usual for on-policy learning; sqrt(2) suits a ReLU behind it."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]
    return layer


# [/shared]
class Body(nn.Module):
    """Hidden layers: observations [B, O] -> features [B, hidden]; the image has convolutions."""

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        super().__init__()
        self.pixels = env.pixels
        layers: list[nn.Module] = []
        fan_in = env.obs_size - env.pixels
        if env.pixels:
            self.eye = nn.Sequential(
                orthogonal(nn.Conv2d(3, 16, 4, stride=2)),  # [B, 16, 15, 15]
                nn.ReLU(),
                orthogonal(nn.Conv2d(16, 32, 3, stride=2)),  # [B, 32, 7, 7]
                nn.ReLU(),
                nn.Flatten(),
                orthogonal(nn.Linear(32 * 7 * 7, 64)),
                nn.ReLU(),
            )
            fan_in += 64
        for fan_out in args.hidden_sizes:
            layers += [orthogonal(nn.Linear(fan_in, fan_out)), nn.ReLU()]
            fan_in = fan_out
        self.layers, self.size = nn.Sequential(*layers), fan_in

    def forward(self, obs: Tensor) -> Tensor:
        if self.pixels:
            image = obs[:, -self.pixels :].view(-1, 3, 32, 32)
            obs = torch.cat([obs[:, : -self.pixels], self.eye(image)], dim=1)
        return self.layers(obs)


class ActorCritic(nn.Module):
    """The policy and the value, in separate networks, from an agent's own observation.

    For discrete actions the policy gives the logits; for continuous ones the mean, and a standard
    deviation is learnt that is the same for all observations.
    """

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        super().__init__()
        self.discrete = env.discrete
        actor, critic = Body(env, args), Body(env, args)
        # The small gain makes all actions about equally likely at first.
        self.policy = nn.Sequential(
            actor, orthogonal(nn.Linear(actor.size, env.action_size), gain=0.01)
        )
        self.value = nn.Sequential(critic, orthogonal(nn.Linear(critic.size, 1), gain=1.0))
        self.log_std = nn.Parameter(
            torch.full((env.action_size,), -0.5 if not self.discrete else 0.0)
        )

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [B, O] -> logits or means of the actions [B, A], value [B]."""
        return self.policy(obs).float(), self.value(obs).float().squeeze(1)

    def sample(self, policy: Tensor) -> Tensor:
        """Actions drawn from policy [B, A]: [B] integers, or [B, A] numbers."""
        if self.discrete:
            return policy.softmax(1).multinomial(1).squeeze(1)
        return policy + self.log_std.exp() * torch.randn_like(policy)

    def mode(self, policy: Tensor) -> Tensor:
        """The likeliest action of each."""
        return policy.argmax(1) if self.discrete else policy

    def log_prob(self, policy: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the action's probability [B], and the policy's entropy [B]."""
        if self.discrete:
            log_probs = policy.log_softmax(1)  # [B, A]
            chosen = log_probs.gather(1, action.unsqueeze(1)).squeeze(1)
            return chosen, -(log_probs.exp() * log_probs).sum(1)
        # Of each dimension: log N(a; μ, σ) = -(a - μ)²/2σ² - log σ - log(2π)/2, and the entropy is
        # log σ + log(2πe)/2.
        z = (action - policy) / self.log_std.exp()
        half = 0.5 * math.log(2 * math.pi)
        entropy = (self.log_std + half + 0.5).sum().expand(len(policy))
        return (-0.5 * z.square() - self.log_std - half).sum(1), entropy


class Batch(NamedTuple):
    """What agents lived through, drawn out of a rollout."""

    obs: Tensor  # [B, O]
    action: Tensor  # [B] or [B, A]
    log_prob: Tensor  # [B], of the action, when it was taken
    value: Tensor  # [B], at that time
    advantage: Tensor  # [B]
    returns: Tensor  # [B], what the value should have been
    live: Tensor  # [B], 1 where the agent acted; all else in a row with 0 is to be ignored


def live_mean(x: Tensor, live: Tensor) -> Tensor:
    """The mean of x [B] over the agents that were live."""
    return (x * live).sum() / live.sum().clamp(min=1)


# [shared: advantages]
def advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16), all [T, N].

    next_value is the value of the observation that an action led to; where a game was cut off, that
    is its last observation, so that what would have come still counts. terminated is 1 where
    nothing more can be earned; ended is 1 there and where a game was cut off, so that the next
    game's rewards are not credited to this one.
    """
    delta = reward + gamma * (1 - terminated) * next_value - value  # δ = r + γ V(s') - V(s)
    advantage, later = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        later = delta[t] + gamma * gae_lambda * (1 - ended[t]) * later  # A = δ + γ λ A'
        advantage[t] = later
    return advantage


# [/shared]
class Rollout:
    """What num_steps steps brought to M agents, in tensors [T, M, ...] made once."""

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        shape, device = (args.num_steps, args.num_envs * len(env.names)), args.device
        if math.prod(shape) % args.num_minibatches:
            samples = f"{math.prod(shape)}, the steps of all agents in a rollout"
            fail(f"--num-minibatches is {args.num_minibatches}, and must divide {samples}")
        self.obs = torch.zeros(*shape, env.obs_size, device=device)
        kind = torch.int64 if env.discrete else torch.float32
        size = () if env.discrete else (env.action_size,)
        self.action = torch.zeros(*shape, *size, dtype=kind, device=device)
        self.log_prob, self.reward, self.value, self.next_value = (
            torch.zeros(shape, device=device) for _ in range(4)
        )
        self.terminated, self.ended, self.live = (
            torch.zeros(shape, device=device) for _ in range(3)
        )

    @torch.no_grad()
    def collect(self, envs: Envs, act: Callable, args: Args) -> tuple[np.ndarray, ...]:
        """Play num_steps steps and note them.

        Returns, [T, num_envs] both, the agents' summed reward and where an episode was over.
        """

        # A part of the last step, with the agents of all environments in one row [M, ...].
        def row(name: str) -> Tensor:
            return to_tensor(np.concatenate(envs.part(name)), args.device)

        rewards = np.zeros((args.num_steps, args.num_envs), np.float32)
        over = np.zeros((args.num_steps, args.num_envs), bool)
        obs = row("obs")
        action, log_prob, value = act(obs)
        for t in range(args.num_steps):
            self.obs[t], self.action[t] = obs, action
            self.log_prob[t], self.value[t] = log_prob, value
            self.live[t] = row("live")

            envs.step(action.unflatten(0, (args.num_envs, -1)).cpu().numpy())
            reward, terminated, truncated = map(row, ("reward", "terminated", "truncated"))
            if not reward.isfinite().all():
                fail(f"{args.env_id} gave the reward {reward.tolist()}", code=1)
            rewards[t] = envs.part("reward").sum(1)
            self.reward[t] = args.reward_scale * reward
            self.terminated[t] = terminated
            # Every agent ends at a time of its own; later steps in its column are not of that life.
            self.ended[t] = torch.maximum(terminated, truncated)

            # Of an agent that is cut off, take the value of the last thing it saw.
            last_value = act(row("last_obs"))[2] if truncated.any() else value
            over[t] = envs.reset()
            obs = row("obs")
            action, log_prob, value = act(obs)
            self.next_value[t] = torch.where(truncated > 0, last_value, value)
        return rewards, over

    def batch(self, args: Args) -> Batch:
        """All steps as one batch [T * M], with their advantages."""
        steps = self.reward, self.value, self.next_value, self.terminated, self.ended
        advantage = advantages(*steps, args.gamma, args.gae_lambda)
        returns = advantage + self.value
        parts = (self.obs, self.action, self.log_prob, self.value, advantage, returns, self.live)
        return Batch(*(part.flatten(0, 1) for part in parts))


# [shared: adam]
class Adam(nn.Module):
    """Adam (Kingma & Ba 2015, algorithm 1), in place on the parameters that it is given.

    It computes what torch.optim.Adam does. It is written out so that a whole update compiles to one
    graph: in there, torch.optim's step would leave the weights as they are (torch 2.13).
    """

    def __init__(self, params: Iterable[Tensor], learning_rate: float, eps: float = 1e-8) -> None:
        super().__init__()
        self.params, self.eps = list(params), eps
        # A tensor: a plain number would be a constant of the graph, compiled anew at each change.
        self.learning_rate = nn.Buffer(torch.tensor(learning_rate), persistent=False)
        self.m = nn.ParameterList(torch.zeros_like(p) for p in self.params).requires_grad_(False)
        self.v = nn.ParameterList(torch.zeros_like(p) for p in self.params).requires_grad_(False)
        self.t = nn.Buffer(torch.zeros(()))

    @torch.no_grad()
    def step(self, grads: Iterable[Tensor], beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.t.add_(1)
        # 1 - β^t, with exp: compiled, a power would be repeated inside the loops over the weights.
        bias1, bias2 = (1 - torch.exp(self.t * math.log(beta)) for beta in (beta1, beta2))
        for p, g, m, v in zip(self.params, grads, self.m, self.v):
            m.lerp_(g, 1 - beta1)  # m = β1 m + (1 - β1) g
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)  # v = β2 v + (1 - β2) g²
            m_hat, v_hat = m / bias1, v / bias2
            p.sub_(self.learning_rate * m_hat / (v_hat.sqrt() + self.eps))


# [/shared]
class Agent(nn.Module):
    """The actor-critic that all agents share, and how it learns."""

    def __init__(self, env: MultiAgentEnv, args: Args) -> None:
        super().__init__()
        self.clip_coef, self.clip_value_loss = args.clip_coef, args.clip_value_loss
        self.entropy_coef, self.value_coef = args.entropy_coef, args.value_coef
        self.max_grad_norm, self.norm_advantage = args.max_grad_norm, args.norm_advantage
        self.greedy = args.greedy_eval
        self.net = ActorCritic(env, args)
        self.optimizer = Adam(self.net.parameters(), args.learning_rate, eps=1e-5)

    @torch.no_grad()
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Drawn actions [M] or [M, A], the logarithm of their probability [M], the value [M]."""
        policy, value = self.net(obs)
        action = self.net.sample(policy)
        return action, self.net.log_prob(policy, action)[0], value

    def eval_action(self, obs: Tensor) -> Tensor:
        """Actions as evaluated: the likeliest, or drawn."""
        policy, _ = self.net(obs)
        return self.net.mode(policy) if self.greedy else self.net.sample(policy)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The paper's equation 9, negated to be minimised, over the live agents; what to log."""
        policy, value = self.net(batch.obs)
        log_prob, entropies = self.net.log_prob(policy, batch.action)
        entropy = live_mean(entropies, batch.live)
        advantage = batch.advantage
        if self.norm_advantage:
            away = advantage - live_mean(advantage, batch.live)
            advantage = away / (live_mean(away.square(), batch.live).sqrt() + 1e-8)

        # L = E min(r A, clip(r, 1 - ε, 1 + ε) A),  r = π(a|s) / π_old(a|s)   (equation 7)
        log_ratio = (log_prob - batch.log_prob) * batch.live
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.clip_coef, 1 + self.clip_coef)
        gain = torch.min(ratio * advantage, clipped * advantage)
        policy_loss = -live_mean(gain, batch.live)

        error = (value - batch.returns).square()
        if self.clip_value_loss:
            change = (value - batch.value).clamp(-self.clip_coef, self.clip_coef)
            error = torch.max(error, (batch.value + change - batch.returns).square())
        value_loss = 0.5 * live_mean(error, batch.live)

        loss = policy_loss - self.entropy_coef * entropy + self.value_coef * value_loss
        with torch.no_grad():
            # An estimate of the Kullback-Leibler divergence that is never negative, with less
            # variance than the mean of -log r (Schulman 2020, joschu.net/blog/kl-approx.html).
            approx_kl = live_mean(ratio - 1 - log_ratio, batch.live)
            clip_fraction = live_mean(((ratio - 1).abs() > self.clip_coef).float(), batch.live)
        return loss, {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "approx_kl": approx_kl,
            "clipfrac": clip_fraction,
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from one minibatch: a step of Adam, on a gradient no longer than max_grad_norm."""
        loss, log = self.loss(batch)
        params = list(self.net.parameters())
        grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self.optimizer.step([grad * scale for grad in grads])
        return log


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint, and return the run folder."""
    start_torch(args)
    envs = Envs(args)
    eval_env = make_env(args, film=args.capture_video)
    agent = Agent(eval_env, args).to(args.device)
    rollout, run = Rollout(eval_env, args), Progress()
    if checkpoint:
        run = restore(checkpoint, agent, envs)
    run_dir = open_run(args)
    logger = AgentsLogger(args, run_dir, run.env_step, run.seconds)
    if checkpoint:
        logger.returns, logger.lengths = map(np.array, checkpoint["unfinished"])
    act, update = compiled(agent.act, args), compiled(agent.update, args)
    interrupt, saved_at, finished = Interrupt(), run.env_step, False

    while not finished:
        # Anneal
        start = run.env_step
        share_left = 1 - start / args.total_timesteps if args.anneal_lr else 1.0
        agent.optimizer.learning_rate.fill_(args.learning_rate * share_left)

        # Play
        rewards, over = rollout.collect(envs, act, args)
        run.env_step += args.num_steps * args.num_envs

        # Learn: several passes over the rollout, in minibatches shuffled anew for each
        data, logs = rollout.batch(args), []
        for _ in range(args.update_epochs):
            order = torch.randperm(len(data.live)).to(args.device)
            for index in order.chunk(args.num_minibatches):
                logs.append(update(Batch(*(part[index] for part in data))))
                run.updates += 1
            if args.target_kl is not None and logs[-1]["approx_kl"] > args.target_kl:
                break

        # Log
        finished = run.env_step >= args.total_timesteps
        for t in range(args.num_steps):
            logger.step(start + (t + 1) * args.num_envs, rewards[t], over[t])
        losses = {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
        alive = data.live > 0
        left = (data.returns - data.value)[alive].var(correction=0)
        spread = data.returns[alive].var(correction=0)
        losses["explained_variance"] = 1 - left / spread.clamp(min=1e-8)
        # What the last minibatch did to the weights shows in no loss yet.
        losses["weight_norm"] = nn.utils.get_total_norm(agent.net.parameters()).detach()
        logger.losses(run.env_step, losses)

        # Evaluate
        due = run.env_step // args.eval_interval > start // args.eval_interval
        if finished or due:
            result = evaluate(agent.eval_action, eval_env, args, run.env_step, run_dir / "videos")
            logger.evaluation(run.env_step, result)
            run.evaluations.append(result["mean_return"])
            if result["mean_return"] > run.best_return:
                run.best_return = result["mean_return"]
                save_checkpoint(run_dir / "best.pt", args, run, {"agent": agent.state_dict()})
            if args.stop_at_return is not None:
                last = run.evaluations[-3:]
                finished |= len(last) == 3 and min(last) >= args.stop_at_return

        # Save
        if finished or interrupt.number or run.env_step - saved_at >= args.save_interval:
            saved_at, run.seconds = run.env_step, logger.seconds()
            everything = whole_state(agent, envs)
            everything["unfinished"] = [logger.returns.tolist(), logger.lengths.tolist()]
            save_checkpoint(run_dir / "checkpoint.pt", args, run, everything)
            if interrupt.number:
                break

    logger.close()
    envs.close()
    eval_env.close()
    interrupt.end(run, run_dir, finished)
    return run_dir


# [shared: agents evaluation]
@torch.no_grad()
def evaluate(
    policy: Callable[[Tensor], Tensor], env: MultiAgentEnv, args: Args, env_step: int
) -> dict[str, Any]:
    """Play whole episodes with policy ([N, O] -> [N] or [N, A]); returns evaluations.csv's columns.

    An episode's return is the sum of its agents' returns; agent_returns are their means. Episodes
    and sampled actions depend on the step only, so a resumed run is evaluated like any other.
    """
    returns, lengths, metrics, frames = [], [], [], []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(args.seed + env_step)
        for episode in range(args.eval_episodes):
            step = env.reset(episode_seed(args.seed, 10_000, env_step, episode))
            episodic_return, length = np.zeros(len(env.names)), 0
            while step.live.any() and length < MAX_EPISODE:
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
    for name in metrics[0]:  # a time is not a number in episodes in which no agent arrived
        values = [values[name] for values in metrics if not math.isnan(values[name])]
        result[name] = float(np.mean(values)) if values else ""
    return result


# [/shared]
# From here on housekeeping: processes, the log, checkpoints, flags. The algorithm ends here.


# [shared: agents environment]
def make_env(args: Args, film: bool = False) -> MultiAgentEnv:
    """The environment of --env-id."""
    env = make_crossing(args) if args.env_id.startswith("smarts/") else make_parallel(args, film)
    spaces = [env.action_space(name) for name in env.possible_agents]
    space, discrete = spaces[0], isinstance(spaces[0], gym.spaces.Discrete)
    if isinstance(space, gym.spaces.Box) and space.dtype.kind == "f" and space.is_bounded():
        bounded = (space.low < space.high).all()
    else:
        bounded = False
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


def make_parallel(args: Args, film: bool) -> Any:
    """An environment of PettingZoo: package/name is the module that has its parallel_env."""
    package, _, name = args.env_id.replace("/", ".").rpartition(".")
    mode = {"render_mode": "rgb_array"} if film else {}
    try:
        make = importlib.import_module(f"{package}.{name}").parallel_env
        try:  # MPE has both kinds of actions
            return make(continuous_actions=args.action_type == "continuous", **mode)
        except TypeError:
            return make(**mode)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        near = ""
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
            names = [module.name for module in modules if module.name != name]
            near = "".join(difflib.get_close_matches(name, names, n=1))
            near = near and f"; did you mean {package}/{near}?"
        fail(
            f"cannot make {args.env_id}: {error}{near} (it takes package/name, as in "
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
    policies: dict[str | None, Callable[[Tensor], Tensor]] = {
        "random": lambda obs: random_action(env),
        "keep-lane": lambda obs: torch.zeros(len(env.names), dtype=torch.int64),
    }
    policy = policies.get(args.evaluate, agent.eval_action)
    result = evaluate(policy, env, args, checkpoint["run"]["env_step"] if checkpoint else 0)
    env.env.close()
    further = list(result)[list(result).index("agent_returns") :]
    say("; ".join(f"{name} {result[name]}" for name in further))
    return result


def random_action(env: MultiAgentEnv) -> Tensor:
    """Uniform random actions [N] or [N, A]."""
    if env.discrete:
        return torch.randint(env.action_size, (len(env.names),))
    return 2 * torch.rand(len(env.names), env.action_size) - 1


# [/shared]
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
def whole_state(agent: nn.Module, envs: Envs) -> dict[str, Any]:
    """What a run is between two rollouts: network, optimizer, generators, the episodes so far."""
    rng = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return {"agent": agent.state_dict(), "envs": envs.state(), "torch_rng": rng}


def restore(checkpoint: dict[str, Any], agent: nn.Module, envs: Envs) -> Progress:
    """Put back what whole_state took, and return the run's counters."""
    agent.load_state_dict(checkpoint["agent"])
    envs.restore(checkpoint["envs"])
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
AT_LEAST_1 = """total_timesteps num_envs num_steps num_minibatches update_epochs eval_interval
    eval_episodes save_interval horizon hidden_sizes"""
AT_LEAST_0 = """seed learning_rate reward_scale clip_coef entropy_coef value_coef max_grad_norm
    target_kl"""
FROM_0_TO_1 = "gamma gae_lambda"
FIXED = """env_id seed num_envs num_steps action_type traffic turn image horizon hidden_sizes"""
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
