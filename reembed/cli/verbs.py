"""The verbs. Each parses, calls one function, prints, and sets the exit code.

Heavy libraries are imported inside the verbs: `reembed --help` and `reembed status` stay quick.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from reembed import __version__
from reembed.cli import process
from reembed.cli.command import DURATION, UTF8, configured, lean_imports, output
from reembed.errors import UsageError

if TYPE_CHECKING:
    from reembed.api import Built
    from reembed.config.resolved import ResolvedConfig
    from reembed.config.settings import Config
    from reembed.evaluation.comparison import Comparison
    from reembed.lifecycle.dead_letters import DeadLetters
    from reembed.lifecycle.gc_plan import Collected
    from reembed.lifecycle.moves import History, Moved
    from reembed.lifecycle.status import Status
    from reembed.lifecycle.verification import Verified
    from reembed.planning.tune import Tuned
    from reembed.serving.result import SearchResult
    from reembed.source.importer import Imported
    from reembed.strategies.up_to_date import CaughtUp

EXIT_CODES = """\b
Exit codes: 0 done, 1 failed, 2 usage or config, 3 gate failed, 4 conflict (another promote or run
won), 5 difference found (verify --fresh-within), 6 inconclusive, 75 stopped by SIGTERM or without
a node left, 130 by Ctrl-C (the same command resumes)."""


class _Group(click.Group):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(EXIT_CODES.replace("\b\n", ""))


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="reembed")
def cli() -> None:
    """Change the embedding model behind a live vector index, safely.

    `run` builds, `promote` serves: only promote and rollback change the model that serves.
    """


@cli.command("import")
@click.argument("files", nargs=-1, required=True)
@click.option("--to", required=True, help="Lance dataset to make.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["json", "csv", "parquet"]),
    help="Left out: by file ending.",
)
@click.option("--columns", help="Comma-separated columns to keep. [all]")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Object-store setting of the target.",
)
@output
def import_verb(
    files: tuple[str, ...],
    to: str,
    file_format: str | None,
    columns: str | None,
    options: tuple[str, ...],
    as_json: bool,
) -> tuple[Imported, int]:
    """Make a Lance dataset from JSONL, CSV or Parquet files."""
    from reembed import api
    from reembed.config.options import secrets_in

    store_options = dict(o.partition("=")[::2] for o in options)
    for key in secrets_in(store_options):
        raise UsageError(
            f"--option {key} is a secret, and command lines are public on a machine",
            "keys and tokens come from the environment or the instance role",
            f"set {key.upper()} in the environment, and give --option {key}=env:{key.upper()} or leave it out",
        )
    names = [name.strip() for name in columns.split(",")] if columns else None
    result = api.import_documents(
        files, to, file_format=file_format, columns=names, options=store_options
    )
    return result, 0


@cli.command()
@click.option("--fresh", is_flag=True, help="Start over instead of resuming an unfinished run.")
@configured
def run(config: Config, fresh: bool) -> tuple[Built, int]:
    """Embed, build and verify a candidate; resumes by itself. What serves does not change."""
    from reembed.cli.progress import Console
    from reembed.events import Working

    emit = Console()
    emit(Working("loading Ray, Lance and the model's libraries"))
    from reembed import api

    return api.run(config, fresh=fresh, emit=emit), 0


@cli.command()
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Overlay to write; left out: printed only."
)
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(1), help="Time to spend."
)
@configured
def tune(config: Config, out: str | None, seconds: float) -> tuple[Tuned, int]:
    """Find the fastest batch, number type and layout for this model, corpus and machine."""
    from reembed import api
    from reembed.cli.progress import Console

    return api.tune(config, seconds, out, emit=Console()), 0


@cli.command()
@configured
def status(config: Config) -> tuple[Status, int]:
    """What is live, previous, candidate, and what is being built."""
    with lean_imports():
        from reembed import api

    return api.status(config), 0


@cli.command()
@click.option(
    "--release",
    "release_id",
    help="Left out: what was built with these settings, if it never served, or else what is live.",
)
@click.option(
    "--level",
    default=3,
    show_default=True,
    type=click.IntRange(0, 3),
    help="0 files by name and size, 1 and ids, 2 and every row, index and file, 3 and a sample.",
)
@click.option(
    "--sample", default=459, show_default=True, type=click.IntRange(0), help="Rows to embed again."
)
@click.option("--resume", is_flag=True, help="Go on with a verification that was interrupted.")
@click.option(
    "--fresh-within",
    type=DURATION,
    metavar="TIME",
    help="Exit 5 when documents older than this are missing or old in the release: 30m, 1h, 2d.",
)
@configured
def verify(
    config: Config,
    release_id: str | None,
    level: int,
    sample: int,
    resume: bool,
    fresh_within: float | None,
) -> tuple[Verified, int]:
    """Check a release against its source, row by row.

    It must equal the version of the source that it was made from or last caught up with; how far
    that is behind the newest version is said too. Exits 0 when they are equal, 1 when anything
    differs, 2 when it could not be found out, 5 when it is equal but not --fresh-within.
    """
    from reembed import api

    result = api.verify(config, release_id, level=level, sample=sample, resume=resume)
    if not result.passed:
        return result, 1
    if fresh_within is None or result.is_fresh(fresh_within):
        return result, 0
    return replace(result, fresh=False), 5


@cli.command()
@click.option("--candidate", "release_id", help="Left out: what was built with these settings.")
@click.option(
    "--changed-queries",
    is_flag=True,
    help="Accept judged queries that changed since the plan, or those the config names now.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Judge by this margin instead of the planned one.",
)
@click.option(
    "--reason", type=UTF8, help="Why; required with these two, recorded with before and after."
)
@configured
def compare(
    config: Config,
    release_id: str | None,
    changed_queries: bool,
    margin: float | None,
    reason: str | None,
) -> tuple[Comparison, int]:
    """The same judged queries on live and candidate. Exits 3 on fail, 6 when inconclusive.

    Every comparison is kept, and promote says how many there were.
    """
    from reembed import api
    from reembed.cli.progress import Console

    if (changed_queries or margin is not None) != bool(reason and reason.strip()):
        raise click.UsageError("--changed-queries or --margin X, and --reason TEXT, go together")
    result = api.compare(
        config,
        release_id,
        changed_queries=changed_queries,
        margin=margin,
        reason=reason,
        emit=Console(),
    )
    return result, {"pass": 0, "fail": 3, "inconclusive": 6}[result.verdict]


@cli.command()
@click.argument("release", required=False)
@click.option(
    "--initial",
    is_flag=True,
    help="The first promotion: nothing is live to compare with; recorded.",
)
@click.option(
    "--force", is_flag=True, help="Promote without a passing comparison; recorded permanently."
)
@click.option(
    "--reason", type=UTF8, help="Why, for the record; required with --initial and --force."
)
@click.option(
    "--catch-up/--no-catch-up",
    default=True,
    show_default=True,
    help="Embed what changed in the source since the candidate was built, first.",
)
@configured
def promote(
    config: Config,
    release: str | None,
    initial: bool,
    force: bool,
    reason: str | None,
    catch_up: bool,
) -> tuple[Moved, int]:
    """Make a candidate live: RELEASE, or what was built with these settings.

    Needs a passing comparison with exactly what is live now.
    """
    from reembed import api
    from reembed.cli.progress import Console

    if initial and force:
        raise click.UsageError("--initial is for the first promotion, --force for any other")
    if (initial or force) != bool(reason and reason.strip()):
        raise click.UsageError("--initial or --force, and --reason TEXT, go together")
    why = {"initial": reason if initial else None, "force": reason if force else None}
    return api.promote(config, release, **why, catch_up=catch_up, emit=Console()), 0


@cli.command("catch-up")
@click.argument("release", default="live")
@click.option(
    "--retry-dead-letters", is_flag=True, help="Try documents that have no vector once more."
)
@configured
def catch_up(config: Config, release: str, retry_dead_letters: bool) -> tuple[CaughtUp, int]:
    """Embed what changed in the source: for live, previous, or a release by id.

    Live moves on to the result; nothing is compared, since the model is the same.
    """
    from reembed import api
    from reembed.cli.progress import Console

    emit = Console()
    return api.catch_up(config, release, retry_dead_letters=retry_dead_letters, emit=emit), 0


@cli.command("dead-letters")
@click.argument("release", required=False)
@configured
def dead_letters(config: Config, release: str | None) -> tuple[DeadLetters, int]:
    """Documents that could not be embedded, by id and reason.

    Of live, previous, a release or an unfinished run by id; left out: of the newest unfinished run
    that has some, or else of what `verify` takes.
    """
    from reembed import api

    return api.dead_letters(config, release), 0


@cli.command()
@click.option("--to", help="Release to go back to. [the one that served before]")
@click.option("--reason", type=UTF8, help="Why, for the record.")
@configured
def rollback(config: Config, to: str | None, reason: str | None) -> tuple[Moved, int]:
    """Make the previous release live again: one write, no data is moved."""
    from reembed import api

    return api.rollback(config, to, reason), 0


@cli.command()
@configured
def history(config: Config) -> tuple[History, int]:
    """Every promote and rollback: when, who, what, why."""
    from reembed import api

    return api.history(config), 0


@cli.command()
@click.argument("queries", nargs=-1, required=True, type=UTF8)
@click.option(
    "-k", default=10, show_default=True, type=click.IntRange(1, 10_000), help="Results per query."
)
@click.option("--release", "release_id", help="Left out: what is live.")
@click.option(
    "--show", multiple=True, metavar="COLUMN", help="Carried column to show with each result."
)
@configured
def search(
    config: Config, queries: tuple[str, ...], k: int, release_id: str | None, show: tuple[str, ...]
) -> tuple[SearchResult, int]:
    """Search what is live, with the model that is live."""
    from reembed import api
    from reembed.config.settings import RESERVED_COLUMNS

    if own := [c for c in show if c in RESERVED_COLUMNS]:
        shown = [word for c in show if c not in own for word in ("--show", c)]
        chosen = ["--release", release_id] if release_id else []
        raise UsageError(
            f"{', '.join(own)} is not a carried column",
            "every result has its doc_id; the other columns of reembed's own are not shown",
            shlex.join(["reembed", "search", "-k", str(k), *chosen, *shown, "--", *queries]),
        )
    return api.search(config, queries, k, release_id, show), 0


@cli.command()
@click.option("--yes", is_flag=True, help="Delete what is listed.")
@click.option("--drop-run", metavar="RUN", help="An unfinished run to give up, too.")
@configured
def gc(config: Config, yes: bool, drop_run: str | None) -> tuple[Collected, int]:
    """List what no release needs any more; delete it with --yes."""
    from reembed import api

    return api.gc(config, delete=yes, drop_run=drop_run), 0


@cli.command("config")
@click.option("--check", is_flag=True, help="Only say whether it is valid.")
@configured
def config_verb(config: Config, check: bool) -> tuple[ResolvedConfig, int]:
    """The resolved settings, and where each came from."""
    from reembed.config.resolved import ResolvedConfig

    origins = click.get_current_context().obj["origins"]
    return ResolvedConfig(config, origins, check), 0


def main(arguments: list[str] | None = None) -> None:
    """Run the `reembed` command; the jobs pass their arguments."""
    process.run(cli, arguments)
