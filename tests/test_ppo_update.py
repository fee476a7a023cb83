"""PPO's update, against the formulas, Stable-Baselines3, and itself on two ranks."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ROOT, flags, make_args, rows
from torch import Tensor

import ppo_atari as ppo


def random_batch(size: int, num_actions: int = 6) -> ppo.Batch:
    obs = torch.randint(0, 256, (size, 84, 84, 4), dtype=torch.uint8)
    action = torch.randint(num_actions, (size,))
    log_prob = -1.8 + 0.3 * torch.randn(size)
    value, advantage, returns = torch.randn(3, size)
    return ppo.Batch(obs, action, log_prob, value, advantage, returns)


# Advantages


def quadratic(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor
) -> Tensor:
    """A_t = Σ_k (γλ)^k δ_{t+k}, up to the end of the episode, written from the formula; [T]."""
    gamma, gae_lambda = 0.9, 0.7
    result = torch.zeros_like(value)
    for t in range(len(value)):
        for k in range(len(value) - t):
            bootstrap = 0.0 if terminated[t + k] else next_value[t + k]
            delta = reward[t + k] + gamma * bootstrap - value[t + k]
            result[t] += (gamma * gae_lambda) ** k * delta
            if ended[t + k]:
                break
    return result


def test_advantages_equal_their_formula_with_every_kind_of_end_at_every_step() -> None:
    steps = 5
    kinds = torch.cartesian_prod(*[torch.arange(3)] * steps).T  # [T, 3^T]: goes on, dies, cut off
    reward, value, next_value = torch.randn(3, *kinds.shape, dtype=torch.float64)
    terminated, ended = (kinds == 1).double(), (kinds > 0).double()
    parts = reward, value, next_value, terminated, ended
    computed = ppo.advantages(*parts, make_args(ppo, gamma=0.9, gae_lambda=0.7))
    expected = [quadratic(*(p[:, i] for p in parts)) for i in range(kinds.shape[1])]
    torch.testing.assert_close(computed, torch.stack(expected, dim=1), rtol=0, atol=1e-12)


class FakeGames(ppo.AtariGames):
    """Games whose observation tells their number and the time; the ends are as planned."""

    num_actions = 6

    def __init__(self, plan: dict[tuple[int, int], str], num_envs: int = 2) -> None:
        # no super().__init__(): there is no game behind
        self.plan, self.num_envs, self.t = plan, num_envs, 0
        self.begun = np.zeros(num_envs)
        self.look()

    def look(self) -> None:
        self.obs = torch.zeros(self.num_envs, 84, 84, 4, dtype=torch.uint8)
        for n in range(self.num_envs):
            self.obs[n] = 10 * int(self.t - self.begun[n]) + n

    def step(self, action: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        happens = [self.plan.get((self.t, n)) for n in range(self.num_envs)]
        self.t += 1
        self.look()
        terminated, truncated, life_lost = (
            np.array([h == end for h in happens]) for end in ("terminated", "truncated", "life")
        )
        return np.array([5.0, -3.0], np.float32), terminated, truncated, life_lost

    def reset(self, ended: np.ndarray, seeds: np.ndarray | None = None) -> None:
        self.begun[ended] = self.t
        self.look()


def act(obs: Tensor) -> tuple[Tensor, Tensor]:
    """The value is what the observation shows."""
    return torch.full((len(obs), 6), 1 / 6).log(), obs[:, 0, 0, 0].float()


def test_a_rollout_keeps_the_last_value_of_a_game_that_was_cut_off() -> None:
    args = make_args(ppo, num_steps=4, gamma=1.0, gae_lambda=0.0)
    plan = {(1, 0): "truncated", (2, 1): "terminated", (0, 1): "life"}
    rollout = ppo.Rollout(2, args)
    rollout.collect(FakeGames(plan), act, args)
    assert rollout.value[:, 0].tolist() == [0, 10, 0, 10]
    assert rollout.next_value[:, 0].tolist() == [10, 20, 10, 20]  # 20 is the cut game's last
    assert rollout.value[:, 1].tolist() == [1, 11, 21, 1]
    assert rollout.terminated.tolist() == [[0, 1], [0, 0], [0, 1], [0, 0]]
    assert rollout.over.tolist() == [[False, False], [True, False], [False, True], [False, False]]
    assert rollout.reward[0].tolist() == [5, -3]
    assert rollout.obs[:, 1, 0, 0, 0].tolist() == [1, 11, 21, 1]
    # The target of the value: the clipped reward, and the next value where not terminated
    targets = rollout.batch(args).returns.view(4, 2)
    assert targets[:, 0].tolist() == [11, 21, 11, 21]
    assert targets[:, 1].tolist() == [-1, 20, -1, 10]

    args = make_args(ppo, num_steps=4, episodic_life=False, clip_rewards=False, gamma=1.0)
    rollout.collect(FakeGames(plan), act, args)
    assert rollout.terminated.tolist() == [[0, 0], [0, 0], [0, 1], [0, 0]]
    # With λ = 1 the sum goes on behind a lost life, and stops where a game is over
    returns = rollout.batch(dataclasses.replace(args, gae_lambda=1.0)).returns.view(4, 2)
    assert returns[:, 0].tolist() == [5 + 5 + 20, 5 + 20, 5 + 5 + 20, 5 + 20]
    assert returns[:, 1].tolist() == [-9, -6, -3, -3 + 11]


def test_before_the_first_update_after_a_rollout_every_ratio_is_1() -> None:
    args = make_args(ppo, num_steps=32)
    games = ppo.AtariGames(args, 2)
    games.begin(1)
    agent, rollout = ppo.Agent(games.num_actions, args), ppo.Rollout(2, args)
    with torch.no_grad():  # otherwise all probabilities are about equal
        agent.net.policy.weight.mul_(100)  # type: ignore[operator]
    rollout.collect(games, agent.act, args)
    batch = rollout.batch(args)
    logits, value = agent.net(batch.obs)
    log_prob = torch.distributions.Categorical(logits=logits).log_prob(batch.action)
    assert log_prob.std() > 0.1
    torch.testing.assert_close((log_prob - batch.log_prob).exp(), torch.ones(64), rtol=0, atol=1e-6)
    torch.testing.assert_close(value, batch.value, rtol=0, atol=1e-5)


# What the network sees


def test_a_still_background_does_not_matter_unless_asked_for() -> None:
    obs = torch.randint(0, 80, (30, 84, 84, 4), dtype=torch.uint8)
    background = torch.randint(0, 120, (84, 84, 1), dtype=torch.uint8)
    for norm_obs in True, False:
        net = ppo.Agent(6, make_args(ppo, norm_obs=norm_obs)).net
        values = []
        for seen in obs, obs + background:
            copied = copy.deepcopy(net)
            copied.features.standardise.update(seen[..., -1])
            values.append(copied(seen)[1])
        change = (values[0] - values[1]).abs()
        assert change.max() < 1e-3 if norm_obs else change.mean() > 1e-2


def test_training_counts_in_the_newest_screens_of_every_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, counted, batch = [], [], ppo.Rollout.batch

    def update(self: ppo.Standardise, newest: Tensor, over_ranks: Any) -> None:
        counted.append(newest.clone())

    def note(rollout: ppo.Rollout, args: ppo.Args) -> ppo.Batch:
        played.append(rollout.obs[..., 3].flatten(0, 1).clone())
        return batch(rollout, args)

    monkeypatch.setattr(ppo.Rollout, "batch", note)
    monkeypatch.setattr(ppo.Standardise, "update", update)
    ppo.train(make_args(ppo, run_dir=tmp_path / "run"))
    assert len(counted) == len(played) > 1
    assert all(torch.equal(*pair) for pair in zip(counted, played))


# The loss


@pytest.mark.parametrize("clip_value_loss", [True, False])
def test_the_loss_equals_its_formula(clip_value_loss: bool) -> None:
    args = make_args(ppo, clip_value_loss=clip_value_loss, clip_coef=0.2)
    agent, batch = ppo.Agent(6, args), random_batch(32)
    loss, log = agent.loss(batch)
    logits, value = agent.net(batch.obs)
    policy = torch.distributions.Categorical(logits=logits)
    policy_loss = value_loss = 0.0
    new = policy.log_prob(batch.action)
    for i in range(32):
        ratio, advantage = (new[i] - batch.log_prob[i]).exp(), batch.advantage[i]
        clipped = min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2))
        policy_loss -= min(ratio * advantage, clipped * advantage) / 32
        near = value[i]
        if clip_value_loss:
            near = min(max(value[i], batch.value[i] - 0.2), batch.value[i] + 0.2)
        worst = max((value[i] - batch.returns[i]) ** 2, (near - batch.returns[i]) ** 2)
        value_loss += 0.5 * worst / 32
    entropy = policy.entropy().mean()
    torch.testing.assert_close(log["policy_loss"], policy_loss, check_dtype=False)
    torch.testing.assert_close(log["value_loss"], value_loss, check_dtype=False)
    torch.testing.assert_close(log["entropy"], entropy)
    torch.testing.assert_close(loss, policy_loss - 0.01 * entropy + 0.5 * value_loss)
    assert 0 < log["clipfrac"] < 1 and log["approx_kl"] > 0


def test_one_learning_phase_equals_that_of_stable_baselines3() -> None:
    """Equal weights, rollout and order of minibatches; weights after two epochs agree.

    Without value clipping, which they do otherwise; their weight of the value loss is half ours.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import Logger as SB3Logger

    class Images(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        action_space = gym.spaces.Discrete(6)

        def reset(self, **options: Any) -> Any:
            return self.observation_space.sample(), {}

    theirs = PPO(
        "CnnPolicy",
        Images(),
        n_steps=64,
        batch_size=32,
        n_epochs=2,
        learning_rate=2.5e-4,
        clip_range=0.1,
        ent_coef=0.01,
        device="cpu",
    )
    same: dict[str, Any] = {"clip_value_loss": False, "value_coef": 1.0, "norm_obs": False}
    args = make_args(ppo, clip_coef=0.1, **same)
    agent = ppo.Agent(6, args)
    policy: Any = theirs.policy
    modules = (
        *[m for m in agent.net.features.layers if hasattr(m, "weight")],
        agent.net.policy,
        agent.net.value,
    )
    extractor = policy.features_extractor
    copies = (
        *[m for m in (*extractor.cnn, *extractor.linear) if hasattr(m, "weight")],
        policy.action_net,
        policy.value_net,
    )
    for mine, other in zip(modules, copies, strict=True):
        other.load_state_dict(mine.state_dict())
    data = random_batch(64)
    # Ratios on both sides of the clip, and values likewise.
    with torch.no_grad():
        log_probs, value = agent.act(data.obs)
        log_prob = log_probs.gather(1, data.action[:, None])[:, 0] + 0.1 * torch.randn(64)
        data = data._replace(log_prob=log_prob, value=value + 0.1 * torch.randn(64))
    buffer = theirs.rollout_buffer
    buffer.observations[:, 0] = data.obs.movedim(-1, 1).numpy()
    buffer.actions[:, 0, 0] = data.action.numpy()
    for name, part in (("log_probs", "log_prob"), ("values", "value"), ("returns", "returns")):
        getattr(buffer, name)[:, 0] = getattr(data, part).numpy()
    buffer.advantages[:, 0] = data.advantage.numpy()
    buffer.full = True
    orders = [np.random.default_rng(i).permutation(64) for i in range(2)]
    waiting = list(orders)
    theirs.set_logger(SB3Logger(None, []))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "permutation", lambda n: waiting.pop(0))
        theirs.train()

    before = copy.deepcopy(agent.net)
    ranks = ppo.Ranks(args)
    for order in orders:
        for index in torch.from_numpy(order).chunk(2):
            batch = ppo.Batch(*(part[index] for part in data))
            batch = batch._replace(advantage=ppo.normalised(batch.advantage, ranks))
            agent.step(agent.gradients(batch)[0])
    for mine, other in zip(modules, copies, strict=True):
        torch.testing.assert_close(mine.weight, other.weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(mine.bias, other.bias, rtol=0, atol=1e-5)
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), agent.net.parameters())]
    assert all(moved)


