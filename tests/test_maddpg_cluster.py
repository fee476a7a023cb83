"""maddpg_ray.py: its collectors and learners as Ray actors."""

from __future__ import annotations

import contextlib
import copy
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COMMON, Run, rows, run_python

import maddpg_ray as cluster
import maddpg_smarts as maddpg

ray = pytest.importorskip("ray")
os.environ.update(RAY_worker_niceness="0")  # Ray's 15 would starve them beside other tests

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


def make_args(**changes: Any) -> cluster.Args:
    return cluster.Args(**SMALL | changes)


class Mortal(maddpg.MultiAgentEnv):
    """Agents a, b and c; they see the time, c ends after 1 step, b after 3, all after 5."""

    def __init__(self, *_: Any, pixels: int = 0, discrete: bool = False) -> None:
        self.names, self.fps = ["a", "b", "c"], 10
        self.pixels, self.obs_size, self.action_size = pixels, 1 + pixels, 2
        self.discrete, self.seeds = discrete, list[int | None]()

    def here(self, reward: float) -> maddpg.Step:
        ended = np.array([False, self.t == 3, self.t == 1])
        last = (self.live[:, None] * (10 + self.t)).astype(np.float32)
        rewards, cut_off = (reward * self.live).astype(np.float32), self.live & (self.t == 5)
        self.live = self.live & ~ended & ~cut_off
        obs = last * self.live[:, None]
        return maddpg.Step(obs, rewards, ended, cut_off, self.live, last)

    def reset(self, seed: int | None) -> maddpg.Step:
        self.t, self.live = 0, np.ones(3, bool)
        self.seeds.append(seed)
        return self.here(0.0)

    def send(self, action: np.ndarray) -> None:
        self.t += 1

    def receive(self) -> maddpg.Step:
        return self.here(1.0)


def make_cluster(
    env: Any, agent: maddpg.Agent, buffer: Any, args: cluster.Args, patch: pytest.MonkeyPatch
) -> cluster.Cluster:
    """A Cluster whose workers are nothing."""
    patch.setattr(cluster.Cluster, "start", lambda *_: None)
    run: Any = SimpleNamespace(args=args, updates=0, env_step=0)
    return cluster.Cluster(ray, env, agent, buffer, run)


def random_batch(env: maddpg.MultiAgentEnv, batches: int) -> maddpg.Batch:
    shape = batches, 8, len(env.names)
    action = torch.randint(env.action_size, shape)
    return maddpg.Batch(
        torch.randn(*shape, env.obs_size),
        torch.nn.functional.one_hot(action, env.action_size).float(),
        torch.randn(shape),
        torch.randint(2, shape).float(),
        torch.randint(2, shape).float(),
        torch.randn(*shape, env.obs_size),
        torch.zeros(batches, 8, dtype=torch.int64),
        torch.rand(batches, 8),
    )


# Collectors


@pytest.mark.parametrize("uniform", [True, False])
def test_a_collector_returns_whole_episodes_with_zeros_for_agents_that_are_not_live(
    uniform: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maddpg, "make_env", Mortal)
    args = make_args()
    agent = maddpg.Agent(Mortal(), args)
    steps = cluster.Collector(agent, args, 1).work(agent.actor.state_dict(), 0.5, uniform)
    assert len(steps) == 100
    for i, ((obs, action, reward, terminated, live, next_obs), ended) in enumerate(steps):
        t = i % 5
        lives = [True, t < 3, t < 1]
        assert live.tolist() == [lives]
        for part in obs, action.numpy(), reward, next_obs:
            assert [bool(x.any()) for x in part[0]] == lives
        assert terminated.tolist() == [[False, t == 2, t == 0]]
        assert ended == (t == 4)
        assert next_obs[0, :, 0].tolist() == np.where(lives, 11 + t, 0).tolist()
        assert obs[0, :, 0].tolist() == np.where(lives, 10 + t, 0).tolist()


def test_every_episode_of_every_collector_has_its_own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maddpg, "make_env", Mortal)
    args, seeds = make_args(), list[int]()
    for number in 1, 2:
        agent = maddpg.Agent(Mortal(), args)
        collector: Any = cluster.Collector(agent, args, number)
        for _ in range(2):
            collector.work(agent.actor.state_dict(), 0.5, True)
        seeds += collector.envs.envs[0].seeds
    assert len(seeds) == len(set(seeds)) == 80


# Learners


