from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reembed.evaluation.figures import QuerySet
from reembed.evaluation.grouping import likely_groups
from reembed.evaluation.queries import EvalSet, load_eval_set

SHARED = Path(__file__).parents[3] / "shared" / "data"
SUBJECTS = (
    "card payment", "cash withdrawal", "exchange rate", "lost phone", "direct debit", "top up limit", "new address",
    "spare card", "virtual card", "refund request", "pin code", "identity check",
)  # fmt: skip
PHRASES = ("how do I manage my {}", "how can I manage my {} please", "please manage my {}")


def queries(ids: list[str], texts: list[str], relevant: list[str]) -> EvalSet:
    return EvalSet(ids, texts, [{d: 1} for d in relevant], "test", "0" * 64, 0)


def unlike(count: int) -> list[str]:
    return [f"w{n} x{n * 7} y{n * 13}" for n in range(count)]


def test_queries_that_share_nothing_are_not_said_to_be_grouped():
    ids = [f"q{n}" for n in range(40)]
    assert likely_groups(queries(ids, unlike(40), ids)) is None


@pytest.mark.parametrize("form", ["q{0}_{1}", "q{0}-v{1}", "{0}.{1}", "user{0}#{1}", "q{0}{2}"])
def test_ids_with_the_same_beginning(form):
    ids = [form.format(n, k, "abc"[k]) for n in range(12) for k in range(3)]
    found = likely_groups(queries(ids, unlike(36), ids))
    assert (found.how, found.queries) == ("ids with the same beginning", 36)
    assert (found.example, found.like) == (ids[0], ids[1])


def test_one_beginning_for_all_is_a_name_and_not_a_group():
    ids = [f"PLAIN-{n}" for n in range(40)]
    assert likely_groups(queries(ids, unlike(40), ids)) is None


def test_ids_of_two_sets_may_be_the_same():
    """Ids are unique within a set."""
    sets = tuple(QuerySet(name, f"{name}.jsonl", 40, 0) for name in "ab")
    ids = [f"q{n}" for n in range(40)] * 2
    both = replace(queries(ids, unlike(80), [f"d{n}" for n in range(80)]), sets=sets)
    assert likely_groups(both) is None


def test_paraphrases_are_found_by_their_words():
    texts = [phrase.format(subject) for subject in SUBJECTS for phrase in PHRASES]
    ids = [str(n) for n in range(len(texts))]
    found = likely_groups(queries(ids, texts, ids))
    assert found.how == "nearly the same words"
    assert found.queries == 36


def test_queries_with_the_same_relevant_documents():
    ids = [str(n) for n in range(40)]
    found = likely_groups(queries(ids, unlike(40), [f"d{n // 2}" for n in range(40)]))
    assert (found.how, found.queries, found.example, found.like) == (
        "the same relevant documents", 40, "0", "1",
    )  # fmt: skip
    few = [f"d{n // 2}" if n < 18 else f"e{n}" for n in range(40)]
    assert likely_groups(queries(ids, unlike(40), few)) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="the judged collections lie outside the repository")
@pytest.mark.parametrize("name", ["cranfield", "cisi", "scifact", "nfcorpus-prep", "wordnet"])
def test_real_queries_that_stand_alone_raise_no_alarm(name):
    assert likely_groups(load_eval_set(str(SHARED / name), "test", {})) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="the judged collections lie outside the repository")
def test_questions_of_one_intent_are_found():
    found = likely_groups(load_eval_set(str(SHARED / "banking77"), "test", {}))
    assert (found.how, found.queries) == ("the same relevant documents", 770)
