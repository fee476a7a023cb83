"""MADDPG's replay buffer: the sum tree, priorities, importance weights; and what is stored."""

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


class Sizes(maddpg.MultiAgentEnv):
    """The sizes of an environment of agents that see two numbers and have three actions."""

    names, action_size, discrete = ["a", "b"], 3, True

    def __init__(self, pixels: int) -> None:
        self.pixels, self.obs_size = pixels, 2 + pixels


def make_args(**changes: Any) -> Any:
    return maddpg.Args(**COMMON | {"buffer_size": 50, "prioritized_replay": True} | changes)


def make_buffer(pixels: int = 0, **changes: Any) -> maddpg.ReplayBuffer:
    return maddpg.ReplayBuffer(Sizes(pixels), make_args(**changes))


def add(buffer: maddpg.ReplayBuffer, *numbers: int, live: tuple[int, int] = (1, 1)) -> None:
    """Store a step of as many environments, all of whose parts tell its number and the agent."""
    n = np.array(numbers, np.float32)[:, None] + np.array([0.0, 0.5], np.float32)  # [E, N]
    action = torch.as_tensor(n).unsqueeze(-1) + torch.tensor([0.1, 0.2, 0.3])
    obs, next_obs = (n[..., None] + np.array(x, np.float32) for x in ([0.01, 0.02], [0.03, 0.04]))
    alive = np.broadcast_to(np.array(live, bool), n.shape)
    ended = np.zeros(len(numbers), bool)
    buffer.add(maddpg.Transition(obs, action, n, n % 2 == 1, alive, next_obs, ended))


def filled(count: int, **changes: Any) -> maddpg.ReplayBuffer:
    buffer = make_buffer(**changes)
    for n in range(count):
        add(buffer, n)
    return buffer


def priorities(buffer: maddpg.ReplayBuffer) -> maddpg.Priorities:
    assert buffer.priorities is not None
    return buffer.priorities


def at(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


# The sum tree


@pytest.mark.parametrize("capacity", [1, 2, 5, 8, 1000])
def test_every_node_of_the_tree_is_the_sum_of_the_leaves_below_it(capacity: int) -> None:
    tree, leaves = maddpg.SumTree(3, capacity), torch.zeros(3, capacity, dtype=torch.float64)
    for _ in range(5):
        index = torch.randint(capacity, (3, 7))  # some twice, each with one priority
        priority = torch.rand(3, capacity, dtype=torch.float64).gather(1, index)
        tree.set(index, priority)
        leaves.scatter_(1, index, priority)
    every = torch.arange(capacity).expand(3, -1)
    assert torch.equal(tree.get(every), leaves)
    torch.testing.assert_close(tree.nodes[:, 1], leaves.sum(1))
    for node in range(1, tree.leaves):
        children = tree.nodes[:, 2 * node] + tree.nodes[:, 2 * node + 1]
        torch.testing.assert_close(tree.nodes[:, node], children)


def test_leaves_are_drawn_as_often_as_their_priorities_say() -> None:
    tree = maddpg.SumTree(2, 100)
    priority = torch.rand(2, 100, dtype=torch.float64) ** 3
    priority[0, 20:40] = 0.0
    tree.set(torch.arange(100).expand(2, -1), priority)
    drawn = torch.cat([tree.draw(1) for _ in range(30_000)], 1)  # one by one: independent
    for row, p in zip(drawn, priority):
        counts = torch.bincount(row, minlength=100).double()
        assert not counts[p == 0].any()
        expected = p / p.sum() * counts.sum()
        some = expected > 5  # where a chi-square test is valid
        observed = torch.cat([counts[some], counts[~some].sum()[None]])
        wanted = torch.cat([expected[some], expected[~some].sum()[None]])
        assert chisquare(observed, wanted).pvalue > 1e-3
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.03  # the agents' draws are independent


def test_a_batch_has_a_draw_from_every_part_of_the_total() -> None:
    tree = maddpg.SumTree(1, 64)
    tree.set(torch.arange(64).expand(1, -1), torch.ones(1, 64))
    for _ in range(20):
        assert torch.equal(tree.draw(64).sort().values, torch.arange(64).expand(1, -1))


def test_an_empty_leaf_is_never_drawn_whatever_rounding_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = maddpg.SumTree(1, 8)
    tree.set(at([0, 1, 2]), torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64))
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.ones(*size, **kind))
    assert tree.draw(5)[0, -1] == 2


# Priorities


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_proportional_priorities_are_those_of_the_paper(alpha: float) -> None:
    replay = priorities(filled(30, per_alpha=alpha))
    replay.draw(1, 1.0)
    index, error = torch.stack([torch.randperm(30) for _ in range(2)]), torch.randn(2, 30)
    replay.refresh(index, error)
    p = (error.abs().double() + 1e-6) ** alpha
    torch.testing.assert_close(replay.tree.get(index), p, atol=1e-9, rtol=1e-5)
    torch.testing.assert_close(replay.tree.nodes[:, 1], p.sum(1), atol=1e-9, rtol=1e-5)


