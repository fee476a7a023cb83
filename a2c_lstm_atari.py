"""Recurrent advantage actor-critic (A2C) on Atari games, from pixels.

A policy plays a few steps in many games at once. Then actions that led to more reward than expected
are made more probable, and the others less probable; each step is used once. The policy has a
memory, the state of an LSTM, which is set to zero where a new game begins.

    play     T steps of N games: (h, c) = LSTM(s, (h, c)),  a ~ π(a|h); store (s, a, r, V)
    learn    once, from the rollout's first LSTM state: maximise log π(a|h) A, fit V to A + V_old,
             where A = Σ (γλ)^k δ_k and δ = r + γ (1 - terminated) V(s') - V(s)

Paper:  Mnih et al. 2016, Asynchronous Methods for Deep Reinforcement Learning, arXiv:1602.01783
Run:    python a2c_lstm_atari.py --env-id ALE/Pong-v5
Expect: Pong 19, Breakout 146, mean of the last 100 games of 2M steps (three seeds)
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TextIO, TypeVar
from uuid import uuid4

import ale_py
import filelock
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from ale_py.vector_env import AtariVectorEnv
from pydantic import Field, NonNegativeFloat, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = Path(__file__).stem
MAX_EPISODE = 100_000  # steps after which an evaluation cuts an episode off
T = TypeVar("T")
Fixed = Annotated[T, "fixed"]  # a flag that --resume and --evaluate cannot change
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Baseline = Literal["untrained", "random"]  # policies that need no checkpoint


@dataclasses.dataclass
class Args:
    # Task. Lengths are in environment steps, summed over all parallel games; a step is 4 frames.
    env_id: Fixed[str] = "ALE/Pong-v5"  # any of ALE's games
    total_timesteps: PositiveInt = 10_000_000  # length of the training
    num_envs: Fixed[PositiveInt] = 16  # parallel games
    seed: Fixed[Seed] = 1  # of the network, the actions and the games
    sticky_actions: Fixed[Fraction] = 0.0  # probability that a frame repeats the previous action
    episodic_life: bool = True  # when learning, losing a life counts as termination
    clip_rewards: bool = True  # when learning, rewards are clipped to their sign
    full_action_space: Fixed[bool] = False  # all 18 actions, also those without effect in a game
    actions: Fixed[tuple[str, ...]] = ()  # only these, by ALE's names, such as NOOP RIGHT LEFT
    max_episode_frames: Fixed[PositiveInt] = 108_000  # a game is truncated here: 30 minutes
    norm_obs: Fixed[bool] = True  # subtract each pixel's mean, see Standardise; else pixels / 255

    # Network
    model: Fixed[Literal["linear", "cnn", "cnn-lstm"]] = "cnn-lstm"  # see Features
    activation: Fixed[Literal["relu", "silu"]] = "relu"  # between the layers
    batch_norm: Fixed[bool] = False  # after each convolution; acting uses running statistics

    # Learning
    chunk_size: PositiveInt = 20  # steps of every game per rollout; gradients go no further back
    learning_rate: NonNegativeFloat = 6e-3  # of RMSprop
    anneal_lr: bool = True  # anneal the learning rate linearly to 0 over the run
    weight_decay: Fixed[NonNegativeFloat] = 0.0  # this times the weight is added to its gradient
    gamma: Fraction = 0.99  # discount factor
    gae_lambda: Fraction = 0.95  # 0: one-step advantages, biased; 1: from all steps, high variance
    value_coef: NonNegativeFloat = 0.5  # weight of the value loss
    entropy_coef: NonNegativeFloat = 0.01  # weight of the entropy bonus
    max_grad_norm: NonNegativeFloat = 0.5  # gradients are scaled down to this norm

    # Exploration: logits are divided by a temperature that falls linearly with finished games
    temperature_init: NonNegativeFloat = 1.0  # initial value; above 1, probabilities are more equal
    temperature_min: Annotated[float, Field(gt=0)] = 1.0  # final value
    temperature_decay_episodes: PositiveInt = 1_000  # finished games over which it falls

    # Evaluation: whole games and raw scores, also where learning ends or clips them
    eval_interval: PositiveInt = 500_000  # steps between evaluations
    eval_episodes: PositiveInt = 10  # games per evaluation, in parallel
    greedy_eval: bool = False  # play the most probable action instead of sampling one
    stop_at_return: float | None = None  # stop when the last 3 evaluations all reach it
    capture_video: bool = False  # film the first game of every evaluation
    evaluate: Baseline | Path | None = None  # only evaluate a baseline, a run folder or a .pt file

    # Run folder
    run_dir: Path | None = None  # default: runs/{env_id}__{exp_name}__{seed}__{time}
    exp_name: str = SCRIPT  # part of the folder's name
    resume: Path | None = None  # run folder to resume; flags given here override the saved ones
    save_interval: PositiveInt = 100_000  # steps between checkpoints
    progress: bool = True  # progress bar, if there is a terminal
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "FolioRL"  # W&B project
    wandb_entity: str | None = None  # W&B user or team

    # Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if there is one
    compile: bool = True  # compile Features: up to a minute at the start, then faster
    bfloat16: bool = False  # convolutions in bfloat16: faster, less exact
    torch_deterministic: bool = True  # only deterministic cuDNN kernels

    def __post_init__(self) -> None:
        if self.temperature_min > self.temperature_init:
            fail(f"--temperature-min is {self.temperature_min}, above --temperature-init")
        if self.batch_norm and self.model == "linear":
            fail("--batch-norm has no effect on --model linear, which has no convolutions")


# [shared: atari games]
class AtariGames:
    """N games in ALE's vector environment, preprocessed as for DQN (Mnih et al. 2015).

    Each action is held for four frames. The pixelwise maximum of the last two makes one grey image,
    since some games draw an object in every second frame only. An observation is four such images.
    A game begins with up to 30 no-ops, and then the fire button if the game waits for it.
    """

    obs: Tensor  # [N, 84, 84, 4] uint8, contiguous; in colour [N, 210, 160, 3, 4]

    def __init__(self, args: Args, num_envs: int, colour: bool = False) -> None:
        self.envs = make_envs(args, num_envs, colour)
        self.num_envs, self.device = num_envs, args.device
        self.actions = action_numbers(self.envs, args)  # [A]
        self.num_actions = len(self.actions)

    def begin(self, *seed: int) -> None:
        """Begin all games, with seeds derived from the given numbers."""
        seeds = np.random.default_rng(seed).integers(2**31, size=self.num_envs)
        self.reset(np.ones(self.num_envs, bool), seeds)

    def reset(self, ended: np.ndarray, seeds: np.ndarray | None = None) -> None:
        """Begin a new game where ended [N] is true."""
        if ended.any():
            self.observe(*self.envs.reset(seed=seeds, options={"reset_mask": ended}))

    def step(self, action: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Take action [N]; returns the raw reward, terminated, truncated, life_lost, each [N]."""
        lives, number = self.lives, self.actions[action.cpu().numpy()]
        obs, reward, terminated, truncated, info = self.envs.step(number)
        self.observe(obs, info)
        return reward.astype(np.float32), terminated, truncated, self.lives < lives

    def observe(self, obs: np.ndarray, info: dict[str, Any]) -> None:
        self.obs = torch.from_numpy(obs).to(self.device).movedim(1, -1).contiguous()
        self.lives = info["lives"]


