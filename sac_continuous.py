"""Soft Actor-Critic (SAC): learn what pays, while acting as randomly as that allows.

The policy is a probability distribution over actions, and its entropy (how random it is) counts as
a reward, weighted by the temperature α. So the agent explores of its own accord, and keeps several
ways of doing well. Two critics learn the value of reward and entropy together; the policy is moved
towards the actions they like, and α is tuned until the entropy meets its target.

Papers: Haarnoja et al. 2018, Soft Actor-Critic, arXiv:1801.01290
        Haarnoja et al. 2018, Soft Actor-Critic algorithms and applications, arXiv:1812.05905
Run:    python sac_continuous.py --env-id HopperBulletEnv-v0 --anneal-learning-rate --bfloat16
Score:  HopperBulletEnv-v0 2555 after 1M steps, three seeds (benchmark/studies/sac_hopper.sh);
        dm_control/walker-walk-v0 964 after 500,000, three seeds; dm_control/cartpole-swingup-v0
        864 after 100,000, three seeds; both with the flags of benchmark/studies/sac_dmc.sh
Watch:  tensorboard --logdir runs
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TextIO

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from gymnasium.utils.save_video import save_video
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = Path(__file__).stem


@dataclass
class Args:
    # Task. Every length below is in environment steps, summed over all parallel environments.
    env_id: str = "HopperBulletEnv-v0"  # any gymnasium id with continuous (Box) actions
    total_timesteps: int = 1_000_000  # length of the training
    num_envs: int = 1  # environments stepped side by side; the updates per step stay the same
    seed: int = 1  # of the networks, the noise and the environments

    # Networks
    actor_hidden_sizes: tuple[int, ...] = (256, 256)  # units of each hidden layer
    critic_hidden_sizes: tuple[int, ...] = (256, 256)  # units of each hidden layer
    num_critics: int = 2  # critics; the least of their values counts
    layer_norm: bool = False  # normalise hidden layers before their ReLU
    weights_init: Literal["default", "xavier", "uniform", "orthogonal"] = "default"  # see mlp
    bias_init: Literal["default", "zeros", "uniform"] = "default"  # see mlp

    # Learning. The rates, tau, gamma and the buffer are what RL Zoo found best for PyBullet.
    gamma: float = 0.98  # discount per step; the paper's is 0.99
    tau: float = 0.02  # share of the online critics that flows into their targets at an update
    actor_learning_rate: float = 7.3e-4  # Adam's step size; the paper's is 3e-4
    critic_learning_rate: float = 7.3e-4  # Adam's step size; the paper's is 3e-4
    anneal_learning_rate: bool = False  # let all rates fall to 0 over the run, linearly
    batch_size: int = 256  # transitions per update
    buffer_size: int = 300_000  # transitions remembered; the oldest are overwritten
    learning_starts: int = 10_000  # steps of uniform random actions before the first update
    updates_per_step: int = 1  # updates per environment step
    update_every: int = 1  # steps between rounds of updates; a round does those of all its steps

    # Temperature: what a nat of entropy is worth in reward
    autotune: bool = True  # learn it; otherwise it stays at alpha
    alpha: float = 0.2  # the temperature that --no-autotune keeps
    init_alpha: float = 1.0  # where learning it starts
    max_alpha: float = 10.0  # the most that learning it can reach
    alpha_learning_rate: float = 7.3e-4  # Adam's step size, on log α
    target_entropy: Literal["auto"] | float = "auto"  # nats over all A action dimensions; auto: -A

    # Generalised state-dependent exploration (Raffin et al. 2021); see Actor
    use_sde: bool = False  # smooth noise, a function of the state, in place of new noise every step
    sde_log_std: float = -3.0  # log of the deviation of W's entries at first
    sde_sample_interval: int = 8  # steps of each environment from one draw of W to the next

    # Evaluation, without noise and in an environment of its own
    eval_interval: int = 25_000  # steps from one evaluation to the next
    eval_episodes: int = 10  # episodes in an evaluation
    stop_at_return: float | None = None  # stop once the last 3 evaluations are all at least this
    capture_video: bool = False  # film the first episode of every evaluation
    evaluate: str | None = None  # play, do not train: a run folder, a .pt file, untrained or random

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


# [shared: continuous environment]
def make_env(env_id: str, film: bool = False) -> gym.Env:
    """One environment with a flat observation [O] and an action in [-1, 1] per dimension [A].

    Fails if there is no such environment, or its actions are not continuous and bounded.
    """
    try:
        if "BulletEnv" in env_id:
            import pybullet_envs_gymnasium  # noqa: F401 (registers its environments)
        if env_id.startswith("dm_control/"):
            with warnings.catch_warnings():  # DM Control's import turns them all on
                import shimmy  # noqa: F401
        render_mode = "rgb_array" if film else None
        env = gym.make(env_id, render_mode=render_mode, disable_env_checker=True)
    except (gym.error.Error, ImportError) as error:  # gymnasium names what is near, or missing
        fail(f"cannot make {env_id}: {error} (pip install -r requirements.txt installs everything)")
    space, obs_space = env.action_space, env.observation_space
    if not isinstance(space, gym.spaces.Box) or not space.is_bounded() or len(space.shape) != 1:
        fail(f"{env_id} has actions {space}; {SCRIPT} takes a bounded, flat Box, as in Pendulum-v1")
    if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)  # dictionaries, images
    low, high = np.array([-1, 1], space.dtype)
    return gym.wrappers.RescaleAction(env, low, high)


def dimensions(env: gym.Env) -> tuple[int, int]:
    """The sizes O and A of one observation and one action."""
    return gym.spaces.flatdim(env.observation_space), gym.spaces.flatdim(env.action_space)


# [/shared]
# [shared: mlp]
def mlp(sizes: list[int], args: Args) -> nn.Sequential:
    """Linear layers with ReLU between them: [B, sizes[0]] -> [B, sizes[-1]].

    The initialisation "uniform" is that of Lillicrap et al. 2015, section 7: ±1/sqrt(fan in), and
    ±0.003 in the last layer, so that first actions and values are near 0. "default" is PyTorch's.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:])):
        last = i == len(sizes) - 2
        linear = nn.Linear(fan_in, fan_out)
        bound = 3e-3 if last else fan_in**-0.5
        if args.weights_init == "xavier":
            nn.init.xavier_uniform_(linear.weight)
        elif args.weights_init == "orthogonal":
            nn.init.orthogonal_(linear.weight, gain=1.0 if last else math.sqrt(2))
        elif args.weights_init == "uniform":
            nn.init.uniform_(linear.weight, -bound, bound)
        if args.bias_init == "zeros":
            nn.init.zeros_(linear.bias)
        elif args.bias_init == "uniform":
            nn.init.uniform_(linear.bias, -bound, bound)
        layers.append(linear)
        if not last:
            layers += [nn.LayerNorm(fan_out), nn.ReLU()] if args.layer_norm else [nn.ReLU()]
    return nn.Sequential(*layers)


