"""How maddpg_smarts.py plays, and its collectors and learners as Ray actors."""

from __future__ import annotations

import contextlib
import copy
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


def started(
    env: Any, agent: maddpg.Agent, buffer: Any, args: maddpg.Args, patch: pytest.MonkeyPatch
) -> maddpg.Cluster:
    """A Cluster whose workers are nothing."""
    patch.setattr(maddpg.Cluster, "start", lambda *_: None)
    patch.setattr(ray, "init", lambda *_, **__: None)
    return maddpg.Cluster(env, agent, buffer, args, 0)


def some_batch(env: maddpg.MultiAgentEnv, draws: int) -> maddpg.Batch:
    shape = draws, 8, len(env.names)
    action = torch.randint(env.action_size, shape)
    return maddpg.Batch(
        torch.randn(*shape, env.obs_size),
        torch.nn.functional.one_hot(action, env.action_size).float(),
        torch.randn(shape),
        torch.randint(2, shape).float(),
        torch.randint(2, shape).float(),
        torch.randn(*shape, env.obs_size),
        torch.rand(draws, 8),
    )


class Images(Mortal):
    """What Mortal has, with a number and an image to see."""

    obs_size, pixels = 1 + 3 * 32 * 32, 3 * 32 * 32


@pytest.mark.parametrize("kind", [Mortal, Images])
@pytest.mark.parametrize("critic", ["joint", "own"])
@pytest.mark.parametrize("draws", [1, 3])
def test_learners_make_of_their_agents_what_one_update_of_all_makes(
    draws: int, critic: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maddpg.Agent, "gumbel", staticmethod(torch.zeros_like))
    flags: dict[str, Any] = {"critic": critic, "num_collectors": 1, "num_learners": 2}
    large = {"tau": 0.5, "actor_learning_rate": 0.01}  # what is not taken over shows
    args = maddpg.Args(**SMALL | flags | large)
    env: Any = kind()
    env.discrete = True
    agent = maddpg.Agent(env, args)
    batch = some_batch(env, draws)
    agent.update(batch)  # so that the targets and Adam's means are no longer where they began
    whole = copy.deepcopy(agent)
    cluster = started(env, agent, maddpg.ReplayBuffer(env, args), args, monkeypatch)
    errors = []
    for number, members in enumerate(cluster.groups):
        share = batch if draws == 1 else maddpg.Batch(*(part[members.rows] for part in batch))
        learner = maddpg.Learner(copy.deepcopy(members), args, number)
        state, td_error, losses = learner.learn(members.state_dict(), share)
        errors.append(td_error)
        cluster.updates.append((number, None, state, td_error, losses))
    assert cluster.learn(1, 1.0)[0] == 1
    expected, losses = whole.update(batch)
    torch.testing.assert_close(torch.cat(errors), expected)
    ours = agent.state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(ours[name], value, msg=name)
    for members in cluster.groups:  # and each has them for its next update
        for name, value in members.state_dict().items():
            if value.ndim and "target_actor" not in name:
                torch.testing.assert_close(value, members.share(ours[name]), msg=name)
    for name, value in losses.items():
        mean = sum(
            len(m.members) * log[name] for m, log in zip(cluster.groups, cluster.losses.values())
        )
        torch.testing.assert_close(mean / 3, value)


