"""Write the acting network of a run alone to one file, which runs without FolioRL.

    pip install -r benchmark/requirements.txt
    python benchmark/export.py runs/RUN policy.onnx
    python benchmark/export.py runs/RUN policy.pt2     for torch.export.load, without ONNX

It takes a run folder, of which it exports best.pt, or a .pt file. What stands between the
environment and the network is inside: the normalisation of pixels, and the scaling of actions to
the environment's own bounds. By the script that made the run:

    continuous    obs [batch, O] -> action [batch, A], without noise, in the environment's units
    Atari         obs [batch, 4, 84, 84] uint8, as ALE's vector environment gives it -> logits
                  [batch, A]; with an LSTM also state [2, batch, 256] -> new_state, which begins a
                  game as zeros
    agents        an agent's obs [batch, O] -> its logits, or its action in the environment's units;
                  MADDPG has a network for each agent, and --agent chooses one
"""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import gymnasium as gym
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the scripts are
BATCH = torch.export.Dim("batch", min=1)


class Policy(NamedTuple):
    """A network to export, and its inputs: named examples, with the axis that counts the batch."""

    net: nn.Module
    inputs: dict[str, tuple[Tensor, int]]
    outputs: list[str]
    about: str  # what the outputs mean


class Scaled(nn.Module):
    """A network whose outputs in [-1, 1] become actions in the environment's own units."""

    def __init__(self, net: nn.Module, space: Any) -> None:
        super().__init__()
        self.net = net
        self.low, self.high = (
            nn.Buffer(torch.as_tensor(x).float()) for x in (space.low, space.high)
        )

    def forward(self, obs: Tensor) -> Tensor:
        share = (self.net(obs).clamp(-1, 1) + 1) / 2
        return self.low + share.reshape(-1, *self.low.shape) * (self.high - self.low)


class AtariPolicy(nn.Module):
    """Frames [B, 4, 84, 84] -> logits [B, A], of an agent without a memory."""

    def __init__(self, agent: Any) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, obs: Tensor) -> Tensor:
        agent: Any = self.agent
        return agent.player(1)(obs.movedim(1, -1))  # no state, so for any number of games


class RecurrentPolicy(nn.Module):
    """Frames [B, 4, 84, 84], state [2, B, 256] -> logits [B, A], the new state."""

    def __init__(self, agent: Any) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        agent: Any = self.agent
        features = agent.net.features(obs.movedim(1, -1)).unsqueeze(0)  # one step: [1, B, 512]
        output, (h, c) = agent.net.lstm(features, tuple(state.unsqueeze(1)))
        return agent.policy(agent.net.policy(output.squeeze(0))), torch.cat([h, c])


class OneOfMany(nn.Module):
    """One agent's network of MADDPG: its own observation [B, O] -> outputs [B, A]."""

    def __init__(self, agent: Any, env: Any, number: int) -> None:
        super().__init__()
        self.actor = copy.deepcopy(agent.actor)
        for module in self.actor.modules():  # keep its share of the weights of all agents
            for param in module.parameters(recurse=False):
                param.data = param.data.chunk(agent.num_agents)[number]
            if isinstance(module, nn.Conv2d):
                module.groups = 1
        self.missing = env.obs_size - gym.spaces.flatdim(env.obs_spaces[number])
        self.discrete = agent.discrete

    def forward(self, obs: Tensor) -> Tensor:
        output = self.actor(F.pad(obs, (0, self.missing))[None, :, None])[0]
        return output if self.discrete else torch.tanh(output)


