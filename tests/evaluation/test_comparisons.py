"""Evidence is frozen by content, every comparison is kept, and what was judged otherwise is recorded."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lance
import pyarrow as pa
import pytest
from click.testing import CliRunner
from conftest import documents
from inline import Inline, Silent
from pairs import DOCUMENTS, PLANNED, QUERIES, Pair, built, lent
from releases import make_release

from reembed import api as check
from reembed import faults
from reembed.catalog.index_manifest import IndexManifest, read_manifest
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import Change, GateMargin, GateQueries, QueriesPlace
from reembed.cli import progress, text
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.gate import FrozenGate, GateConfig
from reembed.config.settings import Config, load
from reembed.errors import Conflict, GateFailed, Inconclusive, IntegrityError, UsageError
from reembed.evaluation import comparisons, report, terms
from reembed.evaluation import queries as evalset
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.terms import Asked, Terms
from reembed.events import Ignored, ignore
from reembed.index import grow
from reembed.lifecycle import complete, moves, verification
from reembed.lifecycle.promote import follow, promote
from reembed.lifecycle.status import status
from reembed.serving.live import OpenRelease
from reembed.store.storage import Storage
from reembed.strategies import indexing
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

CHANGED = Asked(changed_queries=True, reason="the judges corrected them")
DEFAULT_MARGIN = "0.01 (or 2 % of live's value if that is more)"


SAME_LIVE = "the same live release, or with another of its line"
VALUES = b"of each query"
ONE_MORE = pa.table({c: ["new one"] for c in ("doc_id", "title", "text")})


@pytest.fixture(scope="module")
def built_pair(tmp_path_factory) -> Pair:
    return built(tmp_path_factory.mktemp("pair"), judged=True)


@pytest.fixture(scope="module")
def built_late(tmp_path_factory) -> Pair:
    return built(tmp_path_factory.mktemp("late"), judged=False)


@pytest.fixture
def pair(built_pair: Pair, tmp_path: Path) -> Iterator[Pair]:
    yield from lent(built_pair, tmp_path)


@pytest.fixture
def late(built_late: Pair, tmp_path: Path) -> Iterator[Pair]:
    """Planned without judged queries."""
    yield from lent(built_late, tmp_path)


def cut(folder: str, queries: int) -> None:
    """Leave so many judged queries in a folder."""
    path = Path(folder, "qrels", "test.tsv")
    path.write_text("\n".join(path.read_text().splitlines()[: queries + 1]) + "\n")


def relabel(folder: str) -> None:
    """Judge another document for the first query."""
    path = Path(folder, "qrels", "test.tsv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].rsplit("\t", 1)[0] + "\t2", *lines[2:]]) + "\n")


def reword(folder: str) -> None:
    """Another text for a query."""
    path = Path(folder, "queries.jsonl")
    first, *rest = path.read_text().splitlines()
    path.write_text(
        "\n".join([json.dumps({**json.loads(first), "text": "other words"}), *rest]) + "\n"
    )


# --- the judged queries are what the plan's digest says, wherever they lie ---


def test_the_plan_and_the_release_name_the_judged_queries_by_content(pair):
    gate = pair.candidate.gate
    assert (gate.queries, gate.split, gate.count) == ((pair.judged,), "test", QUERIES)
    assert gate.sha256 == pair.compare().queries.sha256


@pytest.mark.parametrize("edit", [lambda f: cut(f, 26), relabel, reword])
def test_judged_queries_that_changed_in_their_place_are_refused(pair, edit):
    edit(pair.judged)
    with pytest.raises(UsageError, match="was planned with") as refused:
        pair.compare()
    assert f"planned: {QUERIES} queries" in refused.value.why
    assert "--changed-queries --reason" in refused.value.fix
    assert pair.kept() == []


def test_judged_queries_that_changed_are_accepted_under_a_flag_that_is_recorded_and_told(pair):
    before = pair.compare(margin=0.9)
    cut(pair.judged, 26)
    record = pair.compare(CHANGED)
    (change,) = record.changes
    assert (change.before.count, change.after.count) == (QUERIES, 26)
    assert (change.reason, change.by) == ("the judges corrected them", record.by)
    assert record.gate.sha256 == record.queries.sha256 != record.planned_gate.sha256
    page = Path(record.report).read_text()
    for said in (text.text("compare", record), page):
        assert f"changed from {QUERIES} queries" in said
        assert "the judges corrected them" in said
    verdict = before.verdict
    assert f"{verdict}  candidate {pair.candidate.id}  on {QUERIES} queries" in text.text(
        "compare", record
    )
    assert re.search(rf'class="verdict {verdict}">. {verdict}</span></td><td>{QUERIES}</td>', page)


def test_the_flag_takes_the_queries_that_the_config_names_now_and_nothing_else_does(
    pair, eval_folder
):
    other = pair.judge(40)
    assert pair.compare(queries=other).queries.count == QUERIES
    changed = pair.compare(CHANGED, queries=other)
    assert (changed.queries.count, changed.gate.queries) == (40, (other,))


def test_the_planned_queries_are_found_where_the_config_says_they_are_now(pair):
    moved = shutil.move(pair.judged, pair.folder / "moved")
    config, said = pair.config(queries=str(moved)), []
    record = check.compare(config, pair.candidate.id, emit=said.append)
    assert record.queries.place == QueriesPlace((str(moved),), "test")
    assert (record.changes, record.gate, said) == ((), gate_of(pair), [])
    terms.require_sound(pair.catalog, record, pair.candidate)


@pytest.mark.parametrize(
    "hurt", [shutil.rmtree, lambda folder: cut(folder, 26)], ids=["gone", "changed"]
)
def test_where_neither_place_has_the_planned_queries_the_flag_is_named_and_works(pair, hurt):
    other = pair.judge(40)
    hurt(pair.judged)
    with pytest.raises(UsageError, match="was planned with") as refused:
        pair.compare(queries=other)
    assert "--changed-queries --reason" in refused.value.fix
    assert pair.compare(CHANGED, queries=other).queries.count == 40


def test_the_planned_queries_are_found_in_their_place_where_the_config_names_one_that_is_gone(pair):
    gone = pair.judge(5)
    shutil.rmtree(gone)
    assert pair.compare(queries=gone).queries.count == QUERIES


def test_without_queries_in_the_config_the_flag_takes_what_is_in_the_planned_place(pair):
    (Path(pair.judged) / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq-d00001\td00001\t1\n"
    )
    assert pair.compare(CHANGED, queries=None).queries.count == 1


def test_other_queries_and_another_margin_change_nothing_else_of_the_gate():
    planned = FrozenGate(queries=("q",), sha256="0", count=30, margin=0.01, ann_recall=0.9)
    changes = [
        Change(gate_queries("q", "0", 30), gate_queries("r", "1", 20), "why", "me", "now"),
        Change(GateMargin(0.01), GateMargin(0.02), "why", "me", "now"),
    ]
    gate = Terms(planned, False, QueriesPlace(("r",), "test"), tuple(changes)).gate
    assert (gate.sha256, gate.count, gate.margin, gate.ann_recall) == ("1", 20, 0.02, 0.9)


def test_queries_of_another_split_are_not_taken_for_the_planned_ones(pair):
    qrels = Path(pair.judged, "qrels")
    qrels.joinpath("dev.tsv").write_text("".join((qrels / "test.tsv").open().readlines()[:30]))
    said: list[Any] = []
    record = check.compare(pair.config(split="dev"), pair.candidate.id, emit=said.append)
    assert (record.queries.count, record.queries.place.split) == (QUERIES, "test")
    assert [setting.name for setting in said[0].settings] == ["gate.split"]


def test_queries_that_the_plan_did_not_name_are_fixed_by_the_first_comparison(late):
    first, second = late.judge(52), late.judge(30)
    assert late.compare(queries=first, margin=0.3).gate_is_late
    assert late.compare(queries=second, margin=0.9).queries.count == 52
    cut(first, 30)
    with pytest.raises(UsageError, match="was planned with"):
        late.compare(queries=first)
    assert late.compare(CHANGED, queries=second).changes[0].before.count == 52


@pytest.mark.parametrize("looser", [{"margin": 0.9}, {"ann_recall": 0.1}])
def test_what_names_the_queries_late_loosens_nothing_else_of_the_plan(late, looser):
    config, said = late.config(queries=late.judge(52), **looser), []
    record = check.compare(config, late.candidate.id, emit=said.append)
    planned = gate_of(late)
    assert [getattr(record.gate, k) for k in looser] == [getattr(planned, k) for k in looser]
    assert (record.gate_is_late, record.changes) == (True, ())
    (ignored,) = said
    assert [s.name for s in ignored.settings] == [f"gate.{k}" for k in looser]
    for told in (text.text("compare", record), Path(record.report).read_text()):
        assert "named only at the first comparison" in told


def test_of_two_first_comparisons_at_once_the_gate_of_one_counts_for_both(late, monkeypatch):
    first, second = late.judge(52), late.judge(30)
    freeze, raced = evalset.freeze, []

    def slow(section: Any, options: Any) -> Any:
        frozen = freeze(section, options)
        if not raced:
            raced.append(1)
            late.compare(queries=first)
        return frozen

    monkeypatch.setattr(evalset, "freeze", slow)
    assert late.compare(queries=second).queries.count == 52


# --- every comparison is kept and counted, and the one that promotes says so ---


def test_every_comparison_of_a_pair_is_kept_and_the_one_that_promotes_tells_of_all(pair):
    pair.compare()
    cut(pair.judged, 40)
    pair.compare(CHANGED)
    passing = pair.compare(Asked(True, 0.9, "any loss will do"))
    assert passing.verdict == "pass"
    assert [p.rpartition("/")[2] for p in pair.kept()] == [f"0000000{n}.json" for n in (1, 2, 3)]
    steps = moves.Steps(ignore)
    step = promote(pair.catalog, pair.candidate.id, emit=steps)
    kept = step.grounds.comparison
    assert (kept.number, kept.queries.count, kept.margin) == (3, 40, 0.9)
    assert [(e.queries.count, e.changed) for e in kept.earlier] == [
        (QUERIES, ()),
        (40, ("queries",)),
    ]
    moved = text.text("promote", moves.moved(pair.catalog, step, steps.made))
    history = pair.said("history")
    for said in (moved, history):
        assert f"earlier comparisons of this model with {SAME_LIVE}: 2" in said
        assert f"candidate {pair.candidate.id}  on {QUERIES} queries" in said
        assert "any loss will do" in said
        assert f"changed from margin {DEFAULT_MARGIN} to margin 0.9" in said


def test_metrics_have_one_spelling_for_people_and_documents_are_called_so(pair):
    record = pair.compare()
    said, page = text.text("compare", record), Path(record.report).read_text()
    assert {"ndcg@10", "mrr@10"} <= record.to_json()["metrics"].keys()
    for shown in (said, page):
        assert ("ndcg@10" in shown, "mrr@10" in shown) == (False, False)
        assert "MRR@10" in shown
    assert re.search(r"^  nDCG@10 +\d", said, re.M)
    assert len(re.findall(rf"dimensions +{DOCUMENTS} documents$", said, re.M)) == 2
    assert page.count(">allowed loss 0") == 2
    of_both = f"<td>{DOCUMENTS}</td><td>{DOCUMENTS}</td>"
    assert f'<th scope="row">documents</th>{of_both}' in page.replace(' class="w"', "")


def test_the_margin_that_is_applied_is_the_one_that_text_plot_and_json_show(pair):
    record = pair.compare()
    page = Path(record.report).read_text()
    said, kept = text.text("compare", record), record.to_json()
    plot = page[page.index("<svg") : page.index("</svg>")]
    marks = re.findall(
        r'<line class="t-limit" x1="([\d.]+)" y1="[\d.]+" x2="\1"[^>]*stroke-dasharray', plot
    )
    upright = r'<line class="t-soft" x1="([\d.]+)" y1="[\d.]+" x2="\1" y2="[\d.]+" stroke-width="1"'
    zero = float(re.findall(upright, plot)[0])
    distances = [zero - float(mark) for mark in marks]
    margins = []
    rule_of = {rule.metric: rule for rule in record.rules}
    for key, rule in ((k, rule_of[k]) for k in ("ndcg@10", "recall@10")):
        margins.append(record.metrics[key].margin)
        assert margins[-1] == rule.margin == 0.02 * record.metrics[key].live > 0.01
        assert kept["metrics"][key]["margin"] == rule.margin == -rule.required
        assert f"at least -{rule.margin:.4f} needed" in said
        assert f"allowed loss {rule.margin:.4f}<" in page
    assert distances[0] / margins[0] == pytest.approx(distances[1] / margins[1], rel=0.005)
    assert record.metrics["recall@100"].margin is None


def test_a_new_release_of_the_same_model_does_not_begin_to_count_anew(pair):
    """Planned again with fewer queries: the comparisons of the first plan are told all the same."""
    first = pair.compare()
    cut(pair.judged, 26)
    again = pair.build(16, fresh=True)
    assert again.origin != pair.candidate.origin
    with pytest.raises(UsageError, match=r"those that the model of .* was first compared by"):
        pair.compare(which=again.id)
    record = pair.compare(CHANGED, which=again.id)
    assert [type(c.after) for c in record.changes] == [GateQueries]
    assert [(e.candidate, e.verdict) for e in record.earlier] == [
        (pair.candidate.id, first.verdict)
    ]
    third = pair.build(24)
    assert pair.compare(which=third.id).earlier == (), "another model"


@pytest.mark.parametrize("reason", [None, "half of it is noise"])
def test_a_plan_made_after_a_comparison_moves_no_margin_without_a_reason(pair, reason):
    """Planned again with another margin, which embeds nothing: all vectors are copied."""
    first = pair.compare()
    assert first.verdict != "pass"
    again = pair.build(16, fresh=True, margin=0.9)
    asked = Asked(margin=0.9, reason=reason) if reason else PLANNED
    record = pair.compare(asked, which=again.id, margin=0.9)
    assert record.verdict == ("pass" if reason else first.verdict)
    assert [c.reason for c in record.changes] == ([reason] if reason else [])
    if reason:
        grounds = promote(pair.catalog, again.id).grounds
        assert grounds.comparison.changes[0].before == GateMargin(None)


@pytest.mark.parametrize("margin", [0.0, 1.0, 5.0])
def test_a_margin_that_no_gate_can_have_is_refused_before_anything_is_kept(pair, margin):
    with pytest.raises(UsageError, match="not between 0 and 1"):
        pair.compare(Asked(margin=margin, reason="a test"))
    assert pair.compare().number == 1


OTHER_SPACES = {
    "float16": {"table": {"dtype": "float16"}},
    "dimensions": {"encoder": {"truncate_dim": 15}},
    "a prompt": {"encoder": {"prompts": {"query": "q"}}},
    "a length": {"encoder": {"max_length": 500}},
}


@pytest.mark.parametrize("settings", OTHER_SPACES.values(), ids=OTHER_SPACES)
def test_the_same_weights_in_another_space_are_judged_by_the_gate_of_their_first_comparison(
    pair, settings
):
    first = pair.compare()
    assert first.verdict != "pass"
    sections = pair.sections(16, margin=0.9)
    merged = {
        k: sections.get(k, {}) | settings.get(k, {}) for k in {*sections, *settings} - {"alias"}
    }
    config = Config.model_validate({"alias": sections["alias"], **merged})
    again = full_rebuild(config, Silent(), executor=Inline())
    assert again.space.id != pair.candidate.space.id
    record = pair.compare(which=again.id, margin=0.9)
    assert (record.gate.margin, record.changes) == (None, ())
    assert [e.candidate for e in record.earlier] == [pair.candidate.id]


def test_a_forced_promotion_tells_of_the_comparisons_that_it_overrules(pair):
    third = pair.build(24)
    assert promote(pair.catalog, third.id, force_reason="never compared").grounds.comparison is None
    pair.catalog.append(pair.catalog.live(), "rollback", pair.live)
    pair.compare()
    failed = pair.compare()
    step = promote(pair.catalog, pair.candidate.id, force_reason="we must")
    assert (step.grounds.forced, step.grounds.comparison.verdict) == (True, failed.verdict)
    assert len(step.grounds.comparison.earlier) == 1
    assert f"earlier comparisons of this model with {SAME_LIVE}: 1" in pair.said("history")


def test_a_kept_comparison_of_another_form_is_refused_and_never_a_traceback(pair):
    pair.compare()
    (path,) = pair.kept()
    read, storage = 0, pair.catalog.storage
    record = dict(storage.read(path))
    live, candidate = pair.live, pair.candidate
    for field in record.keys() - {"schema_version"}:
        edits = [{**record, field: value} for value in (None, 7, "x", {}, [7], {"count": "x"})]
        for edited in (*edits, {k: v for k, v in record.items() if k != field}):
            storage.write(path, edited)
            try:
                found = comparisons.newest(pair.catalog, live, candidate)
                terms.require_sound(pair.catalog, found, candidate)
            except IntegrityError:
                continue
            read += field in READ_BACK and (field, edited[field]) not in (("by", "x"), ("at", "x"))
            assert status(pair.catalog).candidates
            assert report.told(found.evidence())
    assert read == 0


READ_BACK = {
    *("candidate", "live", "number", "verdict", "rules", "queries", "gate", "planned_gate"),
    *("changes", "earlier", "by", "at", "candidate_index_sha256"),
}


def test_the_newest_comparison_decides_whatever_the_ones_before_it_said(pair):
    assert pair.compare(Asked(margin=0.9, reason="try")).verdict == "pass"
    assert pair.compare().verdict != "pass"
    with pytest.raises((GateFailed, Inconclusive)):
        promote(pair.catalog, pair.candidate.id)


def test_of_many_comparisons_of_a_pair_the_newest_alone_is_read_to_tell_of_it(pair, monkeypatch):
    for _ in range(3):
        pair.compare()
    seen: list[str] = []
    plain = comparisons.read
    monkeypatch.setattr(comparisons, "read", lambda c, path: seen.append(path) or plain(c, path))
    told = comparisons.last(pair.catalog, pair.live, pair.candidate)
    assert told is not None
    assert told.number == 3
    assert [path.rpartition("/")[2] for path in seen] == ["00000003.json"]


def test_a_comparison_that_was_removed_is_missed(pair):
    for _ in range(3):
        pair.compare(Asked(margin=0.9, reason="try"))
    pair.catalog.storage.remove(pair.kept()[1])
    with pytest.raises(IntegrityError, match="records were removed"):
        promote(pair.catalog, pair.candidate.id)


@pytest.mark.parametrize(
    "stray",
    [
        "notes.json",
        "00000001 (copy).json",
        "1.json",
        "0000000\N{FULLWIDTH DIGIT TWO}.json",
        "x/y.json",
    ],
)
def test_files_of_other_names_beside_comparisons_break_nothing(pair, stray):
    pair.compare()
    storage = pair.catalog.storage
    storage.write_bytes(f"{pair.kept()[0].rpartition('/')[0]}/{stray}", b"{}")
    assert pair.compare(Asked(margin=0.9, reason="try")).number == 2
    newest = comparisons.pairs(pair.catalog)[(pair.candidate.origin, pair.live.origin)]
    assert (newest.path[-6:], newest.named) == ("2.json", "pass")
    assert status(pair.catalog).candidates
    assert promote(pair.catalog, pair.candidate.id).release == pair.candidate


def test_two_comparisons_at_once_are_both_kept(pair, monkeypatch):
    record = pair.compare()
    numbers, raced = comparisons.numbers, []

    def slow(storage, folder):
        found = numbers(storage, folder)
        if not raced:
            raced.append(1)
            other = dataclasses.replace(record, by="another")
            comparisons.keep(pair.catalog, pair.live, pair.candidate, other, VALUES)
        return found

    monkeypatch.setattr(comparisons, "numbers", slow)
    kept = comparisons.keep(pair.catalog, pair.live, pair.candidate, record, VALUES)
    assert (kept.number, len(kept.earlier)) == (3, 2)


# --- the index that was judged is the one that serves, however a catch-up is called ---

POOR = {"factory": "PCA2,Flat", "ann_recall": 0.01}


def poor(pair: Pair, dim: int = 16) -> Config:
    """A config with index settings that find little."""
    return Config.model_validate({**pair.sections(dim), "index": POOR})


def built_by(pair: Pair, release: Release) -> IndexManifest:
    return read_manifest(pair.catalog.storage, release.index, release.index_sha256)


def test_a_catch_up_builds_its_index_by_the_settings_of_its_line(pair, quiet):
    lance.dataset(pair.source).insert(ONE_MORE)
    for line, dim in ((pair.candidate, 16), (pair.live, 256)):
        newer = catch_up(poor(pair, dim), line, quiet, executor=Inline())
        assert newer.id != line.id
        manifest = built_by(pair, newer)
        assert (manifest.base.factory, manifest.settings) == ("Flat", built_by(pair, line).settings)
    ignored = [e.settings for e in quiet.of(Ignored)]
    names = ["index.factory"]  # a lower ann_recall is taken
    assert [[s.name for s in settings] for settings in ignored] == [names, names]


def test_a_catch_up_that_is_resumed_builds_its_index_by_the_settings_of_its_line(
    pair, quiet, monkeypatch
):
    lance.dataset(pair.source).insert(ONE_MORE)

    def stop(point: str) -> None:
        if point == "table.before_commit":
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", stop)
        with pytest.raises(InterruptedError):
            catch_up(pair.config(), pair.candidate, quiet, executor=Inline())
    newer = catch_up(poor(pair), pair.candidate, quiet, executor=Inline())
    assert built_by(pair, newer).base.factory == "Flat"


def test_a_line_s_settings_are_those_its_index_was_built_by_and_not_those_first_planned(
    pair, quiet
):
    config = Config.model_validate({**pair.sections(24), "index": {"factory": "PQ7"}})
    with pytest.raises(UsageError, match="PQ7"):
        full_rebuild(config, quiet, executor=Inline())
    flat = full_rebuild(pair.config(24), quiet, executor=Inline())
    lance.dataset(pair.source).insert(ONE_MORE)
    newer = catch_up(pair.config(24), flat, quiet, executor=Inline())
    assert built_by(pair, newer).base.factory == "Flat"


@pytest.fixture
def unplanned(monkeypatch):
    """Catch-ups build by the config's settings: the check after is alone."""
    from reembed.strategies import catch_up as strategy

    monkeypatch.setattr(strategy, "as_planned", lambda config, plan, emit: config)


