"""Score cut-offs against brute force, and their intervals against a population."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from judged_lists import eval_set

from reembed.errors import UsageError
from reembed.evaluation import cutoffs
from reembed.evaluation.beside import cutoff_words
from reembed.evaluation.cutoffs import cut_offs
from reembed.evaluation.figures import DEPTH, Sides
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.queries import EvalSet

DOCS = [f"d{n}" for n in range(60)]


def case(seed: int, queries: int = 25) -> tuple[EvalSet, Sides[Ranked]]:
    """Two models whose scores are distributed otherwise; scores are coarse, so that many are equal."""
    rng = np.random.default_rng(seed)
    qrels = [
        {str(d): 1 for d in rng.choice(DOCS, size=int(rng.integers(1, 6)), replace=False)}
        for _ in range(queries)
    ]

    def lists(scale: float, shift: float) -> Ranked:
        found = []
        for relevant in qrels:
            scores = [
                (d, round(shift + scale * (rng.random() + 0.4 * (d in relevant)), 2)) for d in DOCS
            ]
            found.append(sorted(scores, key=lambda pair: -pair[1])[:40])
        return Ranked.of(found)

    return eval_set(qrels), Sides(lists(0.5, 0.1), lists(0.2, 0.5))


def recall_above(judged: EvalSet, side: Ranked, cutoff: float) -> float:
    shares = []
    for qrels, ids, scores in zip(judged.qrels, side.ids, side.scores, strict=True):
        shown = {d for d, s in zip(ids, scores, strict=True) if s >= cutoff}
        shares.append(len(shown & qrels.keys()) / len(qrels))
    return math.fsum(shares) / len(shares)


def results_above(judged: EvalSet, side: Ranked, cutoff: float) -> float:
    return sum(s >= cutoff for scores in side.scores for s in scores) / len(judged.texts)


def highest(measure, judged: EvalSet, side: Ranked, wanted: float) -> float | None:
    every = sorted({s for scores in side.scores for s in scores}, reverse=True)
    return next((s for s in every if measure(judged, side, s) >= wanted - 1e-9), None)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("cutoff", [0.2, 0.35, 0.5])
def test_a_cut_off_is_the_highest_that_gives_as_much_as_lives(seed, cutoff, monkeypatch):
    monkeypatch.setattr(cutoffs, "_RESAMPLES", 20)
    judged, lists = case(seed)
    found = cut_offs(cutoff, judged, lists)
    assert found.live_recall == pytest.approx(recall_above(judged, lists.live, cutoff))
    assert found.live_results == pytest.approx(results_above(judged, lists.live, cutoff))
    for measure, wanted, ours in (
        (recall_above, found.live_recall, found.same_recall),
        (results_above, found.live_results, found.same_share),
    ):
        assert ours.score == highest(measure, judged, lists.candidate, wanted)


def test_the_interval_holds_the_cut_off_of_the_whole_population_as_often_as_it_says(monkeypatch):
    """Samples of 60 queries from 1,000; the cut-off of all of them is what an interval is for."""
    monkeypatch.setattr(cutoffs, "_RESAMPLES", 300)
    judged, lists = case(1, queries=1_000)
    whole = cut_offs(0.35, judged, lists).same_share.score
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(50):
        rows = sorted(rng.choice(1_000, size=60, replace=False).tolist())
        found = cut_offs(0.35, judged.take(rows), lists.each(lambda side, r=rows: side.take(r)))
        held += found.same_share.low <= whole <= found.same_share.high
    assert held >= 44


def test_the_same_lists_keep_the_cut_off_and_the_same_seed_gives_the_same_interval():
    judged, lists = case(3)
    same = cut_offs(0.35, judged, Sides(lists.live, lists.live))
    above = min(s for scores in lists.live.scores for s in scores if s >= 0.35)
    assert same.same_share.score == same.same_share.low == same.same_share.high == above
    assert cut_offs(0.35, judged, lists) == cut_offs(0.35, judged, lists)


def test_groups_of_queries_are_drawn_together():
    """The same queries ten times over say no more than once."""
    judged, lists = case(4, queries=30)
    rows = [row for row in range(30) for _ in range(10)]
    many, their = judged.take(rows), lists.each(lambda side: side.take(rows))
    grouped = EvalSet(**{**vars(many), "groups": tuple(judged.query_ids[row] for row in rows)})
    once, apart, together = (
        cut_offs(0.35, queries, found).same_share
        for queries, found in ((judged, lists), (many, their), (grouped, their))
    )
    width = [found.high - found.low for found in (once, apart, together)]
    assert width[1] < 0.6 * width[0]
    assert width[2] == pytest.approx(width[0], rel=0.3)


def test_what_the_candidate_cannot_give_is_told():
    judged = eval_set([{"a": 1}] * 3)
    live = Ranked([["a", "b"]] * 3, [[0.9, 0.8]] * 3)
    candidate = Ranked([["b"]] * 3, [[0.5]] * 3)
    found = cut_offs(0.5, judged, Sides(live, candidate))
    assert found.same_recall.score is None
    assert found.same_share.score is None
    nothing = cut_offs(0.95, judged, Sides(live, candidate))
    assert (nothing.live_results, nothing.same_share.score) == (0.0, None)


def test_lists_that_are_full_above_the_cut_off_are_counted():
    judged = eval_set([{"d1": 1}, {"d1": 1}])
    ids, scores = [f"d{n}" for n in range(100)], [1 - n / 1000 for n in range(100)]
    side = Ranked([ids, ids], [scores, [s / 10 for s in scores]])
    found = cut_offs(0.5, judged, Sides(side, side))
    assert (found.full_lists, found.same_share.score) == (1, None)
    assert found.same_recall.score == 1 - 1 / 1000
    rows = [0] + [1] * 19
    few = cut_offs(0.5, judged.take(rows), Sides(side.take(rows), side.take(rows)))
    assert few.full_lists == 1
    assert few.same_share.score is not None


@pytest.mark.parametrize("cutoff", [math.nan, math.inf])
def test_a_cut_off_that_is_no_number_is_refused(cutoff):
    judged, lists = case(0)
    with pytest.raises(UsageError, match="cutoff is"):
        cut_offs(cutoff, judged, lists)


def test_scores_that_are_no_numbers_are_refused():
    judged = eval_set([{"a": 1}])
    side = Ranked([["a"]], [[math.nan]])
    with pytest.raises(UsageError, match="not a finite number"):
        cut_offs(0.5, judged, Sides(side, side))


def full_of_candidate(queries_full: int) -> tuple[EvalSet, Sides[Ranked]]:
    """Live has 20 results above .5 of each of 100 queries; some queries of the candidate have 100 at .9."""
    ids = [f"d{n}" for n in range(DEPTH)]
    live = Ranked([ids] * 100, [[0.6] * 20 + [0.1] * (DEPTH - 20)] * 100)
    low = [0.3 - n / 1000 for n in range(DEPTH)]
    scores = [[0.9] * DEPTH] * queries_full + [low] * (100 - queries_full)
    judged = EvalSet(
        [str(n) for n in range(100)], ["t"] * 100, [{"d0": 1}] * 100, "here", "0" * 64, 0
    )
    return judged, Sides(live, Ranked([ids] * 100, scores))


def test_results_of_the_candidate_that_were_not_looked_at_make_its_share_unknown():
    found = cut_offs(0.5, *full_of_candidate(10))
    assert (found.full_lists, found.same_share.score) == (0, None)
    assert "the candidate has 100 results or more above 0.2" in found.same_share.why
    assert "in 10 of 100 queries" in "\n".join(cutoff_words(found))
    assert found.same_recall.score is not None, "nothing relevant is beyond them"
    few = cut_offs(0.5, *full_of_candidate(2)).same_share
    assert few.score is not None
    assert few.why == ""


def test_recall_is_unknown_where_full_lists_lack_a_relevant_document():
    """Live has 20 results above .5 of each query, some of the candidate have 100, and one document is not there."""
    judged, lists = full_of_candidate(10)
    both = replace(judged, qrels=[{"d0": 1, "beyond": 1}] * 100)
    found = cut_offs(0.5, both, lists)
    assert found.same_recall.score is None
    assert "the candidate has 100 results or more" in found.same_recall.why
    assert "relevant documents that are not among these" in found.same_recall.why
    assert cut_offs(0.5, both, Sides(lists.candidate, lists.live)).same_recall.why.startswith(
        "live has"
    )
    few = full_of_candidate(2)
    some = cut_offs(0.5, replace(few[0], qrels=both.qrels), few[1]).same_recall
    assert some.score is not None
