"""Four cars, one from each arm of a crossing, in SMARTS 2.0.1 with SUMO's traffic around them.

An environment with PettingZoo's parallel interface, for use without our scripts as well. The agents
are named for their arms and always begin there; where in the arm, and where they are to go, is
drawn for every episode. The road from north to south has the right of way: SUMO's cars from east
and west wait for it. SMARTS is driven directly, since its own gymnasium wrapper changes agents'
places between episodes, and does not tell terminated from truncated.

With PYTHONHASHSEED=0 in the environment of the interpreter an episode follows from its seed and its
actions, to the bit. Without it, the order in Python's sets changes what SMARTS computes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import smarts.core
from fast import simulator  # beside this file
from pettingzoo import ParallelEnv
from smarts.core import coordinates
from smarts.core.agent_interface import AgentInterface, NeighborhoodVehicles, Waypoints
from smarts.core.controllers import ActionSpaceType
from smarts.core.plan import NavigationMission, PositionalGoal, Start
from smarts.core.scenario import Scenario
from smarts.core.smarts import SMARTS
from smarts.core.utils.core_math import vec_to_radians
from smarts.sstudio.sstypes import IdEntryTactic

ARMS = ["north", "east", "south", "west"]  # clockwise
TURNS = {"left": (1, [1]), "straight": (2, [0, 1]), "right": (3, [0])}  # arms on; lanes to do it in
MANOEUVRES = ["keep_lane", "slow_down", "change_lane_right", "change_lane_left"]

FRAMES, HEADINGS, NEIGHBOURS = 3, 20, 8  # moments in an observation, and what one of them holds
NUMBERS = 5 + HEADINGS + 5 * NEIGHBOURS + 2 * (1 + NEIGHBOURS)
RADIUS, SPEED = 50.0, 15.0  # how far an agent sees [m]; a speed that it sees as 1 [m/s]
SIDE, METRES = 32, 1.5  # of an image: pixels, and metres in a pixel
LENGTH, ENTRY_SPEED = 3.68, 13.89  # length of an agent's car [m]; speed at which it enters [m/s]
OFFSETS = 5.0, 25.0  # range of an agent's start along its lane, which is 76 m long [m]
GRASS_TO_LINES = np.array([[86, 122, 80], [92, 92, 96], [190, 190, 190], [222, 186, 70]], np.uint8)
AGENTS = np.array([[231, 76, 60], [52, 152, 219], [241, 196, 15], [155, 89, 182]], np.uint8)


class Crossing(ParallelEnv):
    """The environment. Reaching the goal, a collision, and leaving road or route end a task.

    continuous: act by [throttle (or brake, below 0), steering to the right], both in [-1, 1], in
    place of one of the four MANOEUVRES. traffic: none, light or dense. turn: left, straight, right,
    or any, drawn for every agent and episode. image: see the surroundings from above as well.
    horizon: steps of 0.1 s after which an episode is truncated. rewards: of a collision, of leaving
    the road, of arriving, of a metre nearer to the goal, and of a metre driven. fast: the step of
    fast.py, which gives the same numbers as SMARTS's own.
    """

    metadata = {"name": "intersection-4lane", "render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def __init__(
        self,
        continuous: bool = False,
        traffic: str = "light",
        turn: str = "any",
        image: bool = False,
        horizon: int = 400,
        rewards: tuple[float, ...] = (-50.0, -50.0, 20.0, 0.1, 0.05),
        fast: bool = True,
    ) -> None:
        logging.disable(logging.WARNING)  # SMARTS and SUMO warn of what is intended here
        warnings.filterwarnings("ignore", module="smarts")
        self.continuous, self.traffic, self.turn = continuous, traffic, turn
        self.image, self.horizon, self.rewards, self.fast = image, horizon, rewards, fast
        self.pixels = FRAMES * SIDE**2 if image else 0  # they come last in an observation
        self.possible_agents, self.agents = list(ARMS), list[str]()
        size = (FRAMES * NUMBERS + self.pixels,)
        obs_space = gym.spaces.Box(-np.inf, np.inf, size, np.float32)
        spaces = gym.spaces.Discrete(len(MANOEUVRES)), gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_spaces = dict.fromkeys(ARMS, obs_space)
        self.action_spaces = dict.fromkeys(ARMS, spaces[continuous])
        self.folder = built()
        self.ground = np.load(self.folder / "ground.npy")  # [720, 720], see build.py
        self.sim: SMARTS | None = None

    def observation_space(self, agent: str) -> gym.spaces.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.spaces.Space:
        return self.action_spaces[agent]

    def start_simulator(self) -> None:
        """A SMARTS with a SUMO of its own, in place of the one before."""
        self.close()
        interface = AgentInterface(
            waypoint_paths=Waypoints(lookahead=HEADINGS),
            neighborhood_vehicle_states=NeighborhoodVehicles(radius=RADIUS),
            action=ActionSpaceType.Continuous if self.continuous else ActionSpaceType.Lane,
        )
        self.sim, self.sumo = simulator(dict.fromkeys(ARMS, interface), self.fast)
        self.logs = tempfile.TemporaryDirectory(prefix="crossing-")
        routes = [f"{self.logs.name}/agents.rou.xml"]
        if self.traffic != "none":
            routes.append(str(self.folder / f"{self.traffic}.rou.xml"))
        self.scenario = Scenario(str(self.folder), routes, log_dir=self.logs.name)
        # Otherwise SMARTS leaves two files an episode in the user's home.
        self.scenario.unique_sumo_log_file = lambda: f"{self.logs.name}/sumo"
        # SMARTS measures in 3D how far a car is from a lane's centre, and cars stand 5 cm deep in
        # the ground: within a millimetre of the line between two lanes, they were off the road.
        roads = self.scenario.road_map
        with_point = type(roads).road_with_point
        roads.road_with_point = lambda point, **near: with_point(roads, flat_point(point), **near)

    def missions(self, random: np.random.Generator) -> dict[str, NavigationMission]:
        """The start and the goal of each agent; writes the routes by which SUMO places its car."""
        # A car that appears in front of SUMO's traffic may be hit whatever its agent does. So SUMO
        # itself places the agents' cars, before all others, which then keep a safe gap to them.
        lines = [f'<vType id="agent" length="{LENGTH}" speedFactor="1"/>']
        roads, missions = self.scenario.road_map, {}
        for arm, name in enumerate(ARMS):
            turn = self.turn if self.turn != "any" else random.choice(list(TURNS))
            arms_on, lanes = TURNS[turn]
            to, lane = ARMS[(arm + arms_on) % 4], int(random.choice(lanes))
            offset = random.uniform(*OFFSETS)
            come = roads.road_by_id(f"{name}-in").lane_at_index(lane)
            leave = roads.road_by_id(f"{to}-out").lane_at_index(lane)
            start = come.from_lane_coord(coordinates.RefLinePoint(s=offset))
            goal = leave.from_lane_coord(coordinates.RefLinePoint(s=40))
            heading = coordinates.Heading(vec_to_radians(come.vector_at_offset(offset)[:2]))
            missions[name] = NavigationMission(
                Start(start.as_np_array[:2], heading),
                PositionalGoal(goal, 2),
                entry_tactic=IdEntryTactic(0.0, f"agent-{name}"),
            )
            lines.append(
                f'<vehicle id="agent-{name}" type="agent" depart="0" departLane="{lane}" '
                f'departPos="{offset + LENGTH / 2:.3f}" departSpeed="{ENTRY_SPEED}">'
                f'<route edges="{name}-in {to}-out"/></vehicle>'
            )
        routes = "<routes>\n    " + "\n    ".join(lines) + "\n</routes>\n"
        Path(self.logs.name, "agents.rou.xml").write_text(routes)
        return missions

    def enter(self, seed: int, attempt: int) -> dict[str, Any]:
        """Let all agents enter in one step; returns what those without a collision observe."""
        if self.sim is None or not self.sumo.connected:
            self.start_simulator()
        assert self.sim is not None
        smarts.core.seed((seed + attempt) % 2**32)  # NumPy takes no more
        self.scenario._missions = self.missions(np.random.default_rng([seed, attempt]))
        obs = self.sim.reset(self.scenario)
        if not self.sumo.connected:
            return {}
        return {name: o for name, o in obs.items() if not self.judge(o, o)[1]}

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Begin an episode; RuntimeError if SMARTS fails to in ten attempts."""
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        coordinates._numpy_points.clear()  # caches that SMARTS never empties: 20 MB in 1,000 steps
        coordinates._shapely_points.clear()
        for attempt in range(10):
            reason = "not all agents could enter"
            try:
                obs = self.enter(seed, attempt)
                if len(obs) == len(ARMS):
                    break
            except Exception as error:  # SMARTS has many ways to fail, and then destroys itself
                reason = str(error)
                self.close()
        else:
            raise RuntimeError(f"SMARTS did not begin an episode in ten attempts: {reason}")
        self.agents, self.t, self.last = list(ARMS), 0, dict(obs)
        self.ends: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.collisions: dict[str, str] = {}
        self.moments: dict[str, list[tuple[float, ...]]] = {name: [] for name in ARMS}
        self.stack = {name: np.tile(self.look(obs[name]), (FRAMES, 1)) for name in ARMS}
        return {name: self.flat(name) for name in ARMS}, {name: {} for name in ARMS}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Act for 0.1 s; if the simulator dies, all agents are truncated and a line says so."""
        assert self.sim is not None
        moves = {name: self.move(actions[name]) for name in self.agents}
        try:
            obs = self.sim.step(moves)[0]
            failure = "" if self.sumo.connected else "SUMO has died"
            failure = failure or ("" if set(moves) <= set(obs) else "SMARTS has lost an agent")
        except Exception as error:
            obs, failure = {}, f"SMARTS has failed ({error})"
        if failure:  # without SUMO, SMARTS would go on silently, on empty roads
            print(f"{failure}; the episode is cut off, and a new simulator started", flush=True)
            self.close()
            obs = {name: self.last[name] for name in self.agents}
        self.t += 1
        acting, rewards, terminated, truncated = self.agents, {}, {}, {}
        for name in acting:
            rewards[name], end = self.judge(self.last[name], obs[name])
            if end and not failure:
                self.ends[name], self.seconds[name] = end, 0.1 * self.t
                if end == "collision":
                    self.collisions[name] = collision(obs[name])
            terminated[name] = name in self.ends
            truncated[name] = bool(failure) or (self.t >= self.horizon and not terminated[name])
            self.last[name] = obs[name]
            look = self.look(obs[name])
            self.stack[name] = np.stack([look, *self.stack[name][:-1]])
            move = math.nan if self.continuous else float(actions[name])
            near = RADIUS * look[5 + HEADINGS]
            self.moments[name].append((SPEED * look[3], look[2], near, move))
        self.agents = [name for name in acting if not (terminated[name] or truncated[name])]
        seen = {name: self.flat(name) for name in acting}
        infos = {name: self.info(name) if name not in self.agents else {} for name in acting}
        return seen, rewards, terminated, truncated, infos

    def move(self, action: Any) -> Any:
        """An action as SMARTS takes it; (throttle, brake, steering) where it is continuous."""
        if not self.continuous:
            return MANOEUVRES[int(action)]
        pedal, steering = np.clip(action, -1, 1).tolist()
        return max(pedal, 0.0), max(-pedal, 0.0), steering

    def judge(self, before: Any, after: Any) -> tuple[float, str]:
        """The reward between two of an agent's observations in SMARTS, and what ended its task."""
        collision, off_road, arrived, progress, distance = self.rewards
        goal = after.ego_vehicle_state.mission.goal.position[:2]
        there, here = (obs.ego_vehicle_state.position[:2] for obs in (before, after))
        reward = progress * (math.dist(there, goal) - math.dist(here, goal))
        reward += distance * math.dist(there, here)
        if after.events.collisions:
            return reward + collision, "collision"
        if after.events.off_road or after.events.off_route:
            return reward + off_road, "off road"
        return (reward + arrived, "goal") if after.events.reached_goal else (reward, "")

    def info(self, name: str) -> dict[str, Any]:
        """How an agent ended (or ""), who ran into whom, when, and how the agent drove."""
        how = {"end": self.ends.get(name, ""), "collision": self.collisions.get(name, "")}
        return how | {"seconds": 0.1 * len(self.moments[name])} | self.behaviour(name)

    def behaviour(self, name: str) -> dict[str, float]:
        """How an agent drove: mean speed [m/s], number of lane changes, shortest distance to
        another car, from centre to centre [m, at most RADIUS], and the share of each manoeuvre.
        """
        speed, place, near, move = np.array(self.moments[name] or [(math.nan,) * 4]).T
        figures = {
            "mean_speed": float(speed.mean()),
            "lane_changes": float((abs(np.diff(place)) > 0.5).sum()),  # it jumps by a lane's width
            "closest_approach": float(near.min()),
        }
        if not self.continuous:
            figures |= {f"share_{m}": float((move == i).mean()) for i, m in enumerate(MANOEUVRES)}
        return figures

    def metrics(self) -> dict[str, float]:
        """Metrics of the episode so far: shares of the agents by how they ended, the mean time of
        those that arrived, and the mean over all agents of how they drove.
        """
        ends, share = list(self.ends.values()), 1 / len(ARMS)
        kinds = list(self.collisions.values())
        drives = [self.behaviour(name) for name in ARMS]
        arrived = [self.seconds[name] for name, end in self.ends.items() if end == "goal"]
        return {
            "completion_rate": share * ends.count("goal"),  # within 2 m of it
            "collision_rate": share * ends.count("collision"),
            "hit_from_behind_rate": share * kinds.count("hit from behind"),
            "ran_into_rear_rate": share * kinds.count("ran into rear"),
            "side_collision_rate": share * kinds.count("side"),
            "off_road_rate": share * ends.count("off road"),
            "seconds_to_cross": float(np.mean(arrived)) if arrived else math.nan,
        } | {figure: float(np.mean([drove[figure] for drove in drives])) for figure in drives[0]}

    def flat(self, name: str) -> np.ndarray:
        """An agent's observation: the last moments, newest first, numbers and then images."""
        stack = self.stack[name]
        return np.concatenate([stack[:, :NUMBERS].ravel(), stack[:, NUMBERS:].ravel()])

    def look(self, obs: Any) -> np.ndarray:
        """What an agent sees at one moment, about between -1 and 1, in the axes of its own car.

        [goal forward, goal right, place in the lane, speed, steering, how the lane turns in each of
        the next HEADINGS metres; for each neighbour its distance, how far forward and right it is,
        and its velocity forward and right, relative to the car; for the goal and each neighbour how
        far forward and right once more, ten times as large and cut at ±1]. Collisions and arrivals
        are a matter of two metres, which a network hardly sees in fractions of 50 or 100 m.
        """
        ego = obs.ego_vehicle_state
        at, forward = np.array(ego.position[:2]), ahead(ego.heading)
        axes = np.array([forward, [forward[1], -forward[0]]])
        aside, ways = obs.lane if hasattr(obs, "lane") else lane(obs)
        turns = np.full(HEADINGS, ways[-1])  # near the end of the road, the last one goes on
        turns[: len(ways)] = ways
        goal = axes @ (np.array(ego.mission.goal.position[:2]) - at) / 100
        near = np.tile([1.0, 1.0, 0.0, 0.0, 0.0], (NEIGHBOURS, 1))  # nobody: far ahead
        others = obs.neighborhood_vehicle_states
        if others:
            offsets = np.array([other.position[:2] for other in others]) - at  # [cars, 2]
            away = np.linalg.norm(offsets, axis=1)
            order = np.argsort(away, kind="stable")[:NEIGHBOURS]
            headings = np.array([float(other.heading) for other in others])
            speeds = np.array([other.speed for other in others])[:, None]
            motions = speeds * np.stack([-np.sin(headings), np.cos(headings)], axis=1)
            motions -= ego.speed * forward
            near[: len(order), 0] = away[order] / RADIUS
            near[: len(order), 1:3] = offsets[order] @ axes.T / RADIUS
            near[: len(order), 3:] = motions[order] @ axes.T / SPEED
        own = [*goal, aside, ego.speed / SPEED, float(ego.steering)]
        enlarged = np.clip(10 * np.vstack([goal, near[:, 1:3]]), -1, 1)
        parts: list[Any] = [own, turns, near.ravel(), enlarged.ravel()]
        if self.image:  # forward is up; the road is grey, the others are white
            metres = (SIDE / 2 - 0.5 - np.arange(SIDE)) * METRES
            points = at + metres[:, None, None] * axes[0] - metres[None, :, None] * axes[1]
            row, column = 4 * (90 - points[..., 1]), 4 * (points[..., 0] + 90)
            ground = np.pad(self.ground, 1)  # grass all around
            row, column = (np.clip(index, -1, 720).astype(int) + 1 for index in (row, column))
            picture = 0.3 * (ground[row, column] > 0)
            for other in others:
                picture[covered(points, other.position, other.heading, other.bounding_box)] = 1.0
            parts.append(picture.ravel())
        return np.concatenate(parts).astype(np.float32)

    def render(self) -> np.ndarray:
        """The crossing from above, [720, 720, 3]; agents and their goals are in colour."""
        image = GRASS_TO_LINES[self.ground]
        axis = (np.arange(720) + 0.5) / 4 - 90
        points = np.stack(np.meshgrid(axis, -axis), axis=-1)

        def paint(position: Any, heading: Any, size: Any, colour: Any) -> None:
            x, y = int(4 * (position[0] + 90)), int(4 * (90 - position[1]))
            near = np.s_[max(y - 12, 0) : max(y + 12, 0), max(x - 12, 0) : max(x + 12, 0)]
            image[near][covered(points[near], position, heading, size)] = colour

        for car in self.sim.vehicle_index.vehicles if self.sim else []:
            paint(car.position, car.heading, car.chassis.dimensions, 235)
        for name, colour in zip(ARMS, AGENTS):
            ego = self.last[name].ego_vehicle_state
            goal = np.linalg.norm(points - ego.mission.goal.position[:2], axis=-1)
            image[(goal < 2) & (goal > 1.4)] = colour
            if name in self.agents:
                paint(ego.position, ego.heading, ego.bounding_box, colour)
        return image

    def close(self) -> None:
        if self.sim is not None:
            with contextlib.suppress(Exception):  # of one that has died
                self.sim.destroy()
            self.sim = None
            self.logs.cleanup()


