"""SMARTS's step without what the crossing does not use: the same to the bit, in half the time.

SMARTS 2.0.1 computes for every agent what dozens of sensors might need, looks for the lane of every
neighbour, and asks SUMO one question at a time. FastSmarts keeps its physics, its controllers, its
traffic and their order, and computes only what crossing.py reads. The step in which the agents
enter is SMARTS's own. Names in comments are places in smarts/core. All this holds for one version
of SMARTS; simulator() returns SMARTS itself if another one is installed.
"""

from __future__ import annotations

import gc
import math
from collections import namedtuple
from importlib.metadata import version
from typing import Any

import numpy as np
from smarts.core.actor import ActorRole
from smarts.core.agent_interface import AgentInterface
from smarts.core.controllers.lane_following_controller import LaneFollowingController
from smarts.core.coordinates import Heading, Pose
from smarts.core.road_map import Waypoint
from smarts.core.sensors import Sensors
from smarts.core.smarts import SMARTS
from smarts.core.sumo_traffic_simulation import NO_CHECKS, SumoTrafficSimulation
from smarts.core.utils.core_math import inplace_unwrap, radians_to_vec
from smarts.core.vehicle import VEHICLE_CONFIGS, VehicleState

import traci.constants as tc  # isort:skip

VERSION = "2.0.1"
VARIABLES = tc.VAR_POSITION, tc.VAR_ANGLE, tc.VAR_SPEED
CAR = VEHICLE_CONFIGS["passenger"].dimensions
RADIUS, LOOKAHEAD = 50.0, 32  # of an agent's sight [m]; waypoints that SMARTS gives to sensors
# Target speed [m/s] and change of lane of an action (controllers/__init__.py:138)
LANE_ACTIONS: dict[str, tuple[float, int]] = {"keep_lane": (15, 0), "slow_down": (0, 0)}
LANE_ACTIONS |= {"change_lane_left": (12.5, 1), "change_lane_right": (12.5, -1)}


class SumoTraffic(SumoTrafficSimulation):
    """SUMO without a flag with which SUMO 1.28 crashes after some thousand steps."""

    def _base_sumo_load_params(self) -> list[str]:
        flags = super()._base_sumo_load_params()
        return [flag for flag in flags if not flag.startswith("--lanechange.duration")]

    def reserve_traffic_location_for_vehicle(self, *_: Any) -> None:
        """Nothing: SUMO itself lets no car depart too close to an agent's."""


class FastTraffic(SumoTraffic):
    """SUMO, asked for three things of a car, told of all agents' cars in one message."""

    def __init__(self) -> None:
        super().__init__(headless=True)
        self._reload_count = 30  # episodes of one SUMO process; more have not been tried

    def setup(self, scenario: Any) -> Any:
        if self.connected:
            # SUMO must carry out the last moves of cars first, or it does so in the next episode.
            self._traci_conn.simulationStep()
            self._traci_conn.must_reset = lambda: False  # load the next episode, do not restart
        return super().setup(scenario)

    def _remove_vehicles(self) -> None:
        """Nothing: SUMO loads the next episode, and SMARTS has removed its own cars."""

    def remove_actor(self, actor_id: str) -> None:
        """Unsubscribe from a removed car; otherwise SUMO reports an error in every step."""
        if self.connected and actor_id in self._hijacked | self._non_sumo_vehicle_ids:
            self._traci_conn.vehicle.unsubscribe(actor_id)
        super().remove_actor(actor_id)

    def advance(self, seconds: float) -> dict[str, dict[int, Any]]:
        """A step of SUMO (_step and _compute_traffic_vehicles); returns data of its own cars."""
        wire = self._traci_conn._traci_conn
        self._cumulative_sim_seconds += seconds
        wire.simulationStep(self._cumulative_sim_seconds)
        self._last_traci_state = wire.simulation.getSubscriptionResults()
        for name in self._last_traci_state[tc.VAR_DEPARTED_VEHICLES_IDS]:
            wire.vehicle.subscribe(name, VARIABLES)
        results = wire.vehicle.getAllSubscriptionResults()
        self._sumo_vehicle_ids = set(results) - self._non_sumo_vehicle_ids - self._hijacked
        return {name: of for name, of in results.items() if name not in self._hijacked}

    def place(self, egos: dict[str, Ego]) -> None:
        """Tell SUMO where the agents' cars are (_sync)."""
        wire = self._traci_conn._traci_conn
        taken = set(wire.vehicle.getAllSubscriptionResults()) & set(egos)
        wire._sendExact = lambda: None  # gather the commands
        for name in self._non_sumo_vehicle_ids:
            chassis = egos[name].chassis
            (x, y, _), angle = chassis.pose.as_sumo(chassis.dimensions.length, Heading(0))
            wire.vehicle.moveToXY(name, "", -1, x, y, angle, keepRoute=0b010)
            wire.vehicle.setSpeed(name, chassis.speed)
        for name in taken - self._non_sumo_vehicle_ids:
            wire.vehicle.setSpeedMode(name, NO_CHECKS)
            self._non_sumo_vehicle_ids.add(name)
        del wire._sendExact
        if wire._queue:
            wire._sendExact()


