"""A script as an annotated page: its comments and docstrings as prose, beside its code.

The script is read as text, so that a page needs neither PyTorch nor a simulator. The code on a page
is the whole file, character for character; what is shown as prose is hidden in the code until the
reader asks for it.

Hand-written notes (an equation beside its loss, a detail with a name) stand in Markdown:

    <!-- note critic-loss at "def critic_loss" -->
    ### The Bellman error
    ...

A note belongs to the one line that holds the text behind "at". The build fails if no line or more
than one holds it, so that a note cannot outlive its code.
"""

from __future__ import annotations

import ast
import difflib
import html
import io
import re
import tokenize
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import pygments
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

NOTE = re.compile(r'^<!-- note (?P<name>[a-z0-9-]+) at "(?P<at>.+)" -->\n', re.M)
SHARED = re.compile(r"# \[shared: (?P<name>[^\]]+)\]")
HOUSEKEEPING = re.compile(r"(# )?Housekeeping:")
HEADINGS = ["code", "usage", "flags", "metrics", "results", "paper", "temperature"]  # of pages


class Note(NamedTuple):
    """A hand-written remark on one place in a script."""

    name: str  # its anchor
    at: str  # a part of the line that it belongs to
    text: str  # Markdown


class Flag(NamedTuple):
    """A field of Args."""

    name: str
    kind: str  # its annotation
    default: str
    comment: str
    group: str  # the comment above its group


class Anchor(NamedTuple):
    """An entry of a page's table of contents."""

    name: str
    title: str
    level: int


@dataclass
class Row:
    """Some lines of a script, and the prose beside them."""

    first: int  # numbers of lines, counted from 1
    last: int = 0
    name: str = ""  # of the class or function that begins here, with its class's name before it
    prose: list[tuple[str, str]] = field(default_factory=list)  # (docstring|comment|shared, text)
    notes: list[Note] = field(default_factory=list)


def read_notes(markdown: str) -> tuple[str, list[Note]]:
    """A page's text, and the notes behind it, each of which ends where the next begins."""
    text, *parts = NOTE.split(markdown)
    triples = zip(parts[::3], parts[1::3], parts[2::3])
    return text, [Note(name, at, body.strip()) for name, at, body in triples]


class Script:
    """A script's text and its parts."""

    def __init__(self, source: str) -> None:
        self.source, self.lines = source, source.splitlines(keepends=True)
        self.tree = ast.parse(source)
        self.docstrings: dict[int, tuple[int, str]] = {}  # first line -> last line, text
        self.definitions: dict[int, tuple[str, int]] = {}  # first line -> name, last line
        self.begin: dict[int, str] = {}  # first line -> name, of those that begin a row
        self.headers: set[int] = set()  # the lines of these before their body
        self.read(self.tree, "")
        code, _, _ = source.partition("# /// script\n")  # PEP 723's list of packages is no comment
        tokens = tokenize.generate_tokens(io.StringIO(code).readline)
        self.comments = {  # line -> text, of comments that have a line to themselves
            token.start[0]: token.string
            for token in tokens
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
        }
        self.hidden = set(self.comments)  # lines that are shown as prose
        for first, (last, _) in self.docstrings.items():
            self.hidden |= set(range(first, last + 1))
        lexer, formatter = PythonLexer(stripnl=False, ensurenl=False), HtmlFormatter(nowrap=True)
        highlighted = pygments.highlight(source, lexer, formatter)
        self.highlighted = highlighted.splitlines(keepends=True)  # every line as HTML

    def read(self, parent: ast.Module | ast.ClassDef | ast.FunctionDef, prefix: str) -> None:
        """Note where docstrings and definitions stand; of functions within functions, neither."""
        text = ast.get_docstring(parent)
        if text is not None:
            node = parent.body[0]
            self.docstrings[node.lineno] = (node.end_lineno or node.lineno, text)
        for child in parent.body if not isinstance(parent, ast.FunctionDef) else []:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                self.definitions[first] = prefix + child.name, child.end_lineno or first
                if ast.get_docstring(child) is not None or not prefix:
                    self.headers |= set(range(first, child.body[0].lineno))
                    self.begin[first] = prefix + child.name
                self.read(child, f"{prefix}{child.name}.")

    def find(self, at: str) -> int:
        """The number of the one line that holds the text; ValueError if it is not one."""
        found = [number for number, line in enumerate(self.lines, 1) if at in line]
        if len(found) != 1:
            raise ValueError(f"{at!r} stands in {len(found)} lines, and a note needs exactly one")
        return found[0]

    def rows(self, notes: list[Note]) -> list[Row]:
        """The whole script in rows: a new one at every definition, comment and note."""
        noted: dict[int, list[Note]] = {}
        for note in notes:
            noted.setdefault(self.find(note.at), []).append(note)
        remarks = {n: text for n, text in self.comments.items() if text != "# [/shared]"}
        rows, visible = [Row(1)], False
        for number, line in enumerate(self.lines, 1):
            remark, name = remarks.get(number), self.begin.get(number)
            shared = SHARED.match(remark or "")
            begins = name or (remark and (shared or number - 1 not in remarks))
            begins = begins or (number in noted and number not in self.headers | self.hidden)
            if begins and visible:
                rows[-1].last = number - 1
                rows.append(Row(number))
                visible = False
            row = rows[-1]
            row.name = name or row.name
            if number in self.docstrings:
                row.prose.append(("docstring", self.docstrings[number][1]))
            if remark:
                row.prose.append(("shared", shared["name"]) if shared else ("comment", remark))
            row.notes += noted.get(number, [])
            visible |= number not in self.hidden and bool(line.strip())
        rows[-1].last = len(self.lines)
        return rows

    def flags(self) -> list[Flag]:
        """The fields of Args, in order."""
        node = next(n for n in self.tree.body if isinstance(n, ast.ClassDef) and n.name == "Args")
        flags, group, previous = [], "", node.lineno
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or item.value is None:
                continue
            last = item.end_lineno or item.lineno
            above = [self.comments[n] for n in range(previous, item.lineno) if n in self.comments]
            group = join_comments(above) or group
            behind = [line.partition("  # ")[2] for line in self.lines[item.lineno - 1 : last]]
            texts = (
                ast.get_source_segment(self.source, part) for part in (item.target, item.value)
            )
            name, default = map(str, texts)
            comment = " ".join(part.strip() for part in behind if part)
            flags.append(Flag(name, ast.unparse(item.annotation), default, comment, group))
            previous = last + 1
        return flags

    def blocks(self) -> list[str]:
        """The names of its shared blocks."""
        found = (SHARED.match(comment) for comment in self.comments.values())
        return [match["name"] for match in found if match]

    def where(self, number: int) -> str:
        """The name of the class or function that the line stands in, the innermost."""
        inside = [n for first, (n, last) in self.definitions.items() if first <= number <= last]
        return max(inside, key=len, default="")