@pytest.mark.usefixtures("unplanned")
def test_a_verdict_holds_for_the_index_of_a_catch_up_only_above_the_gate_s_recall(pair, quiet):
    assert pair.compare(Asked(margin=0.9, reason="try")).verdict == "pass"
    lance.dataset(pair.source).insert(ONE_MORE)
    newer = catch_up(poor(pair), pair.candidate, quiet, executor=Inline())
    with pytest.raises(
        GateFailed, match="has a lower ann_recall than its gate requires"
    ) as refused:
        promote(pair.catalog, newer.id)
    assert refused.value.fix == f"reembed compare --candidate {newer.id}"
    asked = Asked(margin=0.9, reason="try")
    assert pair.compare(asked, which=newer.id).verdict == "fail"
    with pytest.raises(GateFailed, match="failed the comparison"):
        promote(pair.catalog, newer.id)
    assert promote(pair.catalog, newer.id, force_reason="we must").release.id == newer.id


@pytest.mark.parametrize(
    ("found", "lower", "bound"), [(1.0, 0.5, 1.0), (0.99, 0.97, 0.97), (0.99, 1.0, 1.0)]
)
def test_an_index_that_found_all_needs_no_bound(monkeypatch, found, lower, bound):
    index = SimpleNamespace(ann_recall_at_10=found, ann_recall_lower=lower)
    monkeypatch.setattr(complete, "_described_index", lambda catalog, release: index)
    assert complete.recall_bound(None, None) == bound


