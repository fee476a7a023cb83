"""The replay buffer. The block is shared, so one script stands for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import make_args
from scipy.stats import chisquare

import ddpg_continuous as ddpg


def make_buffer(buffer_size: int, num_envs: int = 1) -> ddpg.ReplayBuffer:
    return ddpg.ReplayBuffer(2, 3, make_args(ddpg, buffer_size=buffer_size, num_envs=num_envs))


def add(buffer: ddpg.ReplayBuffer, *numbers: int) -> None:
    """Store one transition per environment; each part of it shows its number."""
    n = np.array(numbers, np.float64)
    obs, action, next_obs = (np.add.outer(n, x) for x in ([0.1, 0.2], [0.3, 0.4, 0.5], [0.7, 0.8]))
    buffer.add(obs, torch.as_tensor(action), n + 0.6, n % 2 == 1, next_obs)


def assert_aligned(batch: ddpg.Batch) -> None:
    """Every row holds the parts of one transition."""
    n = batch.obs[:, :1].floor()
    torch.testing.assert_close(batch.obs, n + torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(batch.action, n + torch.tensor([0.3, 0.4, 0.5]))
    torch.testing.assert_close(batch.reward, n[:, 0] + 0.6)
    torch.testing.assert_close(batch.terminated, n[:, 0] % 2)
    torch.testing.assert_close(batch.next_obs, n + torch.tensor([0.7, 0.8]))


def numbers(buffer: ddpg.ReplayBuffer) -> list[int]:
    return buffer.reward.floor().int().tolist()


def test_a_full_buffer_overwrites_its_oldest_transitions() -> None:
    buffer = make_buffer(5)
    for n in range(1, 8):
        add(buffer, n)
    assert numbers(buffer) == [6, 7, 3, 4, 5]
    assert not (buffer.sample(500).reward < 3).any()


def test_a_step_stores_a_row_for_every_environment() -> None:
    buffer = make_buffer(10, num_envs=3)  # rounded down, so that no step is split
    for n in range(0, 15, 3):
        add(buffer, n, n + 1, n + 2)
    assert buffer.capacity == 9
    assert numbers(buffer) == [9, 10, 11, 12, 13, 14, 6, 7, 8]


def test_a_sample_has_its_parts_from_the_same_transition() -> None:
    buffer = make_buffer(20, num_envs=2)
    for n in range(0, 30, 2):
        add(buffer, n, n + 1)
    batch = buffer.sample(500)
    assert batch.obs.shape == (500, 2) and batch.reward.shape == (500,)
    assert_aligned(batch)


def test_samples_are_uniform_over_what_is_stored() -> None:
    buffer = make_buffer(100)
    for n in range(40):
        add(buffer, n)
    sampled = buffer.sample(40_000).reward.floor().long()
    counts = torch.bincount(sampled, minlength=100)
    assert not counts[40:].any()
    assert chisquare(counts[:40]).pvalue > 1e-3
    follows = (sampled[1:] == (sampled[:-1] + 1) % 40).float().mean().item()
    assert abs(follows - 1 / 40) < 0.005  # samples are independent


def test_a_buffer_loaded_from_a_file_behaves_as_the_saved_one(tmp_path: Path) -> None:
    buffer, other = make_buffer(8), make_buffer(8)
    for n in range(11):
        add(buffer, n)
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    other.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    for each in buffer, other:
        add(each, 11)
    assert numbers(other) == numbers(buffer) == [8, 9, 10, 11, 4, 5, 6, 7]
    torch.manual_seed(1)
    expected = buffer.sample(100)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(other.sample(100), expected))
