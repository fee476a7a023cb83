"""PPO for several agents: the dead are left out, and every life has its own end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import curves, make_args, rows
from test_several_agents import Levers, Toy

import ppo_smarts as ppo


def make_agent(discrete: bool = True, pixels: int = 0, **changes: Any) -> ppo.Agent:
    env: Any = ModuleType("env")
    env.obs_size, env.action_size, env.pixels, env.discrete = 7 + pixels, 4, pixels, discrete
    return ppo.Agent(env, make_args(ppo, **changes))


def random_batch(size: int, discrete: bool = True) -> ppo.Batch:
    action = torch.randint(4, (size,)) if discrete else torch.randn(size, 4)
    log_prob = -1.4 + 0.3 * torch.randn(size) - (0 if discrete else 3)
    value, advantage, returns = torch.randn(3, size)
    live = (torch.arange(size) % 3 != 1).float()
    return ppo.Batch(torch.randn(size, 7), action, log_prob, live, value, advantage, returns)


def update(agent: ppo.Agent, batch: ppo.Batch, gradients: Any = None) -> dict[str, torch.Tensor]:
    grads, losses = (gradients or agent.gradients)(batch)
    agent.step(grads)
    return losses


@pytest.mark.parametrize("discrete", [True, False])
def test_what_stands_in_the_rows_of_the_dead_changes_nothing(discrete: bool) -> None:
    agents = [make_agent(discrete) for _ in range(3)]
    for other in agents[1:]:
        other.load_state_dict(agents[0].state_dict())
    batch = random_batch(30, discrete)
    alive = batch.live > 0
    garbage = random_batch(30, discrete)
    noise = ppo.Batch(
        *(
            torch.where(alive.view(-1, *[1] * (a.dim() - 1)), a, 50 * b)
            for a, b in zip(batch, garbage)
        )
    )
    if discrete:
        noise = noise._replace(action=torch.where(alive, batch.action, garbage.action))
    noise = noise._replace(live=batch.live)
    alone = ppo.Batch(*(part[alive] for part in batch))
    logs = [update(agent, data) for agent, data in zip(agents, (batch, noise, alone))]
    for other, log in zip(agents[1:], logs[1:]):
        for name in log:
            torch.testing.assert_close(log[name], logs[0][name])
        for mine, theirs in zip(agents[0].net.parameters(), other.net.parameters()):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip_value_loss", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_the_loss_equals_its_formula(discrete: bool, clip_value_loss: bool) -> None:
    agent = make_agent(discrete, clip_value_loss=clip_value_loss, norm_advantage=False)
    batch = random_batch(32, discrete)
    loss, log = agent.loss(batch)
    out, value = agent.net(batch.obs)
    if discrete:
        policy: Any = torch.distributions.Categorical(logits=out)
    else:
        normal = torch.distributions.Normal(out, agent.net.log_std.exp().expand_as(out))
        policy = torch.distributions.Independent(normal, 1)
    new, entropies = policy.log_prob(batch.action), policy.entropy()
    living = [i for i in range(32) if batch.live[i]]
    policy_loss = value_loss = entropy = torch.tensor(0.0)
    for i in living:
        ratio, advantage = (new[i] - batch.log_prob[i]).exp(), batch.advantage[i]
        clipped = min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2))
        policy_loss = policy_loss - min(ratio * advantage, clipped * advantage) / len(living)
        near = value[i]
        if clip_value_loss:
            near = min(max(value[i], batch.value[i] - 0.2), batch.value[i] + 0.2)
        worst = max((value[i] - batch.returns[i]) ** 2, (near - batch.returns[i]) ** 2)
        value_loss = value_loss + 0.5 * worst / len(living)
        entropy = entropy + entropies[i] / len(living)
    torch.testing.assert_close(log["policy_loss"], policy_loss)
    torch.testing.assert_close(log["value_loss"], value_loss)
    torch.testing.assert_close(log["entropy"], entropy)
    torch.testing.assert_close(loss, policy_loss - 0.01 * entropy + 0.5 * value_loss)


def test_an_update_is_one_step_of_adam_on_the_shortened_gradient() -> None:
    agent, batch = make_agent(max_grad_norm=0.01, learning_rate=1e-2), random_batch(32)
    alive = batch.live > 0
    mean, std = batch.advantage[alive].mean(), batch.advantage[alive].std(correction=0)
    theirs = make_agent(norm_advantage=False)  # it is given what the other has to make itself
    theirs.load_state_dict(agent.state_dict())
    params = list(theirs.net.parameters())
    optimizer = torch.optim.Adam(params, lr=1e-2, eps=1e-5)
    theirs.loss(batch._replace(advantage=(batch.advantage - mean) / std))[0].backward()
    assert torch.nn.utils.clip_grad_norm_(params, 0.01) > 0.1
    optimizer.step()
    update(agent, batch)
    for mine, other in zip(agent.net.parameters(), params):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("discrete", [True, False])
def test_actions_are_the_likeliest_in_evaluations_unless_asked_for_drawn_ones(
    discrete: bool,
) -> None:
    obs = torch.randn(1, 7).expand(200, -1)
    for greedy in True, False:
        agent = make_agent(discrete, greedy_eval=greedy)
        out, _ = agent.net(obs)
        actions = agent.eval_action(obs)
        assert (len(actions.unique(dim=0)) == 1) == greedy
        if greedy:
            assert torch.equal(actions, out.argmax(1) if discrete else out)


def use_toy(cls: type, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> ppo.Args:
    module = ModuleType("toys.toy_v0")
    module.parallel_env = cls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toys", ModuleType("toys"))
    monkeypatch.setitem(sys.modules, "toys.toy_v0", module)
    return make_args(ppo, env_id="toys/toy_v0", **changes)


class Spy:
    """What train passed to Agent.act, batch, gradients and step in a run of the toy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run_dir: Path, **changes: Any) -> None:
        self.args = use_toy(Toy, monkeypatch, run_dir=run_dir, **changes)
        self.rollouts: list[ppo.Transition] = []
        self.batches: list[ppo.Batch] = []
        self.minibatches: list[ppo.Batch] = []
        self.rates: list[float] = []
        self.steps: list[int] = []
        self.grads: list[float] = []
        batch, gradients, step = ppo.Agent.batch, ppo.Agent.gradients, ppo.Agent.step

        def spy_batch(agent: ppo.Agent, rollout: list[ppo.Transition]) -> ppo.Batch:
            self.rollouts.append(ppo.Transition(*map(torch.stack, zip(*rollout))))
            # The value is what is seen: the agent's number, 10, 20 or 30, and the time.
            agent.net.value.forward = lambda obs: obs[:, :2].sum(1, keepdim=True)  # type: ignore
            self.batches.append(batch(agent, rollout))
            del agent.net.value.forward
            return self.batches[-1]

        def spy_gradients(agent: ppo.Agent, part: ppo.Batch) -> Any:
            self.minibatches.append(part)
            return gradients(agent, part)

        def spy_step(agent: ppo.Agent, grads: list[torch.Tensor]) -> None:
            self.rates.append(agent.optimizer.param_groups[0]["lr"])
            step(agent, grads)
            self.grads.append(
                float(
                    torch.nn.utils.get_total_norm(
                        [p.grad for p in agent.parameters() if p.grad is not None]
                    )
                )
            )

        monkeypatch.setattr(ppo.Agent, "batch", spy_batch)
        monkeypatch.setattr(ppo.Agent, "gradients", spy_gradients)
        monkeypatch.setattr(ppo.Agent, "step", spy_step)
        ppo.train(self.args)
        self.checkpoint = ppo.load_checkpoint(run_dir / "checkpoint.pt")


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    return lambda **changes: Spy(monkeypatch, tmp_path / "run", **changes)


