"""Train Stable-Baselines3 with the settings of our scripts, and write a run folder like theirs.

    pip install -r benchmark/requirements.txt
    python benchmark/parity.py --algorithm td3 --env-id HopperBulletEnv-v0 --seed 1 \
        --total-timesteps 150_000 --run-dir runs/HopperBulletEnv-v0__sb3_td3__1
    python benchmark/parity.py --algorithm ppo --env-id ALE/Pong-v5 --seed 1 \
        --total-timesteps 1_000_000 --run-dir runs/ALE-Pong-v5__sb3_ppo__1

The run folder holds episodes.csv and evaluations.csv, in the columns of our scripts, and args.json.
Evaluations come at the same steps and play as many episodes: without noise in continuous control;
in Atari with sampled actions, whole games and raw scores. A run that has its final evaluation is
skipped; an interrupted one starts again from the beginning.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

# Our scripts' defaults, under the names of our flags; tests/test_parity.py compares them.
OFF_POLICY: dict[str, Any] = {
    "num_envs": 1,
    "actor_hidden_sizes": (256, 256),
    "critic_hidden_sizes": (256, 256),
    "layer_norm": False,
    "weights_init": "default",
    "bias_init": "default",
    "gamma": 0.98,
    "batch_size": 256,
    "learning_starts": 10_000,
    "updates_per_step": 1,
    "eval_interval": 25_000,
    "eval_episodes": 10,
}
DETERMINISTIC: dict[str, Any] = OFF_POLICY | {
    "tau": 0.005,
    "actor_learning_rate": 7e-4,
    "critic_learning_rate": 7e-4,
    "buffer_size": 200_000,
    "noise_type": "gaussian",
    "noise_std": 0.1,
    "noise_decay_steps": 0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ddpg": DETERMINISTIC,
    "td3": DETERMINISTIC
    | {"num_critics": 2, "policy_delay": 2, "target_noise_std": 0.2, "target_noise_clip": 0.5},
    "sac": OFF_POLICY
    | {
        "tau": 0.02,
        "actor_learning_rate": 7.3e-4,
        "critic_learning_rate": 7.3e-4,
        "alpha_learning_rate": 7.3e-4,
        "buffer_size": 300_000,
        "num_critics": 2,
        "update_every": 1,
        "autotune": True,
        "init_alpha": 1.0,
        "target_entropy": "auto",
    },
    "ppo": {
        "num_envs": 8,
        "sticky_actions": 0.0,
        "episodic_life": True,
        "clip_rewards": True,
        "full_action_space": False,
        "max_episode_frames": 108_000,
        "num_steps": 128,
        "num_minibatches": 4,
        "update_epochs": 4,
        "learning_rate": 2.5e-4,
        "anneal_lr": True,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_coef": 0.1,
        "clip_value_loss": True,
        "norm_advantage": True,
        "entropy_coef": 0.01,
        "value_coef": 0.5,
        "max_grad_norm": 0.5,
        "target_kl": None,
        "eval_interval": 500_000,
        "eval_episodes": 10,
        "greedy_eval": False,
    },
}
# Where Stable-Baselines3 differs and has no setting for it:
# - DDPG, TD3: exploration noise is added to the random actions before learning_starts too.
# - SAC: the log std has no gradient outside of [-20, 2], the log probability of a squashed action
#   has 1e-6 inside its logarithm, and alpha has no upper bound.
# - PPO: with value clipping the loss is that of the clipped value; ours, like OpenAI's, is the
#   larger of the clipped and the unclipped loss. There is no running mean of pixels (--norm-obs):
#   the network sees pixels / 255, as ours does with --no-norm-obs. A game begins with 1 to 30
#   no-ops, with ALE's vector environment, which ours plays, with 0 to 28 behind the fire button.
COLUMNS = {
    "episodes": "env_step,episodic_return,episodic_length,seconds",
    "evaluations": "env_step,seconds,mean_return,std_return,min_return,max_return,mean_length,"
    "episodes",
}


class FireReset(gym.Wrapper):
    """Press fire once when a game begins, in games that have a fire button."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**options)
        meanings = self.get_wrapper_attr("get_action_meanings")()
        if "FIRE" in meanings:
            obs, _, _, _, info = self.env.step(meanings.index("FIRE"))
        return obs, info