class Point2D:
    """A waypoint with what the controller reads of it."""

    __slots__ = "heading", "pos"
    relative_heading = Waypoint.relative_heading
    signed_lateral_error, dist_to = Waypoint.signed_lateral_error, Waypoint.dist_to

    def __init__(self, pos: np.ndarray, heading: float) -> None:
        self.pos, self.heading = pos, Heading(heading)


class Path:
    """Lane points ahead of one, of which SMARTS makes waypoints at equal distances for a car.

    The part of sumo_road_network.py:1747 (_equally_spaced_path) that does not depend on the car.
    """

    def __init__(self, points: list[Any], spacing: float) -> None:
        last = len(points) - 1
        kept = [p.lp for i, p in enumerate(points) if not (p.is_inferred and 0 < i < last)]
        self.x, self.y = ([float(lp.pose.position[i]) for lp in kept] for i in (0, 1))
        self.headings = inplace_unwrap([lp.pose.heading.as_bullet for lp in kept])
        self.n, self.single = len(points), len(kept) <= spacing
        self.origin = points[0].lp.pose.point.as_np_array[:2]
        self.lane = points[0].lp.lane
        self.direction = np.array(radians_to_vec(self.headings[0]))
        steps = zip(self.x[1:], self.x[2:], self.y[1:], self.y[2:])
        self.gaps = [math.sqrt((b - a) * (b - a) + (d - c) * (d - c)) for a, b, c, d in steps]

    def start(self, place: np.ndarray) -> np.ndarray:
        """The first waypoint [2], abreast of the car."""
        if self.single:
            return self.origin
        return self.origin + np.inner(place - self.origin, self.direction) * self.direction

    def distances(self, start: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """How far along the path its waypoints are, and its lane points."""
        dx, dy = self.x[1] - start[0], self.y[1] - start[1]
        far = [0.0, math.sqrt(dx * dx + dy * dy)]
        for gap in self.gaps:
            far.append(far[-1] + gap)
        even = np.arange(self.n, dtype=float) * (far[-1] / (self.n - 1))  # np.linspace, faster
        even[-1] = far[-1]
        return even, far

    def turns(self, start: np.ndarray, heading: float, most: int) -> np.ndarray:
        """The headings of the first waypoints, relative to the car's."""
        headings = np.array(self.headings[:1], dtype=float)
        if not self.single:
            headings = wrapped(np.interp(*self.distances(start), self.headings))
        return wrapped(wrapped(headings[:most] - heading))

    def waypoints(self, start: np.ndarray, most: int) -> list[Point2D]:
        """The first waypoints."""
        if self.single:
            return [Point2D(self.origin, self.headings[0])]
        even, far = self.distances(start)
        xs = np.interp(even, far, [start[0], *self.x[1:]])
        ys = np.interp(even, far, [start[1], *self.y[1:]])
        places = np.stack([xs, ys], axis=1)
        headings = np.interp(even, far, self.headings).tolist()
        return [Point2D(*waypoint) for waypoint in zip(places[:most], headings[:most])]


def wrapped(headings: np.ndarray) -> np.ndarray:
    """Headings as the class Heading has them, in (-pi, pi]."""
    headings = headings % (2 * math.pi)
    return np.where(headings > math.pi, headings - 2 * math.pi, headings)


class Route:
    """The paths along a route, for sumo_road_network.py:1329 (_waypoint_paths_along_route)."""

    def __init__(self, road_map: Any, roads: tuple[str, ...]) -> None:
        self.points, self.spacing = road_map._lanepoints, road_map._map_spec.lanepoint_spacing
        self.roads, self.known = roads, dict[tuple[str, int, int], list[Path]]()

    def paths(self, place: np.ndarray, lookahead: int) -> list[Path]:
        """The paths that begin beside the car, on all lanes of its road."""
        points, places = self.points, self.points._lp_points_by_edge_id
        found = [(*closest(places[road], place), road) for road in self.roads]
        _, i, road = min(found, key=lambda one: one[0])
        paths: list[Path] = []
        for lane in points._lanepoints_by_edge_id[road][i].lp.lane.road.lanes:
            _, i = closest(points._lp_points_by_lane_id[lane.lane_id], place)
            key = lane.lane_id, i, lookahead
            if key not in self.known:
                first = points._lanepoints_by_lane_id[lane.lane_id][i]
                ways = points.paths_starting_at_lanepoint(first, lookahead, self.roads)
                self.known[key] = [Path(way, self.spacing) for way in ways]
            paths += self.known[key]
        return sorted(paths, key=lambda path: path.lane.index)


def closest(places: np.ndarray, place: np.ndarray) -> tuple[float, int]:
    """How far away the closest of some places [n, 2] is, and its index."""
    squares = ((places - place) ** 2).sum(axis=1)
    i = int(squares.argmin())
    return math.sqrt(squares[i]), i


class Ego:
    """An agent's car. To the controller it stands for the simulator and for the sensors as well."""

    last_dt = 0.1

    def __init__(self, sim: FastSmarts, vehicle_id: str) -> None:
        self.sim, self.vehicle = sim, sim.vehicle_index.vehicle_by_id(vehicle_id)
        self.chassis, self.road_map = self.vehicle.chassis, self
        self.plan = sim.sensor_manager.sensor_state_for_actor_id(vehicle_id).get_plan(sim.road_map)
        roads = tuple(road.road_id for road in self.plan.route.roads)
        if roads not in sim.routes:
            sim.routes[roads] = Route(sim.road_map, roads)
        self.route = sim.routes[roads]
        self.state = sim.vehicle_index.controller_state_for_vehicle_id(vehicle_id)
        self.radius = np.linalg.norm(self.chassis.dimensions.as_lwh[:2]) * 0.5 + 5

    def get_plan(self, _: Any) -> Any:
        return self.plan

    def act(self, action: Any) -> None:
        """Control the car as controllers/__init__.py:92 does."""
        if isinstance(action, str):
            LaneFollowingController.perform_lane_following(
                self, "", self.vehicle, self.state, self, *LANE_ACTIONS[action]
            )
        else:
            throttle, brake, steering = np.clip(action, [0, 0, -1], 1).tolist()
            self.vehicle.control(throttle=throttle, brake=brake, steering=steering)

    def paths(self, lookahead: int) -> list[Path]:
        """The paths ahead, as SMARTS's cache of one entry gives them (sumo_road_network.py:1663).

        A question from the place of the last one gets as many waypoints as the last one asked for.
        """
        place = self.chassis.pose.position[:2]
        asked, x, y, roads = self.sim.asked
        if not (lookahead <= asked and (x, y, roads) == (*place, self.route.roads)):
            self.sim.asked = lookahead, *place.tolist(), self.route.roads
        return self.route.paths(place, self.sim.asked[0])

    def waypoint_paths(self, pose: Pose, lookahead: int, route: Any) -> list[list[Point2D]]:
        place = pose.position[:2]
        paths = self.paths(lookahead)
        most = lookahead + 1 if self.sim.asked[0] > lookahead else LOOKAHEAD + 1
        return [path.waypoints(path.start(place), most) for path in paths]


# What crossing.py reads of SMARTS's Observation, under the same names, but for the lane: where in
# its lane the car is, in widths, and how the lane turns in each of the next 20 metres.
Seen = namedtuple("Seen", "ego_vehicle_state neighborhood_vehicle_states events lane")
EgoSeen = namedtuple("EgoSeen", "position heading speed steering mission bounding_box")
Events = namedtuple("Events", "collisions off_road off_route reached_goal")
Car = namedtuple("Car", "position heading speed bounding_box")


class FastSmarts(SMARTS):
    """SMARTS with a step of its own."""

    routes: dict[tuple[str, ...], Route]
    _elapsed_sim_time: float

    def setup(self, scenario: Any) -> None:
        super().setup(scenario)
        self.routes = getattr(self, "routes", {})
        self.egos: dict[str, Ego] = {}  # by vehicle
        self.asked: tuple[Any, ...] = 0, 0.0, 0.0, ()  # waypoints that the last question was for

    def observed(self) -> list[str]:
        """The active agents in SMARTS's order, which is that of a set (agent_manager.py:247)."""
        manager = self.agent_manager
        active = {name for name in manager.active_agents}  # not set(...), which keeps an order
        vehicles = {name: manager.vehicles_for_agent(name) for name in active}
        return list({name for name in vehicles if vehicles[name]})

    def _step(self, agent_actions: dict[str, Any], time_delta_since_last_step: Any = None) -> Any:
        if self.agent_manager.pending_agent_ids:  # the agents enter
            return super()._step(agent_actions, time_delta_since_last_step)
        index, physics = self.vehicle_index, self._agent_physics_provider
        sumo: Any = self.traffic_sims[0]
        if not self.egos:
            self.egos = {name: Ego(self, name) for name in index.agent_vehicle_ids()}
            for name in self.observed():
                ego = self.egos[index.vehicle_ids_by_owner_id(name)[0]]
                self.asked = LOOKAHEAD, *ego.chassis.pose.position[:2].tolist(), ego.route.roads
        self._last_dt = self._fixed_timestep_sec
        self._elapsed_sim_time = self._rounder(self._elapsed_sim_time + self._last_dt)

        # Act
        physics._remove_actors_without_actions(agent_actions)
        for name, actors in physics._my_agent_actors.items():
            self.egos[actors[0].actor_id].act(agent_actions[name])

        # Physics
        self._check_ground_plane()
        self._bullet_client.stepSimulation()
        for ego in self.egos.values():
            ego.vehicle.step(self._elapsed_sim_time)
        hit = {name: bool(self._get_pybullet_collisions(name)) for name in self.egos}

        # Traffic
        cars: dict[str, dict[int, Any]] = {}
        try:
            cars = sumo.advance(self._last_dt)
            sumo.place(self.egos)
        except (*sumo._traci_exceptions, OSError):  # crossing.py looks if it is connected
            sumo._traci_conn.close_traci_and_pipes()
        self._teardown_vehicles_and_agents(index.social_vehicle_ids() - cars.keys())
        seen = {name: self.car(name, said) for name, said in cars.items()}
        for name, ego in self.egos.items():
            pose = ego.chassis.pose
            seen[name] = Car(pose.position, pose.heading, ego.chassis.speed, ego.chassis.dimensions)

        # Observe
        observations, dones = {}, {}
        places = np.array([car.position for car in seen.values()])
        for name in self.observed():
            (vehicle_id,) = index.vehicle_ids_by_owner_id(name)
            observations[name] = self.observe(vehicle_id, hit[vehicle_id], seen, places)
            dones[name] = any(observations[name].events)
        answer = self.agent_manager._filter_for_active_ego(observations)
        if any(dones.values()):
            self._teardown_done_agents_and_vehicles(dones)
            left = index.agent_vehicle_ids()
            self.egos = {name: ego for name, ego in self.egos.items() if name in left}
        self._step_count += 1
        return answer, {}, dones, {}

    def car(self, name: str, said: dict[int, Any]) -> Car:
        """Move one of SUMO's cars to where SUMO has it (smarts.py:1210)."""
        front, angle, speed = (said[variable] for variable in VARIABLES)
        pose = Pose.from_front_bumper(np.array(front), Heading.from_sumo(angle), CAR.length)
        vehicle = self.vehicle_index.vehicle_by_id(name, None)
        if vehicle is None:
            kind = {"role": ActorRole.Social, "vehicle_config_type": "passenger"}
            state = VehicleState(name, pose=pose, dimensions=CAR, speed=speed, **kind)
            vehicle = self.vehicle_index.build_social_vehicle(self, state, "", name)
        vehicle.control(pose=pose, speed=speed, dt=self._last_dt)
        return Car(pose.position, pose.heading, speed, CAR)

    def observe(self, name: str, hit: bool, seen: dict[str, Car], places: np.ndarray) -> Seen:
        ego = self.egos[name]
        goal, me, place = ego.plan.mission.goal, seen[name], seen[name].position[:2]
        away = places - me.position
        near = np.flatnonzero(np.sqrt((away * away).sum(axis=1)) <= RADIUS).tolist()
        cars = list(seen.values())
        others = [cars[i] for i in near if cars[i] is not me]

        paths = ego.paths(LOOKAHEAD)
        starts = [path.start(place) for path in paths]
        k = int(np.argmin([np.linalg.norm(start - place) for start in starts]))
        path, start = paths[k], starts[k]
        turns = path.turns(start, me.heading, 20)
        aside = Point2D(start, path.headings[0]).signed_lateral_error(me.position)

        # If the car is not clearly inside a lane of its route, ask SMARTS.
        clear = path.n > 5 and abs(aside) < 1.4 and np.linalg.norm(start - path.origin) < 1
        off_road = off_route = False
        if not clear:
            state = ego.vehicle.state
            lanes = self.road_map.nearest_lanes(state.pose.point, radius=ego.radius)
            on = tuple(lane for lane, _ in lanes)
            off_road = Sensors._vehicle_is_off_road(self.road_map, state, on)
            lost = Sensors._vehicle_is_off_route_and_wrong_way(None, None, state, ego.plan, lanes)
            off_route = lost[0]
        there = (place[0] - goal.position.x) ** 2 + (place[1] - goal.position.y) ** 2
        seen_ego = EgoSeen(*me[:3], ego.chassis.steering, ego.plan.mission, me.bounding_box)
        events = Events(hit, bool(off_road), bool(off_route), there <= goal.radius**2)
        return Seen(seen_ego, others, events, (aside / path.lane._width, turns))


def simulator(interfaces: dict[str, AgentInterface], fast: bool) -> tuple[SMARTS, SumoTraffic]:
    """A simulator and its traffic: a fast one, if this is the SMARTS that it was written for."""
    if not fast or version("smarts") != VERSION:
        traffic = SumoTraffic(headless=True)
        return SMARTS(interfaces, traffic_sims=[traffic]), traffic
    cache_gains()
    traffic = FastTraffic()
    sim = FastSmarts(interfaces, traffic_sims=[traffic])
    gc.collect()  # garbage collections then skip all objects that exist now, such as torch's
    gc.freeze()
    return sim, traffic


def cache_gains() -> None:
    """Compute the controller's gains once for each target speed, and not what it does not use."""
    controller: Any = LaneFollowingController
    if hasattr(controller, "gains"):
        return
    controller.gains, compute = {}, controller.calculate_lateral_gains

    def gains(sim: Any, state: Any, vehicle: Any, poles: Any, target_speed: float) -> None:
        if target_speed not in controller.gains:
            state.target_speed = None
            compute(getattr(sim, "sim", sim), state, vehicle, poles, target_speed)
            controller.gains[target_speed] = state.lateral_error_gain, state.heading_error_gain
        state.target_speed = target_speed
        state.lateral_error_gain, state.heading_error_gain = controller.gains[target_speed]

    controller.calculate_lateral_gains = staticmethod(gains)
    controller._update_target_lane_if_reached_end_of_lane = staticmethod(lambda *_: None)
