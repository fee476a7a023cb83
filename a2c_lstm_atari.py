"""Recurrent advantage actor-critic (A2C) on Atari games: a policy with a memory.

Four frames show where the ball flies, and not what happened before them. A long short-term memory
(LSTM) reads such stacks one after the other and carries on what it needs. What this file teaches is
what is carried (the LSTM's state, from step to step and from chunk to chunk), what is cut (the
gradient, between chunks), and what is reset (the state, exactly where a new game begins).

Paper: Mnih et al. 2016, Asynchronous Methods for Deep Reinforcement Learning, arXiv:1602.01783
Run:   python a2c_lstm_atari.py --env-id ALE/Pong-v5
Score: Pong 19, Breakout 146, mean of the last 100 training games of 2M steps, three seeds,
       35 to 52 minutes each (benchmark/studies/a2c_atari.sh)
Watch: tensorboard --logdir runs
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TextIO

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from ale_py.vector_env import AtariVectorEnv
from gymnasium.utils.save_video import save_video
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = Path(__file__).stem
FRAME = (105, 80)  # half the screen's 210 x 160; of its rows, 17 to 97 show the field


@dataclass
class Args:
    # Task. Lengths are in environment steps, summed over all parallel environments, unless said
    # otherwise; a step is four frames.
    env_id: str = "ALE/Pong-v5"  # any of ALE's games
    total_timesteps: int = 10_000_000  # length of the training
    num_envs: int = 16  # games played side by side
    seed: int = 1  # of the networks, the actions and the games
    sticky_actions: float = 0.0  # chance that a frame repeats the action before; Machado's is 0.25
    episodic_life: bool = True  # while learning, the loss of a life ends what can still be earned
    clip_rewards: bool = True  # while learning, of a reward only its sign counts
    full_action_space: bool = False  # all 18 actions, also those that this game ignores
    max_episode_frames: int = 108_000  # a game is cut off here, after half an hour of play
    norm_obs: bool = True  # centre every pixel on its mean, see Standardise; else pixels / 255

    # Network
    model: Literal["linear", "cnn", "cnn-lstm"] = "cnn-lstm"  # see the class Features
    activation: Literal["relu", "silu"] = "relu"  # between the layers
    batch_norm: bool = False  # between convolutions; acting and learning use different statistics

    # Learning
    chunk_size: int = 20  # steps of every game between updates, and how far gradients go back
    learning_rate: float = 6e-3  # RMSprop's step size
    anneal_lr: bool = True  # let it fall to 0 over the run, linearly
    weight_decay: float = 0.0  # pull of all weights towards 0
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # 0: advantages from one step, biased; 1: from all, noisy
    value_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # largest norm of the gradient, over all parameters together

    # Exploration: logits are divided by T = max(T_min, T_init - (T_init - T_min) episode / C)
    temperature_init: float = 1.0  # T_init, above 1 for more even probabilities
    temperature_min: float = 1.0  # T_min
    temperature_decay_episodes: int = 1_000  # C, in finished games of all environments
    entropy_coef: float = 0.01  # weight of the entropy bonus

    # Evaluation: whole games and raw scores, whatever is cut or clipped for learning
    eval_interval: int = 500_000  # steps from one evaluation to the next
    eval_episodes: int = 10  # games in an evaluation, played side by side
    greedy_eval: bool = False  # play the likeliest action instead of drawing one
    stop_at_return: float | None = None  # stop once the last 3 evaluations are all at least this
    capture_video: bool = False  # film the first game of every evaluation
    evaluate: str | None = None  # play, do not train: a run folder, a .pt file, untrained or random

    # Run folder
    run_dir: Path | None = None  # default: runs/{env_id}__{exp_name}__{seed}__{time}
    exp_name: str = SCRIPT  # part of the folder's name
    resume: Path | None = None  # run folder to resume; flags given with this one override its own
    save_interval: int = 100_000  # steps from one checkpoint to the next
    progress: bool = True  # progress bar, where there is a terminal
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "FolioRL"  # its project
    wandb_entity: str | None = None  # its user or team

    # Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    compile: bool = True  # compile the layers before the LSTM: slow to start, then faster
    bfloat16: bool = False  # those layers in bfloat16: faster, less exact
    torch_deterministic: bool = True  # ask cuDNN for deterministic kernels only


# [shared: atari games]
class AtariGames:
    """Games side by side in ALE's own vector environment, preprocessed as for DQN.

    An action holds for four frames. Of the last two the maximum is taken, pixel by pixel, since
    some games draw an object in every second frame only. It is made grey, shrunk, and stacked with
    the three before it. A game begins with up to 30 no-ops, and a press of the fire button where it
    waits for one (Mnih et al. 2015, doi:10.1038/nature14236).
    """

    RESEED = 5_000  # steps after which a game begins from a new seed; see state

    def __init__(
        self,
        args: Args,
        num_envs: int,
        seed: list[int],
        size: tuple[int, int] = FRAME,
        colour: bool = False,
    ) -> None:
        gym.register_envs(ale_py)
        try:
            spec = gym.spec(args.env_id)
        except gym.error.Error as error:  # gymnasium names what is near
            fail(f"cannot make {args.env_id}: {error}")
        if spec.namespace != "ALE":
            fail(f"{args.env_id} is not one of ALE's games; {SCRIPT} takes those, as ALE/Pong-v5")
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.envs = AtariVectorEnv(
            spec.kwargs["game"],
            num_envs,
            num_threads=min(num_envs, torch.get_num_threads()),
            max_num_frames_per_episode=args.max_episode_frames,
            repeat_action_probability=args.sticky_actions,
            full_action_space=args.full_action_space,
            img_height=size[0],
            img_width=size[1],
            grayscale=not colour,
            reward_clipping=False,  # returns are raw scores; for learning, collect clips
        )
        self.num_envs, self.device = num_envs, args.device
        self.num_actions = len(self.envs.ale.get_action_set())
        self.random = np.random.default_rng(seed)
        self.seeds = np.zeros(num_envs, dtype=int)
        self.history: list[list[int]] = [[] for _ in range(num_envs)]
        self.obs: Tensor  # [N, 4, H, W] uint8, with colour [N, 4, H, W, 3]
        self.begin(np.ones(num_envs, dtype=bool), self.random.integers(2**31, size=num_envs))

    def begin(self, mask: np.ndarray, seeds: np.ndarray | None = None) -> None:
        """Begin new games where mask [N] is true."""
        if not mask.any():
            return
        obs, info = self.envs.reset(seed=seeds, options={"reset_mask": mask})
        self.obs, self.lives = torch.from_numpy(obs).to(self.device), info["lives"]
        for i in np.flatnonzero(mask):
            self.history[i] = self.history[i] + [-1] if seeds is None else []
        if seeds is not None:
            self.seeds[mask] = seeds

    def reset(self, ended: np.ndarray) -> None:
        """Begin new games where ended [N] is true, from new seeds where the old are long ago."""
        reseed = ended & (np.array([len(history) for history in self.history]) > self.RESEED)
        self.begin(ended & ~reseed)
        self.begin(reseed, self.random.integers(2**31, size=reseed.sum()))

    def step(self, action: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Play action [N]; returns the raw reward, terminated, truncated, life_lost, each [N]."""
        moves = action.cpu().numpy()
        obs, reward, terminated, truncated, info = self.envs.step(moves)
        life_lost, self.lives = info["lives"] < self.lives, info["lives"]
        self.obs = torch.from_numpy(obs).to(self.device)
        for history, move in zip(self.history, moves.tolist()):
            history.append(move)
        return reward.astype(np.float32), terminated, truncated, life_lost

    def state(self) -> dict[str, Any]:
        """All that the games are: the seeds they began from, and what was played since.

        ALE's vector environment cannot be saved, but from a seed it repeats itself. Seeding is
        slow (the game is loaded anew), so it is done once in RESEED steps; in between, -1 stands
        for a new game.
        """
        history = [torch.tensor(history, dtype=torch.int8) for history in self.history]
        generator = json.dumps(self.random.bit_generator.state)
        return {"seeds": self.seeds.tolist(), "history": history, "generator": generator}

    def restore(self, state: dict[str, Any]) -> None:
        """Replay what state holds; games with less to replay wait, so that all end together."""
        todo = [history.tolist()[::-1] for history in state["history"]]  # the next move comes last
        seeds, moves = np.array(state["seeds"]), [sum(m >= 0 for m in moves) for moves in todo]
        wait = max(moves) - np.array(moves)
        for t in range(max(moves) + 1):
            self.begin(wait == t, seeds[wait == t])
            again = np.array([t >= w and h[-1:] == [-1] for w, h in zip(wait, todo)])
            self.begin(again)
            for i in np.flatnonzero(again):
                todo[i].pop()
            if t < max(moves):
                self.step(torch.tensor([h.pop() if t >= w else 0 for w, h in zip(wait, todo)]))
        self.random.bit_generator.state = json.loads(state["generator"])