def read(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The module of the script that made a run, the run's flags, and its checkpoint."""
    path = path if path.suffix == ".pt" else path / "best.pt"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        name, flags = checkpoint["script"], checkpoint["args"]
    except (FileNotFoundError, NotADirectoryError):
        fail(f"there is no {path}; give a run folder that holds one, such as runs/Pendulum-v1__...")
    except Exception as error:  # a damaged or malicious file may raise anything
        reason = str(error).split("\n")[0]
        fail(f"{path} is damaged or not a checkpoint, and nothing in it was run ({reason})")
    try:
        script = importlib.import_module(name)
        args = script.Args(**flags)
    except (ImportError, TypeError) as error:
        fail(f"{path} was written by {name}.py, which does not read it here: {error}")
    args.device = "cpu"
    return getattr(script, "maddpg", script), args, checkpoint


def continuous(script: Any, args: Any, weights: dict[str, Tensor]) -> Policy:
    """The policy of DDPG, TD3 or SAC."""
    env = script.make_env(args)
    agent = script.Agent(*script.dimensions(env), args)
    agent.load_state_dict(weights)
    space = env.env.action_space  # of the environment below RescaleAction, with its own bounds
    obs = torch.zeros(2, script.dimensions(env)[0])
    return Policy(Scaled(agent.actor, space), {"obs": (obs, 0)}, ["action"], f"actions in {space}")


def atari(script: Any, args: Any, weights: dict[str, Tensor]) -> Policy:
    """The policy of PPO, A2C or A3C."""
    games = script.AtariGames(args, 1)
    agent = script.Agent(games.num_actions, args)
    agent.load_state_dict(weights)
    agent.eval()
    names = [action.name for action in games.envs.ale.get_action_set()]
    about = "logits of " + " ".join(names[number] for number in games.actions)
    inputs = {"obs": (torch.zeros(2, 4, 84, 84, dtype=torch.uint8), 0)}
    if not isinstance(getattr(agent.net, "lstm", None), nn.LSTM):
        return Policy(AtariPolicy(agent), inputs, ["logits"], about)
    inputs["state"] = torch.zeros(2, 2, agent.net.lstm.hidden_size), 1
    return Policy(RecurrentPolicy(agent), inputs, ["logits", "new_state"], about)


def several(script: Any, args: Any, weights: dict[str, Tensor], which: str | None) -> Policy:
    """The policy that PPO's agents share, or that of one agent of MADDPG."""
    env = script.make_env(args)
    env.close()
    agent = script.Agent(env, args)
    agent.load_state_dict(weights)
    if shared := hasattr(agent, "net"):
        net, size = agent.net.policy, env.obs_size
    else:
        which = which or env.names[0]
        if which not in env.names:
            fail(f"--agent is {which}; {args.env_id} has {' '.join(env.names)}")
        number = env.names.index(which)
        net = OneOfMany(agent, env, number)
        size = gym.spaces.flatdim(env.obs_spaces[number])
    if shared and which:
        fail("--agent needs a run of MADDPG; the agents of this one share one network")
    whose = "all agents share it" if shared else f"the policy of {which}"
    about = f"{'logits of' if env.discrete else 'actions in'} {env.space}; {whose}"
    net = net if env.discrete else Scaled(net, env.space)
    outputs = ["logits" if env.discrete else "action"]
    return Policy(net, {"obs": (torch.zeros(2, size), 0)}, outputs, about)


def load(path: Path, which: str | None = None) -> Policy:
    """The acting network of a run folder or a .pt file; which names an agent of MADDPG."""
    script, args, checkpoint = read(path)
    if hasattr(script, "MultiAgentEnv"):
        return several(script, args, checkpoint["agent"], which)
    if which:
        fail(f"--agent needs a run of MADDPG, and this one is of {checkpoint['script']}.py")
    kind = atari if hasattr(script, "AtariGames") else continuous
    return kind(script, args, checkpoint["agent"])


def write(policy: Policy, file: Path) -> None:
    """Write the policy, as ONNX or for torch.export.load, as the file's name says."""
    policy.net.eval()
    examples = tuple(example for example, _ in policy.inputs.values())
    shapes = tuple({axis: BATCH} for _, axis in policy.inputs.values())
    with torch.no_grad():
        program = torch.export.export(policy.net, examples, dynamic_shapes=shapes)
    if file.suffix == ".pt2":
        return torch.export.save(program, file)
    try:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # else it misses torchvision
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program,
                f=file,
                input_names=[*policy.inputs],
                output_names=policy.outputs,
                dynamic_shapes=shapes,  # for the names of the axes
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        fail(f"{error}; pip install -r benchmark/requirements.txt")


def describe(policy: Policy) -> str:
    """A line for each input and output: its name, type and shape."""
    examples = [example for example, _ in policy.inputs.values()]
    with torch.no_grad():
        results = policy.net(*examples)
    results = results if isinstance(results, tuple) else (results,)
    rows = [("input", *row) for row in zip(policy.inputs, examples)]
    rows += [("output", *row) for row in zip(policy.outputs, results)]
    lines = [policy.about]
    for kind, name, tensor in rows:
        shape = list(map(str, tensor.shape))
        shape[1 if "state" in name else 0] = "batch"
        dtype = str(tensor.dtype).removeprefix("torch.")
        lines.append(f"{kind:6}  {name:9}  {dtype:7}  [{', '.join(shape)}]")
    return "\n".join(lines)


def fail(message: str) -> NoReturn:
    """End the program with one sentence; 2 stands for bad input."""
    print(f"{Path(sys.argv[0]).stem}: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Export the policy of the run, and print its inputs and outputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder, or a .pt file of one")
    parser.add_argument("file", type=Path, help="the file to write: .onnx, or .pt2 for PyTorch")
    parser.add_argument("--agent", help="which of MADDPG's agents; default: the first")
    args = parser.parse_args()
    if args.file.suffix not in (".onnx", ".pt2"):
        fail(f"{args.file} ends neither in .onnx nor in .pt2")
    if not args.file.parent.is_dir():
        fail(f"{args.file} is in no folder that exists")
    policy = load(args.run, args.agent)
    write(policy, args.file)
    print(f"{args.file}: {describe(policy)}")


if __name__ == "__main__":
    main()
