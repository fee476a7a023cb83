"""The built site: what it says is what the scripts are, and nothing comes from elsewhere."""

from __future__ import annotations

import ast
import csv
import dataclasses
import os
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, SCRIPTS, make_once
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(ROOT / "tools"))
import annotate

NEW = "zz_continuous"  # a script that nobody has written a page for
NO_NETWORK = """import socket
def refuse(*address):
    raise OSError(f"the build asked the network for {address[1:]}")
socket.socket.connect = socket.socket.connect_ex = refuse
"""


class Html(HTMLParser):
    """What the tests look at in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []  # where a reader may go
        self.loaded: list[str] = []  # what the browser fetches by itself
        self.text = ""  # but for scripts and styles
        self.prose = ""  # beside the code of a script
        self.code = ""  # of a script
        self.hunks: list[tuple[int, int, list[str], list[str]]] = []
        self.math = 0
        self.cells: list[list[str]] = []  # the rows of all tables
        self.open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def within(self, tag: str, css: str = "") -> bool:
        return any(t == tag and css in [*a.get("class", "").split(), ""] for t, a in self.open)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        a = {name: value or "" for name, value in attrs}
        if tag not in ("meta", "link", "img", "br", "hr", "input", "source"):
            self.open.append((tag, a))
        self.ids += [a["id"]] if "id" in a else []
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        if tag == "link" and a.get("rel", "") not in ("canonical", "prev", "next", "alternate"):
            self.loaded.append(a["href"])
        if "src" in a or tag == "object":
            self.loaded.append(a.get("src") or a.get("data", ""))
        if tag == "code" and "data-a" in a:
            self.hunks.append((int(a["data-a"]), int(a["data-b"]), [], []))
        self.math += tag == "math"
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.within("script") or self.within("style"):
            return
        self.text += data
        if self.within("td") or self.within("th"):
            self.cells[-1][-1] += data
        if self.within("div", "folio-prose"):
            self.prose += data
        if self.within("code") and self.within("div", "difference"):
            if self.within("span", "gone") or self.within("span", "come"):
                _, _, gone, come = self.hunks[-1]
                (gone if self.within("span", "gone") else come).append(data)
        elif self.within("div", "folio-code"):
            self.code += data


def build(root: Path) -> None:
    """The site of a copy of the repository with one more script, built without a network."""
    for path in [*ROOT.glob("*.py"), ROOT / "mkdocs.yml", ROOT / "CONTRIBUTING.md"]:
        shutil.copy(path, root)
    for name in "docs", "tools", "benchmark":
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "ddpg_continuous.py", root / f"{NEW}.py")
    (root / "guard").mkdir()
    (root / "guard" / "sitecustomize.py").write_text(NO_NETWORK)
    environ = dict(os.environ, PYTHONPATH=str(root / "guard"), NO_MKDOCS_2_WARNING="1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, made once for all tests."""
    return make_once(tmp_path_factory, "site", build) / "site"


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, Html]:
    return {path.name: Html(path.read_text()) for path in site.glob("*.html")}


@pytest.mark.parametrize("name", [*SCRIPTS, NEW])
def test_the_code_on_a_page_is_the_script_to_the_letter(
    name: str, pages: dict[str, Html], site: Path
) -> None:
    source = (site.parent / f"{name}.py").read_text()
    assert pages[f"{name}.html"].code == source
    assert (site / f"{name}.py").read_text() == source


def words(text: str) -> str:
    return re.sub(r"\W+|_", "", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_docstring_and_comment_is_prose_beside_the_code(
    name: str, pages: dict[str, Html]
) -> None:
    source, prose = (ROOT / f"{name}.py").read_text(), words(pages[f"{name}.html"].prose)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    told = [ast.get_docstring(n) for n in ast.walk(ast.parse(source)) if isinstance(n, documented)]
    comments = re.findall(r"^ *# (?!\[|///)(.+)$", source.partition("# /// script")[0], re.M)
    assert len(comments) > 10
    for text in [*filter(None, told), *comments]:
        assert words(text) in prose, text


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[str, Html]) -> None:
    broken = []
    for name, page in pages.items():
        if name == "404.html":  # its links are absolute, since any address may lead to it
            continue
        assert len(page.ids) == len(set(page.ids)), name
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"https?:|mailto:", target):
                continue
            target = target.rstrip("/") if target not in ("", ".") else name
            there = site / target
            if not there.is_file() or (anchor and anchor not in pages[there.name].ids):
                broken.append((name, link))
    assert not broken


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Html]) -> None:
    loaded = [(name, url) for name, page in pages.items() for url in page.loaded]
    assert len(loaded) > 3 * len(pages)
    assert [found for found in loaded if re.match(r"(https?:)?//", found[1])] == []
    missing = [url for name, url in loaded if not (site / url.lstrip("/")).is_file()]
    assert not [url for url in missing if not url.startswith("data:")]
    for path in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not re.findall(r"(?:url\(|@import|href=)[\"' ]*https?://", path.read_text()), path


