"""What every script does the same way: the rules of the house."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    Probe,
    Run,
    atari_only,
    continuous_only,
    curves,
    flags,
    kind,
    make_args,
    rows,
    run_python,
    trained,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives the folder of a short run, made once for each script."""
    folders: dict[str, Path] = {}

    def run_dir(script: ModuleType) -> Path:
        if script.__name__ not in folders:
            folder = tmp_path_factory.mktemp(script.__name__) / "run"
            folders[script.__name__] = script.train(make_args(script, run_dir=folder))
        return folders[script.__name__]

    return run_dir


# Reproducibility


def test_the_same_seed_gives_the_same_run(
    script: ModuleType, finished: Any, tmp_path: Path
) -> None:
    again, other = (
        script.train(make_args(script, seed=seed, run_dir=tmp_path / f"{seed}")) for seed in (1, 2)
    )
    assert curves(again) == curves(finished(script))
    assert all(a != b for a, b in zip(curves(other), curves(again)))


def test_evaluations_leave_the_training_as_it_is(
    script: ModuleType, finished: Any, tmp_path: Path
) -> None:
    args = make_args(script, eval_interval=110, eval_episodes=1, run_dir=tmp_path / "run")
    more = script.train(args)
    assert len(rows(more / "evaluations.csv")) > len(rows(finished(script) / "evaluations.csv"))
    assert rows(more / "episodes.csv") == rows(finished(script) / "episodes.csv")


