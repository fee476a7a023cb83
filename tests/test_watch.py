"""benchmark/watch.py: a window shows what --evaluate plays."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_args
from test_benchmark import load
from test_export import make, save

watch: Any = load("watch")
pygame: Any = watch.pygame


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SDL's driver that needs no screen."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    yield
    pygame.display.quit()


@pytest.mark.parametrize("name", ["ddpg_continuous", "a2c_lstm_atari", "ppo_smarts"])
def test_the_episode_that_is_shown_is_the_evaluation_s(name: str, tmp_path: Path) -> None:
    script: Any = importlib.import_module(name)
    greedy = {} if name == "ddpg_continuous" else {"greedy_eval": True}
    args = make_args(script, eval_episodes=1, seed=3, **greedy)
    _, agent = make(script, args)
    _, args, checkpoint = watch.read(save(script, agent, args, tmp_path / "run"))

    frames: list[np.ndarray] = []
    shown = watch.watched(script, args, checkpoint, lambda fps: frames.append)
    assert shown == script.play(args, checkpoint)
    assert len(frames) == shown["mean_length"]
    assert all(frame.shape == frames[0].shape and frame.shape[2] == 3 for frame in frames)
    assert (frames[0] != frames[-1]).any()


def test_a_window_enlarges_small_frames_and_ends_when_it_is_closed(screen: None) -> None:
    frame = np.zeros((210, 160, 3), np.uint8)
    frame[0, 1] = 255, 0, 0  # the second pixel of the first row
    window = watch.Window("Pong", 1000)
    window.show(frame)
    surface = pygame.display.get_surface()
    assert surface.get_size() == (320, 420)
    assert [tuple(surface.get_at((x, 1)))[:3] for x in (1, 2, 3, 4)] == [
        (0, 0, 0),
        (255, 0, 0),
        (255, 0, 0),
        (0, 0, 0),
    ]
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    with pytest.raises(SystemExit) as ending:
        window.show(frame)
    assert not ending.value.code


@pytest.mark.parametrize("driver", ["offscreen", "none-such"])
def test_without_a_screen_one_sentence_says_so(
    driver: str, screen: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", driver)
    with pytest.raises(SystemExit) as ending:
        watch.Window("Pong", 60)
    assert ending.value.code == 2
    assert "there is no screen" in capsys.readouterr().err


def test_every_episode_has_a_line(
    screen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script: Any = importlib.import_module("ppo_smarts")
    args = make_args(script)
    _, agent = make(script, args)
    run_dir = save(script, agent, args, tmp_path / "run")
    words = ["watch.py", str(run_dir), "--episodes", "2", "--seed", "5", "--speed", "1000"]
    monkeypatch.setattr(sys, "argv", words)
    watch.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if "return" in line]
    assert [line.split(":")[0] for line in lines] == ["seed 5", "seed 6"]
