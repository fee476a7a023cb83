"""TD3's update, against Stable-Baselines3, DDPG's and the formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_args, random_batch, rows
from stable_baselines3 import TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

import ddpg_continuous as ddpg
import td3_continuous as td3

OBS_DIM, ACTION_DIM, SIZE = 10, 2, 32  # Reacher-v5's


def make_agent(**changes: Any) -> Any:
    return td3.Agent(OBS_DIM, ACTION_DIM, make_args(td3, **changes))


def batches(count: int) -> list[td3.Batch]:
    return [random_batch(td3, SIZE, OBS_DIM, ACTION_DIM) for _ in range(count)]


def weights(module: nn.Module) -> Tensor:
    """A copy of all parameters in one row."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def test_updates_equal_those_of_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (24, 16)
    learning: dict[str, Any] = {"gamma": 0.9, "tau": 0.05, "policy_delay": 2}
    rates = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
    agent = make_agent(actor_hidden_sizes=sizes, critic_hidden_sizes=sizes, **learning, **rates)
    policy = {"net_arch": [*sizes]}
    theirs: Any = TD3(
        "MlpPolicy", "Reacher-v5", policy_kwargs=policy, learning_rate=1e-3, **learning
    )
    theirs.set_logger(Logger(None, []))
    pairs = [
        (agent.actor, theirs.actor),
        (agent.critics, theirs.critic),
        (agent.target_actor, theirs.actor_target),
        (agent.target_critics, theirs.critic_target),
    ]
    for our_net, their_net in pairs:
        nn.utils.vector_to_parameters(weights(our_net), their_net.parameters())
    before = [weights(our_net) for our_net, _ in pairs]

    for update, (obs, action, reward, terminated, next_obs) in enumerate(batches(10), start=1):
        columns = terminated.unsqueeze(1), reward.unsqueeze(1)
        sample = ReplayBufferSamples(obs, action, next_obs, *columns)
        monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, s=sample, **__: s)
        torch.manual_seed(update)  # the same target noise for both
        theirs.train(gradient_steps=1, batch_size=SIZE)
        torch.manual_seed(update)
        batch = td3.Batch(obs, action, reward, terminated, next_obs)
        agent.update(batch, update_actor=update % 2 == 0)

    for (our_net, their_net), start in zip(pairs, before):
        assert (weights(our_net) - start).abs().max() > 1e-4
        torch.testing.assert_close(weights(our_net), weights(their_net), atol=1e-5, rtol=0)


def test_without_its_three_ideas_td3_is_ddpg_bit_for_bit() -> None:
    ours = make_agent(num_critics=1, policy_delay=1, target_noise_std=0.0)
    theirs = ddpg.Agent(OBS_DIM, ACTION_DIM, make_args(ddpg))
    pairs = [
        (ours.actor, theirs.actor),
        (ours.critics[0], theirs.critic),
        (ours.target_actor, theirs.target_actor),
        (ours.target_critics[0], theirs.target_critic),
    ]
    for our_net, their_net in pairs:
        their_net.load_state_dict(our_net.state_dict())
    for batch in batches(10):
        ours.update(batch, update_actor=True)
        theirs.update(ddpg.Batch(*batch))
    for our_net, their_net in pairs:
        assert torch.equal(weights(our_net), weights(their_net))


def test_an_update_without_the_actor_leaves_it_and_all_targets() -> None:
    agent, (batch,) = make_agent(), batches(1)
    still = [agent.actor, agent.target_actor, agent.target_critics]
    before, critics = [weights(net) for net in still], weights(agent.critics)
    agent.update(batch, update_actor=False)
    assert not torch.equal(weights(agent.critics), critics)
    assert all(torch.equal(weights(net), start) for net, start in zip(still, before))


@pytest.mark.parametrize("num_envs", [1, 2])
def test_every_third_update_is_one_of_the_actor_too(
    num_envs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Updates count, and not environment steps, which advance by num_envs at a time.
    calls, update = [], td3.Agent.update

    def spy(agent: td3.Agent, batch: td3.Batch, update_actor: bool) -> dict[str, Tensor]:
        calls.append(update_actor)
        return update(agent, batch, update_actor)

    monkeypatch.setattr(td3.Agent, "update", spy)
    changes: dict[str, Any] = {"num_envs": num_envs, "policy_delay": 3, "total_timesteps": 150}
    td3.train(make_args(td3, run_dir=tmp_path / "run", **changes))
    assert calls == [update % 3 == 0 for update in range(1, 51)]


def test_the_first_row_of_losses_has_the_actors_loss_too(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"policy_delay": 7, "total_timesteps": 1150, "eval_interval": 1150}
    losses = rows(td3.train(make_args(td3, run_dir=tmp_path / "run", **changes)) / "losses.csv")
    assert list(losses[0]) == ["env_step", "qf_loss", "actor_loss"]


@pytest.mark.parametrize("num_critics", [1, 2, 5])
def test_the_target_uses_the_smallest_of_the_critics_values(num_critics: int) -> None:
    agent = make_agent(num_critics=num_critics, target_noise_std=0.0, gamma=0.5)
    (batch,) = batches(1)
    with torch.no_grad():
        next_action = agent.target_actor(batch.next_obs)
        values = [critic(batch.next_obs, next_action) for critic in agent.target_critics]
        least = torch.tensor([min(v[i].item() for v in values) for i in range(SIZE)])
        target = batch.reward + 0.5 * (1 - batch.terminated) * least
        errors = [critic(batch.obs, batch.action) - target for critic in agent.critics]
        expected = sum(error.square().mean() for error in errors)
    torch.testing.assert_close(agent.critic_loss(batch).detach(), expected)


def test_target_noise_is_sampled_for_every_transition_and_dimension_and_clipped() -> None:
    agent = make_agent(target_noise_std=0.2, target_noise_clip=0.3, num_critics=1)
    batch = random_batch(td3, 20_000, OBS_DIM, ACTION_DIM)
    seen = []
    critic = agent.target_critics[0]
    hook = critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    agent.target_actor.net[-1].weight.data.zero_()  # the action is tanh of the bias, far from ±1
    agent.target_actor.net[-1].bias.data.zero_()
    agent.critic_loss(batch)
    hook.remove()
    noise = seen[0]
    assert noise.abs().max() == pytest.approx(0.3)
    clipped = torch.distributions.Normal(0.0, 0.2).cdf(torch.tensor(-0.3)) * 2
    assert (noise.abs() >= 0.3).float().mean() == pytest.approx(clipped.item(), abs=0.01)
    inside = noise[(noise.abs() < 0.3).all(1)]
    assert torch.corrcoef(inside.T)[0, 1].abs() < 0.03  # each dimension has its own sample
    assert len(noise[:, 0].unique()) > 0.8 * len(noise)  # and each transition


def test_target_actions_stay_within_the_bounds() -> None:
    agent, seen = make_agent(target_noise_std=5.0, target_noise_clip=9.0, num_critics=1), []
    critic = agent.target_critics[0]
    critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    agent.critic_loss(batches(1)[0])
    assert seen[0].abs().max() == 1