def test_flags_are_those_of_args(script: ModuleType, pages: dict[str, Html]) -> None:
    page, shown = pages[f"{script.__name__}.html"], {}
    for row in page.cells:
        if len(row) == 3 and row[0].startswith("--"):
            shown[row[0].split(",")[0]] = row[1:]
    for field in dataclasses.fields(script.Args):
        default, comment = shown.pop("--" + field.name.replace("_", "-"))
        line = re.search(rf"^    {field.name}: (?:.*\n {{8}})?.*?  # (.+)$", page.code, re.M)
        assert line and line[1] in comment.replace("\u2212", "-")
        if default == "SCRIPT":
            default = script.__name__
        expected = field.default
        assert default in ("none", str(expected)) or ast.literal_eval(default) == expected
    assert not shown


def test_every_metric_of_a_run_is_explained_and_no_other(
    script: ModuleType, pages: dict[str, Html], finished: Any
) -> None:
    events = EventAccumulator(str(finished(script)))
    events.Reload()
    rows = pages[f"{script.__name__}.html"].cells
    explained = {row[0] for row in rows if re.match(r"(charts|losses|eval)/", row[0])}
    assert explained == set(events.Tags()["scalars"])


@pytest.mark.parametrize(
    "pair",
    [
        ("ddpg_continuous", "td3_continuous"),
        ("td3_continuous", "sac_continuous"),
        ("ppo_atari", "a2c_lstm_atari"),
        ("a2c_lstm_atari", "a3c_lstm_atari"),
    ],
)
def test_the_differences_on_the_page_make_one_script_of_the_other(
    pair: tuple[str, str], site: Path
) -> None:
    old, new = ((ROOT / f"{name}.py").read_text() for name in pair)
    text, heading = (site / "differences.html").read_text(), "-".join(n.split("_")[0] for n in pair)
    section = Html(re.split(r"<h2 ", text.partition(f'<h2 id="{heading}"')[2])[0])
    lines = old.splitlines(keepends=True)
    for first, _, gone, come in sorted(section.hunks, reverse=True):
        gone, come = ("".join(part).splitlines(keepends=True) for part in (gone, come))
        assert lines[first - 1 : first - 1 + len(gone)] == gone
        lines[first - 1 : first - 1 + len(gone)] = come
    assert len(section.hunks) > 10 and "".join(lines) == new


def test_formulas_are_drawn(pages: dict[str, Html]) -> None:
    for name, page in pages.items():
        assert not re.search(r"\$\$|\\(frac|log|alpha|text|bigl|operatorname)", page.text), name
    assert all(pages[f"{name}.html"].math > 4 for name in SCRIPTS if page_of(name).exists())


def page_of(name: str) -> Path:
    return ROOT / "docs" / f"{name}.md"


def test_scores_on_the_site_are_the_last_evaluations_of_the_runs(pages: dict[str, Html]) -> None:
    groups: dict[tuple[str, str, str], list[list[dict[str, str]]]] = {}
    for path in sorted((ROOT / "benchmark" / "results").glob("*/*__*/evaluations.csv")):
        env, name, _ = path.parent.name.split("__")[:3]
        if path.parts[-3] == "parity":  # runs of peers
            continue
        with path.open() as file:
            groups.setdefault((path.parts[-3], env, name), []).append(list(csv.DictReader(file)))
    assert len(groups) >= 10
    cells = [row for page in pages.values() for row in page.cells]
    table = [[cell.strip() for cell in row] for row in cells]
    for (_, _, name), runs in groups.items():
        end = min(int(run[-1]["env_step"]) for run in runs)
        last = [float(r["mean_return"]) for run in runs for r in run if int(r["env_step"]) == end]
        mean, seeds = statistics.fmean(last), str(len(runs))
        shown = [r for r in table if len(r) == 6 and r[1] == name and r[3] == seeds]
        values = [float(row[5].split(" ")[0]) for row in shown]
        assert any(abs(value - mean) <= 0.0501 for value in values), (name, mean, values)


def test_a_headline_has_the_most_seeds_then_steps_then_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pages as site  # reads benchmark/plot.py, and with it matplotlib

    def score(what: str, env_id: str, steps: int, seeds: int, mean: str) -> Any:
        return site.Score(env_id, what, "td3_continuous", steps, seeds, mean)

    all_of_them = [
        score("best", "Hopper", 1000, 1, "3000.0"),
        score("short", "Hopper", 500, 3, "2900.0"),
        score("worse", "Hopper", 1000, 3, "-20.0"),
        score("it", "Hopper", 1000, 3, "-3.0"),
        score("as good", "Hopper", 1000, 3, "-3.0"),
        score("other", "Ant", 10, 1, "5.0"),
    ]
    monkeypatch.setattr(site, "scores", lambda: all_of_them)
    assert [found.what for found in site.headlines()] == ["other", "it"]


def test_a_note_needs_exactly_one_line() -> None:
    script = annotate.Script("a = 1\nb = 2\na2 = 1\n")
    assert script.find("b = 2") == 2
    for at in "nowhere", "a":
        with pytest.raises(ValueError, match="a note needs exactly one"):
            script.find(at)


def test_every_common_note_has_a_place_in_some_script() -> None:
    notes: list[Any] = annotate.read_notes((ROOT / "docs" / "_notes.md").read_text())[1]
    sources = [(ROOT / f"{name}.py").read_text() for name in SCRIPTS]
    assert len(notes) > 10
    for note in notes:
        assert any(source.count(note.at) == 1 for source in sources), note.name
