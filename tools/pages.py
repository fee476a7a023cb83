"""MkDocs hooks: what the site shows of scripts, studies and results, made at build time.

A page in docs/ says where: <!-- code -->, <!-- flags -->, <!-- results -->, <!-- diff A B -->,
<!-- curves FOLDER -->, <!-- scripts -->, <!-- studies -->, <!-- include FILE -->. Every script in
the root has a page, also one that nobody has written about yet.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
import xml.etree.ElementTree as etree
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import annotate
import markdown
from latex2mathml.converter import convert
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink

ROOT = Path(__file__).resolve().parent.parent
RESULTS, STUDIES = ROOT / "benchmark" / "results", ROOT / "benchmark" / "studies"
ORDER = ["ddpg", "td3", "sac", "ppo_atari", "a2c", "a3c", "maddpg", "ppo_smarts"]  # of pages
NEW_PAGE = """# {0}.py

{1}

## Code

<!-- code -->

## Flags

<!-- flags -->

## Results

<!-- results -->
"""


# Mathematics: $...$ and $$...$$ become MathML, which browsers draw by themselves


class Mathematics(InlineProcessor):
    """A formula in LaTeX as a MathML element."""

    def handleMatch(self, match: re.Match[str], data: str) -> tuple[Any, int, int]:
        """The element, and where the formula begins and ends."""
        display = match[1] is not None
        text = convert((match[1] or match[2]).strip(), display="block" if display else "inline")
        element = etree.fromstring(text.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))
        for part in element.iter():  # no Markdown within
            part.text = AtomicString(part.text) if part.text else None
        if not display:
            return element, match.start(0), match.end(0)
        box = etree.Element("span", {"class": "formula"})
        box.append(element)
        return box, match.start(0), match.end(0)


class MathematicsExtension(markdown.Extension):
    """After code (190), which keeps its dollars, and before everything else."""

    def extendMarkdown(self, md: markdown.Markdown) -> None:
        """Add the pattern."""
        pattern = r"(?<![\\$])(?:\$\$(?!\s*\$)(.+?)\$\$|\$(?![\s$])([^$]+?)(?<!\s)\$)"
        md.inlinePatterns.register(Mathematics(pattern, md), "mathematics", 185)


# What the repository holds


def scripts() -> list[str]:
    """The scripts' names, in the order in which they are best read."""

    def place(name: str) -> tuple[int, str]:
        return next((i for i, part in enumerate(ORDER) if name.startswith(part)), 99), name

    return sorted((path.stem for path in ROOT.glob("*.py")), key=place)


@functools.cache
def script(name: str) -> annotate.Script:
    return annotate.Script((ROOT / f"{name}.py").read_text())


def summary(name: str) -> str:
    """The first line of the script's docstring."""
    return script(name).docstrings[1][1].splitlines()[0]


