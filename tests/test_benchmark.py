"""The launcher, the studies, the plots and the speed table of benchmark/."""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import tyro
from pydantic import TypeAdapter

ROOT = Path(__file__).parent.parent
BENCHMARK = ROOT / "benchmark"
STUDIES = sorted(path.stem for path in (BENCHMARK / "studies").glob("*.sh"))


def load(name: str) -> ModuleType:
    """Import a program of benchmark/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARK / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plot, temperature = load("plot"), load("temperature")  # the others import them
speed, runaway = load("speed"), load("runaway")


# The launcher. What it starts is this program, which behaves as a script does, in no time: it says
# when it begins and ends, and evaluates at its end. The environment's name is what goes wrong.

STAND_IN = """
import signal, sys, time
from pathlib import Path

words = dict(zip(sys.argv, sys.argv[1:]))
env_id, total = words["--env-id"], words["--total-timesteps"]
run = Path(words.get("--resume") or words["--run-dir"])
signals = []
signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
if "--gama" in words:
    sys.exit("╭─ Unrecognized options ─╮\\n│ --gama │\\n╰────────╯")
(run / "args.json").write_text("{}")
(run / "began").write_text(f"{time.time()} {' '.join(sys.argv[1:])}")
if env_id == "Wrong":
    sys.exit("stand_in: cannot make Wrong")
while env_id == "Endless" and "--resume" not in words:
    time.sleep(0.01)
    if signals:
        time.sleep(1.5)  # in which a second signal would come
        (run / "checkpoint.pt").write_text(f"told {len(signals)} times")
        sys.exit(143)
time.sleep(1.5 if env_id == "Slow" else 0.01)
(run / "checkpoint.pt").touch()
(run / "evaluations.csv").write_text(f"env_step,mean_return\\n{total},1.0\\n")
(run / "episodes.csv").write_text(f"env_step,episodic_return\\n{total},1.0\\n")
if env_id == "Full":
    sys.exit("no space left on device")
(run / "checkpoint.pt").touch()
(run / "ended").write_text(str(time.time()))
"""
Launch = Callable[..., subprocess.CompletedProcess[str]]


def environment(first: Path | None = None, **more: str) -> dict[str, str]:
    """The environment of a launcher, with a folder of other programs first on the PATH."""
    path = f"{first}{os.pathsep}{os.environ['PATH']}" if first else os.environ["PATH"]
    return dict(os.environ, PYTHON=sys.executable, PATH=path) | more


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    """The words that launch the stand-in; flags of the script follow --."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)

    def words(*flags: str, envs: str = "A B", seeds: str = "1 2") -> list[str]:
        ours, _, theirs = " ".join(f"'{flag}'" for flag in flags).partition("'--'")
        head = [str(BENCHMARK / "run.sh"), "--script", str(script), "--env-ids", *envs.split()]
        head += ["--seeds", *seeds.split(), "--runs-dir", str(tmp_path / "runs")]
        return [*head, *shlex.split(ours), "--", "--total-timesteps", "9", *shlex.split(theirs)]

    return words


@pytest.fixture
def launch(command: Callable[..., list[str]]) -> Launch:
    def run(*flags: str, first: Path | None = None, **grid: str) -> subprocess.CompletedProcess:
        line, env = command(*flags, **grid), environment(first)
        return subprocess.run(line, env=env, capture_output=True, text=True, timeout=60)

    return run


def names(runs: Path) -> list[str]:
    return sorted(folder.name for folder in runs.iterdir())


def test_settings_environments_and_seeds_are_one_grid(tmp_path: Path, launch: Launch) -> None:
    settings = ["--name", "x", "--vary", "gamma", "0.8", "0.9", "--vary", "--sizes", "8", "8 8"]
    settings += ["--setting", "long", "--total-timesteps 99 --env-ids C"]
    done = launch(*settings, "--", "--gamma", "0.5", seeds="1")
    assert done.returncode == 0, done.stdout + done.stderr
    varied = ["x_gamma0.8", "x_gamma0.9", "x_sizes8", "x_sizes8x8"]
    expected = [f"{env}__{name}__1" for env in "AB" for name in varied] + ["C__long__1"]
    assert names(tmp_path / "runs") == sorted(expected)
    flags = {name: (tmp_path / "runs" / name / "began").read_text() for name in expected}
    assert (
        "--exp-name x_gamma0.8 --total-timesteps 9 --gamma 0.5 --gamma 0.8 "
        in flags["A__x_gamma0.8__1"]
    )
    assert "--sizes 8 8 " in flags["A__x_sizes8x8__1"]
    assert "--gamma 0.5 --total-timesteps 99 " in flags["C__long__1"], "its own flags come last"


