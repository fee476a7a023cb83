"""Learning curves and tables of finished or running runs, from their CSV files alone.

    python benchmark/plot.py runs --out figures
    python benchmark/plot.py runs --out figures --compare td3_continuous ddpg_continuous
    python benchmark/plot.py runs --out figures --running-mean 100

RUNS are run folders, or folders that hold them, named {environment}__{name}__{seed}[__{time}]. Runs
of one environment and name, which differ in their seed alone, make one curve: the interquartile
mean (the mean of the middle half; Agarwal et al. 2021, arXiv:2108.13264) with a 95% interval by
stratified bootstrap, which resamples whole runs, from each environment as many as it has.

Written to --out, each figure as SVG and PNG:
    returns_by_steps, _episodes, _seconds    learning curves
    returns_by_agent                         where the runs have several agents
    percent_of_human, human.md               for Pong and Breakout, with the games to human level
    results.md, results.csv                  each result beside the published ones (published.csv)
    improvement.md                           with --compare: how likely a run of A beats one of B
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import stats

matplotlib.use("Agg")  # draw to files, on machines without a screen too

Array = np.ndarray
PUBLISHED = Path(__file__).parent / "published.csv"
FOLDER = re.compile(r"(?P<env_id>.+?)__(?P<name>.+?)__(?P<seed>\d+)(__\d+)?$")
# The scores that count as 0% and 100% of human: a random player's and a human's (Mnih et al. 2015),
# and those that a study of recurrent actor-critics took.
HUMAN = {"of human": {"ALE-Pong-v5": (-20.7, 9.3), "ALE-Breakout-v5": (1.7, 31.8)}}
HUMAN |= {"of human, study": {"ALE-Pong-v5": (-21.0, 9.3), "ALE-Breakout-v5": (0.0, 31.8)}}
AXES = {"steps": "environment steps", "episodes": "episodes", "seconds": "seconds"}
# Okabe and Ito's colours, which the colour-blind can tell apart; dashes tell them apart in grey.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES: list[Any] = ["-", (0, (6, 2)), (0, (2, 1)), (0, (6, 2, 1, 2)), (0, (1, 2))]


def say(message: str) -> None:
    print(f"plot: {message}", file=sys.stderr)


def fail(message: str) -> NoReturn:
    say(message)
    raise SystemExit(2)


class Run(NamedTuple):
    """One run: where its curve's points lie, one array for each kind of axis, and their height."""

    env_id: str
    name: str
    seed: int
    x: dict[str, Array]  # keys as in AXES, each [T] and not falling
    y: Array  # [T], returns
    agents: Array = np.empty((0, 0))  # [T, N], each agent's return, where there are several


Group = dict[tuple[str, str], list[Run]]  # (environment, name) -> its seeds


def read_csv(path: Path, columns: list[str]) -> Array:
    """The columns as an array [rows, columns]; without a last row that is not written to its end.

    A cell of several numbers, as in agent_returns, gives as many columns. A missing or empty file
    has no rows. Fails where a row before the last one is damaged.
    """
    whole = whole_lines(path)
    if not whole:
        return np.empty((0, len(columns)))
    header = whole[0].split(",")
    if missing := set(columns) - set(header):
        fail(f"{path} has no column {sorted(missing)[0]}; a run's CSV begins with {columns}")
    rows, at = [], {column: header.index(column) for column in columns}
    for number, line in enumerate(whole[1:], start=2):
        cells = line.split(",")
        try:
            if len(cells) != len(header):
                raise ValueError
            rows.append([float(x) for column in columns for x in cells[at[column]].split()])
        except ValueError:
            fail(f"{path}, line {number} is damaged: {line[:60]!r}; delete the run or that line")
    return np.array(rows).reshape(len(rows), -1 if rows else len(columns))


