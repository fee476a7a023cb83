"""Every command in the README and on the pages works.

Commands that make, resume or evaluate a named run are carried out, shortened by flags behind them.
Of other trainings the flags are read, and the environment is made: that scripts train, other tests
see.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import tyro
from conftest import ROOT, SCRIPTS, Run, flags, kind

KINDS = {name.split("_")[-1] for name in SCRIPTS} | {"smarts"}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"] + [
    path
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.stem in SCRIPTS or path.stem.split("_")[-1] not in KINDS  # else of no script here
]
# Commands that are not carried out here: how they begin, and the test or program that does it.
ELSEWHERE = {
    "python3 -m venv": "Makefile",
    ".venv/bin/pip install": "Makefile",
    "cp ddpg_continuous.py /elsewhere":
        "tests/test_house.py::test_the_file_runs_alone_in_an_empty_folder_and_a_plain_terminal",
    "python maddpg_ray.py": "tests/test_maddpg_cluster.py",
    "RAY_ADDRESS=10.0.0.1:6379 python maddpg_ray.py": "tests/test_maddpg_cluster.py",
    "python benchmark/tune.py": "tests/test_tune.py::test_trials_are_runs_of_the_script",
    "python benchmark/watch.py": "tests/test_watch.py::test_every_episode_has_a_line",
    "python scenarios/stadium/race.py": "tests/test_race.py",
    "torchrun": "tests/test_ppo_update.py::test_two_ranks_write_one_run_with_the_games_of_both",
    "python ddpg_continuous.py --env-id Pendulum-v1 --track":
        "tests/test_house.py::test_weights_and_biases_gets_each_row_of_the_csv_files_once",
}  # fmt: skip


def commands(path: Path) -> list[str]:
    """The lines of a document's shell blocks, without what stands behind #."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", path.read_text(), re.M | re.S)
    lines = "".join(blocks).splitlines()
    return [re.sub(r" +# .*", "", line) for line in lines if line]


def files(path: Path) -> dict[str, str]:
    """The files that a document shows: Python blocks whose first line is a comment with a name."""
    blocks = re.findall(r"^```python\n# ([\w/]+\.py)\n(.*?)^```$", path.read_text(), re.M | re.S)
    return dict(blocks)


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """A copy of what a reader has, to run things in."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*requirements*.txt")]:
        shutil.copy(path, tmp_path)
    for name in "benchmark", "tools", "docs", "tests", "scenarios":
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, tmp_path / name)
    for name in "Makefile", "README.md", "mkdocs.yml", "CONTRIBUTING.md":
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def shortened(name: str, words: list[str]) -> list[str]:
    """The command's flags, and behind them those that make it short: the last of equals counts."""
    if "--help" in words:
        return words
    script = importlib.import_module(name)
    short = {"eval_episodes": 1}
    if "--evaluate" in words:
        if words[words.index("--evaluate") + 1] not in ("random", "untrained"):
            return [*words, "--eval-episodes", "1", "--no-compile"]
        short |= {"total_timesteps": 100}
    elif "--resume" in words:
        length = "300" if kind(script) == "continuous" else "200"
        return [*words, "--total-timesteps", length, "--no-compile", "--no-progress"]
    elif kind(script) == "continuous":
        short |= {"total_timesteps": 200, "eval_interval": 200}
    elif kind(script) == "smarts":
        short |= {"total_timesteps": 100, "learning_starts": 50, "eval_interval": 100}
        short = {name: value for name, value in short.items() if hasattr(script.Args, name)}
    else:
        short |= {"total_timesteps": 64}
    more = flags(script, **short)
    if "--env-id" in words:
        del more[(at := more.index("--env-id")) : at + 2]
    return words + more


