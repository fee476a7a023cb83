"""MkDocs hooks: what the site shows of scripts, studies and results, made at build time.

A page in docs/ says where: <!-- code -->, <!-- flags -->, <!-- results -->, <!-- diff A B -->,
<!-- curves FOLDER -->, <!-- scores -->, <!-- speed -->, <!-- scripts -->, <!-- studies -->,
<!-- include FILE -->. Nothing of it is written down a second time, so that nothing can be out of
date. Every script in the root has a page, also one that nobody has written about yet.
"""

from __future__ import annotations

import functools
import html
import importlib.util
import io
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
RESULTS = ROOT / "benchmark" / "results"
ORDER = ["ddpg", "td3", "sac", "ppo_atari", "a2c", "maddpg", "ppo_smarts"]  # of the pages


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
    """Behind code (190), which keeps its dollars, and before all else."""

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


def absent() -> set[str]:
    """The pages about scripts that are not there."""
    pages = {path.name for path in (ROOT / "docs").glob("*_*.md")}
    return {page for page in pages if re.search(r"_(continuous|atari|smarts)\.md$", page)} - {
        f"{name}.md" for name in scripts()
    }


def sizes(name: str) -> tuple[int, int]:
    """The numbers of lines of the algorithm, and of the utilities below it."""
    lines = script(name).lines
    found = (i for i, line in enumerate(lines) if annotate.HOUSEKEEPING.match(line))
    end = next(found, len(lines))
    return end, len(lines) - end


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
    what: str  # the setting, or whose figure it is
    script: str
    steps: str
    seeds: str
    middle: str  # interquartile mean and its interval
    mean: str  # and deviation
    note: str  # protocol of a published figure
    link: str
    folder: str  # of the runs, empty for a published figure


def env_id_of(name: str) -> str:
    """The environment's id from a run folder's name, which has no slash."""
    return re.sub(r"^(dm_control|ALE|mpe2|smarts)-", r"\1/", name)


@functools.cache
def script_of(folder: str) -> str:
    """The script that made the runs of a folder of results: its study says, or its name."""
    study = ROOT / "benchmark" / "studies" / f"{folder}.sh"
    if study.exists():
        match = re.search(r"--script (\w+)\.py", study.read_text())
        if match:
            return match[1]
    names = [n for n in scripts() if n.split("_")[0] == folder.split("_")[0]]
    exact = [n for n in names if n.split("_")[-1] in folder]
    return (exact or names or [""])[0]


@functools.cache
def groups(folder: str) -> Any:
    """The runs in a folder of results, as plot.py reads them."""
    return plot().read_runs([RESULTS / folder], 0)


def result_folders() -> list[str]:
    """The folders of results that hold runs."""
    found = (path for path in sorted(RESULTS.iterdir()) if path.is_dir())
    return [path.name for path in found if any(path.rglob("evaluations.csv"))]


def decimals(mean: str, std: str) -> str:
    return f"{mean} ± {std}" if std else mean


@functools.cache
def scores() -> list[Score]:
    """All that was measured, from the runs' own CSV files."""
    found = []
    for folder in result_folders():
        for row in plot().results(groups(folder), []):
            row = {key: re.sub(r"^-(0\.0+)$", r"\1", value) for key, value in row.items()}
            bounds = f" [{row['low']}, {row['high']}]" if row["low"] else ""
            one = row["seeds"] == "1"
            mean = row["mean"] if one else decimals(row["mean"], row["std"])
            steps, middle = f"{int(row['env_steps']):,}", row["iqm"] + bounds
            place = env_id_of(row["env_id"]), row["what"], script_of(folder), steps, row["seeds"]
            found.append(Score(*place, middle, mean, "", "", folder))
    return found