def test_the_compared_index_is_held_to_its_comparison_alone(pair, monkeypatch):
    assert pair.compare(Asked(margin=0.9, reason="a test")).verdict == "pass"
    monkeypatch.setattr(complete, "recall_bound", lambda catalog, release: 0.0)
    assert promote(pair.catalog, pair.candidate.id).release.id == pair.candidate.id


@pytest.mark.usefixtures("unplanned")
def test_live_does_not_move_on_to_an_index_below_the_gate_s_recall(pair, quiet):
    lance.dataset(pair.source).insert(ONE_MORE)
    newer = catch_up(poor(pair, 256), pair.live, quiet, executor=Inline())
    for move in (follow, lambda catalog, release: promote(catalog, release.id)):
        with pytest.raises(
            GateFailed, match="has a lower ann_recall than its gate requires"
        ) as refused:
            move(pair.catalog, newer)
    assert pair.catalog.live().release.id == pair.live.id
    assert f"reembed promote {newer.id} --force" in refused.value.fix
    step = promote(pair.catalog, newer.id, force_reason="newer documents matter more")
    assert (step.release.id, step.grounds.forced) == (newer.id, True)
    lance.dataset(pair.source).delete("doc_id = 'd00003'")
    third = catch_up(poor(pair, 256), newer, quiet, executor=Inline())
    assert follow(pair.catalog, third).release.id == third.id, "live is below it already"


