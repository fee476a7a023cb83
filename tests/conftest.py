"""What the tests share: small settings, small runs, and processes to run scripts in."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import gc
import importlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import gymnasium as gym
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
CONTINUOUS, ATARI, SMARTS = (
    sorted(path.stem for path in ROOT.glob(f"*_{kind}.py"))
    for kind in ("continuous", "atari", "smarts")
)
SCRIPTS = CONTINUOUS + ATARI + SMARTS
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "tests"))
os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"  # for the processes that the tests start
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"  # networks this small gain nothing from more
os.environ["MUJOCO_GL"] = "off"  # else dm_control warns of a missing display
torch.set_num_threads(1)

# A run of two seconds, with episodes of 200 steps in Pendulum, of 100 in Pong, of 25 in MPE.
COMMON: dict[str, Any] = {"progress": False, "compile": False, "device": "cpu"}
SMALL: dict[str, dict[str, Any]] = {
    "continuous": COMMON
    | {
        "env_id": "Pendulum-v1",
        "total_timesteps": 1000,
        "actor_hidden_sizes": (16,),
        "critic_hidden_sizes": (16,),
        "batch_size": 16,
        "buffer_size": 2000,
        "learning_starts": 100,
        "eval_interval": 300,
        "eval_episodes": 2,
        "save_interval": 300,
    },
    "atari": COMMON
    | {
        "env_id": "ALE/Pong-v5",
        "max_episode_frames": 400,
        "sticky_actions": 0.25,
        "total_timesteps": 512,
        "eval_interval": 150,
        "eval_episodes": 2,
        "save_interval": 128,
    },
    "smarts": COMMON
    | {
        "env_id": "mpe2/simple_spread_v3",
        "num_envs": 2,
        "total_timesteps": 1000,
        "eval_interval": 300,
        "eval_episodes": 2,
        "save_interval": 300,
    },
    "ppo_atari": {"num_envs": 2, "num_steps": 32, "num_minibatches": 2, "update_epochs": 2},
    "a2c_lstm_atari": {"num_envs": 2, "chunk_size": 32},
    "a3c_lstm_atari": {"num_workers": 1, "chunk_size": 64},  # with more, no run is like another
    "maddpg_smarts": {
        "actor_hidden_sizes": (16,),
        "critic_hidden_sizes": (16,),
        "batch_size": 16,
        "buffer_size": 2000,
        "learning_starts": 100,
    },
    # A rollout is 20 steps, so that most are saved in the middle of episodes.
    "ppo_smarts": {
        "hidden_sizes": (16,),
        "num_steps": 10,
        "num_minibatches": 2,
        "update_epochs": 2,
    },
}


def small(script: ModuleType) -> dict[str, Any]:
    """The settings of a small run."""
    return SMALL[kind(script)] | SMALL.get(script.__name__, {})


def kind(script: ModuleType) -> str:
    """The family a script belongs to: continuous, atari or smarts."""
    return script.__name__.split("_")[-1]


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> ModuleType:
    """Each script in turn, for what all of them must do."""
    return importlib.import_module(request.param)


# For the tests of what only one family does.
continuous_only = pytest.mark.parametrize("script", CONTINUOUS, indirect=True)
smarts_only = pytest.mark.parametrize("script", SMARTS, indirect=True)
atari_only = pytest.mark.parametrize("script", ATARI, indirect=True)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Seed, and put back what a run in this process changes."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    while Run.started:  # those that a test which failed has left behind
        Run.started.pop().process.kill()


def make_args(script: ModuleType, **changes: Any) -> Any:
    """The script's Args for a small run."""
    return script.Args(**small(script) | changes)


def failed(script: ModuleType, args: Any, checkpoint: Any = None) -> Any:
    """The exit code of a training in this process that ends itself; frees its lock."""
    code: Any = 0
    try:
        script.train(args, checkpoint)
    except SystemExit as ending:
        code = ending.code
    except KeyboardInterrupt:
        code = "interrupted"
    for number in SIGNALS:  # its handlers keep it alive
        signal.signal(number, signal.SIG_DFL)
    gc.collect()
    return code


