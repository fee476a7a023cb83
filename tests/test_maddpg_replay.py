"""MADDPG's replay buffer: what is stored, and prioritized replay with its importance weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COMMON
from scipy.stats import chisquare
from torch import Tensor

import maddpg_smarts as maddpg

PIXELS = 3 * 32 * 32


class Sizes(maddpg.MultiAgentEnv):
    """The sizes of an environment of two agents that see two numbers and have three actions."""

    def __init__(self, pixels: int) -> None:
        self.names, self.action_size, self.discrete = ["a", "b"], 3, True
        self.pixels, self.obs_size = pixels, 2 + pixels


def make_args(**changes: Any) -> Any:
    return maddpg.Args(**COMMON | {"buffer_size": 50} | changes)


def make_buffer(pixels: int = 0, **changes: Any) -> Any:
    return maddpg.ReplayBuffer(Sizes(pixels), make_args(**changes))


def make_prioritized(**changes: Any) -> maddpg.PrioritizedReplayBuffer:
    args = make_args(prioritized_replay=True, **changes)
    return maddpg.PrioritizedReplayBuffer(Sizes(0), args)


def add(buffer: maddpg.ReplayBuffer, *numbers: int, live: tuple[int, int] = (1, 1)) -> None:
    """Store a step of as many environments; all parts tell its number and the agent."""
    n = np.array(numbers, np.float32)[:, None] + np.array([0.0, 0.5], np.float32)  # [E, N]
    action = torch.as_tensor(n).unsqueeze(-1) + torch.tensor([0.1, 0.2, 0.3])
    obs, next_obs = (n[..., None] + np.array(x, np.float32) for x in ([0.01, 0.02], [0.03, 0.04]))
    alive = np.broadcast_to(np.array(live, bool), n.shape)
    buffer.add(obs, action, n, n % 2 == 1, alive, next_obs)


def filled(count: int, **changes: Any) -> maddpg.PrioritizedReplayBuffer:
    """A buffer with transitions that have entered."""
    buffer = make_prioritized(**changes)
    for n in range(count):
        add(buffer, n)
    buffer.sample(1, 1.0)
    return buffer


def rows(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def everything(count: int) -> Tensor:
    return torch.arange(count).expand(2, -1)


# Priorities


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_proportional_priorities_are_those_of_the_paper(alpha: float) -> None:
    buffer = filled(30, per_alpha=alpha)
    index, error = torch.stack([torch.randperm(30) for _ in range(2)]), torch.randn(2, 30)
    buffer.refresh(index, error)
    p = (error.abs().double() + 1e-6) ** alpha
    torch.testing.assert_close(buffer.priority[:30].T.gather(1, index), p, atol=1e-9, rtol=1e-5)


def test_rank_priorities_are_those_of_the_paper_after_sorting() -> None:
    buffer = filled(30, per_variant="rank", per_alpha=0.7)
    index, error = torch.stack([torch.randperm(30) for _ in range(2)]), torch.randn(2, 30)
    buffer.refresh(index, error)
    buffer.sort()
    rank = 1 + (error.abs().unsqueeze(1) > error.abs().unsqueeze(2)).sum(2)
    torch.testing.assert_close(buffer.priority[:30].T.gather(1, index), rank.double() ** -0.7)
    # Between two sortings, a rank is what it would have been in the last one.
    third = error.abs().sort(descending=True).values[:, 2:3]
    buffer.refresh(rows([0], [0]), third + 1e-4)
    torch.testing.assert_close(buffer.priority[0], torch.tensor([3.0, 3.0]).double() ** -0.7)


def test_ranks_are_sorted_soon_and_then_every_thousand_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer, sortings = filled(10, per_variant="rank"), []
    sort = buffer.sort

    def spy() -> None:
        sortings.append(buffer.refreshed)
        sort()

    monkeypatch.setattr(buffer, "sort", spy)
    for _ in range(2000):
        buffer.refresh(rows([3], [4]), torch.tensor([[-0.5], [0.5]]))
    assert sortings == [10, 100, 1000, 2000]
    assert buffer.priority[3, 0] == buffer.priority[4, 1] == pytest.approx(10**-0.6)


@pytest.mark.parametrize("variant", ["proportional", "rank"])
def test_transitions_are_sampled_as_often_as_their_priorities_say(variant: str) -> None:
    buffer = filled(50, per_variant=variant)
    buffer.refresh(everything(50), torch.randn(2, 50))
    if variant == "rank":
        buffer.sort()
    sampled = torch.cat([buffer.sample(1, 1.0).indices for _ in range(5_000)], 1)  # independent
    for i in range(2):
        p = buffer.priority[:50, i]
        counts = torch.bincount(sampled[i], minlength=50).numpy()
        assert chisquare(counts, (p / p.sum() * counts.sum()).numpy()).pvalue > 1e-3
    assert abs(np.corrcoef(sampled)[0, 1]) < 0.06  # the agents' samples are independent


def test_a_batch_has_a_sample_from_every_part_of_the_sum() -> None:
    buffer = filled(50)
    for _ in range(20):
        assert torch.equal(buffer.sample(50, 1.0).indices.sort().values, everything(50))


@pytest.mark.parametrize("value", [0.0, 1 - 2**-53])
def test_a_transition_without_priority_is_never_sampled_whatever_rounding_does(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = make_prioritized()
    for n in range(30):
        add(buffer, n, live=(10 <= n < 20, n >= 10))
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.full(size, value, **kind))
    for batch_size in 1, 3, 1000:
        indices = buffer.sample(batch_size, 1.0).indices
        assert indices.min() >= 10 and indices[0].max() < 20 and indices[1].max() < 30


def test_importance_weights_are_those_of_the_paper() -> None:
    buffer = filled(30)
    buffer.refresh(everything(30), torch.randn(2, 30))
    probability = buffer.priority[:30].T / buffer.priority[:30].sum(0).unsqueeze(1)
    for beta in 0.0, 0.4, 1.0:
        batch = buffer.sample(16, beta)
        for i in range(2):
            w = (30 * probability[i, batch.indices[i]]) ** -beta  # section 3.4
            torch.testing.assert_close(batch.weight[i], (w / w.max()).float())
        assert batch.weight.max() == 1 and (beta == 0 or batch.weight.min() < 0.9)


def test_full_weights_remove_the_bias_of_the_samples() -> None:
    buffer = filled(50)
    buffer.refresh(everything(50), torch.randn(2, 50))
    x = torch.arange(50.0)
    batch = buffer.sample(200_000, beta=1.0)
    mean = (batch.weight * x[batch.indices]).sum(1) / batch.weight.sum(1)
    torch.testing.assert_close(mean, x.mean().expand(2), atol=0.3, rtol=0)
    assert ((x[batch.indices].mean(1) - x.mean()).abs() > 0.5).any(), "there was no bias"


@pytest.mark.parametrize("variant", ["proportional", "rank"])
def test_new_transitions_enter_with_the_largest_priority_so_far(variant: str) -> None:
    buffer = filled(3, per_variant=variant)
    buffer.refresh(everything(3), torch.tensor([[5.0, -9.0, 1.0], [0.1, 0.2, 0.3]]))
    buffer.refresh(rows([1], [1]), torch.tensor([[2.0], [0.1]]))  # it was 9, once
    if variant == "rank":
        buffer.sort()
    add(buffer, 3)
    buffer.sample(1, 1.0)
    if variant == "rank":
        assert buffer.priority[3].tolist() == [1, 1]
    else:
        expected = (torch.tensor([9.0, 1.0]).double() + 1e-6) ** 0.6
        torch.testing.assert_close(buffer.priority[3], expected)


def test_each_agent_samples_by_its_own_errors_and_only_steps_in_which_it_was_live() -> None:
    buffer = make_prioritized()
    for n in range(20):
        add(buffer, n, live=(1, n < 10))
    batch = buffer.sample(1000, beta=1.0)
    assert batch.indices[0].max() == 19 and batch.indices[1].max() == 9
    assert torch.equal(batch.live[0, :, 0], torch.ones(1000))
    assert torch.equal(batch.live[1, :, 1], torch.ones(1000))
    error = torch.full((2, 10), 1e-9)
    error[0, 4] = error[1, 7] = 1e9
    buffer.refresh(everything(10), error)
    indices = buffer.sample(1000, beta=1.0).indices
    assert (indices[0] == 4).float().mean() > 0.99 and (indices[1] == 7).float().mean() > 0.99


def test_an_agent_that_was_never_live_gets_finite_weights() -> None:
    buffer = make_prioritized()
    add(buffer, 0, live=(1, 0))
    batch = buffer.sample(5, beta=1.0)
    assert torch.equal(batch.weight, torch.ones(2, 5)) and not batch.live[1, :, 1].any()
    buffer.refresh(torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5))
    assert buffer.priority[0].gt(0).tolist() == [True, False]


def test_an_overwritten_transition_takes_its_priority_with_it() -> None:
    buffer = filled(50)
    buffer.refresh(everything(50), torch.full((2, 50), 1e-3))
    add(buffer, 50, live=(1, 0))
    buffer.sample(1, 1.0)
    assert buffer.priority[0].tolist() == [pytest.approx(1.0, abs=1e-5), 0.0]


def test_more_new_transitions_than_the_capacity_all_enter() -> None:
    buffer = make_prioritized()
    for n in range(130):
        add(buffer, n)
    buffer.sample(1, 1.0)
    assert torch.equal(buffer.error, torch.ones(50, 2))


def test_errors_for_some_agents_change_no_other_agents_priorities() -> None:
    buffer = filled(20)
    buffer.refresh(everything(20)[:1], torch.full((1, 20), 3.0), first=1)
    assert buffer.error[:20].T.tolist() == [[1.0] * 20, [3.0] * 20]
    assert buffer.largest.tolist() == [1.0, 3.0]


# What is stored


def assert_aligned(batch: maddpg.Batch) -> None:
    """Every row holds the parts of one transition."""
    n = batch.reward
    assert torch.equal(n[..., 1], n[..., 0] + 0.5)
    column = n.unsqueeze(-1)
    torch.testing.assert_close(batch.obs, column + torch.tensor([0.01, 0.02]))
    torch.testing.assert_close(batch.action, column + torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(batch.next_obs, column + torch.tensor([0.03, 0.04]))
    assert torch.equal(batch.terminated, (n % 2 == 1).float())


@pytest.mark.parametrize("make", [make_prioritized, make_buffer])
def test_a_sample_has_its_parts_from_the_same_transition(make: Any) -> None:
    buffer = make(buffer_size=21, num_envs=2)
    for n in range(0, 30, 2):
        add(buffer, n, n + 1)
    batch = buffer.sample(500, 1.0)
    batches = 2 if make == make_prioritized else 1
    assert batch.indices.shape == batch.weight.shape == (batches, 500)
    assert batch.obs.shape == (batches, 500, 2, 2) and batch.action.shape == (batches, 500, 2, 3)
    assert_aligned(batch)
    assert batch.reward[..., 0].unique().tolist() == list(range(10, 30))
    assert torch.equal(batch.weight, torch.ones(batches, 500))


def test_uniform_samples_are_uniform_over_what_is_stored() -> None:
    buffer = make_buffer()
    for n in range(40):
        add(buffer, n)
    counts = torch.bincount(buffer.sample(40_000, 1.0).indices[0], minlength=50)
    assert not counts[40:].any() and chisquare(counts[:40]).pvalue > 1e-3


def test_a_large_buffer_uses_no_memory_before_it_is_written_to() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    buffer = make_buffer(pixels=PIXELS, buffer_size=1_000_000)
    assert resident() - before < 20e6 < sum(part.nbytes for part in buffer.buffers())


def test_images_are_stored_in_bytes_and_numbers_exactly() -> None:
    buffer = make_buffer(pixels=PIXELS)
    obs = np.random.default_rng(0).random((1, 2, 2 + PIXELS)).astype(np.float32)
    zero = np.zeros((1, 2), np.float32)
    buffer.add(obs, torch.zeros(1, 2, 3), zero, zero, zero + 1, 1 - obs)
    assert buffer.obs.nbytes == 50 * 2 * (2 * 4 + PIXELS)
    batch = buffer.sample(1, 1.0)
    for part, expected in (batch.obs, obs), (batch.next_obs, 1 - obs):
        assert torch.equal(part[0, 0, :, :2], torch.tensor(expected[0, :, :2]))
        image = torch.tensor(expected[0, :, 2:])
        torch.testing.assert_close(part[0, 0, :, 2:], image, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("make", [make_prioritized, make_buffer])
def test_a_checkpoint_holds_only_what_is_stored(make: Any, tmp_path: Path) -> None:
    buffer = make(buffer_size=100_000)
    for n in range(100):
        add(buffer, n)
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    assert (tmp_path / "buffer.pt").stat().st_size < 50_000


@pytest.mark.parametrize("variant", ["proportional", "rank"])
def test_a_restored_buffer_continues_as_the_original(variant: str, tmp_path: Path) -> None:
    buffer, other = (make_prioritized(per_variant=variant) for _ in range(2))
    for n in range(61):
        add(buffer, n)
        if n % 20 == 19:
            buffer.refresh(buffer.sample(10, 1.0).indices, torch.randn(2, 10))
            buffer.sort()
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    other.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    samples = []
    for each in buffer, other:
        add(each, 61)
        torch.manual_seed(1)
        batch = each.sample(10, 1.0)
        each.refresh(each.sample(10, 1.0).indices, torch.linspace(0, 1, 20).view(2, 10))
        samples.append([*batch, *each.sample(100, 0.5)])
    assert all(torch.equal(a, b) for a, b in zip(*samples))