class EpisodicLife(gym.Wrapper):
    """Losing a life counts as termination, but the game goes on: only its end resets it."""

    ended = True

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        if self.ended:
            self.obs, _ = self.env.reset(**options)
            self.ended, self.lives = False, self.get_wrapper_attr("ale").lives()
        return self.obs, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.ended = terminated or truncated
        before, self.lives = self.lives, self.get_wrapper_attr("ale").lives()
        return self.obs, reward, terminated or self.lives < before, truncated, info


def make_continuous(env_id: str) -> gym.Env:
    """A continuous control task whose returns are logged."""
    if "BulletEnv" in env_id:
        import pybullet_envs_gymnasium  # noqa: F401 (registers its environments)
    return Monitor(gym.wrappers.FlattenObservation(gym.make(env_id, disable_env_checker=True)))


def make_game(env_id: str, learning: bool, noop_max: int = 30) -> gym.Env:
    """An Atari game with the preprocessing of our AtariGames, built from Gymnasium's wrappers.

    Observations are uint8 [4, 84, 84]. The returns logged are raw scores of whole games; for
    learning, rewards are clipped to their sign, and losing a life counts as termination.
    """
    import ale_py

    gym.register_envs(ale_py)
    ppo = SETTINGS["ppo"]
    game: gym.Env = gym.make(
        env_id,
        frameskip=1,  # AtariPreprocessing skips frames
        repeat_action_probability=ppo["sticky_actions"],
        full_action_space=ppo["full_action_space"],
        max_num_frames_per_episode=ppo["max_episode_frames"],
        disable_env_checker=True,
    )
    game = gym.wrappers.AtariPreprocessing(FireReset(game), noop_max=noop_max, frame_skip=4)
    game = gym.wrappers.FrameStackObservation(Monitor(game), 4, padding_type="zero")
    if not learning:
        return game
    return gym.wrappers.TransformReward(
        EpisodicLife(game), lambda reward: float(np.sign(float(reward)))
    )


def make_model(algorithm: str, env: VecEnv, seed: int, total_timesteps: int) -> BaseAlgorithm:
    """Stable-Baselines3's agent with SETTINGS."""
    s = SETTINGS[algorithm]
    common = {"gamma": s["gamma"], "seed": seed, "device": "cpu"}
    if algorithm == "ppo":
        rollout = s["num_steps"] * s["num_envs"]

        def learning_rate(share_left: float) -> float:
            # Stable-Baselines3 counts the rollout that it learns from as done, ours does not yet.
            return s["learning_rate"] * (share_left + rollout / total_timesteps)

        return PPO(
            "CnnPolicy",
            env,
            learning_rate=learning_rate,
            n_steps=s["num_steps"],
            batch_size=rollout // s["num_minibatches"],
            n_epochs=s["update_epochs"],
            gae_lambda=s["gae_lambda"],
            clip_range=s["clip_coef"],
            clip_range_vf=s["clip_coef"],
            normalize_advantage=s["norm_advantage"],
            ent_coef=s["entropy_coef"],
            vf_coef=s["value_coef"] / 2,  # of the squared error; our value loss is half of that
            max_grad_norm=s["max_grad_norm"],
            target_kl=s["target_kl"],
            **common,
        )
    sizes = {"pi": list(s["actor_hidden_sizes"]), "qf": list(s["critic_hidden_sizes"])}
    common |= {
        "learning_rate": s["actor_learning_rate"],  # one for all networks, as with our defaults
        "buffer_size": s["buffer_size"],
        "learning_starts": s["learning_starts"],
        "batch_size": s["batch_size"],
        "tau": s["tau"],
        "train_freq": 1,
        "gradient_steps": s["updates_per_step"],
    }
    if algorithm == "sac":
        alpha = {"ent_coef": f"auto_{s['init_alpha']}", "target_entropy": s["target_entropy"]}
        network = {"net_arch": sizes, "n_critics": s["num_critics"]}
        return SAC("MlpPolicy", env, policy_kwargs=network, **alpha, **common)
    zeros = np.zeros(env.action_space.shape or ())
    common["action_noise"] = NormalActionNoise(zeros, zeros + s["noise_std"])
    if algorithm == "ddpg":
        return DDPG("MlpPolicy", env, policy_kwargs={"net_arch": sizes}, **common)
    return TD3(
        "MlpPolicy",
        env,
        policy_delay=s["policy_delay"],
        target_policy_noise=s["target_noise_std"],
        target_noise_clip=s["target_noise_clip"],
        policy_kwargs={"net_arch": sizes, "n_critics": s["num_critics"]},
        **common,
    )


