"""Shadows of real releases: looks over queries that arrive, the cut-over, the holdover and its guardrail."""

from __future__ import annotations

import contextlib
import json
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import documents
from inline import Inline, Silent
from pairs import DOCUMENTS, Pair, built, lent

from reembed import faults
from reembed.catalog.releases import Catalog
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import Config
from reembed.errors import (
    Conflict,
    IntegrityError,
    Interrupted,
    NoCapacity,
    ProviderBusy,
    RunFailed,
    SourceError,
    SourceUnreachable,
    StorageFailed,
    UsageError,
)
from reembed.evaluation import comparisons, gate, looks, shadows
from reembed.evaluation.metrics import named
from reembed.evaluation.queries import EvalSet, load_eval_set
from reembed.events import Ignored, LookFailed
from reembed.lifecycle import candidates
from reembed.lifecycle.promote import promote, rollback
from reembed.serving.live import OpenRelease
from reembed.store.paths import content_path
from reembed.store.records import encode
from reembed.strategies import dual_index
from reembed.strategies.dual_index import Asked, Shadowed, shadow

ROWS = documents(DOCUMENTS, 0)
ONCE = Asked()


@pytest.fixture(scope="module")
def built_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Live of 256 dimensions is the better one; 16 is beside it."""
    return built(tmp_path_factory.mktemp("dual"), judged=False)


@pytest.fixture
def pair(built_pair: Pair, tmp_path: Path) -> Iterator[Pair]:
    yield from lent(built_pair, tmp_path)


@pytest.fixture
def better(pair: Pair) -> Pair:
    """The pair with 16 dimensions live, and 256 beside it."""
    promote(pair.catalog, pair.candidate.id, force_reason="a test")
    return pair


class Arriving:
    """A file of judged queries that grows."""

    def __init__(self, pair: Pair, file: Path) -> None:
        self.pair, self.file = pair, file

    def config(self, dim: int = 16, gate: dict[str, Any] | None = None, **shadow: Any) -> Config:
        sections = self.pair.sections(dim, **{"queries": str(self.file), **(gate or {})})
        return Config.model_validate({**sections, "strategy": "dual_index", "shadow": shadow})

    def come(self, first: int, last: int, **more: Any) -> None:
        """Titles of these documents, each relevant to its own title alone."""
        with self.file.open("a") as file:
            for row in ROWS[first:last]:
                query = {"query_id": f"q-{row['doc_id']}", "text": row["title"]}
                file.write(json.dumps({**query, "doc_ids": [row["doc_id"]], **more}) + "\n")

    def shadow(self, asked: Asked = ONCE, dim: int = 16, **settings: Any) -> Shadowed:
        config = self.config(dim, **settings)
        return shadow(self.pair.catalog, config, asked, None, Silent(), executor=Inline())


@pytest.fixture
def arriving(pair: Pair, tmp_path: Path) -> Arriving:
    return Arriving(pair, tmp_path / "arriving.jsonl")


def counted(pair: Pair) -> list[str]:
    """What every look counted, in order."""
    plan = shadows.newest(pair.catalog)
    assert plan is not None
    made = shadows.looks(pair.catalog, plan)
    return [name for record in made for name in looks._values(pair.catalog, plan, record).counts_as]


def test_each_look_judges_only_the_queries_that_no_look_before_it_did(arriving, pair):
    arriving.come(0, 5)
    first = arriving.shadow()
    assert (first.shadow.look.number, first.shadow.look.judged) == (1, 5)
    assert arriving.shadow().shadow.look == first.shadow.look
    arriving.come(5, 8)
    second = arriving.shadow().shadow.look
    assert (second.number, second.judged, second.found.queries) == (2, 3, 8)
    assert len(set(counted(pair))) == len(counted(pair)) == 8


def test_a_worse_candidate_fails_and_stays_failed(arriving, pair):
    arriving.come(0, 100)
    worse = arriving.shadow()
    assert worse.verdict == worse.shadow.look.found.verdict == "fail"
    assert comparisons.newest(pair.catalog, pair.live, pair.candidate).verdict == "fail"
    arriving.come(100, 110)
    again = arriving.shadow(Asked(promote_if_pass=True))
    assert again == worse
    assert pair.catalog.require_live().release == pair.live
    assert again.comparison.number == 1


def test_a_candidate_that_passes_may_be_promoted_by_hand(arriving, better):
    arriving.come(0, 60)
    found = arriving.shadow(dim=256)
    assert (found.verdict, found.shadow.stage, found.is_settled) == ("pass", "judging", True)
    step = promote(better.catalog, found.new)
    assert step.grounds.comparison.shadow == found.shadow.look.found
    assert step.grounds.shadow is None
    kept = arriving.shadow(dim=256)
    assert (kept.verdict, kept.shadow.stage, kept.is_settled) == ("pass", "holdover", False)
    assert kept.shadow.cut_over.at == step.at


def test_it_promotes_by_itself_if_that_is_asked_for_and_the_log_has_the_evidence(arriving, better):
    arriving.come(0, 60)
    found = arriving.shadow(dim=256, promote_if_pass=True)
    step = better.catalog.require_live()
    assert (found.live, found.shadow.stage) == (step.release.id, "holdover")
    look = step.grounds.shadow
    assert look == step.grounds.comparison.shadow == found.shadow.look.found
    assert (look.shadow, look.look, look.queries, look.verdict) == (1, 1, 60, "pass")
    assert all(m.lower >= -m.margin for m in look.metrics.values())


def test_during_the_holdover_the_old_release_is_caught_up_too_and_after_it_nothing(
    arriving, better, monkeypatch
):
    arriving.come(0, 60)
    arriving.shadow(dim=256, promote_if_pass=True)
    lance.dataset(better.source).delete("doc_id = 'd00007'")
    found = arriving.shadow(dim=256)
    releases = {r.id: r for r in better.catalog.releases()}
    newest = lance.dataset(better.source).version
    assert {releases[r].source.version for r in (found.old, found.new)} == {newest}
    assert found.live == found.new
    monkeypatch.setattr("reembed.lifecycle.holdover.now", lambda: "2999-01-01T00:00:00+00:00")
    over = arriving.shadow(dim=256)
    assert (over.shadow.stage, over.verdict, over.is_settled) == ("over", "pass", True)
    lance.dataset(better.source).delete("doc_id = 'd00008'")
    assert arriving.shadow(dim=256) == over


def test_harm_after_the_cut_over_rolls_back_with_its_evidence(arriving, better):
    arriving.come(0, 60)
    arriving.shadow(dim=256, promote_if_pass=True)
    live, old = better.catalog.require_live().release, better.catalog.log()[0]
    turned(arriving, better, range(100, 160))
    found = arriving.shadow(dim=256, promote_if_pass=True)
    step = better.catalog.require_live()
    assert (step.action, step.release.id, found.live) == ("rollback", found.old, found.old)
    assert old.release.id != found.old
    assert "guardrail of shadow 1" in step.grounds.reason
    look = step.grounds.shadow
    assert (look.guards, look.verdict, look.queries) == (True, "fail", 60)
    assert any(m.upper < -m.margin for m in look.metrics.values())
    assert (found.verdict, found.shadow.stage, found.is_settled) == ("fail", "rolled back", True)
    turned(arriving, better, range(200, 210))
    assert arriving.shadow(dim=256, promote_if_pass=True) == found
    assert candidates.newest_of(better.catalog, live).id == found.new


def turned(arriving: Arriving, pair: Pair, rows: range) -> None:
    """Queries whose relevant document the better model does not find, and the other one does."""
    texts = [ROWS[row]["title"] for row in rows]
    worse, best = (
        [
            [hit.doc_id for hit in hits]
            for hits in OpenRelease.open(pair.catalog.storage, release).search(texts, 10)
        ]
        for release in (pair.candidate, pair.live)
    )
    with arriving.file.open("a") as file:
        for row, text, found, others in zip(rows, texts, worse, best, strict=True):
            doc_ids = [next(doc for doc in found if doc not in others)]
            query = {"query_id": f"t-{row}", "text": text, "doc_ids": doc_ids}
            file.write(json.dumps(query) + "\n")


# --- what counts, and how often ---


def test_a_logged_text_counts_once_however_often_it_is_asked_and_clicked(arriving, pair):
    def asked(row: int, **more: Any) -> None:
        with arriving.file.open("a") as file:
            clicks = [ROWS[row]["doc_id"]]
            file.write(json.dumps({"text": ROWS[row]["title"], "clicks": clicks, **more}) + "\n")

    for row in range(5):
        asked(row, query_id=f"first-{row}")
    assert arriving.shadow().shadow.look.judged == 5
    asked(0, query_id="again-0", timestamp="2026-11-27T12:00:00Z")
    assert arriving.shadow().shadow.look.number == 1
    asked(7)
    assert arriving.shadow().shadow.look.found.queries == 6
    lines = arriving.file.read_text().splitlines()
    arriving.file.write_text(
        "\n".join(lines[1:]) + "\n"
    )  # the log is rotated: the first row is gone
    assert arriving.shadow().shadow.look.found.queries == 6


def test_a_group_counts_once_by_the_queries_that_the_first_look_saw(arriving, pair):
    gate = {"group": "user"}
    arriving.come(0, 4, user="a")
    arriving.come(4, 6, user="b")
    first = arriving.shadow(gate=gate).shadow.look.found
    assert (first.queries, first.independent) == (6, 2)
    arriving.come(6, 9, user="a")
    assert arriving.shadow(gate=gate).shadow.look.found == first
    arriving.come(9, 10, user="c")
    arriving.come(10, 11)
    later = arriving.shadow(gate=gate).shadow.look.found
    assert (later.queries, later.independent) == (8, 4)


def test_the_number_of_looks_does_not_change_what_the_values_show(arriving, pair):
    pair.build(16, fresh=True, margin=0.05)
    gate = {"margin": 0.05}
    for first in range(0, 40, 10):
        arriving.come(first, first + 10)
        found = arriving.shadow(gate=gate).shadow.look.found
        if found.verdict == "fail":
            break
    others = arriving.shadow(Asked(new="all at once"), gate=gate).shadow
    assert others.plan.earlier == (1,)
    assert replace(others.look.found, shadow=1, look=found.look, earlier=()) == found


def test_a_planned_number_of_queries_is_a_group_sequential_design_that_ends(arriving, pair):
    pair.build(256, fresh=True)
    arriving.come(0, 10)
    found = arriving.shadow(dim=256, planned_queries=40)
    bounds = found.shadow.look.found.metrics["recall@10"]
    assert (bounds.lower, bounds.upper, bounds.expected, found.is_settled) == (-1.0, 1.0, 40, False)
    arriving.come(10, 60)
    found = arriving.shadow(dim=256, planned_queries=40)
    assert (found.verdict, found.is_settled) == ("inconclusive", True)
    assert found.shadow.is_exhausted
    assert found.shadow.look.found.metrics["recall@10"].lower > -0.1
    arriving.come(60, 70)
    assert arriving.shadow(dim=256, planned_queries=40) == found


def test_the_margin_is_fixed_in_absolute_terms_by_what_live_answers_at_the_start(arriving, pair):
    arriving.come(0, 20)
    plan = arriving.shadow().shadow.plan
    mean = np.mean([named(k).of(*_answers(arriving, pair)) for k in ("ndcg@10",)])
    assert plan.margins["ndcg@10"] == pytest.approx(max(0.01, 0.02 * mean))
    arriving.come(20, 40)
    assert arriving.shadow().shadow.plan.margins == plan.margins


def _answers(arriving: Arriving, pair: Pair) -> tuple[EvalSet, list[list[str]]]:
    queries = load_eval_set(str(arriving.file), "test", {})
    hits = OpenRelease.open(pair.catalog.storage, pair.live).search(queries.texts, 100)
    return queries, [[str(h.doc_id) for h in found] for found in hits]


# --- what is fixed when it starts ---


@pytest.mark.parametrize(
    "settings",
    [
        {"gate": {"margin": 0.2}},
        {"gate": {"metrics": ["mrr@10"]}},
        {"planned_queries": 500},
        {"guardrail_margin": 0.5},
    ],
)
def test_other_settings_are_refused_and_another_shadow_is_recorded(arriving, pair, settings):
    arriving.come(0, 3)
    arriving.shadow()
    with pytest.raises(UsageError, match="shadow 1 was started with other settings") as refused:
        arriving.shadow(**settings)
    name = next(iter(settings.get("gate", settings)))
    assert f".{name} was" in refused.value.why
    assert "--new --reason" in refused.value.fix
    plan = arriving.shadow(Asked(new="because"), **settings).shadow.plan
    assert (plan.number, plan.replaces, plan.earlier, plan.reason) == (2, 1, (1,), "because")


def test_a_margin_that_the_run_did_not_plan_is_told_to_have_no_effect(arriving, pair, quiet):
    arriving.come(0, 3)
    config = arriving.config(gate={"margin": 0.3})
    found = shadow(pair.catalog, config, ONCE, None, quiet, executor=Inline())
    (ignored,) = quiet.of(Ignored)
    assert [(s.name, s.used, s.now) for s in ignored.settings] == [("gate.margin", None, 0.3)]
    assert max(found.shadow.plan.margins.values()) <= 0.02


def test_what_decides_nothing_may_change(arriving, pair):
    arriving.come(0, 3)
    arriving.shadow()
    assert arriving.shadow(holdover_s=5, promote_if_pass=True).shadow.plan.number == 1


def test_it_needs_its_strategy_queries_and_a_candidate(arriving, pair):
    arriving.come(0, 3)
    config = arriving.config().model_copy(update={"strategy": "full_rebuild"})
    with pytest.raises(UsageError, match="strategy is full_rebuild"):
        shadow(pair.catalog, config, ONCE, None, Silent(), executor=Inline())
    with pytest.raises(UsageError, match="planned without judged queries"):
        arriving.shadow(gate={"queries": None})
    with pytest.raises(UsageError, match="already live"):
        arriving.shadow(dim=256)


def test_a_human_roll_back_is_not_undone(arriving, better):
    arriving.come(0, 60)
    arriving.shadow(dim=256, promote_if_pass=True)
    rollback(better.catalog, reason="users complain")
    found = arriving.shadow(dim=256, promote_if_pass=True)
    assert (found.shadow.stage, found.verdict) == ("rolled back", "fail")
    assert better.catalog.require_live().action == "rollback"


def test_what_a_person_promotes_again_after_the_guardrail_is_not_rolled_back_again(
    arriving, better
):
    arriving.come(0, 60)
    found = arriving.shadow(dim=256, promote_if_pass=True)
    turned(arriving, better, range(100, 160))
    assert arriving.shadow(dim=256).shadow.stage == "rolled back"
    promote(better.catalog, found.new, force_reason="the queries were wrong")
    again = arriving.shadow(dim=256)
    assert (again.shadow.stage, again.live) == ("holdover", found.new)


def test_without_a_guardrail_nothing_is_judged_after_the_cut_over(arriving, better):
    arriving.come(0, 60)
    arriving.shadow(dim=256, promote_if_pass=True, guardrail_margin=None)
    arriving.come(60, 70)
    found = arriving.shadow(dim=256, guardrail_margin=None)
    assert (found.shadow.stage, found.shadow.look.number) == ("holdover", 1)


def test_a_release_that_went_live_meanwhile_is_not_replaced_by_what_was_judged_against_another(
    arriving, better, monkeypatch
):
    arriving.come(0, 60)
    third = better.build(32)
    honest = dual_index.promote_up_to_date

    def late(catalog: Catalog, *args: Any, **more: Any) -> Any:
        promote(catalog, third.id, force_reason="another process")
        return honest(catalog, *args, **more)

    monkeypatch.setattr(dual_index, "promote_up_to_date", late)
    with pytest.raises(Conflict, match=f"but {third.id} is live now"):
        arriving.shadow(dim=256, promote_if_pass=True)


# --- the command ---


@pytest.fixture
def said(arriving: Arriving, tmp_path: Path) -> Callable[..., str]:
    """said(*arguments, code=0, dim=16) -> what a verb prints."""

    def say(*arguments: str, code: int = 0, dim: int = 256, **settings: Any) -> str:
        file = tmp_path / f"{dim}.yaml"
        file.write_text(yaml.safe_dump(arriving.config(dim, **settings).model_dump(mode="json")))
        result = CliRunner().invoke(reembed_cli, [*arguments, "-c", str(file)])
        assert result.exit_code == code, result.output
        return result.stdout

    return say


def test_the_command_from_the_first_look_to_the_end_of_the_holdover(
    arriving, better, said, monkeypatch
):
    arriving.come(0, 4)
    assert "Next: reembed shadow -c" in said("run")
    shown = said("shadow", code=6)
    assert "verdict: inconclusive" in shown
    assert "would decide if this change is real" in shown
    assert "Next: reembed shadow -c" in shown
    (line,) = (s for s in said("status").splitlines() if s.startswith("  shadow "))
    assert "look 1, 4 queries: inconclusive; the candidate is not live" in line
    assert "Next: reembed shadow -c" in said("status")
    arriving.come(4, 60)
    assert "Next: reembed promote -c" in said("shadow")
    shown = said("shadow", "--promote-if-pass")
    assert "allowed loss, fixed at the start: nDCG@10 0.0" in shown
    assert "metrics by shadow 1, look 2: always-valid sequence, any number of looks" in shown
    assert "the candidate is live; the release before is kept up to date until 20" in shown
    history = said("history")
    assert "by shadow 1 itself, without a command: nDCG@10 change +" in history
    assert "by look 2 of shadow 1" in history
    assert f"{better.candidate.id}  kept up to date by shadow 1 until 20" in said("gc")
    waited: list[float] = []

    def later(seconds: float) -> None:
        waited.append(seconds)
        monkeypatch.setattr("reembed.lifecycle.holdover.now", lambda: "2999-01-01T00:00:00+00:00")

    monkeypatch.setattr(dual_index.time, "sleep", later)
    shown = said("shadow", "--every", "1h")
    assert waited == [3600]
    assert "the holdover ended at 20" in shown
    assert "  shadow " not in said("status")
    assert "kept up to date" not in said("gc")


def looks_that(monkeypatch: Any, *ends: Callable[[], None]) -> list[float]:
    """Let each wait before another look do one of these, in turn; return the seconds waited."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        ends[len(waited)]()
        waited.append(seconds)

    monkeypatch.setattr(dual_index.time, "sleep", sleep)
    return waited


