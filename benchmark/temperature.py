"""Where SAC's temperature grows without bound: its actor and temperature alone, in one dimension.

    python benchmark/temperature.py                       the table in docs/sac_continuous.md

The policy is one Gaussian behind a tanh, with no observation, and the value is 5 a. It starts far
outside, where a policy may get to when the critics err. Two densities and two clamps of log σ are
compared: sac_continuous.py has the exact density and a clamp that passes the gradient on; others
have 1e-6 in the logarithm (epsilon), and a plain clamp.
"""

from __future__ import annotations

import argparse
import itertools
import math

import torch
import torch.nn.functional as F

RATE, BATCH, TARGET_ENTROPY = 3e-3, 256, -1.0
DENSITIES, CLAMPS = ("exact", "epsilon"), ("plain", "passing")


def settle(density: str, clamp: str, start: float, updates: int) -> tuple[float, float]:
    """The temperature and the entropy after so many updates, from the mean start."""
    torch.manual_seed(0)
    mean, log_std, log_alpha = (
        torch.tensor(value, requires_grad=True) for value in (start, -1.0, math.log(0.1))
    )
    actor_optimizer = torch.optim.Adam([mean, log_std], lr=RATE)
    alpha_optimizer = torch.optim.Adam([log_alpha], lr=RATE)
    for _ in range(updates):
        bounded = log_std.clamp(-20, 2)
        if clamp == "passing":
            bounded = log_std + (bounded - log_std).detach()
        xi = torch.randn(BATCH)
        u = mean + bounded.exp() * xi
        action = torch.tanh(u)
        if density == "exact":
            squash = 2 * (math.log(2) - u - F.softplus(-2 * u))
        else:
            squash = torch.log(1 - action.square() + 1e-6)
        log_prob = -0.5 * xi.square() - bounded - 0.5 * math.log(2 * math.pi) - squash
        alpha = log_alpha.detach().exp()

        actor_optimizer.zero_grad()
        (alpha * log_prob - 5 * action).mean().backward()
        actor_optimizer.step()
        alpha_optimizer.zero_grad()
        (-log_alpha * (log_prob.detach() + TARGET_ENTROPY)).mean().backward()
        alpha_optimizer.step()
    return alpha.item(), -log_prob.mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Where SAC's temperature grows without bound.")
    parser.add_argument("--updates", type=int, default=12_000)
    updates = parser.parse_args().updates
    print("| density | clamp | mean from 20: alpha, entropy | mean from 40: alpha, entropy |")
    print("|---|---|---|---|")
    for density, clamp in itertools.product(DENSITIES, CLAMPS):
        cells = [settle(density, clamp, start, updates) for start in (20.0, 40.0)]
        numbers = " | ".join(f"{alpha:.2g}, {entropy:.1f}" for alpha, entropy in cells)
        print(f"| {density} | {clamp} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