# Prose


def join_comments(comments: list[str]) -> str:
    return " ".join(comment.lstrip("# ").strip() for comment in comments)


# What stands in prose as a link or as code: a flag, a shape, a call, a file, a name.
CODE = re.compile(
    r"""(?P<link>(?P<site>arXiv|doi):(?P<id>10\.[^\s)]+[^\s).,]|[0-9]{4}\.[0-9]{4,5}))
    | (?<![\w-])--[a-z][a-z0-9-]+(\ N\b)?
    | (?<!\w)\[[A-Z*0-9][A-Za-z0-9*,\ .+_()-]*\]
    | \b[A-Za-z_][\w.]*\(\)
    | \b[a-z]\w*_\w\w+(\.[a-z]+)?(?!\w)
    | \b\w+\.(?:py|csv|json|pt|md|sh|txt)\b
    | \bAutoresetMode\.\w+ """,
    re.X,
)
SITES = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}


def inline(text: str) -> str:
    """A sentence as HTML: papers as links, names and shapes as code."""

    def mark(match: re.Match[str]) -> str:
        if not match["link"]:
            return f"<code>{match[0]}</code>"
        return f'<a href="{SITES[match["site"]]}{match["id"]}">{match[0]}</a>'

    text = re.sub(r"(?<=[ (])-(?=[\w(])(?!-)", "\u2212", text)  # a minus, and no place to break
    return CODE.sub(mark, html.escape(text, quote=False))


def prose(text: str) -> str:
    """A docstring as HTML: paragraphs, indented code, and lines such as "Paper:  ..."."""
    paragraphs = []
    for part in re.split(r"\n\s*\n", text):
        lines = part.splitlines()
        if all(line.startswith("    ") for line in lines) or re.match(r"\w+ {2,}\S", part):
            paragraphs.append(f"<pre><code>{html.escape(part, quote=False)}</code></pre>")
        elif re.match(r"[A-Z][a-z]+: ", part):
            entries = (re.fullmatch(r"([A-Z][a-z]+:)?\s*(.+)", line) for line in lines)
            shown = [f"<b>{e[1] or ''}</b> {command(e[2])}" for e in entries if e]
            paragraphs.append(f"<p>{'<br>'.join(shown)}</p>")
        else:
            paragraphs.append(f"<p>{inline(' '.join(line.strip() for line in lines))}</p>")
    return "\n".join(paragraphs)


def command(line: str) -> str:
    """A line as HTML; a command as code, without the remark behind it."""
    words, space, remark = line.partition("  ")
    if not words.startswith(("python ", "torchrun ", "tensorboard ")):
        return inline(line)
    return f'<code class="run">{html.escape(words, quote=False)}</code>{space}{inline(remark)}'


def slug(text: str, taken: set[str]) -> str:
    """An anchor from the first words of the text, unlike those that are taken."""
    name = "-".join(re.findall(r"[a-z0-9]+", text.lower())[:6]) or "remark"
    while name in taken:
        name += "-here"
    taken.add(name)
    return name


# Pages


def anchor_link(name: str) -> str:
    return f'<a class="headerlink" href="#{name}" title="Link to here">&para;</a>'


