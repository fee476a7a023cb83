"""Build the crossing: a SUMO network, its traffic, and a picture of the ground.

    python scenarios/intersection-4lane/build.py FOLDER

SUMO's netconvert makes map.net.xml of the three crossing.*.xml files beside this one. The traffic
is light.rou.xml and dense.rou.xml. ground.npy [720, 720] shows the crossing from above, north up,
four pixels a metre, the origin in its middle: 0 is grass, 1 a road, 2 a line between two lanes of
one direction, 3 the line between the directions. crossing.py does all this at its first use.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ARMS = ("north", "east", "south", "west")  # clockwise

# Vehicles an hour from each arm to every other, and vehicles in all that are there from the
# beginning: an episode lasts 10 to 40 seconds, in which a light flow alone would bring few.
TRAFFIC = {"light": (60, 4), "dense": (240, 12)}
LANE = 3.2  # width of a lane [m], SUMO's own


def routes(flow: int, placed: int) -> str:
    """The traffic in SUMO's own format; all that is random in it follows from SUMO's seed."""
    pairs = [(arm, ARMS[(i + on) % 4]) for on in (2, 1, 3) for i, arm in enumerate(ARMS)]
    lines = ['<vType id="car" sigma="0.5" speedFactor="normc(1,0.1,0.7,1.3)" length="3.68"/>']
    for begin, end in pairs:
        lines.append(f'<route id="{begin}-{end}" edges="{begin}-in {end}-out"/>')
    common = 'type="car" route="{0}-{1}" departLane="best" departSpeed="max"'
    for begin, end in pairs[:placed]:
        rest = common.format(begin, end)
        lines.append(f'<vehicle id="car-{begin}-{end}" depart="0" departPos="random" {rest}/>')
    for begin, end in pairs:
        rest = f'end="3600" probability="{flow / 3600:.5f}" {common.format(begin, end)}'
        lines.append(f'<flow id="car-flow-{begin}-{end}" begin="0" {rest}/>')
    return "<routes>\n    " + "\n    ".join(lines) + "\n</routes>\n"


def ground(network: str) -> np.ndarray:
    """The picture of the ground, from the lanes in a SUMO network."""
    axis = (np.arange(720) + 0.5) / 4 - 90
    x, y = np.meshgrid(axis, -axis)  # the first row is the northern end
    picture = np.zeros(x.shape, np.uint8)
    for shape in re.findall(r'<lane [^>]*shape="([^"]*)"', network):
        points = [complex(*map(float, point.split(",")[:2])) for point in shape.split()]
        for begin, end in zip(points, points[1:]):
            # In axes of this piece of the lane: how far along it, and how far beside it.
            away = (x + 1j * y - begin) * np.exp(-1j * np.angle(end - begin))
            beyond = away.real - np.clip(away.real, 0, abs(end - begin))
            picture[np.hypot(beyond, away.imag) < LANE / 2 + 0.2] = 1
    arm = np.maximum(abs(x), abs(y)) > 14.4  # where the lanes of the arms begin
    beside = np.minimum(abs(x), abs(y))
    picture[arm & (abs(beside - LANE) < 0.15)] = 2
    picture[arm & (beside < 0.15)] = 3
    return picture


def main() -> None:
    import sumo  # of the package eclipse-sumo

    here, folder = Path(__file__).parent, Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        Path(sumo.SUMO_HOME) / "bin" / "netconvert",
        f"--node-files={here / 'crossing.nod.xml'}",
        f"--edge-files={here / 'crossing.edg.xml'}",
        f"--connection-files={here / 'crossing.con.xml'}",
        f"--output-file={folder / 'map.net.xml'}",
        "--offset.disable-normalization",  # keep the origin in the middle
        "--no-turnarounds",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"netconvert: {done.stderr}")
    network = re.sub("<!--.*?-->\n*", "", (folder / "map.net.xml").read_text(), flags=re.S)
    (folder / "map.net.xml").write_text(network)  # without the date and the paths in its comment
    for name, numbers in TRAFFIC.items():
        (folder / f"{name}.rou.xml").write_text(routes(*numbers))
    np.save(folder / "ground.npy", ground(network))


if __name__ == "__main__":
    main()