@pytest.mark.parametrize(
    "error",
    [
        Conflict("another process catches up"),
        RunFailed("a catch-up stopped"),
        NoCapacity("no node"),
        ProviderBusy("no room"),
        SourceUnreachable("the source does not answer"),
        OSError("the store does not answer"),
    ],
)
def test_a_look_that_fails_for_what_passes_is_told_and_the_next_one_tries_again(
    arriving, better, monkeypatch, error
):
    catch_up, told = dual_index.catch_up, []
    waited = looks_that(
        monkeypatch,
        lambda: monkeypatch.setattr(dual_index, "catch_up", failing(error)),
        lambda: monkeypatch.setattr(dual_index, "catch_up", catch_up),
        lambda: arriving.come(4, 60),
    )
    arriving.come(0, 4)
    args = better.catalog, arriving.config(256), ONCE, 60.0
    found = shadow(*args, told.append, executor=Inline())
    assert (found.verdict, waited) == ("pass", [60.0] * 3)
    (failed,) = (event for event in told if isinstance(event, LookFailed))
    assert str(error) in f"{failed.what} {failed.why}"
    assert failed.seconds == 60


@pytest.mark.parametrize(
    "error",
    [
        UsageError("wrong"),
        SourceError("gone"),
        FileNotFoundError("values"),
        IntegrityError("damaged"),
        Interrupted(15),
    ],
)
def test_a_look_that_fails_for_what_stays_ends_the_shadow(arriving, better, monkeypatch, error):
    looks_that(monkeypatch, lambda: monkeypatch.setattr(dual_index, "catch_up", failing(error)))
    arriving.come(0, 4)
    args = better.catalog, arriving.config(256), ONCE, 60.0
    with pytest.raises((type(error), StorageFailed)):
        shadow(*args, Silent(), executor=Inline())