# [/shared]
class Actor(nn.Module):
    """The policy π(a|s): a Gaussian for every action dimension, squashed into [-1, 1] by tanh.

    With --use-sde the noise is a linear function of the last hidden layer, φ(s) W, in which W is
    drawn now and then: until the next draw, the same state meets the same noise, and the motion is
    smooth. Over all draws of W, φ(s) W is a Gaussian again, of deviation sqrt(φ² σ²). Learning sees
    that Gaussian, as if the noise did not last from step to step; only explore() needs W itself.
    """

    def __init__(self, obs_dim: int, action_dim: int, args: Args) -> None:
        super().__init__()
        self.use_sde = args.use_sde
        if args.use_sde and not args.actor_hidden_sizes:
            fail("--use-sde needs a hidden layer, as --actor-hidden-sizes 256")
        outputs = action_dim if args.use_sde else 2 * action_dim
        net = mlp([obs_dim, *args.actor_hidden_sizes, outputs], args)
        self.body, self.head = net[:-1], net[-1]
        if args.use_sde:
            shape = (args.actor_hidden_sizes[-1], action_dim)
            self.log_sigma = nn.Parameter(torch.full(shape, args.sde_log_std))  # [F, A]
            self.sde_noise = nn.Buffer(torch.zeros(args.num_envs, *shape))  # W: [N, F, A]
            self.draw_sde_noise()

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The Gaussian's mean and deviation [B, A] before tanh, and the features φ [B, F]."""
        features = self.body(obs)
        output = self.head(features).float()  # in bfloat16, tanh below would be ±1 from 3.5 on
        if self.use_sde:
            variance = features.square() @ self.log_sigma.exp().square()
            return output, (variance.float() + 1e-6).sqrt(), features
        mean, log_std = output.chunk(2, dim=1)
        # Clamped, but with a gradient beyond the bounds too: without it, a deviation that has
        # grown too large would stay so, and the temperature would rise for ever.
        log_std = log_std + (log_std.clamp(-20, 2) - log_std).detach()
        return mean, log_std.exp(), features

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Random actions [B, A], differentiable in the parameters, and their log π(a|s) [B]."""
        mean, std, _ = self(obs)
        xi = torch.randn_like(mean)
        u = mean + std * xi  # reparameterised: the noise does not depend on the parameters
        gaussian = -0.5 * xi.square() - std.log() - 0.5 * math.log(2 * math.pi)
        # log π(a|s) = Σ log N(u) - log(1 - tanh²(u)) (first paper, equation 21). The second term,
        # written as 2 (log 2 - u - softplus(-2u)), stays exact where tanh rounds to ±1.
        squash = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), (gaussian - squash).sum(1)

    @torch.no_grad()
    def explore(self, obs: Tensor) -> Tensor:
        """Random actions [N, A] to act with, for the observations [N, O] of the environments."""
        if not self.use_sde:
            return self.sample(obs)[0]
        mean, _, features = self(obs)
        return torch.tanh(mean + torch.einsum("nf,nfa->na", features, self.sde_noise))

    @torch.no_grad()
    def draw_sde_noise(self) -> None:
        """A new W for every environment, from N(0, σ²)."""
        self.sde_noise.copy_(self.log_sigma.exp() * torch.randn_like(self.sde_noise))

    def mean_action(self, obs: Tensor) -> Tensor:
        """The action without noise, tanh of the Gaussian's mean [B, A]; this is evaluated."""
        return torch.tanh(self(obs)[0])