def test_a_long_gradient_is_shortened_before_adam_takes_it() -> None:
    agent = ppo.Agent(6, make_args(ppo, learning_rate=1e-3))
    other = copy.deepcopy(agent.net)
    adam = torch.optim.Adam(other.parameters(), 1e-3, eps=1e-5)
    for length in 3.0, 0.1:  # of which the second is short enough
        grads = [torch.randn_like(p) for p in other.parameters()]
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        for p, grad in zip(other.parameters(), grads):
            p.grad = grad * length / norm
        found = agent.step([p.grad.clone() for p in other.parameters() if p.grad is not None])
        assert float(found) == pytest.approx(length, rel=1e-5), "the norm before clipping"
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        adam.step()
    for mine, expected in zip(agent.net.parameters(), other.parameters()):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)


def test_a_compiled_update_equals_the_plain_one_and_moves_the_weights() -> None:
    agents = [ppo.Agent(6, make_args(ppo)) for _ in range(2)]
    agents[1].load_state_dict(agents[0].state_dict())
    for agent in agents:  # with a smaller ε a gradient near 0 makes a step of what is rounding
        agent.optimizer.param_groups[0]["eps"] = 1e-3
    start = copy.deepcopy(agents[0].net)
    args = make_args(ppo, compile=True)
    gradients = ppo.compiled(agents[1].gradients, args)
    for _ in range(3):
        batch = random_batch(16)
        agents[0].step(agents[0].gradients(batch)[0])
        agents[1].step(gradients(batch)[0])
    parameters = [agent.net.parameters() for agent in agents]
    for old, plain, fast in zip(start.parameters(), *parameters):
        torch.testing.assert_close(plain, fast, rtol=0, atol=1e-5)
        assert not torch.equal(old, fast)


