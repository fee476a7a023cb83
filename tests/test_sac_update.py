"""SAC's policy and update, against torch.distributions, Stable-Baselines3 and the formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_args, random_batch, trained
from probes import Probe
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

import sac_continuous as sac

OBS_DIM, ACTION_DIM, SIZE = 10, 2, 32  # Reacher-v5's


def make_agent(**changes: Any) -> Any:
    return sac.Agent(OBS_DIM, ACTION_DIM, make_args(sac, **changes))


def batches(count: int) -> list[sac.Batch]:
    return [random_batch(sac, SIZE, OBS_DIM, ACTION_DIM) for _ in range(count)]


def weights(*modules: nn.Module) -> Tensor:
    """A copy of all parameters in one row."""
    params = [p for module in modules for p in module.parameters()]
    return nn.utils.parameters_to_vector(params).detach().clone()


def head_of(theirs: Any) -> Tensor:
    """Stable-Baselines3's two last layers of the actor, in the order of our one."""
    mean, log_std = theirs.mu, theirs.log_std
    weight = torch.cat([mean.weight, log_std.weight]).flatten()
    return torch.cat([weight, mean.bias, log_std.bias]).detach()


def test_updates_equal_those_of_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, tau = (24, 16), 0.05
    rates = dict.fromkeys(("actor", "critic", "alpha"), 1e-3)
    changes: dict[str, Any] = {f"{name}_learning_rate": rate for name, rate in rates.items()}
    changes |= {"actor_hidden_sizes": sizes, "critic_hidden_sizes": sizes, "init_alpha": 0.5}
    agent = make_agent(gamma=0.9, tau=tau, **changes)
    theirs: Any = SAC(
        "MlpPolicy",
        "Reacher-v5",
        policy_kwargs={"net_arch": [*sizes]},
        learning_rate=1e-3,
        ent_coef="auto_0.5",
        gamma=0.9,
        tau=tau,
    )
    theirs.set_logger(Logger(None, []))
    theirs.actor.action_dist.epsilon = 0.0  # added to keep a logarithm finite; it is inexact
    for ours, net in (agent.critics, theirs.critic), (agent.target_critics, theirs.critic_target):
        nn.utils.vector_to_parameters(weights(ours), net.parameters())
    body, head = agent.actor.net[:-1], agent.actor.net[-1]
    nn.utils.vector_to_parameters(weights(body), theirs.actor.latent_pi.parameters())
    weight, bias = head.weight.detach(), head.bias.detach()
    for layer, part in (theirs.actor.mu, slice(0, 2)), (theirs.actor.log_std, slice(2, 4)):
        layer.weight.data.copy_(weight[part])
        layer.bias.data.copy_(bias[part])
    before = weights(agent.actor), weights(agent.critics), agent.log_alpha.item()

    for i, (obs, action, reward, terminated, next_obs) in enumerate(batches(10)):
        columns = terminated.unsqueeze(1), reward.unsqueeze(1)
        sample = ReplayBufferSamples(obs, action, next_obs, *columns)
        monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, s=sample, **__: s)
        torch.manual_seed(i)  # the same actions for both
        theirs.train(gradient_steps=1, batch_size=SIZE)
        torch.manual_seed(i)
        agent.update(sac.Batch(obs, action, reward, terminated, next_obs))

    assert (weights(agent.actor) - before[0]).abs().max() > 1e-3
    assert (weights(agent.critics) - before[1]).abs().max() > 1e-3
    assert abs(agent.log_alpha.item() - before[2]) > 1e-3
    close: dict[str, Any] = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(weights(agent.critics), weights(theirs.critic), **close)
    torch.testing.assert_close(
        weights(agent.target_critics), weights(theirs.critic_target), **close
    )
    torch.testing.assert_close(weights(body), weights(theirs.actor.latent_pi), **close)
    torch.testing.assert_close(weights(head), head_of(theirs.actor), **close)
    torch.testing.assert_close(agent.log_alpha.detach(), theirs.log_ent_coef.detach()[0], **close)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_log_probabilities_are_those_of_a_squashed_gaussian_also_in_the_tails(scale: float) -> None:
    actor = make_agent().actor
    actor.net[-1].weight.data[:ACTION_DIM] *= scale  # those of the mean
    obs = torch.randn(256, OBS_DIM)
    torch.manual_seed(1)
    action, log_prob = actor.sample(obs)
    mean, std = actor.mean_and_std(obs)
    torch.testing.assert_close(actor(obs), torch.tanh(mean))
    torch.manual_seed(1)
    distribution = TransformedDistribution(Normal(mean, std), TanhTransform(cache_size=1))
    same = distribution.rsample()
    assert scale < 30 or (action.abs() == 1).any(), "no sample is in the tail"
    torch.testing.assert_close(action, same)
    expected = distribution.log_prob(same).sum(1)
    torch.testing.assert_close(log_prob, expected, atol=1e-5, rtol=1e-5)
    # And from the definition in double precision: log(1 - tanh²(u)) = -2 log cosh(u).
    u = distribution.transforms[0].inv(same).double()  # from its cache, and so exact
    log_cosh = u.abs() + torch.log1p(torch.exp(-2 * u.abs())) - math.log(2)
    exact = (Normal(mean.double(), std.double()).log_prob(u) + 2 * log_cosh).sum(1)
    torch.testing.assert_close(log_prob.double(), exact, atol=1e-4, rtol=1e-5)


