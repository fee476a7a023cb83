"""Keep the tables of README.md and docs/scores.md equal to the scripts and to benchmark/results.

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
from collections.abc import Callable
from pathlib import Path

import pages

ROOT = Path(__file__).resolve().parent.parent
CURVES = ["ddpg_pendulum", "ddpg_mountaincar", "sac_dmc"]  # the folders of results in the picture
SELECTED = [  # the scores in the README
    ("ddpg_continuous", "HopperBulletEnv-v0"),
    ("td3_continuous", "HopperBulletEnv-v0"),
    ("sac_continuous", "HopperBulletEnv-v0"),
    ("ppo_atari", "ALE/Pong-v5"),
    ("a2c_lstm_atari", "ALE/Breakout-v5"),
    ("maddpg_smarts", "mpe2/simple_spread_v3"),
]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def scripts() -> str:
    """Every script, what it is, and its size."""
    rows = []
    for name in pages.scripts():
        algorithm, utilities = pages.sizes(name)
        title = pages.summary(name).rstrip(".")
        rows.append([f"[{name}.py]({name}.py)", title, str(algorithm), str(utilities)])
    return markdown(["script", "what it is", "algorithm (lines)", "utilities (lines)"], rows)


def length(peer: pages.Score, score: pages.Score) -> str:
    """The steps of a published score, if they differ from ours by more than a tenth."""
    same = math.isclose(pages.steps_of(peer), pages.steps_of(score), rel_tol=0.1)
    return "" if same else f", {peer.steps} steps"


def score_rows(scores: list[pages.Score]) -> str:
    """Scores beside what others published."""
    rows = []
    for score in scores:
        peers = [p for p in pages.nearest(pages.published(), [score]) if p.script == score.script]
        others = "; ".join(f"{p.mean} ({p.what}{length(p, score)})" for p in peers)
        name = f"{score.script.split('_')[0].upper()}, `{score.what}`"
        value = score.middle if score.seeds != "1" else score.mean
        rows.append([score.env_id, name, score.steps, score.seeds, value, others])
    head = ["task", "algorithm, setting", "steps", "seeds", "final return", "published"]
    return markdown(head, rows)


def selected_scores() -> str:
    """The README's few scores."""
    headlines = {(score.script, score.env_id): score for score in pages.headlines()}
    return score_rows([headlines[key] for key in SELECTED])


def all_scores() -> str:
    """The headline of every script in every environment."""
    return score_rows(pages.headlines())


def speed() -> str:
    """Steps per CPU second of every contender and algorithm, all environments in one table."""
    head, cells = [""], dict[str, dict[str, str]]()
    for env, (_, *algorithms), rows in reversed(pages.speeds()):
        columns = [f"{algorithm}, {env}" for algorithm in algorithms]
        head += columns
        for contender, *values in rows:
            cells.setdefault(contender, {}).update(zip(columns, values))
    rows = [[name, *(cells[name].get(column, "") for column in head[1:])] for name in cells]
    ours_first = lambda row: (not row[0].startswith("FolioRL"), row.count(""))  # noqa: E731
    return markdown(head, sorted(rows, key=ours_first))


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"scripts": scripts, "scores": selected_scores, "speed": speed},
    "docs/scores.md": {"scores": all_scores, "speed": speed},
}


def rewrite(name: str, text: str) -> str:
    """A file's text with its tables made anew."""
    for table, make in TABLES[name].items():
        pattern = rf"(<!-- {table} -->\n).*?(<!-- /{table} -->)"
        parts = re.split(pattern, text, flags=re.S)
        if len(parts) != 4:
            raise ValueError(f"{name} must have one table between <!-- {table} --> and its end")
        text = "".join([*parts[:2], make(), *parts[2:]])
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="bring the tables up to date")
    args = parser.parse_args()
    difference = ""
    for name in TABLES:
        path = ROOT / name
        old = path.read_text()
        new = rewrite(name, old)
        if args.write:
            path.write_text(new)
        lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), name, "as it is")
        difference += "".join(lines)
    if args.write:
        pages.drawing(CURVES).savefig(ROOT / "docs" / "images" / "curves.png", dpi=110)
        return 0
    print(difference or "the tables are up to date")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
