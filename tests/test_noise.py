"""Exploration noise, against closed forms. The block is shared, so one script stands for all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_args
from torch import Tensor, nn

import ddpg_continuous as ddpg

OBS_DIM, ACTION_DIM = 5, 2


class Still(nn.Module):
    """An actor whose action is always 0.1."""

    def forward(self, obs: Tensor) -> Tensor:
        return torch.full((len(obs), ACTION_DIM), 0.1)


def make_noise(actor: nn.Module | None = None, **changes: Any) -> Any:
    args = make_args(ddpg, **changes)
    noise = ddpg.ParameterNoise if args.noise_type == "parameter" else ddpg.Noise
    return noise(actor or Still(), ACTION_DIM, args)


def make_actor(**changes: Any) -> ddpg.Actor:
    return ddpg.Actor(OBS_DIM, ACTION_DIM, make_args(ddpg, noise_type="parameter", **changes))


def test_gaussian_noise_has_the_given_standard_deviation() -> None:
    noise, obs = make_noise(num_envs=20_000, buffer_size=20_000), torch.zeros(20_000, OBS_DIM)
    x = noise.act(Still(), obs, 0.2) - 0.1
    assert x.mean(dim=0).abs().max() < 0.01
    torch.testing.assert_close(x.std(dim=0), torch.full((ACTION_DIM,), 0.2), atol=0.005, rtol=0)
    correlation = np.corrcoef(x.T)[0, 1]  # one dimension with the other
    assert abs(correlation) < 0.03


@pytest.mark.parametrize("noise_type", ["gaussian", "ou"])
def test_noisy_actions_stay_in_the_unit_box(noise_type: str) -> None:
    noise = make_noise(noise_type=noise_type, num_envs=100, ou_dt=1.0)
    action = noise.act(Still(), torch.zeros(100, OBS_DIM), 5.0)
    assert action.min() == -1 and action.max() == 1


def test_noise_with_a_standard_deviation_of_0_is_exactly_the_actor() -> None:
    actor, obs = make_actor(), torch.randn(50, OBS_DIM)
    assert torch.equal(make_noise(num_envs=50).act(actor, obs, 0.0), actor(obs))


def ou_paths(theta: float, dt: float, std: float, steps: int) -> Tensor:
    """Noise of 3000 environments, [steps, 3000, ACTION_DIM]."""
    noise = make_noise(noise_type="ou", num_envs=3000, buffer_size=3000, ou_theta=theta, ou_dt=dt)
    obs = torch.zeros(3000, OBS_DIM)
    return torch.stack([noise.act(Still(), obs, std) - 0.1 for _ in range(steps)])


def test_ou_noise_has_the_variance_and_autocorrelation_of_the_process() -> None:
    theta, dt, std = 2.0, 0.1, 0.3
    decay = 1 - theta * dt
    x = ou_paths(theta, dt, std, 60)[40:]  # from an arbitrary start, 0.8 ** 40 is left
    variance = std**2 * dt / (1 - decay**2)
    assert abs(x.var().item() / variance - 1) < 0.03
    for lag in 1, 2, 5:
        correlation = (x[lag:] * x[:-lag]).mean().item() / variance
        assert abs(correlation - decay**lag) < 0.03


def test_ou_noise_begins_at_zero_and_grows_as_a_random_walk() -> None:
    x = ou_paths(theta=0.0, dt=0.01, std=0.3, steps=9)
    expected = torch.arange(1, 10).sqrt() * 0.3 * math.sqrt(0.01)
    torch.testing.assert_close(x.std(dim=(1, 2)), expected, atol=0, rtol=0.05)


def test_environments_and_dimensions_have_independent_ou_noise() -> None:
    x = ou_paths(theta=2.0, dt=0.1, std=0.3, steps=40)[-1]
    assert abs(np.corrcoef(x[::2].flatten(), x[1::2].flatten())[0, 1]) < 0.06
    assert abs(np.corrcoef(x[:, 0], x[:, 1])[0, 1]) < 0.06


def test_ou_noise_is_reset_only_in_environments_whose_episode_ended() -> None:
    noise = make_noise(noise_type="ou", num_envs=3)
    noise.act(Still(), torch.zeros(3, OBS_DIM), 0.3)
    before = noise.x.clone()
    noise.reset(Still(), torch.tensor([False, True, False]))
    assert before.all()
    assert not noise.x[1].any()
    assert torch.equal(noise.x[[0, 2]], before[[0, 2]])


def distance(noise: Any, actor: nn.Module, obs: Tensor) -> float:
    """The distance of a new perturbation's actions from the actor's: the median of many."""
    distances = []
    for _ in range(100):
        noise.reset(actor, torch.tensor([True]))
        noisy = torch.cat([noise.act(actor, row.unsqueeze(0), 0.0) for row in obs])
        distances.append((noisy - actor(obs)).square().mean().sqrt().item())
    return float(np.median(distances))


@pytest.mark.parametrize("start", [0.02, 1.0])
def test_parameter_noise_adapts_until_actions_have_the_wanted_distance(start: float) -> None:
    actor, obs, wanted = make_actor(), torch.randn(32, OBS_DIM), 0.15
    noise = make_noise(actor, noise_type="parameter", noise_std=start)
    assert not 0.5 < distance(noise, actor, obs) / wanted < 2
    for _ in range(50 * 400):
        noise.adapt(actor, obs, wanted)
    assert 0.8 < distance(noise, actor, obs) / wanted < 1.25


def test_parameter_noise_has_standard_deviation_sigma_and_leaves_layer_norms() -> None:
    actor = make_actor(actor_hidden_sizes=(64, 64))
    norms = [module for module in actor.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2, "parameter noise sets --layer-norm"
    for norm in norms:
        nn.init.normal_(norm.weight)
    noise = make_noise(actor, noise_type="parameter", noise_std=0.2)
    noise.reset(actor, torch.tensor([True]))
    for noisy, module in zip(noise.perturbed[0].modules(), actor.modules()):
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(noisy.weight, module.weight)
            assert torch.equal(noisy.bias, module.bias)
        elif isinstance(module, nn.Linear):
            change = torch.cat([(noisy.weight - module.weight).flatten(), noisy.bias - module.bias])
            assert abs(change.std().item() / 0.2 - 1) < 0.2


def test_every_environment_keeps_its_own_perturbed_actor_until_its_episode_ends() -> None:
    actor = make_actor()
    noise = make_noise(actor, noise_type="parameter", num_envs=3)
    noise.reset(actor, torch.ones(3, dtype=torch.bool))
    obs = torch.randn(1, OBS_DIM).expand(3, -1)
    action = noise.act(actor, obs, 0.1)
    assert len(action.unique(dim=0)) == 3
    noise.adapt(actor, obs, 0.1)
    assert torch.equal(noise.act(actor, obs, 0.1), action)
    noise.reset(actor, torch.tensor([False, True, False]))
    again = noise.act(actor, obs, 0.1)
    assert (again == action).all(dim=1).tolist() == [True, False, True]


def test_measuring_a_distance_changes_no_environments_actor() -> None:
    actor, obs = make_actor(), torch.randn(2, OBS_DIM)
    noise = make_noise(actor, noise_type="parameter", num_envs=2)
    noise.reset(actor, torch.ones(2, dtype=torch.bool))
    action, sigma = noise.act(actor, obs, 0.1), noise.sigma.item()
    for _ in range(50):
        noise.adapt(actor, obs, 0.1)
    assert noise.sigma.item() != sigma
    assert torch.equal(noise.act(actor, obs, 0.1), action)


def test_the_standard_deviation_decays_linearly_and_then_stays() -> None:
    args = make_args(ddpg, noise_std=0.5, noise_std_min=0.1, noise_decay_steps=1000)
    steps = [0, 250, 500, 1000, 9000]
    assert np.allclose([ddpg.noise_std(args, step) for step in steps], [0.5, 0.4, 0.3, 0.1, 0.1])
    assert ddpg.noise_std(make_args(ddpg, noise_std=0.5), 10**6) == 0.5
