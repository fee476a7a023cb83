"""Keep the tables of README.md and docs/scores.md equal to the scripts and to benchmark/results.

A table (or the sentence on the claims) stands between <!-- NAME --> and <!-- /NAME -->.

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

import pages

CURVES = ["ddpg_pendulum", "ddpg_mountaincar", "sac_dmc"]  # the folders of results in the picture
SELECTED = [  # the scores in the README
    ("ddpg_continuous", "HopperBulletEnv-v0"),
    ("td3_continuous", "HopperBulletEnv-v0"),
    ("sac_continuous", "HopperBulletEnv-v0"),
    ("ppo_atari", "ALE/Pong-v5"),
    ("a2c_lstm_atari", "ALE/Breakout-v5"),
    ("maddpg_smarts", "mpe2/simple_spread_v3"),
]


def score_table(scores: list[pages.Score]) -> str:
    """Scores beside published ones, with the steps of these if they differ by more than 10%."""
    rows = []
    for score in scores:
        others = []
        for peer in pages.nearest(score):
            same = math.isclose(peer.steps, score.steps, rel_tol=0.1)
            others.append(f"{peer.text} ({peer.what}{'' if same else f', {peer.length} steps'})")
        name = f"{score.script.split('_')[0].upper()}, `{score.what}`"
        value = score.middle if score.seeds > 1 else score.mean
        cells = [score.env_id, name, score.length, str(score.seeds), value, "; ".join(others)]
        rows.append(cells)
    head = ["task", "algorithm, setting", "steps", "seeds", "final return", "published"]
    return pages.table(head, rows)


def selected_scores() -> str:
    """The README's few scores."""
    headlines = {(score.script, score.env_id): score for score in pages.headlines()}
    return score_table([headlines[key] for key in SELECTED])


def all_scores() -> str:
    """The headline of every script in every environment."""
    return score_table(pages.headlines())


def speed() -> str:
    """Steps per CPU second of every contender, and in brackets the ratio that speed.py gives."""
    cells: dict[str, dict[str, str]] = {}
    for path in (pages.RESULTS / "speed").glob("*.md"):
        env_id, *lines = path.read_text().splitlines()
        for line in lines:
            row = [cell.strip() for cell in line.strip("|").split("|")]
            if len(row) == 6 and row[0].isupper() and "before" not in row[1]:
                column = f"{row[0]}, {env_id.rpartition(' ')[2]}"
                value = f"{row[2].split(' ')[0]} ({row[4]} ×)"
                cells.setdefault(row[1], {})[column] = value
    order = [name.split("_")[0].upper() for name in pages.scripts()]
    columns = {column for row in cells.values() for column in row}
    head = sorted(columns, key=lambda column: order.index(column.split(",")[0]))
    rows = [[name, *(cells[name].get(column, "") for column in head)] for name in sorted(cells)]
    ours_first = lambda row: (not row[0].startswith("FolioRL"), row.count(""))  # noqa: E731
    return pages.table(["", *head], sorted(rows, key=ours_first))


def claims() -> str:
    """How many claims have each verdict, as docs/claims.md says."""
    page = (pages.ROOT / "docs" / "claims.md").read_text()
    return re.findall(r"^\*\*(Of \d+ claims: .*)\*\*$", page, re.M)[0] + "\n"


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "scripts": lambda: pages.script_table("py"),
        "scores": selected_scores,
        "claims": claims,
        "speed": speed,
    },
    "docs/scores.md": {"scores": all_scores, "speed": speed},
}


def rewrite(name: str, text: str) -> str:
    """A file's text with its tables made anew."""
    for table, make in TABLES[name].items():
        parts = re.split(rf"(<!-- {table} -->\n).*?(<!-- /{table} -->)", text, flags=re.S)
        if len(parts) != 4:
            raise ValueError(f"{name} must have one table between <!-- {table} --> and its end")
        text = "".join([*parts[:2], make(), *parts[2:]])
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="bring the tables up to date")
    write, difference = parser.parse_args().write, ""
    for name in TABLES:
        path = pages.ROOT / name
        old, new = path.read_text(), rewrite(name, path.read_text())
        if write:
            path.write_text(new)
        lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), name, "as it is")
        difference += "".join(lines)
    if write:
        plot = pages.plot()
        runs = plot.read_runs([pages.RESULTS / folder for folder in CURVES], 0)
        figure = plot.curves(runs, "steps", plot.published_rows(plot.PUBLISHED), 0)
        figure.savefig(pages.ROOT / "docs" / "images" / "curves.png", dpi=110)
        return 0
    print(difference or "the tables are up to date")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
