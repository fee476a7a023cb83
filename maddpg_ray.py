"""MADDPG on a Ray cluster: maddpg_smarts.py with collectors and learners in their own processes.

Collectors play, each in its own environment, with the actors that they were sent. Learners make
the updates, each for its own agents. The main process holds the networks of all agents and the
replay buffer, and gives out the work. This is the only script that imports another: everything that
is not about processes is in maddpg_smarts.py, which must stand beside it.

    collector  receives actors; returns whole episodes, which are stored
    learner    receives its agents, all target actors and a batch; returns its agents, updated

Run:    python maddpg_ray.py --env-id mpe2/simple_spread_v3 --num-collectors 2 --num-learners 2
        RAY_ADDRESS=10.0.0.1:6379 python maddpg_ray.py    (on an existing cluster)
Expect: the returns of maddpg_smarts.py, in less time if simulators and updates take most of it
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn as nn
from pydantic import PositiveInt
from torch import Tensor

import maddpg_smarts as maddpg
from maddpg_smarts import Agent, Batch, Fixed, MultiAgentEnv, ReplayBuffer, evaluate

SCRIPT = Path(__file__).stem


@dataclasses.dataclass
class Args(maddpg.Args):
    num_envs: Fixed[Literal[1]] = 1  # a collector plays in one environment
    device: Literal["cpu"] = "cpu"  # of the learners
    exp_name: str = SCRIPT  # part of the run folder's name

    # Processes, on this machine or on the Ray cluster that RAY_ADDRESS names
    num_collectors: PositiveInt = 1  # processes that play
    num_learners: PositiveInt = 1  # processes that learn; at most one per agent


class Group(Agent):
    """The networks of n of the N agents, and the target actors of all N; for a learner.

    Its tensors are views of rows in an Agent of all N: a state loaded here is loaded there as well.
    """

    def __init__(self, env: MultiAgentEnv, args: Args, agent: Agent, members: range) -> None:
        super().__init__(env, args)
        self.members = members
        self.identity = nn.Buffer(self.rows(self.identity), persistent=False)
        for param, whole in zip(self.parameters(), agent.parameters()):
            param.data = self.rows(whole.data)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.groups = len(members)
        self.target_actor = agent.target_actor
        load_counters(self, agent.state_dict())

    def rows(self, stacked: Tensor) -> Tensor:
        """The members' rows of a tensor [N * k, ...]; k is 1 except in convolutions."""
        k = len(stacked) // self.num_agents
        return stacked[k * self.members.start : k * self.members.stop]

    def per_agent(self, part: Tensor) -> Tensor:
        return torch.stack([part[c % len(part), :, i] for c, i in enumerate(self.members)])

    @torch.no_grad()
    def update_target(self, target: nn.Module, online: nn.Module) -> None:
        for whole, param in zip(target.parameters(), online.parameters()):
            target_param = self.rows(whole) if len(whole) > len(param) else whole
            target_param.lerp_(param, self.tau)


def load_counters(agent: Agent, state: dict[str, Tensor]) -> None:
    """Load the optimizers' numbers of steps."""
    counters = {name: value for name, value in state.items() if value.ndim == 0}
    agent.load_state_dict(counters, strict=False)


class Collector:
    """Plays episodes, in a process that Ray starts."""

    def __init__(self, agent: Agent, args: Args, number: int) -> None:
        torch.manual_seed(maddpg.episode_seed(args.seed, number))
        self.agent, self.envs, self.seed, self.episodes = agent, maddpg.Envs(args), args.seed, 0
        self.number = number

    def work(self, actor: dict[str, Tensor], noise: float, uniform: bool) -> list[tuple]:
        """Play whole episodes, at least 100 steps: (parts for ReplayBuffer.add, ended) for each."""
        agent, steps, ended = self.agent, list[tuple](), True
        agent.actor.load_state_dict(actor)
        while len(steps) < 100 or not ended:
            if ended:
                seed = maddpg.episode_seed(self.seed, self.number, 0, self.episodes)
                step = self.envs.reset([seed], np.array([True]))
                self.episodes += 1
            obs, live = step.obs, step.live
            action = agent.random(1) if uniform else agent.act(torch.from_numpy(obs), noise)
            step = self.envs.step((action.argmax(2) if agent.discrete else action).numpy())
            action *= torch.from_numpy(live).unsqueeze(2)
            ended = not step.live.any()
            parts = obs, action, step.reward, step.terminated, live, step.last_obs
            steps.append((parts, ended))
        return steps