class Critic(nn.Module):
    """The action value Q: observation [B, O], action [B, A] -> expected discounted return [B]."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args) -> None:
        super().__init__()
        self.net = mlp([obs_dim + action_dim, *args.critic_hidden_sizes, 1], args)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        hidden = self.net[:-1](torch.cat([obs, action], dim=1))  # [B, H]
        last: Any = self.net[-1]
        # One sum per row: [B], in float32 even with --bfloat16, and faster when compiled than the
        # layer's [B, 1], which a loss against [B] would broadcast to [B, B] with only a warning.
        return (hidden * last.weight[0]).sum(1) + last.bias


# [shared: replay buffer]
class Batch(NamedTuple):
    """Transitions drawn from the replay buffer."""

    obs: Tensor  # [B, O]
    action: Tensor  # [B, A]
    reward: Tensor  # [B]
    terminated: Tensor  # [B], 1 where the task itself ended, and not at a time limit
    next_obs: Tensor  # [B, O], at the end of an episode its last observation


class ReplayBuffer:
    """The last transitions, in tensors made once; when they are full, the oldest go first."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args) -> None:
        # A multiple of num_envs, so that one step of all environments is never split.
        self.capacity = args.buffer_size // args.num_envs * args.num_envs
        if self.capacity == 0:
            fail(f"--buffer-size is {args.buffer_size}, and must not be below --num-envs")
        self.obs = torch.zeros(self.capacity, obs_dim, device=args.device)
        self.action = torch.zeros(self.capacity, action_dim, device=args.device)
        self.reward = torch.zeros(self.capacity, device=args.device)
        self.terminated = torch.zeros(self.capacity, device=args.device)
        self.next_obs = torch.zeros(self.capacity, obs_dim, device=args.device)
        self.position = self.size = 0

    def add(self, *transition: np.ndarray | Tensor) -> None:
        """Store one transition of every environment, its parts in Batch's order, each [N, ...]."""
        end = self.position + len(transition[0])
        for name, value in zip(Batch._fields, transition):
            getattr(self, name)[self.position : end] = torch.as_tensor(value)
        self.position = end % self.capacity
        self.size = max(self.size, end)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what vars() of another buffer holds."""
        for name, value in state.items():
            setattr(self, name, value.to(self.obs.device) if torch.is_tensor(value) else value)

    def sample(self, batch_size: int) -> Batch:
        """Transitions drawn uniformly, with replacement."""
        index = torch.randint(self.size, (batch_size,), device=self.obs.device)
        return Batch(*(getattr(self, name).index_select(0, index) for name in Batch._fields))


# [/shared]
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
    """A policy, several critics, their target copies, a temperature, and how they learn."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args) -> None:
        super().__init__()
        self.gamma, self.tau, self.autotune = args.gamma, args.tau, args.autotune
        self.actor = Actor(obs_dim, action_dim, args)
        critics = [Critic(obs_dim, action_dim, args) for _ in range(args.num_critics)]
        self.critics = nn.ModuleList(critics)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.actor_optimizer = Adam(self.actor.parameters(), args.actor_learning_rate)
        self.critic_optimizer = Adam(self.critics.parameters(), args.critic_learning_rate)
        if args.autotune and not 0 < args.init_alpha <= args.max_alpha:
            fail(f"--init-alpha is {args.init_alpha}, and must lie above 0, up to --max-alpha")
        if args.autotune and args.alpha != Args.alpha:
            fail(f"--alpha {args.alpha} is for --no-autotune; to learn it, start at --init-alpha")
        start = args.init_alpha if args.autotune else args.alpha
        # Learnt as log α, which keeps α positive and makes its steps proportional to its size.
        self.log_alpha = nn.Parameter(torch.tensor(start).log())
        self.max_log_alpha = math.log(args.max_alpha)
        self.alpha_optimizer = Adam([self.log_alpha], args.alpha_learning_rate)
        auto = args.target_entropy == "auto"
        self.target_entropy = -float(action_dim) if auto else float(args.target_entropy)
        most = action_dim * math.log(2)  # the entropy of uniform actions in [-1, 1]
        if self.target_entropy >= most:
            fail(f"--target-entropy is {args.target_entropy}, and must lie below {most:.2f} here")

    def critic_loss(self, batch: Batch, alpha: Tensor) -> Tensor:
        """Half the mean squared soft Bellman error, summed over critics (second paper, eq. 5)."""
        with torch.no_grad():
            next_action, next_log_prob = self.actor.sample(batch.next_obs)  # [B, A], [B]
            next_values = [critic(batch.next_obs, next_action) for critic in self.target_critics]
            # The soft value: V(s') = min_i Q'_i(s', a') - α log π(a'|s')   [B]
            next_value = torch.stack(next_values).amin(0) - alpha * next_log_prob
            # y = r + γ (1 - terminated) V(s'). A time limit ends the episode and not the task: the
            # value of what would have come is kept there.
            target = batch.reward + self.gamma * (1 - batch.terminated) * next_value  # [B]
        values = [critic(batch.obs, batch.action) for critic in self.critics]  # [B] each
        return 0.5 * torch.stack([F.mse_loss(value, target) for value in values]).sum()

    def actor_loss(self, obs: Tensor, action: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
        """Mean of α log π(a|s) - min_i Q_i(s, a), a drawn from the policy (second paper, eq. 7)."""
        value = torch.stack([critic(obs, action) for critic in self.critics]).amin(0)  # [B]
        return (alpha * log_prob - value).mean()

    def alpha_loss(self, log_prob: Tensor) -> Tensor:
        """Raises log α while the entropy, -log π, is below its target (second paper, eq. 18)."""
        return -(self.log_alpha * (log_prob.detach() + self.target_entropy)).mean()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch (second paper, algorithm 1); returns the losses by name."""
        alpha = self.log_alpha.detach().exp()
        action, log_prob = self.actor.sample(batch.obs)  # [B, A], [B]
        if self.autotune:
            grads = torch.autograd.grad(self.alpha_loss(log_prob), [self.log_alpha])
            self.alpha_optimizer.step(grads)
            self.log_alpha.data.clamp_(max=self.max_log_alpha)

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

    def set_learning_rates(self, args: Args, env_step: int) -> None:
        """Linear decay to 0 at the end of the run."""
        left = max(1 - env_step / args.total_timesteps, 0.0)
        self.actor_optimizer.learning_rate.fill_(args.actor_learning_rate * left)
        self.critic_optimizer.learning_rate.fill_(args.critic_learning_rate * left)
        self.alpha_optimizer.learning_rate.fill_(args.alpha_learning_rate * left)


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint, and return the run folder."""
    start_torch(args)
    off = AutoresetMode.DISABLED
    envs = SyncVectorEnv([lambda: make_env(args.env_id)] * args.num_envs, autoreset_mode=off)
    eval_env = make_env(args.env_id, film=args.capture_video)
    obs_dim, action_dim = dimensions(eval_env)
    agent = Agent(obs_dim, action_dim, args).to(args.device)
    buffer = ReplayBuffer(obs_dim, action_dim, args)
    run, run_dir = Progress(), open_run(args)
    obs, _ = envs.reset(seed=args.seed)
    if checkpoint:
        run = restore(checkpoint, agent, buffer, envs)
        obs, _ = envs.reset()
    update = compiled(agent.update, args)
    interrupt = Interrupt()
    logger = Logger(args, run_dir, run.env_step, run.seconds)
    losses: dict[str, Tensor] = {}
    saved_at, finished = run.env_step, False

    while not finished:
        # Act: at random at first, so that the buffer begins with actions of every kind.
        if run.env_step < args.learning_starts:
            action = 2 * torch.rand(args.num_envs, action_dim) - 1
        else:
            if args.use_sde and run.env_step // args.num_envs % args.sde_sample_interval == 0:
                agent.actor.draw_sde_noise()
            action = agent.actor.explore(to_tensor(obs, args.device))

        # Step and store. The environments do not reset themselves, so next_obs is what the action
        # led to, also where an episode ends.
        next_obs, reward, terminated, truncated, _ = envs.step(action.cpu().numpy())
        run.env_step += args.num_envs
        if not np.isfinite(reward).all():
            fail(f"{args.env_id} gave the reward {reward} at step {run.env_step}", code=1)
        buffer.add(obs, action, reward, terminated, next_obs)
        ended = terminated | truncated
        logger.step(run.env_step, reward, ended)

        # Learn
        round_of_steps = max(args.update_every, args.num_envs)
        learning = run.env_step > args.learning_starts
        if learning and run.env_step % round_of_steps < args.num_envs:
            if args.anneal_learning_rate:
                agent.set_learning_rates(args, run.env_step)
            for _ in range(round_of_steps * args.updates_per_step):
                run.updates += 1
                losses = update(buffer.sample(args.batch_size))
            logger.losses(run.env_step, losses)

        # Evaluate
        finished = run.env_step >= args.total_timesteps
        if finished or run.env_step % args.eval_interval < args.num_envs:
            result = evaluate(
                agent.actor.mean_action, eval_env, args, run.env_step, run_dir / "videos"
            )
            logger.evaluation(run.env_step, result)
            run.evaluations.append(result["mean_return"])
            if result["mean_return"] > run.best_return:
                run.best_return = result["mean_return"]
                save_checkpoint(run_dir / "best.pt", args, run, {"agent": agent.state_dict()})
            if args.stop_at_return is not None and len(run.evaluations) >= 3:
                finished |= min(run.evaluations[-3:]) >= args.stop_at_return

        # Save where an episode ends: between two of them most environments hold nothing but a
        # generator's state, so that a resumed run equals one that was never interrupted.
        due = run.env_step - saved_at >= args.save_interval or interrupt.number
        overdue = run.env_step - saved_at >= 2 * args.save_interval  # episodes that do not end
        if finished or (due and ended.any()) or overdue:
            saved_at, run.seconds = run.env_step, logger.seconds()
            everything = whole_state(agent, buffer, envs)
            save_checkpoint(run_dir / "checkpoint.pt", args, run, everything)
            if interrupt.number:
                break

        # Reset
        if ended.any():
            next_obs, _ = envs.reset(options={"reset_mask": ended})
        obs = next_obs

    logger.close()
    envs.close()
    eval_env.close()
    interrupt.end(run, run_dir, finished)
    return run_dir


# [shared: evaluation]
@torch.no_grad()
def evaluate(
    policy: Callable[[Tensor], Tensor], env: gym.Env, args: Args, env_step: int, video_dir: Path
) -> dict[str, float]:
    """Play whole episodes with policy ([1, O] -> [1, A]); returns evaluations.csv's columns.

    The seeds of the episodes follow from the step, and from no generator, so that a resumed run is
    evaluated like one that was never interrupted.
    """
    returns, lengths, frames = [], [], []
    for episode in range(args.eval_episodes):
        seed = np.random.SeedSequence((args.seed, 10_000, env_step, episode))
        obs, _ = env.reset(seed=int(seed.generate_state(1)[0]))
        episodic_return, length, ended = 0.0, 0, False
        while not ended:
            if args.capture_video and episode == 0:
                frames.append(env.render())
            action = policy(to_tensor(obs, args.device).unsqueeze(0)).squeeze(0)
            obs, reward, terminated, truncated, _ = env.step(action.cpu().numpy())
            episodic_return, length = episodic_return + float(reward), length + 1
            ended = terminated or truncated
        returns.append(episodic_return)
        lengths.append(length)
    if frames:
        fps, prefix = env.metadata.get("render_fps", 30), f"step-{env_step}"
        save_video(frames, str(video_dir), lambda _: True, fps=fps, name_prefix=prefix)
    return {
        "mean_return": float(np.mean(returns)),
        "std_return": float(np.std(returns)),
        "min_return": min(returns),
        "max_return": max(returns),
        "mean_length": float(np.mean(lengths)),
        "episodes": len(returns),
    }


# [/shared]
# From here on housekeeping: the log, checkpoints, flags. The algorithm ends here.


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
# [shared: continuous state]
def generator(env: gym.Env) -> Any:
    """The random generator that draws the environment's resets."""
    random: Any = env.unwrapped.np_random  # DM Control's is a RandomState, NumPy's older kind
    older = isinstance(random, np.random.RandomState)
    return random._bit_generator if older else random.bit_generator


def whole_state(agent: nn.Module, buffer: ReplayBuffer, envs: SyncVectorEnv) -> dict[str, Any]:
    """What a run is, between two episodes: networks, optimizers, noise, buffer, generators."""
    return {
        "agent": agent.state_dict(),
        "buffer": vars(buffer),
        "torch_rng": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
        "env_rng": [json.dumps(generator(e).state, default=np.ndarray.tolist) for e in envs.envs],
    }


def restore(
    checkpoint: dict[str, Any], agent: nn.Module, buffer: ReplayBuffer, envs: SyncVectorEnv
) -> Progress:
    """Put back what whole_state took, and return the run's counters."""
    agent.load_state_dict(checkpoint["agent"])
    buffer.load_state_dict(checkpoint["buffer"])
    torch.set_rng_state(checkpoint["torch_rng"][0])
    for i, state in enumerate(checkpoint["torch_rng"][1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, i)
    for env, state in zip(envs.envs, checkpoint["env_rng"]):
        generator(env).state = json.loads(state)
    return Progress(**checkpoint["run"])


# [/shared]
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
    buffer_size updates_per_step eval_interval eval_episodes save_interval
    num_critics update_every sde_sample_interval"""
AT_LEAST_0 = """seed actor_learning_rate critic_learning_rate learning_starts
    alpha init_alpha max_alpha alpha_learning_rate"""
FROM_0_TO_1 = "gamma tau"
FIXED = """env_id seed num_envs actor_hidden_sizes critic_hidden_sizes layer_norm use_sde
    num_critics buffer_size autotune alpha"""
UNSEEN = "seed"  # of these, what an evaluation may change all the same
FLOORS = "untrained", "random"  # policies that need no checkpoint


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
    """Play whole episodes with the policy that --evaluate names, and print their returns."""
    start_torch(args)
    env = make_env(args.env_id, film=args.capture_video)
    obs_dim, action_dim = dimensions(env)
    agent = Agent(obs_dim, action_dim, args).to(args.device)
    policy: Callable[[Tensor], Tensor] = agent.actor.mean_action
    if args.evaluate == "random":
        policy = lambda obs: 2 * torch.rand(len(obs), action_dim) - 1  # noqa: E731
    env_step, videos = 0, Path("videos")
    if checkpoint and path:
        agent.load_state_dict(checkpoint["agent"])
        env_step, videos = checkpoint["run"]["env_step"], path.parent / "videos"
    result = evaluate(policy, env, args, env_step, videos)
    env.close()
    print(
        "return {mean_return:.1f} ± {std_return:.1f} over {episodes:.0f} episodes, from "
        "{min_return:.1f} to {max_return:.1f}; mean length {mean_length:.0f}".format(**result)
    )


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
# ]
# ///