def test_rank_priorities_are_those_of_the_paper_after_sorting() -> None:
    replay = priorities(filled(30, per_variant="rank", per_alpha=0.7))
    replay.draw(1, 1.0)
    index, error = torch.stack([torch.randperm(30) for _ in range(2)]), torch.randn(2, 30)
    replay.refresh(index, error)
    replay.sort()
    rank = 1 + (error.abs().unsqueeze(1) > error.abs().unsqueeze(2)).sum(2)
    torch.testing.assert_close(replay.tree.get(index), rank.double() ** -0.7)
    torch.testing.assert_close(
        replay.tree.nodes[:, 1],
        (torch.arange(1.0, 31) ** -0.7).double().sum().expand(2),
        atol=1e-5,
        rtol=1e-5,
    )
    # Between two sortings, a rank is what it would have been in the last one.
    third = error.abs().sort(descending=True).values[:, 2:3]
    replay.refresh(at([0], [0]), third + 1e-4)
    torch.testing.assert_close(replay.tree.get(at([0], [0])), at([3], [3]).double() ** -0.7)


def test_ranks_are_sorted_soon_and_then_every_thousand_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replay, sortings = priorities(filled(10, per_variant="rank")), []
    sort = replay.sort

    def noting() -> None:
        sortings.append(replay.refreshed)
        sort()

    monkeypatch.setattr(replay, "sort", noting)
    replay.draw(1, 1.0)
    for _ in range(2000):
        replay.refresh(at([3], [4]), torch.tensor([[-0.5], [0.5]]))
    assert sortings == [10, 100, 1000, 2000]
    assert replay.tree.get(at([3], [4])).tolist() == [[pytest.approx(10**-0.6)]] * 2


def test_importance_weights_are_those_of_the_paper() -> None:
    replay = priorities(filled(30))
    replay.draw(1, 1.0)
    replay.refresh(torch.arange(30).expand(2, -1), torch.randn(2, 30))
    p = replay.tree.get(torch.arange(30).expand(2, -1))
    probability = p / p.sum(1, keepdim=True)
    for beta in 0.0, 0.4, 1.0:
        index, weight = replay.draw(16, beta)
        for i in range(2):
            w = (30 * probability[i, index[i]]) ** -beta  # section 3.4
            torch.testing.assert_close(weight[i], (w / w.max()).float())
        assert weight.max() == 1 and (beta == 0 or weight.min() < 0.9)


def test_weights_in_full_make_good_for_the_bias_of_the_draws() -> None:
    replay = priorities(filled(50))
    replay.draw(1, 1.0)
    replay.refresh(torch.arange(50).expand(2, -1), torch.randn(2, 50))
    x = torch.arange(50.0)
    index, weight = replay.draw(200_000, beta=1.0)
    mean = (weight * x[index]).sum(1) / weight.sum(1)
    torch.testing.assert_close(mean, x.mean().expand(2), atol=0.3, rtol=0)
    assert ((x[index].mean(1) - x.mean()).abs() > 0.5).any(), "there was no bias to begin with"


@pytest.mark.parametrize("variant", ["proportional", "rank"])
def test_new_transitions_enter_with_the_largest_priority_so_far(variant: str) -> None:
    buffer = filled(3, per_variant=variant)
    replay = priorities(buffer)
    replay.draw(1, 1.0)
    replay.refresh(at([0, 1, 2], [0, 1, 2]), torch.tensor([[5.0, -9.0, 1.0], [0.1, 0.2, 0.3]]))
    replay.refresh(at([1], [1]), torch.tensor([[2.0], [0.1]]))  # it was 9, once
    if variant == "rank":
        replay.sort()
    add(buffer, 3)
    replay.draw(1, 1.0)
    entered = replay.tree.get(at([3], [3]))[:, 0]
    if variant == "rank":
        assert entered.tolist() == [1, 1]
    else:
        torch.testing.assert_close(entered, (torch.tensor([9.0, 1.0]).double() + 1e-6) ** 0.6)


def test_each_agent_draws_by_its_own_errors_and_never_the_steps_it_was_dead_in() -> None:
    buffer = make_buffer()
    for n in range(20):
        add(buffer, n, live=(1, n < 10))
    index, batch = buffer.sample(1000, beta=1.0)
    assert index[0].max() == 19 and index[1].max() == 9
    assert torch.equal(batch.live[0, :, 0], torch.ones(1000))
    assert torch.equal(batch.live[1, :, 1], torch.ones(1000))
    error = torch.full((2, 20), 1e-9)
    error[0, 4] = error[1, 7] = 1e9
    priorities(buffer).refresh(torch.arange(20)[:10].expand(2, -1), error[:, :10])
    index, _ = buffer.sample(1000, beta=1.0)
    assert (index[0] == 4).float().mean() > 0.99 and (index[1] == 7).float().mean() > 0.99


