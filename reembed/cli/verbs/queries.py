"""Verbs that answer queries."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

import reembed
from reembed.cli.command import Result, configured, words
from reembed.cli.progress import Console
from reembed.errors import UsageError
from reembed.events import Working

if TYPE_CHECKING:
    from reembed.config.settings import Config


@click.command()
@click.argument("queries", nargs=-1, required=True, type=words)
@click.option("-k", default=10, type=click.IntRange(1, 10_000), help="Results per query.")
@click.option("--release", "release_id", help="Release to search. [the live one]")
@click.option(
    "--show", multiple=True, metavar="COLUMN", help="Carried column to show with each result."
)
@click.option(
    "--filter",
    "condition",
    metavar="SQL",
    help="What each result must meet, over carried columns: \"lang = 'en' AND year > 2020\".",
)
@configured
def search(
    config: Config,
    queries: tuple[str, ...],
    k: int,
    release_id: str | None,
    show: tuple[str, ...],
    condition: str | None,
) -> tuple[Result, int]:
    """Search the live release, with the model that made its vectors."""
    from reembed.config.settings import RESERVED_COLUMNS

    if own := [c for c in show if c in RESERVED_COLUMNS]:
        command = ["reembed", "search", "-k", str(k)]
        if release_id:
            command += ["--release", release_id]
        for column in show:
            if column not in own:
                command += ["--show", column]
        if condition is not None:
            command += ["--filter", condition]
        raise UsageError(
            f"{', '.join(own)} is not a carried column",
            "every result shows its doc_id; other columns of reembed itself are not shown",
            shlex.join([*command, "--", *queries]),
        )
    return reembed.api.search(config, queries, k, release_id, show, condition), 0


@click.command()
@click.option("--host", default="127.0.0.1", help="Address to listen at.")
@click.option("--port", default=8080, type=click.IntRange(0, 65_535), help="0: a free one.")
@click.option("--token", metavar="env:NAME", help="Variable that holds what requests must carry.")
@click.option(
    "--refresh-every",
    default=10.0,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Between looks for a newer release.",
)
@click.option(
    "--lazy-budget",
    default=0.1,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="That an answer waits for the new side of a lazy migration.",
)
@click.option(
    "--lazy-embed",
    default=0,
    type=click.IntRange(0),
    metavar="N",
    help="Of the first N documents of an answer, embed those that are not migrated, within the budget.",
)
@click.option("--max-request-bytes", default=1 << 20, type=click.IntRange(1))
@click.option("--max-queries", default=256, type=click.IntRange(1), help="Queries of a request.")
@click.option("--max-k", default=1000, type=click.IntRange(1), help="Hits for each query.")
@configured
def serve(config: Config, host: str, port: int, **options: Any) -> tuple[Result, int]:
    """Answer searches over HTTP, and follow the alias, until Ctrl-C or SIGTERM.

    Another address than this machine's own needs a token.
    """
    from reembed.serving.http.options import ServeOptions

    emit, served = Console(), ServeOptions(**options)
    emit(Working("opening what is live"))
    return reembed.api.serve(config, host, port, options=served, emit=emit), 0
