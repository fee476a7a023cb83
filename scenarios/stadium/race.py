"""A race of trained robots: hopper, walker, cheetah, ant and humanoid side by side in PyBullet.

Two to six policies that ddpg_continuous.py, td3_continuous.py or sac_continuous.py trained run
10 m, each in a lane of its own, in one simulation with one clock. A robot that falls is out.

    python scenarios/stadium/race.py runs/HopperBulletEnv-v0__... runs/AntBulletEnv-v0__...

The robots are those of pybullet_envs_gymnasium, whose environments already know races: in a scene
with `multiplayer` set, an environment does not advance the simulation itself. All of them have the
same clock: an action every 0.0165 s, held for 4 steps of the physics.

A robot observes where it is, so in a lane it would see numbers that it never saw in training. A
Lane therefore shifts its positions back. A robot in the first lane then moves as it does alone in
its own environment, to the last bit; elsewhere, positions are rounded differently, by 1e-16 m.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import pybullet
import torch
import tyro
from pybullet_utils.bullet_client import BulletClient
from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import ddpg_continuous
import sac_continuous
import td3_continuous

SCRIPTS: dict[str, Any] = {
    script.SCRIPT: script for script in (ddpg_continuous, td3_continuous, sac_continuous)
}
ROBOTS = "Hopper", "Walker2D", "HalfCheetah", "Ant", "Humanoid"
LANE = 2.0  # width of a lane [m]; an ant is 1.8 m wide
FRAME, WIDTH, HEIGHT = 2, 640, 360  # of a video: steps between frames, and pixels
YAW, PITCH = -35, -25  # direction in which the camera looks [degrees]


@dataclasses.dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]  # two to six run folders, from the left lane on
    distance: PositiveFloat = 10.0  # length of the race [m]
    seconds: PositiveFloat = 30.0  # simulated time after which it ends [s]
    get_up: bool = False  # put a robot that falls back on its feet, where it fell
    races: PositiveInt = 1  # races, with the seeds from --seed on
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1  # seed of the robots' initial joint angles
    csv: Path | None = None  # file for the table of every race
    capture_video: Path | None = None  # MP4 file for the first race
    render: bool = False  # show the race in a window, in real time


class Lane:
    """The simulator as a robot in this lane sees it: y counts from the middle of the lane.

    Robots are loaded into the lane, and their positions are read relative to it. The ground stays
    where it is. Everything else is the simulator's own.
    """

    def __init__(self, simulator: BulletClient, y: float) -> None:
        self.simulator, self.y = simulator, y
        self.bodies: tuple[int, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.simulator, name)

    def loadMJCF(self, file: str, **options: Any) -> tuple[int, ...]:
        self.bodies = self.simulator.loadMJCF(file, **options)
        for body in self.bodies:
            (x, y, z), orientation = self.simulator.getBasePositionAndOrientation(body)
            self.resetBasePositionAndOrientation(body, (x, y + self.y, z), orientation)
        return self.bodies

    def getBasePositionAndOrientation(self, body: int) -> tuple[Any, Any]:
        (x, y, z), orientation = self.simulator.getBasePositionAndOrientation(body)
        return (x, y - self.y * (body in self.bodies), z), orientation

    def getLinkState(self, body: int, link: int, **options: Any) -> tuple[Any, ...]:
        (x, y, z), *rest = self.simulator.getLinkState(body, link, **options)
        return (x, y - self.y * (body in self.bodies), z), *rest


class Runner:
    """A trained policy with its robot; what is measured of it is for the race that runs.

    result is "" while it runs, then "finished" or "fell", or "time limit" at the end of the race.
    time [s] and distance [m] are those at that moment.
    """

    def __init__(self, run: Path, lane: int) -> None:
        self.run, self.lane = run, lane
        self.script, self.args, weights = load(run)
        self.robot = self.args.env_id.removesuffix("BulletEnv-v0")
        self.algorithm = self.script.SCRIPT.split("_")[0]
        self.name = f"{self.robot} ({self.algorithm})"
        self.wrapped = self.make_env()
        self.agent = self.script.Agent(*self.script.dimensions(self.wrapped), self.args)
        self.agent.load_state_dict(weights)

    def make_env(self) -> Any:
        """The environment of the training; a race holds repeated actions itself."""
        return self.script.make_env(dataclasses.replace(self.args, action_repeat=1))

    def enter(self, simulator: BulletClient, scene: Any, seed: int) -> None:
        """Put a new robot at the start of its lane, as a reset with this seed does alone."""
        self.wrapped = self.make_env()
        self.env = self.wrapped.unwrapped
        self.client = Lane(simulator, -LANE * self.lane)
        self.env._p, self.env.physicsClientId = self.client, simulator._client
        self.env.scene = self.env.stadium_scene = scene
        self.env.robot.player_n = self.lane
        self.obs, _ = self.env.reset(seed=self.script.episode_seed(seed, self.lane))  # [O]
        self.start_x = self.x
        self.pose = [  # of every body: number, position, orientation, joint angles
            (body, *simulator.getBasePositionAndOrientation(body), self.joint_angles(body))
            for body in self.client.bodies
        ]
        self.steps, self.falls, self.time, self.distance = 0, 0, 0.0, 0.0
        self.result, self.down = "", False

    @property
    def x(self) -> float:
        """The torso's position along the lane [m]."""
        return float(self.env.robot.body_real_xyz[0])

    def joint_angles(self, body: int) -> list[float]:
        joints = range(self.client.getNumJoints(body))
        return [self.client.getJointState(body, joint)[0] for joint in joints]

    @torch.no_grad()
    def act(self) -> None:
        """Set the torques of the next step, from the observation of the last."""
        if self.down:
            return
        if self.steps % self.args.action_repeat == 0:
            obs = self.script.to_tensor(self.obs, "cpu").unsqueeze(0)
            self.action = self.wrapped.action(self.agent.actor(obs).squeeze(0).numpy())  # [A]
        self.steps += 1
        self.env.robot.apply_action(self.action)

    def observe(self, now: float, args: Args) -> None:
        """Observe the step that was made, and note whether the robot has arrived or fallen."""
        if self.down:
            return
        self.obs, _, fallen, _, _ = self.env.step(self.action)
        if not self.result:
            self.time, self.distance = now, self.x - self.start_x
            if self.distance >= args.distance:
                self.result = "finished"
        if fallen:
            self.falls += not self.result
            if args.get_up:
                self.get_up()
            else:
                self.down, self.result = True, self.result or "fell"

    def get_up(self) -> None:
        """Set the robot upright and still, as far along the lane as it is."""
        way = self.x - self.start_x
        for body, (x, y, z), orientation, angles in self.pose:
            self.client.resetBasePositionAndOrientation(body, (x + way, y, z), orientation)
            self.client.resetBaseVelocity(body, (0, 0, 0), (0, 0, 0))
            for joint, angle in enumerate(angles):
                self.client.resetJointState(body, joint, angle, 0)
        self.obs = self.env.robot.reset(self.client)  # with new random angles, as in every episode


