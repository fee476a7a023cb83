"""benchmark/export.py: an exported policy acts as the script's own does."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import kind, make_args, run_python
from test_benchmark import load
from test_maddpg_update import Two, make_agent
from torch import Tensor

export: Any = load("export")
OBSERVATIONS, GAMES = 20, 3


def make(script: ModuleType, args: Any) -> tuple[Any, Any]:
    """The environment and an agent, as the script makes them."""
    if kind(script) == "atari":
        games = script.AtariGames(args, 1)
        return games, script.Agent(games.num_actions, args)
    env = script.make_env(args)
    parts = script.dimensions(env) if kind(script) == "continuous" else (env,)
    return env, script.Agent(*parts, args)


def save(script: ModuleType, agent: Any, args: Any, run_dir: Path) -> Path:
    """A checkpoint as a run writes it, of an agent whose weights are far from the first ones."""
    with torch.no_grad():
        for param in agent.parameters():
            param.add_(0.1 * torch.randn_like(param))
    run_dir.mkdir()
    flags = dataclasses.asdict(args)
    checkpoint = {"script": script.__name__, "args": flags, "agent": agent.state_dict()}
    checkpoint["run"] = {"env_step": 0}
    torch.save(checkpoint, run_dir / "best.pt")
    return run_dir


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that exports a run, and gives the policy as onnxruntime reads it."""

    def call(run_dir: Path, *words: str) -> Any:
        (folder := tmp_path / "exported").mkdir(exist_ok=True)
        command = ["export.py", str(run_dir), str(folder / "policy.onnx"), *words]
        monkeypatch.setattr(sys, "argv", command)
        export.main()
        assert [path.name for path in folder.iterdir()] == ["policy.onnx"]
        return onnxruntime.InferenceSession(folder / "policy.onnx")

    return call


def assert_equal(session: Any, policy: Callable[[Tensor], Any], observations: list[Tensor]) -> None:
    """Compare over a sequence; a state that the file has is carried on."""
    seen, names = [], [part.name for part in session.get_inputs()]
    state = np.zeros((2, len(observations[0]), 256), np.float32)
    for obs in observations:
        with torch.no_grad():
            expected = np.asarray(policy(obs))
        given = {"obs": obs.numpy()} | ({"state": state} if "state" in names else {})
        found, *states = session.run(None, given)
        state = states[0] if states else state
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        seen.append(found)
    assert np.std(seen, axis=0).min() > 1e-6, "it does not depend on the observation"


def compare(script: ModuleType, run_dir: Path, session: Any, *, which: int = 0) -> None:
    """Compare the file with the policy that the script itself makes from the checkpoint."""
    checkpoint = script.load_checkpoint(run_dir / "best.pt")
    args = script.Args(**checkpoint["args"])
    env, agent = make(script, args)
    agent.load_state_dict(checkpoint["agent"])
    observations = list(torch.randn(OBSERVATIONS, GAMES, 1))
    policy: Callable[[Tensor], Any]
    if kind(script) == "atari":
        player = agent.player(GAMES)
        policy = lambda obs: player(obs.movedim(1, -1).contiguous())  # noqa: E731
        observations = list(torch.randint(256, (OBSERVATIONS, GAMES, 4, 84, 84)).byte())
    elif kind(script) == "continuous":
        policy = lambda obs: env.action(agent.actor(obs).numpy())  # noqa: E731
        observations = list(torch.randn(OBSERVATIONS, GAMES, script.dimensions(env)[0]))
    else:
        size = np.prod(env.obs_spaces[which].shape, dtype=int)
        size = env.obs_size if hasattr(agent, "net") else size
        observations = list(torch.randn(OBSERVATIONS, GAMES, size))
        policy = lambda obs: of_one_agent(env, agent, which, obs)  # noqa: E731
    assert_equal(session, policy, observations)


def of_one_agent(env: Any, agent: Any, which: int, obs: Tensor) -> Any:
    """What reaches the environment of one agent's action, or if discrete, its logits."""
    results = []
    for row in obs:
        everyone = torch.randn(len(env.names), env.obs_size)
        everyone[which] = 0.0  # a shorter observation is padded with zeros
        everyone[which, : len(row)] = row
        action = agent.eval_action(everyone)
        env.live = np.ones(len(env.names), bool)
        reached: dict[str, Any] = {}
        env.env.step = reached.update
        env.send(action.numpy())
        results.append(reached[env.names[which]])
        if env.discrete:
            own = agent.net.policy(row[None])[0] if hasattr(agent, "net") else None
            logits = agent.outputs(agent.actor, everyone[None])[0, which] if own is None else own
            assert logits.argmax() == results[-1]
            results[-1] = logits.numpy()
    return np.stack(results)