def test_workers_are_full_to_the_end_across_settings(tmp_path: Path, launch: Launch) -> None:
    settings = ["--setting", "a", "--env-ids Slow", "--setting", "b", "--env-ids A B C D"]
    done = launch("--workers", "2", *settings, seeds="1")
    assert done.returncode == 0, done.stdout + done.stderr
    slow = float((tmp_path / "runs" / "Slow__a__1" / "ended").read_text())
    others = [tmp_path / "runs" / f"{env}__b__1" / "began" for env in "AB"]
    assert all(float(path.read_text().split()[0]) < slow for path in others)


def test_the_shortest_runs_come_first_if_asked(launch: Launch) -> None:
    settings = ["--setting", "long", "--total-timesteps 1000", "--setting", "short", ""]
    done = launch(*settings, "--dry-run", "--shortest-first", envs="A")
    order = [line.split("--exp-name ")[1].split()[0] for line in done.stdout.splitlines()]
    assert order == ["short", "short", "long", "long"]


@pytest.mark.parametrize("locales", itertools.permutations(("C", "C.UTF-8")))
def test_names_that_locales_quote_differently_and_a_link_to_the_launcher(
    tmp_path: Path, command: Callable[..., list[str]], locales: tuple[str, str]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(BENCHMARK / "run.sh")
    words = [str(link), *command("--name", "größe", envs="ALE/Ü", seeds="1")[1:]]
    for said, locale in zip(("1 of 1 finished", "finished before: "), locales):
        done = subprocess.run(words, env=environment(LC_ALL=locale), capture_output=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout.decode()
    assert "größe" in (tmp_path / "runs" / "ALE-Ü__größe__1" / "began").read_text()
    words[2] = "ddpg_continuous.py"  # is found beside the launcher, not beside the link
    words[words.index("größe")] = "x"
    line = [*words[:-3], "--dry-run"]
    assert subprocess.run(line, env=environment(), cwd=tmp_path).returncode == 0


def test_a_finished_grid_is_skipped_and_never_mixed_with_another(
    tmp_path: Path, launch: Launch
) -> None:
    assert launch().returncode == 0
    smoke = launch("--smoke", "--dry-run", "--track")
    assert "finished before" not in smoke.stdout
    assert "stand_in.py --env-id B --seed 2 --exp-name stand_in --track " in smoke.stdout
    assert not (tmp_path / "runs" / "smoke").exists(), "a dry run does nothing"
    assert launch("--dry-run").stdout.count("finished before:") == 4
    (tmp_path / "runs" / "A__stand_in__1" / "finished").unlink()  # the launcher was killed before
    assert launch("--dry-run").stdout.count("finished before:") == 4
    other = launch("--", "--gamma", "0.5")
    assert other.returncode == 2 and "take another --name or --runs-dir" in other.stderr
    other = launch("--script", "ddpg_continuous.py", "--name", "stand_in")
    assert other.returncode == 2 and "was begun with: stand_in.py" in other.stderr


def test_failed_runs_are_named_with_their_logs_and_the_others_go_on(
    tmp_path: Path, launch: Launch
) -> None:
    done = launch(envs="Wrong A Full", seeds="1")
    assert done.returncode == 1
    assert names(tmp_path / "runs") == ["A__stand_in__1", "Full__stand_in__1", "Wrong__stand_in__1"]
    log = tmp_path / "runs" / "Wrong__stand_in__1" / "log.txt"
    assert f"stand_in: cannot make Wrong (log: {log})" in done.stderr
    assert "no space left on device" in done.stderr
    again = launch("--dry-run", envs="Wrong A Full", seeds="1")
    assert again.stdout.count("finished before:") == 1, "a run that could not save is not finished"


def test_a_mistyped_flag_is_named_and_can_be_set_right(launch: Launch) -> None:
    wrong = launch("--", "--gama", "0.5", envs="A", seeds="1")
    assert wrong.returncode == 1 and "--gama" in wrong.stderr.splitlines()[-1]
    assert launch("--", "--gamma", "0.5", envs="A", seeds="1").returncode == 0


def test_smoke_is_a_thousandth_as_long_whoever_gives_the_length() -> None:
    head = [str(BENCHMARK / "run.sh"), "--script", "ddpg_continuous.py", "--env-ids", "Pendulum-v1"]
    head += ["--smoke", "--dry-run", "--seeds", "1", "--setting", "a"]
    run = functools.partial(subprocess.run, env=environment(), capture_output=True, text=True)
    for mine, common, length in ("", "", "1100"), ("--total-timesteps 5000000", "=1", "5000"):
        line = [*head, mine, "--", *([f"--total-timesteps{common}"] if common else [])]
        done = run(line, check=True)
        args = shlex.split(done.stdout)
        lengths = [args[i + 1] for i, word in enumerate(args) if word == "--total-timesteps"]
        assert lengths[-1] == length and "--learning-starts 10 " in done.stdout
        assert "--run-dir runs/smoke/" in done.stdout
    done = run([*line, "--total-timesteps", "1e6"])
    assert done.returncode == 2 and "--total-timesteps is 1e6" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wrokers", "2"], "--wrokers is not a flag"),
        (["--workers", "0"], "--workers is 0"),
        (["--backend", "pigeon"], "--backend is pigeon"),
        (["--script", "no.py"], "no script no.py"),
        (["--seeds", "one"], "--seeds has one"),
        (["--env-ids"], "--env-ids needs"),
        (["--vary", "gamma"], "--vary needs"),
        (["--seeds", "1", "2", "1"], "A__stand_in__1; a setting or a seed is given twice"),
        (["--setting", "a", "", "--setting", "a", "--gamma 1"], "A__a__1; a setting"),
    ],
)
def test_launcher_names_bad_input(launch: Launch, flags: list[str], message: str) -> None:
    done = launch(*flags)
    assert done.returncode == 2 and message in done.stderr