def test_the_first_look_that_fails_ends_it_whatever_the_reason(arriving, better, monkeypatch):
    monkeypatch.setattr(dual_index, "catch_up", failing(Conflict("another process catches up")))
    arriving.come(0, 4)
    args = better.catalog, arriving.config(256), ONCE, 60.0
    with pytest.raises(Conflict):
        shadow(*args, Silent(), executor=Inline())


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_the_command_exits_3_where_the_candidate_fails_and_needs_a_reason_to_begin_again(
    arriving, pair, said
):
    arriving.come(0, 100)
    shown = said("shadow", code=3, dim=16)
    assert "verdict: fail   report: " in shown
    assert "--force --reason" in shown
    assert "compared: fail" in said("status", dim=16)
    said("shadow", "--new", code=2, dim=16)
    said("promote", code=3, dim=16)


def test_after_a_pass_the_next_command_is_promote_in_the_status_too(arriving, pair, said):
    release = pair.build(256, fresh=True, margin=0.3)  # the same model: it loses nothing
    arriving.come(0, 30)
    shown = said("shadow", gate={"margin": 0.3})
    for words in (shown, said("status", gate={"margin": 0.3})):
        (line,) = (x for x in words.splitlines() if x.startswith("Next: reembed promote -c"))
        assert line.endswith(release.id)