def test_an_agent_dead_in_all_that_is_stored_gets_weights_that_are_numbers() -> None:
    buffer = make_buffer()
    add(buffer, 0, live=(1, 0))
    _, batch = buffer.sample(5, beta=1.0)
    assert torch.equal(batch.weight, torch.ones(2, 5)) and not batch.live[1, :, 1].any()
    priorities(buffer).refresh(torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5))
    assert priorities(buffer).tree.nodes[:, 1].gt(0).tolist() == [True, False]


def test_an_overwritten_transition_takes_its_priority_with_it() -> None:
    buffer = filled(50)
    buffer.sample(1, 1.0)
    priorities(buffer).refresh(torch.arange(50).expand(2, -1), torch.full((2, 50), 1e-3))
    add(buffer, 50, live=(1, 0))
    buffer.sample(1, 1.0)
    entered = priorities(buffer).tree.get(at([0], [0]))
    assert entered.tolist() == [[pytest.approx(1.0, abs=1e-5)], [0.0]]


# The buffer


def assert_aligned(batch: maddpg.Batch) -> None:
    """Every row holds the parts of one transition."""
    n = batch.reward
    assert torch.equal(n[..., 1], n[..., 0] + 0.5)
    column = n.unsqueeze(-1)
    torch.testing.assert_close(batch.obs, column + torch.tensor([0.01, 0.02]))
    torch.testing.assert_close(batch.action, column + torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(batch.next_obs, column + torch.tensor([0.03, 0.04]))
    assert torch.equal(batch.terminated, (n % 2 == 1).float())


@pytest.mark.parametrize("prioritized", [True, False])
def test_a_sample_has_its_parts_from_the_same_transition(prioritized: bool) -> None:
    buffer = make_buffer(buffer_size=20, num_envs=2, prioritized_replay=prioritized)
    for n in range(0, 30, 2):
        add(buffer, n, n + 1)
    index, batch = buffer.sample(500, 1.0)
    draws = 2 if prioritized else 1
    assert index.shape == batch.weight.shape == (draws, 500)
    assert batch.obs.shape == (draws, 500, 2, 2) and batch.action.shape == (draws, 500, 2, 3)
    assert_aligned(batch)
    assert batch.reward[..., 0].unique().tolist() == list(range(10, 30))
    assert torch.equal(batch.weight, torch.ones(draws, 500))


def test_uniform_samples_are_uniform_over_what_is_stored() -> None:
    buffer = filled(40, prioritized_replay=False)
    index, _ = buffer.sample(40_000, 1.0)
    counts = torch.bincount(index[0], minlength=50)
    assert not counts[40:].any() and chisquare(counts[:40]).pvalue > 1e-3


def test_room_for_millions_of_transitions_is_taken_only_as_they_come() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    buffer = make_buffer(pixels=3072, buffer_size=1_000_000, prioritized_replay=False)
    assert resident() - before < 20e6 < sum(part.nbytes for part in buffer.parts.values())


def test_images_are_kept_in_bytes() -> None:
    buffer = make_buffer(pixels=4)
    obs = np.random.default_rng(0).random((1, 2, 6)).astype(np.float32)
    nothing = np.zeros((1, 2), np.float32)
    action = torch.zeros(1, 2, 3)
    buffer.add(maddpg.Transition(obs, action, nothing, nothing, nothing + 1, 1 - obs, nothing[0]))
    assert buffer.parts["obs_image"].dtype == torch.uint8
    _, batch = buffer.sample(1, 1.0)
    for part, expected in (batch.obs, obs), (batch.next_obs, 1 - obs):
        torch.testing.assert_close(part[0, 0, :, :2], torch.tensor(expected[0, :, :2]))
        torch.testing.assert_close(
            part[0, 0, :, 2:], torch.tensor(expected[0, :, 2:]), atol=0.5 / 255 + 1e-6, rtol=0
        )


def test_a_file_holds_no_room_that_is_still_free(tmp_path: Path) -> None:
    torch.save(filled(100, buffer_size=100_000).state_dict(), tmp_path / "buffer.pt")
    assert (tmp_path / "buffer.pt").stat().st_size < 50_000


@pytest.mark.parametrize("variant", ["proportional", "rank"])
def test_a_buffer_goes_on_from_a_file_as_if_it_had_never_been_away(
    variant: str, tmp_path: Path
) -> None:
    buffer, other = (make_buffer(per_variant=variant, pixels=0) for _ in range(2))
    for n in range(61):
        add(buffer, n)
        if n % 20 == 19:
            index, _ = buffer.sample(10, 1.0)
            priorities(buffer).refresh(index, torch.randn(2, 10))
            priorities(buffer).sort()
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    other.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    samples = []
    for each_buffer in buffer, other:
        add(each_buffer, 61)
        torch.manual_seed(1)
        _, batch = each_buffer.sample(10, 1.0)
        index, _ = each_buffer.sample(10, 1.0)
        priorities(each_buffer).refresh(index, torch.linspace(0, 1, 20).view(2, 10))
        samples.append([*batch, *each_buffer.sample(100, 0.5)[1]])
    assert all(torch.equal(a, b) for a, b in zip(*samples))