@pytest.mark.parametrize("seed", range(10))
def test_a_screen_that_never_changes_has_a_deviation_that_is_a_number(seed: int) -> None:
    torch.manual_seed(seed)
    standardise = ppo.Standardise(make_args(ppo))
    screens = torch.randint(0, 256, (84, 84), dtype=torch.uint8).expand(20, -1, -1)
    for _ in range(20):
        standardise.update(screens)
        assert standardise.std == 1


# Several ranks

TWO_RANKS = """
import sys, torch
import ppo_atari as ppo
torch.set_num_threads(1)
args = ppo.Args(device="cpu", num_envs=4, num_steps=32)
ranks = ppo.Ranks(args)
data, state = torch.load(sys.argv[1]), torch.load(sys.argv[2])
agent = ppo.Agent(6, args)
agent.load_state_dict(state)
for whole in data:
    share = ppo.Batch(*(part.chunk(ranks.size)[ranks.rank] for part in whole))
    share = share._replace(advantage=ppo.normalised(share.advantage, ranks))
    agent.step(ranks.mean(agent.gradients(share)[0]))
agent.net.features.standardise.update(share.obs[..., -1], ranks.mean)
torch.save(agent.net.state_dict(), f"{sys.argv[3]}/{ranks.size}-{ranks.rank}.pt")
ranks.close()
"""


