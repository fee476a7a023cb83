"""MADDPG's update, against a reference written out agent by agent, and the formulas."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import COMMON
from scipy.stats import chisquare
from torch import Tensor, nn

import maddpg_smarts as maddpg

N, OBS, A, SIZE = 2, 3, 2, 32  # agents, observation, action, batch
BOTH = pytest.mark.parametrize("discrete", [True, False], ids=["discrete", "continuous"])


class Two(maddpg.MultiAgentEnv):
    """The sizes of an environment of two agents, or of more."""

    def __init__(self, discrete: bool = False, pixels: int = 0, agents: int = N) -> None:
        self.names = [f"agent_{i}" for i in range(agents)]
        self.obs_size, self.action_size, self.discrete, self.pixels = (
            OBS + pixels,
            A,
            discrete,
            pixels,
        )


def make_args(**changes: Any) -> Any:
    small = {"actor_hidden_sizes": (8, 7), "critic_hidden_sizes": (9, 6), "buffer_size": 100}
    return maddpg.Args(**COMMON | small | changes)


def make_agent(env: Two | None = None, **changes: Any) -> maddpg.Agent:
    return maddpg.Agent(env or Two(), make_args(**changes))


def random_batch(
    discrete: bool = False, draws: int = 1, pixels: int = 0, agents: int = N
) -> maddpg.Batch:
    """Random numbers; a fifth of the agents are not live, and a fifth of the others terminate."""
    shape = draws, SIZE, agents
    live = (torch.rand(shape) < 0.8).float()
    action = torch.rand(*shape, A) * 2 - 1
    if discrete:
        action = F.one_hot(torch.randint(A, shape), A).float()
    obs, next_obs = torch.randn(2, *shape, OBS + pixels)
    return maddpg.Batch(
        obs * live.unsqueeze(-1),
        action * live.unsqueeze(-1),
        torch.randn(shape) * live,
        (torch.rand(shape) < 0.2).float() * live,
        live,
        next_obs * live.unsqueeze(-1),
        torch.zeros(draws, SIZE, dtype=torch.int64),
        torch.rand(draws, SIZE) + 0.1,
    )


def weights(module: nn.Module) -> Tensor:
    """A copy of all parameters in one row."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# The whole update


def plain_net(stacked: maddpg.StackedNet, agent: int) -> nn.Sequential:
    """One agent's network, of PyTorch's own layers."""
    layers: list[nn.Module] = []
    for layer in stacked.layers:
        assert isinstance(layer, maddpg.StackedLinear)
        linear = nn.Linear(*layer.weight.shape[1:])
        linear.weight.data = layer.weight.data[agent].T.clone()
        linear.bias.data = layer.bias.data[agent, 0].clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Reference:
    """MADDPG as the paper has it: one agent after another, with PyTorch's layers and optimizers."""

    def __init__(self, agent: maddpg.Agent, args: Any) -> None:
        self.args, self.discrete = args, agent.discrete
        self.nets: dict[str, list[nn.Sequential]] = {
            name: [plain_net(getattr(agent, name), i) for i in range(N)]
            for name in ("actor", "critic", "target_actor", "target_critic")
        }
        rates = {"critic": args.critic_learning_rate, "actor": args.actor_learning_rate}
        self.optimizers = [
            {
                name: torch.optim.Adam(self.nets[name][i].parameters(), rate)
                for name, rate in rates.items()
            }
            for i in range(N)
        ]

    def target_action(self, j: int, obs: Tensor) -> Tensor:
        output = self.nets["target_actor"][j](obs)
        if self.discrete:
            return (output == output.amax(1, keepdim=True)).float()
        return output.tanh()

    def update(self, batch: maddpg.Batch, noise: list[Tensor]) -> None:
        args = self.args
        for i in range(N):
            b = maddpg.Batch(*(part[i % len(part)] for part in batch))  # this agent's draw
            rows = [k for k in range(SIZE) if b.live[k, i]]  # it learns from when it lived
            inputs = [b.obs[:, j] for j in range(N)] + [b.action[:, j] for j in range(N)]
            next_inputs = list(inputs)
            for j in range(N):
                there = (b.live[:, j] * (1 - b.terminated[:, j])).unsqueeze(1)
                action = self.target_action(j, b.next_obs[:, j])
                next_inputs[j], next_inputs[N + j] = b.next_obs[:, j] * there, action * there
            next_value = self.nets["target_critic"][i](torch.cat(next_inputs, 1)).squeeze(1)
            target = b.reward[:, i] + args.gamma * (1 - b.terminated[:, i]) * next_value
            value = self.nets["critic"][i](torch.cat(inputs, 1)).squeeze(1)
            critic_loss = (b.weight * (value - target.detach()) ** 2)[rows].mean()
            self.step("critic", i, critic_loss)

            output = self.nets["actor"][i](b.obs[:, i])
            if self.discrete:
                soft = F.softmax((output + noise[i]) / args.gumbel_temperature, 1)
                hard = (soft == soft.amax(1, keepdim=True)).float()
                inputs[N + i] = (hard - soft).detach() + soft
            else:
                inputs[N + i] = output.tanh()
            value = self.nets["critic"][i](torch.cat(inputs, 1)).squeeze(1)
            penalty = args.output_penalty * (output**2).mean(1)
            self.step("actor", i, (b.weight * (penalty - value))[rows].mean())
        for name in "critic", "actor":
            for online, old in zip(self.nets[name], self.nets[f"target_{name}"]):
                for p, q in zip(online.parameters(), old.parameters()):
                    q.data = self.args.tau * p.data + (1 - self.args.tau) * q.data

    def step(self, name: str, agent: int, loss: Tensor) -> None:
        params = list(self.nets[name][agent].parameters())
        for p, grad in zip(params, torch.autograd.grad(loss, params)):
            p.grad = grad
        nn.utils.clip_grad_norm_(params, self.args.max_grad_norm)
        self.optimizers[agent][name].step()