def test_a_training_loop_does_what_its_flags_say(spy: Any) -> None:
    changes = {"num_envs": 2, "num_steps": 12, "num_minibatches": 4, "update_epochs": 3}
    run = spy(total_timesteps=96, learning_rate=1e-3, max_grad_norm=0.01, **changes)
    counters = run.checkpoint["run"]
    assert len(run.rollouts) == 4 and counters["env_step"] == 96
    assert counters["updates"] == len(run.rates) == len(run.minibatches) == 4 * 3 * 4
    assert counters["episodes"] == [12, 12]  # of 4 steps each
    # The return of an episode is that of all agents: 2 steps of 1, 3 of 2 and 4 of 3.
    episodes = rows(run.args.run_dir / "episodes.csv")
    assert {(r["episodic_return"], r["episodic_length"]) for r in episodes} == {("20.0", "4")}
    # The rate of a rollout is that of its first step, and falls to 0.
    assert run.rates == pytest.approx(
        [1e-3 * left for left in (1, 0.75, 0.5, 0.25) for _ in range(12)]
    )
    assert max(run.grads) == pytest.approx(0.01, rel=1e-3)
    # An epoch is the whole batch in 4 parts, in another order than the one before.
    for number, batch in enumerate(run.batches):
        parts = run.minibatches[12 * number : 12 * (number + 1)]
        assert {len(part.live) for part in parts} == {12 * 2 * 3 // 4}
        epochs = [torch.cat([part.obs for part in parts[i : i + 4]]) for i in (0, 4, 8)]
        key = torch.tensor([1.0, 100.0, 10_000.0])
        for one, other in zip(epochs, [*epochs[1:], batch.obs]):
            assert not torch.equal(one, other)
            assert torch.equal((one @ key).sort().values, (other @ key).sort().values)


def test_the_learning_rate_stays_where_it_is_without_anneal_lr(spy: Any) -> None:
    run = spy(total_timesteps=60, anneal_lr=False, learning_rate=1e-3)
    assert len(run.rates) == 3 * 4 and set(run.rates) == {1e-3}


def test_a_rollout_has_every_agents_own_ends(spy: Any) -> None:
    run = spy(num_envs=2, num_steps=6, total_timesteps=12)
    (rollout,) = run.rollouts
    # a lives for 2 steps of the 4 in an episode, b for 3, c for all of them.
    live = [[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert rollout.live[:, :3].tolist() == rollout.live[:, 3:].tolist() == live
    ends = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert rollout.terminated[:, :3].tolist() == ends
    cut_off = [[0, 0, 0]] * 3 + [[0, 0, 1]] + [[0, 0, 0]] * 2
    assert rollout.truncated[:, :3].tolist() == cut_off
    assert torch.equal(rollout.reward[:, 3:], torch.tensor([1.0, 2, 3]) * rollout.live[:, 3:])
    # What an action led to; of c when it is cut off, what it saw last.
    assert rollout.obs[:, 2, 1].tolist() == [0, 1, 2, 3, 0, 1]
    assert rollout.next_obs[:, 2, 1].tolist() == [1, 2, 3, 4, 1, 2]
    assert not rollout.obs[3, :2].any()


class Uneven(Toy):
    """Episodes of 4 steps in the first environment, and of 3 in the second."""

    made = 0

    def __init__(self) -> None:
        self.number = Uneven.made
        Uneven.made += 1

    def step(self, actions: dict[str, Any]) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        if self.number == 1 and self.t == 3:
            self.agents, truncated = [], dict.fromkeys(obs, True)
        return obs, reward, terminated, truncated, info


def test_only_environments_whose_episode_is_over_begin_a_new_one_with_a_seed_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times, seeds, reset = [], [], Uneven.reset

    def act(agent: ppo.Agent, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        times.append(obs[[2, 5], 1].tolist())  # of c in both environments
        return torch.zeros(len(obs), dtype=torch.int64), torch.zeros(len(obs))

    def begin(env: Uneven, seed: int | None = None) -> Any:
        seeds.append((env.number, seed))
        return reset(env, seed)

    monkeypatch.setattr(ppo.Agent, "act", act)
    monkeypatch.setattr(Uneven, "reset", begin)
    monkeypatch.setattr(Uneven, "made", 0)
    changes = {"num_envs": 2, "num_steps": 6, "total_timesteps": 24, "eval_episodes": 1}
    ppo.train(use_toy(Uneven, monkeypatch, run_dir=tmp_path / "run", seed=5, **changes))
    assert times == [[t % 4, t % 3] for t in range(12)]
    # A new episode begins before the first step after an end.
    order = [(0, 0), (1, 0), (1, 1), (0, 1), (1, 2), (0, 2), (1, 3)]
    assert seeds[:-1] == [(env, ppo.episode_seed(5, env, number)) for env, number in order]


def test_advantages_equal_those_of_each_episode_taken_alone(spy: Any) -> None:
    run = spy(num_envs=1, num_steps=12, total_timesteps=12, reward_scale=0.5)
    args, batch = run.args, run.batches[0]
    advantage = batch.advantage.view(12, 3)
    for agent, (lasts, cut_off) in enumerate([(2, False), (3, False), (4, True)]):
        for begin in 0, 4, 8:
            number = 10.0 * (agent + 1)
            values = [number + (t if agent > 0 else 0) for t in range(lasts + 1)]
            later = 0.0
            for t in reversed(range(lasts)):
                bootstrap = 0.0 if t == lasts - 1 and not cut_off else values[t + 1]
                delta = 0.5 * (agent + 1) + args.gamma * bootstrap - values[t]
                later = delta + args.gamma * args.gae_lambda * later
                assert advantage[begin + t, agent].item() == pytest.approx(later, abs=1e-4)
    torch.testing.assert_close(batch.returns, batch.advantage + batch.value)


@pytest.mark.parametrize("cls", [Toy, Levers])
def test_before_the_first_update_after_a_rollout_every_ratio_is_1(
    cls: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    losses, gradients = [], ppo.Agent.gradients

    def spy(agent: ppo.Agent, batch: ppo.Batch) -> Any:
        policy, _ = agent.net(batch.obs)
        ratio = agent.net.log_prob(policy, batch.action)[0] - batch.log_prob
        losses.append((ratio * batch.live).abs().max().item())
        return gradients(agent, batch)

    monkeypatch.setattr(ppo.Agent, "gradients", spy)
    ppo.train(use_toy(cls, monkeypatch, total_timesteps=60, run_dir=tmp_path / "run"))
    assert max(losses[::4]) < 1e-5 and min(losses[1::4]) > 1e-5


def test_discrete_actions_are_sampled_with_their_probabilities() -> None:
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    actions = make_agent().net.sample(probs.log().expand(20_000, -1))
    torch.testing.assert_close(actions.bincount() / 20_000, probs, rtol=0, atol=0.015)


def test_continuous_actions_are_sampled_with_the_learnt_standard_deviation() -> None:
    agent = make_agent(discrete=False)
    std = torch.tensor([0.1, 0.5, 1.0, 2.0])
    agent.net.log_std.data = std.log()
    actions = agent.net.sample(torch.ones(20_000, 4))
    torch.testing.assert_close(actions.std(0), std, rtol=0.03, atol=0)
    torch.testing.assert_close(actions.mean(0), torch.ones(4), rtol=0, atol=0.06)


def test_the_image_reaches_the_policy_and_the_value() -> None:
    agent = make_agent(pixels=3072)
    obs = torch.rand(2, 7 + 3072)
    obs[1, :7] = obs[0, :7]
    policy, value = agent.net(obs)
    assert not torch.equal(policy[0], policy[1]) and value[0] != value[1]
    policy.sum().backward()
    assert all(
        p.grad is not None and p.grad.any() for p in agent.net.policy.convolutions.parameters()
    )


def test_a_compiled_update_equals_the_plain_one_and_moves_the_weights() -> None:
    agents = [make_agent() for _ in range(2)]
    agents[1].load_state_dict(agents[0].state_dict())
    before = [p.clone() for p in agents[0].net.policy.parameters()]
    fast = ppo.compiled(agents[1].gradients, make_args(ppo, compile=True))
    for _ in range(3):
        batch = random_batch(16)
        update(agents[0], batch)
        update(agents[1], batch, fast)
    parameters = (agent.net.policy.parameters() for agent in agents)
    for old, plain, compiled in zip(before, *parameters):
        torch.testing.assert_close(plain, compiled, rtol=0, atol=1e-5)
        assert not torch.equal(old, compiled)


class Echo(Toy):
    """Four steps in which a coin is shown to each agent, who earns 1 for naming its side.

    Agent a is out after one step.
    """

    actions = gym.spaces.Discrete(2)

    def observation_space(self, name: str) -> gym.spaces.Box:
        return gym.spaces.Box(-1, 1, (1,), np.float32)

    def look(self, name: str) -> np.ndarray:
        self.coin[name] = int(self.random.integers(2))
        return np.array([2 * self.coin[name] - 1], np.float32)

    def reset(self, seed: int | None = None) -> Any:
        self.random = np.random.default_rng(seed)
        self.coin: dict[str, int] = {}
        return super().reset(seed)

    def step(self, actions: dict[str, Any]) -> Any:
        reward = {name: float(actions[name] == self.coin[name]) for name in self.agents}
        self.t += 1
        obs = {name: self.look(name) for name in self.agents}
        over = {name: name == "a" or self.t == 4 for name in self.agents}
        self.agents = [name for name in self.agents if not over[name]]
        return obs, reward, over, dict.fromkeys(over, False), {}


def test_it_learns_what_a_coin_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changes = {"total_timesteps": 2000, "num_steps": 40, "update_epochs": 4, "learning_rate": 1e-2}
    args = use_toy(Echo, monkeypatch, reward_scale=1.0, run_dir=tmp_path / "run", **changes)
    run_dir = ppo.train(args)
    last = rows(run_dir / "evaluations.csv")[-1]
    assert float(last["mean_return"]) == 9.0  # 1 + 4 + 4
    assert last["agent_returns"] == "1.00 4.00 4.00" and "completion_rate" not in last


def test_a_phase_in_which_one_agent_acted_once_has_numbers_in_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {"num_envs": 1, "num_steps": 1, "num_minibatches": 1, "total_timesteps": 8}
    args = use_toy(Toy, monkeypatch, run_dir=tmp_path / "run", **changes)
    assert ppo.train(args) == tmp_path / "run"  # in its fourth step c is alone


def test_means_of_an_evaluation_leave_out_what_an_episode_does_not_have() -> None:
    args = make_args(ppo, eval_episodes=3)
    env: Any = ppo.make_env(args)
    nobody = {"completion_rate": 0.0, "seconds_to_cross": np.nan}
    metrics = iter([nobody, {"completion_rate": 0.5, "seconds_to_cross": 12.0}, nobody])
    env.metrics = lambda: next(metrics)
    result = ppo.evaluate(lambda obs: ppo.random_action(env), env, args, 0)
    assert result["completion_rate"] == pytest.approx(0.5 / 3)
    assert result["seconds_to_cross"] == 12.0
    env.metrics = lambda: nobody
    without = ppo.evaluate(lambda obs: ppo.random_action(env), env, args, 0)
    assert without["seconds_to_cross"] == "" and list(without) == list(result)
    assert without["mean_return"] == result["mean_return"], "an evaluation depends on the step only"


def test_an_evaluation_of_an_episode_without_an_end_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Endless(Toy):
        def step(self, actions: dict[str, Any]) -> Any:
            obs = {name: self.look(name) for name in self.agents}
            off = dict.fromkeys(obs, False)
            return obs, dict.fromkeys(obs, 1.0), off, off, {}

    monkeypatch.setattr(ppo, "MAX_EPISODE", 50)
    args = use_toy(Endless, monkeypatch, eval_episodes=1)
    env = ppo.make_env(args)
    result = ppo.evaluate(lambda obs: ppo.random_action(env), env, args, 0)
    assert result["mean_length"] == 50 and result["mean_return"] == 150
    assert "without an end was cut off after 50 steps" in capsys.readouterr().out


def test_sigterm_in_an_evaluation_and_in_a_rollout_saves_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killer(Toy):
        steps, kill_at = 0, 0

        def step(self, actions: dict[str, Any]) -> Any:
            Killer.steps += 1
            if Killer.steps == Killer.kill_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(actions)

    changes = {"num_envs": 1, "num_steps": 10, "total_timesteps": 100, "eval_interval": 30}
    # An evaluation of two episodes of 4 steps follows 30 steps of training.
    for kill_at, saved in (25, 25), (30 + 6, 30):
        Killer.steps, Killer.kill_at = 0, kill_at
        run_dir = tmp_path / f"{kill_at}"
        with pytest.raises(SystemExit) as ending:
            ppo.train(use_toy(Killer, monkeypatch, run_dir=run_dir, **changes))
        assert ending.value.code == 128 + signal.SIGTERM and Killer.steps == kill_at
        checkpoint = ppo.load_checkpoint(run_dir / "checkpoint.pt")
        assert checkpoint["run"]["env_step"] == saved
        assert not (run_dir / "evaluations.csv").exists()


def test_a_run_resumed_where_rollout_and_episode_end_equals_one_in_one_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {"num_envs": 1, "num_steps": 8, "anneal_lr": False, "eval_interval": 16}
    whole = ppo.train(
        use_toy(Echo, monkeypatch, run_dir=tmp_path / "a", total_timesteps=48, **changes)
    )
    half = ppo.train(
        use_toy(Echo, monkeypatch, run_dir=tmp_path / "b", total_timesteps=24, **changes)
    )
    checkpoint = ppo.load_checkpoint(half / "checkpoint.pt")
    ppo.train(use_toy(Echo, monkeypatch, resume=half, total_timesteps=48, **changes), checkpoint)
    evaluations, episodes = curves(half)
    # The first half evaluated at its end as well.
    assert [row for row in evaluations if row["env_step"] != "24"] == curves(whole)[0]
    assert episodes == curves(whole)[1]
    one, other = (ppo.load_checkpoint(path / "checkpoint.pt") for path in (whole, half))
    for name, value in one["agent"].items():
        assert torch.equal(value, other["agent"][name])
