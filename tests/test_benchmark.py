"""The launcher, the plots and the speed table of benchmark/."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import tyro

ROOT = Path(__file__).parent.parent
BENCHMARK = ROOT / "benchmark"
ENVS = ["Pendulum-v1", "MountainCarContinuous-v0"]
# The smallest runs that evaluate, learn and save: a few episodes.
LENGTHS = {"total-timesteps": 2000, "learning-starts": 50, "save-interval": 100, "batch-size": 16}
SIZES = {"actor-hidden-sizes": 8, "critic-hidden-sizes": 8, "eval-interval": 200}
TINY = ["--no-compile", "--eval-episodes", "1"]
TINY += [part for flag, value in (LENGTHS | SIZES).items() for part in (f"--{flag}", str(value))]


def load(name: str) -> ModuleType:
    """Import a program of benchmark/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARK / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(BENCHMARK))  # one imports others
plot, speed, temperature = load("plot"), load("speed"), load("temperature")
runaway = load("runaway")


# The launcher


def environment(path: Path | None = None) -> dict[str, str]:
    """The environment of a launcher, with a folder of stand-ins first on the PATH."""
    first = f"{path}{os.pathsep}" if path else ""
    return dict(os.environ, PYTHON=sys.executable, PATH=first + os.environ["PATH"])


def command(runs: Path, *more: str, envs: list[str] = ENVS, seeds: str = "1 2") -> list[str]:
    head = [str(BENCHMARK / "run.sh"), "--script", "ddpg_continuous.py", "--env-ids", *envs]
    grid = ["--seeds", *seeds.split(), "--workers", "2", "--runs-dir", str(runs)]
    return [*head, *grid, *more, "--", *TINY]


def launch(
    runs: Path, *more: str, path: Path | None = None, envs: list[str] = ENVS, seeds: str = "1 2"
) -> subprocess.CompletedProcess[str]:
    line = command(runs, *more, envs=envs, seeds=seeds)
    return subprocess.run(
        line, env=environment(path), capture_output=True, text=True, check=False, timeout=200
    )


