from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reembed.errors import IntegrityError
from reembed.serving.fusion import (
    ABSENT,
    Background,
    NewList,
    OldList,
    rrf,
    slots,
    zscore,
)

RULES = ("slots", "zscore", "rrf")
ALL = 1000


def by(rule, old, new, backgrounds, k):
    if rule == "slots":
        return slots(old, k)
    if rule == "rrf":
        return rrf(old, new, k)
    return zscore(old, new, backgrounds, k)


class World:
    """Scores of every document in two spaces, which of them are migrated, and what a search of each side finds."""

    def __init__(self, seed, queries, documents, depth, share, *, ties=False, gaps=False):
        rng = np.random.default_rng(seed)
        self.old, self.new = rng.standard_normal((2, queries, documents)).astype(np.float32)
        if ties:
            self.old, self.new = np.round(self.old), np.round(self.new)
        self.new = self.new * 7 + 3
        self.migrated = rng.random(documents) < share
        self.backgrounds = tuple(
            Background.of(rng.standard_normal((queries, 30)).astype(np.float32) * sd)
            for sd in (1, 7)
        )
        names = rng.permutation(documents * 10)[:documents] - documents
        names[names < 0] -= 1  # -1 is no name
        self.names = names
        places = self.nearest(self.old, np.ones(documents, bool), depth)
        self.gone = (rng.random(places.shape) < 0.2) & gaps
        self.old_list = OldList(
            np.where(self.gone, ABSENT, names[places]),
            np.take_along_axis(self.old, places, 1),
            self.migrated[places],
            np.take_along_axis(self.new, places, 1),
        )
        places = self.nearest(self.new, self.migrated, depth)
        self.new_list = NewList(
            np.where(places < 0, ABSENT, names[places]),
            np.where(places < 0, -np.inf, np.take_along_axis(self.new, places, 1)),
        )

    @staticmethod
    def nearest(scores, among, depth):
        order = np.argsort(np.where(among, -scores, np.inf), axis=1, kind="stable")
        order[np.arange(scores.shape[1]) >= among.sum() + 0 * order] = -1
        return order[:, :depth]

    def fused(self, rule, k=ALL):
        return by(rule, self.old_list, self.new_list, self.backgrounds, k)


worlds = st.builds(
    World,
    seed=st.integers(0, 2**32),
    queries=st.integers(1, 4),
    documents=st.integers(1, 40),
    depth=st.integers(1, 20),
    share=st.sampled_from([0, 0.1, 0.5, 0.9, 1]),
    ties=st.booleans(),
    gaps=st.booleans(),
)
rules = st.sampled_from(RULES)


def lists(keys):
    return [[key for key in row if key != ABSENT] for row in keys.tolist()]


@given(worlds, rules, st.integers(1, 25))
@settings(deadline=None)
def test_a_document_appears_once_and_no_other_comes_out_than_came_in(world, rule, k):
    fused = world.fused(rule, k)
    came = zip(lists(world.old_list.keys), lists(world.new_list.keys), strict=True)
    for found, (old, new) in zip(lists(fused.keys), came, strict=True):
        assert len(set(found)) == len(found)
        assert set(found) <= {*old, *(() if rule == "slots" else new)}
        assert len(found) == min(k, len({*old, *(() if rule == "slots" else new)}))


@given(worlds, rules)
@settings(deadline=None)
def test_what_is_absent_comes_last_and_scores_fall(world, rule):
    fused = world.fused(rule)
    for query in range(len(fused.keys)):
        there = fused.keys[query] != ABSENT
        assert list(there) == sorted(there, reverse=True)
        assert (fused.scores[query][~there] == -np.inf).all()
        assert not fused.migrated[query][~there].any()
        found = fused.scores[query][there]
        assert np.isfinite(found).all()
        assert (np.diff(found) <= 0).all()


@given(worlds, rules, st.integers(1, 25))
@settings(deadline=None)
def test_k_only_cuts(world, rule, k):
    whole, cut = world.fused(rule), world.fused(rule, k)
    assert all((a[:, :k] == b).all() for a, b in zip(whole, cut, strict=True))


@given(worlds, rules)
@settings(deadline=None)
def test_a_document_is_ranked_by_the_new_model_just_where_it_is_migrated(world, rule):
    fused = world.fused(rule)
    migrated = set(world.names[world.migrated].tolist())
    for found, by_new in zip(fused.keys.tolist(), fused.migrated.tolist(), strict=True):
        assert by_new == [key in migrated for key in found]