@functools.cache
def plot() -> ModuleType:
    """benchmark/plot.py, which is no package."""
    spec = importlib.util.spec_from_file_location("plot", ROOT / "benchmark" / "plot.py")
    assert spec and spec.loader
    module = sys.modules["plot"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Score(NamedTuple):
    """What the runs of one setting reached in one environment, or what others published."""

    env_id: str
    what: str  # the setting, or whose score it is
    script: str
    steps: int  # 0 if a publication does not say
    seeds: int  # 0 for a published score
    mean: str
    std: str = ""
    middle: str = ""  # interquartile mean and its interval
    note: str = ""  # protocol of a published score
    link: str = ""
    folder: str = ""  # of the runs

    @property
    def text(self) -> str:
        """The mean and the standard deviation."""
        return f"{self.mean} ± {self.std}" if self.std else self.mean

    @property
    def length(self) -> str:
        """The number of steps, to be read."""
        return f"{self.steps:,}" if self.steps else ""


@functools.cache
def script_of(folder: str) -> str:
    """The script that made the runs of a folder of results: its study says, or its name."""
    study = STUDIES / f"{folder}.sh"
    match = re.search(r"--script (\w+)\.py", study.read_text() if study.exists() else "")
    names = [n for n in scripts() if n.split("_")[0] == folder.split("_")[0]]
    exact = [n for n in names if n.split("_")[-1] in folder]
    return match[1] if match else (exact or names or [""])[0]


def result_folders() -> list[str]:
    """The folders of results that hold runs."""
    found = (path for path in sorted(RESULTS.iterdir()) if path.is_dir())
    found = (path for path in found if path.name != "parity")  # which has runs of peers
    return [path.name for path in found if any(path.rglob("evaluations.csv"))]


@functools.cache
def scores() -> list[Score]:
    """All that was measured, from the runs' own CSV files."""
    found = []
    for folder in result_folders():
        for row in plot().results(plot().read_runs([RESULTS / folder], 0), []):
            row = {key: re.sub(r"^-(0\.0+)$", r"\1", value) for key, value in row.items()}
            env_id = re.sub(r"^(dm_control|ALE|mpe2|smarts)-", r"\1/", row["env_id"])
            middle = row["iqm"] + (f" [{row['low']}, {row['high']}]" if row["low"] else "")
            counts = int(row["env_steps"]), int(row["seeds"])
            place = env_id, row["what"], script_of(folder), *counts, row["mean"], row["std"]
            found.append(Score(*place, middle=middle, folder=folder))
    return found


@functools.cache
def published() -> list[Score]:
    """What others published, from published.csv."""
    found = []
    for row in plot().published_rows(plot().PUBLISHED):
        names = [n for n in scripts() if n.split("_")[0] == row["algorithm"]]
        atari = row["env_id"].startswith("ALE/")  # PPO has two scripts
        names = [n for n in names if n.endswith("_atari") == atari] or names or [""]
        place = row["env_id"], row["implementation"], names[0], int(row["env_steps"] or 0), 0
        more = {"std": row["std"], "note": row["protocol"], "link": row["source"]}
        found.append(Score(*place, row["mean"], **more))
    return found


def nearest(score: Score) -> list[Score]:
    """Of each publisher's scores for a task and script, the one at the most similar length."""
    peers: dict[str, Score] = {}
    same = [p for p in published() if (p.env_id, p.script) == (score.env_id, score.script)]
    for peer in sorted(same, key=lambda peer: -abs(peer.steps - score.steps)):
        peers[peer.what] = peer
    return [peer for peer in same if peer in peers.values()]


def headlines() -> list[Score]:
    """For each script and environment the setting with the most seeds, then steps, then return."""
    first: dict[tuple[str, str], Score] = {}
    rank = lambda s: (s.seeds, s.steps, float(s.mean))  # noqa: E731
    for score in sorted(scores(), key=rank, reverse=True):
        first.setdefault((score.script, score.env_id), score)
    return sorted(first.values(), key=lambda s: (scripts().index(s.script), s.env_id))


# Tables and sections, in Markdown


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def script_table(suffix: str = "md") -> str:
    """Every script, what it is, and its size; with a link to the script or to its page."""
    rows = []
    for name in scripts():
        lines = script(name).lines
        ends = (i for i, line in enumerate(lines) if annotate.HOUSEKEEPING.match(line))
        end = next(ends, len(lines))
        link, what = f"[{name}.py]({name}.{suffix})", summary(name).rstrip(".")
        rows.append([link, what, str(end), str(len(lines) - end)])
    return table(["script", "what it is", "algorithm (lines)", "utilities (lines)"], rows)


def score_table(ours: list[Score]) -> str:
    """Our scores, each environment's followed by what others published."""
    rows = []
    for env_id in dict.fromkeys(score.env_id for score in ours):
        here = [score for score in ours if score.env_id == env_id]
        longest = max(here, key=lambda score: score.steps)
        for i, score in enumerate(here + nearest(longest)):
            peer = f"[{score.what}]({score.link}){{ .published }}, {score.note}"
            what = peer if score.link else f"`{score.what}`"
            seeds = str(score.seeds or "")
            first = "" if i else f"`{env_id}`"
            rows.append([first, what, score.length, seeds, score.middle, score.text])
    head = ["environment", "setting", "steps", "seeds", "interquartile mean [95% interval]"]
    return table([*head, "mean ± std"], rows)


def figure(folder: str) -> str:
    if not (RESULTS / folder / "returns_by_steps.svg").exists():
        return ""
    title = f"Learning curves of {folder}, by environment steps"
    return (
        f'<figure class="curves"><div><img src="figures/{folder}.svg" alt="{title}"></div>'
        f"<figcaption>{title}. Line: interquartile mean of the seeds; band: 95% interval; "
        f"dotted: published. Runs: <code>benchmark/results/{folder}</code></figcaption></figure>"
    )


def result_section(name: str) -> str:
    """A script's results beside the published ones; what is published and not run here yet."""
    ours = [score for score in scores() if score.script == name]
    parts = ["No run of this script has been finished and filed yet."]
    if ours:
        folders = dict.fromkeys(score.folder for score in ours)
        parts = [score_table(ours), *map(figure, folders)]
    done = {score.env_id for score in ours}
    rows = [
        [f"`{s.env_id}`", f"[{s.what}]({s.link})", s.length, s.text, s.note]
        for s in published()
        if s.script == name and s.env_id not in done
    ]
    head = ["environment", "implementation", "steps", "mean ± std", "protocol"]
    more = ["Published, and not run with this script yet:", table(head, rows)] if rows else []
    return "\n\n".join(parts + more)


def cell(text: str) -> str:
    """A comment for a table: what Markdown would take for marks is written as entities."""
    return re.sub(r"[\\`*_{}\[\]|$]", lambda match: f"&#{ord(match[0])};", annotate.inline(text))


def flag_tables(name: str) -> str:
    """A script's flags, by the groups of Args."""
    out, groups = [], dict[str, list[list[str]]]()
    for flag in script(name).flags():
        kind = re.sub(r"^Fixed\[(.*)\]$", r"\1", flag.kind)
        word = flag.name.replace("_", "-")
        shown = f"--{word}" + (f", --no-{word}" if kind == "bool" else "")
        choices = re.findall(r"'([^']+)'", kind) if kind.startswith("Literal") else []
        comment = cell(flag.comment)
        if choices:
            comment = " &#124; ".join(f"`{choice}`" for choice in choices) + f": {comment}"
        default = "none" if flag.default == "None" else flag.default.strip('"') or '""'
        row = [f'<code id="--{word}">{shown}</code>', f"`{default}`", comment]
        groups.setdefault(flag.group, []).append(row)
    for group, rows in groups.items():
        title, _, about = re.sub(r"[:,] |\. ", "\n", group.rstrip("."), count=1).partition("\n")
        out.append(f"**{title}.** {cell(about[:1].upper() + about[1:])}")
        out.append(table(["flag", "default", "what it is"], rows))
    return "\n\n".join(out)


def study_list() -> str:
    """Every study: what it asks, how it is run, what came of it."""
    out, folders = [], result_folders()
    for path in sorted(STUDIES.glob("*.sh")):
        comment = re.match(r"#!.*\n((?:#.*\n)+)", path.read_text())
        about, _, commands = re.sub(
            r"^# ?", "", comment[1] if comment else "", flags=re.M
        ).partition("\n\n")
        command = re.sub(r"  +any flag.*", "", commands.strip().splitlines()[0]).strip()
        out += [f"### {path.stem} {{#{path.stem}}}", cell(" ".join(about.split()))]
        out.append(f"```\n{command}\n```")
        ours = [score for score in scores() if score.folder == path.stem]
        filed = [score_table(ours), figure(path.stem)]
        out += filed if path.stem in folders else ["*Not run to its end yet.*"]
    return "\n\n".join(out)


# The hooks


def shared_with(name: str) -> Callable[[str], str]:
    """A sentence on a shared block of the script: where else the same text stands."""

    def sentence(block: str) -> str:
        others = [n for n in scripts() if n != name and block in script(n).blocks()]
        links = ", ".join(f'<a href="{n}.html">{n.split("_")[0]}</a>' for n in others)
        return f"Shared block <b>{block}</b>: the same text in {links}" if links else block

    return sentence


def notes_of(name: str) -> list[annotate.Note]:
    """The notes of a page, and if it is a script's, those of _notes.md that it has a place for."""
    path = ROOT / "docs" / f"{name}.md"
    own = annotate.read_notes(path.read_text())[1] if path.exists() else []
    if name not in scripts():
        return own
    common = annotate.read_notes((ROOT / "docs" / "_notes.md").read_text())[1]
    return own + [note for note in common if script(name).source.count(note.at) == 1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the scripts' pages to the navigation, and mathematics to Markdown."""
    config.markdown_extensions.append(MathematicsExtension())
    for entry in config.nav or []:
        if "Scripts" in entry:
            entry["Scripts"] = [f"{name}.md" for name in scripts()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the scripts themselves, the figures, and pages that are not written by hand."""

    def add(name: str, content: str | bytes) -> None:
        files.append(File.generated(config, name, content=content))

    for name in scripts():
        add(f"{name}.py", script(name).source)
        if files.get_file_from_path(f"{name}.md") is None:
            add(f"{name}.md", NEW_PAGE.format(name, summary(name)))
    for path in RESULTS.glob("*/returns_by_steps.svg"):
        add(f"figures/{path.parent.name}.svg", path.read_bytes())
    for path in RESULTS.glob("*/runaway.svg"):  # drawn from losses, and no learning curve
        add(f"figures/{path.name}", path.read_bytes())
    add("contributing.md", (ROOT / "CONTRIBUTING.md").read_text())
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take the notes out, and put in what is Markdown: tables, sections and other files."""
    name = Path(page.file.src_uri).stem

    def replace(match: re.Match[str]) -> str:
        kind, word = match[1], match[2]
        if kind == "include":
            included = (ROOT / word).read_text().strip("\n")
            return re.sub(r"^# .*\n", "", included) if "results" in word else included
        made: dict[str, Callable[[], str]] = {
            "flags": lambda: flag_tables(name),
            "results": lambda: result_section(name),
            "scripts": script_table,
            "studies": study_list,
            "curves": lambda: figure(word),
        }
        return made[kind]()

    text = annotate.read_notes(text)[0]
    kinds = "include|flags|results|scripts|studies|curves"
    text = re.sub(rf"^<!-- ({kinds}) ?(\S*) ?-->$", replace, text, flags=re.M)
    text = text.replace("../benchmark/results/README.md#", "studies.md#")
    text = text.replace("../benchmark/results/README.md", "studies.md#notes")
    return re.sub(r"\]\(\.\./(\w+\.py)\)", r"](\1)", text)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put scripts and their differences in their places, and into the table of contents."""
    name = Path(page.file.src_uri).stem

    def render(note: str) -> str:
        settings = {
            "extensions": config.markdown_extensions,
            "extension_configs": config.mdx_configs,
        }
        return re.sub(r'href="(\w+)\.md', r'href="\1.html', markdown.markdown(note, **settings))

    def replace(match: re.Match[str]) -> str:
        if match[1] == "code":
            where, place = "code", (script(name), notes_of(name), render, shared_with(name))
            shown, anchors = annotate.listing(*place)
        else:
            a, b = match[2].split()
            where = f"{a.split('_')[0]}-{b.split('_')[0]}"
            notes = [note for note in notes_of(name) if note.name.startswith(f"{where}-")]
            shown, anchors = annotate.difference(script(a), script(b), notes, render)
        found = (item for top in page.toc for item in [top, *top.children] if item.id == where)
        entry = next(found)
        for anchor in anchors:
            under = entry if anchor.level == 1 or not entry.children else entry.children[-1]
            under.children.append(AnchorLink(anchor.title, anchor.name, 3))
        return shown

    return re.sub(r"<!-- (code|diff) ?(.*?) ?-->", replace, text)