def note_html(note: Note, render: Callable[[str], str]) -> tuple[str, str]:
    """A note as HTML, and its title as plain text; ValueError if it has none."""
    title = re.match(r"### (.+)\n?", note.text)
    if not title:
        raise ValueError(f"the note {note.name} has no title (###)")
    heading = render(title[1]).removeprefix("<p>").removesuffix("</p>")
    body = render(note.text[title.end() :])
    heading = f"<h4>{heading}{anchor_link(note.name)}</h4>"
    shown = f'<div class="note" id="{note.name}">{heading}{body}</div>'
    return shown, re.sub(r"[`$\\]", "", title[1])


def row_html(prose: list[str], code: list[str], attributes: str) -> str:
    """Prose, and lines of code beside it."""
    return (
        f'<div class="folio-row"><div class="folio-prose">{"".join(prose)}</div>'
        f'<div class="folio-code highlight"><pre><code {attributes}>{"".join(code)}'
        "</code></pre></div></div>"
    )


def code_lines(script: Script, first: int, last: int) -> list[str]:
    """Numbered lines as HTML; prose, and blank lines at either end, are hidden."""
    numbers = range(first, last + 1)
    seen = [n for n in numbers if n not in script.hidden and script.lines[n - 1].strip()]
    shown = set(range(seen[0], seen[-1] + 1) if seen else []) - script.hidden
    return [
        f'<span class="line{"" if n in shown else " told"}" id="L{n}" data-n="{n}">'
        f"{script.highlighted[n - 1]}</span>"
        for n in numbers
    ]


def listing(
    script: Script,
    notes: list[Note],
    render: Callable[[str], str],
    shared_with: Callable[[str], str],
) -> tuple[str, list[Anchor]]:
    """The annotated script as HTML, and its anchors.

    render makes HTML of a note's Markdown; shared_with says of a shared block's name where else it
    stands.
    """
    out, anchors, taken = [], list[Anchor](), {*script.begin.values(), *HEADINGS}
    for row in script.rows(notes):
        parts, comments = [], list[str]()
        if row.name:
            title = f"<code>{row.name}</code>{anchor_link(row.name)}"
            parts.append(f'<h3 id="{row.name}" class="name">{title}</h3>')
            anchors.append(Anchor(row.name, row.name, 1 + ("." in row.name)))
        for kind, text in [*row.prose, ("end", "")]:
            if kind == "comment":
                comments.append(text)
                continue
            if comments:
                words = join_comments(comments)
                name = slug(words, taken)
                if HOUSEKEEPING.match(words):
                    name = "housekeeping"
                    anchors.append(Anchor(name, "Housekeeping", 1))
                parts.append(f'<p id="{name}">{inline(words)}{anchor_link(name)}</p>')
                comments = []
            if kind == "docstring":
                parts.append(prose(text))
            elif kind == "shared":
                parts.append(f'<p class="shared">{shared_with(text)}</p>')
        for note in row.notes:
            if note.name in taken:
                raise ValueError(f"two notes on one page are named {note.name}")
            taken.add(note.name)
            shown, title = note_html(note, render)
            parts.append(shown)
            anchors.append(Anchor(note.name, title, 3))
        out.append(row_html(parts, code_lines(script, row.first, row.last), "data-search-exclude"))
    choice = (
        '<label class="folio-choice"><input type="checkbox" id="folio-told"> '
        "comments and docstrings in the code as well</label>"
    )
    return f'{choice}<div class="folio">{"".join(out)}</div>', anchors


def difference(
    a: Script, b: Script, notes: list[Note], render: Callable[[str], str]
) -> tuple[str, list[Anchor]]:
    """All differences as HTML: those with a note beside it, in order; then the rest, folded."""
    told, rest, anchors, left = list[str](), list[str](), list[Anchor](), list(notes)
    matcher = difflib.SequenceMatcher(None, a.lines, b.lines, autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            continue
        sides = [(a, "gone", range(i + 1, i_end + 1)), (b, "come", range(j + 1, j_end + 1))]
        changed = "".join(a.lines[i:i_end] + b.lines[j:j_end])
        lines = [
            f'<span class="line {css}" data-n="{n}">{script.highlighted[n - 1]}</span>'
            for script, css, numbers in sides
            for n in numbers
        ]
        places = (script.where(n) for script, _, numbers in reversed(sides) for n in numbers)
        place = next(filter(None, places), "top of the file")
        parts = [f'<p class="place"><code>{place}</code></p>']
        here = [note for note in left if note.at in changed]
        left = [note for note in left if note not in here]
        for note in here:
            shown, title = note_html(note, render)
            parts.append(shown)
            anchors.append(Anchor(note.name, title, 1))
        first = f'data-a="{i + 1}" data-b="{j + 1}"'
        (told if here else rest).append(row_html(parts, lines, first))
    if left:
        raise ValueError(f"{left[0].at!r} stands in no line that differs")
    folded = f"<details><summary>The other {len(rest)} places: flags, names, housekeeping</summary>"
    page = f'<div class="folio difference">{"".join(told)}{folded}{"".join(rest)}</details></div>'
    return page, anchors
