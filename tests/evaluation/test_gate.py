from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reembed.config.gate import GateConfig
from reembed.errors import IntegrityError
from reembed.evaluation.comparisons import Rule, Verdict
from reembed.evaluation.figures import Needed
from reembed.evaluation.gate import (
    MIN_GROUPS,
    MIN_QUERIES,
    Measured,
    Shared,
    combine,
    judge,
    require_verdict_of_rules,
)
from reembed.evaluation.statistics import queries_needed
from reembed.store.records import decode, encode

GATE = GateConfig()
EXACT = np.ones(200)


Relevance = dict[str, tuple[np.ndarray, np.ndarray]]


def relevance_of(live_ndcg, ndcg, live_recall, recall) -> Relevance:
    return {"ndcg@10": (live_ndcg, ndcg), "recall@10": (live_recall, recall)}


def releases(change: float, n: int, seed: int = 0, sd: float = 0.18) -> Relevance:
    """Two releases whose nDCG@10 and recall@10 truly differ by `change`."""
    rng = np.random.default_rng(seed)
    live = rng.uniform(0.1, 0.6, n)
    shared = rng.normal(0, sd, n)
    ndcg = live + change + shared
    recall = live + change + 0.6 * shared + rng.normal(0, 0.8 * sd, n)
    return relevance_of(live, ndcg, live, recall)


def decide(relevance: Relevance, **changed: object) -> Verdict:
    exact = np.ones(len(relevance["ndcg@10"][0]))
    arguments = {"verified": True, "ann_recall_Q": exact, "relevance": relevance, **changed}
    return judge(GATE, Measured(**arguments))


def rule_of(verdict: Verdict, name: str) -> Rule:
    return next(rule for rule in verdict.rules if rule.name == name)


def promoted(change: float, n: int, trials: int = 300) -> float:
    return float(
        np.mean([decide(releases(change, n, seed)).verdict == "pass" for seed in range(trials)])
    )


def test_a_worse_model_is_not_promoted():
    assert promoted(-0.03, 200) < 0.05
    assert promoted(-0.03, 1000, trials=100) == 0.0


def test_a_model_worse_by_exactly_the_margin_is_promoted_in_at_most_five_percent():
    assert promoted(-0.01, 200) < 0.07


def test_a_better_model_is_promoted_with_enough_queries():
    assert promoted(0.02, 1000) > 0.95


def test_few_queries_leave_an_equal_model_undecided_rather_than_promoted_or_failed():
    verdicts = [decide(releases(0.0, 50, seed)).verdict for seed in range(200)]
    assert verdicts.count("inconclusive") / 200 > 0.8


def test_a_much_worse_model_fails():
    verdict = decide(releases(-0.2, 300))
    assert verdict.verdict == "fail"
    assert (verdict.if_unchanged, verdict.if_real) == (None, None)
    assert rule_of(verdict, "nDCG@10 change").observed == pytest.approx(-0.2, abs=0.05)


def test_an_identical_release_passes():
    live = np.random.default_rng(0).uniform(0, 1, 300)
    verdict = decide(relevance_of(live, live, live, live))
    assert verdict.verdict == "pass"
    assert [rule.verdict for rule in verdict.rules] == ["pass"] * 7


def test_a_handful_of_identical_results_is_not_evidence():
    live = np.full(MIN_QUERIES - 1, 0.5)
    verdict = decide(relevance_of(live, live, live, live))
    assert verdict.verdict == "inconclusive"
    assert verdict.if_unchanged is not None
    assert verdict.if_unchanged.queries > 100


def test_one_query_is_inconclusive_and_its_record_is_json():
    one = np.array([0.5])
    verdict = decide(relevance_of(one, one, one, one), ann_recall_Q=one)
    assert verdict.verdict == "inconclusive"
    assert rule_of(verdict, "nDCG@10 change").bound is None
    assert "over 1 query, at least -0.0100 needed" in rule_of(verdict, "nDCG@10 change").detail
    json.dumps(encode(verdict), allow_nan=False)


