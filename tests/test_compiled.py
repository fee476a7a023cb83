"""The compiled update, against the same method uncompiled."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import torch
from conftest import continuous_only, make_args, random_batch
from torch import Tensor

import ddpg_continuous as ddpg

OBS_DIM, ACTION_DIM, SIZE = 10, 2, 32


def parameters(agent: Any) -> list[Tensor]:
    return [p.detach().clone() for p in agent.parameters()]


@continuous_only
def test_compiled_updates_equal_uncompiled_ones_and_use_annealed_learning_rates(
    script: ModuleType,
) -> None:
    torch._dynamo.reset()
    args = make_args(script, compile=True)
    eager = script.Agent(OBS_DIM, ACTION_DIM, args)
    graph = copy.deepcopy(eager)
    compiled = script.compiled(graph.update, args)
    assert compiled != graph.update, "there is no C++ compiler"

    def update(seed: int) -> None:
        batch = random_batch(script, SIZE, OBS_DIM, ACTION_DIM)
        delay = [seed % 2 == 1] if script.__name__ == "td3_continuous" else []
        torch.manual_seed(seed)  # the same noise for both
        expected = eager.update(batch, *delay)
        torch.manual_seed(seed)
        torch.testing.assert_close(compiled(batch, *delay), expected, atol=1e-5, rtol=1e-5)

    start = parameters(graph)
    for seed in range(10):
        if seed == 5:
            for agent in eager, graph:
                agent.anneal_lr(args, args.total_timesteps // 2)
        update(seed)
    assert max((p - q).abs().max() for p, q in zip(parameters(graph), start)) > 1e-3
    torch.testing.assert_close(graph.state_dict(), eager.state_dict(), atol=1e-5, rtol=0)

    for agent in eager, graph:  # at the end of the run the learning rates are 0
        agent.anneal_lr(args, args.total_timesteps)
    online = [name for name, p in graph.named_parameters() if p.requires_grad]
    before = {name: graph.get_parameter(name).detach().clone() for name in online}
    update(11)
    assert all(torch.equal(graph.get_parameter(name), before[name]) for name in online)


def test_an_agent_compiled_later_keeps_its_own_settings() -> None:
    torch._dynamo.reset()
    batch = random_batch(ddpg, SIZE, OBS_DIM, ACTION_DIM)
    for gamma in 0.0, 0.9:
        args = make_args(ddpg, compile=True, gamma=gamma)
        eager = ddpg.Agent(OBS_DIM, ACTION_DIM, args)
        graph = copy.deepcopy(eager)
        update = ddpg.compiled(graph.update, args)
        torch.testing.assert_close(update(batch), eager.update(batch), atol=1e-5, rtol=1e-5)