@pytest.mark.parametrize("pixels", [0, 3 * 32 * 32])
@pytest.mark.parametrize("critic", ["joint", "own"])
@pytest.mark.parametrize("batches", [1, 3])
def test_learners_make_of_their_agents_what_one_update_of_all_makes(
    batches: int, critic: Any, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maddpg.Agent, "gumbel", staticmethod(torch.zeros_like))
    # A large tau and learning rate, so that what is not taken over shows
    args = make_args(critic=critic, num_learners=2, tau=0.5, actor_learning_rate=0.01)
    env = Mortal(pixels=pixels, discrete=True)
    agent = maddpg.Agent(env, args)
    batch = random_batch(env, batches)
    agent.update(batch)  # so that targets and Adam's means differ from the first ones
    whole = copy.deepcopy(agent)
    crew = make_cluster(env, agent, maddpg.ReplayBuffer(env, args), args, monkeypatch)
    assert [list(group.members) for group in crew.groups] == [[0], [1, 2]]
    errors, results = [], []
    for number, group in enumerate(crew.groups):
        share = batch if batches == 1 else maddpg.Batch(*map(group.rows, batch))
        learner = cluster.Learner(copy.deepcopy(group), args, number)
        state, td_error, losses = learner.work(group.state_dict(), share)
        assert not any("target_actor" in name for name in state)
        errors.append(td_error)
        results.append((number, share.indices, state, td_error, losses))
    for result in results:
        crew.take_over(*result)
    expected, losses = whole.update(batch)
    torch.testing.assert_close(torch.cat(errors), expected)
    ours = agent.state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(ours[name], value, msg=name)
    for group in crew.groups:  # and each has them for its next update
        for name, value in group.state_dict().items():
            rows = value.ndim and "target_actor" not in name
            torch.testing.assert_close(value, group.rows(ours[name]) if rows else ours[name])
    assert crew.made == [1, 1]
    means = crew.mean_losses()
    for name, value in losses.items():
        torch.testing.assert_close(means[name], value)


class Worker:
    """An idle worker that notes what it is given."""

    def __init__(self, given: list[Any], name: Any = None) -> None:
        def remote(*task: Any) -> object:
            given.append(copy.deepcopy(task) if name is None else name)
            return object()

        self.work = SimpleNamespace(remote=remote)


def no_answer(**others: Any) -> Any:
    """A Ray whose workers have not answered yet."""
    return SimpleNamespace(wait=lambda promises, timeout: ([], promises), **others)


def some_buffer(env: Any, args: cluster.Args, size: int = 100) -> maddpg.ReplayBuffer:
    prioritized, plain = maddpg.PrioritizedReplayBuffer, maddpg.ReplayBuffer
    buffer = (prioritized if args.prioritized_replay else plain)(env, args)
    zero = np.zeros((size, 3), np.float32)
    obs = np.zeros((size, 3, env.obs_size), np.float32)
    buffer.add(obs, np.zeros((size, 3, 2), np.float32), zero, zero, zero + 1, obs)
    return buffer


def test_collectors_wait_while_100_updates_are_owed_and_learners_make_only_what_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args, env = make_args(num_learners=2), Mortal()
    agent, buffer = maddpg.Agent(env, args), some_buffer(env, args)
    crew = make_cluster(env, agent, buffer, args, monkeypatch)
    given: list[str] = []
    crew.ray = no_answer()
    workers = {kind: Worker(given, kind.__name__) for kind in crew.idle}

    def work(due: int, made: list[int]) -> list[str]:
        given.clear()
        crew.due, crew.made = due, made
        crew.idle = {
            cluster.Collector: {0: workers[cluster.Collector]},
            cluster.Learner: dict.fromkeys(range(2), workers[cluster.Learner]),
        }
        crew.work(1.0, False, 1.0)
        return given

    assert work(0, [0, 0]) == ["Collector"]
    assert work(99, [0, 0]) == ["Collector", "Learner", "Learner"]
    assert work(100, [0, 50]) == ["Learner", "Learner"]
    assert work(100, [1, 100]) == ["Collector", "Learner"]
    assert work(100, [100, 100]) == ["Collector"]