# [/shared]
# [shared: orthogonal]
def orthogonal(layer: nn.Conv2d | nn.Linear, gain: float = math.sqrt(2)) -> nn.Module:
    """The layer, initialised as is usual for on-policy learning; sqrt(2) suits a ReLU behind it."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]
    return layer


# [/shared]
# [shared: standardise]
class Standardise(nn.Module):
    """Subtracts from every pixel its own mean, and divides by one deviation, that of all pixels.

    Both are taken over all that was played so far. With pixels / 255, as is usual, what never
    changes makes up most of the features, and what moves drowns in it (Burda et al. 2019,
    arXiv:1810.12894, section 2.4; there every pixel has a deviation of its own).
    """

    def __init__(self, height: int, width: int, args: Args) -> None:
        super().__init__()
        self.enabled = args.norm_obs
        # Until the first update these are what makes pixels / 255. A pixel's mean is the same in
        # all four frames; it is kept for each, to lie in memory as they do.
        self.mean = nn.Buffer(torch.zeros(1, 4, height, width))
        self.deviation = nn.Buffer(torch.tensor(255.0))
        self.square = nn.Buffer(torch.zeros(()))  # the mean square of all pixels
        self.calls = nn.Buffer(torch.zeros(()))  # of update; every call counts alike

    def forward(self, obs: Tensor) -> Tensor:
        """Bytes [B, 4, H, W] -> numbers [B, 4, H, W], about 0 where nothing moves."""
        return (obs - self.mean) / self.deviation

    @torch.no_grad()
    def update(self, newest: Tensor, over_ranks: Callable = list) -> None:
        """Add screens, bytes [B, H, W], to the running mean and deviation.

        over_ranks takes a list of tensors and returns their means over all processes that learn
        together; the default, list, leaves them as they are.
        """
        if self.enabled:
            newest = newest.float()
            mean, square = over_ranks([newest.mean(0), newest.square().mean()])
            self.calls.add_(1)
            self.mean.lerp_(mean, 1 / self.calls)
            self.square.lerp_(square, 1 / self.calls)
            variance = self.square - self.mean.square().mean()
            self.deviation.copy_(variance.clamp(min=1.0).sqrt())  # rounding may leave it below 0


# [/shared]
class Features(nn.Module):
    """The features of the last four frames: uint8 [B, 4, 105, 80] -> [B, size].

    linear: one layer, on the difference of the last two. cnn: two convolutions on all four.
    cnn-lstm: three convolutions, behind which ActorCritic puts the LSTM.
    """

    def __init__(self, args: Args) -> None:
        def layer(fan_in: int, fan_out: int, kernel: int, stride: int, pad: int) -> nn.Sequential:
            conv = orthogonal(nn.Conv2d(fan_in, fan_out, kernel, stride, pad))
            norm = [nn.BatchNorm2d(fan_out)] if args.batch_norm else []
            return nn.Sequential(conv, *norm, activation())

        super().__init__()
        if args.batch_norm and args.model == "linear":
            fail("--batch-norm stands between convolutions, and --model linear has none")
        activation = {"relu": nn.ReLU, "silu": nn.SiLU}[args.activation]
        self.difference = args.model == "linear"
        if args.model == "linear":
            layers = [nn.Flatten(), orthogonal(nn.Linear(6400, 256)), activation()]
        else:
            layers = [layer(4, 16, 8, 4, 2), layer(16, 32, 4, 2, 1)]  # [B, 32, 10, 10]
            if args.model == "cnn-lstm":
                layers.append(layer(32, 32, 4, 2, 0))  # [B, 32, 4, 4]
            layers.append(nn.Flatten())
        self.standardise = Standardise(80, 80, args)
        self.layers = nn.Sequential(*layers)
        self.size = {"linear": 256, "cnn": 3200, "cnn-lstm": 512}[args.model]

    def forward(self, obs: Tensor) -> Tensor:
        field = self.standardise(obs[:, :, 17:97])  # [B, 4, 80, 80]
        return self.layers(field[:, 3] - field[:, 2] if self.difference else field)

    def observe(self, obs: Tensor) -> None:
        """Add a chunk's newest frames, obs [T, N, 4, 105, 80], to the pixels' statistics."""
        self.standardise.update(obs[:, :, -1, 17:97].flatten(0, 1))


State = tuple[Tensor, Tensor]  # the LSTM's h and c, [1, N, 256] both


class ActorCritic(nn.Module):
    """The policy and the value of every step of a chunk, with a memory or without."""

    def __init__(self, num_actions: int, args: Args) -> None:
        super().__init__()
        self.features = Features(args)
        self.lstm = nn.LSTM(self.features.size, 256) if args.model == "cnn-lstm" else None
        size = 256 if self.lstm else self.features.size
        self.policy = orthogonal(nn.Linear(size, num_actions), gain=0.01)
        self.value = orthogonal(nn.Linear(size, 1), gain=1.0)
        # Convolutions run faster with the channels of a pixel side by side.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: Tensor, begins: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Obs [T, N, ...] and where a game begins [T, N] -> logits [T, N, A], value [T, N], state.

        state is the memory before the first step, and the one returned that after the last.
        """
        features = self.features(obs.flatten(0, 1)).float()  # [T * N, F]
        features = features.unflatten(0, obs.shape[:2])
        if self.lstm:
            features, state = self.remember(features, begins, state)
        return self.policy(features), self.value(features).squeeze(2), state

    def remember(self, features: Tensor, begins: Tensor, state: State) -> tuple[Tensor, State]:
        """Read the features [T, N, F] in order, in one call per stretch in which no game begins."""
        starts = [0, *(1 + begins[1:].any(dim=1).nonzero().flatten()).tolist()]
        assert self.lstm
        outputs = []
        for start, end in zip(starts, [*starts[1:], len(features)]):
            keep = (~begins[start]).unsqueeze(1)  # a game that begins remembers nothing
            output, state = self.lstm(features[start:end], (state[0] * keep, state[1] * keep))
            outputs.append(output)
        return torch.cat(outputs), state

    def fresh_state(self, num_envs: int) -> State:
        """The memory of games that have not begun."""
        zeros = torch.zeros(1, num_envs, 256, device=next(self.parameters()).device)
        return zeros, zeros


