"""`r2v bench mint-pool`: whoever chooses among several stronger models is scored at equal dollars, beside lots and pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from r2v.bench import pool
from r2v.bench.entries import Entry, entries
from r2v.bench.pool import LOTS, Records, Scores, at_usd, by_lot, handed_over
from r2v.bench.predictions import Predicted, Seal, Split
from r2v.bench.suite import Loaded, Outcome
from r2v.core.errors import StageError
from r2v.core.fixed import Always, Directed, Redraw
from r2v.core.types import TEACHER
from r2v.routers import router_class
from test_bench import data, quiet, split  # noqa: F401

USD = {"slm": 0.01, "medium": 0.2, TEACHER: 1.0}
NAMES = {"medium": ("a medium model", "gpt-3.5"), TEACHER: ("a large model", "gpt-4")}


@pytest.fixture(scope="module")
def records(split: Split) -> Iterator[Records]:  # noqa: F811
    """The medium model solves what it is called `deep` in, the large one everything."""

    def beside(name: str) -> Split:
        def solves(i: int) -> bool:
            text = " ".join(step.choice.action.text for step in split.loaded.episodes[i].steps)
            return name == TEACHER or "hopeless" not in text

        def play(asked, progress):
            alone = [Outcome(float(bool(split.loaded.episodes[i].success)), USD["slm"], 0, 3) for i, _ in asked]
            return [
                Outcome(float(solves(i)), USD["slm"] + USD[name], 1, 1) if where else own
                for (i, where), own in zip(asked, alone, strict=True)
            ]

        loaded = Loaded(split.loaded.episodes, split.loaded.group_E, name, play)
        return Split.of(loaded, "restart", 0, quiet)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "STRONGER", NAMES)
        yield Records({name: beside(name) for name in NAMES})


@pytest.fixture(scope="module")
def predicted(records: Records) -> list[Predicted]:
    lacking = [Entry(name, router_class(name), "") for name in ("pool_benefit", "pool_cascade_routing", "helper")]
    wanted = [e for e in entries() if e.name in ("pool_reading_benefit", "reading_benefit", "random")]
    found, left_out = pool._predictions(records, [*wanted, *lacking], quiet)
    assert [row["router"] for row in left_out] == ["pool_benefit", "pool_cascade_routing", "helper"]
    assert all("which these records do not hold" in row["why"] for row in left_out)
    return found


def test_a_pool_asks_the_cheap_model_where_it_suffices(records, predicted, tmp_path):
    results = Scores(records, 0, 0.1).results(predicted, Seal.on(predicted, tmp_path / "predictions.json.gz"))
    by_name = {row["router"]: row for row in results["rows"]}
    mine, pair = by_name["pool_reading_benefit"], by_name["reading_benefit"]
    assert set(by_name) == {"random", "pool_reading_benefit", "reading_benefit", "reading_benefit, to a medium model"}
    medium = by_name["reading_benefit, to a medium model"]
    assert mine["success"] > pair["success"] + 0.02 and mine["success"] >= medium["success"]
    assert max(won for _, won in mine["curve"]) > max(won for _, won in medium["curve"]) + 0.05
    assert mine["gain_over_lots"] > 0.05 and mine["gain_over_lots_ci95"][0] > 0
    most = {name: max(of[name] for of in mine["handed_over"]) for name in NAMES}
    assert most["medium"] > 0.1 and most[TEACHER] > 0.05
    assert results["usd_per_session"] == pytest.approx(USD["slm"] + 0.1 * USD[TEACHER])
    nulls = results["nulls"]
    assert nulls["a large model"]["success"] == 1.0 and nulls["a medium model"]["usd_per_session"] == pytest.approx(0.21)
    assert nulls["slm alone"]["success"] < nulls[LOTS]["success"] < mine["success"]


def test_fits_get_each_further_model_in_the_teachers_place(records):
    for (held_E, given), (_, own) in zip(records.fits(), records.splits["medium"].fits, strict=True):
        ((member, medium),) = given.pool
        assert member.name == "medium" and member.price == pytest.approx(0.21 / 1.01)
        assert [b.helped for b in medium.branches] == [b.helped for b in own.branches]
        assert any(b.helped != c.helped for b, c in zip(medium.branches, given.branches, strict=True))
        assert len(given.recorded) + len(given.validation) == (~held_E).sum()


def test_predictions_of_a_pool_are_scored_as_they_were_sealed(records, predicted, tmp_path):
    seal, scores = Seal.on(predicted, tmp_path / "predictions.json.gz"), Scores(records, 0, 0.25)
    where = [[tuple(w) for w in row] for row in predicted[0].steps_PE]
    where[0][0] = (0, "medium")
    with pytest.raises(StageError, match="as they were sealed"):
        scores.results([replace(predicted[0], steps_PE=where), *predicted[1:]], seal)


def test_a_session_is_handed_over_once_to_the_model_that_is_named(split):  # noqa: F811
    recorded = split.recorded[0]
    assert handed_over(Directed(Always(), "medium"), recorded) == (0, "medium")
    assert handed_over(Always(), recorded) == (0, TEACHER)
    with pytest.raises(ValueError, match="decides retry"):
        handed_over(Redraw(), recorded)


def test_equal_dollars_and_lots_by_hand():
    weights = np.full(2, 0.5)
    cost, won = np.array([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]]), np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert at_usd(cost, won, 0.5, weights) == pytest.approx(0.25)
    assert at_usd(cost, won, 3.0, weights) == pytest.approx(0.5)  # nobody has to pay more for less
    singles = [(np.array([0.0, 0.0]), np.array([0.0, 1.0])), (np.array([1.0, 1.0]), np.array([1.0, 1.0]))]
    assert by_lot(singles, 0.5, weights) == pytest.approx(0.75) and by_lot(singles, 2.0, weights) == 1.0