def other_program(folder: Path, name: str, text: str) -> Path:
    """A folder with a program, for the PATH."""
    folder.mkdir()
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
    (folder / name).chmod(0o755)
    return folder


SBATCH = """# A stand-in for SLURM: runs the tasks of the array at once, one after another.
while (($#)); do
    case $1 in
        --array=*) tasks=${1#--array=} ;;
        --chdir=*) cd "${1#--chdir=}" ;;
        -*) ;;
        *) break ;;
    esac
    shift
done
for task in $(echo "${tasks%%%*}" | tr , ' '); do SLURM_ARRAY_TASK_ID=$task bash "$@"; done
"""


def test_slurm_tasks_do_one_run_each_and_only_those_that_are_left(
    tmp_path: Path, launch: Launch
) -> None:
    slurm = ["--backend", "slurm", "--workers", "2", "--setting", "a b", "--gamma 1 --beta 2"]
    dry = launch(*slurm, "--dry-run")
    assert "sbatch --array=0\\,1\\,2\\,3%2" in dry.stdout and not (tmp_path / "runs").exists()
    first = other_program(tmp_path / "bin", "sbatch", SBATCH)
    for seeds, array in ("1", "0%2"), ("1 2", "1%2"):
        done = launch(*slurm, first=first, envs="A", seeds=seeds)
        assert done.returncode == 0 and f"sbatch --array={array}" in done.stdout, done.stderr
    assert all((tmp_path / "runs" / f"A__a b__{seed}" / "finished").exists() for seed in (1, 2))


