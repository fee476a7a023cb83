"""MADDPG learns tasks so small that the right answer is known, and its loop is wired right."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COMMON, rows

import maddpg_smarts as maddpg


class Colours(maddpg.MultiAgentEnv):
    """Two agents, each shown one of three colours, for 5 steps; then the episode is truncated.

    Each that names its colour (or, with numbers, whose action is near to it) earns both a point.
    After two steps agent b terminates.
    """

    def __init__(self, args: Any, film: bool = False) -> None:
        self.names, self.obs_size, self.pixels, self.fps = ["a", "b"], 3, 0, 10
        self.discrete = args.action_type == "lane"
        self.action_size = 3 if self.discrete else 1

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass

    def show(self) -> None:
        self.colour = self.random.integers(3, size=2)
        self.obs = np.eye(3, dtype=np.float32)[self.colour]

    def reset(self, seed: int | None) -> maddpg.Step:
        self.random, self.t, self.live = np.random.default_rng(seed), 0, np.ones(2, bool)
        self.show()
        zero = np.zeros(2, np.float32)
        return maddpg.Step(self.obs, zero, zero > 0, zero > 0, self.live, self.obs)

    def send(self, action: np.ndarray) -> None:
        self.action = action

    def receive(self) -> maddpg.Step:
        if self.discrete:
            right = self.action == self.colour
        else:
            right = 1 - np.abs(self.action[:, 0] - (self.colour - 1) * 0.8)
        reward = ((right * self.live).sum() * self.live).astype(np.float32)
        self.t += 1
        self.show()
        terminated = np.array([False, self.t == 2])
        truncated = np.array([self.t == 5, False])
        last = self.obs * self.live[:, None]
        self.live = self.live & ~terminated & ~truncated
        return maddpg.Step(
            last * self.live[:, None], reward, terminated, truncated, self.live, last
        )


def make_args(tmp_path: Path, **changes: Any) -> maddpg.Args:
    small = {"env_id": "smarts/colours", "batch_size": 64, "gamma": 0.5, "eval_interval": 10_000}
    return maddpg.Args(**COMMON | small | {"run_dir": tmp_path} | changes)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"critic": "own"},
        {"prioritized_replay": True},
        {"prioritized_replay": True, "per_variant": "rank"},
        {"action_type": "continuous"},
    ],
    ids=["joint", "own", "proportional", "rank", "continuous"],
)
def test_two_agents_learn_to_do_what_they_see(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maddpg, "make_env", Colours)
    args = make_args(
        tmp_path,
        seed=1,
        total_timesteps=1500,
        learning_starts=300,
        update_interval=2,
        actor_learning_rate=1e-2,
        critic_learning_rate=1e-2,
        noise_decay_steps=1000,
        **flags,
    )
    maddpg.train(args)
    (result,) = rows(tmp_path / "evaluations.csv")
    # For two steps each earns up to 2, then one alone 1 for three: 11. At random, a third.
    assert float(result["mean_return"]) > (9.5 if args.action_type == "continuous" else 10.5)
    for agent_return, best in zip(result["agent_returns"].split(), (7, 4)):
        assert float(agent_return) > 0.85 * best


@pytest.mark.parametrize("update_interval", [1, 3, 4])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_run_applies_its_schedules_and_gives_each_update_its_batch(
    num_envs: int, update_interval: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maddpg, "make_env", Colours)
    acts: list[float | None] = []  # the noise of each step, None where it is uniform
    batches, updates = [], []
    random, act = maddpg.Agent.random, maddpg.Agent.act
    sample, refresh = maddpg.PrioritizedReplayBuffer.sample, maddpg.PrioritizedReplayBuffer.refresh

    def spy_random(agent: maddpg.Agent, num_envs: int) -> Any:
        acts.append(None)
        return random(agent, num_envs)

    def spy_act(agent: maddpg.Agent, obs: Any, noise: float) -> Any:
        acts.append(noise)
        return act(agent, obs, noise)

    def spy_sample(buffer: Any, size: int, beta: float) -> Any:
        batches.append((sample(buffer, size, beta), size, beta, buffer.added))
        return batches[-1][0]

    def spy_update(agent: maddpg.Agent, batch: maddpg.Batch) -> Any:
        assert batch is batches[-1][0]
        updates.append(torch.rand(2, 16))
        return updates[-1], {"qf_loss": torch.zeros(())}

    def spy_refresh(buffer: Any, index: Any, td_error: Any, first: int = 0) -> None:
        assert index is batches[-1][0].indices and td_error is updates[-1]
        refresh(buffer, index, td_error, first)

    monkeypatch.setattr(maddpg.Agent, "random", spy_random)
    monkeypatch.setattr(maddpg.Agent, "act", spy_act)
    monkeypatch.setattr(maddpg.Agent, "update", spy_update)
    monkeypatch.setattr(maddpg.PrioritizedReplayBuffer, "sample", spy_sample)
    monkeypatch.setattr(maddpg.PrioritizedReplayBuffer, "refresh", spy_refresh)
    args = make_args(
        tmp_path,
        total_timesteps=120,
        num_envs=num_envs,
        learning_starts=60,
        update_interval=update_interval,
        batch_size=16,
        prioritized_replay=True,
        noise_decay_steps=80,
    )
    maddpg.train(args)
    steps = range(0, 120, num_envs)
    noise = [None if step < 60 else max(1.0 - 0.9 * step / 80, 0.1) for step in steps]
    assert acts == [None if x is None else pytest.approx(x) for x in noise]
    due = [
        step + num_envs
        for step in steps
        for k in range(step + 1, step + num_envs + 1)
        if step + num_envs > 60 and k % update_interval == 0
    ]
    assert [added for *_, added in batches] == due and len(updates) == len(due)
    assert [size for _, size, *_ in batches] == [16] * len(due)
    betas = [beta for _, _, beta, _ in batches]
    assert betas == pytest.approx([0.4 + 0.6 * step / 120 for step in due])
    checkpoint = maddpg.load_checkpoint(tmp_path / "checkpoint.pt")
    assert checkpoint["run"]["updates"] == len(due)
    # 1 is the error that a new transition enters with, -1 that of an agent that was not live.
    error = checkpoint["buffer"]["_extra_state"]["error"]
    refreshed = (error >= 0) & (error != 1)
    assert error.shape == (120, 2) and refreshed.any(0).all()


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_run_stores_what_happened_and_zeros_for_agents_that_are_not_live(
    num_envs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maddpg, "make_env", Colours)
    received: list[maddpg.Step] = []
    step = maddpg.Envs.step

    def spy(envs: maddpg.Envs, action: np.ndarray) -> maddpg.Step:
        before = envs.stack()
        after = step(envs, action)
        received.append(after._replace(obs=before.obs, live=before.live, truncated=action))
        return after

    monkeypatch.setattr(maddpg.Envs, "step", spy)
    args = make_args(tmp_path, total_timesteps=20, num_envs=num_envs, learning_starts=10)
    maddpg.train(args)
    stored = maddpg.load_checkpoint(tmp_path / "checkpoint.pt")["buffer"]["_extra_state"]
    steps = maddpg.Step(*map(np.concatenate, zip(*received)))
    for name in "obs", "reward", "terminated", "live":
        assert np.array_equal(stored[name], getattr(steps, name).astype(np.float32)), name
    assert np.array_equal(stored["next_obs"], steps.last_obs)
    one_hot = np.eye(3)[steps.truncated] * steps.live[..., None]  # the spy put actions there
    assert np.array_equal(stored["action"], one_hot)
    t = np.arange(20) // num_envs % 5
    assert np.array_equal(stored["live"], np.stack([t < 5, t < 2], 1))
    assert np.array_equal(stored["terminated"], np.stack([t < 0, t == 1], 1))


@pytest.mark.parametrize("prioritized", [False, True])
def test_a_run_resumed_where_an_episode_ended_equals_one_without_interruption(
    prioritized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maddpg, "make_env", Colours)
    flags = {"total_timesteps": 200, "learning_starts": 50, "save_interval": 117}
    flags |= {"prioritized_replay": prioritized, "update_interval": 3}
    saved: list[int] = []
    save = maddpg.Run.save

    def dies(run: maddpg.Run, name: str, **parts: Any) -> None:
        save(run, name, **parts)
        saved.append(run.env_step)
        raise SystemExit(9)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="9"):
        patch.setattr(maddpg.Run, "save", dies)
        maddpg.train(make_args(tmp_path / "first", **flags))
    assert saved == [120]
    # A copy, since the run that died here holds the lock of its folder while this process lives.
    half = shutil.copytree(tmp_path / "first", tmp_path / "half", ignore=lambda *_: [".lock"])
    checkpoint = maddpg.load_checkpoint(half / "checkpoint.pt")
    maddpg.train(make_args(half, **flags, resume=half), checkpoint)
    maddpg.train(make_args(tmp_path / "whole", **flags))
    one, other = (
        maddpg.load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("half", "whole")
    )
    for name in "agent", "buffer":
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    for name in "episodes.csv", "evaluations.csv":
        assert rows(tmp_path / "half" / name) == rows(tmp_path / "whole" / name)


@pytest.mark.parametrize("part", ["reward", "last_obs"])
def test_a_number_that_is_not_finite_ends_the_run_and_is_not_stored(
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(Colours):
        def __init__(self, *args: Any, **film: Any) -> None:
            super().__init__(*args, **film)
            self.steps = 0

        def receive(self) -> maddpg.Step:
            self.steps += 1
            step = super().receive()
            return step._replace(**{part: step.reward * np.nan}) if self.steps == 30 else step

    monkeypatch.setattr(maddpg, "make_env", Broken)
    args = make_args(tmp_path, total_timesteps=100, learning_starts=10, save_interval=20)
    with pytest.raises(SystemExit) as ending:
        maddpg.train(args)
    err, what = capsys.readouterr().err, "reward" if part == "reward" else "observation"
    assert (ending.value.code, err.count("\n")) == (1, 1), err
    assert f"{what} after step 29: nan is not a finite float32" in err
    checkpoint = maddpg.load_checkpoint(tmp_path / "checkpoint.pt")
    stored = checkpoint["buffer"]["_extra_state"]
    assert checkpoint["run"]["env_step"] == stored.pop("added") == 20
    assert all(tensor.isfinite().all() for tensor in stored.values())


@pytest.mark.parametrize(("end", "expected"), [("terminated", 1.0), ("truncated", 2.0)])
def test_a_value_counts_what_comes_after_a_time_limit_and_not_after_the_end(
    end: str, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes of one step that earns 1; gamma is 0.5."""

    class Ends(Colours):
        def receive(self) -> maddpg.Step:
            reward, live = self.live.astype(np.float32), self.live
            step, self.live = super().receive(), np.zeros(2, bool)
            return step._replace(
                reward=reward,
                terminated=live & (end == "terminated"),
                truncated=live & (end == "truncated"),
                live=self.live,
                obs=np.zeros((2, 3), np.float32),
                last_obs=self.obs,
            )

    monkeypatch.setattr(maddpg, "make_env", Ends)
    args = make_args(
        tmp_path,
        total_timesteps=1000,
        learning_starts=100,
        update_interval=2,
        tau=0.05,
        critic_learning_rate=1e-2,
    )
    maddpg.train(args)
    checkpoint = maddpg.load_checkpoint(tmp_path / "checkpoint.pt")
    env = Ends(args)
    agent, buffer = maddpg.Agent(env, args), maddpg.ReplayBuffer(env, args)
    agent.load_state_dict(checkpoint["agent"])
    buffer.load_state_dict(checkpoint["buffer"])
    batch = buffer.sample(200, 1.0)
    value = agent.value(agent.critic, batch.obs, batch.action, batch.live)
    assert (value - expected).abs().max() < 0.1


@pytest.mark.parametrize("flag", ["per_variant", "per_alpha", "per_beta_start", "per_beta_end"])
def test_flags_of_prioritized_replay_need_it(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value: Any = "rank" if flag == "per_variant" else 0.3
    make_args(tmp_path, prioritized_replay=True, **{flag: value})
    with pytest.raises(SystemExit):
        make_args(tmp_path, **{flag: value})
    err = capsys.readouterr().err
    assert f"--{flag.replace('_', '-')} needs --prioritized-replay" in err and err.count("\n") == 1
