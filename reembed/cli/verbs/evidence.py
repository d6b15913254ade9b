"""Verbs that check a release and judge a candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

import reembed
from reembed.cli.command import Result, configured, duration, reason_option, require_reason
from reembed.cli.progress import Console

if TYPE_CHECKING:
    from reembed.config.settings import Config

_VERDICTS = {"pass": 0, "fail": 3, "inconclusive": 6}
_candidate = click.option(
    "--candidate", "release", help="Release to judge. [the one built with these settings]"
)


@click.command()
@click.option(
    "--release",
    help="Release to check. [the one built with these settings if it was never live, else the live one]",
)
@click.option(
    "--level",
    default=3,
    type=click.IntRange(0, 3),
    help="0: names and sizes of files; 1: also ids; 2: also every row, the index and the bytes of every"
    " file; 3: also a sample that is embedded again.",
)
@click.option(
    "--sample", default=459, type=click.IntRange(0), help="Rows to embed again at level 3."
)
@click.option("--resume", is_flag=True, help="Continue an interrupted verification.")
@click.option(
    "--fresh-within",
    type=duration,
    metavar="TIME",
    help="Exit 5 if the release lacks a change of the source that is older than this: 30m, 1h, 2d.",
)
@configured
def verify(config: Config, fresh_within: float | None, **options: Any) -> tuple[Result, int]:
    """Check a release against its source, row by row.

    The release must equal the source version that it was built from or last caught up with; the
    output also says how far that is behind the newest version. Exits 0 if they are equal, 1 if
    anything differs, 2 if the check could not finish, 5 if they are equal but not --fresh-within.
    """
    result = reembed.api.verify(config, **options)
    if not result.passed:
        return result, 1
    if fresh_within is None or result.is_fresh(fresh_within):
        return result, 0
    return replace(result, fresh=False), 5


@click.command()
@_candidate
@click.option(
    "--changed-queries",
    is_flag=True,
    help="Accept judged queries that changed since the plan, or those that the config names now;"
    " needs --reason.",
)
@click.option(
    "--changed-gate",
    is_flag=True,
    help="Judge by the gate's group, slices, metrics and latency_ratio as the config has them now; needs --reason.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Judge by this margin instead of the planned one; needs --reason.",
)
@reason_option
@click.option(
    "--runs",
    nargs=2,
    metavar="OLD NEW",
    help="Judge these run files in TREC format, made by your own pipeline with live and with the candidate.",
)
@click.option(
    "--cutoff",
    type=float,
    help="A cut-off of live's scores: find the candidate's that keep its recall and its share of results.",
)
@click.option(
    "--texts",
    is_flag=True,
    help="Keep the texts of the queries with their values; the report shows them.",
)
@click.option(
    "--document-texts",
    is_flag=True,
    help="Show in the report how the texts of the documents begin.",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="Also write the report to this file: .html, .md (for a pull request) or .json.",
)
@configured
def compare(config: Config, **options: Any) -> tuple[Result, int]:
    """Run the same judged queries on the live release and a candidate.

    Every comparison is kept, and promote shows how many there were. Exits 3 if the candidate fails,
    6 if the comparison is inconclusive.
    """
    flags = options["changed_queries"], options["changed_gate"], options["margin"] is not None
    require_reason("--changed-queries, --changed-gate or --margin X", any(flags), options["reason"])
    result = reembed.api.compare(config, **options, emit=Console())
    return result, _VERDICTS[result.verdict]


@click.command()
@_candidate
@click.option(
    "--every",
    type=duration,
    metavar="TIME",
    help="Look again after this time (30m, 1h), until more queries change nothing. [one look]",
)
@click.option("--promote-if-pass", is_flag=True, help="Make the candidate live once it passes.")
@click.option("--new", is_flag=True, help="Give up the last shadow and begin one; needs --reason.")
@reason_option
@configured
def shadow(
    config: Config, every: float | None, new: bool, reason: str | None, **options: Any
) -> tuple[Result, int]:
    """Judge a candidate by the queries that arrive, while it and the live release stay up to date.

    Needs strategy: dual_index. Looking often promotes no worse model. After the cut-over a loss that is shown
    rolls back. Exits 3 if the candidate fails or was rolled back, 6 while nothing is decided.
    """
    from reembed.strategies.dual_index import Asked

    require_reason("--new", new, reason)
    result = reembed.api.shadow(config, Asked(**options, new=reason), every, emit=Console())
    return result, _VERDICTS[result.verdict]