@functools.cache
def published() -> list[Score]:
    """What others published, from published.csv."""
    found = []
    for row in plot().published_rows(plot().PUBLISHED):
        names = [n for n in scripts() if n.split("_")[0] == row["algorithm"]]
        if len(names) > 1:  # PPO plays Atari in one script, and drives in another
            atari = row["env_id"].startswith("ALE/")
            names = [n for n in names if n.endswith("_atari") == atari] or names
        steps = f"{int(row['env_steps']):,}" if row["env_steps"] else ""
        mean = decimals(row["mean"], row["std"])
        place = row["env_id"], row["implementation"], (names or [""])[0], steps, "", ""
        found.append(Score(*place, mean, row["protocol"], row["source"], ""))
    return found


def speeds() -> list[tuple[str, list[str], list[list[str]]]]:
    """For each environment, its id, and the head and rows of a table of speeds.

    A cell holds steps per CPU second, and in brackets the ratio that speed.py gives.
    """
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for path in sorted((RESULTS / "speed").glob("*.md")):
        lines = path.read_text().splitlines()
        env_id = lines[0].rpartition(" ")[2]
        for line in lines:
            row = [cell.strip() for cell in line.strip("|").split("|")]
            if len(row) == 6 and row[0].isupper():
                value = f"{row[2].split(' ')[0]} ({row[4]} ×)"
                cells.setdefault(env_id, {})[row[0], row[1]] = value
    tables = []
    for env_id, here in cells.items():
        order = [name.split("_")[0].upper() for name in scripts()]
        names = sorted({name for name, _ in here}, key=order.index)
        contenders = sorted(
            dict.fromkeys(contender for _, contender in here),
            key=lambda contender: not contender.startswith("FolioRL"),
        )
        rows = [[c, *(here.get((name, c), "") for name in names)] for c in contenders]
        tables.append((env_id, ["", *names], rows))
    return tables


# Tables