class Recorder(BaseCallback):
    """Writes episodes.csv, and evaluates after the updates of a step as our scripts do."""

    def __init__(self, evaluate: Callable[[], dict[str, float]], run_dir: Path, interval: int):
        super().__init__()
        self.evaluate, self.interval, self.evaluated = evaluate, interval, 0
        self.started = time.time()
        self.files = {name: (run_dir / f"{name}.csv").open("w", buffering=1) for name in COLUMNS}
        for name, columns in COLUMNS.items():
            self.files[name].write(columns + "\n")

    def row(self, name: str, values: dict[str, float]) -> None:
        values = {**values, "env_step": self.num_timesteps}
        values["seconds"] = round(time.time() - self.started, 2)
        self.files[name].write(",".join(str(values[c]) for c in COLUMNS[name].split(",")) + "\n")

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if episode := info.get("episode"):
                values = {"episodic_return": episode["r"], "episodic_length": episode["l"]}
                self.row("episodes", values)
        return True

    def _on_rollout_start(self) -> None:  # the updates of the rollout before are done
        if self.num_timesteps // self.interval > self.evaluated // self.interval:
            self.evaluated = self.num_timesteps
            self.row("evaluations", self.evaluate())

    def _on_training_end(self) -> None:
        self.row("evaluations", self.evaluate())
        for file in self.files.values():
            file.close()


def finished(run_dir: Path, total_timesteps: int) -> bool:
    """Whether the folder holds the evaluation at the end of the run."""
    path = run_dir / "evaluations.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    return bool(rows) and int(rows[-1]["env_step"]) >= total_timesteps


def train(args: argparse.Namespace) -> None:
    """One run of the peer, with all that it writes."""
    s = SETTINGS[args.algorithm]
    atari = args.algorithm == "ppo"

    def make_env(learning: bool) -> gym.Env:
        return make_game(args.env_id, learning) if atari else make_continuous(args.env_id)

    def evaluate() -> dict[str, float]:
        returns, lengths = evaluate_policy(
            model,
            eval_envs,
            args.eval_episodes,
            deterministic=not atari,
            return_episode_rewards=True,
        )
        return {
            "mean_return": float(np.mean(returns)),
            "std_return": float(np.std(returns)),
            "min_return": float(np.min(returns)),
            "max_return": float(np.max(returns)),
            "mean_length": float(np.mean(lengths)),
            "episodes": args.eval_episodes,
        }

    args.run_dir.mkdir(parents=True, exist_ok=True)
    packages = ["stable-baselines3", "torch", "gymnasium"]
    about = {**vars(args), "exp_name": f"sb3_{args.algorithm}", "settings": s}
    about["versions"] = {package: version(package) for package in packages}
    (args.run_dir / "args.json").write_text(json.dumps(about, default=str, indent=2))

    # Games of an evaluation are played side by side, each environment once.
    eval_envs = DummyVecEnv([lambda: make_env(False)] * (args.eval_episodes if atari else 1))
    eval_envs.seed(args.seed + 10_000)
    envs = DummyVecEnv([lambda: make_env(True)] * s["num_envs"])
    model = make_model(args.algorithm, envs, args.seed, args.total_timesteps)
    model.learn(args.total_timesteps, Recorder(evaluate, args.run_dir, args.eval_interval))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithm", choices=[*SETTINGS], required=True)
    parser.add_argument("--env-id", required=True, help="Box actions, or for ppo a game of ALE's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=1_000_000)
    parser.add_argument("--run-dir", type=Path, required=True, help="the folder that it writes")
    parser.add_argument("--eval-interval", type=int, help="default: our script's")
    parser.add_argument("--eval-episodes", type=int, help="default: our script's")
    args = parser.parse_args()
    for name in "eval_interval", "eval_episodes":
        if getattr(args, name) is None:
            setattr(args, name, SETTINGS[args.algorithm][name])
    if finished(args.run_dir, args.total_timesteps):
        print(f"finished before: {args.run_dir}")
        return
    torch.set_num_threads(1)
    train(args)


if __name__ == "__main__":
    main()
