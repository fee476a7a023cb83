"""A script as an annotated page: its comments and docstrings as prose, beside its code.

Nothing is imported from the script: it is read as text, so that a page needs neither PyTorch nor a
simulator. The code on a page is the whole file, character for character. A comment or docstring
that is shown as prose stands in the code too, but hidden until the reader asks for it.

Hand-written notes (an equation beside its loss, a detail with a name) stand in Markdown:

    <!-- note critic-loss at "def critic_loss" -->
    ### The Bellman error
    ...

A note belongs to the one line that holds the text behind "at". The build fails where no line or
more than one holds it, so that a note cannot outlive the code that it speaks of.
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
from functools import cached_property
from typing import NamedTuple

from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES, Token

NOTE = re.compile(r'^<!-- note (?P<name>[a-z0-9-]+) at "(?P<at>.+)" -->\n', re.M)
SHARED = re.compile(r"# \[shared: (?P<name>[^\]]+)\]")
HOUSEKEEPING = re.compile(r"(?:# )?(?:Housekeeping:|From here on housekeeping)")
HEADINGS = ["code", "usage", "flags", "metrics", "results", "paper", "temperature"]  # of pages
METADATA = ("# /// script", "# ///")  # the first and last line of a block of PEP 723


class Note(NamedTuple):
    """A hand-written remark on one place in a script."""

    name: str  # its anchor
    at: str  # what stands in the line that it belongs to
    text: str  # Markdown


class Flag(NamedTuple):
    """A field of Args."""

    name: str
    kind: str  # its annotation
    default: str
    comment: str
    group: str  # the comment that stands above its group


@dataclass
class Row:
    """Some lines of a script, and what is said beside them."""

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


class Definition(NamedTuple):
    """A class, a function or a method."""

    name: str  # with its class's name before it
    last: int  # line


class Script:
    """A script's text, and what its parts are."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines = source.splitlines(keepends=True)
        self.tree = ast.parse(source)
        self.docstrings: dict[int, tuple[int, str]] = {}  # first line -> last line, text
        self.definitions: dict[int, Definition] = {}  # by their first line, of a decorator if any
        self.begin: dict[int, str] = {}  # first line -> name, of those that begin a row
        self.headers: set[int] = set()  # the lines of these before their body
        self.read(self.tree, "")
        self.comments = self.read_comments()  # line -> text
        self.hidden = {
            number
            for first, (last, _) in self.docstrings.items()
            for number in range(first, last + 1)
        } | set(self.comments)

    def read(self, parent: ast.Module | ast.ClassDef | ast.FunctionDef, prefix: str) -> None:
        """Note where docstrings and definitions stand; of functions within functions, neither."""
        text = ast.get_docstring(parent)
        if text is not None:
            node = parent.body[0]
            self.docstrings[node.lineno] = (node.end_lineno or node.lineno, text)
        if isinstance(parent, ast.FunctionDef):
            return
        for child in parent.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                last = child.end_lineno or first
                self.definitions[first] = Definition(prefix + child.name, last)
                if ast.get_docstring(child) is not None or not prefix:
                    self.headers |= set(range(first, child.body[0].lineno))
                    self.begin[first] = prefix + child.name
                self.read(child, f"{prefix}{child.name}.")

    def read_comments(self) -> dict[int, str]:
        """The comments that have a line to themselves, but for the block of PEP 723."""
        comments, metadata = {}, False
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if token.type != tokenize.COMMENT or not token.line.lstrip().startswith("#"):
                continue
            metadata |= token.string == METADATA[0]
            if not metadata:
                comments[token.start[0]] = token.string
            metadata &= token.string != METADATA[1]
        return comments

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
        flags, group = [], ""
        previous = node.lineno
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or item.value is None:
                continue
            above = [self.comments[n] for n in range(previous, item.lineno) if n in self.comments]
            if above:
                group = join_comments(above)
            last = item.end_lineno or item.lineno
            trailing = [
                self.lines[n - 1].partition("  # ")[2] for n in range(item.lineno, last + 1)
            ]
            kind, default = ast.unparse(item.annotation), ast.unparse(item.value)
            if isinstance(item.value, ast.Constant | ast.UnaryOp):
                default = self.source_of(item.value)
            comment = " ".join(part.strip() for part in trailing if part)
            flags.append(Flag(ast.unparse(item.target), kind, default, comment, group))
            previous = last + 1
        return flags

    def source_of(self, node: ast.expr) -> str:
        """The text of an expression that stands in one line; columns count bytes."""
        line = self.lines[node.lineno - 1].encode()
        return line[node.col_offset : node.end_col_offset].decode()

    def blocks(self) -> list[str]:
        """The names of its shared blocks."""
        found = (SHARED.match(comment) for comment in self.comments.values())
        return [match["name"] for match in found if match]

    def where(self, number: int) -> str:
        """The name of the class or function that the line stands in, the innermost."""
        inside = [d.name for f, d in self.definitions.items() if f <= number <= d.last]
        return max(inside, key=len, default="")

    @cached_property
    def highlighted(self) -> list[str]:
        """Every line as HTML; its text, with its line break, is the script's."""
        lines = [""]
        for _, kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens_unprocessed(
            self.source
        ):
            while kind not in STANDARD_TYPES:
                kind = kind.parent or Token
            css = STANDARD_TYPES[kind]
            for place, part in enumerate(text.split("\n")):
                if place:
                    lines[-1] += "\n"
                    lines.append("")
                if part:
                    escaped = html.escape(part, quote=False)
                    lines[-1] += f'<span class="{css}">{escaped}</span>' if css else escaped
        return lines[: len(self.lines)]