def whole_lines(path: Path) -> list[str]:
    """The file's lines that are written to their end."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    return text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]


def read_run(folder: Path, running_mean: int) -> Run | None:
    """The curve of one run, of its evaluations or its training episodes; None if it has none yet.

    The time and number of episodes of an evaluation are those of its step.
    """
    if match := FOLDER.match(folder.name):
        env_id, name, seed = match["env_id"], match["name"], int(match["seed"])
    else:  # a run folder that its owner named
        try:
            settings = json.loads((folder / "args.json").read_text())
        except (OSError, ValueError):
            fail(f"{folder} is not named ENVIRONMENT__NAME__SEED, and has no readable args.json")
        env_id, name, seed = settings["env_id"], settings["exp_name"], int(settings["seed"])
    env_id = env_id.replace("/", "-")  # as in the folders' names
    agents = np.empty((0, 0))
    episodes = read_csv(folder / "episodes.csv", ["env_step", "seconds", "episodic_return"])
    if running_mean:
        if len(episodes) < running_mean:
            return None
        steps, seconds = episodes[running_mean - 1 :, :2].T
        sums = np.cumsum(np.insert(episodes[:, 2], 0, 0.0))
        y = (sums[running_mean:] - sums[:-running_mean]) / running_mean
        counts = np.arange(running_mean, len(episodes) + 1, dtype=float)
    else:
        path, columns = folder / "evaluations.csv", ["env_step", "seconds", "mean_return"]
        if "agent_returns" in (whole_lines(path) or [""])[0].split(","):
            columns.append("agent_returns")
        rows = read_csv(path, columns)
        if not len(rows):
            return None
        steps, seconds, y = rows.T[:3]
        agents = rows[:, 3:]
        counts = np.searchsorted(episodes[:, 0], steps, side="right").astype(float)
    x = {"steps": steps, "episodes": counts, "seconds": seconds}
    return Run(env_id, name, seed, x, y, agents)


def read_runs(paths: list[Path], running_mean: int) -> Group:
    """Every run under the paths, by environment and name; says which have nothing to show."""
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            fail(f"there is no folder {path}; give run folders, or a folder that holds them")
        found = {file.parent for file in path.rglob("evaluations.csv")}
        found |= {file.parent for file in path.rglob("episodes.csv")}
        # What run.sh --smoke left under a folder is no result, unless there is nothing else.
        real = {folder for folder in found if "smoke" not in folder.relative_to(path).parts}
        folders += sorted(real or found) or [path]
    groups: Group = {}
    for folder in dict.fromkeys(folders):
        run = read_run(folder, running_mean)
        if run is None:
            say(f"{folder} is left out: nothing to plot in its CSV files")
            continue
        group = groups.setdefault((run.env_id, run.name), [])
        if any(run.seed == other.seed for other in group):
            fail(f"two runs are {run.env_id}, {run.name}, seed {run.seed}; give one of them")
        group.append(run)
    if not groups:
        fail("none of the folders has anything to plot yet")
    return dict(sorted(groups.items()))


def iqm(*strata: Array, axis: int = 0) -> Array:
    """Interquartile mean along axis over all the strata's runs together."""
    return stats.trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def improvement(*strata: Array, axis: int = 0) -> Array:
    """P(X > Y), ties counting half, averaged over environments: X1..Xn, then Y1..Yn."""
    samples = [np.moveaxis(stratum, axis, -1) for stratum in strata]
    half = len(samples) // 2
    chances = []
    for x, y in zip(samples[:half], samples[half:]):
        difference = x[..., :, None] - y[..., None, :]
        chances.append(((np.sign(difference) + 1) / 2).mean(axis=(-2, -1)))
    return np.mean(chances, axis=0)


def interval(
    strata: list[Array], statistic: Callable[..., Array], resamples: int = 2_000
) -> tuple[Array, Array, Array]:
    """The statistic, and its 95% percentile interval over bootstrapped runs.

    Each stratum is [runs, ...], and is drawn from with replacement by itself. A stratum of a single
    run has nothing to draw: the interval is nan there.
    """
    value = statistic(*strata, axis=0)
    if min(len(stratum) for stratum in strata) < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    result = stats.bootstrap(
        strata,
        statistic,
        axis=0,
        n_resamples=resamples,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),  # the same figures from the same runs
    )
    return value, result.confidence_interval.low, result.confidence_interval.high


