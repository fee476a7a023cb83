"""What a spectator of race.py sees: an MP4 file, or a window.

Film and Window are called after every step of a race with the simulator, the runners and the time
in seconds. The camera follows the runners that are on their feet.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pybullet

if TYPE_CHECKING:
    from race import Runner

LANE = 2.0  # width of a lane [m]; an ant is 1.8 m wide
STEP = 0.0165  # time between two calls [s]
EVERY, WIDTH, HEIGHT = 2, 640, 360  # of a film: steps between frames, and pixels
YAW, PITCH = -35, -25  # direction in which the camera looks [degrees]
ABOVE = 1.7  # height of the names [m]


class Film:
    """An MP4 file, with the name of each robot and its distance over its head."""

    def __init__(self, path: Path, length: float) -> None:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

        self.length, self.steps = length, 0
        self.file = FFMPEG_VideoWriter(str(path), (WIDTH, HEIGHT), 1 / (STEP * EVERY))

    def __call__(self, simulator: Any, runners: list[Runner], now: float) -> None:
        if self.steps == 0:
            draw_lanes(simulator, len(runners), self.length)
        if self.steps % EVERY == 0:
            self.file.write_frame(picture(simulator, runners, now))
        self.steps += 1

    def close(self) -> None:
        self.file.close()


class Window:
    """PyBullet's window, in real time; the mouse turns the camera."""

    def __init__(self, length: float) -> None:
        self.length = length

    def __call__(self, simulator: Any, runners: list[Runner], now: float) -> None:
        target, distance = focus(runners)
        if now == 0:
            draw_lanes(simulator, len(runners), self.length)
            for runner in runners:
                simulator.addUserDebugText(runner.name, (0, runner.y, ABOVE), (0, 0, 0))
            simulator.resetDebugVisualizerCamera(distance, YAW, PITCH, target)
        yaw, pitch = simulator.getDebugVisualizerCamera()[8:10]
        simulator.resetDebugVisualizerCamera(distance, yaw, pitch, target)
        time.sleep(STEP)


def focus(runners: list[Runner]) -> tuple[tuple[float, float, float], float]:
    """The point amid the runners on their feet, to look at, and how far from it to stand [m]."""
    xs = [r.x for r in runners if not r.down] or [r.x for r in runners]
    middle = (runners[0].y + runners[-1].y) / 2
    return ((max(xs) + min(xs)) / 2, middle, 0.6), 4 + max(xs) - min(xs) - middle


def draw_lanes(simulator: Any, lanes: int, length: float) -> None:
    """Draw the lines of the lanes, the start and the finish; nothing can touch them."""
    middle = (1 - lanes) * LANE / 2
    across, along = (0.06, lanes * LANE / 2, 0.005), (length / 2, 0.03, 0.005)  # half sizes
    boxes = [((x, middle, 0.01), across) for x in (0.0, length)]
    boxes += [((length / 2, LANE * (0.5 - i), 0.01), along) for i in range(lanes + 1)]
    for place, size in boxes:
        color = (0.2, 0.2, 0.3, 1)
        shape = simulator.createVisualShape(pybullet.GEOM_BOX, halfExtents=size, rgbaColor=color)
        simulator.createMultiBody(0, -1, shape, place)  # no mass, no collision shape


def picture(simulator: Any, runners: list[Runner], now: float) -> np.ndarray:
    """The picture of this moment: [HEIGHT, WIDTH, 3] in uint8."""
    from PIL import Image, ImageDraw, ImageFont  # moviepy needs it as well

    target, distance = focus(runners)
    view = simulator.computeViewMatrixFromYawPitchRoll(target, distance, YAW, PITCH, 0, 2)
    projection = simulator.computeProjectionMatrixFOV(45, WIDTH / HEIGHT, 0.1, 100)
    renderer = pybullet.ER_TINY_RENDERER  # on the CPU, without a screen
    rgba = simulator.getCameraImage(WIDTH, HEIGHT, view, projection, renderer=renderer)[2]
    image = Image.fromarray(np.reshape(rgba, (HEIGHT, WIDTH, 4)).astype(np.uint8)[..., :3])
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    draw.text((12, 8), f"{now:.1f} s", "black", font)
    # OpenGL's matrices, [4, 4] by columns: they take a point to the picture's [-1, 1] x [-1, 1].
    to_picture = np.reshape(projection, (4, 4)).T @ np.reshape(view, (4, 4)).T
    for runner in runners:
        x, y, _, w = to_picture @ [runner.x, runner.y, ABOVE, 1]
        place = WIDTH * (1 + x / w) / 2, HEIGHT * (1 - y / w) / 2
        so_far = f"{round(runner.distance, 1) + 0:.1f} m"  # + 0 takes the sign off a -0
        at_end = f"{runner.result}, {runner.time:.1f} s"
        text = f"{runner.name}: {at_end if runner.result else so_far}"
        draw.text(place, text, "black", font, "ms", stroke_width=2, stroke_fill="white")
    return np.asarray(image)
