"""Build the crossing: a SUMO network, its traffic, and a picture of the ground.

    python scenarios/intersection-4lane/build.py FOLDER

SUMO's netconvert makes map.net.xml of the three crossing.*.xml files beside this one. The traffic
is light.rou.xml and dense.rou.xml. ground.npy [H, W] shows the crossing from above, north up, four
pixels a metre, the origin in its middle: 0 is grass, 1 a road, 2 a line between lanes, 3 the line
between the directions.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ARMS = ("north", "east", "south", "west")  # clockwise
TURNS = {"left": 1, "straight": 2, "right": 3}  # arms to count on, clockwise, to where one leaves

# Vehicles an hour from each arm to each other one, and vehicles that are there from the beginning:
# an episode lasts some ten seconds, in which a flow alone would bring hardly any.
TRAFFIC = {"light": (60, 4), "dense": (240, 12)}

HALF, PER_METRE = 75, 4  # the ground is drawn from -75 to 75 m in both directions


def routes(flow: int, placed: int) -> str:
    """The traffic in SUMO's own format; all that is drawn at random comes from SUMO's seed."""
    pairs = [(arm, ARMS[(i + k) % 4]) for k in (2, 1, 3) for i, arm in enumerate(ARMS)]
    lines = [f'<vType id="car" sigma="0.5" speedFactor="normc(1,0.1,0.7,1.3)" length="{3.68}"/>']
    for begin, end in pairs:
        lines.append(f'<route id="{begin}-{end}" edges="{begin}-in {end}-out"/>')
    lane, speed = 'departLane="best"', 'departSpeed="max"'
    for begin, end in pairs[:placed]:
        lines.append(
            f'<vehicle id="car-{begin}-{end}" type="car" route="{begin}-{end}" depart="0" {lane} '
            f'departPos="random" {speed}/>'
        )
    for begin, end in pairs:
        lines.append(
            f'<flow id="car-flow-{begin}-{end}" type="car" route="{begin}-{end}" begin="0" '
            f'end="3600" probability="{flow / 3600:.5f}" {lane} {speed}/>'
        )
    return "<routes>\n    " + "\n    ".join(lines) + "\n</routes>\n"


def ground(net: str) -> np.ndarray:
    """The picture of the ground, from the lanes' shapes and widths in a SUMO network."""
    axis = np.arange(-HALF, HALF, 1 / PER_METRE) + 0.5 / PER_METRE
    x, y = np.meshgrid(axis, -axis)  # the first row is the northern end
    picture = np.zeros(x.shape, np.uint8)
    lanes = re.findall(r'<lane id="(:?)[^"]*_(\d+)"[^>]*?length="[^"]*"[^>]*?shape="([^"]*)"', net)
    nearest = [np.full(x.shape, np.inf) for _ in lanes]
    for distance, (_, _, shape) in zip(nearest, lanes):
        points = [tuple(map(float, point.split(",")[:2])) for point in shape.split()]
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            length = np.hypot(x1 - x0, y1 - y0)
            if length > 0:
                along = (x - x0) * (x1 - x0) / length + (y - y0) * (y1 - y0) / length
                across = (x - x0) * (y1 - y0) / length - (y - y0) * (x1 - x0) / length
                beyond = np.maximum(np.maximum(-along, along - length), 0)
                np.minimum(distance, np.hypot(across, beyond), out=distance)
        picture[distance <= WIDTH / 2 + 0.2] = 1
    arms = [(int(index), distance) for distance, (inner, index, _) in zip(nearest, lanes)]
    inside = np.min([d for d, (inner, _, _) in zip(nearest, lanes) if inner], axis=0) < WIDTH / 2
    for value, wanted in (2, {0, 1}), (3, {1}):
        near = [d for index, d in arms if index in wanted]
        close = sum((abs(d - WIDTH / 2) < 0.15).astype(int) for d in near)
        picture[(close >= 2) & ~inside & (picture == 1 if value == 2 else picture > 0)] = value
    return picture


WIDTH = 3.2  # of a lane, SUMO's own


def main() -> None:
    here, folder = Path(__file__).parent, Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    import sumo  # the package eclipse-sumo

    parts = [f"--{kind}-files={here}/crossing.{kind[:3]}.xml" for kind in ("node", "edge")]
    parts = [
        f"--node-files={here / 'crossing.nod.xml'}",
        f"--edge-files={here / 'crossing.edg.xml'}",
        f"--connection-files={here / 'crossing.con.xml'}",
        f"--output-file={folder / 'map.net.xml'}",
        "--offset.disable-normalization",  # the origin stays in the middle
        "--no-turnarounds",
    ]
    netconvert = Path(sumo.SUMO_HOME) / "bin" / "netconvert"
    done = subprocess.run([str(netconvert), *parts], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"netconvert: {done.stderr}")
    for name, numbers in TRAFFIC.items():
        (folder / f"{name}.rou.xml").write_text(routes(*numbers))
    np.save(folder / "ground.npy", ground((folder / "map.net.xml").read_text()))


if __name__ == "__main__":
    main()
