"""DDPG's update, against Stable-Baselines3, torch.optim and the formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_args, random_batch
from stable_baselines3 import DDPG
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

import ddpg_continuous as ddpg

OBS_DIM, ACTION_DIM, SIZE = 10, 2, 32  # Reacher-v5's


def make_agent(**changes: Any) -> ddpg.Agent:
    return ddpg.Agent(OBS_DIM, ACTION_DIM, make_args(ddpg, **changes))


def batches(count: int) -> list[ddpg.Batch]:
    return [random_batch(ddpg, SIZE, OBS_DIM, ACTION_DIM) for _ in range(count)]


def weights(module: nn.Module) -> Tensor:
    """A copy of all parameters in one row."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def test_updates_equal_those_of_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (24, 16)
    learning: dict[str, Any] = {"gamma": 0.9, "tau": 0.05}
    rates = {"actor_learning_rate": 1e-3, "critic_learning_rate": 3e-3}
    agent = make_agent(actor_hidden_sizes=sizes, critic_hidden_sizes=sizes, **learning, **rates)
    theirs: Any = DDPG("MlpPolicy", "Reacher-v5", policy_kwargs={"net_arch": [*sizes]}, **learning)
    theirs.set_logger(Logger(None, []))
    # Stable-Baselines3 sets its one learning rate before every update; give it two.
    monkeypatch.setattr(theirs, "_update_learning_rate", lambda optimizers: None)
    theirs.actor.optimizer.param_groups[0]["lr"] = rates["actor_learning_rate"]
    theirs.critic.optimizer.param_groups[0]["lr"] = rates["critic_learning_rate"]
    pairs = [
        (agent.actor, theirs.actor),
        (agent.critic, theirs.critic),
        (agent.target_actor, theirs.actor_target),
        (agent.target_critic, theirs.critic_target),
    ]
    for our_net, their_net in pairs:
        nn.utils.vector_to_parameters(weights(our_net), their_net.parameters())
    before = [weights(our_net) for our_net, _ in pairs]

    for obs, action, reward, terminated, next_obs in batches(10):
        columns = terminated.unsqueeze(1), reward.unsqueeze(1)
        sample = ReplayBufferSamples(obs, action, next_obs, *columns)
        monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, s=sample, **__: s)
        theirs.train(gradient_steps=1, batch_size=SIZE)
        agent.update(ddpg.Batch(obs, action, reward, terminated, next_obs))

    for (our_net, their_net), start in zip(pairs, before):
        assert (weights(our_net) - start).abs().max() > 1e-3
        torch.testing.assert_close(weights(our_net), weights(their_net), atol=1e-5, rtol=0)


def test_adam_equals_torch_adam() -> None:
    ours = [torch.randn(4, 3), torch.randn(5)]
    theirs = [p.clone().requires_grad_() for p in ours]
    adam, reference = ddpg.Adam(ours, 0.01), torch.optim.Adam(theirs, lr=0.01)
    for scale in torch.logspace(-6, 2, 20):
        for p in theirs:
            p.grad = scale * torch.randn_like(p)
        adam.step([p.grad for p in theirs if p.grad is not None])
        reference.step()
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q.detach(), atol=1e-6, rtol=1e-6)


def test_each_loss_moves_only_its_own_network() -> None:
    for still, moving in ("actor", "critic"), ("critic", "actor"):
        agent, (batch,) = make_agent(**{f"{still}_learning_rate": 0.0}), batches(1)
        start = {name: weights(getattr(agent, name)) for name in (still, moving)}
        agent.update(batch)
        assert torch.equal(weights(getattr(agent, still)), start[still])
        assert not torch.equal(weights(getattr(agent, moving)), start[moving])


def test_no_gradient_reaches_the_targets() -> None:
    agent, (batch,) = make_agent(), batches(1)
    (agent.critic_loss(batch) + agent.actor_loss(batch)).backward()
    for target in agent.target_actor, agent.target_critic:
        assert all(p.grad is None and not p.requires_grad for p in target.parameters())


def test_targets_start_as_copies_and_move_by_tau_towards_the_networks() -> None:
    agent = make_agent(tau=0.3)
    for name in "actor", "critic":
        online, target = getattr(agent, name), getattr(agent, f"target_{name}")
        assert torch.equal(weights(target), weights(online))
        old = torch.randn_like(weights(target))
        nn.utils.vector_to_parameters(old.clone(), target.parameters())
        agent.update_target(target, online)
        torch.testing.assert_close(weights(target), 0.3 * weights(online) + 0.7 * old)


def test_only_a_terminal_transition_has_no_bootstrap() -> None:
    agent, (batch,) = make_agent(gamma=0.5), batches(1)
    nn.utils.vector_to_parameters(
        torch.randn_like(weights(agent.target_critic)), agent.target_critic.parameters()
    )
    q = agent.critic(batch.obs, batch.action)
    next_q = agent.target_critic(batch.next_obs, agent.target_actor(batch.next_obs))
    for terminated, target in (1.0, batch.reward), (0.0, batch.reward + 0.5 * next_q):
        ended = torch.full_like(batch.terminated, terminated)
        loss = agent.critic_loss(batch._replace(terminated=ended))
        torch.testing.assert_close(loss, (q - target).square().mean())


def test_a_critic_gives_one_value_per_row() -> None:
    agent, (batch,) = make_agent(), batches(1)
    assert agent.critic(batch.obs, batch.action).shape == (SIZE,)
    assert agent.actor(batch.obs).shape == (SIZE, ACTION_DIM)


def test_actions_lie_in_the_unit_box() -> None:
    action = make_agent().actor(1e3 * torch.randn(1000, OBS_DIM))
    assert 0.99 < action.abs().max() <= 1


def linears(**changes: Any) -> list[nn.Linear]:
    torch.manual_seed(0)
    net = ddpg.mlp([40, 30, 20, 30], make_args(ddpg, **changes))
    return [module for module in net if isinstance(module, nn.Linear)]


def assert_uniform(values: Tensor, bound: float) -> None:
    """All are within the bound, and the extremes of so many samples are close to it."""
    assert 0.9 * bound < values.abs().max() <= bound
    assert abs(values.std() / bound - 3**-0.5) < 0.15


def test_uniform_initialisation_is_the_papers() -> None:
    layers = linears(weights_init="uniform", bias_init="uniform")
    for layer, bound in zip(layers, [40**-0.5, 30**-0.5, 3e-3]):
        assert_uniform(layer.weight, bound)
        assert_uniform(layer.bias, bound)


def test_orthogonal_initialisation_has_gain_sqrt_2_but_1_in_the_last_layer() -> None:
    for layer, gain in zip(linears(weights_init="orthogonal"), [2**0.5, 2**0.5, 1]):
        singular_values = torch.linalg.svdvals(layer.weight.detach())
        torch.testing.assert_close(singular_values, torch.full_like(singular_values, gain))


def test_xavier_initialisation_has_glorots_bound() -> None:
    for layer in linears(weights_init="xavier"):
        assert_uniform(layer.weight, (6 / sum(layer.weight.shape)) ** 0.5)


def test_default_initialisation_is_pytorchs() -> None:
    torch.manual_seed(0)
    expected = [nn.Linear(40, 30), nn.Linear(30, 20), nn.Linear(20, 30)]
    for layer, other in zip(linears(), expected):
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(layer.bias, other.bias)


def test_biases_are_zero_on_demand() -> None:
    assert all(not layer.bias.any() for layer in linears(bias_init="zeros"))