def test_a_shadow_with_undecided_rules_about_all_else_compares_again(
    arriving, better, said, monkeypatch
):
    monkeypatch.setattr(gate, "MIN_QUERIES", 65)  # of which ann_recall needs as many
    arriving.come(0, 60)
    shown = said("shadow", "--promote-if-pass", code=6)
    assert "Next: reembed shadow -c" in shown
    arriving.come(60, 70)
    found = json.loads(said("shadow", "--promote-if-pass", "--json"))
    assert (found["stage"], found["verdict"], found["look"]["number"]) == ("holdover", "pass", 1)


# --- killed, and at the same time ---

POINTS = (
    "shadow.after_plan",
    "shadow.after_queries",
    "shadow.after_look",
    "compare.after_queries",
    "promote.before_swap",
    "shadow.before_cut_over",
)


@pytest.mark.parametrize("points", [POINTS, ("promote.after_swap",)])
def test_a_shadow_that_is_killed_at_each_of_its_points_counts_no_query_twice(
    arriving, better, monkeypatch, points
):
    arriving.come(0, 60)
    met = killed_at(monkeypatch, points, lambda: arriving.shadow(dim=256, promote_if_pass=True))
    assert met == [*points]
    assert as_it_should_be(better)
    assert [s.action for s in better.catalog.log()][-1] == "promote"
    assert len(better.catalog.log()) == 3