GAMES_OF_RANKS = """
import os, sys, torch
import ppo_atari as ppo
folder, collect, rank = sys.argv.pop(1), ppo.Rollout.collect, os.environ["RANK"]
reset, seeds = ppo.AtariGames.reset, []
def note_seeds(games, ended, new=None):
    seeds.append(new)
    reset(games, ended, new)
def note(rollout, games, act, args):
    weights = [p.detach().flatten() for p in act.__self__.parameters()]
    collect(rollout, games, act, args)
    noted = {"seeds": seeds[0].tolist(), "action": rollout.action, "weights": torch.cat(weights)}
    torch.save(noted, f"{folder}/{rank}.pt")
ppo.AtariGames.reset, ppo.Rollout.collect = note_seeds, note
ppo.main()
"""

SIGNAL_TO_ONE_RANK = """
import os, signal
import ppo_atari as ppo
update = ppo.Standardise.update
def interrupt(*arguments):
    update(*arguments)
    if os.environ["RANK"] == "RANK_OF_SIGNAL":
        os.kill(os.getpid(), signal.SIGTERM)
    ppo.Standardise.update = update
ppo.Standardise.update = interrupt
ppo.main()
"""


def torchrun(
    ranks: int, *words: str | Path, check: bool = True, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Start a script as torchrun does, on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environ)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def test_two_ranks_with_half_a_minibatch_each_learn_what_one_learns(tmp_path: Path) -> None:
    script, data, state = (tmp_path / name for name in ("script.py", "data.pt", "state.pt"))
    script.write_text(TWO_RANKS)
    torch.save([tuple(random_batch(32)) for _ in range(3)], data)
    torch.save(ppo.Agent(6, make_args(ppo)).state_dict(), state)
    for ranks in 1, 2:
        torchrun(ranks, script, data, state, tmp_path)
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, weight in torch.load(state).items():
        if name.startswith("net."):
            ends = [weights[name.removeprefix("net.")] for weights in (one, *two)]
            assert not torch.equal(weight, ends[0])
            assert torch.equal(ends[1], ends[2])
            torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-5)