def test_a_learner_is_sent_what_the_others_made_of_their_target_actors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args, env = make_args(num_learners=2), Mortal()
    agent, buffer = maddpg.Agent(env, args), some_buffer(env, args)
    crew = make_cluster(env, agent, buffer, args, monkeypatch)
    before = copy.deepcopy(agent.target_actor.state_dict())
    learner = cluster.Learner(copy.deepcopy(crew.groups[0]), args, 0)
    result = learner.work(crew.groups[0].state_dict(), random_batch(env, 1))
    crew.take_over(0, torch.zeros(1, 8, dtype=torch.int64), *result)
    sent: list[Any] = []
    crew.ray, crew.due = no_answer(), 1
    crew.idle = {cluster.Collector: {}, cluster.Learner: {1: Worker(sent)}}
    crew.work(1.0, False, 1.0)
    ((state, _),) = sent
    for name, value in agent.target_actor.state_dict().items():
        assert state[f"target_actor.{name}"].equal(value)
        first, others = (group.rows for group in crew.groups)
        assert not first(value).equal(first(before[name])) or not first(before[name]).any()
        assert others(value).equal(others(before[name]))


def test_a_learner_samples_and_refreshes_the_priorities_of_its_own_agents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args, env = make_args(num_learners=2, prioritized_replay=True), Mortal()
    agent, buffer = maddpg.Agent(env, args), some_buffer(env, args, 20)
    assert isinstance(buffer, maddpg.PrioritizedReplayBuffer)
    crew = make_cluster(env, agent, buffer, args, monkeypatch)
    sent: list[Any] = []
    crew.ray, crew.due = no_answer(), 1
    crew.idle = {cluster.Collector: {}, cluster.Learner: {k: Worker(sent) for k in range(2)}}
    crew.work(1.0, False, 1.0)
    assert [len(batch.obs) for _, batch in sent] == [1, 2]
    assert [len(indices) for *_, indices in crew.working.values()] == [1, 2]
    index, error = torch.arange(20).expand(2, -1), 2 + torch.rand(2, 20)
    crew.take_over(1, index, crew.groups[1].state_dict(), error, {})
    assert buffer.error[:20, 0].tolist() == [1.0] * 20
    assert buffer.error[:20, 1:].T.equal(error)


# Failures


def test_a_kind_that_fails_six_times_in_a_row_ends_the_run_though_the_other_kind_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def get(promise: Any) -> Any:
        if promise not in learnt:
            raise ray.exceptions.RayError("out of memory")
        return {}, torch.zeros(1, 8), {}

    args, env = make_args(), Mortal()
    agent = maddpg.Agent(env, args)
    crew = make_cluster(env, agent, some_buffer(env, args), args, monkeypatch)
    learnt = [object() for _ in range(20)]
    fake_ray: Any = SimpleNamespace(
        wait=lambda promises, timeout: (promises[:2], []), get=get, exceptions=ray.exceptions
    )
    crew.ray = fake_ray
    crew.start = lambda *_: Worker([])  # type: ignore[method-assign]
    crew.idle = {cluster.Collector: {0: Worker([])}, cluster.Learner: {}}
    with pytest.raises(SystemExit, match="1"):
        for promise in learnt:
            crew.working[promise] = cluster.Learner, 0, Worker([]), torch.zeros(1, 8).long()
            crew.work(1.0, False, 1.0)
    err = capsys.readouterr().err
    assert err.count("a Collector is replaced (out of memory)") == 5
    assert "a Collector failed, the sixth in a row: out of memory" in err


def test_a_killed_collector_is_replaced_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work, pids = cluster.Cluster.work, set[int]()
    calls: list[float] = []
    owed, killed = [], list[int]()

    def killing(crew: Any, noise: float, uniform: bool, beta: float) -> Any:
        calls.append(noise)
        idle: list[int] = []  # the processes that work is about to give something to do
        for worker in crew.idle[cluster.Collector].values():
            with contextlib.suppress(ray.exceptions.RayError):  # killed between two of its tasks
                idle.append(ray.get(worker.__ray_call__.remote(lambda self: os.getpid())))
        pids.update(idle)
        steps = work(crew, noise, uniform, beta)
        owed.append(crew.due - min(crew.made))
        if idle and len(calls) >= 3 and not killed:
            killed.append(idle[-1])
            os.kill(idle[-1], signal.SIGKILL)
        return steps

    monkeypatch.setattr(cluster.Cluster, "work", killing)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    flags = {"num_collectors": 2, "total_timesteps": 2000, "update_interval": 4}
    args = make_args(run_dir=tmp_path, **flags)
    cluster.train(args)
    err = capfd.readouterr().err
    assert err.count("maddpg_ray: a Collector is replaced") == 1, err
    assert len(pids) == 3, "two at first, and one in the place of the killed one"
    checkpoint = maddpg.load_checkpoint(tmp_path / "checkpoint.pt")
    run, steps = checkpoint["run"], [int(r["env_step"]) for r in rows(tmp_path / "episodes.csv")]
    assert steps == list(range(25, run["env_step"] + 1, 25)) and run["env_step"] >= 2000
    due = (run["env_step"] - 100) // 4
    chunks = 3 * 100 // 4  # of each collector, and of the killed one
    assert min(owed) >= 0, "more updates than were due"
    assert due - 100 - chunks < run["updates"] <= due and max(owed) < 100 + chunks
    assert checkpoint["buffer"]["_extra_state"]["added"] == run["env_step"]
    torch.manual_seed(args.seed)
    start, end = maddpg.Agent(maddpg.make_env(args), args).state_dict(), checkpoint["agent"]
    assert all(torch.isfinite(p).all() for p in end.values())
    assert end["actor_optimizer.t"] == run["updates"]
    for name in "actor.layers.0.weight", "target_critic.layers.0.weight":
        assert 0 < (end[name] - start[name]).abs().max() < 0.5, "not where it began, nor far off"