def test_inconclusive_says_how_many_queries_would_decide():
    relevance = releases(0.0, 50)
    verdict = decide(relevance)
    live, candidate = relevance["ndcg@10"]
    sd = np.std(candidate - live, ddof=1)
    rule = rule_of(verdict, "nDCG@10 change")
    assert rule.if_unchanged.queries == queries_needed(sd, 0.01)
    distance = abs(rule.observed + 0.01)
    assert rule.if_real.queries == queries_needed(sd, distance)
    assert verdict.if_unchanged == max_needed(r.if_unchanged for r in verdict.rules)
    assert verdict.if_real == max_needed(r.if_real for r in verdict.rules)
    assert f"about {rule.if_unchanged.queries:,} queries would decide if nothing" in rule.detail
    assert f"about {rule.if_real.queries:,} queries if this change is real" in rule.detail


def max_needed(found) -> Needed:
    return max(filter(None, found), key=lambda n: n.queries)


def shifted(change: float, sd: float, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two releases whose metric differs by exactly `change` in the mean and `sd` over queries."""
    noise = np.random.default_rng(seed).normal(0, 1, n)
    live = np.full(n, 0.4)
    return live, live + change + sd * (noise - noise.mean()) / noise.std(ddof=1)


def test_a_clear_improvement_on_few_queries_asks_for_hundreds_and_not_for_thousands():
    """52 queries, nDCG@10 +.071 and recall@10 +.034: "2,971 queries would decide" was all that was said."""
    found = {"ndcg@10": shifted(0.071, 0.21, 52, 0), "recall@10": shifted(0.034, 0.219, 52, 1)}
    verdict = decide(found)
    assert verdict.verdict == "inconclusive"
    assert rule_of(verdict, "nDCG@10 change").verdict == "pass"
    assert verdict.if_unchanged.queries == 2979
    assert verdict.if_real.queries == 165


def test_inconclusive_with_queries_enough_does_not_ask_for_fewer_than_there_are():
    found = shifted(-0.0095, 0.2, 5000, 0)
    verdict = decide(relevance_of(*found, *found))
    assert verdict.verdict == "inconclusive"
    assert verdict.if_unchanged is None
    assert verdict.if_real.queries > 100_000
    assert "too near the limit" in rule_of(verdict, "nDCG@10 change").detail


def test_a_change_that_equals_the_limit_is_decided_by_no_number_of_queries():
    live = np.full(100, 0.5)
    candidate = live + np.where(np.arange(100) % 2, 0.25, -0.25) - 0.03125  # exact in binary
    verdict = judge(
        GateConfig(margin=0.03125),
        Measured(verified=True, ann_recall_Q=EXACT, relevance={"recall@10": (live, candidate)}),
    )
    rule = rule_of(verdict, "recall@10 change")
    assert (rule.verdict, rule.if_real) == ("inconclusive", None)
    assert rule.if_unchanged is not None
    assert "no number of queries" in rule.detail


def phrasings(change: float, questions: int, seed: int) -> tuple[Relevance, np.ndarray]:
    """Eleven phrasings of each question, all nearly alike."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(questions), 11)
    live = rng.uniform(0.1, 0.6, questions)[groups]
    new = live + change + rng.normal(0, 0.18, questions)[groups] + rng.normal(0, 0.05, len(groups))
    return relevance_of(live, new, live, new), groups


def test_phrasings_of_one_question_count_once():
    found = {"grouped": 0, "alone": 0}
    for seed in range(400):
        relevance, groups = phrasings(-0.01, 40, seed)
        found["grouped"] += decide(relevance, groups_Q=groups).verdict == "pass"
        found["alone"] += decide(relevance).verdict == "pass"
    assert found["grouped"] / 400 <= 0.06
    assert found["alone"] / 400 > 0.2


def test_grouped_queries_are_told_in_queries_and_groups():
    relevance, groups = phrasings(0.0, 30, 1)
    rule = rule_of(decide(relevance, groups_Q=groups), "nDCG@10 change")
    assert (rule.n, rule.independent) == (330, 30)
    assert "over 330 queries in 30 groups" in rule.detail
    assert rule.if_unchanged.queries == 11 * rule.if_unchanged.groups
    assert (
        f"about {rule.if_unchanged.queries:,} queries in {rule.if_unchanged.groups:,} groups"
        in (rule.detail)
    )


def test_too_few_groups_do_not_pass_however_many_queries_they_have():
    live = np.random.default_rng(0).uniform(0.1, 0.6, 500)
    same = relevance_of(live, live, live, live)
    for groups, verdict in ((MIN_GROUPS - 1, "inconclusive"), (MIN_GROUPS, "pass")):
        found = Measured(
            verified=True, ann_recall_Q=np.ones(500), relevance=same,
            groups_Q=np.arange(500) % groups,
        )  # fmt: skip
        assert judge(GateConfig(margin=0.25), found).verdict == verdict


def test_equal_results_of_few_queries_do_not_show_that_no_query_loses():
    """Where 1 query in 100 loses everything, 52 queries show none of it in 59 % of cases."""
    for n, verdict in ((52, "inconclusive"), (150, "pass")):
        live = np.random.default_rng(0).uniform(0.1, 0.5, n)
        assert decide(relevance_of(live, live, live, live)).verdict == verdict


def test_recall_alone_can_fail_the_gate():
    good, bad = releases(0.05, 500), releases(-0.1, 500)
    verdict = decide({"ndcg@10": good["ndcg@10"], "recall@10": bad["recall@10"]})
    assert verdict.verdict == "fail"
    assert rule_of(verdict, "nDCG@10 change").verdict == "pass"


def test_a_margin_that_is_left_out_is_two_percent_of_live_where_that_is_more():
    low, high = np.full(1000, 0.2), np.full(1000, 0.9)
    verdict = decide(relevance_of(low, low - 0.015, high, high - 0.015))
    assert rule_of(verdict, "nDCG@10 change").required == pytest.approx(-0.01)
    assert rule_of(verdict, "nDCG@10 change").verdict == "fail"
    assert rule_of(verdict, "recall@10 change").margin == pytest.approx(0.018)
    assert rule_of(verdict, "recall@10 change").verdict == "pass"


def test_two_releases_that_find_nothing_are_not_equally_good():
    zeros = np.zeros(100)
    nothing = relevance_of(zeros, zeros, zeros, zeros)
    verdict = judge(GATE, Measured(verified=True, ann_recall_Q=EXACT, relevance=nothing))
    assert verdict.verdict == "inconclusive"
    assert "0 for every query in both" in rule_of(verdict, "nDCG@10 change").detail


@pytest.mark.parametrize("margin", [0.001, 0.01, 0.3])
def test_a_margin_that_is_set_is_applied_as_it_is(margin):
    live = np.full(1000, 0.9)
    loses = relevance_of(live, live - 0.015, live, live - 0.015)
    verdict = judge(
        GateConfig(margin=margin),
        Measured(verified=True, ann_recall_Q=EXACT, relevance=loses),
    )
    rule = rule_of(verdict, "nDCG@10 change")
    assert (rule.margin, rule.required) == (margin, -margin)
    assert rule.verdict == ("pass" if margin > 0.015 else "fail")


def test_the_margin_that_is_said_to_pass_passes_and_a_thousandth_less_does_not():
    for seed in range(20):
        relevance = releases(-0.001, 1000, seed)
        needed = decide(relevance).margin_needed
        if decide(relevance).verdict == "pass":
            assert needed is None
            continue
        for margin, expected in ((needed, True), (needed - 0.001, False)):
            gate = GateConfig(margin=margin)
            verdict = judge(gate, Measured(verified=True, ann_recall_Q=EXACT, relevance=relevance))
            assert (verdict.verdict == "pass") is expected


def test_no_margin_is_said_to_pass_where_something_else_stands_in_the_way():
    worse = releases(-0.05, 300)
    assert decide(worse).margin_needed is not None
    assert decide(worse, verified=False).margin_needed is None
    assert decide(worse, ann_recall_Q=np.full(300, 0.5)).margin_needed is None
    assert decide(releases(-0.05, MIN_QUERIES - 1)).margin_needed is None


def test_an_unverified_candidate_fails_whatever_its_relevance():
    assert decide(releases(0.1, 1000), verified=False).verdict == "fail"
    assert decide(releases(0.0, 50), verified=False).verdict == "fail"


@pytest.mark.parametrize(
    ("share_of_perfect", "expected"), [(1.0, "pass"), (0.97, "pass"), (0.5, "fail")]
)
def test_ann_recall_must_reach_its_target(share_of_perfect, expected):
    ann_recall = np.where(np.random.default_rng(0).random(1000) < share_of_perfect, 1.0, 0.8)
    verdict = decide(releases(0.05, 2000), ann_recall_Q=ann_recall)
    assert rule_of(verdict, "ann_recall@10").verdict == expected
    assert verdict.verdict == expected


def test_ann_recall_near_its_target_is_inconclusive():
    ann_recall = np.where(np.arange(100) % 4 == 0, 0.82, 1.0)
    rule = rule_of(decide(releases(0.1, 1000), ann_recall_Q=ann_recall), "ann_recall@10")
    assert rule.verdict == "inconclusive"
    assert rule.if_real is not None


def test_exact_search_passes_even_a_target_of_one():
    gate, relevance = GateConfig(ann_recall=1.0), releases(0.1, 1000)
    verdict = judge(gate, Measured(verified=True, ann_recall_Q=EXACT, relevance=relevance))
    assert rule_of(verdict, "ann_recall@10").verdict == "pass"


def test_unmeasured_ann_recall_does_not_pass():
    with pytest.raises(ValueError, match="at least one value"):
        decide(releases(0.1, 1000), ann_recall_Q=np.array([]))


def test_unpaired_metrics_are_refused():
    with pytest.raises(ValueError, match="not pairs"):
        decide(relevance_of(np.ones(3), np.ones(4), np.ones(3), np.ones(3)))


outcomes = st.lists(st.sampled_from(["pass", "fail", "inconclusive"]), max_size=6)


@given(outcomes)
@settings(deadline=None)
def test_the_worst_rule_decides(found):
    verdict = combine(*(Rule(f"rule {i}", outcome, "") for i, outcome in enumerate(found)))
    if "fail" in found:
        assert verdict.verdict == "fail"
    else:
        assert verdict.verdict == (
            "inconclusive" if "inconclusive" in found or not found else "pass"
        )


def test_a_verdict_survives_the_codec():
    for relevance in (releases(0.0, 1), releases(0.0, 60), releases(0.1, 600), releases(-0.3, 200)):
        verdict = decide(relevance)
        assert decode(Verdict, json.loads(json.dumps(encode(verdict)))) == verdict
        require_verdict_of_rules(verdict)


@pytest.mark.parametrize(
    "edit",
    [
        {"verdict": "pass"},
        {"rules": ()},
        {"if_unchanged": Needed(1, 1)},
        {"margin_needed": 0.01},
    ],
)
def test_an_edited_verdict_is_refused(edit):
    with pytest.raises(IntegrityError, match="damaged"):
        require_verdict_of_rules(replace(decide(releases(-0.3, 200)), **edit))


@pytest.mark.parametrize("edit", [{"rules": [{"name": "x"}]}, {"rules": None}])
def test_a_record_without_whole_rules_is_refused(edit):
    with pytest.raises(IntegrityError, match="rules"):
        decode(Verdict, {**encode(decide(releases(-0.3, 200))), **edit})


@pytest.mark.parametrize(
    ("judged", "every", "verdict"),
    [(1, 1, "pass"), (0.98, 0.95, "pass"), (0.97, 1, "inconclusive"), (1, 0.94, "inconclusive")],
)
def test_releases_of_other_documents_are_not_compared(judged, every, verdict):
    found, ones = Shared(judged, every, "source.filter is another"), np.ones(100)
    decided = decide(relevance_of(ones, ones, ones, ones), ann_recall_Q=ones, shared=found)
    assert decided.verdict == verdict
    assert decided.margin_needed is None
    failing = [r.detail for r in decided.rules if r.verdict != "pass"]
    assert all(detail.endswith(found.why) for detail in failing)


def test_judgements_of_documents_that_are_not_there_do_not_pass():
    zeros = np.zeros(300)
    verdict = decide(relevance_of(zeros, zeros, zeros, zeros), judged_present=0.2)
    assert verdict.verdict == "inconclusive"