def test_two_ranks_write_one_run_with_the_games_of_both(tmp_path: Path) -> None:
    """And leave no temporary folder; the run goes on alone, with new games."""
    script, temporary = tmp_path / "script.py", tmp_path / "temporary"
    temporary.mkdir()
    # A process group left open may abort the process at its end.
    lines = ["import ppo_atari, torch.distributed as dist", "ppo_atari.main()"]
    script.write_text("\n".join([*lines, "assert not dist.is_initialized()"]))
    words = flags(ppo, num_envs=4, num_steps=64, run_dir=tmp_path / "run")
    torchrun(2, script, *words, TMPDIR=str(temporary))
    assert list(temporary.glob("tmp*")) == []
    episodes = rows(tmp_path / "run" / "episodes.csv")
    assert [row["env_step"] for row in episodes] == ["400"] * 4
    assert [row["env_step"] for row in rows(tmp_path / "run" / "evaluations.csv")] == ["256", "512"]
    checkpoint = ppo.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert checkpoint["run"]["env_step"] == 512 and checkpoint["run"]["episodes"] == [1] * 4
    command = [sys.executable, str(ROOT / "ppo_atari.py"), "--total-timesteps=1024", "--resume"]
    alone = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    episodes = rows(tmp_path / "run" / "episodes.csv")
    assert [row["env_step"] for row in episodes] == ["400"] * 4 + ["912"] * 4


def test_each_rank_plays_games_and_samples_actions_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(GAMES_OF_RANKS)
    words = flags(ppo, num_envs=4, num_steps=64, run_dir=tmp_path / "run", total_timesteps=256)
    torchrun(2, script, tmp_path, *words)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len({*first["seeds"], *second["seeds"]}) == 4
    assert not torch.equal(first["action"], second["action"])
    assert torch.equal(first["weights"], second["weights"])


def test_a_signal_to_one_rank_saves_and_ends_the_run_of_all(tmp_path: Path) -> None:
    for rank in 0, 1:
        script, run_dir = tmp_path / "script.py", tmp_path / f"run-{rank}"
        script.write_text(SIGNAL_TO_ONE_RANK.replace("RANK_OF_SIGNAL", str(rank)))
        words = flags(ppo, num_envs=4, num_steps=64, run_dir=run_dir, total_timesteps=100_000)
        done = torchrun(2, script, *words, check=False)
        assert done.returncode != 0 and "--resume" in done.stdout, done.stdout + done.stderr
        assert 0 < ppo.load_checkpoint(run_dir / "checkpoint.pt")["run"]["env_step"] <= 1024


def test_games_that_ranks_cannot_share_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit) as ending:
        ppo.Ranks(make_args(ppo, num_envs=4))
    assert ending.value.code == 2 and "3 processes cannot share" in capsys.readouterr().err


# The games