def untimed(path: Path) -> list[list[str]]:
    """A CSV file's rows without the column of seconds, the only one that may differ."""
    rows = list(csv.reader(path.open()))
    column = rows[0].index("seconds")
    return [row[:column] + row[column + 1 :] for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid of 2 environments x 2 seeds, run without interruption."""
    runs = tmp_path_factory.mktemp("whole")
    done = launch(runs)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs


def test_a_grid_that_is_killed_and_started_again_comes_to_the_same_end(
    whole: Path, tmp_path: Path
) -> None:
    pipe = subprocess.PIPE
    started = subprocess.Popen(command(tmp_path), env=environment(), stdout=pipe, stderr=pipe)
    begun = tmp_path / "Pendulum-v1__ddpg_continuous__1"
    deadline = time.time() + 60
    while not (begun / "checkpoint.pt").exists() and time.time() < deadline:
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 143
    assert b"the same command" in errors
    assert not (begun / "finished").exists(), "killed too late to test anything"
    assert len(list(tmp_path.iterdir())) == 2, "the launcher went on after the signal"

    again = launch(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    folders = sorted(folder.name for folder in whole.iterdir())
    assert sorted(folder.name for folder in tmp_path.iterdir()) == folders and len(folders) == 4
    for folder in folders:
        for name in ("evaluations.csv", "episodes.csv"):
            assert untimed(tmp_path / folder / name) == untimed(whole / folder / name)


def test_a_finished_grid_is_skipped(whole: Path) -> None:
    before = {path: path.stat().st_mtime for path in whole.glob("*/checkpoint.pt")}
    again = launch(whole)
    assert again.returncode == 0
    assert again.stdout.count("finished before:") == 4
    assert {path: path.stat().st_mtime for path in whole.glob("*/checkpoint.pt")} == before


def test_a_run_is_finished_also_where_the_launcher_was_killed_before_it(whole: Path) -> None:
    (whole / "Pendulum-v1__ddpg_continuous__1" / "finished").unlink()
    assert launch(whole, "--dry-run").stdout.count("finished before:") == 4


def test_a_folder_never_mixes_runs_of_different_flags(whole: Path) -> None:
    done = subprocess.run(
        [*command(whole), "--gamma", "0.5"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "take another --name or --runs-dir" in done.stderr


def test_a_folder_never_mixes_two_scripts(whole: Path) -> None:
    more = ["--script", "td3_continuous.py", "--name", "ddpg_continuous"]
    done = launch(whole, *more)
    assert done.returncode == 2
    assert "was begun with: ddpg_continuous.py" in done.stderr


def test_a_mistyped_flag_is_named_and_can_be_set_right(tmp_path: Path) -> None:
    line = command(tmp_path, envs=ENVS[:1], seeds="1")
    wrong = subprocess.run([*line, "--gama", "0.5"], env=environment(), capture_output=True)
    assert wrong.returncode == 1
    assert "--gama" in wrong.stderr.decode().splitlines()[-1]
    right = subprocess.run([*line, "--gamma", "0.5"], env=environment(), capture_output=True)
    assert right.returncode == 0, right.stderr


CANNOT_SAVE = """
import sys, pathlib
run = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
(run / "args.json").write_text('{"total_timesteps": 100}')
(run / "checkpoint.pt").write_text("of step 50")
(run / "evaluations.csv").write_text("env_step\\n100\\n")
sys.exit("no space left on device")
"""


def test_a_run_that_cannot_write_its_last_checkpoint_is_not_finished(tmp_path: Path) -> None:
    script = tmp_path / "cannot_save.py"
    script.write_text(CANNOT_SAVE)
    done = launch(tmp_path / "runs", "--script", str(script), envs=ENVS[:1], seeds="1")
    assert done.returncode == 1
    assert "no space left on device" in done.stderr
    again = launch(
        tmp_path / "runs", "--script", str(script), "--dry-run", envs=ENVS[:1], seeds="1"
    )
    assert "finished before" not in again.stdout and "cannot_save.py" in again.stdout


def test_a_failed_run_is_named_with_its_log_and_the_others_go_on(tmp_path: Path) -> None:
    done = launch(tmp_path, envs=["Nothing-v1", "Pendulum-v1"], seeds="1")
    assert done.returncode == 1
    failed = tmp_path / "Nothing-v1__ddpg_continuous__1"
    assert f"failed: {failed}: ddpg_continuous: cannot make Nothing-v1" in done.stderr
    assert str(failed / "log.txt") in done.stderr
    assert (tmp_path / "Pendulum-v1__ddpg_continuous__1" / "finished").exists()
    assert not (failed / "finished").exists()


def test_dry_run_prints_the_commands_and_does_nothing(tmp_path: Path) -> None:
    done = launch(tmp_path / "runs", "--dry-run", "--track")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4
    assert "ddpg_continuous.py --env-id Pendulum-v1 --seed 1" in done.stdout
    assert "--track" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_smoke_is_a_thousandth_as_long_and_in_a_folder_of_its_own(tmp_path: Path) -> None:
    line = [str(BENCHMARK / "studies" / "ddpg_bullet.sh"), "--smoke", "--dry-run"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
    runs = done.stdout.splitlines()
    assert len(runs) == 5 * 5 * 3, "settings x environments x seeds"
    assert all("--total-timesteps 1000 --learning-starts 10 " in run for run in runs)
    assert all("--run-dir runs/ddpg_bullet/smoke/" in run for run in runs)


def test_smoke_shortens_what_a_study_leaves_to_the_script_too(tmp_path: Path) -> None:
    head = [str(BENCHMARK / "run.sh"), "--script", "td3_continuous.py", "--env-ids", "Pendulum-v1"]
    line = [*head, "--smoke", "--dry-run", "--seeds", "1", "--"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
    assert "--total-timesteps 1000 --learning-starts 10 " in done.stdout
    for words in ["--total-timesteps=5"], ["--total-timesteps", "1e6"]:
        done = subprocess.run([*line, *words], env=environment(), capture_output=True, text=True)
        assert done.returncode == 2 and "--total-timesteps" in done.stderr


STUDIES = sorted((BENCHMARK / "studies").glob("*.sh"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.stem)
def test_the_flags_of_every_study_are_accepted_by_its_script(study: Path) -> None:
    line = [str(study), "--smoke", "--dry-run"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
    commands = [shlex.split(run) for run in done.stdout.splitlines()]
    assert len(commands) > 1
    folders = set()
    for words in commands:
        (script,) = (word for word in words if word.endswith(".py"))
        module = importlib.import_module(Path(script).stem)
        args = tyro.cli(module.Args, args=words[words.index(script) + 1 :])
        module.check_args(args)
        assert str(args.run_dir).startswith(f"runs/{study.stem}/smoke/")
        assert args.total_timesteps <= 10_000
        folders.add(args.run_dir)
    assert len(folders) == len(commands), "two settings have the same name"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wrokers", "2"], "--wrokers is no flag"),
        (["--workers", "0"], "--workers is 0"),
        (["--backend", "pigeon"], "--backend is pigeon"),
        (["--script", "no.py"], "no script no.py"),
        (["--seeds", "one"], "--seeds has one"),
        (["--env-ids"], "--env-ids needs"),
        (["--seeds"], "--seeds needs"),
        (["--seeds", "1", "2", "1"], "--seeds has a number twice"),
    ],
)
def test_launcher_names_bad_input(tmp_path: Path, flags: list[str], message: str) -> None:
    done = launch(tmp_path, *flags)
    assert done.returncode == 2
    assert message in done.stderr


def test_slurm_dry_run_prints_one_array_and_submits_nothing(tmp_path: Path) -> None:
    done = launch(tmp_path / "runs", "--backend", "slurm", "--dry-run")
    assert done.returncode == 0
    assert "sbatch --array=0\\,1\\,2\\,3%2" in done.stdout
    assert not (tmp_path / "runs").exists()


SBATCH = """#!/usr/bin/env bash
# A stand-in for SLURM: runs the tasks of the array at once, one after another.
script=''
while (($#)); do
    case $1 in
        --array=*) tasks=${1#--array=} ;;
        --chdir=*) cd "${1#--chdir=}" ;;
        -*) ;;
        *) break ;;
    esac
    shift