def load(run: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The script, the Args and the agent's weights of a run; exits if it cannot race."""
    path = run / "best.pt"
    if not path.is_file():
        fail(f"{run} holds no best.pt; give the folder of a run that was evaluated at least once")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        name, settings = checkpoint["script"], checkpoint["args"]
    except Exception as error:  # a damaged or malicious file may raise anything
        fail(f"{path} is damaged or not a checkpoint ({str(error).splitlines()[0]})")
    if name not in SCRIPTS:
        fail(f"{path} was written by {name}.py; runners come from {', '.join(SCRIPTS)}")
    if settings["env_id"] not in [f"{robot}BulletEnv-v0" for robot in ROBOTS]:
        kinds = ", ".join(ROBOTS)
        fail(
            f"{run} is a run of {settings['env_id']}; runners are {kinds}, as in {ROBOTS[0]}BulletEnv-v0"
        )
    return SCRIPTS[name], SCRIPTS[name].Args(**settings | {"device": "cpu"}), checkpoint["agent"]


def race(
    runners: Sequence[Runner],
    seed: int,
    args: Args,
    watch: Callable[[BulletClient, float], None] = lambda simulator, now: None,
) -> list[dict[str, Any]]:
    """Run one race; returns its table, a row for each runner in the order of their places.

    watch is called before the first step and after every step, with the time in seconds.
    """
    simulator = BulletClient(pybullet.GUI if args.render else pybullet.DIRECT)
    # As the environments do: the order of contacts, and with it the motion, does not vary.
    simulator.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
    scene = runners[0].wrapped.unwrapped.create_single_player_scene(simulator)
    scene.multiplayer = True
    scene.episode_restart(simulator)  # loads the ground
    for runner in runners:
        runner.enter(simulator, scene, seed)
    separate(simulator, [runner.client.bodies for runner in runners])
    steps, now = 0, 0.0
    watch(simulator, now)
    while now < args.seconds and not all(runner.result for runner in runners):
        for runner in runners:
            runner.act()
        scene.global_step()
        steps += 1
        now = steps * scene.dt
        for runner in runners:
            runner.observe(now, args)
        watch(simulator, now)
    simulator.disconnect()
    return table(runners, seed)


def separate(simulator: BulletClient, robots: list[tuple[int, ...]]) -> None:
    """Let no robot touch another, also where one leaves its lane."""
    links = [
        [(body, link) for body in bodies for link in range(-1, simulator.getNumJoints(body))]
        for bodies in robots
    ]
    for one, other in itertools.combinations(links, 2):
        for (body, link), (other_body, other_link) in itertools.product(one, other):
            simulator.setCollisionFilterPair(body, other_body, link, other_link, 0)


def table(runners: Sequence[Runner], seed: int) -> list[dict[str, Any]]:
    """Those who arrived come first, by time; the others follow, by distance. Ties share a place."""
    rank = {r: (r.time if r.result == "finished" else math.inf, -r.distance) for r in runners}
    return [
        {
            "seed": seed,
            "place": 1 + sum(rank[other] < rank[r] for other in runners),
            "lane": r.lane + 1,
            "robot": r.robot,
            "algorithm": r.algorithm,
            "result": r.result or "time limit",
            "time_s": round(r.time, 3),
            "distance_m": round(r.distance, 3),
            "speed_m_s": round(r.distance / r.time, 3),
            "falls": r.falls,
            "run": str(r.run),
        }
        for r in sorted(runners, key=rank.__getitem__)
    ]


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means over all races, a row for each runner, from the most wins to the fewest."""
    lanes: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        lanes.setdefault(row["lane"], []).append(row)
    mean = lambda key, some: round(statistics.fmean(row[key] for row in some), 3)  # noqa: E731
    found = []
    for lane, own in lanes.items():
        arrived = [row for row in own if row["result"] == "finished"]
        wins = sum(row["place"] == 1 for row in own)
        found.append(
            {
                "place": mean("place", own),
                "lane": lane,
                "robot": own[0]["robot"],
                "algorithm": own[0]["algorithm"],
                "wins": wins,
                "win_rate": round(wins / len(own), 3),
                "finished": len(arrived),
                "time_s": mean("time_s", arrived) if arrived else "-",
                "distance_m": mean("distance_m", own),
                "speed_m_s": mean("speed_m_s", own),
                "falls": mean("falls", own),
            }
        )
    return sorted(found, key=lambda row: (-row["wins"], row["place"]))


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as aligned columns."""
    lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip())