@given(worlds, rules)
@settings(deadline=None)
def test_with_nothing_migrated_the_old_list_comes_back(world, rule):
    world.old_list = replace(world.old_list, migrated=np.zeros_like(world.old_list.migrated))
    world.new_list = replace(world.new_list, keys=np.full_like(world.new_list.keys, ABSENT))
    fused = world.fused(rule)
    assert lists(fused.keys) == lists(world.old_list.keys)
    assert not fused.migrated.any()
    if rule == "slots":
        there = world.old_list.keys != ABSENT
        assert fused.scores[fused.keys != ABSENT].tolist() == world.old_list.scores[there].tolist()


@given(worlds)
@settings(deadline=None)
def test_slots_keep_the_places_of_what_is_not_migrated_and_the_set_and_scores_of_the_list(world):
    fused = slots(world.old_list, ALL)
    migrated = set(world.names[world.migrated].tolist())
    scores = [
        row[keys != ABSENT].tolist()
        for row, keys in zip(world.old_list.scores, world.old_list.keys, strict=True)
    ]
    rows = zip(lists(fused.keys), lists(world.old_list.keys), fused.scores, scores, strict=True)
    for found, old, found_scores, old_scores in rows:
        assert sorted(found) == sorted(old)  # so recall at the depth of the list never changes
        assert [a == b for a, b in zip(found, old, strict=True) if b not in migrated] == [
            True for b in old if b not in migrated
        ]
        assert found_scores[: len(found)].tolist() == old_scores


@given(worlds)
@settings(deadline=None)
def test_slots_order_migrated_documents_by_new_score_and_equal_ones_as_the_old_list(world):
    fused = slots(world.old_list, ALL)
    place = {int(name): at for at, name in enumerate(world.names)}
    for query, (found, old) in enumerate(
        zip(lists(fused.keys), lists(world.old_list.keys), strict=True)
    ):
        moved = [key for key in found if world.migrated[place[key]]]
        in_old = [key for key in old if world.migrated[place[key]]]
        assert moved == sorted(in_old, key=lambda key: -world.new[query, place[key]])


@given(worlds)
@settings(deadline=None)
def test_with_everything_migrated_slots_are_the_new_models_order_of_the_old_candidates(world):
    world.old_list = replace(world.old_list, migrated=np.ones_like(world.old_list.migrated))
    fused = slots(world.old_list, ALL)
    assert fused.migrated[fused.keys != ABSENT].all()
    place = {int(name): at for at, name in enumerate(world.names)}
    rows = zip(lists(fused.keys), lists(world.old_list.keys), world.new, strict=True)
    for found, old, new in rows:
        assert found == sorted(old, key=lambda key: -new[place[key]])


@given(worlds, st.sampled_from(["zscore", "rrf"]))
@settings(deadline=None)
def test_with_everything_migrated_both_searches_give_the_new_models_own_list(world, rule):
    every = World.nearest(world.new, np.ones(len(world.names), bool), len(world.names))
    depth = world.new_list.keys.shape[1]
    keys, scores = world.names[every], np.take_along_axis(world.new, every, 1)
    world.new_list = NewList(keys[:, :depth], scores[:, :depth])
    world.old_list = replace(world.old_list, migrated=np.ones_like(world.old_list.migrated))
    assert (world.fused(rule, depth).keys == keys[:, :depth]).all()


def one(keys, scores, migrated=(), new_scores=()):
    """An old list of one query; migrated documents are named with their new scores."""
    found = dict(zip(migrated, new_scores, strict=True))
    return OldList(
        np.array([keys]),
        np.array([scores], np.float32),
        np.array([[key in found for key in keys]]),
        np.array([[found.get(key, np.nan) for key in keys]], np.float32),
    )


def new(keys, scores):
    return NewList(np.array([keys], np.int64), np.array([scores], np.float32))


SCALES = (
    Background.of(np.array([[0.0, 0.2]], np.float32)),  # mean .1, sd .1
    Background.of(np.array([[4.0, 8.0]], np.float32)),  # mean 6, sd 2
)


def test_an_example_of_slots():
    old = one([1, 2, 3, 4, 5], [0.9, 0.8, 0.7, 0.6, 0.5], [2, 3, 5], [0.1, 0.3, 0.2])
    fused = slots(old, 4)
    assert fused.keys.tolist() == [[1, 3, 5, 4]]
    assert fused.scores.tolist() == [np.float32([0.9, 0.8, 0.7, 0.6]).tolist()]
    assert fused.migrated.tolist() == [[False, True, True, False]]


