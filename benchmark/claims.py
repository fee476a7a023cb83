"""A verdict on every claim of the five studies, from the CSV files of the filed runs alone.

    python benchmark/claims.py                     writes docs/claims.md and its pictures

claims.csv has a row for each part of a claim, which stands for all pairs of its settings,
environments and measures: a setting is compared with another, or with a number; NAME@ENVIRONMENT is
another environment's. A measure counts up to the last step that all runs of both have reached:

    last third, area, peak, spread    the mean of the last third of the evaluations, the mean of the
                                      curve over the steps, its highest point, and the standard
                                      deviation of the last third
    steps, games, seconds to LEVEL    until an evaluation first reaches it; else the whole length
    seconds                           until the last step
    ... of COLUMN                     of another column of evaluations.csv or losses.csv, of agent_N
                                      in agent_returns, or of A minus B
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import plot
from plot import Array, Run

ROOT = Path(__file__).resolve().parent.parent
CONFIRMED, CONTRADICTED, UNDECIDED, NOT_RUN = "confirmed", "contradicted", "undecided", "not run"
INTRODUCTION = """\
# Claims

FolioRL grew out of five student studies, with one to three seeds and no intervals. This page tests
their claims. `python benchmark/claims.py` writes it, from `benchmark/claims.csv` and the runs in
`benchmark/results`.

**Rule.** A comparison is the difference between two settings in a measure, in one environment, with
a 95% bootstrap interval over seeds, and the probability that a run of the first is better. It is
**confirmed** if the interval lies beyond 0 in the claimed direction, **contradicted** if it lies on
the other side, else **undecided**; one seed gives no interval and decides nothing. "Same" asks for
an interval within 10% of the second setting's mean. A claim is confirmed if all its comparisons
are, and contradicted if one is. Intervals are not corrected for the number of comparisons; with
three seeds they run from about the lowest to the highest difference.

The measures are the last third (mean of the last third of the evaluations, the default), the area
(mean of the whole curve, for speed), the peak, the spread (standard deviation of the last third),
and the steps, games or seconds until an evaluation reaches a level.
"""
HEAD = "| environment | comparison | measure | difference [95% interval] | P(better) | seeds "
HEAD += "| steps | verdict |"
Row = dict[str, str]  # of claims.csv, with one setting, environment and measure


class Result(NamedTuple):
    """What came of a comparison; the numbers are nan where it was not run."""

    verdict: str
    reason: str = ""
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    chance: float = math.nan  # that a run of the setting is better
    seeds: str = ""
    steps: int = 0


def read_claims(path: Path) -> list[Row]:
    """All comparisons."""
    rows, keys = [], ("environments", "setting", "against")
    for row in csv.DictReader(path.open(newline="")):
        parts = itertools.product(*(row[key].split() for key in keys), row["measure"].split(";"))
        rows += [row | dict(zip([*keys, "measure"], part)) for part in parts]
    return rows


def column(folder: Path, name: str) -> Array:
    """Steps and values [T, 2] of a column of a run; no rows where the run has no such column."""
    first, minus, second = name.partition(" minus ")
    if minus:
        a, b = column(folder, first), column(folder, second)
        return np.c_[a[:, 0], a[:, 1] - b[:, 1]] if len(a) == len(b) else np.empty((0, 2))
    agent = int(name.removeprefix("agent_")) if name.startswith("agent_") else 1
    name = "agent_returns" if name.startswith("agent_") else name
    for path in folder / "evaluations.csv", folder / "losses.csv":
        lines = plot.whole_lines(path)
        if len(lines) > 1 and name in lines[0].split(","):
            return plot.read_csv(path, ["env_step", name])[:, [0, agent]]
    return np.empty((0, 2))


def read_runs(results: Path, folders: str, env: str, name: str, what: str) -> list[Run]:
    """The filed runs of a setting in an environment, as curves of a column."""
    runs = []
    for folder in folders.split():
        for path in sorted((results / folder).glob(f"{env.replace('/', '-')}__{name}__*")):
            match, curve = plot.FOLDER.fullmatch(path.name), column(path, what)
            if not match or match["name"] != name or not len(curve):
                continue
            steps, y = curve.T
            times = plot.read_csv(path / "evaluations.csv", ["env_step", "seconds"])
            games = plot.read_csv(path / "episodes.csv", ["env_step", "seconds"])[:, 0]
            x = {"steps": steps, "games": np.searchsorted(games, steps, side="right").astype(float)}
            x["seconds"] = np.interp(steps, *times.T) if len(times) else np.full(len(y), math.nan)
            runs.append(Run(env, name, int(match["seed"]), x, y))
    return runs


def value(run: Run, measure: str, limit: float) -> float:
    """A run's value in the measure, up to the step limit."""
    kept = run.x["steps"] <= limit
    steps, y = run.x["steps"][kept], run.y[kept]
    last = y[steps > limit * 2 / 3]
    kind, _, level = measure.partition(" to ")
    if level:
        reached = np.flatnonzero(y >= float(level))
        return float(run.x[kind][reached[0] if len(reached) else len(y) - 1])
    area = np.trapezoid(y, steps) / (steps[-1] - steps[0]) if len(y) > 1 else y[0]
    values = {"last third": last.mean(), "area": area, "peak": y.max(), "spread": last.std()}
    return float((values | {"seconds": run.x["seconds"][kept][-1]})[kind])


