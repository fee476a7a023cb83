"""PPO for several agents: the dead are left out, and every life has its own end."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import make_args, rows
from test_several_agents import Toy

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
    return ppo.Batch(torch.randn(size, 7), action, log_prob, value, advantage, returns, live)


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
    logs = [agent.update(data) for agent, data in zip(agents, (batch, noise, alone))]
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
    agent.update(batch)
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


def test_a_learning_phase_shuffles_anew_for_each_pass_and_its_rate_falls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen, rates, update = [], [], ppo.Agent.update

    def note(agent: Any, batch: ppo.Batch) -> Any:
        seen.append(batch.returns.clone())
        rates.append(agent.optimizer.learning_rate.item())
        return update(agent, batch)

    monkeypatch.setattr(ppo.Agent, "update", note)
    changes = {"num_envs": 1, "num_steps": 40, "num_minibatches": 2, "update_epochs": 3}
    ppo.train(make_args(ppo, total_timesteps=160, run_dir=tmp_path / "run", **changes))
    assert len(seen) == 4 * 3 * 2
    passes = [torch.cat(seen[i : i + 2]) for i in range(0, 6, 2)]
    for one, other in zip(passes, [*passes[1:], passes[0]]):
        assert not torch.equal(one, other)
        torch.testing.assert_close(one.sort().values, other.sort().values)
    assert rates[::6] == pytest.approx([3e-4, 2.25e-4, 1.5e-4, 0.75e-4])


def use_toy(cls: type, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> ppo.Args:
    module = ModuleType("toys.toy_v0")
    module.parallel_env = cls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toys", ModuleType("toys"))
    monkeypatch.setitem(sys.modules, "toys.toy_v0", module)
    return make_args(ppo, env_id="toys/toy_v0", **changes)


def look(obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The value is the agent's number, 10, 20 or 30, and the time where it sees it."""
    return torch.zeros(len(obs), dtype=torch.int64), torch.zeros(len(obs)), obs[:, :2].sum(1)


def test_a_rollout_notes_every_agents_own_life(monkeypatch: pytest.MonkeyPatch) -> None:
    args = use_toy(Toy, monkeypatch, num_envs=2, num_steps=6, reward_scale=0.5)
    envs = ppo.Envs(args)
    rollout = ppo.Rollout(envs.envs[0], args)
    rewards, over = rollout.collect(envs, look, args)
    # a lives for 2 steps of the 4 in an episode, b for 3, c for all of them.
    live = [[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert rollout.live[:, :3].tolist() == rollout.live[:, 3:].tolist() == live
    ends = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert rollout.terminated[:, :3].tolist() == ends
    ends[3][2] = 1  # c is cut off there
    assert rollout.ended[:, :3].tolist() == ends
    assert over[:, 0].tolist() == [False, False, False, True, False, False]
    assert rewards[:, 0].tolist() == [6, 6, 5, 3, 6, 6]
    assert rollout.reward[0, :3].tolist() == [0.5, 1, 1.5]
    # What comes next is worth what is seen next; of c when it is cut off, what it saw last.
    assert rollout.value[:, 2].tolist() == [30, 31, 32, 33, 30, 31]
    assert rollout.next_value[:, 2].tolist() == [31, 32, 33, 34, 31, 32]
    assert rollout.next_value[0, :2].tolist() == [10, 21]


def test_advantages_equal_those_of_each_life_taken_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    args = use_toy(Toy, monkeypatch, num_envs=1, num_steps=12, num_minibatches=2)
    envs = ppo.Envs(args)
    rollout = ppo.Rollout(envs.envs[0], args)
    rollout.collect(envs, look, args)
    batch = rollout.batch(args)
    advantage = batch.advantage.view(12, 3)
    for agent, (lasts, cut_off) in enumerate([(2, False), (3, False), (4, True)]):
        for begin in 0, 4, 8:
            number = 10.0 * (agent + 1)
            values = [number + (t if agent > 0 else 0) for t in range(lasts + 1)]
            later = 0.0
            for t in reversed(range(lasts)):
                bootstrap = 0.0 if t == lasts - 1 and not cut_off else values[t + 1]
                delta = args.reward_scale * (agent + 1) + args.gamma * bootstrap - values[t]
                later = delta + args.gamma * args.gae_lambda * later
                assert advantage[begin + t, agent].item() == pytest.approx(later, abs=1e-4)
    torch.testing.assert_close(batch.returns, batch.advantage + batch.value)


def test_before_the_first_update_after_a_rollout_every_ratio_is_1() -> None:
    for action_type in "lane", "continuous":
        args = make_args(ppo, action_type=action_type, num_steps=30)
        envs = ppo.Envs(args)
        agent, rollout = ppo.Agent(envs.envs[0], args), ppo.Rollout(envs.envs[0], args)
        rollout.collect(envs, agent.act, args)
        batch = rollout.batch(args)
        policy, _ = agent.net(batch.obs)
        log_prob, _ = agent.net.log_prob(policy, batch.action)
        torch.testing.assert_close(log_prob, batch.log_prob, rtol=0, atol=1e-5)


def test_the_image_reaches_the_policy_and_the_value() -> None:
    agent = make_agent(pixels=3072)
    obs = torch.rand(2, 7 + 3072)
    obs[1, :7] = obs[0, :7]
    policy, value = agent.net(obs)
    assert not torch.equal(policy[0], policy[1]) and value[0] != value[1]
    policy.sum().backward()
    assert agent.net.policy[0].eye[0].weight.grad.abs().sum() > 0  # type: ignore[index, union-attr]


def test_a_compiled_update_equals_the_plain_one_and_moves_the_weights() -> None:
    agents = [make_agent() for _ in range(2)]
    agents[1].load_state_dict(agents[0].state_dict())
    before = [p.clone() for p in agents[0].net.policy.parameters()]
    fast = ppo.compiled(agents[1].update, make_args(ppo, compile=True))
    for _ in range(3):
        batch = random_batch(16)
        agents[0].update(batch)
        fast(batch)
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
    assert last["agent_returns"] == "1.00 4.00 4.00" and last["completion_rate"] == ""


def test_a_phase_in_which_one_agent_acted_once_has_numbers_in_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {"num_envs": 1, "num_steps": 1, "num_minibatches": 1, "total_timesteps": 8}
    args = use_toy(Toy, monkeypatch, run_dir=tmp_path / "run", **changes)
    assert ppo.train(args) == tmp_path / "run"  # in its fourth step c is alone


def test_means_of_an_evaluation_leave_out_what_an_episode_does_not_have(tmp_path: Path) -> None:
    args = make_args(ppo, eval_episodes=3)
    env: Any = ppo.make_env(args)
    nobody = {"completion_rate": 0.0, "seconds_to_cross": np.nan}
    metrics = iter([nobody, {"completion_rate": 0.5, "seconds_to_cross": 12.0}, nobody])
    env.metrics = lambda: next(metrics)
    result = ppo.evaluate(ppo.floor("random", env), env, args, 0, tmp_path)
    assert result["completion_rate"] == pytest.approx(0.5 / 3)
    assert result["seconds_to_cross"] == 12.0 and result["off_road_rate"] == ""
    env.metrics = lambda: nobody
    result = ppo.evaluate(ppo.floor("random", env), env, args, 0, tmp_path)
    assert result["seconds_to_cross"] == "" and "seconds" not in ppo.summary(result)
