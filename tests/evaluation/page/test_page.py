"""The report: the same content as HTML and Markdown, whatever was compared, and nothing loaded or run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, open_tab
from judged_lists import eval_set
from releases import compared, make_release

from reembed.catalog.releases import Catalog
from reembed.errors import UsageError
from reembed.evaluation.cutoffs import cut_offs
from reembed.evaluation.differences import change_of, likeness, pairs_of
from reembed.evaluation.figures import Curve, CurvePoint, Latency, QuerySet, RunFile, Sides
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.page.document import Report, beginning, require_places
from reembed.evaluation.page.plots import _ticks
from reembed.evaluation.per_query import PerQuery
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.scores import score_distributions
from reembed.evaluation.slices import slice_changes
from reembed.store.storage import Storage

SECTIONS = [
    *("Change of the metrics", "Slices", "Queries that lost and won most", "Distribution of the scores", "Latency"),
    *("Score cut-offs", "Operating curve of the index", "Index size and memory", "What was compared"),
    "Promote and roll back",
]  # fmt: skip
DOCS = [f"document-{n}" for n in range(60)]


def searched(queries: int) -> tuple[EvalSet, Sides[Ranked]]:
    """Two rankings of 60 documents, of which the candidate's is better."""
    rng = np.random.default_rng(queries)
    qrels = [
        {str(d): int(rng.integers(1, 3)) for d in rng.choice(DOCS, 4, replace=False)} | {"gone": 0}
        for _ in range(queries)
    ]

    def lists(gain: float) -> Ranked:
        found = []
        for relevant in qrels:
            scores = [(d, float(rng.random() + gain * (d in relevant))) for d in DOCS]
            found.append(sorted(scores, key=lambda pair: -pair[1])[:40])
        return Ranked.of(found)

    judged = eval_set(qrels)
    kinds = tuple("short" if n % 3 else "long" for n in range(queries))
    return replace(judged, slices={"kind": kinds}), Sides(lists(0.3), lists(0.4))


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Report]:
    catalog = Catalog(Storage.open(str(tmp_path / "root")), "passages")
    live, candidate = (make_release(catalog, name) for name in ("a", "b"))

    def report(
        queries: int = 60, *, texts: bool = False, cutoff: float | None = 0.9, **changes: Any
    ) -> Report:
        judged, lists = searched(queries)
        pairs = pairs_of(judged, lists.live, lists.candidate)
        relevance = {key: pairs[key] for key in ("ndcg@10", "recall@10")}
        latency = Sides(Latency(1.0, 2.0, 3.0, 195), Latency(2.0, 3.0, 4.0, 195))
        points = tuple(CurvePoint(2**n, 1 - 0.5 / 2**n, 0.1 * 2**n) for n in range(6))
        record = replace(
            compared(candidate, live),
            metrics={k: change_of(*pair, None, 0.01 if k in relevance else None) for k, pair in pairs.items()},
            slices=slice_changes(judged.slices, relevance),
            scores=score_distributions(judged, lists),
            curve=Sides(Curve("nprobe", 4, 60, points), None),
            cutoffs=cut_offs(cutoff, judged, lists) if cutoff is not None else None,
            latency=latency, encoding=latency, same_lists=0,
        )  # fmt: skip
        record = replace(record, queries=replace(record.queries, count=queries, sets=judged.sets))
        both = lists.live, lists.candidate
        rows = PerQuery.of("judged", judged, both, pairs, likeness(*both))
        rows = rows if texts else rows.without_texts()
        return Report(replace(record, **changes), rows, candidate, catalog.log())

    return report