def test_gradients_of_the_temperature_are_the_hand_derived_ones() -> None:
    # Of log α: at an α other than 1 the derivative by α would be another.
    agent = make_agent(target_entropy=-3.0, init_alpha=0.3)
    log_prob = torch.tensor([1.0, 2.0, 6.0])
    (grad,) = torch.autograd.grad(agent.alpha_loss(log_prob), [agent.log_alpha])
    assert grad.item() == pytest.approx(-(3.0 - 3.0))  # -(mean log π + target) = 0: on target
    (grad,) = torch.autograd.grad(agent.alpha_loss(log_prob + 2), [agent.log_alpha])
    assert grad.item() == pytest.approx(-2.0)  # too little entropy: descent raises α


@pytest.mark.parametrize("slope", [0.0, 2.5])
@pytest.mark.parametrize("alpha", [0.2, 1.7])
def test_gradients_of_the_actor_are_the_hand_derived_ones(alpha: float, slope: float) -> None:
    # Without a hidden layer, at observations of 0, the last biases are the mean m and log σ.
    # With u = m + σ ξ, log π = -ξ²/2 - log σ + const - log(1 - tanh² u). The critic is slope * a.
    args = make_args(sac, actor_hidden_sizes=(), critic_hidden_sizes=(), num_critics=1)
    agent: Any = sac.Agent(1, 1, args)
    critic = agent.critics[0]
    critic.net[0].weight.data[:] = torch.tensor([[0.0, slope]])
    m, log_std = 0.4, -0.7
    bias: Any = agent.actor.net[-1].bias
    bias.data[:] = torch.tensor([m, log_std])
    obs = torch.zeros(64, 1)
    torch.manual_seed(3)
    xi = torch.randn(64, 1)
    torch.manual_seed(3)
    action, log_prob = agent.actor.sample(obs)
    loss = agent.actor_loss(obs, action, log_prob, torch.tensor(alpha))
    (grad,) = torch.autograd.grad(loss, [bias])
    tanh = torch.tanh(m + math.exp(log_std) * xi)
    by_u = 2 * alpha * tanh - slope * (1 - tanh**2)
    by_log_std = math.exp(log_std) * xi * by_u - alpha
    torch.testing.assert_close(grad, torch.stack([by_u.mean(), by_log_std.mean()]))


@pytest.mark.parametrize("autotune", [True, False])
def test_alpha_starts_at_its_flag_and_changes_only_if_it_is_learned(autotune: bool) -> None:
    start = 0.03 if autotune else 0.4
    agent = make_agent(autotune=autotune, **{"init_alpha" if autotune else "alpha": start})
    assert agent.log_alpha.exp().item() == pytest.approx(start)
    for batch in batches(3):
        agent.update(batch)
    assert (agent.log_alpha.exp().item() != pytest.approx(start)) == autotune


