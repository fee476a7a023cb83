"""A race of trained robots, side by side in PyBullet's stadium.

Two to six policies that ddpg_continuous.py, td3_continuous.py or sac_continuous.py trained run
10 m, each in a lane of its own, in one simulation with one clock. A robot that falls is out.

    python scenarios/stadium/race.py runs/HopperBulletEnv-v0__... runs/AntBulletEnv-v0__...

The robots are those of pybullet_envs_gymnasium, whose environments support races: in a multiplayer
scene, their step() does not advance the simulation. All have the same clock: an action every
0.0165 s, held for 4 steps of the physics.

A robot sees what it saw in training and moves as it does alone, whoever runs beside it: hopper,
walker and cheetah to the last bit, the ant to within 1e-10. The humanoid does so until several
parts of its body touch the ground; PyBullet's approximate contacts then come out differently.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pybullet
import torch
import tyro
from film import LANE, Film, Window  # beside this file
from pybullet_utils.bullet_client import BulletClient
from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import ddpg_continuous
import sac_continuous
import td3_continuous

SCRIPTS: dict[str, Any] = {s.SCRIPT: s for s in (ddpg_continuous, td3_continuous, sac_continuous)}
ROBOTS = "Hopper", "Walker2D", "HalfCheetah", "Ant", "Humanoid"
Row = dict[str, Any]  # of a table


@dataclasses.dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]  # two to six run folders, from the left lane on
    distance: PositiveFloat = 10.0  # length of the race [m]
    seconds: PositiveFloat = 30.0  # time limit, in simulated time [s]
    get_up: bool = False  # put a robot that falls back on its feet, where it fell
    races: PositiveInt = 1  # number of races; each has another seed
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1  # seed of the first race's initial joint angles
    csv: Path | None = None  # file for the tables of all races
    capture_video: Path | None = None  # MP4 file for the first race
    render: bool = False  # show the races in a window, in real time


class Lane:
    """The simulator as the robot in a lane sees it: y counts from the middle of the lane [m].

    A robot observes its position, and its parts' mean position includes the ground's, at y = 0.
    So robots are loaded into the lane, and their positions, but not the ground's, are shifted back.
    """

    def __init__(self, simulator: BulletClient, y: float) -> None:
        self.simulator, self.y = simulator, y
        self.bodies: tuple[int, ...] = ()  # the robot's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.simulator, name)

    def loadMJCF(self, file: str, **options: Any) -> tuple[int, ...]:
        self.bodies = self.simulator.loadMJCF(file, **options)
        for body in self.bodies:
            (x, y, z), orientation = self.simulator.getBasePositionAndOrientation(body)
            self.simulator.resetBasePositionAndOrientation(body, (x, y + self.y, z), orientation)
        return self.bodies

    def getBasePositionAndOrientation(self, body: int) -> tuple[Any, Any]:
        (x, y, z), orientation = self.simulator.getBasePositionAndOrientation(body)
        return (x, y - self.y * (body in self.bodies), z), orientation

    def getLinkState(self, body: int, link: int, **options: Any) -> tuple[Any, ...]:
        (x, y, z), *rest = self.simulator.getLinkState(body, link, **options)
        return (x, y - self.y * (body in self.bodies), z), *rest


class Runner:
    """A trained policy, its robot, and how the robot fares in the present race.

    time [s], distance [m] and falls count until there is a result: "finished" or "fell".
    """

    def __init__(self, run: Path, lane: int) -> None:
        self.run, self.lane, self.y = run, lane, -LANE * lane
        self.script, self.args, weights = load(run)
        self.robot = self.args.env_id.removesuffix("BulletEnv-v0")
        self.algorithm = self.script.SCRIPT.removesuffix("_continuous")
        self.name = f"{self.robot} ({self.algorithm})"
        self.env = self.script.make_env(self.args)
        self.agent = self.script.Agent(*self.script.dimensions(self.env), self.args)
        self.agent.load_state_dict(weights)

    def enter(self, simulator: BulletClient, scene: Any, seed: int) -> None:
        """Put a robot at the start of the lane, as a reset with this seed does in training."""
        # act() repeats actions: a wrapper that steps several times would not advance the time.
        self.env = self.script.make_env(dataclasses.replace(self.args, action_repeat=1))
        self.bullet_env = self.env.unwrapped  # without the time limit
        self.client = Lane(simulator, self.y)
        self.bullet_env._p, self.bullet_env.physicsClientId = self.client, simulator._client
        self.bullet_env.scene = self.bullet_env.stadium_scene = scene
        self.bullet_env.robot.player_n = self.lane
        self.obs, _ = self.bullet_env.reset(seed=self.script.episode_seed(seed, self.lane))  # [O]
        self.start_x = self.x
        self.pose = []  # of each body of the robot: base, and joints
        for body in self.client.bodies:
            joints = simulator.getJointStates(body, range(simulator.getNumJoints(body)))
            base = simulator.getBasePositionAndOrientation(body)
            self.pose.append((body, *base, [position for position, *_ in joints]))
        self.steps, self.falls, self.time, self.distance = 0, 0, 0.0, 0.0
        self.result, self.down = "", False

    @property
    def x(self) -> float:
        """The torso's position along the lane [m]."""
        return float(self.bullet_env.robot.body_real_xyz[0])

    @torch.no_grad()
    def act(self) -> None:
        """Set the torques of the next step."""
        if self.down:
            return
        if self.steps % self.args.action_repeat == 0:
            obs = self.script.to_tensor(self.obs, "cpu").unsqueeze(0)  # [1, O]
            self.action = self.env.action(self.agent.actor(obs).squeeze(0).numpy())  # [A]
        self.bullet_env.robot.apply_action(self.action)
        self.steps += 1

    def observe(self, now: float, args: Args) -> None:
        """Observe what the step has led to, at this time of the race [s]."""
        if self.down:
            return
        # Here, step() only computes the observation, and whether the episode of training would end.
        self.obs, _, fallen, _, _ = self.bullet_env.step(self.action)
        if not self.result:
            self.time, self.distance = now, self.x - self.start_x
            self.falls += fallen
            if self.distance >= args.distance:
                self.result = "finished"
        if fallen and args.get_up:
            self.get_up()
        elif fallen:
            self.down, self.result = True, self.result or "fell"

    def get_up(self) -> None:
        """Set the robot upright and still, as far along the lane as it is."""
        travelled = self.x - self.start_x
        for body, (x, y, z), orientation, joint_positions in self.pose:
            self.client.resetBasePositionAndOrientation(body, (x + travelled, y, z), orientation)
            for joint, position in enumerate(joint_positions):
                self.client.resetJointState(body, joint, position, 0)
        self.obs = self.bullet_env.robot.reset(self.client)  # with new random joint angles