@BOTH
@pytest.mark.parametrize("draws", [1, N], ids=["one draw for all", "a draw for each"])
def test_updates_equal_those_of_a_reference_agent_by_agent(
    discrete: bool, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"gamma": 0.9, "tau": 0.05, "gumbel_temperature": 0.7}
    changes |= {"actor_learning_rate": 1e-3, "critic_learning_rate": 3e-3, "output_penalty": 0.1}
    env, args = Two(discrete), make_args(**changes)
    agent = maddpg.Agent(env, args)
    for target, online in (agent.target_actor, agent.actor), (agent.target_critic, agent.critic):
        noisy = weights(online) + 0.1 * torch.randn_like(weights(online))
        nn.utils.vector_to_parameters(noisy, target.parameters())
    reference = Reference(agent, args)
    start = {name: weights(getattr(agent, name)) for name in reference.nets}

    for _ in range(10):
        batch, noise = random_batch(discrete, draws), torch.randn(N, SIZE, A)
        monkeypatch.setattr(agent, "gumbel", lambda output, noise=noise: noise)
        agent.update(batch)
        reference.update(batch, list(noise))

    for name, nets in reference.nets.items():
        net = getattr(agent, name)
        assert (weights(net) - start[name]).abs().max() > 1e-3
        for i, theirs in enumerate(nets):
            torch.testing.assert_close(
                weights(plain_net(net, i)), weights(theirs), atol=1e-6, rtol=0
            )


@BOTH
def test_compiled_updates_move_the_weights_as_eager_ones_do(discrete: bool) -> None:
    eager = make_agent(Two(discrete))
    graph = copy.deepcopy(eager)
    update = maddpg.compiled(graph.update, make_args(compile=True))
    assert update != graph.update, "there is no C++ compiler"
    start = weights(eager)
    for i in range(5):
        batch = random_batch(discrete)
        torch.manual_seed(i)
        expected = eager.update(batch)
        torch.manual_seed(i)
        torch.testing.assert_close(update(batch), expected)
    assert (weights(graph) - start).abs().max() > 1e-3
    torch.testing.assert_close(graph.state_dict(), eager.state_dict(), atol=1e-5, rtol=1e-4)