class Chunk(NamedTuple):
    """chunk_size steps of N games, and the memory before the first of them."""

    obs: Tensor  # [T, N, 4, 105, 80] uint8
    begins: Tensor  # [T, N], true where obs is the first of a game
    state: State
    action: Tensor  # [T, N]
    log_prob: Tensor  # [T, N], of the action, when it was taken
    value: Tensor  # [T, N], at that time
    advantage: Tensor  # [T, N]


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
class Agent(nn.Module):
    """The actor-critic, what it remembers of the games under way, and how it learns."""

    def __init__(self, num_actions: int, args: Args) -> None:
        super().__init__()
        least, init = args.temperature_min, args.temperature_init
        if not 0 < least <= init:
            fail(f"--temperature-min is {least}, and must lie above 0, up to --temperature-init")
        self.entropy_coef, self.value_coef = args.entropy_coef, args.value_coef
        self.max_grad_norm = args.max_grad_norm
        self.net = ActorCritic(num_actions, args)
        h, c = self.net.fresh_state(args.num_envs)
        # Buffers, so that the checkpoint holds the memory of games that it interrupts.
        self.h, self.c = nn.Buffer(h), nn.Buffer(c.clone())
        self.begins = nn.Buffer(torch.ones(args.num_envs, dtype=torch.bool))
        self.temperature = nn.Buffer(torch.tensor(args.temperature_init))
        # The paper divides by sqrt(g + ε), PyTorch by sqrt(g) + eps: eps = 3e-3, about sqrt(1e-5),
        # stands for the paper's ε = 1e-5. With eps = 1e-5, weights whose gradients are small take
        # full steps as well, and within ten updates the features saturate the LSTM for good.
        self.optimizer = torch.optim.RMSprop(
            self.net.parameters(),
            args.learning_rate,
            alpha=0.99,
            eps=3e-3,
            weight_decay=args.weight_decay,
        )

    def policy(self, logits: Tensor) -> Tensor:
        """The log-probabilities of the logits divided by the temperature."""
        return (logits / self.temperature).log_softmax(-1)

    @torch.no_grad()
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, State]:
        """Log-probabilities [N, A] and value [N] of obs [N, ...], and the memory after it."""
        state = self.h, self.c
        logits, value, state = self.net.eval()(obs[None], self.begins[None], state)
        return self.policy(logits[0]), value[0], state

    def loss(self, chunk: Chunk) -> tuple[Tensor, dict[str, Tensor]]:
        """-log π(a|s) A + c (V(s) - R)² / 2 - β H(π) (paper, section 4), and what to log."""
        logits, value, _ = self.net.train()(chunk.obs, chunk.begins, chunk.state)
        log_probs = self.policy(logits)  # [T, N, A]
        log_prob = log_probs.gather(2, chunk.action.unsqueeze(2)).squeeze(2)  # [T, N]
        policy_loss = -(log_prob * chunk.advantage).mean()
        value_loss = 0.5 * F.mse_loss(value, chunk.value + chunk.advantage)
        entropy = -(log_probs.exp() * log_probs).sum(2).mean()
        loss = policy_loss - self.entropy_coef * entropy + self.value_coef * value_loss
        losses = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        return loss, {name: value.detach() for name, value in losses.items()}

    def update(self, chunk: Chunk) -> dict[str, Tensor]:
        """Learn from a chunk, once; returns what to log."""
        loss, log = self.loss(chunk)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.net.features.observe(chunk.obs)  # only now: the loss had to see what act saw
        log["weight_norm"] = nn.utils.get_total_norm(self.net.parameters()).detach()
        return log

    def player(self, num_games: int) -> Callable[[Tensor], Tensor]:
        """The policy for num_games new games side by side, with a memory of its own."""
        state = self.net.fresh_state(num_games)
        begins = torch.zeros(1, num_games, dtype=torch.bool, device=self.begins.device)

        def play_on(obs: Tensor) -> Tensor:
            nonlocal state
            logits, _, state = self.net.eval()(obs[None], begins, state)
            return self.policy(logits[0])

        return play_on