done
for task in $(echo "${tasks%%%*}" | tr , ' '); do
    SLURM_ARRAY_TASK_ID=$task bash "$@" || echo "task $task failed"
done
"""


def test_slurm_tasks_do_one_run_each_and_only_those_that_are_left(
    whole: Path, tmp_path: Path
) -> None:
    stand_in = tmp_path / "bin" / "sbatch"
    stand_in.parent.mkdir()
    stand_in.write_text(SBATCH)
    stand_in.chmod(0o755)
    runs = tmp_path / "runs"
    slurm = ["--backend", "slurm"]
    first = launch(runs, *slurm, path=stand_in.parent, envs=ENVS[:1], seeds="1")
    assert first.returncode == 0, first.stdout + first.stderr
    both = launch(runs, *slurm, path=stand_in.parent, envs=ENVS[:1], seeds="1 2")
    assert "sbatch --array=1%2" in both.stdout, "task 0 is finished, and not submitted again"
    for seed in (1, 2):
        name = f"Pendulum-v1__ddpg_continuous__{seed}"
        rows = untimed(runs / name / "evaluations.csv")
        assert rows == untimed(whole / name / "evaluations.csv")


RAY = """#!/usr/bin/env bash
# A stand-in for Ray's jobs: processes here. To stop one, every process of it is told.
tree() { echo "$1" && for child in $(pgrep -P "$1"); do tree "$child"; done; }
jobs=$(dirname "$0")
if [[ "$1 $2" == "job stop" ]]; then
    for process in $(tree "$(< "$jobs/${*: -1}")"); do kill -TERM "$process" && sleep 0.3; done
    exit
fi
while [[ $1 != -- ]]; do
    [[ $1 == --submission-id ]] && id=$2
    shift
done
"${@:2}" &
echo $! > "$jobs/$id"
wait
exit 0
"""


COUNT = """
import signal, sys, time
from pathlib import Path