def align(runs: list[Run], axis: str) -> tuple[Array, Array]:
    """Places [T] that all runs have reached, and their returns there [runs, T].

    Between its points a run is taken to be linear. Evaluations at equal steps stay as they are.
    """
    low = max(run.x[axis][0] for run in runs)
    high = min(run.x[axis][-1] for run in runs)
    points = np.unique(np.concatenate([run.x[axis] for run in runs]))
    points = points[(low <= points) & (points <= high)]
    if len(points) > 400:  # of thousands of episodes, as many as a figure can show
        points = np.linspace(low, high, 400)
    return points, np.stack([np.interp(points, run.x[axis], run.y) for run in runs])


def final(runs: list[Run], others: list[Run] | None = None) -> tuple[int, Array]:
    """The last step that all runs and others have reached, and the runs' returns there [runs]."""
    points, y = align([*runs, *(others or [])], "steps")
    return (int(points[-1]), y[: len(runs), -1]) if len(points) else (0, np.empty(0))


def thousands(value: float, _: Any = None) -> str:
    """1500000 as 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def start_figure(columns: int, rows: int) -> tuple[Any, list[Any]]:
    plt.rcParams.update(
        {"font.size": 11, "axes.titlesize": 12, "svg.fonttype": "path", "svg.hashsalt": "folio"}
    )
    size = (4.6 * columns + 0.4, 3.4 * rows + 0.7)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def save(figure: Any, out: Path, name: str) -> None:
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})  # equal runs, equal bytes
    figure.savefig(out / f"{name}.png", dpi=150)
    plt.close(figure)


def tidy(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)


def nearest(rows: list[dict[str, str]], steps: float) -> list[dict[str, str]]:
    """Of each implementation's figures the one whose number of steps is nearest."""
    distance = [abs(math.log(float(row["env_steps"] or "inf") / steps)) for row in rows]
    order = sorted(range(len(rows)), key=distance.__getitem__)
    first = {rows[i]["implementation"]: rows[i] for i in reversed(order)}
    return [row for row in rows if first[row["implementation"]] is row]


def draw_published(ax: Any, rows: list[dict[str, str]]) -> None:
    """A dotted line at what each peer reached, named beside the panel."""
    for row in rows:
        ax.axhline(float(row["mean"]), color="0.45", linewidth=1, linestyle=":")
    place = 1.07
    for row in sorted(rows, key=lambda row: -float(row["mean"])):
        height = ax.transData.transform((0, float(row["mean"])))
        # Where lines are close, the lower one's name goes further down.
        place = min(place - 0.13, ax.transAxes.inverted().transform(height)[1])
        steps = f"\n{thousands(float(row['env_steps']))} steps" if row["env_steps"] else ""
        style = {"xycoords": "axes fraction", "va": "center", "fontsize": 8.5, "color": "0.35"}
        ax.annotate(row["implementation"] + steps, (1.01, place), **style)