def ahead(heading: Any) -> np.ndarray:
    """The unit vector of a heading: 0 is north, and they run anticlockwise."""
    return np.array([-np.sin(float(heading)), np.cos(float(heading))])


def lane(obs: Any) -> tuple[float, list[float]]:
    """The offset to the left in the lane, in widths, and the lane's turn at each metre ahead."""
    ego = obs.ego_vehicle_state
    path = min(obs.waypoint_paths, key=lambda path: path[0].dist_to(ego.position))
    turns = [float(point.relative_heading(ego.heading)) for point in path[:HEADINGS]]
    return path[0].signed_lateral_error(ego.position) / path[0].lane_width, turns


def collision(obs: Any) -> str:
    """Who ran into whom: "hit from behind", "ran into rear" (of the car ahead), or "side"."""
    ego = obs.ego_vehicle_state
    at, forward = np.array(ego.position[:2]), ahead(ego.heading)
    cars = obs.neighborhood_vehicle_states
    other = min(cars, key=lambda car: math.dist(car.position[:2], at), default=None)
    if other is None or ahead(other.heading) @ forward < 0.7:  # their headings differ by 45 degrees
        return "side"
    along = (np.array(other.position[:2]) - at) @ forward
    if abs(along) < LENGTH / 2:
        return "side"
    return "ran into rear" if along > 0 else "hit from behind"


