"""A driver by rule, a baseline for learned policies: it goes if that is safe, and brakes if not.

It sees what an agent sees, and knows two of the four actions. It assumes that the others keep
their velocity for five seconds, and that its own car follows its lane, either speeding up or
braking, and computes how near they come to each other.
"""

from __future__ import annotations

import numpy as np

SAFE = 3.5  # metres between the centres of two cars, which are 3.7 m long and 1.5 m wide
TIMES = np.arange(0.1, 5.01, 0.1)  # seconds from now
SPEEDING_UP, LIMIT, BRAKING = 2.5, 13.0, 4.0  # m/s², m/s, m/s²
KEEP_LANE, SLOW_DOWN = 0, 1


def actions(obs: list[list[float]]) -> list[int]:
    """Actions [N] for what N agents observe [N, O]."""
    return [action(np.array(agent)) for agent in obs]


def action(obs: np.ndarray) -> int:
    """The action for an observation; crossing.py (look) says what its numbers are."""
    speed, turns = 15 * obs[3], obs[5:25]
    cars = obs[25:65].reshape(8, 5)
    cars = cars[cars[:, 0] < 1]  # without the empty rows
    places, velocities = 50 * cars[:, 1:3], 15 * cars[:, 3:] + [speed, 0]  # forward, to the right
    behind = (places[:, 0] < -2) & (abs(places[:, 1]) < 2.5)  # in the same lane: these keep away
    places, velocities = places[~behind], velocities[~behind]
    others = places[:, None] + velocities[:, None] * TIMES[:, None]  # [cars, times, 2]

    def nearest(speeds: np.ndarray) -> float:
        own = along(turns, np.cumsum(speeds) * 0.1)
        return np.linalg.norm(others - own, axis=2).min(initial=np.inf)

    go = nearest(np.minimum(speed + SPEEDING_UP * TIMES, LIMIT))
    stop = nearest(np.maximum(speed - BRAKING * TIMES, 0))
    return KEEP_LANE if go > SAFE or go > stop else SLOW_DOWN


def along(turns: np.ndarray, metres: np.ndarray) -> np.ndarray:
    """The lane's points [times, 2] after so many metres [times]; turns: its headings per metre."""
    steps = np.stack([np.cos(turns), -np.sin(turns)], axis=1)
    points = np.vstack([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    i = np.minimum(metres.astype(int), len(turns) - 1)
    return points[i] + (metres - i)[:, None] * steps[i]