def test_alpha_stays_below_its_bound() -> None:
    agent = make_agent(init_alpha=0.9, max_alpha=1.0, alpha_learning_rate=0.5, target_entropy=1.3)
    agent.actor.net[-1].bias.data[ACTION_DIM:] = -4.0  # log σ: less entropy than the target
    for batch in batches(5):
        alpha = agent.update(batch)["alpha"]
    assert alpha.item() == pytest.approx(1.0)


def test_a_std_beyond_its_bound_shrinks_again_and_the_temperature_with_it() -> None:
    # All rewards are 0, so the actor learns to be random. At first its standard deviation is so
    # large that tanh makes most actions -1 or 1: an entropy far below its target.
    rates = {f"{name}_learning_rate": 1e-2 for name in ("actor", "critic", "alpha")}
    agent, (batch,) = make_agent(gamma=0.0, init_alpha=0.1, max_alpha=1e9, **rates), batches(1)
    batch = batch._replace(reward=torch.zeros(SIZE))
    for p in agent.critics.parameters():
        p.data.zero_()
    agent.actor.net[-1].bias.data[ACTION_DIM:] = 4.0  # log σ, which is clamped to 2
    losses = [agent.update(batch) for _ in range(500)]
    alphas = [loss["alpha"].item() for loss in losses]
    assert losses[0]["entropy"] < -5
    assert losses[-1]["entropy"] > -ACTION_DIM
    assert alphas[-1] < 0.5 * max(alphas)


NEEDS = "needs --{}autotune, and has no effect without it"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"alpha": 0.5}, "--alpha " + NEEDS.format("no-")),
        ({"autotune": False, "init_alpha": 0.5}, "--init-alpha " + NEEDS.format("")),
        ({"autotune": False, "max_alpha": 0.5}, "--max-alpha " + NEEDS.format("")),
        ({"autotune": False, "target_entropy": -1.0}, "--target-entropy " + NEEDS.format("")),
        ({"autotune": False, "alpha_learning_rate": 0.1}, "--alpha-learning-rate needs --autotune"),
        ({"init_alpha": 11.0}, "--init-alpha is 11.0, more than --max-alpha 10.0"),
        ({"target_entropy": 0.7}, "--target-entropy is 0.7; it must be below 0.69"),
    ],
)
def test_flags_of_the_temperature_that_have_no_effect_or_no_solution_are_refused(
    changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        sac.train(make_args(sac, run_dir=tmp_path / "run", **changes))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"sac_continuous: {words}")


def test_the_automatic_target_is_minus_one_per_action_dimension() -> None:
    assert make_agent().target_entropy == -ACTION_DIM
    assert make_agent(target_entropy=0.5).target_entropy == 0.5


class Narrow(Probe):
    """The reward falls with the action's square, so that all entropy costs something."""

    def reward(self, action: np.ndarray) -> float:
        return -(float(action[0]) ** 2)


def test_the_entropy_reaches_its_target(register: Any, tmp_path: Path) -> None:
    # Without a temperature the standard deviation would go to 0 and the entropy to -infinity.
    changes: dict[str, Any] = {"target_entropy": -1.5, "init_alpha": 0.1, "learning_starts": 50}
    changes |= {f"{name}_learning_rate": 3e-3 for name in ("actor", "critic", "alpha")}
    changes |= {"total_timesteps": 2500, "eval_interval": 5000, "save_interval": 5000}
    args = make_args(sac, env_id=register(Narrow), run_dir=tmp_path / "run", **changes)
    agent, _ = trained(sac, sac.train(args))
    entropy = -agent.actor.sample(torch.zeros(4000, 1))[1].mean().item()
    assert entropy == pytest.approx(-1.5, abs=0.2)


def test_update_every_keeps_the_number_of_updates(register: Any, tmp_path: Path) -> None:
    changes = {"total_timesteps": 400, "learning_starts": 200, "eval_interval": 1000}
    counts = []
    for every in 1, 8:
        run_dir = tmp_path / str(every)
        args = make_args(sac, env_id="Pendulum-v1", update_every=every, run_dir=run_dir, **changes)
        counts.append(trained(sac, sac.train(args))[1]["run"]["updates"])
    assert counts == [200, 200]