@continuous_only
def test_evaluations_are_without_noise(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, compared = script.evaluate, []

    def spy(policy: Any, *rest: Any) -> Any:
        obs, state = torch.randn(1, 3), torch.get_rng_state()
        compared.append(torch.equal(policy(obs), policy(obs)))
        result = evaluate(policy, *rest)
        compared.append(torch.equal(torch.get_rng_state(), state))
        return result

    monkeypatch.setattr(script, "evaluate", spy)
    script.train(make_args(script, total_timesteps=300, run_dir=tmp_path / "run"))
    assert compared == [True, True]


# Parallel environments, actions, episode ends


@continuous_only
def test_three_environments_count_their_steps_and_log_all_their_episodes(
    script: ModuleType, tmp_path: Path
) -> None:
    args = make_args(script, num_envs=3, total_timesteps=1200, run_dir=tmp_path / "run")
    _, checkpoint = trained(script, script.train(args))
    episodes = rows(args.run_dir / "episodes.csv")
    assert [row["env_step"] for row in episodes] == ["600"] * 3 + ["1200"] * 3
    assert {row["episodic_length"] for row in episodes} == {"200"}
    assert len({row["episodic_return"] for row in episodes}) == 6
    assert checkpoint["run"]["env_step"] == 1200
    assert checkpoint["run"]["updates"] == 1200 - 99  # one a step, from the first step above 100
    evaluations = rows(args.run_dir / "evaluations.csv")
    assert [row["env_step"] for row in evaluations] == ["300", "600", "900", "1200"]


class Recorder(Probe):
    """Remembers the actions that reach it; every dimension has bounds of its own."""

    low, high = np.array([-1, 0, -50], np.float32), np.array([3, 0.5, 100], np.float32)
    action_space = gym.spaces.Box(low, high)
    length = 20
    taken: list[np.ndarray] = []

    def reward(self, action: np.ndarray) -> float:
        self.taken.append(action.copy())
        return 0.0


class Grid(Probe):
    action_space = gym.spaces.Box(-1, 1, (2, 2))


@continuous_only
def test_actions_that_are_no_vector_are_refused(
    script: ModuleType, register: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.make_env(register(Grid))
    assert "(2, 2)" in capsys.readouterr().err


@continuous_only
def test_actions_fill_the_bounds_of_every_dimension(
    script: ModuleType, register: Any, tmp_path: Path
) -> None:
    Recorder.taken = []
    args = make_args(script, env_id=register(Recorder), run_dir=tmp_path / "run")
    args.total_timesteps = args.learning_starts = args.eval_interval = 600
    args.eval_episodes = 1
    _, checkpoint = trained(script, script.train(args))
    taken = np.array(Recorder.taken[:600])  # the evaluation's come after
    share = (taken - Recorder.low) / (Recorder.high - Recorder.low)
    assert share.min() >= 0 and share.max() <= 1
    assert (share.min(axis=0) < 0.02).all() and (share.max(axis=0) > 0.98).all()
    assert np.allclose(share.mean(axis=0), 0.5, atol=0.05)
    assert np.allclose(2 * share - 1, checkpoint["buffer"]["action"][:600], atol=1e-5)


class Clock(Probe):
    """The observation is the environment's number, the episode's and the time.

    The environments' episodes have 3, 4 and 5 steps; every second episode is cut by a time limit.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    made = 0

    def __init__(self, **render_mode: Any) -> None:
        super().__init__()
        self.number, self.episode = Clock.made, 0
        self.length = 3 + self.number
        Clock.made += 1

    def reset(self, **seed: Any) -> Any:
        self.episode += 1
        self.end = "truncated" if self.episode % 2 else "terminated"
        return super().reset(**seed)

    def observe(self) -> Any:
        return [self.number, self.episode, self.t]


@continuous_only
def test_no_transition_crosses_the_end_of_an_episode(
    script: ModuleType, register: Any, tmp_path: Path
) -> None:
    Clock.made = 0
    args = make_args(script, env_id=register(Clock), num_envs=3, run_dir=tmp_path / "run")
    _, checkpoint = trained(script, script.train(args))
    buffer = {k: v[:900] for k, v in checkpoint["buffer"].items() if torch.is_tensor(v)}
    number, episode, time = buffer["obs"].T
    # Each next observation is the one a step later, also where an episode ends.
    assert torch.equal(buffer["next_obs"], buffer["obs"] + torch.tensor([0, 0, 1]))
    last = time + 1 == 3 + number
    assert torch.equal(buffer["terminated"], (last & (episode % 2 == 0)).float())
    for i in range(3):  # Every step of every episode is there, once and in order.
        mine = (number == i).nonzero().flatten()
        step = torch.arange(300)
        assert torch.equal(time[mine], (step % (3 + i)).float())
        assert torch.equal(episode[mine], (1 + step // (3 + i)).float())
    assert {row["episodic_length"] for row in rows(args.run_dir / "episodes.csv")} == {*"345"}


@continuous_only
def test_learning_rates_fall_linearly_to_zero(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args = make_args(script, anneal_learning_rate=True, run_dir=tmp_path / "run")
    rates, step = [], script.Adam.step

    def note(optimizer: Any, *grads: Any) -> None:
        rates.append(optimizer.learning_rate.item())
        step(optimizer, *grads)

    monkeypatch.setattr(script.Adam, "step", note)
    script.train(args)
    full = args.critic_learning_rate  # of all networks, in a small run
    assert rates[0] == pytest.approx((1 - 101 / 1000) * full)
    assert rates[len(rates) // 2] == pytest.approx(0.45 * full, rel=0.01)
    assert rates[-1] == 0.0


@continuous_only
def test_in_bfloat16_an_actor_near_its_bounds_still_learns(script: ModuleType) -> None:
    args = make_args(script, bfloat16=True)
    actor, obs = script.Agent(4, 2, args).actor, torch.randn(8, 4)
    act = actor if script.__name__ != "sac_continuous" else lambda obs: actor.sample(obs)[0]
    bias = list(actor.parameters())[-1]
    bias.data[:2] = torch.tensor([6.0, -6.0])  # the actions' means, of which tanh is ±0.99999

    def gradient(obs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(act(obs).sum(), [bias])

    (grad,) = script.compiled(gradient, args)(obs)
    assert (grad[:2] > 0).all()


# The run folder


def test_the_run_folder_holds_settings_and_curves(script: ModuleType, finished: Any) -> None:
    run_dir = finished(script)
    settings = dataclasses.asdict(make_args(script, run_dir=str(run_dir)))
    written = json.loads((run_dir / "args.json").read_text())
    assert written == json.loads(json.dumps(settings))
    headers = {name: (run_dir / f"{name}.csv").open().readline() for name in script.Logger.COLUMNS}
    more = {
        "smarts": ",agent_returns,completion_rate,collision_rate,off_road_rate,seconds_to_cross"
    }
    assert headers == {
        "episodes": "env_step,episodic_return,episodic_length,seconds\n",
        "evaluations": "env_step,seconds,mean_return,std_return,min_return,max_return,"
        f"mean_length,episodes{more.get(kind(script), '')}\n",
    }
    steps = [[row["env_step"] for row in curve] for curve in curves(run_dir)]
    assert (
        steps
        == {
            "continuous": [["300", "600", "900", "1000"], ["200", "400", "600", "800", "1000"]],
            # At the end of the rollout, 64 steps, in which they fall due; two games at a time.
            "atari": [["192", "320", "512"], ["200", "200", "400", "400"]],
            "smarts": [
                ["300", "600", "900", "1000"],
                [str(50 * (i // 2 + 1)) for i in range(40)],  # two at a time, 25 steps each
            ],
        }[kind(script)]
    )
    assert {path.name for path in run_dir.glob("*.pt")} == {"best.pt", "checkpoint.pt"}


def test_tensorboard_shows_what_the_csv_files_say(script: ModuleType, finished: Any) -> None:
    run_dir = finished(script)
    events = EventAccumulator(str(run_dir))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert "charts/SPS" in tags and any(tag.startswith("losses/") for tag in tags)
    for tag, name, column in (
        ("charts/episodic_return", "episodes", "episodic_return"),
        ("charts/episodic_length", "episodes", "episodic_length"),
        ("eval/episodic_return", "evaluations", "mean_return"),
        ("eval/episodic_length", "evaluations", "mean_length"),
    ):
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        written = [(int(r["env_step"]), float(r[column])) for r in rows(run_dir / f"{name}.csv")]
        assert np.allclose(shown, written)


def test_three_evaluations_at_the_wanted_return_end_the_run(
    script: ModuleType, tmp_path: Path
) -> None:
    early, late = {"atari": ("320", "512")}.get(kind(script), ("300", "500"))
    for stop, end in (-1e9, early), (1e9, late):
        changes = {"stop_at_return": stop, "eval_interval": 100, "total_timesteps": 500}
        run_dir = script.train(make_args(script, run_dir=tmp_path / end, **changes))
        assert rows(run_dir / "evaluations.csv")[-1]["env_step"] == end


def test_weights_and_biases_gets_the_run_offline(script: ModuleType, tmp_path: Path) -> None:
    words = [str(script.__file__), *flags(script, track=True, total_timesteps=250, run_dir="run")]
    run_python(words, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    (log,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"eval_episodes" in content and b"charts/episodic_return" in content


# Evaluation and video


def printed_return(out: str) -> float:
    match = re.fullmatch(r"return (\S+) ± \S+ over \d+ episodes, .*\n", out)
    assert match, out
    return float(match[1])


def test_evaluate_plays_the_best_policy_of_a_run(
    script: ModuleType, finished: Any, tmp_path: Path
) -> None:
    run_dir = finished(script)
    returns = [float(row["mean_return"]) for row in rows(run_dir / "evaluations.csv")]
    assert len(set(returns)) > 1
    for source, expected in (
        (run_dir, max(returns)),
        (run_dir / "best.pt", max(returns)),
        (run_dir / "checkpoint.pt", returns[-1]),
    ):
        code, out, err = Run(script, ["--evaluate", str(source)], tmp_path).wait()
        assert (code, err) == (0, "")
        assert printed_return(out) == pytest.approx(expected, abs=0.06)


def test_a_policy_is_evaluated_on_other_episodes_with_another_seed(
    script: ModuleType, finished: Any, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(finished(script), tmp_path / "run")
    path = run_dir / "best.pt"
    checkpoint = torch.load(path)
    checkpoint["args"]["device"] = "cuda"  # as if it came from a machine with a GPU
    torch.save(checkpoint, path)
    outputs = []
    for more in [], [], ["--seed", "7"]:
        code, out, err = Run(script, ["--evaluate", str(path), *more], tmp_path).wait()
        assert (code, err) == (0, "")
        outputs.append(out)
    assert outputs[0] == outputs[1]
    if kind(script) != "atari":  # short games of Pong often end alike
        assert outputs[0] != outputs[2]


def test_evaluations_share_no_episodes(script: ModuleType, tmp_path: Path) -> None:
    if kind(script) == "atari":
        pytest.skip("its games all begin at once, with generators in place of seeds")
    args = make_args(script, eval_episodes=10)
    env = script.make_env(*([args] if kind(script) == "smarts" else [args.env_id]))
    reset, seeds = env.reset, []

    def note(*arguments: int, **named: int) -> Any:
        seeds.extend([*arguments, *named.values()])
        return reset(*arguments, **named)

    env.reset = note
    action = torch.zeros(3, dtype=torch.int64) if kind(script) == "smarts" else torch.zeros(1, 1)
    for seed, env_step in (1, 100), (2, 100), (1, 101):  # neighbours
        args.seed = seed
        script.evaluate(lambda obs: action, env, args, env_step, tmp_path)
    assert len(set(seeds)) == len(seeds) == 30


def test_evaluate_plays_an_untrained_and_a_random_policy(
    script: ModuleType, tmp_path: Path
) -> None:
    values = []
    for policy in "untrained", "random", "random":
        code, out, err = Run(script, flags(script, evaluate=policy), tmp_path).wait()
        assert (code, err) == (0, "")
        values.append(printed_return(out))
    assert values[1] == values[2]
    if kind(script) != "atari":  # in Pong an untrained policy is as good as random
        assert values[0] != values[1]
    assert not list(tmp_path.glob("runs"))


@atari_only
def test_a_random_policy_draws_its_actions_whatever_the_flags(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, taken = script.AtariGames.step, set[int]()

    def note(games: Any, action: torch.Tensor) -> Any:
        taken.update(action.tolist())
        return step(games, action)

    monkeypatch.setattr(script.AtariGames, "step", note)
    script.play(make_args(script, evaluate="random", greedy_eval=True), None, None)
    assert taken == set(range(6))


def assert_film(path: Path, length: int) -> None:
    """An MP4 of a whole episode in which there is something to see, and it moves."""
    frames = imageio.imread(path)
    assert len(frames) == pytest.approx(length, abs=2)
    assert min(frame.std() for frame in frames) > 5
    assert (frames[20].astype(int) - frames[0]).std() > 1


def test_every_evaluation_is_filmed(script: ModuleType, tmp_path: Path) -> None:
    length = {"continuous": 200, "atari": 100, "smarts": 25}[kind(script)]
    changes = {"capture_video": True, "total_timesteps": 200, "eval_interval": 100}
    run_dir = script.train(make_args(script, run_dir=tmp_path / "run", **changes))
    films = sorted((run_dir / "videos").glob("*.mp4"))
    steps = {"atari": ["128", "256"]}.get(kind(script), ["100", "200"])
    assert [film.name.split("-")[1] for film in films] == steps
    for film in films:
        assert_film(film, length)
    shutil.rmtree(run_dir / "videos")
    code, _, err = Run(script, ["--evaluate", str(run_dir), "--capture-video"], tmp_path).wait()
    assert code == 0, err
    (film,) = (run_dir / "videos").glob("*.mp4")
    assert_film(film, length)


# Bad input


def assert_refused(script: ModuleType, words: list[str], folder: Path, *named: str) -> None:
    """Exit code 2, and one line on stderr with all that it should name."""
    code, out, err = Run(script, words, folder).wait()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"{script.__name__}: ")
    assert all(part in err for part in named), err


BAD: dict[str, list[tuple[dict[str, Any], list[str]]]] = {
    "continuous": [
        ({"env_id": "Pendullum-v1"}, ["Pendullum", "Did you mean", "`Pendulum`"]),
        ({"env_id": "Pendulum-v99"}, ["v99", "v1"]),
        ({"env_id": "HoperBulletEnv-v0"}, ["HoperBulletEnv", "HopperBulletEnv"]),
        ({"env_id": "dm_control/cartpole-fly-v0"}, ["cartpole-fly"]),
        ({"env_id": "CartPole-v1"}, ["CartPole-v1", "Discrete(2)", "Pendulum-v1"]),
        ({"batch_size": 0}, ["--batch-size", "0", "between 1"]),
        ({"actor_hidden_sizes": (16, 0)}, ["--actor-hidden-sizes", "0", "between 1"]),
        ({"buffer_size": 2, "num_envs": 3}, ["--buffer-size", "--num-envs"]),
    ],
    "sac_continuous": [
        ({"init_alpha": 0.0}, ["--init-alpha is 0", "above 0"]),
        ({"init_alpha": 50.0}, ["--init-alpha is 50", "--max-alpha"]),
        ({"use_sde": True, "actor_hidden_sizes": ()}, ["--use-sde", "--actor-hidden-sizes"]),
    ],
    "atari": [
        ({"env_id": "ALE/Pongg-v5"}, ["Pongg", "Did you mean", "`Pong`"]),
        ({"env_id": "Pendulum-v1"}, ["Pendulum-v1", "ALE/Pong-v5"]),
        ({"max_episode_frames": 0}, ["--max-episode-frames", "0", "between 1"]),
        ({"sticky_actions": 1.5}, ["--sticky-actions", "1.5", "between 0 and 1"]),
    ],
    "ppo_atari": [
        ({"num_minibatches": 3}, ["--num-minibatches is 3", "must divide 64"]),
        ({"num_minibatches": 64}, ["--num-minibatches is 64", "2 or more each"]),
    ],
    "a2c_lstm_atari": [
        ({"temperature_init": 0.0, "temperature_min": 0.0}, ["--temperature-min is 0", "above 0"]),
        ({"temperature_init": 0.5}, ["--temperature-min is 1", "--temperature-init"]),
        ({"model": "linear", "batch_norm": True}, ["--batch-norm", "--model linear"]),
    ],
    "smarts": [
        ({"env_id": "mpe2/simple_spred_v3"}, ["simple_spred", "did you mean", "simple_spread_v3"]),
        ({"env_id": "CartPole-v1"}, ["CartPole-v1", "package/name", "mpe2/simple_spread_v3"]),
        ({"env_id": "smarts/crossing-v0"}, ["smarts/crossing-v0", "smarts/intersection-4lane-v0"]),
        ({"env_id": "mpe2/simple_speaker_listener_v4"}, ["Discrete(3) and Discrete(5)"]),
        ({"evaluate": "keep-lane"}, ["keep-lane", "mpe2/simple_spread_v3", "random"]),
        ({"horizon": 0}, ["--horizon", "0", "between 1"]),
    ],
    "maddpg_smarts": [({"gumbel_temperature": 0.0}, ["--gumbel-temperature is 0", "above"])],
}
OTHER_NETWORK_OR_WORLD = {  # flags of a resumed run, and what is said of them
    "continuous": ("--layer-norm", "layer_norm False"),
    "atari": ("--no-norm-obs", "norm_obs True"),
    "smarts": ("--horizon 7", "horizon 400"),
    "sac_continuous": ("--alpha 0.5", "alpha 0.2"),
    "a2c_lstm_atari": ("--activation silu", "activation relu"),
}
BAD_ANYWHERE: list[tuple[dict[str, Any], list[str]]] = [
    ({"gamma": 2.0}, ["--gamma", "2.0", "between 0 and 1"]),
    ({"gamma": float("nan")}, ["--gamma", "nan"]),
    ({"num_envs": 0}, ["--num-envs", "0", "between 1"]),
    ({"seed": 2**31}, ["--seed is 2147483648", "between 0 and 2147483647"]),
    ({"resume": "nowhere"}, ["nowhere", "run folder"]),
    ({"resume": "one", "run_dir": "other"}, ["--resume, --evaluate and --run-dir"]),
    ({"evaluate": "nowhere"}, ["nowhere", "run folder"]),
    ({"evaluate": "nowhere.pt"}, ["nowhere.pt"]),
]


def test_bad_input_ends_in_one_sentence(script: ModuleType, tmp_path: Path) -> None:
    for changes, named in BAD[kind(script)] + BAD.get(script.__name__, []) + BAD_ANYWHERE:
        assert_refused(script, flags(script, **changes), tmp_path, *named)


def test_a_gpu_that_is_not_there_ends_in_one_sentence(script: ModuleType, tmp_path: Path) -> None:
    assert_refused(script, flags(script, device="cuda"), tmp_path, "--device", "GPU", "cpu")


def test_tracking_without_a_key_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "WANDB_API_KEY", "WANDB_MODE":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    script = importlib.import_module("ddpg_continuous")  # they share the logger
    words = flags(script, track=True, run_dir="run")
    assert_refused(script, words, tmp_path, "--track", "API key", "WANDB_MODE=offline")


def test_unusable_run_folders_end_in_one_sentence(
    script: ModuleType, finished: Any, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(finished(script), tmp_path / "run")
    path = run_dir / "checkpoint.pt"
    content = path.read_bytes()
    go_on = ["--resume", "run", "--total-timesteps", "2000"]
    assert_refused(
        script, flags(script, run_dir="run"), tmp_path, "run", "--resume run", "--run-dir"
    )
    assert_refused(script, ["--resume", "run"], tmp_path, "finished", "--total-timesteps")
    other_env = [*go_on, "--env-id", "ALE/Breakout-v5"]
    assert_refused(script, other_env, tmp_path, "env_id", make_args(script).env_id)
    for name in {kind(script), script.__name__} & OTHER_NETWORK_OR_WORLD.keys():
        flag, reason = OTHER_NETWORK_OR_WORLD[name]
        assert_refused(script, [*go_on, *flag.split()], tmp_path, reason, "cannot be changed")

    checkpoint = torch.load(path)
    renamed = {f"old.{name}": weight for name, weight in checkpoint["agent"].items()}
    for change, reason in (
        ({"script": "dqn_atari"}, "dqn_atari"),
        ({"args": checkpoint["args"] | {"old_flag": 1}}, "old_flag"),
        ({"agent": renamed}, "networks"),
    ):
        torch.save(checkpoint | change, path)
        assert_refused(script, go_on, tmp_path, "checkpoint.pt", reason)
    for damaged in (content[: len(content) // 2], content[:-1], b"", b"hello", bytes(1000)):
        path.write_bytes(damaged)
        assert_refused(script, go_on, tmp_path, "checkpoint.pt", "damaged")


# One file is all there is


def test_the_file_runs_alone_in_an_empty_folder(script: ModuleType, tmp_path: Path) -> None:
    path = shutil.copy(str(script.__file__), tmp_path)
    out, _ = run_python([str(path), *flags(script, total_timesteps=300)], tmp_path)
    env_id = make_args(script).env_id.replace("/", "-")
    (run_dir,) = tmp_path.glob(f"runs/{env_id}__*")
    assert out.endswith(f"done: {run_dir.relative_to(tmp_path)}\n")
    assert (run_dir / "checkpoint.pt").exists()


def test_dm_control_shows_no_warnings_of_other_packages(tmp_path: Path) -> None:
    code = """
import warnings
import ddpg_continuous
before = list(warnings.filters)
ddpg_continuous.make_env("dm_control/cartpole-balance-v0")
assert warnings.filters == before, warnings.filters
"""
    _, err = run_python(["-c", code], tmp_path, PYTHONPATH=str(ROOT), MUJOCO_GL="off")
    assert err == ""


def test_the_terminal_shows_every_evaluation(script: ModuleType, tmp_path: Path) -> None:
    code, out, err = Run(script, flags(script, total_timesteps=600, run_dir="run"), tmp_path).wait()
    assert (code, err) == (0, "")
    shown = re.findall(r"step (\d+), \d+ s: evaluation -\d+\.\d ± \d+\.\d", out)
    steps = {"atari": ["192", "320", "512", "640"]}
    assert shown == steps.get(kind(script), ["300", "600"])
