"""Soft Actor-Critic (SAC): maximise the return and the randomness of the actions together.

The policy π(a|s) is a probability distribution over actions. Its entropy, which measures how random
it is, is added to the reward with a weight α, the temperature, so the agent explores by itself. The
critics learn the value of reward plus entropy, and α is adjusted until the entropy meets a target.

    act        a ~ π(·|s), and store (s, a, r, terminated, s')
    α          raise α if the entropy, the mean of -log π(a|s), is below its target; else lower it
    critics    minimise Σ_i (Q_i(s, a) - y)²,  y = r + γ (1 - terminated) V(s'),
               where V(s') = min_i Q'_i(s', a') - α log π(a'|s') and a' ~ π(·|s')
    actor      minimise α log π(a|s) - min_i Q_i(s, a)
    targets    θ' = τ θ + (1 - τ) θ'

Papers: Haarnoja et al. 2018, arXiv:1801.01290 (first paper) and arXiv:1812.05905 (second paper)
Run:    python sac_continuous.py --env-id HopperBulletEnv-v0 --anneal-lr --bfloat16
Expect: a return of 2555 after 1M steps (mean of three seeds)
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import dataclasses
import json
import math
import os
import shlex
import signal
import sys
import time
import typing
import warnings
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
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from pydantic import Field, NonNegativeFloat, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = Path(__file__).stem
MAX_EPISODE = 100_000  # steps after which an evaluation cuts an episode off
T = TypeVar("T")
Fixed = Annotated[T, "fixed"]  # a flag that --resume and --evaluate cannot change
Fraction = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Baseline = Literal["untrained", "random"]  # policies that need no checkpoint
WeightsInit = Literal["default", "xavier", "uniform", "orthogonal", "normal"]


@dataclasses.dataclass
class Args:
    # Task. Lengths are in environment steps, summed over all parallel environments.
    env_id: Fixed[str] = "HopperBulletEnv-v0"  # any Gymnasium id with continuous (Box) actions
    total_timesteps: PositiveInt = 1_000_000  # length of the training
    num_envs: Fixed[PositiveInt] = 1  # parallel environments; the updates per action stay the same
    action_repeat: Fixed[PositiveInt] = 1  # steps that each action is held for; rewards are added
    seed: Fixed[Seed] = 1  # random seed of the networks, the noise and the environments

    # Networks
    actor_hidden_sizes: Fixed[tuple[PositiveInt, ...]] = (256, 256)  # units of each hidden layer
    critic_hidden_sizes: Fixed[tuple[PositiveInt, ...]] = (256, 256)  # units of each hidden layer
    layer_norm: Fixed[bool] = False  # layer normalisation before each ReLU
    weights_init: WeightsInit = "default"  # weights, see init_layer
    bias_init: Literal["default", "zeros", "uniform"] = "default"  # biases, see init_layer

    # Learning. Learning rates, tau, gamma and buffer size are RL Zoo's for PyBullet.
    gamma: Fraction = 0.98  # discount factor; the paper's is 0.99
    tau: Fraction = 0.02  # weight of the online network in a target's update; the paper's is 0.005
    actor_learning_rate: NonNegativeFloat = 7.3e-4  # of Adam; the paper's is 3e-4
    critic_learning_rate: NonNegativeFloat = 7.3e-4  # of Adam; the paper's is 3e-4
    anneal_lr: bool = False  # anneal the learning rates linearly to 0 over the run
    batch_size: PositiveInt = 256  # transitions per update
    buffer_size: Fixed[PositiveInt] = 300_000  # transitions stored; new ones overwrite the oldest
    learning_starts: Steps = 10_000  # steps of uniform random actions before learning
    update_every: PositiveInt = 1  # n: make n * updates_per_step updates after every n actions
    updates_per_step: PositiveInt = 1  # updates per action
    num_critics: Fixed[PositiveInt] = 2  # critics; the target uses the smallest of their values

    # Temperature: the weight of the entropy beside the reward
    autotune: Fixed[bool] = True  # learn the temperature; otherwise it is --alpha
    alpha: Fixed[NonNegativeFloat] = 0.2  # temperature with --no-autotune
    init_alpha: Fixed[Annotated[float, Field(gt=0)]] = 1.0  # initial temperature, if learned
    max_alpha: Annotated[float, Field(gt=0)] = 10.0  # largest temperature, if learned
    alpha_learning_rate: NonNegativeFloat = 7.3e-4  # of Adam on log alpha; the paper's is 3e-4
    target_entropy: Literal["auto"] | float = "auto"  # nats; auto: minus the action's dimensions

    # Evaluation, without noise, in a separate environment
    eval_interval: PositiveInt = 25_000  # steps between evaluations
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
        learned = "init_alpha", "max_alpha", "alpha_learning_rate", "target_entropy"
        for name in ("alpha",) if self.autotune else learned:
            if getattr(self, name) != getattr(Args, name):
                needed = "--no-autotune" if self.autotune else "--autotune"
                fail(f"--{name.replace('_', '-')} needs {needed}, and has no effect without it")
        if self.init_alpha > self.max_alpha:
            fail(f"--init-alpha is {self.init_alpha}, more than --max-alpha {self.max_alpha}")


# [shared: continuous environment]
def make_env(args: Args, film: bool = False) -> gym.Env:
    """One environment with observations [O] in float32 and actions [A] in [-1, 1]."""
    env_id = args.env_id
    try:
        if "BulletEnv" in env_id:
            import pybullet_envs_gymnasium  # noqa: F401 (registers its environments)
        if env_id.startswith("dm_control/"):
            with warnings.catch_warnings():  # importing shimmy turns all warnings on
                import shimmy  # noqa: F401
        render_mode: dict[str, Any] = {"render_mode": "rgb_array"} if film else {}
        env = gym.make(env_id, disable_env_checker=True, **render_mode)
    except (gym.error.Error, ImportError, TypeError) as error:  # its message names similar ids
        fail(f"cannot make {env_id}: {error} (pip install -r requirements.txt installs everything)")
    check_spaces(env, env_id)
    if film:
        check_video(env, env_id)
        if env_id.startswith("dm_control/"):  # shimmy's own value is 10 for every task
            env.metadata["render_fps"] = round(1 / env.get_wrapper_attr("_env").control_timestep())
    space = env.observation_space
    flatten = lambda obs: np.asarray(gym.spaces.flatten(space, obs), np.float32)  # noqa: E731
    flat_space = gym.spaces.Box(-np.inf, np.inf, (gym.spaces.flatdim(space),), np.float32)
    env = gym.wrappers.TransformObservation(env, flatten, flat_space)
    # Some environments give rewards of shape (1,).
    env = gym.wrappers.TransformReward(env, lambda reward: np.asarray(reward).item())
    env = ActionRepeat(env, args.action_repeat) if args.action_repeat > 1 else env
    return gym.wrappers.RescaleAction(env, *np.array([-1, 1], env.action_space.dtype))


def dimensions(env: gym.Env) -> tuple[int, int]:
    """The sizes O and A of one observation and one action."""
    return gym.spaces.flatdim(env.observation_space), gym.spaces.flatdim(env.action_space)


# [/shared]
# [shared: mlp]
class OutputLayer(nn.Linear):
    """A network's last layer, in float32 even with --bfloat16: outputs need the precision."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def mlp(sizes: list[int], args: Args) -> nn.Sequential:
    """Linear layers with ReLU between them: [B, sizes[0]] -> [B, sizes[-1]]."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes, sizes[1:-1]):
        norm = [nn.LayerNorm(fan_out)] if args.layer_norm else []
        layers += [init_layer(nn.Linear(fan_in, fan_out), args), *norm, nn.ReLU()]
    return nn.Sequential(*layers, init_layer(OutputLayer(sizes[-2], sizes[-1]), args))


# [/shared]
class Actor(nn.Module):
    """The policy π(a|s): a Gaussian for each action dimension, squashed into [-1, 1] by tanh."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args) -> None:
        super().__init__()
        self.net = mlp([obs_dim, *args.actor_hidden_sizes, 2 * action_dim], args)

    def mean_and_std(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The Gaussian's mean and standard deviation, both [B, A], for observations [B, O]."""
        mean, log_std = self.net(obs).chunk(2, dim=1)
        # Clamped, but the gradient passes beyond the bounds too: without it, a standard deviation
        # that has grown too large could not shrink again, and the temperature would rise forever.
        log_std = log_std + (log_std.clamp(-20, 2) - log_std).detach()
        return mean, log_std.exp()

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled actions [B, A], differentiable in the parameters, and their log π(a|s) [B]."""
        mean, std = self.mean_and_std(obs)
        xi = torch.randn_like(mean)
        u = mean + std * xi  # reparameterised: the noise does not depend on the parameters
        gaussian = -0.5 * xi.square() - std.log() - 0.5 * math.log(2 * math.pi)
        # log π(a|s) = Σ log N(u) - log(1 - tanh²(u)) (first paper, equation 21). The second term,
        # written as 2 (log 2 - u - softplus(-2u)), stays exact where tanh rounds to ±1.
        squash = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), (gaussian - squash).sum(1)

    def forward(self, obs: Tensor) -> Tensor:
        """The deterministic action for evaluation, tanh of the mean [B, A]."""
        return torch.tanh(self.mean_and_std(obs)[0])


class Critic(nn.Module):
    """The action value Q: observation [B, O], action [B, A] -> expected discounted return [B]."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args) -> None:
        super().__init__()
        self.net = mlp([obs_dim + action_dim, *args.critic_hidden_sizes, 1], args)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        hidden = self.net[:-1](torch.cat([obs, action], dim=1))  # [B, H]
        last: Any = self.net[-1]
        # [B], not [B, 1]: a loss of [B, 1] against [B] would broadcast to [B, B]. With the last
        # layer written as a sum, an update takes 3% less time.
        return (hidden * last.weight[0]).sum(1) + last.bias


# [shared: replay buffer]
class Batch(NamedTuple):
    """Transitions sampled from the replay buffer."""

    obs: Tensor  # [B, O]
    action: Tensor  # [B, A]
    reward: Tensor  # [B]
    terminated: Tensor  # [B], 1 where the task itself ended, 0 at a time limit
    next_obs: Tensor  # [B, O]; at the end of an episode, its last observation


class ReplayBuffer(nn.Module):
    """The last transitions, in preallocated tensors; new ones overwrite the oldest."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args) -> None:
        super().__init__()
        # A multiple of num_envs, so that one step of all environments is never split.
        self.capacity = args.buffer_size // args.num_envs * args.num_envs
        self.obs = nn.Buffer(torch.zeros(self.capacity, obs_dim))
        self.action = nn.Buffer(torch.zeros(self.capacity, action_dim))
        self.reward = nn.Buffer(torch.zeros(self.capacity))
        self.terminated = nn.Buffer(torch.zeros(self.capacity))
        self.next_obs = nn.Buffer(torch.zeros(self.capacity, obs_dim))
        self.added = 0  # transitions added so far, including overwritten ones

    def add(self, *transition: np.ndarray | Tensor) -> None:
        """Store a transition of every environment: the fields of Batch in order, each [N, ...]."""
        start = self.added % self.capacity
        self.added += len(transition[0])
        for name, value in zip(Batch._fields, transition):
            getattr(self, name)[start : start + len(value)] = torch.as_tensor(value)

    def sample(self, batch_size: int) -> Batch:
        """Transitions sampled uniformly, with replacement."""
        size = min(self.added, self.capacity)
        index = torch.randint(size, (batch_size,), device=self.obs.device)
        return Batch(*(getattr(self, name).index_select(0, index) for name in Batch._fields))

    def get_extra_state(self) -> int:
        return self.added

    def set_extra_state(self, added: int) -> None:
        self.added = added


# [/shared]
class Agent(nn.Module):
    """A policy, several critics with their target copies, a temperature, and their updates."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args) -> None:
        super().__init__()
        self.gamma, self.tau, self.autotune = args.gamma, args.tau, args.autotune
        self.actor = Actor(obs_dim, action_dim, args)
        critics = [Critic(obs_dim, action_dim, args) for _ in range(args.num_critics)]
        self.critics = nn.ModuleList(critics)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.actor_optimizer = Adam(self.actor.parameters(), args.actor_learning_rate)
        self.critic_optimizer = Adam(self.critics.parameters(), args.critic_learning_rate)
        # log α is learned, since this keeps α positive and makes its steps proportional to it
        alpha = args.init_alpha if args.autotune else args.alpha
        self.log_alpha = nn.Parameter(torch.tensor(alpha).log())
        self.max_log_alpha = math.log(args.max_alpha)
        self.alpha_optimizer = Adam([self.log_alpha], args.alpha_learning_rate)
        self.target_entropy = -action_dim if args.target_entropy == "auto" else args.target_entropy

    def critic_loss(self, batch: Batch, alpha: Tensor) -> Tensor:
        """Half the mean squared soft Bellman error, summed over critics (second paper, eq. 5)."""
        with torch.no_grad():
            next_action, next_log_prob = self.actor.sample(batch.next_obs)  # [B, A], [B]
            next_values = [critic(batch.next_obs, next_action) for critic in self.target_critics]
            # The soft value: V(s') = min_i Q'_i(s', a') - α log π(a'|s')   [B]
            next_value = torch.stack(next_values).amin(0) - alpha * next_log_prob
            # y = r + γ (1 - terminated) V(s')   [B]
            # A time limit ends an episode but not the task, so y keeps the value of s'.
            target = batch.reward + self.gamma * (1 - batch.terminated) * next_value
        values = [critic(batch.obs, batch.action) for critic in self.critics]  # [B] each
        return 0.5 * torch.stack([F.mse_loss(value, target) for value in values]).sum()

    def actor_loss(self, obs: Tensor, action: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
        """Mean of α log π(a|s) - min_i Q_i(s, a), with a ~ π(·|s) (second paper, equation 7)."""
        value = torch.stack([critic(obs, action) for critic in self.critics]).amin(0)  # [B]
        return (alpha * log_prob - value).mean()

    def alpha_loss(self, log_prob: Tensor) -> Tensor:
        """Minimising it raises log α if the entropy is below its target (second paper, eq. 18)."""
        return -(self.log_alpha * (log_prob.detach() + self.target_entropy)).mean()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch (second paper, algorithm 1); returns the losses by name."""
        alpha = self.log_alpha.detach().exp()
        action, log_prob = self.actor.sample(batch.obs)  # [B, A], [B]
        if self.autotune:
            grads = torch.autograd.grad(self.alpha_loss(log_prob), [self.log_alpha])
            self.alpha_optimizer.step(grads)
            with torch.no_grad():
                self.log_alpha.clamp_(max=self.max_log_alpha)

        critic_loss = self.critic_loss(batch, alpha)
        grads = torch.autograd.grad(critic_loss, list(self.critics.parameters()))
        self.critic_optimizer.step(grads)

        actor_loss = self.actor_loss(batch.obs, action, log_prob, alpha)
        grads = torch.autograd.grad(actor_loss, list(self.actor.parameters()))
        self.actor_optimizer.step(grads)

        self.update_target(self.target_critics, self.critics)
        losses = {"qf_loss": critic_loss, "actor_loss": actor_loss, "entropy": -log_prob.mean()}
        return {name: loss.detach() for name, loss in losses.items()} | {"alpha": alpha}

    @torch.no_grad()
    def update_target(self, target: nn.Module, online: nn.Module) -> None:
        """θ' = τ θ + (1 - τ) θ'."""
        for target_param, param in zip(target.parameters(), online.parameters()):
            target_param.lerp_(param, self.tau)

    def anneal_lr(self, args: Args, env_step: int) -> None:
        """Set the learning rates, which fall linearly to 0 at the end of the run."""
        left = max(1 - env_step / args.total_timesteps, 0.0)
        self.actor_optimizer.learning_rate.fill_(args.actor_learning_rate * left)
        self.critic_optimizer.learning_rate.fill_(args.critic_learning_rate * left)
        self.alpha_optimizer.learning_rate.fill_(args.alpha_learning_rate * left)


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint; returns the run folder."""
    start_torch(args)
    off = AutoresetMode.DISABLED  # otherwise next_obs may belong to the next episode
    envs = SyncVectorEnv([lambda: make_env(args)] * args.num_envs, autoreset_mode=off)
    eval_env = make_env(args, film=args.capture_video)
    obs_dim, action_dim = dimensions(eval_env)
    agent = Agent(obs_dim, action_dim, args).to(args.device)
    if not agent.target_entropy < action_dim * math.log(2):  # the entropy of uniform actions
        fail(f"--target-entropy is {args.target_entropy}; it must be below {0.69 * action_dim:.2f}")
    buffer = ReplayBuffer(obs_dim, action_dim, args).to(args.device)
    run = Run(args, checkpoint, agent=agent, buffer=buffer)
    update = compiled(agent.update, args)
    losses: dict[str, Tensor] = {}
    ended = np.ones(args.num_envs, bool)  # every environment begins an episode

    while not run.done:
        if ended.any():
            obs, _ = envs.reset(seed=run.episode_seeds(), options={"reset_mask": ended})
            run.check_finite(observation=obs)

        # Act: uniformly at first, so that the buffer starts with diverse actions
        if run.env_step < args.learning_starts:
            action = 2 * torch.rand(args.num_envs, action_dim) - 1
        else:
            with torch.no_grad():
                action, _ = agent.actor.sample(to_tensor(obs, args.device))

        # Step and store
        next_obs, reward, terminated, truncated, _ = envs.step(action.cpu().numpy())
        run.check_finite(observation=next_obs, reward=reward)
        buffer.add(obs, action, reward, terminated, next_obs)
        obs, ended = next_obs, terminated | truncated
        run.step(reward, ended, steps=args.action_repeat)

        # Learn, when the number of actions has passed a multiple of the interval
        actions = run.env_step // args.action_repeat
        interval = max(args.update_every, args.num_envs)
        if run.env_step > args.learning_starts and actions % interval < args.num_envs:
            if args.anneal_lr:
                agent.anneal_lr(args, run.env_step)
            for _ in range(interval * args.updates_per_step):
                run.updates += 1
                batch = buffer.sample(args.batch_size)
                losses |= update(batch)
            run.log_losses(losses)

        run.evaluate_if_due(lambda: evaluate(agent.actor, eval_env, args, run.env_step))
        run.save_if_due(episode_ended=bool(ended.any()))

    envs.close()
    eval_env.close()
    return run.close()


# [shared: evaluation]
@torch.no_grad()
def evaluate(
    policy: Callable[[Tensor], Tensor], env: gym.Env, args: Args, env_step: int
) -> dict[str, float]:
    """Play whole episodes with policy ([1, O] -> [1, A]); returns the columns of evaluations.csv.

    The episodes' seeds depend on the step only, so a resumed run gives the same evaluations.
    """
    returns, lengths, frames = [], [], []
    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=episode_seed(args.seed, 10_000, env_step, episode))
        episodic_return, length, ended = 0.0, 0, False
        while not ended:
            check_finite(f"in the evaluation at step {env_step}", observation=obs)
            if args.capture_video and episode == 0:
                frames.append(env.render())
            action = policy(to_tensor(obs, args.device).unsqueeze(0)).squeeze(0)
            obs, reward, terminated, truncated, _ = env.step(action.cpu().numpy())
            episodic_return, length = episodic_return + float(reward), length + args.action_repeat
            ended = terminated or truncated or length >= MAX_EPISODE
        returns.append(episodic_return)
        lengths.append(length)
    if frames:
        fps = env.metadata.get("render_fps", 30) // args.action_repeat
        save_video(frames, max(fps, 1), args, env_step)
    return summary(returns, lengths)


# [/shared]
# Housekeeping: rarer options, run folder, checkpoints, flags. The algorithm ends here.


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
# [shared: action repeat]
class ActionRepeat(gym.Wrapper):
    """Hold each action for several steps, or until the episode ends; the rewards are added.

    gamma discounts per action. An episode's last action counts with all its steps, also where the
    episode ends within them.
    """

    def __init__(self, env: gym.Env, repeat: int) -> None:
        super().__init__(env)
        self.repeat = repeat

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


# [/shared]
# [shared: spaces]
def check_spaces(env: gym.Env, env_id: str) -> None:
    """Exit if the networks cannot handle the actions or the observations."""
    space, obs_space = env.action_space, env.observation_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
        kind = "a flat Box of floats, as in Pendulum-v1"
        fail(f"{env_id} has actions {space}; {SCRIPT} needs {kind}")
    width = space.high.astype(float) - space.low
    if not ((width > 0) & (width < 1e38)).all():
        fail(f"{env_id} has actions {space}; {SCRIPT} needs finite bounds with low < high")
    if not obs_space.is_np_flattenable:
        fail(f"{env_id} has observations {obs_space}, which do not flatten to a vector")


# [/shared]
# [shared: init layer]
def init_layer(layer: nn.Linear, args: Args) -> nn.Linear:
    """Initialise a layer of mlp; "default" is PyTorch's.

    "uniform" is that of Lillicrap et al. 2015, section 7: ±1/sqrt(fan in), and ±0.003 in the last
    layer, so that the initial actions and values are near 0. "normal" has the
    standard deviation 1/sqrt(fan in).
    """
    last = isinstance(layer, OutputLayer)
    bound, gain = (3e-3, 1.0) if last else (layer.in_features**-0.5, math.sqrt(2))
    inits: dict[str, Callable] = {
        "default": lambda tensor: tensor,
        "xavier": nn.init.xavier_uniform_,
        "uniform": lambda tensor: nn.init.uniform_(tensor, -bound, bound),
        "orthogonal": lambda tensor: nn.init.orthogonal_(tensor, gain),
        "normal": lambda tensor: nn.init.normal_(tensor, 0.0, layer.in_features**-0.5),
        "zeros": nn.init.zeros_,
    }
    inits[args.weights_init](layer.weight)
    inits[args.bias_init](layer.bias)
    return layer


# [/shared]
def play(args: Args, checkpoint: dict[str, Any] | None) -> dict[str, float]:
    """Evaluate the policy that --evaluate names."""
    start_torch(args)
    env = make_env(args, film=args.capture_video)
    agent = Agent(*dimensions(env), args).to(args.device)
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"])
    random = lambda obs: 2 * torch.rand_like(agent.actor(obs)) - 1  # noqa: E731
    policy = random if args.evaluate == "random" else agent.actor
    result = evaluate(policy, env, args, checkpoint["run"]["env_step"] if checkpoint else 0)
    env.close()
    return result


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
#   "torch==2.13.0", "gymnasium==1.4.0", "pybullet==3.2.7", "pybullet-envs-gymnasium==0.6.0",
#   'numpy==2.4.6; python_version >= "3.11"', 'numpy==2.2.6; python_version < "3.11"',
#   "tyro==1.0.17", "pydantic==2.14.4", "filelock==4.3.1", "tqdm==4.70.1", "tensorboard==2.21.0",
# ]
# ///