def descendants(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children}.union(*(descendants(int(c)) for c in children))


def test_a_terminated_run_leaves_no_process_and_can_be_resumed_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = ["--run-dir", "run", "--num-learners", "2", "--total-timesteps", "100000"]
    small = ["--learning-starts", "100", "--batch-size", "16", "--no-compile", "--eval-interval"]
    run = Run(cluster, [*words, *small, "300", "--env-id", SMALL["env_id"]], tmp_path)
    start = time.monotonic()
    while not (tmp_path / "run" / "evaluations.csv").exists():
        assert time.monotonic() - start < 300 and run.process.is_alive(), run.wait()
        time.sleep(0.1)
    assert run.process.pid
    workers = descendants(run.process.pid)
    run.send(signal.SIGTERM)
    code, out, err = run.wait()
    assert code == 128 + signal.SIGTERM and "Traceback" not in err, err
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):
        assert time.monotonic() < end, "processes are left behind"
        time.sleep(0.1)
    step = maddpg.load_checkpoint
    monkeypatch.setattr(maddpg, "SCRIPT", "maddpg_ray")
    before = step(tmp_path / "run" / "checkpoint.pt")["run"]
    command = shlex.split(out.split("resume with: ")[1])
    assert command[1:] == [str(cluster.__file__), "--resume", "run"]
    # As a user types it, and compiled, which needs classes that Ray's workers can import
    words = [*command[1:], "--compile", "--total-timesteps", str(before["env_step"] + 100)]
    environ = {name: os.environ[name] for name in ("HOME", "RAY_worker_niceness")}
    out, err = run_python(words, tmp_path, **environ)
    assert "done: run" in out and "replaced" not in err, err
    after = step(tmp_path / "run" / "checkpoint.pt")["run"]
    assert after["env_step"] > before["env_step"]
    code, out, err = Run(cluster, ["--evaluate", "run", "--eval-episodes", "1"], tmp_path).wait()
    assert code == 0 and "over 1 episodes" in out, err
    code, out, err = Run(maddpg, ["--evaluate", "run"], tmp_path).wait()
    assert code == 2 and "written by maddpg_ray.py" in err


# Flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-collectors", "0"], "--num-collectors is 0"),
        (["--num-learners", "0"], "--num-learners is 0"),
        (["--num-envs", "2"], "--num-envs"),
        (["--device", "cuda"], "--device"),
        (["--num-learners", "4"], "--num-learners is 4, but mpe2/simple_spread_v3 has 3 agents"),
    ],
)
def test_flags_out_of_range_are_refused(flags: list[str], words: str, tmp_path: Path) -> None:
    code, _, err = Run(cluster, ["--env-id", SMALL["env_id"], *flags], tmp_path).wait()
    assert code == 2 and words in err and "Traceback" not in err, err
    assert not (tmp_path / "runs").exists()


def test_neither_script_imports_ray_before_it_is_needed(tmp_path: Path) -> None:
    code = "import sys, maddpg_ray; assert 'ray' not in sys.modules"
    run_python(["-c", code], tmp_path, PYTHONPATH=str(Path(maddpg.__file__).parent))


def test_without_ray_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as ending:
        cluster.train(make_args(run_dir=tmp_path / "run"))
    err = capsys.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1), err
    assert "requirements-smarts.txt" in err and not (tmp_path / "run").exists()


def test_the_cluster_at_ray_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", lambda *_, **words: asked.append(words))
    cluster.start_ray(make_args())
    assert asked[0]["address"] == "10.0.0.1:6379" and "num_cpus" not in asked[0]
