"""A filter that says nothing of a document, or of another thing than it seems, is refused."""

from __future__ import annotations

import shlex

import lance
import pyarrow as pa
import pytest
from inline import Inline

from reembed.errors import SourceError
from reembed.source.filter import check_filter, require_condition
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def dataset(tmp_path):
    rows = {
        "doc_id": [f"d{n}" for n in range(12)],
        "Lang": ["en", "de", "fr"] * 4,
        "year": list(range(12)),
        "text": ["x"] * 12,
        "od d": ["1"] * 12,
        "s": [{"a": n} for n in range(12)],
    }
    return lance.write_dataset(pa.table(rows), str(tmp_path / "source.lance"))


@pytest.mark.parametrize(
    ("condition", "part"),
    [
        ("year < random() * 9", "random"),
        ("year > 3 AND cast(year as timestamp) < now ( )", "now"),
        ("CURRENT_TIMESTAMP > cast(year as timestamp)", "CURRENT_TIMESTAMP"),
        ("cast(year as date) < current_date()", "current_date"),
        ("Lang != Uuid()", "Uuid"),
        ("year > length(text) AND Lang < cast(rand() as string)", "rand"),
    ],
)
def test_a_filter_that_gives_another_answer_tomorrow_is_refused(dataset, condition, part):
    with pytest.raises(SourceError) as refused:
        check_filter(dataset, "s.lance", condition)
    assert f": {part} is not the same at every evaluation" in refused.value.what


@pytest.mark.parametrize("column", ["now", "current_date", "Random"])
def test_a_column_may_have_the_name_of_such_a_function(tmp_path, column):
    rows = pa.table({"doc_id": ["a", "b"], column: [1, 2], "text": ["now()", "random()"]})
    dataset = lance.write_dataset(rows, str(tmp_path / "named.lance"))
    check_filter(dataset, "named.lance", f"`{column}` > 1 AND text = 'now()'")


@pytest.mark.parametrize(
    ("condition", "part"),
    [
        ("\"Lang\" != 'en'", '"Lang" is a text, not the column Lang'),
        ('"lang" IS NOT NULL', '"lang" is a text, not the column Lang'),
        ("year > 3 OR \"Lang\" IN ('en', 'de')", '"Lang" is a text'),
        ("\"od d\" = '1'", '"od d" is a text, not the column od d'),
        ('"year" < 3000', '"year" is a text, not the column year'),
        ("'Lang' != 'en'", "\"'Lang' != 'en'\" does not name a column"),
        ("1 = 1", "'1 = 1' does not name a column"),
        ("true", "'true' does not name a column"),
        ("_rowid > 3", "'_rowid > 3' does not name a column"),
        ("year > 3 AND 'Lang' != 'en'", "\"'Lang' != 'en'\" does not name a column"),
        ("year BETWEEN 1 AND 5 and 'Lang' != 'en'", "\"'Lang' != 'en'\" does not name a column"),
        ("year > 3 OR ('Lang' = 'en' AND year < 2)", "\"'Lang' = 'en'\" does not name a column"),
        ("NOT ((year > 3) AND NOT 'Lang' = 'AND')", "\"'Lang' = 'AND'\" does not name a column"),
        ("nosuch = 1", "No field named nosuch"),
        ("year >", "is not a filter over"),
    ],
)
def test_a_comparison_that_no_document_decides_is_refused(dataset, condition, part):
    with pytest.raises(SourceError) as found:
        check_filter(dataset, "the source", condition)
    assert part in str(found.value)


@pytest.mark.parametrize(
    "condition",
    [
        "Lang != 'en'",
        "`Lang` != 'en'",
        'Lang = "en"',
        "`od d` = '1' AND s.a > 2",
        "year between 1 and 5 AND Lang = 'en'",
        "NOT (Lang = 'AND' OR (year > 3 AND year < 5))",
        "(year > 1) AND (Lang like 'e%')",
        "Lang IN ('en', 'or and') AND Lang IS NOT NULL",
        "year > 1 -- AND true",
        "lower(Lang) = 'en' OR year NOT BETWEEN 1 AND 2",
        "Lang = 'it''s' /* AND true */",
    ],
)
def test_a_filter_over_columns_is_taken(dataset, condition):
    check_filter(dataset, "the source", condition)


@pytest.mark.parametrize("condition", ["cast(Lang as int) > 3", "year / 0 > 1"])
def test_a_filter_that_can_be_planned_and_not_evaluated_is_refused(dataset, condition):
    with pytest.raises(SourceError, match="is not a filter over"):
        check_filter(dataset, "here", condition)


def test_a_filter_that_fails_at_a_later_row_is_named(dataset, make_config, quiet):
    rows = {"doc_id": ["late"], "Lang": ["en"], "year": [12], "text": ["y"], "od d": ["one"]}
    lance.write_dataset(pa.table(rows | {"s": [{"a": 1}]}), dataset.uri, mode="append")
    config = make_config(
        dataset.uri, source={"uri": dataset.uri, "filter": "cast(`od d` as int) = 1"}
    )
    with pytest.raises(SourceError, match="cannot be evaluated for every row"):
        full_rebuild(config, quiet, executor=Inline())


def test_the_fix_of_a_quoted_column_filters_by_the_column(dataset):
    with pytest.raises(SourceError) as found:
        check_filter(dataset, "the source", "\"Lang\" != 'en' AND year < 9")
    setting = shlex.split(found.value.fix)[-1]
    meant = setting.removeprefix("source.filter=")
    check_filter(dataset, "the source", meant)
    assert dataset.count_rows(meant) == 6


def test_a_run_says_how_many_rows_the_filter_keeps_before_it_embeds(dataset, make_config, quiet):
    config = make_config(dataset.uri, source={"filter": "Lang != 'en'"})
    full_rebuild(config, quiet, executor=Inline())
    assert "source.filter keeps 8 of 12 rows" in quiet.said()
    stages = quiet.stages()
    assert stages.index("note") < stages.index("embedded")


@pytest.mark.parametrize("condition", ["nosuch = 1", "1 = 1", "n >"])
def test_the_fix_of_any_refused_filter_names_a_column_that_is_there(tmp_path, condition):
    dataset = lance.write_dataset(pa.table({"a`b": [1], "n": [1]}), str(tmp_path / "n.lance"))
    with pytest.raises(SourceError) as found:
        check_filter(dataset, "the source", condition)
    setting = shlex.split(found.value.fix)[3]
    check_filter(dataset, "the source", setting.removeprefix("source.filter="))


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("year > " + "1+" * 1000 + "1", "2,003 words and signs; up to 128"),
        ("NOT " * 900 + "(year > 1)", "words and signs; up to 128"),
        ("(" * 90 + "year > 1" + ")" * 90, "90 brackets"),
        ("year = $1", "no value for $1"),
        ("year = 1 OR " * 9_000 + "year = 2", "characters"),
    ],
)
@pytest.mark.parametrize("check", [check_filter, require_condition])
def test_what_would_end_the_process_in_lance_is_refused(dataset, check, condition, why):
    with pytest.raises(SourceError) as refused:
        check(dataset, "the source", condition)
    assert why in refused.value.why
    assert len(refused.value.what) < 300
    assert refused.value.fix == "reembed run --set 'source.filter=`doc_id` IS NOT NULL'"
