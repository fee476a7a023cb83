"""What must hold of the files themselves."""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, SCRIPTS, kind, run_python
from packaging.requirements import Requirement

RAY = [path.stem for path in ROOT.glob("*_ray.py")]  # of several processes: no script of its own


def shared_blocks(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "shared_blocks.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_shared_blocks_are_equal_in_all_scripts() -> None:
    done = shared_blocks()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_character_in_a_shared_block_is_shown_and_mended(tmp_path: Path) -> None:
    original, changed = (
        Path(shutil.copy(ROOT / "ddpg_continuous.py", tmp_path / name)) for name in ("a.py", "b.py")
    )
    text = original.read_text()
    line = next(line for line in text.splitlines() if "def sample(" in line)
    changed.write_text("# outside of blocks, scripts may differ\n" + text.replace(line, line + " "))
    mended = changed.read_text().replace(line + " ", line)

    done = shared_blocks("--root", tmp_path)
    assert done.returncode == 1
    assert f"-{line}\n+{line} \n" in done.stdout and "b.py [replay buffer]" in done.stdout

    done = shared_blocks("--root", tmp_path, "--write", original)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (original.read_text(), changed.read_text()) == (text, mended)
    assert shared_blocks("--root", tmp_path).returncode == 0


@pytest.mark.parametrize("lone", ["# [shared: mlp]\n", "# [/shared]\n"])
def test_a_marker_without_its_partner_is_refused(lone: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"x = 1\n{lone}y = 2\n")
    done = shared_blocks("--root", tmp_path)
    assert done.returncode == 2 and "a.py" in done.stderr


def test_importing_scripts_has_no_side_effects(tmp_path: Path) -> None:
    names = ", ".join([*SCRIPTS, *RAY])
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {names}"
    out, err = run_python(["-B", "-c", code], tmp_path)
    assert (out, err) == ("", "")
    assert not list(tmp_path.iterdir())


def test_lines_are_at_most_100_columns_wide(script: ModuleType) -> None:
    lines = Path(str(script.__file__)).read_text().splitlines()
    assert [line for line in lines if len(line) > 100] == []


def test_no_script_imports_another(script: ModuleType) -> None:
    tree = ast.parse(Path(str(script.__file__)).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    ours = {path.stem for path in ROOT.glob("*.py")} | {"tools", "tests", "benchmark"}
    assert not imported & ours


ORDER = {  # of every script; a class or function that is not here may stand anywhere
    "Args": 0,
    "Actor": 2,
    "Critic": 2,
    "ReplayBuffer": 3,
    "Rollout": 3,
    "Noise": 4,
    "Agent": 5,
    "train": 6,
    "evaluate": 7,
    "Housekeeping": 8,
    "Run": 9,
    "main": 10,
}
# Lines above the housekeeping line, at most; the agent begins within the first 300.
# A3C is read beside A2C, whose lines it repeats.
MOST_LINES = dict.fromkeys(SCRIPTS, 520) | {"maddpg_smarts": 650, "a3c_lstm_atari": 540}


def places(script: ModuleType) -> dict[str, int]:
    """The lines in which the classes, functions and the housekeeping begin."""
    source = Path(str(script.__file__)).read_text()
    tree = ast.parse(source)
    found = {node.name: node.lineno for node in tree.body if hasattr(node, "name")}
    (line,) = (n for n, line in enumerate(source.splitlines(), 1) if line.startswith(HOUSEKEEPING))
    return found | {"Housekeeping": line}


HOUSEKEEPING = "# Housekeeping: "


def test_a_script_has_the_sections_of_all_in_their_order(script: ModuleType) -> None:
    found = places(script)
    ranks = [ORDER[name] for name in sorted(found, key=lambda name: found[name]) if name in ORDER]
    assert ranks == sorted(ranks), sorted(found, key=lambda name: found[name])
    assert {"Args", "Agent", "train", "evaluate", "Housekeeping", "Run", "main"} <= found.keys()


def test_the_algorithm_is_read_in_one_sitting(script: ModuleType) -> None:
    found, lines = places(script), len(Path(str(script.__file__)).read_text().splitlines())
    print(f"{script.__name__}: {found['Housekeeping']} + {lines - found['Housekeeping']} lines")
    assert found["Agent"] <= (312 if script.__name__ == "a3c_lstm_atari" else 300)
    assert found["Housekeeping"] <= MOST_LINES[script.__name__]


def test_a_docstring_says_what_where_from_and_how_to_run(script: ModuleType) -> None:
    text = str(script.__doc__)
    for key in "Papers?", "Run", "Expect":
        assert re.search(rf"^{key}: +\S", text, re.M), key
    assert f"python {script.__name__}.py" in text
    assert len(text.splitlines()) <= 30


def test_every_flag_is_used(script: ModuleType) -> None:
    source = Path(str(script.__file__)).read_text()
    before, args, after = re.split(r"(^class Args:\n.+?\n)(?=^\S)", source, flags=re.M | re.S)[:3]
    checks = args.partition("    def __post_init__")[2]
    if kind(script) == "smarts":  # flags of the crossing are used in its folder
        after += "".join(path.read_text() for path in ROOT.glob("scenarios/*/*.py"))
    unused = [
        field.name
        for field in dataclasses.fields(script.Args)
        if not re.search(rf"\b{field.name}\b", before + checks + after)
    ]
    assert not unused


def test_every_flag_is_explained_where_it_stands(script: ModuleType) -> None:
    source = Path(str(script.__file__)).read_text()
    for field in dataclasses.fields(script.Args):
        assert re.search(rf"^    {field.name}: .+  # .+$", source, re.M), field.name


def requirements(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def name_of(requirement: str) -> str:
    return re.split(r"[=;\[ ]", requirement)[0]


# Packages that scripts import by another name, or that a default run needs without importing them.
IMPORTED_AS = {"pybullet-envs-gymnasium": "pybullet_envs_gymnasium", "ale-py": "ale_py"}
NEEDED = {"tensorboard": "torch.utils.tensorboard", "pybullet": "pybullet_envs_gymnasium"}
OPTIONAL = {"wandb", "moviepy", "shimmy", "dm-control", "mujoco", "box2d", "ray", "smarts"}


def test_a_script_lists_what_it_uses_by_default_with_the_pins_of_requirements_txt(
    script: ModuleType,
) -> None:
    """Of PEP 723, so that copying an Atari script does not install a physics simulator."""
    source = Path(str(script.__file__)).read_text()
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.M)
    assert block, "there is no block of inline script metadata (PEP 723)"
    toml = re.sub("^# ?", "", block[1], flags=re.M)
    match = re.search(r"^dependencies = (\[.*?^\])$", toml, re.M | re.S)
    assert match  # a TOML array of strings reads like a Python list
    named = ast.literal_eval(match[1])
    pins = requirements(ROOT / "requirements.txt")
    pins += requirements(ROOT / "requirements-smarts.txt")
    pins += [pin.split(";")[0] for pin in pins]  # make replaces some packages on newer Pythons
    assert set(named) <= set(pins)
    names = {name_of(requirement) for requirement in named}

    tree, imported = ast.parse(source.replace(block[0], "")), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    simulator = map(name_of, requirements(ROOT / "requirements-smarts.txt"))  # in its own folder
    for name in names - set(simulator if kind(script) == "smarts" else []):
        wanted = NEEDED.get(name, IMPORTED_AS.get(name, name.replace("-", "_")))
        assert any(module.startswith(wanted) for module in imported) or wanted in source, name
    top = {module.split(".")[0] for module in imported} - set(sys.stdlib_module_names)
    packages = {module: name for name, module in IMPORTED_AS.items()}
    needed = {packages.get(module, module.replace("_", "-")) for module in top} - OPTIONAL
    assert needed <= names, needed - names


def test_every_requirement_is_pinned_exactly() -> None:
    for path in [*ROOT.glob("requirements*.txt"), ROOT / "tests" / "requirements.txt"]:
        for line in requirements(path):
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*(; python_version .*)?", line), line


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_python_gets_each_simulator_once(python: str) -> None:
    names = Counter[str]()
    for path in ROOT / "requirements.txt", ROOT / "requirements-no-deps.txt":
        for requirement in map(Requirement, requirements(path)):
            if not requirement.marker or requirement.marker.evaluate({"python_version": python}):
                names[requirement.name] += 1
    assert set(names.values()) == {1}
    assert names["dm-control"] == names["pybullet-envs-gymnasium"] == 1
    assert names["pybullet"] + names["pybullet-arm64"] == 1


def test_there_are_scripts() -> None:
    assert "ddpg_continuous" in SCRIPTS
