"""benchmark/bias.py: the critic's value of an evaluation's states, beside the returns from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import curves, make_args, rows, weights
from probes import Probe
from test_benchmark import load

import td3_continuous as td3

bias = load("bias")


class Ends(Probe):
    """Ten rewards of 1."""

    length = 10


class Cut(Probe):
    """A hundred rewards of 1, and a time limit."""

    length, end = 100, "truncated"


class CutEarly(Cut):
    length = 43


def columns(probe: Any, register: Any, **changes: Any) -> tuple[float, float]:
    """The two columns, of a critic whose value is 7 everywhere."""
    args = make_args(td3, env_id=register(probe), **changes)
    agent = td3.Agent(1, 1, args)
    critics: Any = agent.critics
    last = critics[0].net[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 7.0)
    found = bias.bias(agent, td3.make_env(args), args, 0)
    assert list(found) == ["mean_value", "mean_discounted_return"]
    return found["mean_value"], found["mean_discounted_return"]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_all_states_of_an_episode_that_terminates_count(gamma: float, register: Any) -> None:
    value, found = columns(Ends, register, gamma=gamma)
    expected = np.mean([sum(gamma**k for k in range(left)) for left in range(1, 11)])
    assert value == 7 and found == pytest.approx(expected)


def test_states_near_a_time_limit_do_not_count(register: Any) -> None:
    _, found = columns(Cut, register, gamma=0.9)
    # 0.9 ** 44 is 0.0097, so the states with 44 to 100 steps left.
    expected = np.mean([(1 - 0.9**left) / 0.1 for left in range(44, 101)])
    assert found == pytest.approx(expected) and 9.9 < found < 10
    assert math.isnan(columns(CutEarly, register, gamma=0.9)[1]), "no state is far enough from it"


def test_the_run_is_that_of_the_script_with_two_more_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = td3.train(make_args(td3, run_dir=tmp_path / "plain", gamma=0.9))
    monkeypatch.setattr(td3, "Run", bias.Run)
    run_dir = td3.train(make_args(td3, run_dir=tmp_path / "bias", gamma=0.9))
    old, new = weights(td3, plain), weights(td3, run_dir)
    assert all(torch.equal(old[name], new[name]) for name in old)
    both = rows(run_dir / "evaluations.csv")
    for row in both:
        assert float(row.pop("mean_discounted_return")) < 0 and float(row.pop("mean_value"))
    assert [both, rows(run_dir / "episodes.csv")] == curves(plain)