def killed_at(monkeypatch: Any, points: tuple[str, ...], act: Any) -> list[str]:
    """Die at each point once, and do it again each time."""
    met: list[str] = []

    def die(name: str) -> None:
        if name in points and name not in met:
            met.append(name)
            raise Killed(name)

    monkeypatch.setattr(faults, "point", die)
    for _ in points:
        with contextlib.suppress(Killed):
            act()
    act()
    return met


class Killed(BaseException):
    pass


def as_it_should_be(pair: Pair, queries: int = 60) -> bool:
    """Every query was counted, and once; the values are those of the looks, and of one without any trouble."""
    plan = shadows.newest(pair.catalog)
    assert plan is not None
    made = shadows.looks(pair.catalog, plan)
    names = counted(pair)
    files = [p for p, _ in pair.catalog.storage.objects(f"{shadows.looks_folder(plan)}/")]
    named = {shadows.values_path(plan, record) for record in made}
    return (
        len(names) == len(set(names)) == made[-1].found.queries == queries
        and sum(record.judged for record in made) == queries
        and named <= set(files)
    )


def knows_no_query_again(patch: Any) -> None:
    patch(looks, "counts_as", lambda queries: [uuid.uuid4().hex for _ in queries.texts])


def keeps_the_look_before_its_values(patch: Any) -> None:
    def keep(catalog: Catalog, plan: Any, record: Any, values: bytes) -> bool:
        folder = shadows.looks_folder(plan)
        made = catalog.storage.create(f"{folder}/{record.number:08d}.json", encode(record))
        faults.point("shadow.after_queries")
        catalog.storage.write_bytes(
            content_path(folder, record.per_query_sha256, "parquet"), values
        )
        faults.point("shadow.after_look")
        return made

    patch(shadows, "keep_look", keep)