# --- both releases hold the same documents ---

JUDGED = ", ".join(f"'{r['doc_id']}'" for r in documents(DOCUMENTS, 0)[:3])


def same_documents(record: Comparison) -> list[str]:
    return [r.verdict for r in record.rules if r.name.startswith("same ")]


def sourced(pair: Pair, **source: Any) -> Release:
    sections = pair.sections(24)
    config = Config.model_validate({**sections, "source": sections["source"] | source})
    return full_rebuild(config, Silent(), executor=Inline())


def test_a_candidate_is_not_compared_with_what_is_behind_it_by_judged_documents(pair):
    lance.dataset(pair.source).delete(f"doc_id in ({JUDGED})")
    third = sourced(pair)
    asked = Asked(margin=0.9, reason="any loss will do")
    record = pair.compare(asked, which=third.id)
    assert (record.verdict, same_documents(record)) == ("inconclusive", ["inconclusive", "pass"])
    assert report.choices(record)[0].startswith(f"reembed catch-up {pair.live.id} ")
    assert "source.version is 1 in live, 2 in the candidate" in text.text("compare", record)
    follow(pair.catalog, catch_up(pair.config(256), pair.live, Silent(), executor=Inline()))
    again = pair.compare(asked, which=third.id)
    assert (again.verdict, same_documents(again)) == ("pass", ["pass", "pass"])