class Film:
    """An MP4 file of a race: a camera that follows, the lanes, and a name over each robot."""

    def __init__(self, path: Path, runners: Sequence[Runner], args: Args) -> None:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
        from PIL import ImageFont

        self.runners, self.args, self.steps = runners, args, 0
        self.font = ImageFont.load_default(15)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = FFMPEG_VideoWriter(str(path), (WIDTH, HEIGHT), 1 / (0.0165 * FRAME))

    def __call__(self, simulator: BulletClient, now: float) -> None:
        """Add a picture of this moment, every FRAME steps."""
        if self.steps == 0:
            draw_lanes(simulator, len(self.runners), self.args.distance)
        if self.steps % FRAME == 0:
            self.file.write_frame(self.picture(simulator, now))
        self.steps += 1

    def picture(self, simulator: BulletClient, now: float) -> np.ndarray:
        """The picture as [HEIGHT, WIDTH, 3], in uint8."""
        from PIL import Image, ImageDraw

        target, distance = focus(self.runners)
        view = simulator.computeViewMatrixFromYawPitchRoll(target, distance, YAW, PITCH, 0, 2)
        projection = simulator.computeProjectionMatrixFOV(45, WIDTH / HEIGHT, 0.1, 100)
        pixels = simulator.getCameraImage(
            WIDTH, HEIGHT, view, projection, renderer=pybullet.ER_TINY_RENDERER
        )[2]
        image = Image.fromarray(np.reshape(pixels, (HEIGHT, WIDTH, 4)).astype(np.uint8)[..., :3])
        draw = ImageDraw.Draw(image)
        draw.text((12, 8), f"{now:.1f} s", "black", self.font)
        to_clip = np.reshape(projection, (4, 4)).T @ np.reshape(view, (4, 4)).T  # OpenGL's order
        for runner in self.runners:
            x, y, _, w = to_clip @ [runner.x, -LANE * runner.lane, 1.7, 1]
            place = WIDTH * (1 + x / w) / 2, HEIGHT * (1 - y / w) / 2
            text = f"{runner.name}: {runner.result or f'{runner.x - runner.start_x:.1f} m'}"
            draw.text(place, text, "black", self.font, "ms", stroke_width=2, stroke_fill="white")
        return np.asarray(image)

    def close(self) -> None:
        self.file.close()