def judge(x: Array, y: Array, direction: str) -> Result:
    """The verdict on the values x [runs] of a setting against y [runs], or a number y []."""

    def difference(*samples: Array, axis: int = 0) -> Array:
        return samples[0].mean(axis) - (samples[1].mean(axis) if y.ndim else y)

    middle, low, high = map(float, plot.interval([x, y] if y.ndim else [x], difference))
    chance, sign = float(plot.improvement(x, np.atleast_1d(y))), -1 if direction == "lower" else 1
    right, wrong = min(sign * low, sign * high) > 0, max(sign * low, sign * high) < 0
    if direction == "same":
        margin = 0.1 * abs(y.mean())
        right, wrong = max(-low, high) < margin, low > margin or high < -margin
    verdict = CONFIRMED if right else CONTRADICTED if wrong else UNDECIDED
    seeds = f"{len(x)}, {len(y)}" if y.ndim else str(len(x))
    reason = "one seed" if math.isnan(low) else ""
    return Result(verdict, reason, middle, low, high, chance if sign > 0 else 1 - chance, seeds)


def decide(row: Row, results: Path) -> tuple[Result, list[Run]]:
    """The result of a comparison, and its runs."""
    measure, _, what = row["measure"].partition(" of ")
    name, _, env = row["against"].partition("@")
    number = name.lstrip("-").replace(".", "").isdigit()
    sides = [(row["setting"], row["environments"]), (name, env or row["environments"])]
    found = [
        read_runs(results, row["folder"], place, who, what or "mean_return")
        for who, place in sides[: 1 if number else 2]
    ]
    runs = list(itertools.chain(*found))
    if missing := [who for (who, _), those in zip(sides, found) if not those]:
        reason = f"no script has {row['needs']} yet" if row["needs"] else ""
        return Result(NOT_RUN, reason or f"no runs of {' and '.join(missing)}"), runs
    limit = min(run.x["steps"][-1] for run in runs)
    if not all(
        np.any((run.x["steps"] > limit * 2 / 3) & (run.x["steps"] <= limit)) for run in runs
    ):
        return Result(NOT_RUN, "no steps in common"), runs
    values = [np.array([value(run, measure, limit) for run in those]) for those in found]
    y = np.array(float(name)) if number else values[1]
    return judge(values[0], y, row["direction"])._replace(steps=int(limit)), runs


def together(verdicts: list[str]) -> str:
    """The verdict on a claim whose comparisons have these."""
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return verdicts[0] if len(set(verdicts)) == 1 else UNDECIDED


def tally(verdicts: Iterable[str]) -> str:
    """How often each verdict was given."""
    count = Counter(verdicts)
    words = CONFIRMED, CONTRADICTED, UNDECIDED, NOT_RUN
    return ", ".join(f"{count[word]} {word}" for word in words if count[word])