RAY = """# A stand-in for Ray's jobs: processes here. To stop one, every process of it is told.
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


def wait_for(path: Path) -> None:
    deadline = time.time() + 60
    while not path.exists() and time.time() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_a_stopped_launcher_lets_its_runs_save_and_resumes_them(
    tmp_path: Path, backend: str, command: Callable[..., list[str]], launch: Launch
) -> None:
    first = other_program(tmp_path / "bin", "ray", RAY)
    flags = ["--backend", backend, "--setting", "a", "--gamma 1"]
    line = command(*flags, envs="Endless", seeds="1 2")
    pipe = subprocess.PIPE
    started = subprocess.Popen(line, env=environment(first), stdout=pipe, stderr=pipe, text=True)
    run = tmp_path / "runs" / "Endless__a__1"
    wait_for(run / "began")
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 143 and "the same command" in errors
    assert (run / "checkpoint.pt").read_text() == "told 1 times", "a second signal ends it at once"
    assert names(tmp_path / "runs") == [run.name], "the launcher went on after the signal"
    again = launch(*flags, envs="Endless", seeds="1", first=first)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"--resume {run}" in (run / "began").read_text() and (run / "finished").exists()


def test_a_script_that_is_stopped_is_resumed_and_comes_to_its_end(tmp_path: Path) -> None:
    """The only test here that learns."""
    line = [str(BENCHMARK / "run.sh"), "--script", "ddpg_continuous.py", "--env-ids", "Pendulum-v1"]
    line += ["--seeds", "1", "--runs-dir", str(tmp_path), "--", "--no-compile"]
    lengths = {"total-timesteps": 1500, "learning-starts": 50, "save-interval": 100}
    lengths |= {"eval-interval": 300, "eval-episodes": 1, "batch-size": 16}
    lengths |= {"actor-hidden-sizes": 8, "critic-hidden-sizes": 8}
    line += [word for flag, value in lengths.items() for word in (f"--{flag}", str(value))]
    started = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL)
    run = tmp_path / "Pendulum-v1__ddpg_continuous__1"
    wait_for(run / "checkpoint.pt")
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 143
    assert not (run / "finished").exists(), "stopped too late to test anything"
    assert "saved step" in (run / "log.txt").read_text()
    assert subprocess.run(line, env=environment(), timeout=60).returncode == 0
    steps = [int(row["env_step"]) for row in csv.DictReader((run / "evaluations.csv").open())]
    assert steps == [300, 600, 900, 1200, 1500]


# The studies


@functools.cache
def commands(study: str) -> list[list[str]]:
    """The words of every run of a study, short ones of one seed."""
    path = BENCHMARK / "studies" / f"{study}.sh"
    line = [str(path), "--smoke", "--dry-run", "--seeds", "1"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [shlex.split(run) for run in done.stdout.splitlines()]


@pytest.mark.parametrize("study", STUDIES)
def test_the_flags_of_every_study_are_accepted_by_its_scripts(study: str) -> None:
    for number, (_, script, *words) in enumerate(commands(study)):
        own = script.startswith("benchmark/")  # a program that trains as a script does
        module = (load if own else importlib.import_module)(Path(script).stem)
        given: dict[str, list[str]] = {}
        for word in words:
            if word.startswith("--"):
                values = given[word.removeprefix("--").replace("-", "_")] = []
            else:
                values.append(word)
        fields = module.Args.__dataclass_fields__
        for name in [name for name in given if name not in fields]:
            given[name.removeprefix("no_")] = ["false"]
            assert not given.pop(name) and name.startswith("no_"), f"{script} has no flag {name}"
        many = [name for name in given if isinstance(fields[name].default, tuple)]
        one = {name: (values or ["true"])[0] for name, values in given.items() if name not in many}
        args = TypeAdapter(module.Args).validate_python(one | {name: given[name] for name in many})
        assert args.total_timesteps <= 10_000
        assert str(args.run_dir).startswith(f"runs/{study}/smoke/")
        if number == 0:  # that this is how the script reads it
            assert tyro.cli(module.Args, args=words) == args


# The plots


def write_run(folder: Path, returns: Sequence[float], step: int = 100, agents: str = "") -> Path:
    """A run folder with an evaluation, and one episode, every so many steps."""
    folder.mkdir(parents=True)
    more = ",agent_returns" if agents else ""
    rows = [f"env_step,seconds,mean_return,episodes{more}"]
    rows += [f"{step * i},{i},{r},1{agents and f',{agents}'}" for i, r in enumerate(returns, 1)]
    (folder / "evaluations.csv").write_text("\n".join(rows) + "\n")
    rows = [f"{step * i},{r},200,{i}" for i, r in enumerate(returns, 1)]
    head = "env_step,episodic_return,episodic_length,seconds"
    (folder / "episodes.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def test_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    scores = np.array([100.0, 1, 2, 3, 4, 5, 6, -100])
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
    value, low, high = plot.interval([np.array([3.0])], plot.iqm)
    assert value == 3.0 and np.isnan([low, high]).all(), "one run has no interval"


def test_a_curve_is_compared_with_a_peer_s_figure_at_about_as_many_steps() -> None:
    rows = [{"implementation": "a", "env_steps": steps} for steps in ("100000", "1000000")]
    rows.append({"implementation": "b", "env_steps": ""})
    assert plot.nearest(rows, 200_000) == [rows[0], rows[2]]
    assert plot.nearest(rows, 600_000) == [rows[1], rows[2]]


def test_probability_of_improvement_counts_pairs_and_averages_environments() -> None:
    # First environment: of the pairs (1,0) (1,2) (3,0) (3,2) three are won. Second: one tie.
    x, y = [np.array([1, 3]), np.array([5])], [np.array([0, 2]), np.array([5])]
    assert plot.improvement(*x, *y) == pytest.approx((3 / 4 + 1 / 2) / 2)


@pytest.fixture
def run_plot(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, words)])
        plot.main()

    return run


def test_figures_and_tables_of_some_runs(
    tmp_path: Path, run_plot: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    for seed, returns in (1, [1.0, 2.0, 3.0]), (2, [3.0, 4.0]):
        write_run(runs / f"HopperBulletEnv-v0__ddpg__{seed}", returns, agents="1 2 3")
    write_run(runs / "HopperBulletEnv-v0__td3__1__1700000000", [9.0, 9.0])
    bare = write_run(runs / "HopperBulletEnv-v0__td3__2", [])
    run_plot(runs, "--out", out, "--compare", "td3", "ddpg")
    printed = capsys.readouterr()
    assert f"{bare} is left out" in printed.err
    rows = [row for row in csv.DictReader((out / "results.csv").open()) if row["seeds"]]
    got = [(row["what"], row["env_steps"], row["seeds"], row["mean"], row["std"]) for row in rows]
    # Curves go as far as all seeds, and the table gives that step.
    assert got == [("ddpg", "200", "2", "3.0", "1.0"), ("td3", "200", "1", "9.0", "")]
    assert "| HopperBulletEnv-v0 | SB3 DDPG | 1,000,000 |  |  | 1201 ± 211 |" in printed.out
    assert "https://stable-baselines3.readthedocs.io" in printed.out
    assert "| td3 | ddpg | 1 | 1.00 |" in (out / "improvement.md").read_text()
    figures = {path.stem for path in out.glob("*.svg")} & {path.stem for path in out.glob("*.png")}
    expected = [f"returns_by_{axis}" for axis in ("steps", "episodes", "seconds", "agent")]
    assert figures == set(expected)


def test_runs_are_compared_at_a_step_that_both_have_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "Pendulum-v1__new__1", [1.0, 2.0])
    write_run(tmp_path / "Pendulum-v1__old__1", [0.0, 1.0, 3.0, 4.0])
    write_run(tmp_path / "Pendulum-v1__late__1", [9.0], step=900)
    write_run(tmp_path / "Pendulum-v1__late__2", [9.0], step=1900)
    groups = plot.read_runs([tmp_path], 0)
    plot.compare(groups, [["old", "new"]], tmp_path)
    assert "| old | new | 1 | 0.00 |" in (tmp_path / "improvement.md").read_text()
    for pair, message in (["old", "late"], "no number of steps"), (["a", "b"], "the runs are of"):
        with pytest.raises(SystemExit, match="2"):
            plot.compare(groups, [pair], tmp_path)
        assert message in capsys.readouterr().err
    plot.curves(groups, "steps", [], 0)
    assert "Pendulum-v1, late: its seeds share no range" in capsys.readouterr().err


def test_percent_of_human_by_both_definitions_and_games_to_human_level(tmp_path: Path) -> None:
    write_run(tmp_path / "ALE-Pong-v5__a2c__1", [-21.0, 9.3, 21.0])
    write_run(tmp_path / "ALE-Pong-v5__a2c__2", [-20.7, 0.0, 3.0])
    write_run(tmp_path / "ALE-Breakout-v5__a2c__1", [1.7, 16.75, 31.8])
    write_run(tmp_path / "ALE-Freeway-v0__a2c__1", [1.0])
    percent = plot.percent_of_human(plot.read_runs([tmp_path], 0))
    curves = {(env, run.seed): run.y for (env, _), runs in percent.items() for run in runs}
    assert len(curves) == 6
    assert curves["ALE-Pong-v5, % of human", 1] == pytest.approx([-1, 100, 139], abs=0.1)
    assert curves["ALE-Pong-v5, % of human, study", 1] == pytest.approx([0, 100, 138.6], abs=0.1)
    assert curves["ALE-Breakout-v5, % of human", 1] == pytest.approx([0, 50, 100])
    assert curves["ALE-Breakout-v5, % of human, study", 1] == pytest.approx(
        [5.3, 52.7, 100], abs=0.1
    )
    table = plot.human_table(percent)
    assert "| ALE-Pong-v5, % of human | a2c | 300 | 109 | 2, never |" in table


def test_each_agent_has_a_panel(tmp_path: Path) -> None:
    write_run(tmp_path / "E__maddpg__1", [3.0, 3.0], agents="1 2")
    write_run(tmp_path / "E__ddpg__1", [3.0, 3.0])
    agents = plot.by_agent(plot.read_runs([tmp_path], 0))
    got = {env: runs[0].y.tolist() for (env, name), runs in agents.items()}
    assert got == {"E, agent 1": [1, 1], "E, agent 2": [2, 2]}


def test_running_mean_is_of_the_last_training_episodes(tmp_path: Path) -> None:
    run = plot.read_run(write_run(tmp_path / "Pendulum-v1__a__1", [1.0, 2.0, 6.0, 7.0]), 2)
    assert run.y.tolist() == [1.5, 4.0, 6.5]
    assert run.x["steps"].tolist() == [200, 300, 400]
    assert run.x["episodes"].tolist() == [2, 3, 4]


def test_one_evaluation_is_a_point_and_long_names_leave_the_curves_their_room(
    tmp_path: Path,
) -> None:
    heights = {}
    for length in 5, 30:
        folder = tmp_path / str(length)
        for letter in "abcdefgh":
            returns = [1.0] if letter == "a" else [1.0, 2.0]
            write_run(folder / f"Pendulum-v1__{letter * length}__1", returns)
        figure = plot.curves(plot.read_runs([folder], 0), "steps", [], 0)
        figure.canvas.draw()
        (legend,) = figure.legends
        assert legend.get_window_extent().x0 >= 0, "cut off"
        heights[length] = figure.axes[0].get_window_extent().height
    marks = {len(line.get_xdata()): line.get_marker() for line in figure.axes[0].lines}
    assert marks == {1: "o", 2: "None"}
    assert heights[30] > 0.9 * heights[5]


@pytest.mark.parametrize("content", ["", "env_step,seco", "env_step,seconds,mean_return\n", None])
def test_unfinished_files_are_read_as_far_as_they_go(tmp_path: Path, content: str | None) -> None:
    folder = write_run(tmp_path / "Pendulum-v1__a__1", [1.0, 2.0])
    with (folder / "evaluations.csv").open("a") as file:
        file.write("300,3,1")  # of 19.5
    assert plot.read_run(folder, running_mean=0).y.tolist() == [1.0, 2.0]
    (folder / "evaluations.csv").unlink()
    if content is not None:
        (folder / "evaluations.csv").write_text(content)
    assert plot.read_run(folder, running_mean=0) is None


def test_damaged_row_and_other_bad_input_get_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "runs" / "Pendulum-v1__a__1", [1.0, 2.0])
    path = folder / "evaluations.csv"
    path.write_text(path.read_text().replace("100,1,1.0", "100,1,what"))
    cases = {
        "line 2 is damaged": folder,
        "there is no folder": tmp_path / "none",
        "has no readable args.json": write_run(tmp_path / "mine", [1.0]),
    }
    for message, runs in cases.items():
        with pytest.raises(SystemExit, match="2"):
            plot.read_runs([runs], 0)
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1


# The speed table


def test_speed_ratio_is_the_median_of_each_rounds_own_ratio() -> None:
    # The machine is twice as slow in round 1, for both. The ratio of medians would be 2.29.
    seconds = {"Stable-Baselines3": [10.0, 20.0, 12.0], "FolioRL": [5.0, 10.0, 4.0]}
    rows = [
        {"algorithm": "ddpg", "contender": name, "round": i, "steps": 1000, "wall": s, "cpu": s / 2}
        | {"products": s / 8 if name == "FolioRL" else None}
        for name, times in seconds.items()
        for i, s in enumerate(times)
    ]
    base, ours, *_, floor = speed.table(rows).splitlines()[2:]
    assert base == "| DDPG | Stable-Baselines3 | 167 (133 to 183) | 83 (67 to 92) | 1.00 | 1.00 |"
    assert ours == "| DDPG | FolioRL | 400 (300 to 450) | 200 (150 to 225) | 2.00 | 2.00 |"
    assert floor == "| DDPG | FolioRL | 0.62 | 25% |"


def test_the_products_of_an_update_are_counted() -> None:
    products = speed.Products()
    products.dtype = torch.float32
    update = products.count(lambda x: x @ x, lambda x: None)
    for _ in range(6):
        update(torch.zeros(10, 10))
    assert products.flops == [2 * 10**3] * 4 and products.calls == 6
    assert 0 < products.seconds() < 1


def test_speed_measures_the_whole_loop_of_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "PEERS", {"ddpg": {}})
    flags = ["--algorithms", "ddpg", "--env-id", "Pendulum-v1", "--segment", "40", "--rounds", "2"]
    variant = ["--variant", "Tens=--update-every 10"]
    words = ["speed.py", *flags, *variant, "--no-compile", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    speed.main()
    rows = list(csv.DictReader((tmp_path / "speed.csv").open()))
    measured = sorted((row["contender"], row["steps"]) for row in rows)
    assert measured == [("FolioRL", "40")] * 2 + [("Tens", "40")] * 2
    assert all(0 < float(row["products"]) < float(row["cpu"]) for row in rows)
    text = (tmp_path / "speed.md").read_text()
    assert "| DDPG | FolioRL |" in text and "share of the CPU time" in text
    # Of the peers' packages gymnasium is here, and others are not; that hides none of the rest.
    assert f"gymnasium {version('gymnasium')}" in text


# The temperature


def test_an_epsilon_in_the_density_lets_the_temperature_grow_unless_the_clamp_passes_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(temperature, "RATE", 0.03)  # ten times its own, to be quick
    monkeypatch.setattr(temperature, "BATCH", 64)
    exact, entropy = temperature.settle("exact", "plain", start=20.0, updates=600)
    assert exact < 100 and entropy > -1.5
    inexact, entropy = temperature.settle("epsilon", "plain", start=20.0, updates=600)
    assert inexact > 5e3 and entropy < -3
    passing, entropy = temperature.settle("epsilon", "passing", 20.0, updates=600)
    assert passing < 1e3 and entropy > -1


def test_the_runaways_actor_is_the_scripts_but_for_the_clamps_gradient_and_the_density() -> None:
    torch.manual_seed(1)  # under other weights a standard deviation might come below its bound
    actor = runaway.sac.Actor(3, 1, runaway.sac.Args(actor_hidden_sizes=(8,)))
    obs, bias = torch.randn(64, 3), actor.net[-1].bias
    plain = functools.partial(runaway.plain_mean_and_std, actor)
    for mean_and_std, beyond in (actor.mean_and_std, True), (plain, False):
        for log_std, passes in (0.0, True), (5.0, beyond):  # 2 is the bound
            bias.data[1], bias.grad = log_std, None
            mean, std = mean_and_std(obs)
            torch.testing.assert_close((mean, std), actor.mean_and_std(obs))
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


def test_the_runaway_keeps_the_losses_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["runaway.py", "--out", str(tmp_path), "--steps", "120", "--env-id=Pendulum-v1"]
    words += ["--no-compile", "--actor-hidden-sizes=8", "--critic-hidden-sizes=8"]
    monkeypatch.setattr(runaway, "VARIANTS", [("epsilon", "plain")])
    monkeypatch.setattr(sys, "argv", [*words, "--learning-starts=100"])
    runaway.main()
    folder = tmp_path / "dm_control-walker-walk-v0__sac_epsilon_plain__1"
    (row,) = csv.DictReader((folder / "losses.csv").open())
    assert row["env_step"] == "120" and 0.05 < float(row["alpha"]) < 0.2
    assert (tmp_path / "runaway.svg").exists()
    for refused in "--total-timesteps=2", "--run-dir=elsewhere":
        monkeypatch.setattr(sys, "argv", [*words, refused])
        with pytest.raises(SystemExit, match="2"):
            runaway.main()
