"""Proximal Policy Optimization (PPO) on Atari games, from their pixels.

A policy plays for a while; then every action that turned out better than expected is made more
likely, and every worse one less so. "Proximal": the data are used several times over, which goes
well only near the policy that gathered them, so a clipped objective takes away the reason to
move an action's probability by more than a tenth.

Paper: Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347
Run:   python ppo_atari.py --env-id ALE/Pong-v5
       torchrun --nproc-per-node 2 ppo_atari.py    (several GPUs, or several nodes)
Score: Pong 20 (three seeds), Breakout 42 (one), mean of the last 100 training games of 2M steps,
       94 to 106 minutes each (benchmark/studies/ppo_atari.sh)
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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TextIO

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import tyro
from ale_py.vector_env import AtariVectorEnv
from gymnasium.utils.save_video import save_video
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = Path(__file__).stem
FRAME = (84, 84)  # height and width of what the network sees


@dataclass
class Args:
    # Task. Lengths are in environment steps, summed over all parallel environments, unless said
    # otherwise; a step is four frames. With torchrun the ranks share environments and minibatches.
    env_id: str = "ALE/Pong-v5"  # any of ALE's games
    total_timesteps: int = 10_000_000  # length of the training
    num_envs: int = 8  # games played side by side
    seed: int = 1  # of the networks, the actions and the games
    sticky_actions: float = 0.0  # chance that a frame repeats the action before; Machado's is 0.25
    episodic_life: bool = True  # while learning, the loss of a life ends what can still be earned
    clip_rewards: bool = True  # while learning, of a reward only its sign counts
    full_action_space: bool = False  # all 18 actions, also those that this game ignores
    max_episode_frames: int = 108_000  # a game is cut off here, after half an hour of play
    norm_obs: bool = True  # centre every pixel on its mean, see Standardise; else pixels / 255

    # Learning. The defaults are those of OpenAI's code, which differ a little from the paper's.
    num_steps: int = 128  # steps of every game between two learning phases
    num_minibatches: int = 4  # parts into which these steps are split for learning
    update_epochs: int = 4  # passes over these steps
    learning_rate: float = 2.5e-4  # Adam's step size
    anneal_lr: bool = True  # let it fall to 0 over the run, linearly
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # 0: advantages from one step, biased; 1: from all, noisy
    clip_coef: float = 0.1  # a ratio further than this from 1 gains nothing more
    clip_value_loss: bool = True  # clip the value's change likewise, as OpenAI's code does
    norm_advantage: bool = True  # scale advantages to mean 0, standard deviation 1 per minibatch
    entropy_coef: float = 0.01  # weight of the entropy bonus
    value_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # largest norm of the gradient, over all parameters together
    target_kl: float | None = None  # end a learning phase when the policy has moved this far

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
    compile: bool = True  # compile acting and learning: slow to start, then faster
    bfloat16: bool = False  # multiply matrices in bfloat16: faster, less exact
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
class ActorCritic(nn.Module):
    """The policy and the value, on the convolutions of Mnih et al. 2015: obs [B, 4, 84, 84]."""

    def __init__(self, num_actions: int, args: Args) -> None:
        super().__init__()
        self.standardise = Standardise(*FRAME, args)
        self.features = nn.Sequential(
            orthogonal(nn.Conv2d(4, 32, 8, stride=4)),  # [B, 32, 20, 20]
            nn.ReLU(),
            orthogonal(nn.Conv2d(32, 64, 4, stride=2)),  # [B, 64, 9, 9]
            nn.ReLU(),
            orthogonal(nn.Conv2d(64, 64, 3)),  # [B, 64, 7, 7]
            nn.ReLU(),
            nn.Flatten(),
            orthogonal(nn.Linear(64 * 7 * 7, 512)),
            nn.ReLU(),
        )
        # The small gain makes all actions about equally likely at first.
        self.policy = orthogonal(nn.Linear(512, num_actions), gain=0.01)
        self.value = orthogonal(nn.Linear(512, 1), gain=1.0)
        # Convolutions run several times faster with the channels of a pixel side by side.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 frames [B, 4, 84, 84] -> logits of the actions [B, A], value [B]."""
        pixels = obs.to(memory_format=torch.channels_last)
        features = self.features(self.standardise(pixels))
        with torch.autocast(obs.device.type, enabled=False):  # bfloat16's 8 bits are too few here
            features = features.float()
            return self.policy(features), self.value(features).squeeze(1)


