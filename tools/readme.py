"""Keep the README's tables equal to the scripts and to benchmark/results.

A table stands between two comments, <!-- NAME --> and <!-- /NAME -->.

    python tools/readme.py            fail, and show how, where a table is out of date
    python tools/readme.py --write    bring the tables up to date, and draw docs/images/curves.png
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from pathlib import Path

import pages

README = Path(__file__).resolve().parent.parent / "README.md"
CURVES = ["ddpg_pendulum", "ddpg_mountaincar", "sac_dmc"]  # the folders of results in the picture


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def scripts() -> str:
    """Every script, what it is, and its size."""
    rows = []
    for name in pages.scripts():
        lesson, housekeeping = pages.sizes(name)
        title = pages.summary(name).rstrip(".")
        rows.append([f"[{name}.py]({name}.py)", title, str(lesson), str(housekeeping)])
    return markdown(["script", "what it is", "lines to read", "and of housekeeping"], rows)


def length(peer: pages.Score, score: pages.Score) -> str:
    """The steps of what others published, where they are not about as many as ours."""
    same = math.isclose(pages.steps_of(peer), pages.steps_of(score), rel_tol=0.1)
    return "" if same else f", {peer.steps} steps"


def scores() -> str:
    """The headline of every script in every environment, beside what others published."""
    rows = []
    for score in pages.headlines():
        peers = [p for p in pages.nearest(pages.published(), [score]) if p.script == score.script]
        others = "; ".join(f"{p.mean} ({p.what}{length(p, score)})" for p in peers)
        name = f"{score.script.split('_')[0].upper()}, `{score.what}`"
        value = score.middle if score.seeds != "1" else score.mean
        rows.append([score.env_id, name, score.steps, score.seeds, value, others])
    head = ["task", "algorithm, setting", "steps", "seeds", "final return", "published"]
    return markdown(head, rows)


def speed() -> str:
    """Steps per CPU second, a table for each environment."""
    return "\n".join(f"{env}:\n\n{markdown(head, rows)}" for env, head, rows in pages.speeds())


def rewrite(text: str) -> str:
    """The README with its tables made anew."""
    for name, make in {"scripts": scripts, "scores": scores, "speed": speed}.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        parts = re.split(pattern, text, flags=re.S)
        if len(parts) != 4:
            raise ValueError(f"README.md must have one table between <!-- {name} --> and its end")
        text = "".join([*parts[:2], make(), *parts[2:]])
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="bring the tables up to date")
    args = parser.parse_args()
    old = README.read_text()
    new = rewrite(old)
    if args.write:
        README.write_text(new)
        figure = pages.drawing(CURVES)
        figure.savefig(README.parent / "docs" / "images" / "curves.png", dpi=110)
        return 0
    lines = difflib.unified_diff(
        old.splitlines(True), new.splitlines(True), "README.md", "as it is"
    )
    difference = "".join(lines)
    print(difference or "the README's tables are up to date")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
