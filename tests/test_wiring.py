"""The training loops do what the flags say: every schedule, reset and counter, with spies.

A run of 60 steps in two environments, whose episodes have 3 and 4 steps.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import continuous_only, make_args
from probes import Clock, Recorder
from torch import Tensor, nn

pytestmark = continuous_only

CHANGES: dict[str, Any] = {
    "env_id": "probes:Clock-v0",
    "num_envs": 2,
    "total_timesteps": 60,
    "learning_starts": 20,
    "update_every": 5,
    "updates_per_step": 3,
    "anneal_lr": True,
    "actor_learning_rate": 1e-3,  # each another, so that none can stand for another
    "critic_learning_rate": 2e-3,
    "alpha_learning_rate": 3e-3,
    "tau": 0.25,
    "batch_size": 8,
    "policy_delay": 2,
    "noise_std": 1.0,
    "noise_std_min": 0.2,
    "noise_decay_steps": 40,
    "eval_interval": 10_000,
    "eval_episodes": 1,
}
STEPS = range(0, 60, 2)  # the counter before each step of both environments
ROUNDS = 26, 30, 36, 40, 46, 50, 56, 60  # the counter at each round of updates, of 5 * 3 each


def parameters(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


class Spy:
    """What a run called, each with the step counter at that time."""

    def __init__(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.calls: dict[str, list[tuple[int, Any]]] = {}
        self.env_step = 0
        known = {name for name in CHANGES if hasattr(script.Args, name)}
        changes = {name: value for name, value in CHANGES.items() if name in known}
        self.args = make_args(script, run_dir=tmp_path / "run", **changes)

        def watch(owner: Any, name: str, note: Any) -> None:
            original = getattr(owner, name)

            def spy(this: Any, *given: Any, **named: Any) -> Any:
                before = self.env_step
                told = note(this, *given, **named)
                returned = original(this, *given, **named)
                told = told(returned) if callable(told) else told
                self.calls.setdefault(name, []).append((before, told))
                return returned

            monkeypatch.setattr(owner, name, spy)

        def count(run: Any, reward: Any, ended: Any, **steps: int) -> Any:
            def done(_: Any) -> None:
                self.env_step = run.env_step

            return done

        def update(agent: Any, batch: Any, update_actor: bool = True) -> Any:
            before, optimizers = copy.deepcopy(agent), self.optimizers(agent)
            rates = {name: optimizer.learning_rate.item() for name, optimizer in optimizers.items()}
            return lambda _: (before, copy.deepcopy(agent), update_actor, rates, len(batch.obs))

        watch(script.Run, "step", count)
        watch(script.Agent, "update", update)
        watch(script.ReplayBuffer, "add", lambda buffer, *parts: parts)
        watch(Clock, "reset", lambda env, seed=None, **_: (env.number, seed))
        if hasattr(script, "Noise"):
            watch(script.Noise, "act", lambda noise, actor, obs, std: lambda a: (obs, std, a))
            watch(script.Noise, "reset", lambda noise, actor, ended: ended.tolist())
            watch(script.Noise, "adapt", lambda noise, actor, obs, std: (obs, std))
        else:
            watch(script.Actor, "sample", lambda actor, obs: lambda pair: (obs, None, pair[0]))
        Clock.made = 0
        script.train(self.args)
        if "sample" in self.calls:  # those that act, and not those in updates
            self.calls["act"] = [call for call in self.calls["sample"] if len(call[1][0]) == 2]

    @staticmethod
    def optimizers(agent: Any) -> dict[str, Any]:
        names = "actor", "critic", "alpha"
        found = {name: getattr(agent, f"{name}_optimizer", None) for name in names}
        return {name: optimizer for name, optimizer in found.items() if optimizer}

    def steps(self, name: str) -> list[int]:
        return [env_step for env_step, _ in self.calls[name]]


@pytest.fixture
def spy(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Spy:
    return Spy(script, monkeypatch, tmp_path)


def test_a_training_loop_does_what_its_flags_say(script: ModuleType, spy: Spy) -> None:
    args, updates = spy.args, spy.calls["update"]

    # Uniform actions until learning starts, then the policy's, and these are stored
    assert spy.steps("add") == list(STEPS)
    assert spy.steps("act") == [step for step in STEPS if step >= args.learning_starts]
    stored = {env_step: parts for env_step, parts in spy.calls["add"]}
    for env_step, (obs, _, action) in spy.calls["act"]:
        assert torch.equal(torch.as_tensor(stored[env_step][1]), action)
        assert torch.equal(torch.as_tensor(stored[env_step][0]), obs)
    first = torch.stack([parts[1] for step, parts in stored.items() if step < args.learning_starts])
    assert first.std() > 0.4 and first.abs().max() <= 1 and len(first.unique()) == first.numel()

    # Rounds of updates: every update_every steps as many, times updates_per_step
    assert spy.steps("update") == [env_step for env_step in ROUNDS for _ in range(15)]
    checkpoint = script.load_checkpoint(args.run_dir / "checkpoint.pt")
    assert checkpoint["run"]["updates"] == len(updates) == 120
    assert {size for _, (*_, size) in updates} == {args.batch_size}

    # Learning rates fall to 0
    for env_step, (*_, rates, _) in updates:
        left = 1 - env_step / args.total_timesteps
        assert rates == pytest.approx(
            {name: left * getattr(args, f"{name}_learning_rate") for name in rates}
        )

    # The actor and the targets learn in every update, or in every policy_delay-th of all updates
    delay = getattr(args, "policy_delay", 1)
    for number, (env_step, (before, after, update_actor, *_)) in enumerate(updates, start=1):
        assert update_actor == (number % delay == 0)
        if env_step == args.total_timesteps:  # the learning rate is 0
            continue
        critic = "critics" if hasattr(after, "critics") else "critic"
        old, new = (parameters(getattr(agent, critic)) for agent in (before, after))
        assert not torch.equal(old, new)
        assert torch.equal(parameters(before.actor), parameters(after.actor)) != update_actor
        for name in ["actor", critic] if hasattr(after, "target_actor") else [critic]:
            old, new = (parameters(getattr(agent, f"target_{name}")) for agent in (before, after))
            online = parameters(getattr(after, name))
            expected = old.lerp(online, args.tau) if update_actor else old
            torch.testing.assert_close(new, expected)

    # Every episode has a seed of its own
    resets = [told for _, told in spy.calls["reset"] if isinstance(told, tuple)]
    for i in range(2):
        seeds = [seed for number, seed in resets if number == i]
        own = [script.episode_seed(args.seed, i, n) for n in range(len(seeds))]
        assert seeds == own and len(seeds) == 1 + 29 // (3 + i)


def test_the_noise_follows_its_schedule_and_the_episodes(script: ModuleType, spy: Spy) -> None:
    if not hasattr(script, "Noise"):
        pytest.skip("its policy is stochastic, and needs no noise")

    def expected_std(env_step: int) -> Any:
        return pytest.approx(1.0 - 0.8 * min(env_step / 40, 1))

    assert all(std == expected_std(env_step) for env_step, (_, std, _) in spy.calls["act"])
    resets = {
        env_step: told for env_step, told in spy.calls["reset"] if not isinstance(told, tuple)
    }
    ends = {step: [step // 2 % (3 + i) == 0 for i in range(2)] for step in STEPS}
    assert resets == {step: ended for step, ended in ends.items() if any(ended)}
    assert spy.steps("adapt") == list(ROUNDS)
    for env_step, (obs, std) in spy.calls["adapt"]:
        assert len(obs) == spy.args.batch_size and std == expected_std(env_step - 2)


def test_actions_fill_the_bounds_of_every_dimension(script: ModuleType, tmp_path: Path) -> None:
    Recorder.taken = []
    args = make_args(script, env_id="probes:Recorder-v0", run_dir=tmp_path / "run")
    args.total_timesteps = args.learning_starts = args.eval_interval = 600
    args.eval_episodes = 1
    script.train(args)
    taken = np.array(Recorder.taken[:600])  # the evaluation's come after
    share = (taken - Recorder.low) / (Recorder.high - Recorder.low)
    assert share.min() >= 0 and share.max() <= 1
    assert (share.min(axis=0) < 0.02).all() and (share.max(axis=0) > 0.98).all()
    assert np.allclose(share.mean(axis=0), 0.5, atol=0.05)
    buffer = script.load_checkpoint(args.run_dir / "checkpoint.pt")["buffer"]
    assert np.allclose(2 * share - 1, buffer["action"][:600], atol=1e-5)


def test_evaluations_are_of_the_policy_without_noise(
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
    changes = {"total_timesteps": 150, "eval_interval": 150, "eval_episodes": 1}
    script.train(make_args(script, run_dir=tmp_path / "run", **changes))
    assert compared == [True, True]


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