class Batch(NamedTuple):
    """Steps to learn from, drawn out of a rollout."""

    obs: Tensor  # [B, 84, 84, 4] uint8, the four frames last
    action: Tensor  # [B]
    log_prob: Tensor  # [B], of the action, when it was taken
    value: Tensor  # [B], at that time
    advantage: Tensor  # [B]
    returns: Tensor  # [B], what the value should have been


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
    """What num_steps steps of N games brought, in tensors [T, N, ...] made once."""

    def __init__(self, num_envs: int, args: Args) -> None:
        shape, device = (args.num_steps, num_envs), args.device
        steps, parts = num_envs * args.num_steps, args.num_minibatches
        if steps % parts or steps < 2 * parts:
            fail(f"--num-minibatches is {parts}, and must divide {steps} steps into 2 or more each")
        # [T, N, 84, 84, 4]: the four frames last, as the convolutions read them in memory.
        self.obs = torch.zeros(*shape, *FRAME, 4, dtype=torch.uint8, device=device)
        self.action = torch.zeros(shape, dtype=torch.int64, device=device)
        self.log_prob, self.reward, self.value, self.next_value, self.terminated, self.ended = (
            torch.zeros(shape, device=device) for _ in range(6)
        )

    @torch.no_grad()
    def collect(self, games: AtariGames, act: Callable, args: Args) -> tuple[np.ndarray, ...]:
        """Play and note num_steps steps; returns raw rewards and where games ended, both [T, N]."""
        rewards, ended = np.zeros((2, *self.value.shape), np.float32)
        log_probs, value = act(games.obs)
        for t in range(args.num_steps):
            action = log_probs.exp().multinomial(1)  # [N, 1]
            self.log_prob[t] = log_probs.gather(1, action).squeeze(1)
            self.obs[t] = games.obs.permute(0, 2, 3, 1)  # [N, 84, 84, 4]
            self.action[t], self.value[t] = action.squeeze(1), value

            rewards[t], terminated, truncated, life_lost = games.step(self.action[t])
            ended[t] = terminated | truncated
            # Where a life is lost the game goes on, but that life earns nothing more.
            terminated |= life_lost & args.episodic_life
            reward = np.sign(rewards[t]) if args.clip_rewards else rewards[t]
            self.reward[t] = to_tensor(reward, args.device)
            self.terminated[t] = to_tensor(terminated, args.device)
            self.ended[t] = to_tensor(terminated | truncated, args.device)

            # Where a game is cut off, take the value of its last observation before the new
            # game's first one replaces it.
            last_value = act(games.obs)[1] if truncated.any() else value
            games.reset(ended[t] > 0)
            log_probs, value = act(games.obs)
            cut_off = torch.as_tensor(truncated, device=value.device)
            self.next_value[t] = torch.where(cut_off, last_value, value)
        return rewards, ended > 0

    def batch(self, args: Args) -> Batch:
        """All steps as one batch [T * N], with their advantages."""
        steps = self.reward, self.value, self.next_value, self.terminated, self.ended
        advantage = advantages(*steps, args.gamma, args.gae_lambda)
        returns = advantage + self.value
        parts = self.obs, self.action, self.log_prob, self.value, advantage, returns
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
    """The actor-critic, and how it learns."""

    def __init__(self, num_actions: int, args: Args) -> None:
        super().__init__()
        self.clip_coef, self.clip_value_loss = args.clip_coef, args.clip_value_loss
        self.entropy_coef, self.value_coef = args.entropy_coef, args.value_coef
        self.max_grad_norm = args.max_grad_norm
        self.net = ActorCritic(num_actions, args)
        self.optimizer = Adam(self.net.parameters(), args.learning_rate, eps=1e-5)

    @torch.no_grad()
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of every action's probability [N, A], and the value [N]."""
        logits, value = self.net(obs)
        return logits.log_softmax(1), value

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The paper's equation 9, to be minimised, and what to log."""
        logits, value = self.net(batch.obs.permute(0, 3, 1, 2))  # obs as [B, 4, 84, 84]
        log_probs = logits.log_softmax(1)  # [B, A]
        log_prob = log_probs.gather(1, batch.action.unsqueeze(1)).squeeze(1)  # [B]
        entropy = -(log_probs.exp() * log_probs).sum(1).mean()

        # L = E min(r A, clip(r, 1 - ε, 1 + ε) A),  r = π(a|s) / π_old(a|s)   (equation 7)
        log_ratio = log_prob - batch.log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.clip_coef, 1 + self.clip_coef)
        policy_loss = -torch.min(ratio * batch.advantage, clipped * batch.advantage).mean()

        error = (value - batch.returns).square()
        if self.clip_value_loss:
            change = (value - batch.value).clamp(-self.clip_coef, self.clip_coef)
            error = torch.max(error, (batch.value + change - batch.returns).square())
        value_loss = 0.5 * error.mean()

        loss = policy_loss - self.entropy_coef * entropy + self.value_coef * value_loss
        with torch.no_grad():
            # An estimate of the Kullback-Leibler divergence that is never negative, with less
            # variance than the mean of -log r (Schulman 2020, joschu.net/blog/kl-approx.html).
            approx_kl = (ratio - 1 - log_ratio).mean()
            clip_fraction = ((ratio - 1).abs() > self.clip_coef).float().mean()
        return loss, {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "approx_kl": approx_kl,
            "clipfrac": clip_fraction,
        }

    def gradients(self, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The loss's gradient with respect to every parameter, and what to log."""
        loss, log = self.loss(batch)
        return list(torch.autograd.grad(loss, list(self.net.parameters()))), log

    @torch.no_grad()
    def step(self, grads: list[Tensor]) -> None:
        """A step of Adam, on gradients scaled down to max_grad_norm where they are longer."""
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self.optimizer.step([grad * scale for grad in grads])

    def player(self, num_games: int) -> Callable[[Tensor], Tensor]:
        """The policy for num_games new games side by side: obs [N, 4, 84, 84] -> logits [N, A].

        Without a memory it need not know how many there are.
        """
        return lambda obs: self.net(obs)[0]


class Ranks:
    """The processes that torchrun started, one per GPU; without torchrun, this one alone.

    Each plays its share of the games and learns from its share of every minibatch. Gradients are
    averaged before they are clipped, so that all take the step that one process would have taken.
    """

    def __init__(self, args: Args) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        if self.size == 1:
            return
        if args.num_envs % self.size:
            fail(f"--num-envs is {args.num_envs}, which {self.size} ranks cannot share evenly")
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """Each tensor's mean over the ranks, in one message."""
        if self.size == 1:
            return tensors
        flat = torch.cat([tensor.flatten() for tensor in tensors]) / self.size
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors)]

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """End the process group: its threads abort the process if they outlive the interpreter."""
        if self.size > 1:
            dist.destroy_process_group()