def test_each_agents_gradient_is_clipped_by_itself() -> None:
    agent, batch = make_agent(max_grad_norm=0.5), random_batch()
    loss = agent.critic_loss(batch)[0] * torch.tensor([1e-3, 1e3])  # one is small, one is large
    params = list(agent.critic.parameters())
    grads = torch.autograd.grad(loss.sum(), params, retain_graph=True)
    clipped = agent.clipped_grads(loss, agent.critic)
    for i, norm in (0, None), (1, 0.5):
        before, after = (torch.cat([grad[i].flatten() for grad in g]) for g in (grads, clipped))
        assert 0 < before.norm() < 0.5 if norm is None else before.norm() > 5
        expected = before if norm is None else before * norm / before.norm()
        torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-5)


def gradients(agent: maddpg.Agent, batch: maddpg.Batch) -> list[Any]:
    """What an update would apply: the critics' and actors' gradients; and the losses."""
    critic_loss, actor_loss = agent.critic_loss(batch)[0], agent.actor_loss(batch)
    critic_grads = agent.clipped_grads(critic_loss, agent.critic)
    actor_grads = agent.clipped_grads(actor_loss, agent.actor)
    return [critic_grads, actor_grads, critic_loss.detach(), actor_loss.detach()]


# Who sees what


def linear_critic(critic: str = "joint", agents: int = 3) -> maddpg.Agent:
    """Agents whose critics are one linear layer without a bias."""
    agent = make_agent(Two(agents=agents), critic_hidden_sizes=(), critic=critic)
    list(agent.critic.parameters())[1].data.zero_()
    return agent


def test_the_joint_critic_sees_actions_in_the_order_of_the_agents() -> None:
    agent, batch = linear_critic(), random_batch(agents=3)
    live = torch.ones_like(batch.live)
    for i in range(3):
        for j in range(3):
            for k in range(A):
                weight = torch.zeros(3, 3 * (OBS + A), 1)
                weight[i, 3 * OBS + j * A + k] = 1.0  # critic i tells dimension k of j's action
                agent.critic.layers[0].weight.data = weight
                value = agent.value(agent.critic, batch.obs, batch.action, live)
                assert torch.equal(value[i], batch.action[0, :, j, k])
                assert not value[[x for x in range(3) if x != i]].any()


@pytest.mark.parametrize("critic", ["joint", "own"])
def test_only_a_joint_critic_sees_the_other_agents(critic: str) -> None:
    agent, batch = linear_critic(critic), random_batch(agents=3)
    live = torch.ones_like(batch.live)
    value = agent.value(agent.critic, batch.obs, batch.action, live)
    for part in "obs", "action":
        changed = batch._replace(**{part: getattr(batch, part).clone()})
        getattr(changed, part)[:, :, 0] += 1.0  # agent 0's
        moved = agent.value(agent.critic, changed.obs, changed.action, live) != value
        assert moved[0].all()
        assert moved[1:].all() if critic == "joint" else not moved[1:].any()


def test_an_actor_depends_on_its_own_observation_only() -> None:
    agent, obs = make_agent(), torch.randn(5, N, OBS)
    action = agent.act(obs, 0.0)
    obs[:, 0] += 1.0
    moved = agent.act(obs, 0.0) != action
    assert moved[:, 0].all() and not moved[:, 1].any()


@BOTH
def test_a_policy_gradient_lets_the_other_agents_do_what_they_did(
    discrete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, batch = make_agent(Two(discrete)), random_batch(discrete)
    value, seen = agent.value, []

    def spy(critic: Any, obs: Tensor, action: Tensor, live: Tensor) -> Tensor:
        seen.append(action)
        return value(critic, obs, action, live)

    monkeypatch.setattr(agent, "value", spy)
    agent.actor_loss(batch)
    (action,) = seen  # [N, B, N, A]
    for i in range(N):
        for j in range(N):
            assert torch.equal(action[i, :, j], batch.action[0, :, j]) == (i != j)


def test_an_agents_loss_moves_no_other_agents_networks() -> None:
    agent, batch = make_agent(), random_batch()
    for loss, net in (
        (agent.critic_loss(batch)[0], agent.critic),
        (
            agent.actor_loss(batch),
            agent.actor,
        ),
    ):
        for i in range(N):
            grads = torch.autograd.grad(loss[i], list(net.parameters()), retain_graph=True)
            assert all(grad[i].any() and not grad[1 - i].any() for grad in grads)


# Agents that are not live


def with_nonsense(batch: maddpg.Batch) -> maddpg.Batch:
    """The batch with large numbers where an agent is not live, before the step or after it."""
    dead, gone = batch.live == 0, (batch.live * (1 - batch.terminated)) == 0
    return batch._replace(
        obs=batch.obs + 1e3 * dead.unsqueeze(-1),
        action=batch.action + 1e3 * dead.unsqueeze(-1),
        reward=batch.reward + 1e3 * dead,
        next_obs=batch.next_obs + 1e3 * gone.unsqueeze(-1),
    )


@BOTH
@pytest.mark.parametrize("critic", ["joint", "own"])
def test_observations_actions_and_rewards_of_agents_that_are_not_live_change_nothing(
    discrete: bool, critic: str
) -> None:
    agent, batch = make_agent(Two(discrete), critic=critic), random_batch(discrete)
    results = []
    for each in batch, with_nonsense(batch):
        torch.manual_seed(1)
        results.append(gradients(agent, each))
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=0)
    assert batch.live.sum() < batch.live.numel() and batch.terminated.any()


