"""Runs of Stable-Baselines3 with our settings, and the comparison of two sets of runs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, make_args, rows
from scipy import stats

sys.path.insert(0, str(ROOT / "benchmark"))
parity: Any = importlib.import_module("parity")
compare: Any = importlib.import_module("compare")
plot: Any = importlib.import_module("plot")

OURS = {"ddpg": "ddpg_continuous", "td3": "td3_continuous", "sac": "sac_continuous"}
OURS |= {"ppo": "ppo_atari"}


@pytest.mark.parametrize("algorithm", OURS)
def test_the_peer_s_settings_are_our_defaults(algorithm: str) -> None:
    ours = dataclasses.asdict(importlib.import_module(OURS[algorithm]).Args())
    settings = parity.SETTINGS[algorithm]
    assert settings == {name: ours.get(name, "no such flag") for name in settings}


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac"])
def test_the_peer_has_these_settings(algorithm: str) -> None:
    s = parity.SETTINGS[algorithm]
    envs = parity.DummyVecEnv([lambda: parity.make_continuous("Pendulum-v1")])
    model = parity.make_model(algorithm, envs, 1, 1000)
    for name in "gamma", "tau", "batch_size", "buffer_size", "learning_starts":
        assert getattr(model, name) == s[name], name
    assert (model.train_freq.frequency, model.gradient_steps) == (1, s["updates_per_step"])
    for network in model.actor, model.critic:
        (group,) = network.optimizer.param_groups
        assert (group["lr"], group["eps"]) == (s["actor_learning_rate"], 1e-8)
    assert s["actor_learning_rate"] == s["critic_learning_rate"]
    widths = [(m.in_features, m.out_features) for m in linears(model.critic.qf0)]
    assert widths == [(4, 256), (256, 256), (256, 1)]
    assert len(model.critic.q_networks) == s.get("num_critics", 1)
    if algorithm == "sac":
        assert model.log_ent_coef.exp().item() == s["init_alpha"]
        assert model.ent_coef_optimizer.param_groups[0]["lr"] == s["alpha_learning_rate"]
        assert (model.target_entropy, model.target_update_interval) == (-1.0, 1)
    else:
        assert model.policy_delay == s.get("policy_delay", 1)
        noise = np.array([model.action_noise() for _ in range(4000)])
        assert noise.std() == pytest.approx(s["noise_std"], rel=0.05)
        assert model.target_noise_clip == s.get("target_noise_clip", 0.0)  # 0: no smoothing


def linears(network: torch.nn.Module) -> list[torch.nn.Linear]:
    return [module for module in network.modules() if isinstance(module, torch.nn.Linear)]


def run(folder: Path, algorithm: str, env_id: str, steps: int) -> SimpleNamespace:
    """The flags of a small run that evaluates twice, in a folder of its own."""
    flags = {"algorithm": algorithm, "env_id": env_id, "seed": 1, "total_timesteps": steps}
    more = {"run_dir": folder / "run", "eval_interval": steps // 2, "eval_episodes": 2}
    return SimpleNamespace(**flags, **more)


def columns(path: Path) -> list[str]:
    return path.read_text().splitlines()[0].split(",")


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac"])
def test_a_run_writes_what_our_scripts_write(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module(OURS[algorithm])
    monkeypatch.setitem(parity.SETTINGS[algorithm], "learning_starts", 500)
    args = run(tmp_path, algorithm, "Pendulum-v1", 600)
    parity.train(args)
    changes = {"env_id": "Pendulum-v1", "total_timesteps": 400, "eval_interval": 200}
    ours = script.train(make_args(script, run_dir=tmp_path / "ours", **changes))
    for name in "episodes.csv", "evaluations.csv":
        assert columns(args.run_dir / name) == columns(ours / name)
    episodes = rows(args.run_dir / "episodes.csv")
    assert [row["env_step"] for row in episodes] == ["200", "400", "600"]
    assert {row["episodic_length"] for row in episodes} == {"200"}
    evaluations = rows(args.run_dir / "evaluations.csv")
    assert [row["env_step"] for row in evaluations] == ["300", "600"]
    assert {row["episodes"] for row in evaluations} == {"2"}
    assert {row["mean_length"] for row in evaluations} == {"200.0"}
    settings = json.loads((args.run_dir / "args.json").read_text())
    assert settings["exp_name"] == f"sb3_{algorithm}"
    assert settings["settings"]["learning_starts"] == 500
    # The last evaluation is there: a second start leaves the folder as it is.
    assert parity.finished(args.run_dir, 600) and not parity.finished(args.run_dir, 601)


def test_an_untrained_folder_is_not_finished(tmp_path: Path) -> None:
    assert not parity.finished(tmp_path, 1)


# Atari. Gymnasium's preprocessing needs OpenCV.


def test_the_peer_plays_our_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same moves, same frames, clipped rewards, lives and ends; no no-ops, which are random."""
    pytest.importorskip("cv2")
    ppo = importlib.import_module("ppo_atari")
    monkeypatch.setattr(ppo, "AtariVectorEnv", partial(ppo.AtariVectorEnv, noop_max=0))
    ours = ppo.AtariGames(ppo.Args(env_id="ALE/Breakout-v5", device="cpu"), 1)
    ours.begin(1)
    theirs = parity.make_game("ALE/Breakout-v5", learning=True, noop_max=0)
    obs, _ = theirs.reset(seed=1)
    rng, lives_lost, games, rewards = np.random.default_rng(0), 0, 0, 0
    while games < 2:
        assert np.asarray(obs).dtype == np.uint8
        assert np.array_equal(obs, ours.obs[0].movedim(-1, 0))
        move = int(rng.integers(ours.num_actions))
        reward, terminated, truncated, life_lost = ours.step(torch.tensor([move]))
        obs, their_reward, ended, cut_off, info = theirs.step(move)
        assert (their_reward, ended) == (np.sign(reward[0]), terminated[0] | life_lost[0])
        assert np.array_equal(
            obs, ours.obs[0].movedim(-1, 0)
        )  # the last observation, before any reset
        assert ("episode" in info) == terminated[0] and not truncated[0] and not cut_off
        ours.reset(terminated)
        if ended:
            obs, _ = theirs.reset()
        lives_lost, games = lives_lost + life_lost[0], games + terminated[0]
        rewards += reward[0] > 0
    assert lives_lost >= 8 and rewards > 0