def execute(line: str, workshop: Path) -> None:
    """Carry out one command of a document; fails if it does."""
    words = shlex.split(line)
    program = words[0].removeprefix(".venv/bin/")
    # Without the compiler, which takes longer than the rest
    expected, environ = 0, dict(os.environ, PYTHON=sys.executable, TORCHDYNAMO_DISABLE="1")
    if program == "python" and Path(words[1]).stem in SCRIPTS:
        script = importlib.import_module(Path(words[1]).stem)
        runs = {"--run-dir", "--resume", "--evaluate", "--help"} & {*words}
        if not runs or {"keep-lane", "rules"} & {*words}:
            with mock.patch.object(sys, "argv", words[1:]):
                args, _ = script.read_flags()
            if kind(script) == "continuous":
                script.make_env(args)
            return
        run = Run(script, shortened(script.__name__, words[2:]), workshop)
        code, out, err = run.wait()
        assert code == 0, f"{line}\n{out}\n{err}"
        return
    if program == "python":
        words = [sys.executable, *words[1:]]
        own = not words[1].startswith(("benchmark/", "tools/"))
        if own and words[2:]:  # a script of the reader's own
            words = words[:2] + shortened("td3_continuous", words[2:])
    elif program == "tensorboard":
        words = [sys.executable, "-m", "tensorboard.main", *words[1:], "--inspect"]
    elif program == "make":
        short = [word for word in words if word.startswith("ARGS=--env-id Pendulum")]
        for word in short:  # the lines that follow look at this run
            execute(f"python ddpg_continuous.py {word.removeprefix('ARGS=')}", workshop)
        words.insert(1, "-n")
    elif program.startswith("benchmark/studies/"):
        words += ["--seeds", "1"] if "--smoke" in words else ["--dry-run"]
    elif program == "benchmark/run.sh" and "--" in words:  # what follows will plot these runs
        place = words.index("--")
        words[place:place] = ["--smoke", "--seeds", "1"]
    elif program == "benchmark/run.sh":
        words.append("--dry-run")
    elif program == "diff":
        expected = 1  # that they differ is what the reader wants to see
    else:
        assert program == "cp", f"say in this test how to carry out: {line}"
    done = subprocess.run(words, cwd=workshop, env=environ, capture_output=True, text=True)
    assert done.returncode == expected, f"{line}\n{done.stdout}\n{done.stderr}"


def apply_change(path: Path, workshop: Path) -> None:
    """Make the one change that the page on own algorithms shows."""
    change = re.findall(r"^```diff\n-(.+\n)\+(.+\n)```$", path.read_text(), re.M)
    copied = workshop / "my_td3.py"
    source = copied.read_text()
    assert len(change) == 1 and source.count(change[0][0]) == 1
    copied.write_text(source.replace(*change[0]))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_works(path: Path, workshop: Path) -> None:
    for name, code in files(path).items():
        (workshop / name).parent.mkdir(exist_ok=True)
        (workshop / name).write_text(code)
    for line in commands(path):
        spellings = line, line.removeprefix(".venv/bin/")
        beginning = next((x for x in ELSEWHERE if any(s.startswith(x) for s in spellings)), None)
        if beginning is None:
            execute(line, workshop)
            if line == "cp td3_continuous.py my_td3.py":
                apply_change(path, workshop)
        elif line.startswith("torchrun"):  # the flags are looked at
            words = shlex.split(line.partition("ppo_atari.py")[2])
            tyro.cli(importlib.import_module("ppo_atari").Args, args=words)


def test_commands_are_found() -> None:
    found = [line for path in DOCUMENTS for line in commands(path)]
    assert len(found) > 40 and any("--resume" in line for line in found)
    assert any(line.startswith("make train") for line in commands(ROOT / "README.md"))


@pytest.mark.parametrize("where", sorted(set(ELSEWHERE.values())))
def test_what_is_carried_out_elsewhere_is_there(where: str) -> None:
    file, _, name = where.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).exists()


def test_every_command_of_a_docstring_is_on_the_script_s_page() -> None:
    for name in SCRIPTS:
        page = ROOT / "docs" / f"{name}.md"
        if not page.exists():
            continue
        text = (ROOT / f"{name}.py").read_text().split('"""')[1]
        for line in re.findall(r"(?:^Run: +| {7,})((?:python|torchrun) .+?)(?:  |$)", text, re.M):
            assert any(command.startswith(line) for command in commands(page)), line


def test_the_study_commands_on_the_site_work(workshop: Path) -> None:
    studies = sorted((ROOT / "benchmark" / "studies").glob("*.sh"))
    assert len(studies) > 10
    for path in studies:
        line = re.findall(r"^# +(benchmark/studies/\S+ --workers \d+)", path.read_text(), re.M)
        assert len(line) == 1, path
        execute(line[0], workshop)


def test_generated_tables_are_up_to_date() -> None:
    command = [sys.executable, "tools/readme.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere_without_the_site_too(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|figures/)([^)#]+)", path.read_text())
    assert all((path.parent / link).exists() for link in links), links
