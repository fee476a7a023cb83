"""The verdicts on the studies' claims: benchmark/claims.py and docs/claims.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from test_benchmark import BENCHMARK, ROOT, commands, load, write_run

claims = load("claims")


def sample(*values: float) -> np.ndarray:
    return np.array(values)


@pytest.mark.parametrize(
    ("x", "y", "direction", "verdict", "low", "high", "chance"),
    [
        # Bounds are the quantiles of all possible resamples: clear, reversed, overlapping, ...
        (sample(10, 11, 12), sample(1, 2, 3), "higher", "confirmed", 7.67, 10.33, 1.0),
        (sample(1, 2, 3), sample(10, 11, 12), "higher", "contradicted", -10.33, -7.67, 0.0),
        (sample(1, 2, 3), sample(10, 11, 12), "lower", "confirmed", -10.33, -7.67, 1.0),
        (sample(1, 5, 9), sample(2, 4, 6), "higher", "undecided", -3, 5, 5 / 9),
        (sample(5), sample(1, 2, 3), "higher", "undecided", np.nan, np.nan, 1.0),
        (sample(5), sample(1), "lower", "undecided", np.nan, np.nan, 0.0),
        (sample(10, 11, 12), np.array(9.0), "higher", "confirmed", 1, 3, 1.0),
        (sample(10, 11, 12), np.array(11.0), "lower", "undecided", -1, 1, 0.5),
        (sample(4, 4), sample(4, 4), "higher", "undecided", 0, 0, 0.5),
        (sample(100, 101), sample(100, 102), "same", "confirmed", -1.81, 0.81, 0.375),
        (sample(100, 101), sample(1, 2), "same", "contradicted", 98.19, 99.81, 1.0),
        (sample(80, 120), sample(100, 100), "same", "undecided", -20, 20, 0.5),
    ],
)
def test_a_verdict_is_where_the_interval_lies(
    x: np.ndarray,
    y: np.ndarray,
    direction: str,
    verdict: str,
    low: float,
    high: float,
    chance: float,
) -> None:
    result = claims.judge(x, y, direction)
    assert result.verdict == verdict
    assert result.difference == pytest.approx(x.mean() - y.mean())
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.25, nan_ok=True)
    assert result.chance == pytest.approx(chance)


def test_a_claim_is_the_conjunction_of_its_comparisons() -> None:
    yes, no, open_, missing = "confirmed", "contradicted", "undecided", "not run"
    assert claims.together([yes, yes]) == yes
    assert claims.together([yes, no, missing]) == no
    assert claims.together([yes, missing]) == claims.together([yes, open_]) == open_
    assert claims.together([missing, missing]) == missing


def test_measures_are_what_they_say_and_stop_at_the_limit(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "s" / "E__a__1", [0, 2, 4, 6, 8, 10, 99], agents="1 -2.5")
    (folder / "losses.csv").write_text("env_step,alpha\n150,7\n650,9\n")
    (run,) = claims.read_runs(tmp_path, "s", "E", "a", "mean_return")
    values = {
        "last third": (8 + 10) / 2,
        "area": 5,
        "peak": 10,
        "spread": 1,
        "seconds": 6,
        "steps to 4": 300,
        "games to 5": 4,
        "seconds to 50": 6,  # never
    }
    for measure, value in values.items():
        assert claims.value(run, measure, 600) == pytest.approx(value), measure
    assert claims.column(folder, "alpha").tolist() == [[150, 7], [650, 9]]
    assert claims.column(folder, "agent_2")[:, 1].tolist() == [-2.5] * 7
    assert claims.column(folder, "mean_return minus seconds")[2].tolist() == [300, 4 - 3]
    assert not len(claims.column(folder, "entropy"))


def test_the_page_has_every_claim_and_says_what_was_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in 1, 2, 3:
        write_run(
            tmp_path / "r" / "s" / f"E__good__{seed}", [1, 8, 9, 9 + seed, 50][: 4 + seed % 2]
        )
        write_run(tmp_path / "r" / "s" / f"E__bad__{seed}", [1, 1, 2, 2])
    write_run(tmp_path / "r" / "s" / "E__late__1", [5], step=9999)
    head = "claim,study,sentence,folder,setting,against,environments,measure,direction,needs\n"
    lines = ["C1,S1: One,Good is good,s,good,bad,E,last third,higher,"]
    lines += ["C2,S1: One,Good is bad,s,good,bad,E F,last third,lower,"]
    lines += [
        "C3,S2: Two,None ran,s,none,5,E,peak,higher,--magic",
        "C4,S2: Two,x,s,good,late,E,area,higher,",
    ]
    (tmp_path / "claims.csv").write_text(head + "\n".join(lines) + "\n")
    words = ["--results", "r", "--claims", "claims.csv", "--out", "."]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["claims.py", *words])
    claims.main()
    text = (tmp_path / "claims.md").read_text()
    assert "| [C1](#c1) | confirmed | 1 confirmed | Good is good. |" in text
    assert "| [C2](#c2) | contradicted | 1 contradicted, 1 not run | Good is bad. |" in text
    # At 400 steps, which all have reached, the last third is the evaluations at 300 and 400.
    assert "| E | good > bad | last third | 8 [7.5, 8.5] | 1.00 | 3, 3 | 400 | confirmed |" in text
    assert "| F | good < bad | last third |  |  |  |  | not run (no runs of good and bad) |" in text
    assert "not run (no script has --magic yet)" in text
    assert "not run (no steps in common)" in text
    said = "Of 4 claims: 1 confirmed, 1 contradicted, 2 not run."
    assert f"**{said}**" in text and capsys.readouterr().out.strip() == said
    assert (tmp_path / "images" / "claims" / "C1.png").stat().st_size > 1000


def test_the_page_on_the_claims_is_up_to_date() -> None:
    rows = claims.read_claims(BENCHMARK / "claims.csv")
    decided = [claims.decide(row, BENCHMARK / "results") for row in rows]
    drawn = {row["claim"] for row, (_, runs) in zip(rows, decided) if runs}
    text = claims.page(rows, [result for result, _ in decided], drawn)
    assert text == (ROOT / "docs" / "claims.md").read_text(), "python benchmark/claims.py"
    assert {row["claim"] for row in rows} == {f"C{i}" for i in range(1, 28)}


def test_every_setting_of_a_claim_is_one_of_its_study() -> None:
    """Or needs what no script has yet; the runaway has a program of its own."""
    known: dict[str, set[tuple[str, str]]] = {"sac_runaway": set()}
    for row in claims.read_claims(BENCHMARK / "claims.csv"):
        for folder in set(row["folder"].split()) - set(known):
            known[folder] = {(words[3], words[7]) for words in commands(folder)}
        runs = set().union(*(known[folder] for folder in row["folder"].split()))
        against, _, env = row["against"].partition("@")
        sides = {(row["environments"], row["setting"]), (env or row["environments"], against)}
        missing = {
            side for side in sides - runs if not side[1].lstrip("-").replace(".", "").isdigit()
        }
        assert not missing or row["needs"] or row["folder"] == "sac_runaway", row