def normalised(advantage: Tensor, ranks: Ranks) -> Tensor:
    """Mean 0 and deviation 1 over the minibatch, the parts of all ranks together."""
    mean, square = ranks.mean([advantage.mean(), advantage.square().mean()])
    count = advantage.numel() * ranks.size
    deviation = ((square - mean.square()) * count / (count - 1)).clamp(min=0).sqrt()
    return (advantage - mean) / (deviation + 1e-8)


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint, and return the run folder."""
    start_torch(args)
    ranks = Ranks(args)
    games = AtariGames(args, args.num_envs // ranks.size, [args.seed, ranks.rank])
    agent = Agent(games.num_actions, args).to(args.device)  # the same weights in every rank
    torch.manual_seed(args.seed + 1_000_000 * ranks.rank)  # from here on, each draws its own
    rollout, run = Rollout(games.num_envs, args), Progress()
    if checkpoint:
        run = restore(checkpoint, agent, games, ranks)
    run_dir = open_run(args) if ranks.rank == 0 else Path()
    if ranks.rank == 0:
        logger = Logger(args, run_dir, run.env_step, run.seconds)
        if checkpoint:
            logger.returns, logger.lengths = map(np.array, checkpoint["unfinished"])
    act, gradients, step = (compiled(f, args) for f in (agent.act, agent.gradients, agent.step))
    interrupt, saved_at, finished = Interrupt(), run.env_step, False

    while not finished:
        # Anneal
        start = run.env_step
        share_left = 1 - start / args.total_timesteps if args.anneal_lr else 1.0
        agent.optimizer.learning_rate.fill_(args.learning_rate * share_left)

        # Play
        rewards, ended = rollout.collect(games, act, args)
        run.env_step += args.num_steps * args.num_envs

        # Learn: several passes over the rollout, in minibatches shuffled anew for each
        data, logs = rollout.batch(args), []
        for _ in range(args.update_epochs):
            order = torch.randperm(len(data.action)).to(args.device)
            for index in order.chunk(args.num_minibatches):
                # Faster than part[index]: the frames of a step are copied in one piece.
                batch = Batch(*(part.index_select(0, index) for part in data))
                if args.norm_advantage:
                    batch = batch._replace(advantage=normalised(batch.advantage, ranks))
                grads, log = gradients(batch)
                step(ranks.mean(grads))
                run.updates += 1
                logs.append(log)
            kl = log["approx_kl"]
            if args.target_kl is not None and ranks.mean([kl])[0] > args.target_kl:
                break

        # Only now: in every pass the policy had to see what it saw when it played.
        agent.net.standardise.update(data.obs[..., -1], ranks.mean)  # the newest of four frames

        # Log: the games of all ranks, the losses of the first one's share
        finished = run.env_step >= args.total_timesteps
        played = ranks.gather((rewards, ended))
        if ranks.rank == 0:
            rewards, ended = (np.concatenate(part, axis=1) for part in zip(*played))
            for t in range(args.num_steps):
                logger.step(start + (t + 1) * args.num_envs, rewards[t], ended[t])
            losses = {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
            unexplained = (data.returns - data.value).var() / data.returns.var().clamp(min=1e-8)
            losses["explained_variance"] = 1 - unexplained
            # What the last minibatch did to the weights shows in no loss yet.
            losses["weight_norm"] = nn.utils.get_total_norm(agent.net.parameters()).detach()
            logger.losses(run.env_step, losses)

        # Evaluate
        due = run.env_step // args.eval_interval > start // args.eval_interval
        if (finished or due) and ranks.rank == 0:
            policy = agent.player(args.eval_episodes)
            result = evaluate(policy, args, run.env_step, run_dir / "videos")
            logger.evaluation(run.env_step, result)
            run.evaluations.append(result["mean_return"])
            if result["mean_return"] > run.best_return:
                run.best_return = result["mean_return"]
                save_checkpoint(run_dir / "best.pt", args, run, {"agent": agent.state_dict()})
        if args.stop_at_return is not None:
            run.evaluations = ranks.gather(run.evaluations)[0]
            last = run.evaluations[-3:]
            finished |= len(last) == 3 and min(last) >= args.stop_at_return

        # Save
        interrupt.number = max(ranks.gather(interrupt.number))
        if finished or interrupt.number or run.env_step - saved_at >= args.save_interval:
            saved_at = run.env_step
            everything = whole_state(agent, games, ranks)
            if ranks.rank == 0:
                run.seconds = logger.seconds()
                everything["unfinished"] = [logger.returns.tolist(), logger.lengths.tolist()]
                save_checkpoint(run_dir / "checkpoint.pt", args, run, everything)
            if interrupt.number:
                break

    ranks.close()
    if ranks.rank == 0:
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
def whole_state(agent: nn.Module, games: AtariGames, ranks: Ranks) -> dict[str, Any]:
    """What a run is between two rollouts: network, optimizer, games, generators, of every rank."""
    rng = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    mine = {"games": games.state(), "torch_rng": rng}
    return {"agent": agent.state_dict(), "ranks": ranks.gather(mine)}


def restore(
    checkpoint: dict[str, Any], agent: nn.Module, games: AtariGames, ranks: Ranks
) -> Progress:
    """Put back what whole_state took, and return the run's counters."""
    size = len(checkpoint["ranks"])
    if size != ranks.size:
        start = "python" if size == 1 else f"torchrun --nproc-per-node {size}"
        fail(f"this run has {size} ranks, which cannot be changed; resume it with {start}")
    mine = checkpoint["ranks"][ranks.rank]
    agent.load_state_dict(checkpoint["agent"])
    games.restore(mine["games"])
    torch.set_rng_state(mine["torch_rng"][0])
    for i, state in enumerate(mine["torch_rng"][1 : 1 + torch.cuda.device_count()]):
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
    eval_episodes save_interval max_episode_frames"""
AT_LEAST_0 = "seed learning_rate clip_coef entropy_coef value_coef max_grad_norm target_kl"
FROM_0_TO_1 = "gamma gae_lambda sticky_actions"
FIXED = """env_id seed num_envs num_steps norm_obs sticky_actions full_action_space
    max_episode_frames"""
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