def curves(groups: Group, axis: str, published: list[dict[str, str]], running_mean: int) -> Any:
    """One panel for each environment, one line for each name."""
    envs = list(dict.fromkeys(env for env, _ in groups))
    names = list(dict.fromkeys(name for _, name in groups))
    columns = min(len(envs), 2 if len(envs) == 4 else 3)
    figure, axes = start_figure(columns, math.ceil(len(envs) / columns))
    for ax in axes[len(envs) :]:
        ax.set_visible(False)
    lines: dict[str, Any] = {}
    for ax, env in zip(axes, envs):
        reached = 0.0
        for name in names:
            if (env, name) not in groups:
                continue
            points, y = align(groups[env, name], axis)
            if not len(points):
                say(f"{env}, {name}: its seeds share no range of {AXES[axis]}")
                continue
            reached = max(reached, points[-1])
            value, low, high = interval([y], iqm)
            number = names.index(name)
            style = {"color": COLOURS[number % len(COLOURS)]}
            dashes = DASHES[number % len(DASHES)]
            (line,) = ax.plot(points, value, linewidth=2, linestyle=dashes, **style)
            ax.fill_between(points, low, high, alpha=0.2, linewidth=0, **style)
            if len(points) == 1:  # one evaluation, which no line would show
                line.set_marker("o")
                ax.vlines(points, low, high, linewidth=2, **style)
            lines.setdefault(name, line)
        algorithms = {name.split("_")[0] for name in names if (env, name) in groups}
        peers = [row for row in published if row["env_id"].replace("/", "-") == env]
        peers = [row for row in peers if row["algorithm"] in algorithms]
        draw_published(ax, nearest(peers, reached) if axis == "steps" and reached else [])
        seeds = sorted({len(runs) for (e, _), runs in groups.items() if e == env})
        count = "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
        ax.set_title(f"{env} ({count} seed{'s' if seeds[-1] > 1 else ''})", loc="left")
        ax.set_xlabel(AXES[axis])
        ax.xaxis.set_major_formatter(FuncFormatter(thousands))
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.margins(x=0.01)
        tidy(ax)
    mean = f"training return, mean of {running_mean} episodes"
    figure.supylabel(mean if running_mean else "return", fontsize=11)
    side_by_side = columns * (2 if max(map(len, lines)) <= 24 else 1)  # or they are cut off
    place: dict[str, Any] = {"loc": "outside upper center", "ncols": side_by_side}
    figure.legend(list(lines.values()), list(lines), **place, frameon=False)
    more = max(math.ceil(len(lines) / side_by_side) - 4, 0)  # lines of it than there is room for
    figure.set_figheight(figure.get_figheight() + 0.24 * more)
    return figure


