"""BenchMARL's MADDPG on simple_spread, with the settings of studies/maddpg_spread.sh.

    pip install torch==2.13.0 benchmarl==1.5.2 pettingzoo==1.27.0 mpe2==1.1.1
    python benchmark/benchmarl_spread.py --out benchmark/results/maddpg_spread/benchmarl.csv

In an environment of its own: it needs none of our packages, and its own do not go with ours. It has
MADDPG for continuous actions alone; networks, rates, batch, updates and steps are those of our
study. Writes a CSV: environment steps, and the mean over 100 episodes of the sum of the
agents' returns. TorchRL logs their mean, which is multiplied by three.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType

BATCH = 192  # steps, all environments together, between two rounds of updates


def give_mpe_back() -> None:
    """Let `pettingzoo.mpe`, which moved to a package of its own, be found where it was."""
    mpe = importlib.import_module("mpe2")
    spread = importlib.import_module("mpe2.simple_spread_v3")
    every = ModuleType("pettingzoo.mpe.all_modules")
    every.mpe_environments = {"mpe/simple_spread_v3": spread}  # type: ignore[attr-defined]
    names = {"": mpe, ".simple_spread_v3": spread, ".all_modules": every}
    sys.modules |= {f"pettingzoo.mpe{name}": module for name, module in names.items()}


def settings(steps: int, eval_interval: int, folder: str) -> object:
    """What studies/maddpg_spread.sh says, in BenchMARL's words."""
    from benchmarl.experiment import ExperimentConfig

    config = ExperimentConfig.get_from_yaml()
    config.share_policy_params = False
    config.gamma, config.lr, config.adam_eps, config.polyak_tau = 0.95, 1e-2, 1e-8, 0.01
    config.clip_grad_norm, config.clip_grad_val = True, 0.5
    config.exploration_eps_init, config.exploration_eps_end = 1.0, 0.1
    config.exploration_anneal_frames, config.off_policy_init_random_frames = 60_000, 5_000
    # 8 environments, and an update every 24 steps.
    config.off_policy_n_envs_per_worker, config.off_policy_collected_frames_per_batch = 8, BATCH
    config.off_policy_n_optimizer_steps, config.off_policy_train_batch_size = 8, 1024
    config.max_n_frames, config.render = steps, False
    config.evaluation_interval = eval_interval // BATCH * BATCH
    config.evaluation_episodes = 100
    config.loggers, config.create_json, config.save_folder = ["csv"], False, folder
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the CSV that it writes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--eval-interval", type=int, default=50_000)
    args = parser.parse_args()
    if args.eval_interval < BATCH:
        parser.error(f"--eval-interval is {args.eval_interval}, and must not be below {BATCH}")
    give_mpe_back()
    import torch
    from benchmarl.algorithms import MaddpgConfig
    from benchmarl.environments import PettingZooTask
    from benchmarl.experiment import Experiment
    from benchmarl.models.mlp import MlpConfig

    torch.set_num_threads(1)
    task = PettingZooTask.SIMPLE_SPREAD.get_from_yaml()
    task.config["max_cycles"] = 25
    actor, critic = MlpConfig.get_from_yaml(), MlpConfig.get_from_yaml()
    for network in actor, critic:
        network.num_cells, network.activation_class = [64, 64], torch.nn.ReLU
    algorithm = MaddpgConfig.get_from_yaml()
    algorithm.share_param_critic = False
    with tempfile.TemporaryDirectory() as folder:
        config = settings(args.steps, args.eval_interval, folder)
        networks = {"model_config": actor, "critic_model_config": critic}
        Experiment(task, algorithm, **networks, seed=args.seed, config=config).run()
        (log,) = Path(folder).rglob("eval_reward_episode_reward_mean.csv")
        # What it counts are batches of steps, from 0.
        rows = [(BATCH * (1 + int(step)), 3 * float(mean)) for step, mean in csv.reader(log.open())]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["env_step", "mean_return"])
        writer.writerows((step, f"{value:.2f}") for step, value in rows)


if __name__ == "__main__":
    main()
