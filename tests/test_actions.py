"""--actions: three actions a game, as the study of the recurrent actor-critic had them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import atari_only, make_args

pytestmark = atari_only
THREE = ("NOOP", "RIGHTFIRE", "LEFTFIRE")


def start(script: ModuleType, game: str, actions: tuple[str, ...]) -> Any:
    """One game, without a time limit."""
    changes: dict[str, Any] = {"full_action_space": game == "Breakout", "sticky_actions": 0.0}
    changes |= {"env_id": f"ALE/{game}-v5", "max_episode_frames": 108_000, "actions": actions}
    games = script.AtariGames(make_args(script, **changes), 1, colour=True)
    games.begin(3)
    return games


def paddle(games: Any, game: str) -> float:
    """Where the paddle is in the newest frame: from the top in Pong, from the left in Breakout."""
    frame = games.obs[0, ..., -1]  # [210, 160, 3]
    if game == "Pong":  # the green one, on the right
        found = (frame[34:194] == torch.tensor([92, 186, 92])).all(-1).any(1)
    else:
        found = (frame[189:193, 8:152] == torch.tensor([200, 72, 72])).all(-1).any(0)
    assert found.any()
    return float(found.nonzero().float().mean())


@pytest.mark.parametrize(("game", "sign"), [("Pong", -1), ("Breakout", 1)])
def test_three_actions_move_the_paddle_up_and_down_or_right_and_left(
    game: str, sign: int, script: ModuleType
) -> None:
    for actions in THREE, ("NOOP", "RIGHT", "LEFT"):
        games, places = start(script, game, actions), []
        assert games.num_actions == 3
        for action in 1, 2:  # from one end to the other
            for _ in range(8):
                games.step(torch.tensor([action]))
            places.append(paddle(games, game))
        assert (places[0] - places[1]) * sign > 40, places


def test_after_a_lost_life_a_ball_needs_the_fire_button(script: ModuleType) -> None:
    """The reason why Breakout's three actions hold it."""
    lives = []
    for actions in THREE, ("NOOP", "RIGHT", "LEFT"):
        games, random = start(script, "Breakout", actions), np.random.default_rng(0)
        for _ in range(800):
            _, terminated, *_ = games.step(torch.tensor([random.integers(3)]))
            if terminated.any():
                break
        lives.append(int(games.lives[0]))
    assert lives == [0, 4]