def published_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def number(value: float, digits: int = 1) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def results(groups: Group, published: list[dict[str, str]]) -> list[dict[str, str]]:
    """One row for each of ours, followed by the published ones of its environment and algorithm."""
    rows = []
    for (env, name), runs in groups.items():
        steps, scores = final(runs)
        if not len(scores):
            continue
        value, low, high = interval([scores], iqm)
        row = {"env_id": env, "what": name, "env_steps": str(steps), "seeds": str(len(runs))}
        row |= {"iqm": number(float(value)), "low": number(float(low)), "high": number(float(high))}
        std = number(scores.std()) if len(scores) > 1 else ""
        row |= {"mean": number(scores.mean()), "std": std, "source": "measured"}
        rows.append(row)
        for peer in published:
            same_env = peer["env_id"].replace("/", "-") == env
            if not same_env or peer["algorithm"] != name.split("_")[0]:
                continue
            row = dict.fromkeys(row, "")
            row |= {"env_id": env, "what": peer["implementation"], "env_steps": peer["env_steps"]}
            row |= {"mean": peer["mean"], "std": peer["std"]}
            row["source"] = f"{peer['protocol']}; {peer['source']}"
            if row not in rows:  # two of ours may have the same peer
                rows.append(row)
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    """The results as a Markdown table."""
    head = "| environment | what | steps | seeds | interquartile mean [95% interval] | mean ± std |"
    text = [f"{head} source |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        bounds = f" [{row['low']}, {row['high']}]" if row["low"] else ""
        spread = f" ± {row['std']}" if row["std"] else ""
        steps = f"{int(row['env_steps']):,}" if row["env_steps"] else ""
        cells = [row["env_id"], row["what"], steps, row["seeds"], row["iqm"] + bounds]
        text.append(f"| {' | '.join([*cells, row['mean'] + spread, row['source']])} |")
    return "\n".join(text) + "\n"


def compare(groups: Group, pairs: list[list[str]], out: Path) -> None:
    """How likely a run of the first name ends above one of the second, for each pair."""
    chances = []
    for a, b in pairs:
        envs = [env for env, name in groups if name == a and (env, b) in groups]
        if not envs:
            names = ", ".join(sorted({name for _, name in groups}))
            fail(f"--compare {a} {b}: no environment has runs of both; the runs are of {names}")
        sides = [(groups[env, a], groups[env, b]) for env in envs]
        strata = [final(ours, theirs)[1] for ours, theirs in sides]
        strata += [final(theirs, ours)[1] for ours, theirs in sides]
        if not all(len(returns) for returns in strata):
            fail(f"--compare {a} {b}: their runs have no number of steps in common yet")
        value, low, high = (float(number) for number in interval(strata, improvement))
        chances.append((a, b, len(envs), value, low, high))
    text = ["| A | B | environments | P(A > B) [95% interval] |", "|---|---|---|---|"]
    for a, b, count, value, low, high in chances:
        bounds = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        text.append(f"| {a} | {b} | {count} | {value:.2f}{bounds} |")
    (out / "improvement.md").write_text("\n".join(text) + "\n")


def by_agent(groups: Group) -> Group:
    """Runs of several agents, with a panel for each of them."""
    agents: Group = {}
    for (env, name), runs in groups.items():
        for i in range(min(run.agents.shape[1] for run in runs)):
            each = [run._replace(y=run.agents[:, i]) for run in runs]
            agents[f"{env}, agent {i + 1}", name] = each
    return dict(sorted(agents.items()))


def percent_of_human(groups: Group) -> Group:
    """Runs of games with a human score, in percent of it by each definition."""
    percent: Group = {}
    for what, games in HUMAN.items():
        for (env, name), runs in groups.items():
            if env in games:
                low, high = games[env]
                scaled = [run._replace(y=100 * (run.y - low) / (high - low)) for run in runs]
                percent[f"{env}, % {what}", name] = scaled
    return percent


def human_table(percent: Group) -> str:
    """The final percentages, and the finished games when a curve first reaches 100%."""
    head = "| environment | what | steps | percent | games to human level, by seed |"
    text = [head, "|---|---|---|---|---|"]
    for (env, name), runs in percent.items():
        steps, scores = final(runs)
        reached = [run.x["episodes"][run.y >= 100] for run in runs]
        games = ", ".join(f"{counts[0]:,.0f}" if len(counts) else "never" for counts in reached)
        mean = number(scores.mean(), 0) if len(scores) else ""
        text.append(f"| {env} | {name} | {steps:,} | {mean} | {games} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Read the flags and the runs, and write figures and tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures and tables")
    text = "plot training episodes, averaged over the last N, in place of evaluations"
    parser.add_argument("--running-mean", type=int, default=0, metavar="N", help=text)
    parser.add_argument("--compare", nargs=2, action="append", default=[], metavar=("A", "B"))
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="figures of the peers")
    args = parser.parse_args()
    if args.running_mean < 0:
        fail(f"--running-mean is {args.running_mean}, and must be at least 1")
    if not args.published.is_file():
        fail(f"there is no {args.published}; it is a CSV file such as {PUBLISHED}")
    groups = read_runs(args.runs, args.running_mean)
    published = published_rows(args.published)
    args.out.mkdir(parents=True, exist_ok=True)
    for axis in AXES:
        save(curves(groups, axis, published, args.running_mean), args.out, f"returns_by_{axis}")
    if agents := by_agent(groups):
        save(curves(agents, "steps", [], 0), args.out, "returns_by_agent")
    if percent := percent_of_human(groups):
        figure = curves(percent, "episodes", [], 0)
        figure.supylabel("percent", fontsize=11)
        save(figure, args.out, "percent_of_human")
        (args.out / "human.md").write_text(human_table(percent))
    rows = results(groups, published)
    with (args.out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys() if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (args.out / "results.md").write_text(markdown(rows))
    if args.compare:
        compare(groups, args.compare, args.out)
    print(markdown(rows), end="")


if __name__ == "__main__":
    main()