def test_a_loss_is_the_mean_over_the_steps_in_which_the_agent_lived() -> None:
    agent, batch = make_agent(), random_batch()
    loss, error = agent.critic_loss(batch)
    for i in range(N):
        lived = batch.live[0, :, i] > 0
        torch.testing.assert_close(loss[i], (batch.weight[0, lived] * error[i, lived] ** 2).mean())


def test_an_agent_that_is_live_nowhere_in_the_batch_learns_nothing_and_disturbs_nothing() -> None:
    agent, batch = make_agent(), random_batch()
    batch.live[:, :, 0] = 0.0
    critic_grads, actor_grads, *losses = gradients(agent, batch)
    assert all(not grad[0].any() and grad[1].any() for grad in critic_grads + actor_grads)
    assert all(loss.isfinite().all() for loss in losses)


def test_only_a_terminated_agent_has_no_bootstrap_and_leaves_the_others_next_state() -> None:
    agent, batch = make_agent(gamma=0.5, critic="joint"), random_batch()
    live = torch.ones_like(batch.live)
    for ended in (0.0, 0.0), (1.0, 0.0), (1.0, 1.0):
        terminated = torch.tensor(ended).expand(1, SIZE, N)
        each = batch._replace(live=live, terminated=terminated)
        action = torch.stack([agent.target_actor(each.next_obs[0].transpose(0, 1).unsqueeze(2))])
        there = (1 - terminated).unsqueeze(-1)
        next_action = action[0].tanh().transpose(0, 1)[None]
        joint = torch.cat([(part * there).flatten(2) for part in (each.next_obs, next_action)], -1)
        q = agent.target_critic(joint.expand(N, -1, -1).unsqueeze(2)).squeeze(2)
        value = agent.value(agent.critic, each.obs, each.action, live)
        going_on = 1 - terminated[0].T
        target = each.reward[0].T + 0.5 * going_on * q
        torch.testing.assert_close(agent.critic_loss(each)[1], (value - target).detach())


# Discrete actions


def test_gumbel_softmax_is_one_hot_forward_and_lets_the_softmaxs_gradient_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, batch = (
        make_agent(Two(True), gumbel_temperature=0.5, output_penalty=0.0),
        random_batch(True),
    )
    batch = batch._replace(live=torch.ones_like(batch.live))
    noise = torch.randn(N, SIZE, A)
    monkeypatch.setattr(agent, "gumbel", lambda output: noise)
    slope, seen = torch.randn(N, SIZE, A), []

    def value(critic: Any, obs: Tensor, action: Tensor, live: Tensor) -> Tensor:
        own = torch.stack([action[i, :, i] for i in range(N)])
        seen.append(own)
        return (slope * own).sum(2)

    monkeypatch.setattr(agent, "value", value)
    grads = torch.autograd.grad(agent.actor_loss(batch).sum(), list(agent.actor.parameters()))
    (action,) = seen
    output = agent.actor(batch.obs[0].transpose(0, 1).unsqueeze(2))
    torch.testing.assert_close(action, F.one_hot((output + noise).argmax(-1), A).float())
    soft = -(batch.weight * (slope * ((output + noise) / 0.5).softmax(-1)).sum(2)).mean(1).sum()
    expected = torch.autograd.grad(soft, list(agent.actor.parameters()))
    assert all(grad.any() for grad in grads)
    torch.testing.assert_close(list(grads), list(expected))