@pytest.mark.parametrize("bug", [None, knows_no_query_again, keeps_the_look_before_its_values])
def test_a_look_that_is_killed_did_not_happen_or_counts_once(arriving, pair, monkeypatch, bug):
    arriving.come(0, 4)
    if bug:
        bug(monkeypatch.setattr)
    points = ("shadow.after_queries", "shadow.after_look")
    try:
        killed_at(monkeypatch, points, arriving.shadow)
        right = as_it_should_be(pair, 4)
    except StorageFailed:  # the values are not there
        right = False
    assert right == (bug is None)


def overwrites_the_look_of_another(patch: Any) -> None:
    def keep(catalog: Catalog, plan: Any, record: Any, values: bytes) -> bool:
        folder = shadows.looks_folder(plan)
        catalog.storage.write_bytes(
            content_path(folder, record.per_query_sha256, "parquet"), values
        )
        catalog.storage.write(f"{folder}/{record.number:08d}.json", encode(record))
        return True

    patch(shadows, "keep_look", keep)


@pytest.mark.parametrize("bug", [None, knows_no_query_again, overwrites_the_look_of_another])
def test_of_two_shadows_at_once_one_makes_the_look_and_the_other_judges_what_is_left(
    arriving, pair, monkeypatch, bug
):
    arriving.come(0, 20)
    honest, raced = looks._ask, list[Any]()

    def slow(*args: Any) -> Any:
        found = honest(*args)
        if not raced:
            raced.append(None)
            arriving.come(20, 25)
            raced[0] = arriving.shadow().shadow.look
        return found

    if bug:
        bug(monkeypatch.setattr)
    monkeypatch.setattr(looks, "_ask", slow)
    arriving.shadow()
    monkeypatch.undo()
    arriving.shadow()
    plan = shadows.newest(pair.catalog)
    kept = raced[0] == shadows.looks(pair.catalog, plan)[0]
    assert (kept and as_it_should_be(pair, 25)) == (bug is None)