def flags(script: ModuleType, **changes: Any) -> list[str]:
    """The same settings as a command line."""
    words = []
    for name, value in (small(script) | changes).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def main_in_child(path: str, words: list[str], folder: Path, file_limit: int | None) -> None:
    """What `python SCRIPT FLAGS` does, in a process that has imported PyTorch already."""
    with contextlib.suppress(OSError, AttributeError):  # on Linux: it ends if the tests do
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.chdir(folder)
    sys.path.append(str(folder))  # a reader's own environment stands beside the script
    for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = [path, *words]
    importlib.import_module(Path(path).stem).main()


def run_python(words: list[str], folder: Path, **environ: str) -> tuple[str, str]:
    """Start Python afresh, as a user does; returns stdout and stderr."""
    environ = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS")} | environ
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


class Run:
    """A script that runs in a process of its own; importing it costs nothing after the first."""

    started: list[Run] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SCRIPTS)

    def __init__(
        self, script: ModuleType, words: list[str], folder: Path, file_limit: int | None = None
    ) -> None:
        self.files = [folder / f"{name}.txt" for name in ("stdout", "stderr")]
        for file in self.files:
            file.write_text("")
        arguments = (str(script.__file__), words, folder, file_limit)
        self.process: BaseProcess = self.context.Process(target=main_in_child, args=arguments)
        self.process.start()
        self.started.append(self)

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.process.pid, number)

    def wait(self) -> tuple[int | None, str, str]:
        """Exit code, stdout and stderr."""
        self.process.join(timeout=600)
        out, err = (file.read_text() for file in self.files)
        return self.process.exitcode, out, err


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that make fills, once for all processes of pytest; nobody may write to it later."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / name
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            make(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModuleType], Path]:
    """A function that gives the folder of a small run, made once for each script.

    What the run printed stands beside it, in stdout.txt and stderr.txt.
    """

    def run_dir(script: ModuleType) -> Path:
        def make(folder: Path) -> None:
            code, _, err = Run(script, flags(script, run_dir="run"), folder).wait()
            assert code == 0, err

        return make_once(tmp_path_factory, f"finished-{script.__name__}", make) / "run"

    return run_dir


def rows(path: Path, without: str = "seconds") -> list[dict[str, str]]:
    """The rows of a CSV file, but for the column of times."""
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != without} for row in csv.DictReader(file)]


def curves(run_dir: Path) -> list[list[dict[str, str]]]:
    """All that a repeated or resumed run must repeat."""
    return [rows(run_dir / "evaluations.csv"), rows(run_dir / "episodes.csv")]


def weights(script: ModuleType, run_dir: Path) -> dict[str, Tensor]:
    """What the agent in a run folder's checkpoint has learnt, and what it remembers."""
    return script.load_checkpoint(run_dir / "checkpoint.pt")["agent"]


def trained(script: ModuleType, run_dir: Path) -> tuple[Any, dict[str, Any]]:
    """The agent in a run folder's checkpoint, and the checkpoint."""
    checkpoint = script.load_checkpoint(run_dir / "checkpoint.pt")
    args = script.Args(**checkpoint["args"])
    agent = script.Agent(*script.dimensions(script.make_env(args)), args)
    agent.load_state_dict(checkpoint["agent"])
    return agent, checkpoint


@pytest.fixture
def register() -> Iterator[Any]:
    """A function that gives a probe an environment id, until the test is over."""
    ids: list[str] = []

    def add(probe: Any) -> str:
        ids.append(f"{probe.__name__}-v0")
        gym.register(ids[-1], entry_point=probe)
        return ids[-1]

    yield add
    for env_id in ids:
        del gym.registry[env_id]


def random_batch(script: ModuleType, size: int, obs_dim: int, action_dim: int) -> Any:
    """Transitions of random numbers, of which about a third are terminal."""
    obs, next_obs = torch.randn(2, size, obs_dim)
    action: Tensor = 2 * torch.rand(size, action_dim) - 1
    terminated = (torch.rand(size) < 1 / 3).float()
    return script.Batch(obs, action, torch.randn(size), terminated, next_obs)