class Learner:
    """Updates a group of agents, in a process that Ray starts."""

    def __init__(self, group: Group, args: Args, number: int) -> None:
        torch.manual_seed(maddpg.episode_seed(args.seed, number))
        self.group, self.update = group, maddpg.compiled(group.update, args)

    def work(self, state: dict[str, Tensor], batch: Batch) -> tuple[dict, Tensor, dict]:
        """One update: the new state without target actors, Bellman errors [n, B], losses."""
        self.group.load_state_dict(state)
        td_error, losses = self.update(batch)
        new = self.group.state_dict().items()
        return {k: v for k, v in new if "target_actor" not in k}, td_error, losses


class Cluster:
    """Collectors and learners as Ray actors, and the work they are doing.

    No learner waits for another: each agent is updated by one learner, which needs only the target
    actors of the other agents, and these move slowly. If several learners updated the same agents,
    gradients would be computed on older networks than those that they change; with Adam's momentum,
    a delay of one update is enough to cause oscillation.
    """

    MAX_OWED = 100  # collectors wait while a learner is this many updates behind

    def __init__(
        self, ray: Any, env: MultiAgentEnv, agent: Agent, buffer: ReplayBuffer, run: maddpg.Run
    ) -> None:
        args: Any = run.args  # those of this script
        self.ray, self.agent, self.buffer, self.args = ray, agent, buffer, args
        n, m = agent.num_agents, args.num_learners
        members = [range(n * k // m, n * (k + 1) // m) for k in range(m)]
        self.groups = [Group(env, args, agent, some) for some in members]
        self.due = run.updates  # updates due so far, including those made
        self.made = [run.updates] * m  # updates made by each learner
        self.losses: list[dict[str, Tensor]] = [{}] * m  # of each learner's last update
        self.started = run.env_step  # number of the last worker; a resumed run has others
        count = {Collector: args.num_collectors, Learner: m}
        self.idle: dict[type, dict[int, Any]] = {
            kind: {number: self.start(kind, number) for number in range(count[kind])}
            for kind in count
        }
        self.failures: dict[type, int] = dict.fromkeys(self.idle, 0)  # in a row
        self.working: dict[Any, tuple] = {}  # by Ray's ObjectRef: kind, number, worker, indices

    def start(self, kind: type, number: int) -> Any:
        self.started += 1
        agent = self.groups[number] if kind is Learner else self.agent
        return self.ray.remote(kind).remote(agent, self.args, self.started)

    def assign(self, kind: type, number: int, *task: Any, indices: Tensor | None = None) -> None:
        worker = self.idle[kind].pop(number)
        self.working[worker.work.remote(*task)] = kind, number, worker, indices

    def work(self, noise: float, uniform: bool, beta: float) -> list[tuple]:
        """Give work to all idle workers, and wait up to a second; returns the collectors' steps."""
        if self.due - min(self.made) < self.MAX_OWED:
            for number in list(self.idle[Collector]):
                self.assign(Collector, number, self.agent.actor.state_dict(), noise, uniform)
        for number in [k for k in self.idle[Learner] if self.made[k] < self.due]:
            group, batch = self.groups[number], self.buffer.sample(self.args.batch_size, beta)
            if len(batch.obs) > 1:  # a batch for each agent
                batch = Batch(*map(group.rows, batch))
            self.assign(Learner, number, group.state_dict(), batch, indices=batch.indices)
        steps: list[tuple] = []
        for ref in self.ray.wait(list(self.working), timeout=1.0)[0]:
            kind, number, worker, indices = self.working.pop(ref)
            try:
                result = self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                self.failures[kind] += 1
                reason = str(error).strip().split("\n")[-1]
                if self.failures[kind] > 5:
                    maddpg.fail(f"a {kind.__name__} failed, the sixth in a row: {reason}", code=1)
                maddpg.say(f"{SCRIPT}: a {kind.__name__} is replaced ({reason})", sys.stderr)
                worker = self.start(kind, number)
            else:
                self.failures[kind] = 0
                if kind is Collector:
                    steps += result
                else:
                    self.take_over(number, indices, *result)
            self.idle[kind][number] = worker
        return steps

    def take_over(
        self, number: int, indices: Tensor, state: dict, td_error: Tensor, losses: dict
    ) -> None:
        """Copy a learner's update into the networks of this process."""
        group = self.groups[number]
        group.load_state_dict(state, strict=False)
        load_counters(self.agent, state)
        group.update_target(group.target_actor, group.actor)
        self.buffer.refresh(indices, td_error, first=group.members.start)
        self.losses[number] = losses
        self.made[number] += 1

    def mean_losses(self) -> dict[str, Tensor]:
        """The means over all agents, and updates_owed, the updates that are due and not made."""
        share = torch.tensor([len(group.members) for group in self.groups]) / self.agent.num_agents
        means = {
            name: share @ torch.stack([losses[name] for losses in self.losses])
            for name in self.losses[0]
        }
        return means | {"updates_owed": torch.tensor(self.due - min(self.made))}


def start_ray(args: Args) -> Any:
    """Ray, connected to the cluster at RAY_ADDRESS or started here."""
    try:
        import ray
    except ImportError:
        maddpg.fail(f"{SCRIPT} needs Ray: pip install -r requirements-smarts.txt")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, **quiet)
    else:
        cpus = args.num_collectors + args.num_learners
        ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
    return ray


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> Path:
    """Train, from the start or from a checkpoint; returns the run folder."""
    maddpg.start_torch(args)
    eval_env = maddpg.make_env(args, film=args.capture_video)
    agent = Agent(eval_env, args)
    if args.num_learners > agent.num_agents:
        fewer = f"{args.env_id} has {agent.num_agents} agents"
        maddpg.fail(f"--num-learners is {args.num_learners}, but {fewer}")
    make_buffer = maddpg.PrioritizedReplayBuffer if args.prioritized_replay else ReplayBuffer
    buffer = make_buffer(eval_env, args)
    ray = start_ray(args)  # before Run, since both handle signals
    run = maddpg.Run(args, checkpoint, agent=agent, buffer=buffer)
    cluster = Cluster(ray, eval_env, agent, buffer, run)

    while not run.done:
        # Give out work, and store the steps that have arrived
        noise, beta = maddpg.noise_scale(args, run.env_step), maddpg.per_beta(args, run.env_step)
        uniform = run.env_step < args.learning_starts
        for parts, ended in cluster.work(noise, uniform, beta):
            obs, _, reward, _, _, last_obs = parts
            run.check_finite(observation=np.stack([obs, last_obs]), reward=reward)
            buffer.add(*map(np.array, parts))  # copies, since arrays from Ray are read-only
            run.step(reward.sum(1), np.array([ended]))
            if run.env_step > args.learning_starts and run.env_step % args.update_interval == 0:
                cluster.due += 1

        if min(cluster.made) > run.updates:
            run.updates = min(cluster.made)
            run.log_losses(cluster.mean_losses())
        run.evaluate_if_due(lambda: evaluate(agent.eval_action, eval_env, args, run.env_step))
        run.save_if_due()

    ray.shutdown()
    eval_env.close()
    return run.close()


# Housekeeping: the command line. The rest of it is in maddpg_smarts.py.


def main() -> None:
    """The command line of maddpg_smarts.py, with the flags and the training of this script."""
    vars(maddpg).update(SCRIPT=SCRIPT, Args=Args, train=train)
    maddpg.main()


if __name__ == "__main__":
    # Imported by its name, since Ray's workers cannot compile what is defined in __main__
    importlib.import_module(SCRIPT).main()

# Dependencies, for "uv run" and "pip install --requirements-from-script" (PEP 723):
# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "ray==2.60.0", "torch==2.13.0", "gymnasium==1.4.0", "tyro==1.0.17", "pydantic==2.14.4",
#   'numpy==2.4.6; python_version >= "3.11"', 'numpy==2.2.6; python_version < "3.11"',
#   "filelock==4.3.1", "tqdm==4.70.1", "tensorboard==2.21.0", "smarts==2.0.1",
#   "eclipse-sumo==1.28.0", "libsumo==1.28.0", "rtree==1.4.1", "trimesh==5.2.0",
#   'shapely==2.2.0; python_version >= "3.11"', 'shapely==2.1.2; python_version < "3.11"',
#   'scipy==1.17.1; python_version >= "3.11"', 'scipy==1.15.3; python_version < "3.11"',
#   "pettingzoo==1.27.0",
# ]
# ///