@torch.no_grad()
def collect(games: AtariGames, agent: Agent, args: Args) -> tuple[Chunk, np.ndarray, np.ndarray]:
    """Play a chunk; returns it, and [T, N] the raw rewards and where games ended."""
    rewards, ended = np.zeros((2, args.chunk_size, games.num_envs), np.float32)
    state, columns = (agent.h.clone(), agent.c.clone()), []
    log_probs, value, memory = agent.act(games.obs)
    for t in range(args.chunk_size):
        obs, begins = games.obs, agent.begins.clone()
        action = log_probs.exp().multinomial(1)  # [N, 1]
        log_prob = log_probs.gather(1, action).squeeze(1)
        rewards[t], terminated, truncated, life_lost = games.step(action.squeeze(1))
        ended[t] = terminated | truncated
        # Where a life is lost the game goes on, and so does the memory; that life earns no more.
        terminated |= life_lost & args.episodic_life
        reward = np.sign(rewards[t]) if args.clip_rewards else rewards[t]

        # The memory goes on where the game does. Where a game is cut off, take the value of its
        # last observation before a new game begins.
        agent.h.copy_(memory[0])
        agent.c.copy_(memory[1])
        agent.begins.zero_()
        last_value = agent.act(games.obs)[1] if truncated.any() else value
        games.reset(ended[t] > 0)
        agent.begins.copy_(torch.as_tensor(ended[t] > 0))
        row = [obs, begins, action.squeeze(1), log_prob, value]
        log_probs, value, memory = agent.act(games.obs)
        cut_off = torch.as_tensor(truncated, device=value.device)
        next_value = torch.where(cut_off, last_value, value)
        ends = [to_tensor(part, args.device) for part in (terminated, terminated | truncated)]
        columns.append([*row, to_tensor(reward, args.device), next_value, *ends])

    obs, begins, action, log_prob, value, *rest = (torch.stack(column) for column in zip(*columns))
    reward, next_value, lost, over = rest
    advantage = advantages(reward, value, next_value, lost, over, args.gamma, args.gae_lambda)
    return Chunk(obs, begins, state, action, log_prob, value, advantage), rewards, ended > 0