def window(runners: Sequence[Runner], args: Args) -> Callable[[BulletClient, float], None]:
    """A function that keeps the window's camera on the runners, and its clock at real time."""

    def watch(simulator: BulletClient, now: float) -> None:
        if now == 0:
            draw_lanes(simulator, len(runners), args.distance)
            for runner in runners:
                simulator.addUserDebugText(runner.name, (0, -LANE * runner.lane, 1.7), (0, 0, 0))
        target, distance = focus(runners)
        simulator.resetDebugVisualizerCamera(distance, YAW, PITCH, target)
        time.sleep(0.0165)

    return watch


def focus(runners: Sequence[Runner]) -> tuple[tuple[float, float, float], float]:
    """The point amid the runners on their feet, to look at, and how far from it to stand [m]."""
    xs = [r.x for r in runners if not r.down] or [r.x for r in runners]
    middle = (1 - len(runners)) * LANE / 2
    return ((max(xs) + min(xs)) / 2, middle, 0.6), 4 + max(xs) - min(xs) - middle


def draw_lanes(simulator: BulletClient, lanes: int, length: float) -> None:
    """Draw lines between the lanes, at the start and at the finish, which nothing can touch."""
    middle = (1 - lanes) * LANE / 2
    across, along = (0.06, lanes * LANE / 2, 0.005), (length / 2, 0.03, 0.005)
    boxes = [((x, middle, 0.01), across) for x in (0.0, length)]
    boxes += [((length / 2, LANE * (0.5 - i), 0.01), along) for i in range(lanes + 1)]
    for place, half in boxes:
        shape = simulator.createVisualShape(
            pybullet.GEOM_BOX, halfExtents=half, rgbaColor=(0.2, 0.2, 0.3, 1)
        )
        simulator.createMultiBody(0, -1, shape, place)  # mass 0, no collision shape


def read_args() -> Args:
    """The flags, checked."""
    args = tyro.cli(Args, description=str(__doc__).split("\n")[0])
    try:
        TypeAdapter(Args).validate_python(dataclasses.asdict(args))
    except ValidationError as error:
        wrong = error.errors()[0]
        fail(f"--{str(wrong['loc'][0]).replace('_', '-')} is {wrong['input']}: {wrong['msg']}")
    if not 2 <= len(args.runs) <= 6:
        fail(
            f"a race has two to six runners, a run folder for each, and {len(args.runs)} was given"
        )
    if args.capture_video and args.capture_video.suffix != ".mp4":
        fail(f"--capture-video is {args.capture_video}, and must be a file that ends in .mp4")
    return args


def fail(message: str) -> NoReturn:
    """End the program with one sentence, and the exit code of bad input."""
    print(f"race: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Run the races, and show and write their tables."""
    args = read_args()
    runners = [Runner(run, lane) for lane, run in enumerate(args.runs)]
    rows: list[dict[str, Any]] = []
    for seed in range(args.seed, args.seed + args.races):
        if args.capture_video and seed == args.seed:
            with contextlib.closing(Film(args.capture_video, runners, args)) as film:
                rows += race(runners, seed, args, film)
        elif args.render:
            rows += race(runners, seed, args, window(runners, args))
        else:
            rows += race(runners, seed, args)
    show(means(rows) if args.races > 1 else rows)
    if args.csv:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