def test_a_candidate_behind_live_by_judged_documents_is_caught_up_first(pair):
    lance.dataset(pair.source).delete(f"doc_id in ({JUDGED})")
    follow(pair.catalog, catch_up(pair.config(256), pair.live, Silent(), executor=Inline()))
    record = pair.compare()
    assert same_documents(record) == ["inconclusive", "pass"]
    assert report.choices(record)[0].startswith(f"reembed catch-up {pair.candidate.id} ")


def copied(pair: Pair) -> str:
    """Another dataset: half of the documents under other ids."""
    rows = documents(DOCUMENTS, 0)
    others = [{**r, "doc_id": f"x{r['doc_id']}"} for r in rows[DOCUMENTS // 2 :]]
    uri = str(pair.folder / "source.lance" / "copy.lance")
    lance.write_dataset(pa.Table.from_pylist(rows[: DOCUMENTS // 2] + others), uri)
    return uri


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (lambda pair: {"filter": "doc_id < 'd00100'"}, "source.filter is None in live"),
        (lambda pair: {"uri": copied(pair)}, "source.uri is"),
    ],
)
def test_a_candidate_of_other_documents_does_not_pass_for_its_easier_task(pair, source, said):
    record = pair.compare(
        Asked(margin=0.9, reason="any loss will do"), which=sourced(pair, **source(pair)).id
    )
    assert (record.verdict, same_documents(record)) == ("inconclusive", ["pass", "inconclusive"])
    for told in (text.text("compare", record), Path(record.report).read_text()):
        assert said in told
    assert not any("catch-up" in choice for choice in report.choices(record))


def test_live_may_be_a_few_documents_behind(pair):
    lance.dataset(pair.source).insert(ONE_MORE)
    record = pair.compare(Asked(margin=0.9, reason="try"), which=sourced(pair).id)
    assert (record.verdict, same_documents(record)) == ("pass", ["pass", "pass"])
    assert "source.version is 1 in live" in text.text("compare", record), "it is said"


# --- a damaged release: what is printed leads out ---


def damage(pair: Pair, release: Release) -> None:
    manifest = built_by(pair, release)
    file = Path(pair.root, manifest.base.vectors.path(release.index))
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


def printed_fix(error: IntegrityError) -> list[str]:
    program, *words = shlex.split(error.fix, comments=True)
    assert program == "reembed"
    return words


def lose(kind: str) -> Callable[[Pair, Release], None]:
    """Remove what has this ending."""

    def remove(pair: Pair, release: Release) -> None:
        for top in (release.index, f"{release.table}/_versions", f"{release.table}/data"):
            for file in Path(pair.root, top).glob(f"*.{kind}"):
                file.unlink()

    return remove


@pytest.mark.parametrize(
    "hurt",
    [damage, lose("faiss"), lose("json"), lose("manifest"), lose("lance")],
    ids=["flipped", "no index", "no index manifest", "no version", "no data"],
)
def test_beside_a_damaged_live_release_compare_prints_the_promotion_that_replaces_it(pair, hurt):
    hurt(pair, pair.live)
    with pytest.raises(IntegrityError, match=f"live release {pair.live.id} is damaged") as refused:
        pair.compare()
    pair.said(*printed_fix(refused.value))
    step = pair.catalog.live()
    assert (step.release.id, step.grounds.reason) == (pair.candidate.id, "live is damaged")


def test_a_damaged_candidate_moves_nothing_that_serves(pair):
    damage(pair, pair.candidate)
    with pytest.raises(
        IntegrityError, match=f"candidate {pair.candidate.id} is damaged"
    ) as refused:
        pair.compare()
    verb, *options, settings = printed_fix(refused.value)
    assert [verb, *options] == ["run", "--fresh", "--set", "embed.reuse=false", "-c"]
    assert load([settings], [])[0].encoder.model == "hashing:16"
    again = pair.build(16, fresh=True)
    assert pair.compare(which=again.id).verdict


@pytest.mark.parametrize("role", ["live", "candidate"])
def test_where_a_damaged_release_s_role_is_not_known_no_rollback_is_printed(pair, role):
    release = getattr(pair, role)
    damage(pair, release)
    with pytest.raises(IntegrityError) as from_search:
        OpenRelease.open(pair.catalog.storage, release).search(["a"], 1)
    with pytest.raises(IntegrityError) as from_verify:
        verification.verify_release(
            pair.catalog, release.id, level=3, sample=5, resume=False, stall_s=60
        )
    assert printed_fix(from_search.value) == ["status"]
    assert printed_fix(from_verify.value)[:2] == ["run", "--fresh"]
    assert "reembed run --fresh" in from_search.value.fix


# --- promote looks itself: each line of defence without the one before it ---


def forge(pair: Pair, **edits: Any) -> None:
    """Keep a passing comparison with some fields otherwise than `compare` writes them."""
    record = pair.compare(Asked(margin=0.9, reason="try"))
    forged = dataclasses.replace(record, **edits)
    comparisons.keep(pair.catalog, pair.live, pair.candidate, forged, VALUES)


def gate_queries(place: str, sha256: str, count: int) -> GateQueries:
    return GateQueries((place,), "test", sha256=sha256, count=count)


def gate_of(pair: Pair, **edits: Any) -> FrozenGate:
    return pair.candidate.gate.model_copy(update=edits)


FORGED = {
    "no change is recorded": (lambda p: {"changes": ()}, "by another gate"),
    "another margin planned": (
        lambda p: {"changes": (), "planned_gate": gate_of(p, margin=0.9)},
        "by another gate",
    ),
    "other queries": (lambda p: {"gate": gate_of(p, margin=0.9, sha256="0")}, "by another gate"),
    "another target": (
        lambda p: {"gate": gate_of(p, margin=0.9, ann_recall=0.1)},
        "by another gate",
    ),
    "said to be late": (lambda p: {"gate_is_late": True}, "by another gate"),
    "another index": (lambda p: {"candidate_index_sha256": "0"}, "of another index"),
    "another verdict than its rules": (lambda p: {"verdict": "fail"}, "verdict is damaged"),
    "another candidate": (
        lambda p: {"candidate": p.live.summary()},
        "comparison of other releases",
    ),
    "another live": (lambda p: {"live": p.candidate.summary()}, "comparison of other releases"),
}


@pytest.mark.parametrize(("edits", "said"), FORGED.values(), ids=FORGED)
def test_promote_refuses_a_comparison_that_was_judged_otherwise_than_planned(pair, edits, said):
    forge(pair)
    assert promote(pair.catalog, pair.candidate.id).grounds.comparison.number == 2
    pair.catalog.append(pair.catalog.live(), "rollback", pair.live)
    forge(pair, **edits(pair))
    with pytest.raises(IntegrityError, match=said):
        promote(pair.catalog, pair.candidate.id)


def test_a_comparison_copied_from_another_pair_does_not_count(pair):
    pair.compare(Asked(margin=0.9, reason="try"))
    third = pair.build(24)
    (path,) = pair.kept()
    copy = path.replace(pair.candidate.origin, third.origin)
    pair.catalog.storage.write(copy, pair.catalog.storage.read(path))
    with pytest.raises(IntegrityError, match="comparison of other releases"):
        promote(pair.catalog, third.id)


# --- the plan's gate counts, in every path ---


def test_margin_and_ann_recall_of_the_config_do_not_count_after_the_plan(pair):
    record = pair.compare(margin=0.9, ann_recall=0.1)
    assert (record.gate.margin, record.gate.ann_recall) == (None, 0.5)
    assert record.gate == record.planned_gate == gate_of(pair)


def test_a_run_that_goes_on_with_another_gate_keeps_its_plan_s(pair):
    class Stops(Inline):
        def embed(self, *args: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        full_rebuild(pair.config(24), Silent(), executor=Stops())
    gate = pair.candidate.gate
    cut(pair.judged, 26)
    release = pair.build(24, margin=0.9, ann_recall=0.1)
    assert release.gate == gate
    with pytest.raises(UsageError, match="was planned with"):
        pair.compare(which=release.id)


def tuned_on(pair: Pair, release: Release) -> str:
    return str(
        pair.catalog.storage.read(f"{release.index}/{release.index_sha256}.json")["tuned_on"]
    )


@pytest.mark.parametrize("lose", [lambda f: cut(f, 26), shutil.rmtree], ids=["changed", "gone"])
def test_an_index_is_tuned_on_the_planned_queries_or_said_to_be_tuned_on_documents(
    pair, quiet, lose, monkeypatch
):
    monkeypatch.setattr(grow, "FOLD_ABOVE", -1)  # it is built again, and tuned
    assert tuned_on(pair, pair.candidate) == "queries"
    lose(pair.judged)
    lance.write_dataset(ONE_MORE, pair.source, mode="append")
    newer = catch_up(pair.config(), pair.candidate, quiet, executor=Inline())
    assert tuned_on(pair, newer) == "documents"
    assert any("tuned on documents" in words for words in quiet.said())


def test_an_index_is_tuned_on_a_bounded_sample_of_the_queries(pair, monkeypatch):
    monkeypatch.setattr(indexing, "TUNING_QUERIES", 20)
    release = pair.build(18)
    manifest = read_manifest(pair.catalog.storage, release.index, release.index_sha256)
    assert (manifest.tuned_on, manifest.num_queries, QUERIES) == ("queries", 20, 52)
    texts = [f"query {n}" for n in range(QUERIES)]
    chosen = indexing.sampled(texts)
    assert chosen == indexing.sampled(texts[::-1])
    assert len(set(chosen)) == 20
    assert set(chosen) < set(texts)
    assert set(chosen) - {*indexing.sampled(texts[1:])} <= {texts[0]}, "others stay the same"
    assert indexing.sampled(texts[:20]) == texts[:20]


@pytest.mark.parametrize("planned", ["pair", "late"])
def test_a_caught_up_release_is_judged_by_the_gate_of_its_line(planned, request):
    chosen = request.getfixturevalue(planned)
    judged = chosen.judged or chosen.judge(QUERIES)
    first = chosen.compare(queries=judged, margin=0.3)
    lance.write_dataset(ONE_MORE, chosen.source, mode="append")
    newer = catch_up(chosen.config(margin=0.9), chosen.candidate, Silent(), executor=Inline())
    assert newer.id != chosen.candidate.id
    assert newer.gate == chosen.candidate.gate
    record = chosen.compare(which=newer.id, queries=judged, margin=0.9)
    assert record.gate == first.gate
    assert [e.candidate for e in record.earlier] == [chosen.candidate.id]
    cut(judged, 26)
    with pytest.raises(UsageError, match="was planned with"):
        chosen.compare(which=newer.id, queries=judged)


def test_of_two_candidates_each_is_judged_by_its_own_plan(pair):
    other = pair.judge(40)
    second = pair.build(24, queries=other, margin=0.4)
    for release, count, margin in ((pair.candidate, QUERIES, None), (second, 40, 0.4)):
        record = pair.compare(which=release.id, queries=other, margin=0.9)
        assert (record.queries.count, record.gate.margin) == (count, margin)


def verdicts(pair: Pair) -> dict[str, str | None]:
    return {c.release.id: c.verdict for c in status(pair.catalog).candidates}


def test_a_comparison_with_what_no_longer_serves_says_with_what(pair):
    pair.compare(Asked(margin=0.9, reason="try"))
    third = pair.build(24)
    promote(pair.catalog, third.id, force_reason="a test")
    with pytest.raises(Conflict, match=f"compared with {pair.live.id}, but {third.id} is live now"):
        promote(pair.catalog, pair.candidate.id)
    assert verdicts(pair) == {pair.candidate.origin: None}
    assert pair.compare().earlier == (), "with another live line"
    assert verdicts(pair)[pair.candidate.origin] is not None


# --- a gate that cannot be passed: an audited change of margin, and choices that work ---


def test_a_change_of_margin_is_recorded_with_before_after_who_when_and_why(pair):
    assert pair.compare().verdict != "pass"
    said = pair.said("compare", "--margin", "0.9", "--reason", "quality is not why we move")
    assert f"changed from margin {DEFAULT_MARGIN} to margin 0.9 by " in said
    step = promote(pair.catalog, pair.candidate.id)
    (change,) = step.grounds.comparison.changes
    assert (change.before, change.after) == (GateMargin(None), GateMargin(0.9))
    assert change.reason == "quality is not why we move"
    assert change.by == step.by
    assert change.at <= step.at
    assert pair.catalog.release(pair.candidate.id).gate.margin is None, "the plan stays"
    assert "quality is not why we move" in pair.said("history")


GATE_SECTION = {"group": "user", "slices": ["kind"], "metrics": ["mrr@10"], "latency_ratio": 900}


def grouped(pair: Pair) -> None:
    """Give the judged queries fields, two queries a user; the digest of the plan does not have them."""
    path = Path(pair.judged, "queries.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    fields = [{"user": f"u{n // 2}", "kind": "ab"[n % 2]} for n in range(len(rows))]
    rows = [row | {"metadata": some} for row, some in zip(rows, fields, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_settings_of_the_gate_can_be_changed_with_a_reason(pair):
    grouped(pair)
    ignored: list[Any] = []
    plain = check.compare(pair.config(**GATE_SECTION), pair.candidate.id, emit=ignored.append)
    assert (plain.changes, plain.gate.group) == ((), None)
    (event,) = ignored
    assert {s.name for s in event.settings} == {f"gate.{name}" for name in GATE_SECTION}
    assert "`reembed compare --changed-gate --reason WHY`" in progress.words(event)

    asked = {"changed_gate": True, "reason": "users differ", "margin": 0.9}
    record = check.compare(
        pair.config(**GATE_SECTION), pair.candidate.id, **asked, emit=ignored.append
    )
    assert len(ignored) == 1, "nothing is ignored now"
    assert record.gate.sha256 == record.queries.sha256 != plain.queries.sha256
    assert {r.metric for r in record.rules if r.metric} == {"mrr@10"}
    assert record.metrics["mrr@10"].change.independent == QUERIES // 2
    assert {s.field for s in record.slices} == {"kind"}
    assert record.summary().changed == ("margin", "settings")
    told = "group none; slices none; metrics ndcg@10, recall@10; latency_ratio 1000 to group user"
    assert told in text.text("compare", record)
    assert told in Path(record.report).read_text()
    assert comparisons.read(pair.catalog, pair.kept()[-1]).changes == record.changes
    assert told in pair.said("promote", pair.candidate.id, "--force", "--reason", "a test")
    assert told in pair.said("history")


def test_a_first_comparison_of_a_plan_without_queries_takes_the_settings_of_its_config(late):
    judged = late.judge(QUERIES)
    record = late.compare(queries=judged, metrics=["mrr@10"], latency_ratio=900)
    assert (record.gate.metrics, record.gate.latency_ratio) == (("mrr@10",), 900)
    assert record.changes == ()
    again = late.compare(queries=judged)
    assert again.gate == record.gate


@pytest.mark.parametrize(
    "options",
    [
        ("--changed-gate",),
        ("--margin", "0.2"),
        ("--changed-queries",),
        ("--reason", "why"),
        ("--margin", "0.2", "--reason", " "),
        ("--margin", "1", "--reason", "why"),
        ("--margin", "0", "--reason", "why"),
    ],
)
def test_a_change_without_a_reason_or_out_of_range_is_refused(pair, options):
    with pytest.raises(AssertionError, match=r"is required with|not in the range"):
        pair.said("compare", *options)
    assert pair.kept() == []


@pytest.mark.parametrize("dim", [16, 250], ids=["fail", "inconclusive"])
@pytest.mark.parametrize("changed", [False, True], ids=["planned", "changed"])
def test_every_choice_that_is_printed_works_and_embeds_nothing(pair, dim, changed):
    release = pair.build(dim)
    asked: tuple[str, ...] = ()
    if changed:
        cut(pair.judged, 40)
        asked = ("--changed-queries", "--margin", "0.001", "--reason", "why")
    code = {16: 3, 250: 6}[dim]
    said = pair.said("compare", "--candidate", release.id, *asked, code=code)
    lines = [re.match(r"(?:Next|  or): reembed (.*)", line) for line in said.splitlines()]
    printed = [shlex.split(line[1], comments=True) for line in lines if line]
    verbs = ["status", *(["compare"] if dim == 250 else []), "compare", "promote"]
    assert [p[0] for p in printed] == verbs
    if changed:  # what was accepted already is asked for again
        assert all("--changed-queries" in p and "--margin" in p for p in printed[1:-1])
    files = {p for p, _ in pair.catalog.storage.objects("") if p.startswith(("tables/", "runs/"))}
    for number, (verb, *arguments) in enumerate(printed):
        widens = "--margin" in arguments and number == len(printed) - 2
        assert "-c" in arguments
        result = CliRunner().invoke(reembed_cli, [verb, *arguments])
        assert result.exit_code == (0 if verb != "compare" or widens else code), result.output
    after = {p for p, _ in pair.catalog.storage.objects("") if p.startswith(("tables/", "runs/"))}
    assert after == files
    assert pair.catalog.live().release.id == release.id
    assert pair.catalog.live().grounds.forced


@pytest.mark.parametrize("asked", [PLANNED, Asked(margin=0.002, reason="strict")])
def test_the_report_draws_the_loss_that_was_allowed_for_each_metric(pair, asked):
    record = pair.compare(asked)
    allowed = {r.name: r.margin for r in record.rules if r.margin is not None}
    live = record.metrics["recall@10"].live
    floor = 0.02 * live
    assert floor > 0.01
    assert allowed["recall@10 change"] == pytest.approx(asked.margin or floor)
    drawn = re.findall(r">allowed loss ([\d.]+)<", Path(record.report).read_text())
    assert drawn == [f"{margin:.4f}" for margin in allowed.values()]


def test_ignored_gate_settings_are_answered_with_flags_and_not_with_embedding_again(pair):
    with pytest.raises(AssertionError) as failed:
        pair.said("compare", "--set", "gate.margin=0.9")
    said = str(failed.value)
    assert "fixed when the run was planned: gate.margin 0.9 (planned: left out)" in said
    assert "`--margin X --reason WHY`" in said
    assert "--fresh" not in said


def test_what_to_do_is_in_the_report_too(pair):
    page = Path(pair.compare().report).read_text()
    assert "--margin" in page
    assert "--force --reason" in page
    assert "reembed run" not in page


def test_the_report_fits_a_narrow_screen_and_explains_its_words(pair):
    page = Path(pair.compare().report).read_text()
    drawn = page[page.index("<svg") : page.index("</svg>")]
    width = float(re.search(r'viewBox="0 0 ([\d.]+) ', drawn)[1])
    at = [float(x) for x in re.findall(r' (?:x|x1|x2|cx)="([-\d.]+)"', drawn)]
    assert width <= 340  # of a screen of 360, so that its text is not made smaller
    assert all(0 <= x <= width for x in at)
    tables = re.findall(r"<div class=\"([^\"]*)\"[^>]*><table>", page)
    assert tables.count("wide") == page.count("<table>"), "a wide table scrolls by itself"
    assert "share of the first 10 results that have a judgement" in page


@pytest.mark.parametrize("today", [{}, {"queries": "other"}, {"queries": "other", "margin": 0.9}])
def test_the_gate_of_the_plan_counts_whatever_todays_config_says(tmp_path, today):
    catalog = Catalog(Storage.open(str(tmp_path)), "docs")
    planned = FrozenGate(queries=("planned",), sha256="0", count=30)
    releases = [make_release(catalog, n, gate=planned) for n in ("a", "b")]
    for release in releases:
        found = terms._planned(catalog, releases[0], release, GateConfig(**today))
        assert found == (planned, False)


def test_a_release_that_was_planned_without_queries_is_not_compared_without_them(tmp_path):
    catalog = Catalog(Storage.open(str(tmp_path)), "docs")
    release = make_release(catalog, "a", gate=FrozenGate())
    with pytest.raises(UsageError, match="planned without judged queries"):
        terms._planned(catalog, release, release, GateConfig())