def temperature(args: Args, episodes: int) -> float:
    """T after that many finished games: linear from its first to its least value."""
    init, least = args.temperature_init, args.temperature_min
    return max(least, init - (init - least) * episodes / args.temperature_decay_episodes)


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint, and return the run folder."""
    start_torch(args)
    games = AtariGames(args, args.num_envs, [args.seed, 0])
    agent, run = Agent(games.num_actions, args).to(args.device), Progress()
    if checkpoint:
        run = restore(checkpoint, agent, games)
    agent.net.features.forward = compiled(agent.net.features.forward, args)  # type: ignore
    run_dir = open_run(args)
    logger = Logger(args, run_dir, run.env_step, run.seconds)
    episodes = 0
    if checkpoint:
        logger.returns, logger.lengths = map(np.array, checkpoint["unfinished"])
        episodes = checkpoint["episodes"]
    interrupt, saved_at, finished = Interrupt(), run.env_step, False

    while not finished:
        # Anneal
        start = run.env_step
        share_left = 1 - start / args.total_timesteps if args.anneal_lr else 1.0
        agent.optimizer.param_groups[0]["lr"] = args.learning_rate * share_left
        agent.temperature.fill_(temperature(args, episodes))

        # Play and learn, once from every chunk
        chunk, rewards, ended = collect(games, agent, args)
        losses = agent.update(chunk)
        run.env_step += args.chunk_size * args.num_envs
        run.updates += 1
        episodes += int(ended.sum())

        # Log
        for t in range(args.chunk_size):
            logger.step(start + (t + 1) * args.num_envs, rewards[t], ended[t])
        logger.losses(run.env_step, losses | {"temperature": agent.temperature})

        # Evaluate
        finished = run.env_step >= args.total_timesteps
        if finished or run.env_step // args.eval_interval > start // args.eval_interval:
            policy = agent.player(args.eval_episodes)
            result = evaluate(policy, args, run.env_step, run_dir / "videos")
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
            everything = whole_state(agent, games) | {
                "episodes": episodes,
                "unfinished": [logger.returns.tolist(), logger.lengths.tolist()],
            }
            save_checkpoint(run_dir / "checkpoint.pt", args, run, everything)
            if interrupt.number:
                break

    logger.close()
    interrupt.end(run, run_dir, finished)
    return run_dir


# [shared: atari evaluation]
@torch.no_grad()
def evaluate(
    policy: Callable[[Tensor], Tensor], args: Args, env_step: int, video_dir: Path
) -> dict[str, float]:
    """Play whole games side by side with policy ([N, ...] -> logits [N, A]), for their raw scores.

    Returns evaluations.csv's columns. Games and draws follow from the step, and from no generator
    of the training, so that a resumed run is evaluated like one that was never interrupted.
    """
    games = AtariGames(args, args.eval_episodes, [args.seed, env_step, 1])
    random = torch.Generator(args.device).manual_seed(args.seed + env_step)
    playing, frames = np.ones(games.num_envs, bool), []
    returns, lengths = np.zeros((2, games.num_envs))
    if args.capture_video:  # the first game once more, in colour and in full
        camera = AtariGames(args, 1, [args.seed, env_step, 1], size=(210, 160), colour=True)
    while playing.any():
        logits = policy(games.obs)
        drawn = logits.softmax(1).multinomial(1, generator=random).squeeze(1)
        action = logits.argmax(1) if args.greedy_eval else drawn
        if args.capture_video and playing[0]:
            frames.append(camera.obs[0, -1].cpu().numpy())
            camera.step(action[:1])
        reward, terminated, truncated, _ = games.step(action)
        returns += reward * playing
        lengths += playing
        playing &= ~(terminated | truncated)
    if frames:
        prefix = f"step-{env_step}"
        save_video(frames, str(video_dir), lambda _: True, fps=15, name_prefix=prefix)
    return {
        "mean_return": float(returns.mean()),
        "std_return": float(returns.std()),
        "min_return": float(returns.min()),
        "max_return": float(returns.max()),
        "mean_length": float(lengths.mean()),
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
def whole_state(agent: Agent, games: AtariGames) -> dict[str, Any]:
    """What a run is between two chunks: network, memory, optimizer, games, generators."""
    return {
        "agent": agent.state_dict(),
        "optimizer": agent.optimizer.state_dict(),
        "games": games.state(),
        "torch_rng": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
    }


def restore(checkpoint: dict[str, Any], agent: Agent, games: AtariGames) -> Progress:
    """Put back what whole_state took, and return the run's counters."""
    agent.load_state_dict(checkpoint["agent"])
    agent.optimizer.load_state_dict(checkpoint["optimizer"])
    games.restore(checkpoint["games"])
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
AT_LEAST_1 = """total_timesteps num_envs chunk_size temperature_decay_episodes eval_interval
    eval_episodes save_interval max_episode_frames"""