def test_the_maximum_over_two_frames_keeps_the_lasers_of_space_invaders() -> None:
    """The lasers are drawn in every second frame, which skipping frames can hide for good."""
    args = make_args(ppo, env_id="ALE/SpaceInvaders-v5", sticky_actions=0.0)
    args.max_episode_frames = 108_000
    games = ppo.AtariGames(args, 1, colour=True)
    # The same game frame by frame: no-ops, then the fire button.
    env = gym.make("ALE/SpaceInvaders-v5", frameskip=1, repeat_action_probability=0.0)
    ale: ale_py.ALEInterface = env.unwrapped.ale  # type: ignore[attr-defined]
    env.reset(seed=0)
    reset, info = games.envs.reset, {}

    def note(**options: Any) -> Any:
        obs, told = reset(**options)
        info.update(told)
        return obs, told

    games.envs.reset = note  # type: ignore[method-assign]
    games.begin(1)
    while ale.getEpisodeFrameNumber() < info["episode_frame_number"][0] - 1:
        ale.act(0)
    ale.act(1)
    lasers = kept = 0
    for _ in range(150):
        frames = [ale.getScreenRGB() for _ in range(4) if ale.act(0) >= 0]
        games.step(torch.tensor([0]))
        seen = games.obs[0, ..., -1].numpy()
        assert np.array_equal(seen, np.maximum(frames[2], frames[3]))
        # The last frame alone lacks what only the one before it shows, between the invaders and
        # the ground: a laser.
        hidden = (frames[2] > frames[3])[100:185].sum()
        lasers += hidden > 0
        kept += (seen > frames[3])[100:185].sum() == hidden
    assert lasers > 10 and kept == 150


def test_lost_lives_are_told_and_do_not_end_a_game() -> None:
    args = make_args(ppo, env_id="ALE/Breakout-v5", max_episode_frames=108_000)
    games = ppo.AtariGames(args, 2)
    games.begin(3)
    lost = np.zeros(2, int)
    over = np.zeros(2, bool)
    for _ in range(3000):
        *_, terminated, truncated, life_lost = games.step(torch.randint(4, (2,)))
        lost += life_lost & ~over
        over |= terminated | truncated
        if over.all():
            break
    assert lost.tolist() == [5, 5]


def test_games_depend_on_their_seed_and_their_actions_only() -> None:
    """Also games after the first, which begin without a seed."""
    args = make_args(ppo, env_id="ALE/Breakout-v5", max_episode_frames=200)
    plays, seen = torch.randint(4, (120, 3)), []
    for seed in (1, 0), (1, 0), (2, 0), (1, 4096):
        games = ppo.AtariGames(args, 3)
        games.begin(*seed)
        for play in plays:
            _, terminated, truncated, _ = games.step(play)
            games.reset(terminated | truncated)
        seen.append(games.obs)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0][0], seen[0][1]), "games side by side differ"


def test_minibatches_that_do_not_divide_a_rollout_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ending:
        make_args(ppo, num_minibatches=3)
    assert ending.value.code == 2
    assert "--num-minibatches is 3; it must divide 64 steps" in capsys.readouterr().err


def test_rewards_are_the_raw_scores_of_the_game() -> None:
    args = make_args(ppo, env_id="ALE/SpaceInvaders-v5", max_episode_frames=108_000)
    games = ppo.AtariGames(args, 4)
    games.begin(1)
    rewards = np.stack([games.step(torch.randint(6, (4,)))[0] for _ in range(200)])
    assert set(np.unique(rewards)) > {0.0, 5.0}, "an invader of the lowest row is worth 5 points"


@pytest.mark.parametrize("script", ["ppo_atari", "ppo_smarts"], indirect=True)
def test_a_policy_that_has_moved_too_far_ends_the_learning_phase(
    script: ModuleType, tmp_path: Path
) -> None:
    updates = []
    for target_kl in None, 1e9, 0.0:
        args = make_args(script, target_kl=target_kl, run_dir=tmp_path / f"{target_kl}")
        path = script.train(args) / "checkpoint.pt"
        updates.append(script.load_checkpoint(path)["run"]["updates"])
    # One pass of two, but where the policy has moved by less than float32 can tell.
    assert updates[0] == updates[1] and 0.5 <= updates[2] / updates[0] < 0.6


# The training loop


class Spied(NamedTuple):
    """What a short run did: its rollouts, and of every update the batch, rate and gradient."""

    rollouts: list[ppo.Batch]
    minibatches: list[ppo.Batch]
    ratios: list[Tensor]
    rates: list[float]
    norms: list[Tensor]
    run: dict[str, Any]


