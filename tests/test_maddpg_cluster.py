"""How maddpg_smarts.py plays, and its collectors and learners as Ray actors."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COMMON, rows, run_python

import maddpg_smarts as maddpg

ray = pytest.importorskip("ray")

SMALL: dict[str, Any] = COMMON | {
    "env_id": "mpe2/simple_spread_v3",
    "actor_hidden_sizes": (16,),
    "critic_hidden_sizes": (16,),
    "batch_size": 16,
    "buffer_size": 2000,
    "learning_starts": 100,
    "update_interval": 20,
    "eval_interval": 1000,
    "eval_episodes": 1,
}


class Mortal(maddpg.MultiAgentEnv):
    """Agents a, b and c; they see the time, c ends after 1 step, b after 3, all after 5."""

    names, obs_size, pixels, action_size, discrete, fps = ["a", "b", "c"], 1, 0, 2, False, 10

    def __init__(self, *_: Any) -> None:
        self.t = 0

    def here(self, reward: float) -> maddpg.Step:
        ended = np.array([False, self.t == 3, self.t == 1])
        last = (self.live[:, None] * (10 + self.t)).astype(np.float32)
        rewards, cut_off = (reward * self.live).astype(np.float32), self.live & (self.t == 5)
        live = self.live & ~ended & ~cut_off
        return maddpg.Step(last * live[:, None], rewards, ended, cut_off, live, last)

    def begin(self) -> maddpg.Step:
        self.t = 0
        return self.here(0.0)

    def advance(self) -> maddpg.Step:
        self.t += 1
        return self.here(1.0)


@pytest.mark.parametrize("at_random", [True, False])
def test_what_is_stored_of_dead_agents_is_zero(
    at_random: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maddpg, "make_env", Mortal)
    args = maddpg.Args(**SMALL)
    envs = maddpg.Envs(args)
    agent = maddpg.Agent(envs.envs[0], args)
    steps = [maddpg.play_step(envs, agent, args, 0.5, at_random) for _ in range(12)]
    for i, step in enumerate(steps):
        t = i % 5
        lives = [True, t < 3, t < 1]
        assert step.live.tolist() == [lives]
        for part in step.obs, step.action.numpy(), step.reward, step.next_obs:
            assert [bool(x.any()) for x in part[0]] == lives
        assert step.terminated.tolist() == [[False, t == 2, t == 0]]
        assert step.ended.tolist() == [t == 4]
        expected = np.where(lives, 11 + t, 0)
        assert step.next_obs[0, :, 0].tolist() == expected.tolist()
        assert step.obs[0, :, 0].tolist() == np.where(lives, 10 + t, 0).tolist()


def test_every_environment_and_every_episode_has_its_own_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maddpg, "make_env", Mortal)
    args = maddpg.Args(**SMALL | {"num_envs": 2})
    seeds = set()
    for number in 0, 1:
        envs = maddpg.Envs(args, number)
        agent = maddpg.Agent(envs.envs[0], args)
        for _ in range(15):
            seeds |= {env.seed for env in envs.envs}
            maddpg.play_step(envs, agent, args, 0.5, True)
    assert len(seeds) == 2 * 2 * 3


def test_a_learner_computes_the_gradients_that_the_agent_itself_would() -> None:
    args = maddpg.Args(**SMALL | {"action_type": "continuous"})
    env = maddpg.make_env(args)
    agent, other = maddpg.Agent(env, args), maddpg.Agent(env, args)
    learner = maddpg.Learner(other, args, 1)
    shape = 1, 8, 3
    batch = maddpg.Batch(
        torch.randn(*shape, 18),
        torch.rand(*shape, 5),
        torch.randn(shape),
        torch.zeros(shape),
        torch.ones(shape),
        torch.randn(*shape, 18),
        torch.ones(1, 8),
    )
    networks = {k: v for k, v in agent.state_dict().items() if "optimizer" not in k}
    for theirs, ours in zip(learner.gradients(networks, batch), agent.gradients(batch)):
        torch.testing.assert_close(theirs, ours)


def test_a_killed_collector_is_replaced_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    collect, pids = maddpg.Cluster.collect, set[int]()
    calls: list[float] = []
    owed, killed = [], list[int]()

    def killing(cluster: Any, noise: float, at_random: bool) -> Any:
        calls.append(noise)
        idle: list[int] = []  # the processes that collect is about to send off
        for worker in cluster.idle[maddpg.Collector]:
            with contextlib.suppress(ray.exceptions.RayError):  # killed between two of its parts
                idle.append(ray.get(worker.__ray_call__.remote(lambda self: os.getpid())))
        pids.update(idle)
        steps = collect(cluster, noise, at_random)
        if idle and len(calls) >= 3 and not killed:
            killed.append(idle[-1])
            os.kill(idle[-1], signal.SIGKILL)
        return steps

    learn = maddpg.Cluster.learn

    def counting(cluster: Any, updates: int, beta: float) -> Any:
        done, losses = learn(cluster, updates, beta)
        owed.append(updates - done)
        return done, losses

    monkeypatch.setattr(maddpg.Cluster, "collect", killing)
    monkeypatch.setattr(maddpg.Cluster, "learn", counting)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    args = maddpg.Args(
        **SMALL
        | {"num_collectors": 2, "num_learners": 1, "total_timesteps": 2000, "run_dir": tmp_path}
        | {"update_interval": 4},
    )
    maddpg.train(args)
    err = capfd.readouterr().err
    assert err.count("maddpg_smarts: a Collector died and is replaced") == 1, err
    assert len(pids) == 3, "two at first, and one in the place of the killed one"
    checkpoint = maddpg.load_checkpoint(tmp_path / "checkpoint.pt")
    run, steps = checkpoint["run"], [int(r["env_step"]) for r in rows(tmp_path / "episodes.csv")]
    assert steps == list(range(25, run["env_step"] + 1, 25)) and run["env_step"] >= 2000
    due = (run["env_step"] - 100) // 4
    chunks = 3 * 100 // 4  # each collector's, and the killed one's
    assert min(owed) >= 0, "more updates than were due"
    assert run["updates"] == due - owed[-1] and max(owed) < 100 + chunks
    assert checkpoint["buffer"]["size"] == min(run["env_step"], 2000)
    torch.manual_seed(args.seed)
    start, end = maddpg.Agent(maddpg.make_env(args), args).state_dict(), checkpoint["agent"]
    assert all(torch.isfinite(p).all() for p in end.values())
    assert end["actor_optimizer.t"] == run["updates"]
    for name in "actor.layers.0.weight", "target_critic.layers.0.weight":
        assert 0 < (end[name] - start[name]).abs().max() < 0.5, "not where it began, nor far off"


def test_a_kind_that_dies_six_times_in_a_row_ends_the_run_though_the_other_kind_lives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Worker:
        collect = SimpleNamespace(remote=lambda *_: object())

    def get(promise: Any) -> Any:
        if promise not in learnt:
            raise ray.exceptions.RayError("out of memory")

    cluster = object.__new__(maddpg.Cluster)  # no super().__init__(): there is no Ray behind
    learnt = [object() for _ in range(20)]
    fake_ray: Any = SimpleNamespace(
        wait=lambda promises, timeout: (promises[:2], []), get=get, exceptions=ray.exceptions
    )
    cluster.ray = fake_ray
    cluster.agent = SimpleNamespace(actor=torch.nn.Linear(1, 1))  # type: ignore[assignment]
    cluster.deaths = {maddpg.Collector: 0, maddpg.Learner: 0}
    cluster.idle = {maddpg.Collector: [Worker()], maddpg.Learner: []}
    cluster.gradients, cluster.working, cluster.owed = [], {}, 0
    cluster.start = lambda kind: Worker()  # type: ignore[method-assign]
    with pytest.raises(SystemExit, match="1"):
        for promise in learnt:
            cluster.working[promise] = (maddpg.Learner, Worker(), None)
            cluster.collect(1.0, False)
    err = capsys.readouterr().err
    assert err.count("a Collector died and is replaced (out of memory)") == 5
    assert "a Collector died, the sixth in a row: out of memory" in err


def test_collectors_rest_while_a_hundred_updates_are_owed() -> None:
    sent: list[int] = []
    worker = SimpleNamespace(collect=SimpleNamespace(remote=lambda *_: sent.append(1)))
    cluster = object.__new__(maddpg.Cluster)
    fake_ray: Any = SimpleNamespace(wait=lambda promises, timeout: ([], promises))
    cluster.ray = fake_ray
    cluster.agent = SimpleNamespace(  # type: ignore[assignment]
        actor=torch.nn.Linear(1, 1), step=lambda *_: None, state_dict=dict
    )
    cluster.buffer = SimpleNamespace(priorities=None)  # type: ignore[assignment]
    cluster.idle, cluster.working = {maddpg.Collector: [worker], maddpg.Learner: []}, {}
    cluster.gradients = [(None, ((), (), None, {}))]
    assert cluster.learn(101, 1.0) == (1, {"updates_owed": 100})
    cluster.collect(1.0, False)
    assert not sent
    cluster.gradients = [(None, ((), (), None, {}))]
    assert cluster.learn(100, 1.0) == (1, {"updates_owed": 99})
    cluster.collect(1.0, False)
    assert sent


def test_without_the_flags_nothing_imports_ray(tmp_path: Path) -> None:
    code = (
        "import sys, maddpg_smarts as m; from pathlib import Path; "
        f"m.train(m.Args(**{SMALL | {'total_timesteps': 200}}, run_dir=Path('run'))); "
        "assert 'ray' not in sys.modules"
    )
    run_python(["-c", code], tmp_path, PYTHONPATH=str(Path(maddpg.__file__).parent))


@pytest.mark.parametrize(
    "flags",
    [
        {"num_collectors": 1},
        {"num_learners": 1},
        {"num_collectors": 1, "num_learners": 1, "num_envs": 2},
    ],
)
def test_collectors_without_learners_are_refused_and_so_are_parallel_environments(
    flags: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        maddpg.train(maddpg.Args(**SMALL | flags, run_dir=tmp_path / "run"))
    err = capsys.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1), err
    assert "--num-collectors" in err and "--num-learners" in err


def test_without_ray_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as ending:
        flags = {"num_collectors": 1, "num_learners": 1}
        maddpg.train(maddpg.Args(**SMALL | flags, run_dir=tmp_path / "run"))
    err = capsys.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1), err
    assert "requirements-smarts.txt" in err


def test_the_cluster_at_ray_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def init(**words: Any) -> None:
        asked.append(words)
        raise ConnectionError("nobody there")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", init)
    args = maddpg.Args(**SMALL | {"num_collectors": 1, "num_learners": 1})
    env = maddpg.make_env(args)
    with pytest.raises(ConnectionError):
        maddpg.Cluster(maddpg.Agent(env, args), maddpg.ReplayBuffer(env, args), args, 0)
    assert asked[0]["address"] == "10.0.0.1:6379" and "num_cpus" not in asked[0]