AT_LEAST_0 = """seed learning_rate weight_decay entropy_coef value_coef max_grad_norm
    temperature_init temperature_min"""
FROM_0_TO_1 = "gamma gae_lambda sticky_actions"
FIXED = """env_id seed num_envs model activation batch_norm norm_obs sticky_actions
    full_action_space max_episode_frames"""
UNSEEN = "seed sticky_actions"  # of these, what an evaluation may change all the same
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
# [shared: atari play]
def play(args: Args, checkpoint: dict[str, Any] | None, path: Path | None) -> None:
    """Play whole games with the policy that --evaluate names, and print their scores."""
    start_torch(args)
    num_actions = AtariGames(args, 1, [0]).num_actions
    agent = Agent(num_actions, args).to(args.device)
    policy = agent.player(args.eval_episodes)
    if args.evaluate == "random":
        args.greedy_eval = False  # of equal logits none is the likeliest
        policy = lambda obs: torch.zeros(len(obs), num_actions, device=obs.device)  # noqa: E731
    env_step, videos = 0, Path("videos")
    if checkpoint and path:
        agent.load_state_dict(checkpoint["agent"])
        env_step, videos = checkpoint["run"]["env_step"], path.parent / "videos"
    print(
        "return {mean_return:.1f} ± {std_return:.1f} over {episodes:.0f} episodes, from "
        "{min_return:.1f} to {max_return:.1f}; mean length {mean_length:.0f}".format(
            **evaluate(policy, args, env_step, videos)
        )
    )


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
# ]
# ///