def test_noise_of_scale_1_draws_actions_with_the_policys_probabilities() -> None:
    agent = make_agent(Two(True))
    obs = torch.randn(1, N, OBS).expand(20_000, N, OBS)
    action = agent.act(obs, noise=1.0)
    assert torch.equal(action.sum(-1), torch.ones(20_000, N))
    assert action.unique().tolist() == [0, 1]
    probs = agent.actor(obs[:1].transpose(0, 1).unsqueeze(2)).softmax(-1)[:, 0]
    for i in range(N):
        expected = 20_000 * probs[i].detach().double() / probs[i].sum().item()
        counts = action[:, i].sum(0).double()
        assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3
    likeliest = agent.act(obs, 0.0)
    assert (likeliest == F.one_hot(probs.argmax(-1), A)).all()


def test_continuous_actions_stay_in_the_unit_box_with_and_without_noise() -> None:
    agent = make_agent()
    for noise in 0.0, 0.5:
        action = agent.act(1e3 * torch.randn(1000, N, OBS), noise)
        assert 0.99 < action.abs().max() <= 1
    obs = torch.zeros(20_000, N, OBS)
    spread = agent.act(obs, 0.1) - agent.act(obs, 0.0)
    assert spread.std().item() == pytest.approx(0.1, rel=0.05)
    assert abs(np.corrcoef(spread[:, 0, 0], spread[:, 1, 0])[0, 1]) < 0.05


@BOTH
def test_random_actions_are_uniform(discrete: bool) -> None:
    action = make_agent(Two(discrete)).random(20_000)
    assert action.shape == (20_000, N, A)
    if discrete:
        assert chisquare(action.sum(0).flatten()).pvalue > 1e-3
    else:
        bins = torch.histc(action, 10, -1, 1)
        assert chisquare(bins).pvalue > 1e-3


# Images


def test_a_stack_of_networks_equals_separate_ones_with_images() -> None:
    pixels = 3 * 32 * 32
    agent, batch = make_agent(Two(pixels=pixels)), random_batch(pixels=pixels)

    def separate(net: maddpg.StackedNet, i: int, *parts: Tensor) -> Tensor:
        numbers, image, *action = parts
        eye = net.encoder
        assert isinstance(eye, maddpg.StackedConvNet)
        x = image
        for layer in eye.convolutions:
            if isinstance(layer, nn.Conv2d):
                weight, bias = (p.chunk(N)[i] for p in layer.parameters())
                x = F.conv2d(x, weight, bias, stride=2)
            else:
                x = x.relu()
        x = F.relu(x.flatten(1) @ eye.linear.weight[i] + eye.linear.bias[i])
        return plain_net(net, i)(torch.cat([numbers, x, *action], 1))

    obs, action = batch.obs[0], batch.action[0]  # [B, N, ...]
    image = obs[..., OBS:].unflatten(-1, (3, 32, 32))
    live = torch.ones(1, SIZE, N)
    output = agent.actor(obs.transpose(0, 1).unsqueeze(2))
    value = agent.value(agent.critic, batch.obs, batch.action, live)
    for i in range(N):
        expected = separate(agent.actor, i, obs[:, i, :OBS], image[:, i])
        torch.testing.assert_close(output[i], expected, atol=1e-5, rtol=1e-4)
        parts = obs[..., :OBS].flatten(1), image.flatten(1, 2), action.flatten(1)
        expected = separate(agent.critic, i, *parts).squeeze(1)
        torch.testing.assert_close(value[i], expected, atol=1e-5, rtol=1e-4)
    before = copy.deepcopy(agent)
    agent.update(batch)
    for net, old in (agent.critic, before.critic), (agent.actor, before.actor):
        assert (weights(net.encoder) != weights(old.encoder)).any()


def test_initial_weights_have_the_bounds_of_pytorchs_own_layers() -> None:
    torch.manual_seed(0)
    layer = maddpg.StackedLinear(4, 100, 50)
    for p in layer.parameters():
        assert 0.095 < p.abs().max() <= 0.1  # 1 / sqrt(100)
        assert abs(p.std().item() - 0.1 / 3**0.5) < 0.005