signals = []
signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
(folder / "ready").touch()
while not signals:
    time.sleep(0.01)
time.sleep(2)
(folder / "signals").write_text(str(len(signals)))
sys.exit(143)
"""


def ray_stand_in(folder: Path) -> Path:
    """A folder with the stand-in, for the PATH."""
    folder.mkdir()
    (folder / "ray").write_text(RAY)
    (folder / "ray").chmod(0o755)
    return folder


def wait_for(path: Path) -> None:
    deadline = time.time() + 120
    while not path.exists() and time.time() < deadline:
        time.sleep(0.02)


def test_a_run_is_told_once_that_its_ray_job_stops(tmp_path: Path) -> None:
    """The second signal would end it at once, unsaved."""
    (tmp_path / "count.py").write_text(COUNT)
    line = command(tmp_path, "--backend", "ray", envs=ENVS[:1], seeds="1")
    line[line.index("--script") + 1] = str(tmp_path / "count.py")
    started = subprocess.Popen(line, env=environment(ray_stand_in(tmp_path / "bin")))
    run = tmp_path / f"{ENVS[0]}__count__1"
    wait_for(run / "ready")
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=120) == 143
    assert (run / "signals").read_text() == "1"


def test_a_stopped_ray_job_saves_its_run_which_then_comes_to_the_same_end(
    whole: Path, tmp_path: Path
) -> None:
    path, runs = ray_stand_in(tmp_path / "bin"), tmp_path / "runs"
    line = command(runs, "--backend", "ray", envs=ENVS[:1], seeds="1")
    pipe = subprocess.PIPE
    started = subprocess.Popen(line, env=environment(path), stdout=pipe, stderr=pipe)
    run = runs / "Pendulum-v1__ddpg_continuous__1"
    wait_for(run / "checkpoint.pt")
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate(timeout=120)
    assert started.returncode == 143, out + err
    assert "saved step" in (run / "log.txt").read_text()
    assert not (run / "finished").exists(), "killed too late to test anything"

    again = launch(runs, "--backend", "ray", path=path, envs=ENVS[:1], seeds="1")
    assert again.returncode == 0, again.stdout + again.stderr
    for name in ("evaluations.csv", "episodes.csv"):
        assert untimed(run / name) == untimed(whole / run.name / name)


# The plots


def write_run(folder: Path, returns: list[float], step: int = 100) -> Path:
    """A run folder with an evaluation, and one episode, every so many steps."""
    folder.mkdir(parents=True)
    head = ",".join(
        ["env_step,seconds,mean_return,std_return,min_return,max_return", "mean_length"]
    )
    rows = [f"{step * (i + 1)},{i + 1},{r},0,{r},{r},200,1" for i, r in enumerate(returns)]
    (folder / "evaluations.csv").write_text("\n".join([head + ",episodes", *rows]) + "\n")
    rows = [f"{step * (i + 1)},{r},200,{i + 1}" for i, r in enumerate(returns)]
    head = "env_step,episodic_return,episodic_length,seconds"
    (folder / "episodes.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def run_plot(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(BENCHMARK / "plot.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    scores = np.array([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -100.0])
    assert plot.iqm(scores) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_interval_is_that_of_all_possible_resamples() -> None:
    # Four runs have 4^4 = 256 resamples, so their 2.5% and 97.5% quantiles can be counted out. Of
    # four values the interquartile mean is the mean of the middle two.
    scores = [0.0, 1.0, 10.0, 100.0]
    every = [sum(sorted(draw)[1:3]) / 2 for draw in itertools.product(scores, repeat=4)]
    value, low, high = plot.interval([np.array(scores)], plot.iqm, resamples=20_000)
    assert value == 5.5
    assert low == np.quantile(every, 0.025) == 0.0
    assert high == np.quantile(every, 0.975) == 100.0


def test_a_curve_is_compared_with_a_peer_s_figure_at_about_as_many_steps() -> None:
    rows = [{"implementation": "a", "env_steps": steps} for steps in ("100000", "1000000")]
    rows.append({"implementation": "b", "env_steps": ""})
    assert plot.nearest(rows, 200_000) == [rows[0], rows[2]]
    assert plot.nearest(rows, 600_000) == [rows[1], rows[2]]


def test_bootstrap_is_stratified_by_environment() -> None:
    # Runs are equal within each environment: drawn within it they leave nothing to chance, drawn
    # from all together they would.
    strata = [np.zeros(4), np.full(4, 10.0)]
    value, low, high = plot.interval(strata, plot.iqm)
    assert low == value == high == 5.0


def test_interval_of_a_single_run_is_not_a_number() -> None:
    value, low, high = plot.interval([np.array([3.0])], plot.iqm)
    assert value == 3.0 and np.isnan([low, high]).all()


def test_probability_of_improvement_counts_pairs_and_averages_environments() -> None:
    # First environment: of the pairs (1,0) (1,2) (3,0) (3,2) three are won. Second: one tie.
    x, y = [np.array([1.0, 3.0]), np.array([5.0])], [np.array([0.0, 2.0]), np.array([5.0])]
    assert plot.improvement(*x, *y) == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_curves_go_as_far_as_all_seeds_and_table_gives_that_step(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "Pendulum-v1__ddpg_continuous__1", [1.0, 2.0, 3.0])
    write_run(tmp_path / "runs" / "Pendulum-v1__ddpg_continuous__2", [3.0, 4.0])
    write_run(tmp_path / "runs" / "Pendulum-v1__td3_continuous__1__1700000000", [9.0, 9.0])
    out = tmp_path / "out"
    pair = ["--compare", "td3_continuous", "ddpg_continuous"]
    done = run_plot(tmp_path / "runs", "--out", out, *pair)
    assert done.returncode == 0, done.stderr
    ddpg, td3 = csv.DictReader((out / "results.csv").open())
    assert (ddpg["env_steps"], ddpg["seeds"], ddpg["mean"], ddpg["std"]) == (
        "200",
        "2",
        "3.0",
        "1.0",
    )
    assert (td3["what"], td3["low"]) == ("td3_continuous", "")
    assert "| td3_continuous | ddpg_continuous | 1 | 1.00 |" in (out / "improvement.md").read_text()
    for figure in ("returns_by_steps", "returns_by_episodes", "returns_by_seconds", "improvement"):
        assert (out / f"{figure}.svg").stat().st_size > 1000
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_runs_are_compared_at_a_step_that_both_have_reached(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "Pendulum-v1__new__1", [1.0, 2.0])
    write_run(tmp_path / "runs" / "Pendulum-v1__old__1", [0.0, 1.0, 3.0, 4.0])
    done = run_plot(tmp_path / "runs", "--out", tmp_path, "--compare", "old", "new")
    assert done.returncode == 0, done.stderr
    assert "| old | new | 1 | 0.00 |" in (tmp_path / "improvement.md").read_text()
    write_run(tmp_path / "runs" / "Pendulum-v1__late__1", [9.0], step=900)
    done = run_plot(tmp_path / "runs", "--out", tmp_path, "--compare", "old", "late")
    assert done.returncode == 2 and "no number of steps in common" in done.stderr


def test_seeds_without_a_common_range_are_left_out_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "Pendulum-v1__a__1", [1.0, 2.0])
    write_run(tmp_path / "runs" / "Pendulum-v1__a__2", [1.0, 2.0], step=1000)
    write_run(tmp_path / "runs" / "Pendulum-v1__b__1", [5.0, 6.0])
    done = run_plot(tmp_path / "runs", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "Pendulum-v1, a: its seeds share no range of environment steps" in done.stderr


def test_what_a_smoke_run_left_is_not_plotted_beside_results(tmp_path: Path) -> None:
    write_run(tmp_path / "Pendulum-v1__a__1", [1.0, 2.0])
    write_run(tmp_path / "smoke" / "Pendulum-v1__a__1", [7.0])
    for folder, returns in (tmp_path, [1.0, 2.0]), (tmp_path / "smoke", [7.0]):
        (runs,) = plot.read_runs([folder], 0).values()
        assert len(runs) == 1
        assert runs[0].y.tolist() == returns


def test_published_figures_stand_beside_ours_with_their_source(tmp_path: Path) -> None:
    write_run(tmp_path / "HopperBulletEnv-v0__ddpg_continuous__1", [10.0, 20.0])
    done = run_plot(tmp_path, "--out", tmp_path / "out")
    assert "| HopperBulletEnv-v0 | SB3 DDPG | 1,000,000 |  |  | 1201 ± 211 |" in done.stdout
    assert "https://stable-baselines3.readthedocs.io" in done.stdout


def test_running_mean_is_of_the_last_training_episodes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "Pendulum-v1__a__1", [1.0, 2.0, 6.0, 7.0])
    run = plot.read_run(folder, running_mean=2)
    assert run.y.tolist() == [1.5, 4.0, 6.5]
    assert run.x["steps"].tolist() == [200, 300, 400]
    assert run.x["episodes"].tolist() == [2, 3, 4]


def test_a_curve_of_one_evaluation_is_a_point_and_others_are_lines(tmp_path: Path) -> None:
    write_run(tmp_path / "Pendulum-v1__short__1", [1.0])
    write_run(tmp_path / "Pendulum-v1__long__1", [1.0, 2.0])
    figure = plot.curves(plot.read_runs([tmp_path], 0), "steps", [], 0)
    marks = {len(line.get_xdata()): line.get_marker() for line in figure.axes[0].lines}
    assert marks == {1: "o", 2: "None"}


def test_long_names_stand_below_one_another_and_leave_the_curves_their_room(
    tmp_path: Path,
) -> None:
    heights = {}
    for length in 5, 30:
        folder = tmp_path / str(length)
        for letter in "abcdefgh":
            write_run(folder / f"Pendulum-v1__{letter * length}__1", [1.0, 2.0])
        figure = plot.curves(plot.read_runs([folder], 0), "steps", [], 0)
        figure.canvas.draw()
        (legend,) = figure.legends
        assert legend.get_window_extent().x0 >= 0, "cut off"
        heights[length] = figure.axes[0].get_window_extent().height
    assert heights[30] > 0.9 * heights[5]


def test_half_written_last_row_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "Pendulum-v1__a__1", [1.0, 2.0])
    with (folder / "evaluations.csv").open("a") as file:
        file.write("300,3,1")  # of 19.5
    assert plot.read_run(folder, running_mean=0).y.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("content", ["", "env_step,seco", "env_step,seconds,mean_return\n", None])
def test_runs_without_results_are_left_out_by_name(tmp_path: Path, content: str | None) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "Pendulum-v1__a__1", [1.0, 2.0])
    bare = write_run(runs / "Pendulum-v1__a__2", [1.0, 2.0])
    (bare / "evaluations.csv").unlink()
    if content is not None:
        (bare / "evaluations.csv").write_text(content)
    done = run_plot(runs, "--out", tmp_path / "out")
    assert done.returncode == 0
    assert f"{bare} is left out" in done.stderr
    assert next(csv.DictReader((tmp_path / "out" / "results.csv").open()))["seeds"] == "1"


def test_damaged_row_and_other_bad_input_get_one_sentence(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "Pendulum-v1__a__1", [1.0, 2.0])
    path, out = folder / "evaluations.csv", tmp_path / "out"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "100,1,what", lines[2]]) + "\n")
    cases = {
        "line 2 is damaged": [folder],
        "there is no folder": [tmp_path / "none"],
        "has no readable args.json": [write_run(tmp_path / "mine", [1.0])],
    }
    for message, runs in cases.items():
        done = run_plot(*runs, "--out", out)
        assert done.returncode == 2 and message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    path.write_text("\n".join(lines) + "\n")
    done = run_plot(folder, "--out", out, "--compare", "a", "b")
    assert done.returncode == 2 and "the runs are of a" in done.stderr


# The speed table


def test_speed_ratio_is_the_median_of_each_rounds_own_ratio() -> None:
    # The machine is twice as slow in round 1, for both. The ratio of medians would be 2.29.
    seconds = {"Stable-Baselines3": [10.0, 20.0, 12.0], "FolioRL": [5.0, 10.0, 4.0]}
    rows = [
        {"algorithm": "ddpg", "contender": name, "round": i, "steps": 1000, "wall": s, "cpu": s / 2}
        for name, times in seconds.items()
        for i, s in enumerate(times)
    ]
    base, ours = speed.table(rows).splitlines()[2:]
    assert base == "| DDPG | Stable-Baselines3 | 167 (133 to 183) | 83 (67 to 92) | 1.00 | 1.00 |"
    assert ours == "| DDPG | FolioRL | 400 (300 to 450) | 200 (150 to 225) | 2.00 | 2.00 |"


def test_speed_measures_the_whole_loop_of_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "PEERS", {"ddpg": {}})
    flags = ["--algorithms", "ddpg", "--env-id", "Pendulum-v1", "--segment", "40", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *flags, "--out", str(tmp_path)])
    speed.main()
    rows = list(csv.DictReader((tmp_path / "speed.csv").open()))
    assert [(row["contender"], row["steps"]) for row in rows] == [("FolioRL", "40")] * 2
    assert all(float(row["cpu"]) > 0 for row in rows)
    assert "| DDPG | FolioRL |" in (tmp_path / "speed.md").read_text()
    # Of the peers' packages gymnasium is here, and others are not; that hides none of the rest.
    assert f"gymnasium {version('gymnasium')}" in (tmp_path / "speed.md").read_text()


# The temperature


def test_a_density_with_an_epsilon_lets_the_temperature_grow_without_bound() -> None:
    exact, entropy = temperature.settle("exact", "plain", start=20.0, updates=6000)
    assert exact < 10 and entropy > -1.5
    inexact, entropy = temperature.settle("with 1e-6", "plain", start=20.0, updates=6000)
    assert inexact > 1e4 and entropy < -3


def test_a_clamp_that_passes_the_gradient_on_lets_the_temperature_come_back() -> None:
    passing, entropy = temperature.settle("with 1e-6", "passes the gradient on", 20.0, updates=6000)
    assert passing < 1e4 and entropy > -1


def test_the_runaways_actor_is_the_scripts_but_for_the_clamps_gradient_and_the_density() -> None:
    torch.manual_seed(1)  # under other weights a deviation might come below its bound
    actor = runaway.sac.Actor(3, 1, runaway.sac.Args(actor_hidden_sizes=(8,)))
    obs, bias = torch.randn(64, 3), actor.head.bias
    for forward, beyond in (actor, True), (partial(runaway.plain_forward, actor), False):
        for log_std, passes in (0.0, True), (5.0, beyond):  # 2 is the bound
            bias.data[1], bias.grad = log_std, None
            mean, std, features = forward(obs)
            torch.testing.assert_close((mean, std, features), actor(obs))
            std.sum().backward()
            assert (bias.grad[1] != 0) == passes
    for mean, equal in (0.0, True), (20.0, False):
        bias.data[:] = torch.tensor([mean, -1.0])
        torch.manual_seed(1)
        action, log_prob = actor.sample(obs)
        torch.manual_seed(1)
        other, inexact = runaway.inexact_sample(actor, obs)
        assert torch.equal(action, other)
        assert torch.allclose(log_prob, inexact, atol=1e-2) == equal


def test_the_runaway_writes_what_its_runs_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [f"--{flag}={value}" for flag, value in SIZES.items()]
    words = ["--out", str(tmp_path), "--steps", "120", "--env-id=Pendulum-v1", *sizes]
    monkeypatch.setattr(runaway, "VARIANTS", runaway.VARIANTS[:1])
    monkeypatch.setattr(sys, "argv", ["runaway.py", *words, "--learning-starts=100"])
    runaway.main()
    (row,) = csv.DictReader((tmp_path / "losses.csv").open())
    assert (row["density"], row["clamp"], row["env_step"]) == ("exact", "plain", "101")
    assert float(row["alpha"]) == pytest.approx(0.1)
    assert (tmp_path / "runaway.svg").exists()
    for refused in "--tau=2", "--run-dir=elsewhere":
        monkeypatch.setattr(sys, "argv", ["runaway.py", *words, refused])
        with pytest.raises(SystemExit, match="2"):
            runaway.main()