# Prose


def join_comments(comments: list[str]) -> str:
    return " ".join(comment.lstrip("# ").strip() for comment in comments)


# What stands in prose as code: a flag, a shape, a call, a file, a name with an underscore.
CODE = re.compile(
    r"""(?P<arxiv>arXiv:(?P<number>[0-9]{4}\.[0-9]{4,5}))
    | (?P<doi>doi:(?P<id>10\.[^\s)]+[^\s).,]))
    | (?P<code>(?<![\w-])--[a-z][a-z0-9-]+(\ N\b)?
        | (?<!\w)\[[A-Z*0-9][A-Za-z0-9*,\ .+_()-]*\]
        | \b[A-Za-z_][\w.]*\(\)
        | \b[a-z]\w*_\w\w+(\.[a-z]+)?(?!\w)
        | \b\w+\.(?:py|csv|json|pt|md|sh|txt)\b
        | \bAutoresetMode\.\w+ )""",
    re.X,
)


def inline(text: str) -> str:
    """A sentence as HTML: papers as links, names and shapes as code."""
    text = re.sub(r"(?<=[ (])-(?=[\w(])(?!-)", "\u2212", text)  # a minus, and no place to break
    out, end = [], 0
    for match in CODE.finditer(text):
        out.append(html.escape(text[end : match.start()], quote=False))
        word = html.escape(match[0], quote=False)
        if match["arxiv"]:
            out.append(f'<a href="https://arxiv.org/abs/{match["number"]}">{word}</a>')
        elif match["doi"]:
            out.append(f'<a href="https://doi.org/{match["id"]}">{word}</a>')
        else:
            out.append(f"<code>{word}</code>")
        end = match.end()
    return "".join([*out, html.escape(text[end:], quote=False)])


def prose(text: str) -> str:
    """A docstring as HTML: paragraphs; lines such as "Paper: ..." each by itself."""
    paragraphs = []
    for part in re.split(r"\n\s*\n", text):
        lines = part.splitlines()
        if all(line.startswith("    ") for line in lines):
            paragraphs.append(f"<pre><code>{html.escape(part, quote=False)}</code></pre>")
        elif re.match(r"[A-Z][a-z]+: ", part):
            entries: list[list[str]] = []
            for line in lines:
                key, _, rest = line.partition(":")
                if re.match(r"[A-Z][a-z]+: ", line):
                    entries.append([key, rest.strip()])
                elif re.match(r"\s*(python|torchrun) ", line) or "arXiv" not in entries[-1][1]:
                    entries[-1].append(line.strip())
                else:
                    entries.append(["", line.strip()])
            shown = []
            for key, *values in entries:
                if values[0].startswith(("python", "torchrun", "tensorboard")):
                    value = "<br>".join(map(command, values))
                else:
                    value = inline(" ".join(values))
                shown.append(f"<b>{key}</b> {value}" if key else value)
            paragraphs.append("<p>" + "<br>".join(shown) + "</p>")
        else:
            paragraphs.append(f"<p>{inline(' '.join(line.strip() for line in lines))}</p>")
    return "\n".join(paragraphs)


def command(line: str) -> str:
    """A command as HTML; a remark in brackets may stand behind it, some spaces away."""
    words, _, remark = line.partition("  ")
    remark = html.escape(remark.strip(), quote=False)
    return f'<code class="run">{html.escape(words, quote=False)}</code> {remark}'.strip()