def test_an_exported_run_acts_as_the_script_s_own_policy(
    script: ModuleType, finished: Any, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    session = run(finished(script))
    out = capsys.readouterr().out.splitlines()
    compare(script, finished(script), session)
    parts = [*session.get_inputs(), *session.get_outputs()]
    printed = [re.split(r"\s{2,}", line) for line in out[1:]]
    assert len(printed) == len(parts)
    for part, (_, name, dtype, shape) in zip(parts, printed):
        assert (name, f"tensor({dtype.replace('32', '')})") == (part.name, part.type)
        assert shape == f"[{', '.join(map(str, part.shape))}]"
    assert ("actions in" if kind(script) == "continuous" else "logits of") in out[0]


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("ddpg_continuous", {"env_id": "probes:Recorder-v0", "layer_norm": True}),  # uneven bounds
    ("a2c_lstm_atari", {"model": "cnn", "batch_norm": True, "actions": ("NOOP", "LEFT", "RIGHT")}),
    ("a2c_lstm_atari", {"model": "linear", "temperature_init": 3.0}),
    ("ppo_smarts", {"action_type": "continuous"}),
    ("maddpg_smarts", {"action_type": "continuous"}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_flags_that_change_the_network_or_the_actions_are_kept(
    name: str, changes: dict[str, Any], tmp_path: Path, run: Any
) -> None:
    script = importlib.import_module(name)
    args = make_args(script, **changes)
    run_dir = save(script, make(script, args)[1], args, tmp_path / "run")
    compare(script, run_dir, run(run_dir))


@pytest.mark.parametrize("which", [0, 3])
def test_each_agent_of_maddpg_has_a_file_of_its_own(which: int, tmp_path: Path, run: Any) -> None:
    """In simple_tag, the last agent sees less than the three that chase it."""
    script = importlib.import_module("maddpg_smarts")
    args = make_args(script, env_id="mpe2/simple_tag_v3")
    env, agent = make(script, args)
    assert len(env.names) == 4 and env.obs_spaces[3] != env.obs_spaces[0]
    run_dir = save(script, agent, args, tmp_path / "run")
    session = run(run_dir, "--agent", env.names[which])
    assert session.get_inputs()[0].shape[1] == env.obs_spaces[which].shape[0]
    compare(script, run_dir, session, which=which)


def test_an_agent_of_maddpg_that_sees_an_image_keeps_its_own_convolutions() -> None:
    env = Two(pixels=3 * 32 * 32)
    env.obs_spaces = [export.gym.spaces.Box(-1, 1, (env.obs_size,))] * len(env.names)
    agent = make_agent(env)
    everyone = torch.randn(5, len(env.names), env.obs_size)
    for number in range(len(env.names)):
        found = export.OneOfMany(agent, env, number)(everyone[:, number])
        expected = torch.tanh(agent.outputs(agent.actor, everyone)[:, number])
        torch.testing.assert_close(found, expected)


def test_a_file_for_pytorch_runs_without_folio_rl(tmp_path: Path, finished: Any) -> None:
    script = importlib.import_module("sac_continuous")
    env, agent = make(script, make_args(script))
    agent.load_state_dict(script.load_checkpoint(finished(script) / "best.pt")["agent"])
    file = tmp_path / "policy.pt2"
    export.write(export.load(finished(script)), file)
    code = "import torch; policy = torch.export.load('policy.pt2').module()"
    out, _ = run_python(["-c", f"{code}; print(policy(torch.ones(4, 3)).tolist())"], tmp_path)
    expected = env.action(agent.actor(torch.ones(4, 3)).detach().numpy())
    np.testing.assert_allclose(json.loads(out), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "p.onnx"], "there is no nowhere/best.pt"),
        (["damaged.pt", "p.onnx"], "damaged.pt is damaged or not a checkpoint"),
        (["RUN", "p.onnx", "--agent", "agent_7"], "--agent needs a run of MADDPG"),
        (["RUN", "p.txt"], "p.txt ends neither in .onnx nor in .pt2"),
        (["RUN", "nowhere/p.onnx"], "nowhere/p.onnx is in no folder that exists"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], said: str, finished: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.pt").write_bytes(b"not a checkpoint")
    run_dir = str(finished(importlib.import_module("td3_continuous")))
    monkeypatch.setattr(sys, "argv", ["export.py", *(w.replace("RUN", run_dir) for w in words)])
    with pytest.raises(SystemExit) as ending:
        export.main()
    err = capsys.readouterr().err
    assert ending.value.code == 2 and said in err and err.count("\n") == 1
