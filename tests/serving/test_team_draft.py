from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reembed.errors import UsageError
from reembed.evaluation.sequential import always_valid
from reembed.serving.team_draft import Interleaved, credit, team_draft

lists = st.lists(st.sampled_from("abcdefghijkl"), unique=True, max_size=8)


@given(lists, lists, st.integers(1, 10), st.text(max_size=3))
@settings(deadline=None)
def test_a_merged_list_holds_the_best_of_both_in_turns(live, candidate, k, key):
    shown = team_draft(live, candidate, k, key)
    assert len(set(shown.doc_ids)) == len(shown.doc_ids) == min(k, len({*live, *candidate}))
    ranked = {"live": live, "candidate": candidate}
    for at, (doc_id, team) in enumerate(zip(shown.doc_ids, shown.teams, strict=True)):
        before = shown.doc_ids[:at]
        assert doc_id == next(d for d in ranked[team] if d not in before)
        other = {"live": "candidate", "candidate": "live"}[team]
        picks = shown.teams[:at]
        spent = all(d in before for d in ranked[other])
        assert picks.count(team) <= picks.count(other) or spent


def test_the_coin_depends_on_the_key_alone():
    live, candidate = list("abcdefgh"), list("hgfedcba")
    assert team_draft(live, candidate, 8, "seed q1") == team_draft(live, candidate, 8, "seed q1")
    found = {team_draft(live, candidate, 8, f"seed {q}").teams for q in range(40)}
    assert len(found) > 5


def test_equal_lists_are_shown_as_they_are_and_neither_gains():
    same = list("abcdef")
    shown = [team_draft(same, same, 6, str(q)) for q in range(4000)]
    assert {s.doc_ids for s in shown} == {tuple(same)}
    for clicked in ("a", "f", "ab", "acf"):
        assert abs(np.mean([credit(s, clicked) for s in shown])) < 0.05


def test_the_list_that_ranks_clicked_documents_higher_gains():
    better, worse = list("abxyz"), list("xyzab")
    credits = [credit(team_draft(worse, better, 3, str(q)), []) for q in range(10)]
    assert credits == [0] * 10
    shown = [team_draft(worse, better, 3, str(q)) for q in range(500)]
    clicks = [[d for d in s.doc_ids if d in "ab"] for s in shown]
    found = always_valid(
        np.array([credit(*pair) for pair in zip(shown, clicks, strict=True)], float), 0.0
    )
    assert (found.verdict, found.mean > 0.5) == ("pass", True)
    swapped = [team_draft(better, worse, 3, str(q)) for q in range(500)]
    clicks = [[d for d in s.doc_ids if d in "ab"] for s in swapped]
    credits = [credit(*pair) for pair in zip(swapped, clicks, strict=True)]
    assert always_valid(np.array(credits, float), 0.0).verdict == "fail"


def test_a_click_counts_once_and_one_outside_the_results_is_refused():
    shown = Interleaved(("a", "b", "c"), ("live", "candidate", "live"))
    assert credit(shown, ["a", "b"]) == 0
    assert credit(shown, ["b", "b"]) == 1
    assert credit(shown, ["a", "c", "b"]) == -1
    with pytest.raises(UsageError, match=r"'z' is not among the 3 shown"):
        credit(shown, ["a", "z"])