def test_priorities_are_drawn_and_refreshed_for_some_agents_as_for_all() -> None:
    for variant in "proportional", "rank":
        args = maddpg.Args(**SMALL | {"prioritized_replay": True, "per_variant": variant})
        once, apart = (maddpg.Priorities(3, 20, args) for _ in range(2))
        index, error = torch.arange(20).expand(3, -1), torch.rand(3, 20)
        for replay in once, apart:
            replay.add(torch.arange(20), torch.ones(20, 3))
            replay.enter()
        once.refresh(index, error)
        for some in slice(0, 1), slice(1, 3):
            apart.refresh(index[some], error[some], some)
        for replay in once, apart:
            replay.sort()
        torch.testing.assert_close(apart.tree.nodes, once.tree.nodes)
        torch.testing.assert_close(apart.largest, once.largest)
        apart.refresh(index[:1], 10 * error[:1], slice(0, 1))
        assert apart.tree.nodes[1:].equal(once.tree.nodes[1:])
        assert not apart.tree.nodes[0].equal(once.tree.nodes[0])
        torch.manual_seed(0)
        places, weights = apart.draw(6, 0.5, slice(1, 3))
        assert places.shape == weights.shape == (2, 6)
        torch.manual_seed(0)
        tree = maddpg.SumTree(2, 20)
        tree.nodes = once.tree.nodes[1:]
        assert tree.draw(6).equal(places)
        # Ranks are looked up in the last sorting now, each agent's in its own.
        error = torch.rand(3, 20)
        once.refresh(index, error)
        for some in slice(0, 1), slice(1, 3):
            apart.refresh(index[some], error[some], some)
        torch.testing.assert_close(apart.tree.nodes, once.tree.nodes)


def test_a_killed_collector_is_replaced_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    collect, pids = maddpg.Cluster.collect, set[int]()
    calls: list[float] = []
    owed, killed = [], list[int]()

    def killing(cluster: Any, noise: float, at_random: bool) -> Any:
        calls.append(noise)
        idle: list[int] = []  # the processes that collect is about to send off
        for worker in cluster.idle[maddpg.Collector].values():
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
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Worker:
        collect = SimpleNamespace(remote=lambda *_: object())

    def get(promise: Any) -> Any:
        if promise not in learnt:
            raise ray.exceptions.RayError("out of memory")
        return ()

    args = maddpg.Args(**SMALL | {"num_collectors": 1, "num_learners": 1})
    env = Mortal()
    agent, buffer = maddpg.Agent(env, args), maddpg.ReplayBuffer(env, args)
    cluster = started(env, agent, buffer, args, monkeypatch)
    learnt = [object() for _ in range(20)]
    fake_ray: Any = SimpleNamespace(
        wait=lambda promises, timeout: (promises[:2], []), get=get, exceptions=ray.exceptions
    )
    cluster.ray = fake_ray
    cluster.start = lambda *_: Worker()  # type: ignore[method-assign]
    cluster.idle = {maddpg.Collector: {0: Worker()}, maddpg.Learner: {}}
    with pytest.raises(SystemExit, match="1"):
        for promise in learnt:
            cluster.working[promise] = (maddpg.Learner, 0, Worker(), None)
            cluster.collect(1.0, False)
    err = capsys.readouterr().err
    assert err.count("a Collector died and is replaced (out of memory)") == 5
    assert "a Collector died, the sixth in a row: out of memory" in err


def test_collectors_rest_while_a_hundred_updates_are_owed_and_no_learner_runs_far_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = maddpg.Args(**SMALL | {"num_collectors": 1, "num_learners": 2})
    env = Mortal()
    agent, buffer = maddpg.Agent(env, args), maddpg.ReplayBuffer(env, args)
    buffer.size = 100
    cluster = started(env, agent, buffer, args, monkeypatch)
    sent: list[str] = []

    def worker(name: str) -> Any:
        def remote(*_: Any) -> object:
            sent.append(name)
            return object()

        return SimpleNamespace(
            **dict.fromkeys(("collect", "learn"), SimpleNamespace(remote=remote))
        )

    def came(number: int) -> None:  # an update of this learner, which is idle then
        state = cluster.groups[number].state_dict()
        losses = {"qf_loss": torch.zeros(())}
        cluster.updates.append((number, None, state, torch.zeros(1, 8), losses))
        cluster.idle[maddpg.Learner][number] = worker(f"learner {number}")

    fake_ray: Any = SimpleNamespace(wait=lambda promises, timeout: ([], promises))
    cluster.ray = fake_ray
    cluster.idle = {maddpg.Collector: {0: worker("collector")}, maddpg.Learner: {}}
    came(0)
    assert cluster.learn(101, 1.0) == (0, {}), "only one of two has made it"
    assert cluster.ahead == [1, 0] and sent == ["learner 0"]
    came(1)
    done, losses = cluster.learn(101, 1.0)
    assert (done, losses["updates_owed"]) == (1, 100)
    assert cluster.ahead == [0, 0] and sent == ["learner 0", "learner 1"]
    cluster.collect(1.0, False)
    assert "collector" not in sent
    came(1)
    came(0)
    cluster.learn(100, 1.0)
    cluster.collect(1.0, False)
    assert sent.count("collector") == 1
    sent.clear()
    for _ in range(3):  # learner 1 does not come back
        came(0)
        cluster.learn(2, 1.0)
    assert sent == ["learner 0"] and cluster.ahead == [3, 0], "it was ahead of what is due"