def slug(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", text.lower())[:6]) or "remark"


# Pages


class Anchor(NamedTuple):
    """An entry of a page's table of contents."""

    name: str
    title: str
    level: int


def anchor_link(name: str) -> str:
    return f'<a class="headerlink" href="#{name}" title="Link to here">&para;</a>'


def note_html(note: Note, render: Callable[[str], str]) -> tuple[str, str]:
    """A note as HTML, and its title as plain text; ValueError if it has none."""
    title = re.match(r"### (.+)\n?", note.text)
    if not title:
        raise ValueError(f"the note {note.name} has no title (###)")
    heading = render(title[1]).removeprefix("<p>").removesuffix("</p>")
    link, body = anchor_link(note.name), render(note.text[title.end() :])
    shown = f'<div class="note" id="{note.name}"><h4>{heading}{link}</h4>{body}</div>'
    return shown, re.sub(r"[`$\\]", "", title[1])


def code_lines(script: Script, lines: list[str], first: int, last: int) -> str:
    """Lines as HTML, numbered; what is told as prose, and blank lines at either end, are hidden."""
    told = {n for n in range(first, last + 1) if n in script.hidden}
    for numbers in range(first, last + 1), range(last, first - 1, -1):
        for number in numbers:
            if number not in told and script.lines[number - 1].strip():
                break
            told.add(number)
    out = []
    for number in range(first, last + 1):
        css = "line told" if number in told else "line"
        out.append(
            f'<span class="{css}" id="L{number}" data-n="{number}">{lines[number - 1]}</span>'
        )
    return "".join(out)


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
    lines, out, anchors = script.highlighted, [], []
    taken = {*script.begin.values(), *HEADINGS}
    for row in script.rows(notes):
        parts, comments = [], []
        if row.name:
            title = html.escape(row.name)
            parts.append(
                f'<h3 id="{title}" class="name"><code>{title}</code>{anchor_link(title)}</h3>'
            )
            anchors.append(Anchor(row.name, row.name, 1 + ("." in row.name)))
        for kind, text in [*row.prose, ("end", "")]:
            if kind == "comment":
                comments.append(text)
                continue
            if comments:
                words = join_comments(comments)
                name = slug(words)
                while name in taken:
                    name += "-here"
                taken.add(name)
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
        code = code_lines(script, lines, row.first, row.last)
        out.append(
            f'<div class="folio-row"><div class="folio-prose">{"".join(parts)}</div>'
            f'<div class="folio-code highlight"><pre><code data-search-exclude>{code}'
            "</code></pre></div></div>"
        )
    choice = (
        '<label class="folio-choice"><input type="checkbox" id="folio-told"> '
        "comments and docstrings in the code as well</label>"
    )
    return f'{choice}<div class="folio">{"".join(out)}</div>', anchors


# Differences


class Hunk(NamedTuple):
    """What differs in one place: lines of the one script in place of lines of the other."""

    a_first: int  # counted from 1; as many lines as a has here
    a_lines: list[str]
    b_first: int
    b_lines: list[str]


def hunks(a: str, b: str) -> list[Hunk]:
    """All differences, in order."""
    old, new = a.splitlines(keepends=True), b.splitlines(keepends=True)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return [
        Hunk(i + 1, old[i:i_end], j + 1, new[j:j_end])
        for tag, i, i_end, j, j_end in matcher.get_opcodes()
        if tag != "equal"
    ]


def hunk_html(a: Script, b: Script, hunk: Hunk) -> str:
    """The lines that go, and those that come, in the colours of the scripts' pages."""
    shown = []
    for sign, script, first, count in (
        ("-", a, hunk.a_first, len(hunk.a_lines)),
        ("+", b, hunk.b_first, len(hunk.b_lines)),
    ):
        lines = script.highlighted
        css = "gone" if sign == "-" else "come"
        for number in range(first, first + count):
            shown.append(f'<span class="line {css}" data-n="{number}">{lines[number - 1]}</span>')
    return (
        f'<div class="folio-code highlight"><pre><code data-a="{hunk.a_first}" '
        f'data-b="{hunk.b_first}">{"".join(shown)}</code></pre></div>'
    )


def difference(
    a: Script, b: Script, notes: list[Note], render: Callable[[str], str]
) -> tuple[str, list[Anchor]]:
    """All differences as HTML: those with a note beside it, in order; then the rest, folded."""
    told: list[str] = []
    rest: list[str] = []
    anchors = []
    left = list(notes)
    for hunk in hunks(a.source, b.source):
        here = [n for n in left if any(n.at in line for line in hunk.a_lines + hunk.b_lines)]
        left = [note for note in left if note not in here]
        side, first, count = (
            (b, hunk.b_first, len(hunk.b_lines))
            if hunk.b_lines
            else (a, hunk.a_first, len(hunk.a_lines))
        )
        places = (side.where(number) for number in range(first, first + count))
        place = next(filter(None, places), "")
        parts = [f'<p class="place"><code>{place or "top of the file"}</code></p>']
        for note in here:
            shown, title = note_html(note, render)
            parts.append(shown)
            anchors.append(Anchor(note.name, title, 1))
        row = (
            f'<div class="folio-row"><div class="folio-prose">{"".join(parts)}</div>'
            f"{hunk_html(a, b, hunk)}</div>"
        )
        (told if here else rest).append(row)
    if left:
        raise ValueError(f"{left[0].at!r} stands in no line that differs")
    folded = f"<details><summary>The other {len(rest)} places: flags, names, housekeeping</summary>"
    return (
        f'<div class="folio difference">{"".join(told)}{folded}{"".join(rest)}</details></div>',
        anchors,
    )