class Outline(HTMLParser):
    """What a screen reader is told of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[tuple[int, str]] = []
        self.tables: list[list[str]] = []
        self.scopes: list[str | None] = []
        self.figures: list[dict[str, str | None]] = []
        self.loads: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag == "table":
            self.tables.append([])
        if tag == "caption":
            self.tables[-1].append("")
        if tag == "th":
            self.scopes.append(given.get("scope"))
        if tag == "svg":
            self.figures.append(given)
        self.loads += [
            name for name in given if name in ("href", "src", "srcset", "action", "data")
        ]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if any(re.fullmatch("h[1-6]", tag) for tag in self._open):
            level, text = self.headings[-1]
            self.headings[-1] = level, text + data
        if "caption" in self._open:
            self.tables[-1][0] += data


# --- what it says, and in which order ---


def test_the_page_begins_with_the_verdict_and_what_to_do_and_goes_on_in_order(made):
    report = made()
    page = report.html()
    outline = Outline(page)
    assert [text for level, text in outline.headings if level == 2] == SECTIONS
    first = page.index(f"reembed promote {report.comparison.candidate.release}")
    assert page.index("✓ pass") < first < page.index(SECTIONS[0])


def test_markdown_and_html_have_the_same_sections_tables_and_numbers(made):
    report = made(3)
    page, text = report.html(), report.markdown()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    plain = text.replace("\\", "").replace("\u200b", "")
    for caption in Outline(page).tables:
        assert f"_{caption[0].strip()}_" in plain
    for cell in re.findall(r"<td>([^<]*)</td>", page):
        assert cell.strip() in plain


def test_headings_tables_and_figures_are_told_to_a_screen_reader(made):
    outline = Outline(made().html())
    levels = [level for level, _ in outline.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert outline.tables
    assert all(len(captions) == 1 and captions[0].strip() for captions in outline.tables)
    assert set(outline.scopes) == {"col", "row"}
    assert len(outline.figures) == 3
    assert all(f["role"] == "img" and len(str(f["aria-label"])) > 20 for f in outline.figures)


@pytest.mark.parametrize(("verdict", "sign"), [("pass", "✓"), ("fail", "✗"), ("inconclusive", "?")])
def test_a_verdict_is_a_sign_and_a_word(made, verdict, sign):
    report = made(verdict=verdict)
    assert f'<span class="verdict {verdict}">{sign} {verdict}</span>' in report.html()
    assert f"# passages: candidate against live **{sign} {verdict}**" in report.markdown()


def test_colours_can_be_read_on_their_paper_light_and_dark(made):
    def luminance(colour: str) -> float:
        full = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
        channels = [int(full[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    themes = re.findall(r":root \{([^}]*)\}", made(2).html())
    assert len(themes) == 2
    for theme in themes:
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", theme))
        for name in colour.keys() - {"paper", "shade", "line"}:
            for ground in ("paper", "shade"):
                dark, light = sorted(map(luminance, (colour[name], colour[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


def test_the_page_loads_and_runs_nothing(made):
    page = made().html()
    assert Outline(page).loads == []
    assert "default-src 'none'" in page
    for word in ("<script", "url(", "@import", "http:", "https:"):
        assert word not in page


# --- the queries that changed most ---


def test_the_queries_that_changed_most_show_both_lists_with_judgements_and_moves(made):
    report = made()
    found = report.values.changed_most("ndcg@10", 20)
    deltas = [q.change for q in found.lost]
    assert deltas == sorted(deltas)
    assert deltas[-1] < 0 < found.won[-1].change <= found.won[0].change
    worst = found.lost[0]
    assert len(worst.found.live) == len(worst.found.candidate) == 10
    page = report.html()
    part = page[page.index("nDCG@10: lost most") : page.index("nDCG@10: won most")]
    shown = part[: part.index("</details>")]
    assert f"<code>{worst.query_id}</code>" in shown
    for side, other in (("live", "candidate"), ("candidate", "live")):
        ours, theirs = (getattr(worst.found, role) for role in (side, other))
        (table,) = re.findall(rf"First results of {side}</caption>(.*?)</table>", shown, re.S)
        rows = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2], re.S)
        ranks = {result.doc_id: n for n, result in enumerate(theirs, 1)}
        for rank, (row, result) in enumerate(zip(rows, ours, strict=True), 1):
            words = re.sub(r"<[^>]*>", " ", row).split()
            assert words[:3] == [str(rank), result.doc_id, f"{result.score:.4f}"]
            assert ("✓" in words) == bool(result.grade)
            assert str(ranks.get(result.doc_id, "no")) in words[3:], row


def test_texts_of_queries_are_shown_only_if_they_were_kept(made):
    hidden, shown = made(), made(texts=True)
    for write in (Report.html, Report.markdown):
        assert "text of q" not in write(hidden)
        assert "text of q" in write(shown)


def test_json_has_the_record_and_the_queries_that_changed_most(made):
    report = made()
    found = json.loads(report.json())
    assert found["verdict"] == "pass"
    assert found["cutoffs"]["cutoff"] == 0.9
    assert len(found["scores"]["of"]["live"]["relevant"]) == len(found["scores"]["edges"]) - 1
    (worst, *_) = found["changed_most"]["ndcg@10"]["lost"]
    assert worst["found"]["live"][0].keys() == {"doc_id", "score", "grade", "text"}


def test_where_nothing_lost_or_won_the_page_says_so(made):
    report = made(5)
    same = report.values.table
    for metric in ("ndcg@10", "recall@10"):
        at = same.column_names.index(f"candidate:{metric}")
        same = same.set_column(at, f"candidate:{metric}", same.column(f"live:{metric}"))
    page = replace(report, values=PerQuery(same)).html()
    assert page.count("No query lost.") == page.count("No query won.") == 2


# --- whatever was compared ---

RUN = RunFile("old.trec", "0" * 64, 60, 0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runs": Sides(RUN, RUN)}, "the metrics come from run files"),
        ({"latency": None, "encoding": None}, "Too few queries were timed."),
        ({"scores": None}, "No query has results."),
        ({"slices": ()}, "No slices"),
        ({"metrics": {}}, "Metrics of both"),
        ({"curve": Sides(None, None)}, "looks at all vectors"),
        ({"cutoff": None}, "Nothing was left out."),
    ],
    ids=["runs", "not timed", "no results", "no slices", "no metrics", "flat", "no cut-off"],
)  # fmt: skip
def test_a_page_has_what_there_is_and_says_what_there_is_not(made, changes, said):
    report = made(**changes)
    assert said in report.html()
    assert said in report.markdown()


def test_sets_and_what_was_left_out_are_counted(made):
    report = made()
    sets = (QuerySet("support", "/judged/support", 40, 2), QuerySet("log", "/log", 20, 0, "clicks"))
    used = replace(report.comparison.queries, sets=sets, dropped=2, same_text=4)
    record = replace(report.comparison, queries=used, truncated=Sides(3, 0))
    page = replace(report, comparison=record).html()
    for said in (
        "/judged/support",
        "clicks",
        "left out: 2 queries",
        "4 queries have a text",
        "reads, and cut: 3",
    ):
        assert said in page


@pytest.mark.parametrize("queries", [1, 5_000])
def test_one_query_and_five_thousand_give_a_page_below_a_megabyte_and_a_comment_of_github(
    made, queries
):
    report = made(queries, texts=True, cutoff=None)
    page, text = report.html(), report.markdown()
    assert len(page.encode()) < 1_000_000
    assert len(text) < 65_536
    assert page.count("<details") <= 80


@pytest.mark.parametrize("scale", [0.0011, 0.0099, 0.02, 0.055, 0.3, 0.77, 1.0])
def test_the_labels_under_the_changes_are_few_and_round(scale):
    ticks = _ticks(scale)
    assert 3 <= len(ticks) <= 7
    assert ticks == sorted(-t for t in ticks)
    assert all(len(f"{t:g}") <= 7 and abs(t) <= scale for t in ticks)


def test_texts_of_documents_are_beside_their_ids_where_they_are_asked_for(made):
    report = made(3)
    assert report.documents <= {*DOCS}
    there = sorted(report.documents)[0]
    shown = replace(report, texts={there: "<b>how it begins", "another": "not shown"})
    for page in (shown.html(), shown.markdown(), shown.json()):
        assert "how it begins" in page
        assert "not shown" not in page
        assert "how it begins" not in report.html()
    assert "<b>" not in shown.html()


@pytest.mark.parametrize(
    "text", [None, "a word and " * 99, "\u8a9e" * 999, "&" * 999, "\U0001f600" * 999]
)
def test_a_record_of_many_metrics_and_slices_stays_small(made, text):
    report = made(200, texts=True)
    if text is not None:
        report = replace(report, texts=dict.fromkeys(DOCS, beginning(text)))
    record = report.comparison
    keys = ("ndcg@10", "recall@1", "recall@10", "recall@100", "mrr@10")
    slices = tuple(replace(record.slices[0], value=f"{n}" * 100) for n in range(500))
    record = replace(record, gate=record.gate.model_copy(update={"metrics": keys}), slices=slices)
    wide = replace(report, comparison=record)
    assert len(wide.html().encode()) < 1_000_000
    assert len(wide.markdown()) < 65_536


# --- the files ---


@pytest.mark.parametrize("ending", [".html", ".md", ".json"])
def test_a_report_is_written_as_its_ending_says(made, ending, tmp_path):
    place = tmp_path / f"report{ending}"
    require_places((str(place),))
    report = made(3)
    report.write(place)
    wrote = {".html": report.html, ".md": report.markdown, ".json": report.json}[ending]
    assert place.read_text() == wrote()


@pytest.mark.parametrize("place", ["report.pdf", "report", "nowhere/report.md"])
def test_a_place_that_no_report_can_be_written_to_is_refused(place, tmp_path):
    with pytest.raises(UsageError) as refused:
        require_places((str(tmp_path / place),))
    assert refused.value.fix


# --- in a browser ---

LABELS_CUT = """[...document.querySelectorAll('svg text')].filter(label => {
    const a = label.getBoundingClientRect(), b = label.closest('svg').getBoundingClientRect();
    return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 2
}).map(label => label.textContent)"""
TABLES_CUT = """[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => [e.querySelector('caption').textContent, e.scrollWidth, e.clientWidth])"""


@pytest.mark.deep
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_no_window_is_too_narrow_and_dark_is_dark(made):
    report = made(texts=True)
    with open_tab() as tab:
        for page in (report.html(), made(1, cutoff=None).html()):
            for width, dark in ((360, False), (360, True), (1200, False), (1200, True)):
                tab.show(page, width, dark=dark)
                tab.value("document.querySelectorAll('details').forEach(d => d.open = true)")
                assert tab.value("document.documentElement.scrollWidth") <= width
                assert tab.value(LABELS_CUT) == []
                assert width == 360 or tab.value(TABLES_CUT) == []
                ground = tab.value("getComputedStyle(document.body).backgroundColor")
                assert ground == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")
        tab.show(report.html(), 718, media="print", dark=True)
        assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.value(TABLES_CUT) == []
        told = tab.ask("Accessibility.getFullAXTree")["nodes"]
        names = [n["name"]["value"] for n in told if n["role"]["value"] == "image"]
        assert len(names) == 3
        assert all(names)
