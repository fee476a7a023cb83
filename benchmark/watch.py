"""Watch the best policy of a run in a window, at the environment's own speed.

    pip install -r benchmark/requirements.txt
    python benchmark/watch.py runs/RUN
    python benchmark/watch.py runs/RUN --seed 7 --episodes 3 --speed 0.5

It plays one evaluation episode for each seed from --seed on. On Atari it samples other actions than
--evaluate does, unless the run has --greedy-eval. Closing the window or pressing Escape ends it.
The environment draws every frame and pygame shows it, in the same way for all environments.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pygame
import torch.nn.functional as F
from export import fail, read
from torch import Tensor

HEIGHT = 480  # of a window, roughly [pixels]; smaller frames are enlarged


class Window:
    """A window that shows frames [H, W, 3] of type uint8, fps of them per second."""

    def __init__(self, title: str, fps: float) -> None:
        self.title, self.fps, self.clock = title, fps, pygame.time.Clock()
        with contextlib.suppress(pygame.error):
            pygame.display.init()
        # Without a screen, SDL fails or draws offscreen, where nobody sees it.
        if not pygame.display.get_init() or pygame.display.get_driver() == "offscreen":
            fail("there is no screen to open a window on; --capture-video writes a film instead")

    def show(self, frame: Any) -> None:
        """Show a frame, and wait until it is time for the next one."""
        window = pygame.display.get_surface() or self.open(*frame.shape[:2])
        picture = pygame.surfarray.make_surface(np.swapaxes(frame, 0, 1))
        pygame.transform.scale(picture, window.get_size(), window)
        pygame.display.flip()
        for event in pygame.event.get():
            escape = event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE
            if event.type == pygame.QUIT or escape:
                raise SystemExit
        self.clock.tick(self.fps)

    def open(self, height: int, width: int) -> pygame.Surface:
        """Open a window for frames of this size, enlarged if they are small."""
        factor = max(round(HEIGHT / height), 1)
        pygame.display.set_caption(self.title)
        return pygame.display.set_mode((width * factor, height * factor))


def watched(script: Any, args: Any, checkpoint: dict[str, Any], window: Callable) -> dict[str, Any]:
    """Play one episode; returns its row of evaluations.csv.

    window(fps) returns a function that shows a frame [H, W, 3].
    """
    step = checkpoint["run"]["env_step"]
    if hasattr(script, "AtariGames"):
        agent, show = script.Agent(script.AtariGames(args, 1).num_actions, args), window(15)
        camera = script.AtariGames(args, 1, colour=True)
        camera.begin(args.seed, 10_000, step)
        agent.load_state_dict(checkpoint["agent"])
        player = agent.player(1)

        def play_atari(obs: Tensor) -> Tensor:
            show(camera.obs[0, ..., -1].numpy())
            logits = player(obs)
            sampled = logits.softmax(1).multinomial(1).squeeze(1)
            action = logits.argmax(1) if args.greedy_eval else sampled
            camera.step(action)
            return F.one_hot(action, logits.shape[1]) * 1e9  # logits: evaluate takes this action

        return script.evaluate(play_atari, args, step)

    env = script.make_env(args, film=True)
    several = hasattr(script, "MultiAgentEnv")
    agent = script.Agent(*([env] if several else script.dimensions(env)), args)
    agent.load_state_dict(checkpoint["agent"])
    policy = agent.eval_action if several else agent.actor
    fps = env.fps if several else env.metadata.get("render_fps", 30) / args.action_repeat
    show = window(fps)

    def play(obs: Tensor) -> Tensor:
        show((env.env if several else env).render())
        return policy(obs)

    try:
        return script.evaluate(play, env, args, step)
    finally:
        env.close()


def main() -> None:
    """Play as the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder, or a .pt file")
    parser.add_argument("--episodes", type=int, default=10, help="how many episodes (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first one (default: 1)")
    parser.add_argument("--speed", type=float, default=1.0, help="2 is twice as fast (default: 1)")
    flags = parser.parse_args()
    if flags.episodes < 1 or not flags.speed > 0:
        fail("--episodes must be at least 1, and --speed above 0")
    script, args, checkpoint = read(flags.run)
    script.start_torch(args)
    args.eval_episodes, args.capture_video = 1, False
    window = lambda fps: Window(f"{args.env_id}: {flags.run}", fps * flags.speed).show  # noqa: E731
    for args.seed in range(flags.seed, flags.seed + flags.episodes):
        result = watched(script, args, checkpoint, window)
        numbers = "return {mean_return:.1f}, length {mean_length:.0f}".format(**result)
        print(f"seed {args.seed}: {numbers}")


if __name__ == "__main__":
    main()