def flat_point(point: coordinates.Point) -> coordinates.Point:
    return coordinates.Point(point.x, point.y)


def covered(points: np.ndarray, position: Any, heading: Any, size: Any) -> np.ndarray:
    """Which of the points [H, W, 2] lie under a car that stands at position."""
    away = points - np.array(position[:2])
    forward = ahead(heading)
    along, across = away @ forward, away @ [forward[1], -forward[0]]
    return (abs(along) < size.length / 2) & (abs(across) < size.width / 2)


def built() -> Path:
    """The folder of the crossing as SMARTS and SUMO read it; built anew if its source has changed.

    It lies in FOLIORL_CACHE, or ~/.cache/foliorl. RuntimeError if it cannot be built.
    """
    source = Path(__file__).parent
    files = b"".join(path.read_bytes() for path in sorted(source.glob("*.xml")))
    files += (source / "build.py").read_bytes() + version("eclipse-sumo").encode()
    cache = Path(os.environ.get("FOLIORL_CACHE", "~/.cache/foliorl")).expanduser()
    folder = cache / f"intersection-4lane-{hashlib.sha256(files).hexdigest()[:12]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            command = [sys.executable, str(source / "build.py"), f"{temporary}/built"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the crossing cannot be built: {done.stderr}")
            with contextlib.suppress(OSError):  # another process was faster
                Path(temporary, "built").rename(folder)
    return folder