def load(run: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The script, the Args and the agent's weights of a run; exits if it cannot race."""
    path = run / "best.pt"
    if not path.is_file():
        fail(f"{run} holds no best.pt; give the folder of a run that was evaluated at least once")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        name, settings, weights = (checkpoint[key] for key in ("script", "args", "agent"))
    except Exception as error:  # a damaged or malicious file may raise anything
        fail(f"{path} is damaged or not a checkpoint ({str(error).splitlines()[0]})")
    if name not in SCRIPTS:
        fail(f"{path} was written by {name}.py; a race takes runs of {', '.join(SCRIPTS)}")
    try:
        args = SCRIPTS[name].Args(**settings | {"device": "cpu"})
    except TypeError as error:
        fail(f"{path} was written by a version of {name}.py with other flags: {error}")
    if args.env_id not in [f"{robot}BulletEnv-v0" for robot in ROBOTS]:
        fail(f"{run} is a run of {args.env_id}; a runner is one of {', '.join(ROBOTS)}")
    return SCRIPTS[name], args, weights


def race(runners: list[Runner], seed: int, args: Args, *watchers: Callable) -> list[Row]:
    """Run one race; returns its table, a row for each runner, by place.

    Each watcher is called at the start and after every step: watcher(simulator, runners, time).
    """
    simulator = BulletClient(pybullet.GUI if args.render else pybullet.DIRECT)
    simulator.configureDebugVisualizer(pybullet.COV_ENABLE_GUI, 0)  # a window without panels
    # As in the environments: the same seed gives the same motion.
    simulator.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
    scene = runners[0].env.unwrapped.create_single_player_scene(simulator)
    scene.multiplayer = True
    scene.episode_restart(simulator)  # loads the ground
    for runner in runners:
        runner.enter(simulator, scene, seed)
    separate(simulator, runners)
    for step in itertools.count():
        now = step * scene.dt
        for watcher in watchers:
            watcher(simulator, runners, now)
        if now >= args.seconds or all(runner.result for runner in runners):
            break
        for runner in runners:
            runner.act()
        scene.global_step()
        for runner in runners:
            runner.observe(now + scene.dt, args)
    simulator.disconnect()
    return table(runners, seed)


def separate(simulator: BulletClient, runners: list[Runner]) -> None:
    """Let no robot touch another, also where one leaves its lane."""
    links = [
        [(body, i) for body in r.client.bodies for i in range(-1, simulator.getNumJoints(body))]
        for r in runners
    ]
    for one, other in itertools.combinations(links, 2):
        for (body, link), (other_body, other_link) in itertools.product(one, other):
            simulator.setCollisionFilterPair(body, other_body, link, other_link, 0)


def table(runners: list[Runner], seed: int) -> list[Row]:
    """Those that finished come first, by time; the others follow, by distance."""

    def rank(runner: Runner) -> tuple[float, float]:
        return runner.time if runner.result == "finished" else math.inf, -runner.distance

    return [
        {
            "place": 1 + sum(rank(other) < rank(runner) for other in runners),  # ties share it
            "robot": runner.robot,
            "algorithm": runner.algorithm,
            "result": runner.result or "time limit",
            "time_s": round(runner.time, 4),
            "distance_m": round(runner.distance, 3),
            "mean_speed_m_s": round(runner.distance / runner.time, 3),
            "falls": runner.falls,
            "lane": runner.lane + 1,
            "seed": seed,
            "run": str(runner.run),
        }
        for runner in sorted(runners, key=rank)
    ]


def means(rows: list[Row]) -> list[Row]:
    """The means over all races, a row for each runner, from the most wins to the fewest."""

    def mean(rows: list[Row], column: str) -> float:
        return round(statistics.fmean(row[column] for row in rows), 3) if rows else math.nan

    found = []
    for lane in sorted({row["lane"] for row in rows}):
        own = [row for row in rows if row["lane"] == lane]
        finished = [row for row in own if row["result"] == "finished"]
        found.append(
            {
                "win_rate": round(statistics.fmean(row["place"] == 1 for row in own), 3),
                "mean_place": mean(own, "place"),
                "robot": own[0]["robot"],
                "algorithm": own[0]["algorithm"],
                "finished": f"{len(finished)} of {len(own)}",
                "time_s": mean(finished, "time_s"),  # of the races that it finished
                **{key: mean(own, key) for key in ("distance_m", "mean_speed_m_s", "falls")},
                "lane": lane,
            }
        )
    return sorted(found, key=lambda row: (-row["win_rate"], row["mean_place"]))


def show(rows: list[Row]) -> None:
    """Print rows as aligned columns."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())


def read_args() -> Args:
    """The flags, checked; what they say to write can be written."""
    args = tyro.cli(Args, description=str(__doc__).split("\n")[0])
    try:
        TypeAdapter(Args).validate_python(dataclasses.asdict(args))
    except ValidationError as error:
        wrong = error.errors()[0]
        fail(f"--{str(wrong['loc'][0]).replace('_', '-')} is {wrong['input']}: {wrong['msg']}")
    if not 2 <= len(args.runs) <= 6:
        fail(f"a race has two to six runners, a run folder each; {len(args.runs)} given")
    if args.capture_video and args.capture_video.suffix != ".mp4":
        fail(f"--capture-video is {args.capture_video}; give a file that ends in .mp4")
    if args.render and sys.platform == "linux" and not os.environ.get("DISPLAY"):
        fail("--render needs a screen; --capture-video FILE.mp4 does not")
    for path in filter(None, (args.csv, args.capture_video)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            fail(f"cannot write {path}: {error.strerror}")
    return args


def fail(message: str) -> NoReturn:
    """End the program with one sentence, and the exit code of bad input."""
    print(f"race: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Run the races; print and write the tables."""
    args = read_args()
    runners = [Runner(run, lane) for lane, run in enumerate(args.runs)]
    watchers: list[Any] = [Window(args.distance)] if args.render else []
    try:
        films = [Film(args.capture_video, args.distance)] if args.capture_video else []
    except ImportError:
        fail("--capture-video needs the package moviepy: pip install moviepy")
    rows: list[Row] = []
    for seed in range(args.seed, args.seed + args.races):
        rows += race(runners, seed, args, *watchers, *films)
        while films:  # only the first race is filmed
            films.pop().close()
    show(means(rows) if args.races > 1 else rows)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