def test_an_example_of_standard_scores():
    """Document 2 is found only by the old side and is scored with its new vector; 9 only by the new side."""
    old = one([1, 2, 3], [0.6, 0.5, 0.4], [2], [6.0])  # 5, (4 ->) 0 and 3 standard deviations
    fused = zscore(old, new([9, ABSENT], [14.0, 99.0]), SCALES, 10)  # 4
    assert lists(fused.keys) == [[1, 9, 3, 2]]
    assert fused.scores[0, :4] == pytest.approx([5, 4, 3, 0], abs=1e-5)


def test_an_example_of_reciprocal_ranks():
    """Document 2 was found only by the old side: its new score makes it the second of the new side."""
    old = one([1, 2, 3], [0.6, 0.5, 0.4], [2], [6.0])
    fused = rrf(old, new([9], [14.0]), 10)
    assert lists(fused.keys) == [[9, 1, 2, 3]]
    assert fused.scores[0, :4] == pytest.approx([1 / 61, 1 / 61, 1 / 62, 1 / 63])


@pytest.mark.parametrize("rule", RULES)
def test_a_document_that_the_old_list_names_twice_counts_where_it_is_better(rule):
    old = one([1, 2, 1], [0.9, 0.8, 0.7])
    assert lists(by(rule, old, new([ABSENT], [0.0]), SCALES, 5).keys) == [[1, 2]]


def test_what_does_not_count_takes_no_rank():
    """One that the old release does not hold, and the second mention of one that both sides found."""
    old = one([1, 9], [0.6, 0.5], [1, 9], [6.0, 14.0])
    fused = rrf(old, new([ABSENT, 9], [99.0, 14.0]), 10)
    assert lists(fused.keys) == [[9, 1]]
    assert fused.scores[0, :2] == pytest.approx([1 / 61, 1 / 62])


@pytest.mark.parametrize("rule", ["zscore", "rrf"])
def test_a_document_that_the_old_release_does_not_hold_does_not_come_out(rule):
    old, found = one([1], [0.6]), new([ABSENT], [99.0])
    assert lists(by(rule, old, found, SCALES, 5).keys) == [[1]]


def test_a_document_that_both_sides_found_counts_in_its_newest_space():
    old = one(
        [1, 2], [0.6, 0.5]
    )  # 5 and 4 standard deviations; 1 was migrated since they were read
    fused = zscore(old, new([1], [8.0]), SCALES, 5)  # 1
    assert lists(fused.keys) == [[2, 1]]
    assert fused.migrated[0, :2].tolist() == [False, True]


@pytest.mark.parametrize("at", [0, 1])
def test_a_query_that_scores_all_of_the_background_alike_keeps_the_old_list(at):
    """Alike up to rounding."""
    scores = np.full((1, 300), 0.1, np.float32)
    scores[0, ::7] = np.nextafter(scores[0, 0], 1)
    alike = Background.of(scores)
    assert alike.sd.tolist() == [0]
    backgrounds = (alike, SCALES[1]) if at == 0 else (SCALES[0], alike)
    old = one([1, 2, 3], [0.6, 0.5, 0.4], [2], [99.0])
    fused = zscore(old, new([9], [99.0]), backgrounds, 5)
    assert lists(fused.keys) == [[1, 2, 3]]
    assert not fused.migrated.any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(wrong):
    with pytest.raises(IntegrityError, match="1 of 2 old scores"):
        one([1, 2], [wrong, 0.5])
    with pytest.raises(IntegrityError, match="1 of 1 new scores"):
        one([1, 2], [0.6, 0.5], [2], [wrong])
    with pytest.raises(IntegrityError, match="1 of 1 scores of the new side"):
        new([9, ABSENT], [wrong, 0.0])
    with pytest.raises(IntegrityError, match="1 of 2 background scores"):
        Background.of(np.array([[wrong, 1.0]], np.float32))


def test_scores_of_what_is_absent_or_not_migrated_are_not_read():
    old = OldList(
        np.array([[7, ABSENT, 8]]),
        np.array([[0.9, np.nan, 0.8]], np.float32),
        np.array([[False, True, False]]),
        np.full((1, 3), np.nan, np.float32),
    )
    found = NewList(np.array([[ABSENT]]), np.array([[-np.inf]], np.float32))
    for rule in RULES:
        assert lists(by(rule, old, found, SCALES, 5).keys) == [[7, 8]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_query_and_no_result_are_answered(rule, shape):
    keys, scores = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    old, found = OldList(keys, scores, keys > 0, scores), NewList(keys, scores)
    scale = Background(np.zeros(shape[0]), np.ones(shape[0]))
    assert by(rule, old, found, (scale, scale), 3).keys.shape == (shape[0], 3 if shape[1] else 0)