# --- whole migrations, with looks at any time and kills at any of its points ---


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dim", [16, 256])
def test_a_better_candidate_goes_live_a_worse_one_never_and_harm_rolls_back(
    arriving, pair, monkeypatch, seed, dim
):
    rng = random.Random(seed)
    if dim == 256:
        promote(pair.catalog, pair.candidate.id, force_reason="a test")
    before = pair.catalog.require_live().release
    arriving.come(0, 3)
    monkeypatch.setattr(faults, "point", dying(rng, 0.15))
    for first in range(3, 130, 9):
        found = looked(arriving, dim)
        if found.is_settled or found.shadow.stage == "holdover":
            break
        arriving.come(first, first + rng.randint(1, 9))
        if rng.random() < 0.3:
            lance.dataset(pair.source).delete(f"doc_id = 'd{230 + first // 20:05d}'")
    steps = [s.action for s in pair.catalog.log() if s.action != "catch-up"]
    names = counted(pair)
    assert len(names) == len(set(names))
    if dim == 16:
        assert (found.verdict, found.shadow.stage) == ("fail", "judging")
        assert pair.catalog.require_live().release.origin == before.origin
        return
    assert (found.verdict, found.shadow.stage) == ("pass", "holdover")
    assert steps == ["promote", "promote", "promote"]
    for first in range(140, 220, 10):
        turned(arriving, pair, range(first, first + 10))
        found = looked(arriving, dim)
        if found.is_settled:
            break
    assert (found.verdict, found.shadow.stage) == ("fail", "rolled back")
    assert pair.catalog.require_live().release.origin == before.origin
    assert [s.action for s in pair.catalog.log() if s.action != "catch-up"][3:] == ["rollback"]
    names = counted(pair)
    assert len(names) == len(set(names))


def dying(rng: random.Random, share: float) -> Callable[[str], None]:
    """A point at which the process is killed now and then; a catch-up is not, as its lease would stay held here."""

    def point(name: str) -> None:
        mine = name.startswith(("shadow.", "compare.")) or name.endswith("_swap")
        if mine and rng.random() < share:
            raise Killed(name)

    return point


def looked(arriving: Arriving, dim: int) -> Shadowed:
    """A look that promotes by itself, started again until it was not killed."""
    while True:
        with contextlib.suppress(Killed):
            return arriving.shadow(Asked(promote_if_pass=True), dim=dim)
