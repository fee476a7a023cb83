"""What a3c_lstm_atari.py's workers share, and how they begin and end."""

from __future__ import annotations

import inspect
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, failed, flags, make_args, rows, weights
from test_a2c_update import chunks, learn
from torch import Tensor

import a2c_lstm_atari as a2c
import a3c_lstm_atari as a3c


@pytest.mark.parametrize("shared", [True, False])
def test_one_worker_learns_what_a2c_learns_from_one_game(shared: bool, tmp_path: Path) -> None:
    settings = {"total_timesteps": 192, "chunk_size": 32, "learning_rate": 1e-3, "seed": 5}
    args = make_args(a3c, **settings, shared_statistics=shared, run_dir=tmp_path / "run")
    assert failed(a3c, args) == 0

    args = make_args(a2c, **settings, num_envs=1)
    torch.manual_seed(args.seed)
    agent = a2c.Agent(6, args)
    games = a2c.AtariGames(args, 1)
    games.begin(args.seed, 0, 0)
    torch.manual_seed(a2c.episode_seed(args.seed, 0, 0))
    played = chunks(agent, games, args)
    for env_step in range(0, 192, 32):
        agent.anneal_lr(env_step)
        learn(agent, next(played)[1])
    learned = weights(a3c, tmp_path / "run")
    for name, value in agent.state_dict().items():
        torch.testing.assert_close(learned[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Features", "ActorCritic", "Batch", "Rollout"])
def test_the_network_and_the_rollout_are_those_of_a2c(name: str) -> None:
    assert inspect.getsource(getattr(a3c, name)) == inspect.getsource(getattr(a2c, name))


class OneRollout:
    """A connection to a main process that asks for one rollout and then ends."""

    def __init__(self) -> None:
        self.messages, self.reports = [(0, 0)], []  # type: ignore[var-annotated]

    def recv(self) -> tuple[int, int]:
        if not self.messages:
            raise EOFError
        return self.messages.pop()

    def send(self, report: Any) -> None:
        self.reports.append(report)


def test_a_stale_gradient_is_of_the_copy_and_moves_the_shared_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = make_args(a3c, learning_rate=1e-3, max_grad_norm=1e9)
    shared = a3c.Agent(6, args)
    shared.share()
    before = [param.detach().clone() for param in shared.parameters()]
    updates = torch.tensor(0)
    collect, gradients = a3c.Rollout.collect, a3c.Agent.gradients
    grads: list[Tensor] = []

    def collect_while_others_learn(*inputs: Any) -> None:
        collect(*inputs)
        updates.add_(3)
        for param in shared.parameters():
            param.data.add_(0.01)

    def watch(agent: a3c.Agent, *inputs: Any) -> Any:
        assert all(map(torch.equal, agent.parameters(), before))
        result = gradients(agent, *inputs)
        grads.extend(grad.clone() for grad in result[0])
        return result

    monkeypatch.setattr(a3c.Rollout, "collect", collect_while_others_learn)
    monkeypatch.setattr(a3c.Agent, "gradients", watch)
    main = OneRollout()
    a3c.work(0, shared, updates, main, args, 0)  # type: ignore[arg-type]
    for param, old, grad in zip(shared.parameters(), before, grads, strict=True):
        step = 1e-3 * grad / ((0.01 * grad.square()).sqrt() + 3e-3)  # RMSprop's first
        torch.testing.assert_close(param.detach(), old + 0.01 - step, rtol=1e-4, atol=1e-6)
    ((reward, over, losses),) = main.reports
    assert (losses["staleness"], int(updates)) == (3, 4)
    assert reward.shape == over.shape == (args.chunk_size, 1)


def workers_of(run: Run) -> list[int]:
    """The process ids of a run's workers, as soon as it has them all."""
    pid = run.process.pid
    for _ in range(600):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        commands = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
        found = [child for child, command in commands.items() if "spawn_main" in command]
        if len(found) == 2 and list(Path(run.files[0].parent).glob("run/episodes.csv")):
            return found
        time.sleep(0.1)
    raise AssertionError("the workers did not begin")


def ended(processes: list[int]) -> bool:
    for _ in range(300):
        if not any(Path(f"/proc/{process}").exists() for process in processes):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("how", ["Ctrl-C", "main killed", "worker killed"])
def test_no_worker_is_left_behind(how: str, tmp_path: Path) -> None:
    changes = {"num_workers": 2, "total_timesteps": 10**6, "eval_interval": 10**6}
    run = Run(a3c, flags(a3c, run_dir="run", save_interval=64, **changes), tmp_path)
    workers = workers_of(run)
    if how == "Ctrl-C":
        run.send(signal.SIGINT)
        code, out, err = run.wait()
        assert code == 130 and "resume with" in out and "Traceback" not in err
        steps = a3c.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["run"]["env_step"]
        more = {"resume": "run", **changes, "total_timesteps": steps + 256}
        assert Run(a3c, flags(a3c, **more), tmp_path).wait()[0] == 0
        last = rows(tmp_path / "run" / "losses.csv")[-1]
        assert int(last["env_step"]) >= steps + 256
    elif how == "main killed":
        run.send(signal.SIGKILL)
        assert "Traceback" not in run.wait()[2]
    else:
        os.kill(workers[0], signal.SIGKILL)
        code, _, err = run.wait()
        assert (code, err) == (
            1,
            "a3c_lstm_atari: a worker has ended; the last checkpoint is kept\n",
        )
    assert ended(workers)
