"""The difference between two sets of runs in each environment, as a Markdown table.

    python benchmark/compare.py runs --pair td3_continuous sb3_td3 --pair sac_continuous sb3_sac

RUNS are run folders, or folders that hold them, as for plot.py; a pair is two of their names. Two
measures are compared, over the steps that all runs of both names have reached: "whole curve" is the
mean of a run's evaluations, its area under the curve; "last evaluation" is the final one. The
table gives the difference of the means over seeds, A - B, and the probability that a run of A is
better than one of B, each with a 95% bootstrap interval over seeds. The verdict names the better
one where the interval of the difference excludes 0.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import plot

HEAD = ["environment", "A", "B", "seeds", "steps", "measure", "mean of A", "mean of B"]
HEAD += ["A - B [95% interval]", "P(A > B) [95% interval]", "verdict"]


class Estimate(NamedTuple):
    """A number and its 95% interval, which is nan where a side has one seed only."""

    value: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        value, low, high = (f"{number:.{digits}f}" for number in self)
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"


class Comparison(NamedTuple):
    """One measure of two sets of runs."""

    steps: int  # the last step that all runs have reached
    measure: str
    means: tuple[float, float]
    difference: Estimate  # A - B
    chance: Estimate  # P(A > B)

    @property
    def verdict(self) -> str:
        if math.isnan(self.difference.low):
            return "one seed"
        if self.difference.low > 0:
            return "A is better"
        return "B is better" if self.difference.high < 0 else "undecided"


def difference(a: plot.Array, b: plot.Array, axis: int = 0) -> plot.Array:
    """Mean of A minus mean of B, over seeds."""
    return a.mean(axis=axis) - b.mean(axis=axis)


def compare(ours: list[plot.Run], theirs: list[plot.Run]) -> list[Comparison]:
    """Both measures of two sets of runs of one environment; none if they share no steps."""
    steps, returns = plot.align([*ours, *theirs], "steps")  # [T], [runs, T]
    if not len(steps):
        return []
    measures = {"whole curve": returns.mean(axis=1), "last evaluation": returns[:, -1]}
    comparisons = []
    for name, scores in measures.items():
        a, b = scores[: len(ours)], scores[len(ours) :]
        gap, chance = (
            Estimate(*map(float, plot.interval([a, b], statistic)))
            for statistic in (difference, plot.improvement)
        )
        means = float(a.mean()), float(b.mean())
        comparisons.append(Comparison(int(steps[-1]), name, means, gap, chance))
    return comparisons


def table(groups: plot.Group, pairs: list[list[str]]) -> str:
    """One row for each pair, environment and measure."""
    lines = [HEAD, ["---"] * len(HEAD)]
    for a, b in pairs:
        envs = [env for env, name in groups if name == a and (env, b) in groups]
        if not envs:
            names = ", ".join(sorted({name for _, name in groups}))
            plot.fail(f"--pair {a} {b}: no environment has runs of both; the runs are of {names}")
        for env in envs:
            ours, theirs = groups[env, a], groups[env, b]
            seeds = f"{len(ours)}, {len(theirs)}"
            for c in compare(ours, theirs):
                row = [env, a, b, seeds, f"{c.steps:,}", c.measure]
                row += [f"{mean:.1f}" for mean in c.means]
                lines.append([*row, c.difference.text(1), c.chance.text(2), c.verdict])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of them")
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        required=True,
        metavar=("A", "B"),
        help="names of two sets of runs; may be given several times",
    )
    parser.add_argument("--out", type=Path, help="file to write the table to")
    args = parser.parse_args()
    text = table(plot.read_runs(args.runs, 0), args.pair)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