def spied_run(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Spied:
    """Four rollouts of 64 steps in two games, each used twice in two minibatches."""
    spied = Spied([], [], [], [], [], {})
    batch, gradients = ppo.Rollout.batch, ppo.Agent.gradients
    adam = torch.optim.Adam.step

    def note_rollout(rollout: ppo.Rollout, args: ppo.Args) -> ppo.Batch:
        spied.rollouts.append(ppo.Batch(*(part.clone() for part in batch(rollout, args))))
        return batch(rollout, args)

    def note_minibatch(agent: ppo.Agent, batch: ppo.Batch) -> Any:
        spied.minibatches.append(batch)
        with torch.no_grad():
            log_prob = agent.act(batch.obs)[0].gather(1, batch.action[:, None])[:, 0]
            spied.ratios.append((log_prob - batch.log_prob).exp())
        return gradients(agent, batch)

    def note_step(optimizer: torch.optim.Adam) -> None:
        group = optimizer.param_groups[0]
        spied.rates.append(group["lr"])
        spied.norms.append(torch.cat([p.grad.flatten() for p in group["params"]]).norm())
        adam(optimizer)

    with monkeypatch.context() as patch:
        patch.setattr(ppo.Rollout, "batch", note_rollout)
        patch.setattr(ppo.Agent, "gradients", note_minibatch)
        patch.setattr(torch.optim.Adam, "step", note_step)
        run_dir = ppo.train(make_args(ppo, total_timesteps=256, **changes))
    spied.run.update(ppo.load_checkpoint(run_dir / "checkpoint.pt")["run"])
    return spied


def test_the_loop_sets_the_rate_shuffles_normalises_and_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = spied_run(monkeypatch, run_dir=tmp_path / "run", max_grad_norm=1e-3)
    assert spied.run["env_step"] == 256 and spied.run["updates"] == 16
    assert spied.run["episodes"] == [1, 1]
    # The learning rate falls with every rollout.
    assert spied.rates == pytest.approx(
        [2.5e-4 * left for left in (1, 0.75, 0.5, 0.25) for _ in "1234"]
    )
    assert all(norm <= 1.001e-3 for norm in spied.norms)
    orders = []
    for i, rollout in enumerate(spied.rollouts):
        torch.testing.assert_close(spied.ratios[4 * i], torch.ones(32), rtol=0, atol=1e-6)
        for epoch in 0, 1:
            parts = spied.minibatches[4 * i + 2 * epoch :][:2]
            for part in parts:
                torch.testing.assert_close(
                    part.advantage.mean(), torch.tensor(0.0), atol=1e-5, rtol=0
                )
                torch.testing.assert_close(
                    part.advantage.std(), torch.tensor(1.0), atol=1e-3, rtol=0
                )
            # Every step of the rollout once, in an order that is new each time
            returns = torch.cat([part.returns for part in parts])
            assert torch.equal(returns.sort()[0], rollout.returns.sort()[0])
            orders.append(tuple((returns[:, None] == rollout.returns).float().argmax(1).tolist()))
    assert len({*orders, tuple(range(64))}) == len(orders) + 1


def test_the_loop_leaves_out_what_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {"anneal_lr": False, "norm_advantage": False, "max_grad_norm": 1e9}
    spied = spied_run(monkeypatch, run_dir=tmp_path / "run", **off)
    assert set(spied.rates) == {2.5e-4} and max(spied.norms) > 0.01
    learnt = torch.cat([part.advantage for part in spied.minibatches[:2]])
    assert torch.equal(learnt.sort()[0], spied.rollouts[0].advantage.sort()[0])


def test_a_resumed_run_has_the_optimizer_and_the_rate_of_its_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = ppo.train(make_args(ppo, run_dir=tmp_path / "run", total_timesteps=128))
    checkpoint = ppo.load_checkpoint(run_dir / "checkpoint.pt")
    rates, moments = [], []

    def note_step(optimizer: torch.optim.Adam) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        moments.append([state["exp_avg"].clone() for state in optimizer.state.values()])

    monkeypatch.setattr(torch.optim.Adam, "step", note_step)
    changes = {"total_timesteps": 192, "anneal_lr": False, "learning_rate": 1e-3}
    ppo.train(make_args(ppo, resume=run_dir, **changes), checkpoint)
    saved = [state["exp_avg"] for state in checkpoint["optimizer"]["state"].values()]
    assert all(torch.equal(*pair) for pair in zip(moments[0], saved, strict=True))
    assert set(rates) == {1e-3}