# [/shared]
class Features(nn.Module):
    """The layers before the LSTM, which only cnn-lstm has: uint8 [B, 84, 84, 4] -> [B, size]."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.standardise = Standardise(args)
        self.difference = args.model == "linear"
        self.size = {"linear": 256, "cnn": 3200, "cnn-lstm": 512}[args.model]
        activation = {"relu": nn.ReLU, "silu": nn.SiLU}[args.activation]
        self.layers = nn.Sequential()
        # In, out, kernel, stride, padding -> [B, 16, 21, 21], [B, 32, 10, 10], [B, 32, 4, 4]
        convs = (4, 16, 8, 4, 2), (16, 32, 4, 2, 1), (32, 32, 4, 2, 0)
        for conv in convs[: {"linear": 0, "cnn": 2, "cnn-lstm": 3}[args.model]]:
            norm = [nn.BatchNorm2d(conv[1])] if args.batch_norm else []
            self.layers.extend([orthogonal(nn.Conv2d(*conv)), *norm, activation()])
        self.layers.append(nn.Flatten())
        if args.model == "linear":
            self.layers.extend([orthogonal(nn.Linear(84 * 84, 256)), activation()])
        # Convolutions are several times faster with the channels of a pixel next to each other.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: Tensor) -> Tensor:
        x = self.standardise(obs.movedim(-1, 1))  # [B, 4, 84, 84], not copied
        return self.layers(x[:, 3] - x[:, 2] if self.difference else x)


class ActorCritic(nn.Module):
    """Policy and value of T steps of N games, B = T N, with an LSTM or without.

    features [B, F], begins [T, N] (true where a game begins), the LSTM's state before the rollout
    (h and c, [2, 1, N, 256]) -> logits [B, A], value [B], the state after the last step.
    """

    def __init__(self, num_actions: int, args: Args) -> None:
        super().__init__()
        self.features = Features(args)
        self.lstm = nn.LSTM(512, 256) if args.model == "cnn-lstm" else nn.Identity()
        size = 256 if args.model == "cnn-lstm" else self.features.size
        # The small gain makes all actions about equally probable at first.
        self.policy = orthogonal(nn.Linear(size, num_actions), gain=0.01)
        self.value = orthogonal(nn.Linear(size, 1), gain=1.0)

    def forward(self, features: Tensor, begins: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        features = features.float()
        if isinstance(self.lstm, nn.LSTM):
            features, state = self.remember(features.unflatten(0, begins.shape), begins, state)
        return self.policy(features), self.value(features).squeeze(1), state

    def remember(self, features: Tensor, begins: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's outputs [B, 256] and last state, with one call per stretch without a reset."""
        starts = [0, *(1 + begins[1:].any(dim=1).nonzero().flatten()).tolist()]
        outputs: list[Tensor] = []
        for start, end in zip(starts, [*starts[1:], len(features)]):
            keep = (~begins[start]).unsqueeze(1)  # the state is zero where a game begins
            output, (h, c) = self.lstm(features[start:end], tuple(state * keep))
            outputs, state = [*outputs, output], torch.stack([h, c])
        return torch.cat(outputs).flatten(0, 1), state


