"""What must hold of the files themselves."""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, SCRIPTS, kind, run_python


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


def test_importing_a_script_has_no_side_effects(script: ModuleType, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {script.__name__}"
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


def test_every_flag_is_used(script: ModuleType) -> None:
    tree = ast.parse(Path(str(script.__file__)).read_text())
    rest = [node for node in tree.body if getattr(node, "name", "") != "Args"]
    read = {
        node.attr
        for part in rest
        for node in ast.walk(part)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "args"
    }
    assert {field.name for field in dataclasses.fields(script.Args)} - read == set()


def test_every_flag_is_explained_where_it_stands(script: ModuleType) -> None:
    source = Path(str(script.__file__)).read_text()
    for field in dataclasses.fields(script.Args):
        assert re.search(rf"^    {field.name}: .+  # .+$", source, re.M), field.name


def requirements(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_a_script_names_the_pins_of_requirements_txt(script: ModuleType) -> None:
    source = Path(str(script.__file__)).read_text()
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.M)
    assert block, "there is no block of inline script metadata (PEP 723)"
    toml = re.sub("^# ?", "", block[1], flags=re.M)
    named = re.search(r"^dependencies = (\[.*?^\])$", toml, re.M | re.S)
    assert named  # a TOML array of strings reads like a Python list
    pins = requirements(ROOT / "requirements.txt")
    if kind(script) == "smarts":
        pins += requirements(ROOT / "requirements-smarts.txt")
    assert ast.literal_eval(named[1]) == pins


def test_every_requirement_is_pinned_exactly() -> None:
    names = "requirements.txt", "requirements-smarts.txt", "tests/requirements.txt"
    for path in (ROOT / name for name in names):
        for line in requirements(path):
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*(; python_version .*)?", line), line


def test_there_are_scripts() -> None:
    assert "ddpg_continuous" in SCRIPTS