def test_a_learner_is_sent_what_the_others_have_made_of_their_target_actors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = maddpg.Args(**SMALL | {"num_collectors": 1, "num_learners": 2})
    env = Mortal()
    agent, buffer = maddpg.Agent(env, args), maddpg.ReplayBuffer(env, args)
    buffer.size = 100
    cluster = started(env, agent, buffer, args, monkeypatch)
    before = copy.deepcopy(agent.target_actor.state_dict())
    learner = maddpg.Learner(copy.deepcopy(cluster.groups[0]), args, 0)
    state, td_error, losses = learner.learn(cluster.groups[0].state_dict(), some_batch(env, 1))
    cluster.updates.append((0, None, state, td_error, losses))
    sent: list[dict[str, Any]] = []

    def remote(state: dict[str, Any], batch: Any) -> object:
        sent.append(copy.deepcopy(state))
        return object()

    worker = SimpleNamespace(learn=SimpleNamespace(remote=remote))
    cluster.idle = {maddpg.Collector: {}, maddpg.Learner: {1: worker}}
    cluster.learn(1, 1.0)
    for name, value in agent.target_actor.state_dict().items():
        assert sent[0][f"target_actor.{name}"].equal(value)
        first, others = cluster.groups[0].share, cluster.groups[1].share
        assert not first(value).equal(first(before[name])) or not first(before[name]).any()
        assert others(value).equal(others(before[name]))


def test_a_learner_draws_and_refreshes_the_priorities_of_its_own_agents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = {"num_collectors": 1, "num_learners": 2, "prioritized_replay": True}
    args = maddpg.Args(**SMALL | flags)
    env = Mortal()
    agent, buffer = maddpg.Agent(env, args), maddpg.ReplayBuffer(env, args)
    assert buffer.priorities is not None
    buffer.size = 20
    buffer.priorities.add(torch.arange(20), torch.ones(20, 3))
    buffer.priorities.enter()
    cluster = started(env, agent, buffer, args, monkeypatch)
    sent: list[maddpg.Batch] = []

    def remote(state: Any, batch: maddpg.Batch) -> object:
        sent.append(batch)
        return object()

    index, error = torch.arange(20).expand(2, -1), 2 + torch.rand(2, 20)
    state = cluster.groups[1].state_dict()
    cluster.updates.append((1, index, state, error, {"qf_loss": torch.zeros(())}))
    worker = SimpleNamespace(learn=SimpleNamespace(remote=remote))
    cluster.idle = {maddpg.Collector: {}, maddpg.Learner: {0: worker, 1: worker}}
    cluster.learn(2, 1.0)
    assert buffer.priorities.error[0, :20].tolist() == [1.0] * 20
    assert buffer.priorities.error[1:, :20].equal(error)
    assert [len(batch.obs) for batch in sent] == [1, 2]


def test_more_learners_than_agents_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"num_collectors": 1, "num_learners": 4}
    with pytest.raises(SystemExit) as ending:
        maddpg.train(maddpg.Args(**SMALL | flags, run_dir=tmp_path / "run"))
    err = capsys.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1), err
    assert "--num-learners is 4, and mpe2/simple_spread_v3 has 3 agents" in err


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
        maddpg.Cluster(env, maddpg.Agent(env, args), maddpg.ReplayBuffer(env, args), args, 0)
    assert asked[0]["address"] == "10.0.0.1:6379" and "num_cpus" not in asked[0]