def test_ppo_has_these_settings_and_our_learning_rate_in_every_rollout(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    rollout, total = 8 * 128, 3000
    s = parity.SETTINGS["ppo"]
    envs = parity.DummyVecEnv([lambda: parity.make_game("ALE/Pong-v5", True)] * s["num_envs"])
    model = parity.make_model("ppo", envs, 1, total)
    rates = []
    model.train = lambda: rates.append(model.lr_schedule(model._current_progress_remaining))
    model.learn(total)
    assert rates == pytest.approx([2.5e-4 * (1 - t * rollout / total) for t in range(3)])
    assert (model.batch_size, model.n_epochs, model.n_steps) == (256, 4, 128)
    assert (model.clip_range(1), model.clip_range_vf(1), model.target_kl) == (0.1, 0.1, None)
    assert (model.ent_coef, 2 * model.vf_coef) == (s["entropy_coef"], s["value_coef"])
    assert (model.gamma, model.gae_lambda, model.max_grad_norm) == (0.99, 0.95, 0.5)
    assert model.normalize_advantage and model.policy.optimizer.param_groups[0]["eps"] == 1e-5
    assert model.policy.ortho_init and model.policy.normalize_images


def test_an_atari_run_evaluates_whole_games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2")
    small = {"num_envs": 2, "num_steps": 16, "max_episode_frames": 400}
    monkeypatch.setitem(parity.SETTINGS, "ppo", parity.SETTINGS["ppo"] | small)
    args = run(tmp_path, "ppo", "ALE/Pong-v5", 250)
    parity.train(args)
    # Rollouts are 32 steps: the first end at or after 125 and 250 are 128 and 256.
    evaluations = rows(args.run_dir / "evaluations.csv")
    assert [row["env_step"] for row in evaluations] == ["128", "256"]
    # Games are cut off after 400 frames, of which up to 30 no-ops are the first.
    assert all(92 <= float(row["mean_length"]) <= 100 for row in evaluations)
    episodes = rows(args.run_dir / "episodes.csv")
    assert len(episodes) == 2 and all(92 <= int(e["episodic_length"]) <= 100 for e in episodes)


# The comparison


def curve(seed: int, y: list[float], steps: list[int] | None = None) -> Any:
    x = np.array(steps or [100 * (i + 1) for i in range(len(y))], float)
    return plot.Run("env", "name", seed, {"steps": x}, np.array(y))


def test_one_seed_each_gives_a_difference_without_an_interval() -> None:
    whole, last = compare.compare([curve(1, [1.0, 2.0, 6.0])], [curve(1, [0.0, 4.0, 2.0])])
    assert (whole.measure, whole.means, whole.difference.value) == ("whole curve", (3, 2), 1)
    assert (last.measure, last.means, last.difference.value) == ("last evaluation", (6, 2), 4)
    assert np.isnan(last.difference.low) and last.verdict == "one seed"
    assert last.chance.value == 1.0


def test_runs_of_unequal_length_are_compared_over_the_steps_that_all_have_reached() -> None:
    ours = [curve(1, [1.0, 3.0, 100.0]), curve(2, [3.0, 5.0])]
    theirs = [curve(1, [0.0, 2.0, 50.0, 70.0]), curve(2, [0.0, 0.0])]
    whole, last = compare.compare(ours, theirs)
    assert whole.steps == last.steps == 200
    assert whole.difference.value == (2 + 4) / 2 - (1 + 0) / 2
    assert last.difference.value == (3 + 5) / 2 - (2 + 0) / 2
    assert compare.compare([curve(1, [1.0], [100])], [curve(1, [1.0], [300])]) == []


def test_the_interval_holds_the_means_of_all_resamples() -> None:
    """With two seeds a side there are few resamples, so that the quantiles are known.

    A resampled mean of (0, 4) is 0, 2 or 4 with chances 1/4, 1/2, 1/4, and one of (10, 10) is 10:
    the difference runs from -10 to -6, and both ends have more than 2.5%.
    """
    ours, theirs = [curve(1, [0.0]), curve(2, [4.0])], [curve(1, [10.0]), curve(2, [10.0])]
    whole, _ = compare.compare(ours, theirs)
    assert tuple(whole.difference) == (-8.0, -10.0, -6.0)
    assert tuple(whole.chance) == (0.0, 0.0, 0.0)
    assert whole.verdict == "B is better"
    assert compare.compare(theirs, ours)[0].verdict == "A is better"


def test_the_chance_is_the_share_of_pairs_of_seeds_as_in_mann_whitney_s_u() -> None:
    a, b = [1.0, 5.0, 3.0], [2.0, 3.0, 0.0]
    ours, theirs = ([curve(i, [y]) for i, y in enumerate(side)] for side in (a, b))
    whole, _ = compare.compare(ours, theirs)
    assert whole.chance.value == pytest.approx(stats.mannwhitneyu(a, b).statistic / 9)
    assert whole.verdict == "undecided"


def test_the_table_has_a_row_for_each_pair_environment_and_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for env_id, name, y in (("Hopper", "td3", 3), ("Hopper", "sb3_td3", 1), ("Ant", "td3", 9)):
        folder = tmp_path / "runs" / f"{env_id}__{name}__1"
        folder.mkdir(parents=True)
        lines = ["env_step,seconds,mean_return", f"10,1,{y}", f"20,2,{2 * y}"]
        (folder / "evaluations.csv").write_text("\n".join(lines) + "\n")
    words = ["compare.py", str(tmp_path / "runs"), "--pair", "td3", "sb3_td3"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "out.md")])
    compare.main()
    text = (tmp_path / "out.md").read_text()
    assert capsys.readouterr().out == text
    assert text.splitlines()[2:] == [
        "| Hopper | td3 | sb3_td3 | 1, 1 | 20 | whole curve | 4.5 | 1.5 | 3.0 | 1.00 | one seed |",
        "| Hopper | td3 | sb3_td3 | 1, 1 | 20 | last evaluation | 6.0 | 2.0 | 4.0 | 1.00 "
        "| one seed |",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--pair", "td3", "none"])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert "sb3_td3" in capsys.readouterr().err