class Batch(NamedTuple):
    """Steps to learn from."""

    obs: Tensor  # [B, 84, 84, 4] uint8
    action: Tensor  # [B]
    advantage: Tensor  # [B]
    returns: Tensor  # [B], the target of the value
    begins: Tensor  # [T, N], true where obs is the first of a game
    state: Tensor  # [2, 1, N, 256], h and c of the LSTM before the first step


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
class Rollout:
    """T = chunk_size steps of N games, in preallocated arrays [T, N, ...]."""

    def __init__(self, num_envs: int, args: Args) -> None:
        shape, device = (args.chunk_size, num_envs), args.device
        self.obs = torch.zeros(*shape, 84, 84, 4, dtype=torch.uint8, device=device)
        self.action = torch.zeros(shape, dtype=torch.int64, device=device)
        self.value, self.next_value = torch.zeros(2, *shape, device=device)
        # Carried to the next rollout: the LSTM's state, and whether the next step begins a game
        self.next_state = self.state = torch.zeros(2, 1, num_envs, 256, device=device)
        self.begins = torch.ones(args.chunk_size + 1, num_envs, dtype=torch.bool, device=device)
        self.reward = np.zeros(shape, np.float32)  # raw
        self.terminated, self.over = np.zeros((2, *shape), bool)  # over: the game ended

    @torch.no_grad()
    def collect(self, games: AtariGames, act: Callable, args: Args) -> None:
        """Play T steps."""
        self.begins[0], self.state = self.begins[-1], self.next_state
        log_probs, value, state = act(games.obs, self.begins[0], self.state)
        for t in range(args.chunk_size):
            action = log_probs.exp().multinomial(1)  # [N, 1]
            self.obs[t], self.action[t], self.value[t] = games.obs, action.squeeze(1), value

            self.reward[t], terminated, truncated, life_lost = games.step(self.action[t])
            self.terminated[t] = terminated | (life_lost & args.episodic_life)
            self.over[t] = terminated | truncated

            self.next_state = state  # kept for the next step, also where a life is lost
            # The value of a truncated game's last observation, before a new game replaces it
            no_reset = torch.zeros_like(self.begins[t])
            last_value = act(games.obs, no_reset, state)[1] if truncated.any() else value
            games.reset(self.over[t])
            self.begins[t + 1] = torch.as_tensor(self.over[t])
            log_probs, value, state = act(games.obs, self.begins[t + 1], state)
            cut_off = torch.as_tensor(truncated, device=value.device)
            self.next_value[t] = torch.where(cut_off, last_value, value)

    def batch(self, args: Args) -> Batch:
        """All steps as one batch, B = T N, with their advantages."""
        clipped = np.sign(self.reward) if args.clip_rewards else self.reward
        steps = clipped, self.terminated, self.terminated | self.over
        reward, terminated, ended = (to_tensor(step, args.device) for step in steps)
        advantage = advantages(reward, self.value, self.next_value, terminated, ended, args)
        parts = self.obs, self.action, advantage, advantage + self.value
        obs, action, advantage, returns = (part.flatten(0, 1) for part in parts)
        return Batch(obs, action, advantage, returns, self.begins[:-1], self.state)