def table(head: list[str], rows: list[list[str]], css: list[str] | None = None) -> str:
    """Cells of HTML as a table that scrolls by itself where it is too wide."""
    kinds = css or [""] * len(rows)
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(
        f"<tr{f' class={kind!r}' if kind else ''}>{line}</tr>"
        for kind, line in zip(kinds, lines[1:])
    )
    return (
        '<div class="md-typeset__scrollwrap"><div class="md-typeset__table"><table>'
        f"<thead><tr>{lines[0]}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def steps_of(score: Score) -> int:
    return int(score.steps.replace(",", "") or 0)


def returned(score: Score) -> float:
    """A score's mean."""
    return float(score.mean.split(" ± ")[0])


def nearest(theirs: list[Score], here: list[Score]) -> list[Score]:
    """Of each publisher's figures for our environment, the one at the most similar length."""
    ours = max(steps_of(score) for score in here)
    peers: dict[tuple[str, str], Score] = {}
    for score in theirs:
        if score.env_id != here[0].env_id:
            continue
        key = score.what, score.script
        before = peers.get(key, score)
        closer = abs(steps_of(score) - ours) <= abs(steps_of(before) - ours)
        peers[key] = score if closer else before
    return list(peers.values())


def headlines() -> list[Score]:
    """For each script and environment the setting with the most seeds, then steps, then return."""
    first: dict[tuple[str, str], Score] = {}
    rank = lambda s: (int(s.seeds), steps_of(s), returned(s))  # noqa: E731
    for score in sorted(scores(), key=rank, reverse=True):
        first.setdefault((score.script, score.env_id), score)
    return sorted(first.values(), key=lambda s: (scripts().index(s.script), s.env_id))


def score_table(ours: list[Score], theirs: list[Score], with_script: bool = False) -> str:
    """Our scores, each environment's followed by what others published."""
    rows, css = [], []
    for env_id in dict.fromkeys(score.env_id for score in ours):
        here = [score for score in ours if score.env_id == env_id]
        algorithms = {score.script for score in here}
        peers = [s for s in nearest(theirs, here) if s.script in algorithms]
        for score in here + peers:
            link = f"{score.script}.html"
            what = f"<code>{html.escape(score.what)}</code>"
            if score.link:
                what = f'<a href="{score.link}">{html.escape(score.what)}</a>, {score.note}'
            elif with_script:
                what = f'<a href="{link}">{score.script}.py</a>, {what}'
            first = f"<code>{env_id}</code>" if score is here[0] else ""
            rows.append([first, what, score.steps, score.seeds, score.middle, score.mean])
            css.append("published" if score.link else "")
    head = ["environment", "setting", "steps", "seeds", "interquartile mean [95% interval]"]
    return table([*head, "mean ± std"], rows, css)


def result_section(name: str) -> str:
    """A script's results beside the published ones; what is published and not run here yet."""
    ours = [score for score in scores() if score.script == name]
    theirs = [score for score in published() if score.script == name]
    parts = []
    if ours:
        parts.append(score_table(ours, theirs))
        for folder in dict.fromkeys(score.folder for score in ours):
            parts.append(figure(folder))
    else:
        parts.append("<p>No run of this script has been finished and filed yet.</p>")
    done = {score.env_id for score in ours}
    missing = [score for score in theirs if score.env_id not in done]
    if missing:
        parts.append("<p>Published, and not run with this script yet:</p>")
        rows = [
            [
                f"<code>{s.env_id}</code>",
                f'<a href="{s.link}">{html.escape(s.what)}</a>',
                s.steps,
                s.mean,
                s.note,
            ]
            for s in missing
        ]
        head = ["environment", "implementation", "steps", "mean ± std", "protocol"]
        parts.append(table(head, rows))
    return "\n".join(parts)


def figure(folder: str) -> str:
    title = f"Learning curves of {folder}, by environment steps"
    return (
        f'<figure class="curves"><div><img src="figures/{folder}.svg" alt="{title}"></div>'
        f"<figcaption>{title}. Line: interquartile mean of the seeds; band: 95% interval; "
        f"dotted: published. Runs: <code>benchmark/results/{folder}</code></figcaption></figure>"
    )


def drawing(folders: list[str]) -> Any:
    """The learning curves of some folders of results, one panel for each environment."""
    plotter, together = plot(), {}
    for folder in folders:
        together.update(groups(folder))
    ours = [score for score in scores() if score.folder in folders]
    envs = dict.fromkeys(score.env_id for score in ours)
    peers = [p for env in envs for p in nearest(published(), [s for s in ours if s.env_id == env])]
    shown = {(peer.env_id, peer.what, peer.steps.replace(",", "")) for peer in peers}
    rows = [
        row
        for row in plotter.published_rows(plotter.PUBLISHED)
        if (row["env_id"], row["implementation"], row["env_steps"]) in shown
    ]
    return plotter.curves(together, "steps", rows, 0)


@functools.cache
def draw(folder: str) -> bytes:
    """The learning curves of a folder of results, as an SVG."""
    out, figure = io.BytesIO(), drawing([folder])
    figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    plot().plt.close(figure)
    return out.getvalue()


def speed_tables() -> str:
    return "\n".join(
        f"<p><code>{env}</code></p>{table(head, rows)}" for env, head, rows in speeds()
    )


def script_table() -> str:
    rows = []
    for name in scripts():
        lesson, housekeeping = sizes(name)
        rows.append(
            [
                f'<a href="{name}.html">{name}.py</a>',
                html.escape(summary(name)),
                str(lesson),
                str(housekeeping),
            ]
        )
    return table(["script", "what it is", "algorithm (lines)", "utilities (lines)"], rows)


def default_text(source: str) -> str:
    if source == "None":
        return "none"
    return html.escape(source.strip('"') or '""')


def flag_tables(name: str) -> str:
    """A script's flags, by the groups of Args."""
    found, out = script(name).flags(), []
    for group in dict.fromkeys(flag.group for flag in found):
        title, _, rest = group.partition(". ")
        title, _, more = title.rstrip(".").partition(": " if ": " in title else ", ")
        about = ". ".join(part for part in (more, rest) if part)
        out.append(
            f"<p><b>{html.escape(title)}.</b> {annotate.inline(about[:1].upper() + about[1:])}</p>"
        )
        rows = []
        for flag in found:
            if flag.group != group:
                continue
            word = flag.name.replace("_", "-")
            kind = re.sub(r"^Fixed\[(.*)\]$", r"\1", flag.kind)
            shown = f"--{word}" + (f", --no-{word}" if kind == "bool" else "")
            literal = kind.startswith("Literal") and kind.endswith("]")
            choices = re.findall(r"'([^']+)'", kind) if literal else []
            comment = annotate.inline(flag.comment)
            if choices:
                comment = "<code>" + "</code> | <code>".join(choices) + f"</code>: {comment}"
            rows.append(
                [
                    f'<code id="--{word}">{shown}</code>',
                    f"<code>{default_text(flag.default)}</code>",
                    comment,
                ]
            )
        out.append(table(["flag", "default", "what it is"], rows))
    return "\n".join(out)


def study_list() -> str:
    """Every study: what it asks, how it is run, what came of it."""
    out, folders = [], result_folders()
    for path in sorted((ROOT / "benchmark" / "studies").glob("*.sh")):
        lines = path.read_text().splitlines()[1:]
        comment = []
        for line in lines:
            if not line.startswith("#"):
                break
            comment.append(line.removeprefix("#").removeprefix(" "))
        about, _, commands = "\n".join(comment).partition("\n\n")
        command = re.sub(r"  +any flag.*", "", commands.strip().splitlines()[0]).strip()
        out.append(f'<h3 id="{path.stem}">{path.stem}{annotate.anchor_link(path.stem)}</h3>')
        out.append(f"<p>{annotate.inline(' '.join(about.split()))}</p>")
        out.append(f"<pre><code>{html.escape(command)}</code></pre>")
        if path.stem in folders:
            ours = [score for score in scores() if score.folder == path.stem]
            out += [score_table(ours, published()), figure(path.stem)]
        else:
            out.append("<p><i>Not run to its end yet.</i></p>")
    return "\n".join(out)


# The hooks


def shared_with(name: str) -> Callable[[str], str]:
    """A sentence on a shared block of the script: where else the same text stands."""

    def sentence(block: str) -> str:
        others = [n for n in scripts() if n != name and block in script(n).blocks()]
        links = [f'<a href="{n}.html">{n.split("_")[0]}</a>' for n in others]
        label = f"<b>{html.escape(block)}</b>"
        return f"Shared block {label}: the same text in {', '.join(links)}" if links else label

    return sentence


def notes_of(name: str) -> list[annotate.Note]:
    """The notes of a script's page, and those of _notes.md whose place the script has."""
    path = ROOT / "docs" / f"{name}.md"
    own = annotate.read_notes(path.read_text())[1] if path.exists() else []
    common = annotate.read_notes((ROOT / "docs" / "_notes.md").read_text())[1]
    return own + [note for note in common if script(name).source.count(note.at) == 1]


def renderer(config: MkDocsConfig) -> Callable[[str], str]:
    def render(text: str) -> str:
        md = markdown.Markdown(
            extensions=config.markdown_extensions, extension_configs=config.mdx_configs
        )
        return re.sub(r'href="(\w+)\.md', r'href="\1.html', md.convert(text))

    return render


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the scripts' pages to the navigation, and mathematics to Markdown."""
    config.markdown_extensions.append(MathematicsExtension())
    for entry in config.nav or []:
        if "Scripts" in entry:
            entry["Scripts"] = [f"{name}.md" for name in scripts()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the scripts themselves, the figures, and pages that are not written by hand."""
    for file in list(files):
        if file.src_uri in absent():
            files.remove(file)
    for name in scripts():
        text = script(name).source
        files.append(File.generated(config, f"{name}.py", content=text))
        if files.get_file_from_path(f"{name}.md") is None:
            page = (
                f"# {name}.py\n\n{summary(name)}\n\n<!-- code -->\n\n## Flags\n\n<!-- flags -->\n"
            )
            page += "\n## Results\n\n<!-- results -->\n"
            files.append(File.generated(config, f"{name}.md", content=page))
    for folder in result_folders():
        files.append(File.generated(config, f"figures/{folder}.svg", content=draw(folder)))
    for path in RESULTS.glob("*/runaway.svg"):  # drawn from losses, and no learning curve
        files.append(File.generated(config, f"figures/{path.name}", content=path.read_bytes()))
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    files.append(File.generated(config, "contributing.md", content=contributing))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take the notes out, and the files that are included in."""

    def include(match: re.Match[str]) -> str:
        included = (ROOT / match[1]).read_text()
        if match[1].endswith("results/README.md"):
            included = re.sub(r"^# .*\n", "", included)
        return included.strip("\n")

    text = annotate.read_notes(text)[0]
    text = re.sub(r"(<!-- (\w+) -->\n).*?<!-- /\2 -->", r"\1", text, flags=re.S)  # made anew here
    text = text.replace("../benchmark/results/README.md#", "studies.md#")
    text = text.replace("../benchmark/results/README.md", "studies.md#notes")
    text = re.sub(r"\]\(\.\./(\w+\.py)\)", r"](\1)", text)
    for page_name in absent():  # no links to pages that are not there
        text = re.sub(rf"\[([^]]+)\]\({page_name}[^)]*\)", r"\1", text)
    return re.sub(r"^<!-- include (\S+) -->$", include, text, flags=re.M)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is made from scripts and results in its places."""
    name, render = Path(page.file.src_uri).stem, renderer(config)

    def links(anchors: list[annotate.Anchor]) -> list[AnchorLink]:
        tops: list[AnchorLink] = []
        for anchor in anchors:
            item = AnchorLink(anchor.title, anchor.name, 3)
            if anchor.level == 1 or not tops:
                tops.append(item)
            elif anchor.level > 1:
                tops[-1].children.append(item)
        return tops

    def under(name: str) -> list[AnchorLink]:
        """The children of the page's entry of that name, to add to."""
        found = [item for top in page.toc for item in [top, *top.children] if item.id == name]
        return found[0].children if found else []

    def replace(match: re.Match[str]) -> str:
        kind, words = match[1], match[2].split()
        if kind == "code":
            shown, anchors = annotate.listing(
                script(name), notes_of(name), render, shared_with(name)
            )
            under("code").extend(links(anchors))
            return shown
        if kind == "diff":
            source = (ROOT / "docs" / page.file.src_uri).read_text()
            notes = annotate.read_notes(source)[1]
            prefix = f"{words[0].split('_')[0]}-{words[1].split('_')[0]}-"
            notes = [note for note in notes if note.name.startswith(prefix)]
            shown, anchors = annotate.difference(script(words[0]), script(words[1]), notes, render)
            under(prefix.strip("-")).extend(links(anchors))
            return shown
        if kind == "studies":
            paths = sorted((ROOT / "benchmark" / "studies").glob("*.sh"))
            under("list").extend(AnchorLink(path.stem, path.stem, 3) for path in paths)
        made: dict[str, Callable[[], str]] = {
            "flags": lambda: flag_tables(name),
            "results": lambda: result_section(name),
            "scores": lambda: score_table(headlines(), published(), with_script=True),
            "speed": speed_tables,
            "scripts": script_table,
            "studies": study_list,
            "curves": lambda: figure(words[0]),
        }
        return made[kind]()

    return re.sub(
        r"<!-- (code|diff|flags|results|scores|speed|scripts|studies|curves) ?(.*?) ?-->",
        replace,
        text,
    )