def line_of(row: Row, result: Result) -> str:
    """The cells on one comparison."""
    sign = {"higher": ">", "lower": "<", "same": "="}[row["direction"]]
    compared = f"{row['setting']} {sign} {row['against']}"
    bounds = "" if math.isnan(result.low) else f" [{result.low:.4g}, {result.high:.4g}]"
    numbers = [f"{result.difference:.4g}{bounds}", f"{result.chance:.2f}"]
    numbers += [result.seeds, f"{result.steps:,}"]
    verdict = result.verdict + (f" ({result.reason})" if result.reason else "")
    ran = result.verdict != NOT_RUN
    cells = [row["environments"], compared, row["measure"], *(numbers if ran else [""] * 4)]
    return f"| {' | '.join([*cells, verdict])} |"


def page(rows: list[Row], found: list[Result], pictures: set[str]) -> str:
    """The page on all claims, in Markdown."""
    parts: dict[str, list[tuple[Row, Result]]] = {}
    for row, result in zip(rows, found):
        parts.setdefault(row["claim"], []).append((row, result))
    verdicts = {c: [result.verdict for _, result in parts[c]] for c in parts}
    overall = {claim: together(verdicts[claim]) for claim in parts}
    text = [INTRODUCTION, f"**Of {len(parts)} claims: {tally(overall.values())}.**\n"]
    text += ["| claim | verdict | comparisons | what is claimed |", "|---|---|---|---|"]
    for claim, its in parts.items():
        sentences = ". ".join(dict.fromkeys(row["sentence"] for row, _ in its))
        cells = f"[{claim}](#{claim.lower()})", overall[claim], tally(verdicts[claim]), sentences
        text.append(f"| {' | '.join(cells)}. |")
    studies = {claim: its[0][0]["study"] for claim, its in parts.items()}
    for study in dict.fromkeys(studies.values()):
        text.append(f"\n## {study}")
        for claim in (claim for claim in parts if studies[claim] == study):
            folders = dict.fromkeys(" ".join(row["folder"] for row, _ in parts[claim]).split())
            paths = [f"benchmark/studies/{folder}.sh" for folder in folders]
            commands = [f"`{path}`" for path in paths if (ROOT / path).exists()]
            text.append(f"\n### {claim}\n\n**{overall[claim].capitalize()}.** ")
            text[-1] += f"To run: {', '.join(commands)}." if commands else ""
            if claim in pictures:
                text.append(f"\n![Learning curves of {claim}](images/claims/{claim}.png)")
            for sentence in dict.fromkeys(row["sentence"] for row, _ in parts[claim]):
                text += [f"\n{sentence}:\n", HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
                text += [line_of(row, r) for row, r in parts[claim] if row["sentence"] == sentence]
    return "\n".join(line.rstrip(" ") for line in text) + "\n"


def draw(runs: list[Run], path: Path, what: str) -> None:
    """A small picture: the curves of all settings of a claim, a panel for each environment."""
    groups: plot.Group = {}
    for run in runs:
        group = groups.setdefault((run.env_id, run.name), [])
        group += [run] if run.seed not in [other.seed for other in group] else []
    figure = plot.curves(groups, "steps", [], 0)
    figure.supylabel(what or "return")
    for ax in figure.axes:
        ax.set_yscale("log" if what == "alpha" else "linear")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=64, metadata={"Software": None})
    plot.plt.close(figure)


def main() -> None:
    """Read claims and runs, and write the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmark" / "results")
    parser.add_argument("--claims", type=Path, default=ROOT / "benchmark" / "claims.csv")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of claims.md")
    args = parser.parse_args()
    rows = read_claims(args.claims)
    decided = [decide(row, args.results) for row in rows]
    curves: dict[str, tuple[str, list[Run]]] = {}
    for row, (_, runs) in zip(rows, decided):
        what = row["measure"].partition(" of ")[2]
        if runs and curves.setdefault(row["claim"], (what, []))[0] == what:
            curves[row["claim"]][1].extend(runs)
    for claim, (what, runs) in curves.items():
        draw(runs, args.out / "images" / "claims" / f"{claim}.png", what)
    text = page(rows, [result for result, _ in decided], set(curves))
    (args.out / "claims.md").write_text(text)
    print(next(line for line in text.splitlines() if line.startswith("**Of")).strip("*"))


if __name__ == "__main__":
    main()