class Agent(nn.Module):
    """The actor-critic, and its updates."""

    def __init__(self, num_actions: int, args: Args) -> None:
        super().__init__()
        self.args = args
        self.net = ActorCritic(num_actions, args)
        self.temperature = nn.Buffer(torch.tensor(args.temperature_init))
        # The paper divides by sqrt(g + ε), PyTorch by sqrt(g) + eps: eps = 3e-3, about sqrt(1e-5),
        # stands for ε = 1e-5 in OpenAI's code. With eps = 1e-5, weights with small gradients make
        # full steps as well, and the features saturate the LSTM for good within ten updates.
        self.optimizer = torch.optim.RMSprop(
            self.parameters(), args.learning_rate, eps=3e-3, weight_decay=args.weight_decay
        )

    def policy(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the actions, at the current temperature."""
        return (logits / self.temperature).log_softmax(1)

    @torch.no_grad()
    def act(self, features: Tensor, begins: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        """Log-probabilities [N, A], values [N] and the next state, given features [N, F]."""
        logits, value, state = self.net(features, begins.unsqueeze(0), state)
        return self.policy(logits), value, state

    def loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """-log π(a|s) A + c (V(s) - R)² / 2 - β H(π) (paper, section 4), and what to log."""
        logits, value, _ = self.net(features, batch.begins, batch.state)
        log_probs = self.policy(logits)  # [B, A]
        log_prob = log_probs.gather(1, batch.action.unsqueeze(1)).squeeze(1)  # [B]
        entropy = -(log_probs.exp() * log_probs).sum(1).mean()
        policy_loss = -(log_prob * batch.advantage).mean()
        value_loss = 0.5 * (value - batch.returns).square().mean()

        loss = policy_loss + self.args.value_coef * value_loss - self.args.entropy_coef * entropy
        return loss, {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
        }

    def gradients(self, features: Tensor, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The gradient of the loss with respect to every parameter, and what to log."""
        loss, losses = self.loss(features, batch)
        return list(torch.autograd.grad(loss, list(self.parameters()))), losses

    def step(self, grads: list[Tensor]) -> Tensor:
        """A step with gradients scaled down to a norm of max_grad_norm; returns their norm."""
        for param, grad in zip(self.parameters(), grads):
            param.grad = grad
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        return norm  # before it was scaled

    def anneal_lr(self, env_step: int) -> None:
        """Set the learning rate: constant, or with --anneal-lr falling linearly to 0."""
        left = max(1 - env_step / self.args.total_timesteps, 0.0) if self.args.anneal_lr else 1.0
        self.optimizer.param_groups[0]["lr"] = self.args.learning_rate * left

    def anneal_temperature(self, episodes: int) -> None:
        """Set the temperature after that many finished games."""
        first, last = self.args.temperature_init, self.args.temperature_min
        done = min(episodes / self.args.temperature_decay_episodes, 1.0)
        self.temperature.fill_(first + done * (last - first))

    def player(self, num_games: int) -> Callable[[Tensor], Tensor]:
        """The policy for num_games new games: obs [N, 84, 84, 4] -> logits [N, A]."""
        self.eval()
        state = torch.zeros(2, 1, num_games, 256, device=self.args.device)
        no_reset = torch.zeros(num_games, dtype=torch.bool, device=self.args.device)

        def policy(obs: Tensor) -> Tensor:
            nonlocal state
            log_probs, _, state = self.act(self.net.features(obs), no_reset, state)
            return log_probs

        return policy


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint; returns the run folder."""
    start_torch(args)
    games = AtariGames(args, args.num_envs)
    agent = Agent(games.num_actions, args).to(args.device)
    run = Run(args, checkpoint, agent=agent, optimizer=agent.optimizer)
    games.begin(args.seed, 0, run.env_step)
    rollout = Rollout(games.num_envs, args)
    features = compiled(agent.net.features.forward, args)  # without the LSTM, whose calls vary

    def act(obs: Tensor, begins: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        return agent.act(features(obs), begins, state)

    while not run.done:
        # Play
        agent.anneal_lr(run.env_step)
        agent.anneal_temperature(sum(run.episodes))
        agent.eval()  # batch norm with running statistics
        rollout.collect(games, act, args)
        for reward, over in zip(rollout.reward, rollout.over):
            run.step(reward, over)

        # Learn, once
        batch = rollout.batch(args)
        agent.train()  # batch norm with the statistics of the batch
        grads, losses = agent.gradients(features(batch.obs), batch)
        losses["grad_norm"] = agent.step(grads)
        run.updates += 1

        # Only after learning, which must normalise observations as acting did
        agent.net.features.standardise.update(batch.obs[..., -1])
        losses["temperature"] = agent.temperature
        losses["weight_norm"] = nn.utils.get_total_norm(agent.parameters()).detach()
        run.log_losses(losses)

        run.evaluate_if_due(lambda: evaluate(agent.player(args.eval_episodes), args, run.env_step))
        run.save_if_due()

    return run.close()


# [shared: atari evaluation]
@torch.no_grad()
def evaluate(policy: Callable[[Tensor], Tensor], args: Args, env_step: int) -> dict[str, float]:
    """Play whole games in parallel with policy ([N, ...] -> logits [N, A]), for their raw scores.

    Returns the columns of evaluations.csv. The games and the sampled actions depend on the step
    only, so a resumed run gives the same evaluations.
    """
    games = AtariGames(args, args.eval_episodes)
    games.begin(args.seed, 10_000, env_step)
    generator = torch.Generator(args.device).manual_seed(args.seed + env_step)
    playing, frames = np.ones(games.num_envs, bool), []
    returns, lengths = np.zeros((2, games.num_envs))
    if args.capture_video:  # the first game once more, in colour and full size
        camera = AtariGames(args, 1, colour=True)
        camera.begin(args.seed, 10_000, env_step)
    while playing.any():
        logits = policy(games.obs)
        sampled = logits.softmax(1).multinomial(1, generator=generator).squeeze(1)
        action = logits.argmax(1) if args.greedy_eval else sampled
        if args.capture_video and playing[0]:
            frames.append(camera.obs[0, ..., -1].cpu().numpy())
            camera.step(action[:1])
        reward, terminated, truncated, _ = games.step(action)
        returns += reward * playing
        lengths += playing
        playing &= ~(terminated | truncated) & (lengths < MAX_EPISODE)
    if frames:
        save_video(frames, 15, args, env_step)
    return summary(returns, lengths)


# [/shared]
# Housekeeping: rarer options, run folder, checkpoints, flags. The algorithm ends here.


# [shared: make atari]
def make_envs(args: Args, num_envs: int, colour: bool) -> AtariVectorEnv:
    """ALE's vector environment for --env-id, with the preprocessing that AtariGames describes."""
    gym.register_envs(ale_py)
    try:
        spec = gym.spec(args.env_id)
    except gym.error.Error as error:  # its message names similar ids
        fail(f"cannot make {args.env_id}: {error}")
    if spec.namespace != "ALE":
        fail(f"{args.env_id} is no game of ALE; {SCRIPT} plays only those, such as ALE/Pong-v5")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return AtariVectorEnv(
        spec.kwargs["game"],
        num_envs,
        num_threads=min(num_envs, torch.get_num_threads()),
        max_num_frames_per_episode=args.max_episode_frames,
        repeat_action_probability=args.sticky_actions,
        full_action_space=args.full_action_space,
        img_height=210 if colour else 84,
        img_width=160 if colour else 84,
        grayscale=not colour,
        reward_clipping=False,  # scores are raw; the rollout clips rewards
    )


def action_numbers(envs: AtariVectorEnv, args: Args) -> np.ndarray:
    """Numbers [A], in ALE's order, of all actions of the game or of those in --actions."""
    names = [action.name for action in envs.ale.get_action_set()]
    for name in args.actions:
        if name not in names:
            every = "" if args.full_action_space else "; --full-action-space allows all 18"
            fail(f"--actions has {name}; {args.env_id} has {' '.join(names)}{every}")
    return np.array([names.index(name) for name in args.actions or names])


# [/shared]
# [shared: orthogonal]
def orthogonal(layer: nn.Conv2d | nn.Linear, gain: float = math.sqrt(2)) -> nn.Module:
    """Orthogonal weights, zero biases: usual for on-policy learning. sqrt(2) suits ReLU."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]
    return layer


# [/shared]
# [shared: standardise]
class Standardise(nn.Module):
    """Subtract each pixel's mean, and divide by one standard deviation for all pixels.

    Both are running statistics of all frames played. With the usual pixels / 255, the constant
    background dominates the features. Burda et al. 2019 (arXiv:1810.12894, section 2.4) do the
    same with a standard deviation for each pixel.
    """

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.enabled = args.norm_obs
        # These values give pixels / 255 until the first update. The mean is the same for all four
        # frames of an observation; it is stored four times to match their memory layout.
        self.mean = nn.Buffer(torch.zeros(1, 4, 84, 84))
        self.std = nn.Buffer(torch.tensor(255.0))
        self.square = nn.Buffer(torch.zeros(()))  # the mean square of all pixels
        self.updates = nn.Buffer(torch.zeros(()))  # each counts equally in the mean

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / self.std

    @torch.no_grad()
    def update(self, frames: Tensor, over_ranks: Callable = list) -> None:
        """Add frames, uint8 [B, 84, 84]. over_ranks gives the means of tensors over processes."""
        if self.enabled:
            frames = frames.float()
            mean, square = over_ranks([frames.mean(0), frames.square().mean()])
            self.updates.add_(1)
            self.mean.lerp_(mean, 1 / self.updates)
            self.square.lerp_(square, 1 / self.updates)
            variance = self.square - self.mean.square().mean()
            self.std.copy_(variance.clamp(min=1.0).sqrt())  # rounding may make it negative


# [/shared]
# [shared: atari play]
def play(args: Args, checkpoint: dict[str, Any] | None) -> dict[str, float]:
    """Evaluate the policy that --evaluate names."""
    start_torch(args)
    num_actions = AtariGames(args, 1).num_actions
    agent = Agent(num_actions, args).to(args.device)
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"])
    policy = agent.player(args.eval_episodes)
    if args.evaluate == "random":
        args.greedy_eval = False  # the argmax of equal logits is always action 0
        policy = lambda obs: torch.zeros(len(obs), num_actions, device=obs.device)  # noqa: E731
    return evaluate(policy, args, checkpoint["run"]["env_step"] if checkpoint else 0)


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
#   "torch==2.13.0", "gymnasium==1.4.0", "ale-py==0.12.1",
#   'numpy==2.4.6; python_version >= "3.11"', 'numpy==2.2.6; python_version < "3.11"',
#   "tyro==1.0.17", "pydantic==2.14.4", "filelock==4.3.1", "tqdm==4.70.1", "tensorboard==2.21.0",
# ]
# ///
