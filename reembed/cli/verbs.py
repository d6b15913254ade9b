"""The verbs. Each parses, calls one function, prints, and sets the exit code.

Heavy libraries are imported inside the verbs: `reembed --help` and `reembed status` stay quick.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from reembed import __version__
from reembed.cli.command import DURATION, UTF8, configured, lean_imports, output
from reembed.errors import UsageError
from reembed.redact import redacted

if TYPE_CHECKING:
    from pathlib import Path

    from reembed.catalog.releases import Catalog
    from reembed.config.settings import Config

EXIT_CODES = """\b
Exit codes: 0 done, 1 failed, 2 usage or config, 3 gate failed, 4 conflict (another promote or run
won), 5 difference found (verify --fresh-within), 6 inconclusive, 75 stopped by SIGTERM or without
a node left, 130 by Ctrl-C (the same command resumes)."""

_INTERRUPTED = 130


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


def _catalog(config: Config) -> Catalog:
    from reembed.api import catalog_of

    return catalog_of(config)


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
) -> tuple[dict[str, Any], int]:
    """Make a Lance dataset from JSONL, CSV or Parquet files."""
    from reembed.config.settings import secret_keys
    from reembed.source import importer

    store_options = dict(o.partition("=")[::2] for o in options)
    for key in secret_keys(store_options):
        raise UsageError(
            f"--option {key} is a secret, and command lines are public on a machine",
            "keys and tokens come from the environment or the instance role",
            f"set {key.upper()} in the environment, and leave --option {key} out",
        )
    names = [name.strip() for name in columns.split(",")] if columns else None
    result = importer.import_documents(
        list(files), to, file_format=file_format, columns=names, options=store_options
    )
    return result, 0


@cli.command()
@click.option("--fresh", is_flag=True, help="Start over instead of resuming an unfinished run.")
@configured
def run(config: Config, fresh: bool) -> tuple[dict[str, Any], int]:
    """Embed, build and verify a candidate; resumes by itself. What serves does not change."""
    from reembed.cli.progress import Console

    say = Console()
    say("begin", what="loading Ray, Lance and the model's libraries")
    from reembed.store.records import encode
    from reembed.strategies.full_rebuild import full_rebuild

    release = full_rebuild(config, say, fresh=fresh)
    live = _catalog(config).live()
    return {**encode(release), "live": live.release.id if live else None}, 0


@cli.command()
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Overlay to write; left out: printed only."
)
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(1), help="Time to spend."
)
@configured
def tune(config: Config, out: str | None, seconds: float) -> tuple[dict[str, Any], int]:
    """Find the fastest batch, number type and layout for this model, corpus and machine."""
    from pathlib import Path

    from reembed.planning import tune as tuning

    if out is not None:
        _can_hold_overlay(Path(out))
    result = tuning.tune(config, lambda words: click.echo(words, err=True), seconds)
    if out is not None:
        Path(out).write_text(tuning.overlay(result))
    return {**result, "out": out, "overlay": tuning.overlay(result)}, 0


def _can_hold_overlay(path: Path) -> None:
    """Before anything is measured.

    Raises:
        UsageError: it cannot be written, or is a file that is not an overlay.
    """
    from reembed.planning import tune as tuning

    out, nothing = f"--out {path}", "nothing was measured"
    if not path.absolute().parent.is_dir():
        fix = f"mkdir -p {shlex.quote(str(path.parent))}"
        raise UsageError(f"{out}: there is no such folder", nothing, fix)
    there = path.exists()
    if not os.access(path if there else path.absolute().parent, os.W_OK):
        raise UsageError(
            f"{out}: it cannot be written", nothing, "reembed tune --out /tmp/tuned.yaml"
        )
    if there and not tuning.is_overlay(path.read_text(errors="replace")):
        raise UsageError(
            f"{out}: this file was not written by tune, and would be lost",
            nothing,
            f"reembed tune --out {shlex.quote(str(path.with_suffix('.tuned.yaml')))}",
        )


@cli.command()
@configured
def status(config: Config) -> tuple[dict[str, Any], int]:
    """What is live, previous, candidate, and what is being built."""
    with lean_imports():
        from reembed.lifecycle import status as status_module

    return status_module.status(_catalog(config)), 0


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
) -> tuple[dict[str, Any], int]:
    """Check a release against its source, row by row.

    It must equal the version of the source that it was made from or last caught up with; how far
    that is behind the newest version is said too. Exits 0 when they are equal, 1 when anything
    differs, 2 when it could not be found out, 5 when it is equal but not --fresh-within.
    """
    from reembed import api as check

    chosen = check.meant(config, release_id)
    result = check.verify_release(
        _catalog(config), chosen, level=level, sample=sample, resume=resume
    )
    if not result["passed"]:
        return result, 1
    if fresh_within is None or check.is_fresh(result, fresh_within):
        return result, 0
    return {**result, "fresh": False}, 5


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
) -> tuple[dict[str, Any], int]:
    """The same judged queries on live and candidate. Exits 3 on fail, 6 when inconclusive.

    Every comparison is kept, and promote says how many there were.
    """
    from reembed import api as check
    from reembed.cli.progress import Console
    from reembed.evaluation.comparisons import Asked

    if (changed_queries or margin is not None) != bool(reason and reason.strip()):
        raise click.UsageError("--changed-queries or --margin X, and --reason TEXT, go together")
    asked = Asked(changed_queries, margin, reason)
    result = check.compare_candidate(config, release_id, Console(), asked)
    return result, {"pass": 0, "fail": 3, "inconclusive": 6}[result["verdict"]]


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
) -> tuple[dict[str, Any], int]:
    """Make a candidate live: RELEASE, or what was built with these settings.

    Needs a passing comparison with exactly what is live now.
    """
    from reembed import api as check
    from reembed.cli.progress import Console
    from reembed.lifecycle.promote import Reasons

    if initial and force:
        raise click.UsageError("--initial is for the first promotion, --force for any other")
    if (initial or force) != bool(reason and reason.strip()):
        raise click.UsageError("--initial or --force, and --reason TEXT, go together")
    reasons = Reasons(force=reason if force else None, initial=reason if initial else None)
    return check.promote_release(config, release, reasons, catch_up=catch_up, say=Console()), 0


@cli.command("catch-up")
@click.argument("release", default="live")
@click.option(
    "--retry-dead-letters", is_flag=True, help="Try documents that have no vector once more."
)
@configured
def catch_up(config: Config, release: str, retry_dead_letters: bool) -> tuple[dict[str, Any], int]:
    """Embed what changed in the source: for live, previous, or a release by id.

    Live moves on to the result; nothing is compared, since the model is the same.
    """
    from reembed import api as check
    from reembed.cli.progress import Console

    result = check.catch_up_release(
        config, release, Console(), retry_dead_letters=retry_dead_letters
    )
    return result, 0


@cli.command("dead-letters")
@click.argument("release", required=False)
@configured
def dead_letters(config: Config, release: str | None) -> tuple[dict[str, Any], int]:
    """Documents that could not be embedded, by id and reason.

    Of live, previous, a release or an unfinished run by id; left out: of the newest unfinished run
    that has some, or else of what `verify` takes.
    """
    from reembed import api as check

    return check.dead_letters(config, release), 0


@cli.command()
@click.option("--to", help="Release to go back to. [the one that served before]")
@click.option("--reason", type=UTF8, help="Why, for the record.")
@configured
def rollback(config: Config, to: str | None, reason: str | None) -> tuple[dict[str, Any], int]:
    """Make the previous release live again: one write, no data is moved."""
    from reembed import api as check

    return check.rollback_release(_catalog(config), to, reason), 0


@cli.command()
@configured
def history(config: Config) -> tuple[dict[str, Any], int]:
    """Every promote and rollback: when, who, what, why."""
    records = _catalog(config).log()
    keys = ("generation", "action", "at", "by", "token")
    steps = [
        {
            **{k: getattr(r, k) for k in keys},
            **asdict(r.grounds),
            "release": r.release.id,
            "model": r.release.space.model,
        }
        for r in records
    ]
    return {"alias": config.alias, "steps": steps}, 0


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
) -> tuple[dict[str, Any], int]:
    """Search what is live, with the model that is live."""
    from reembed import api as check

    return check.search(_catalog(config), list(queries), k, release_id, list(show)), 0


@cli.command()
@click.option("--yes", is_flag=True, help="Delete what is listed.")
@click.option("--drop-run", metavar="RUN", help="An unfinished run to give up, too.")
@configured
def gc(config: Config, yes: bool, drop_run: str | None) -> tuple[dict[str, Any], int]:
    """List what no release needs any more; delete it with --yes."""
    from reembed.lifecycle import gc as gc_module

    catalog, keep = _catalog(config), config.storage.keep
    dropped = gc_module.droppable(catalog, drop_run) if drop_run else None
    if dropped and yes:
        dropped.abandon()
    planned = gc_module.plan(catalog, keep, dropping=drop_run)
    removed = gc_module.apply(catalog, planned, keep) if yes else []
    done = {"removed": [r.release for r in removed], "deleted": yes}
    return {**planned.to_json(), **done, "drop_run": drop_run}, 0


@cli.command("config")
@click.option("--check", is_flag=True, help="Only say whether it is valid.")
@configured
def config_verb(config: Config, check: bool) -> tuple[dict[str, Any], int]:
    """The resolved settings, and where each came from."""
    origins = click.get_current_context().obj["origins"]
    return {
        "valid": True,
        "check": check,
        "settings": config.shown(),
        "origins": origins,
    }, 0


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `reembed` command; of its jobs, with their arguments."""
    sys.excepthook = _unexpected
    try:
        _run_verb(arguments)
    except SystemExit as end:
        if not end.code or "reembed.engine.cluster" not in sys.modules:
            raise
        # A Ray that was stopped while it started, or under a job that was given up, aborts in Python's
        # own way out, and the exit code would be the abort's.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code))


def _run_verb(arguments: list[str] | None) -> NoReturn:
    try:
        sys.exit(cli(arguments, prog_name="reembed", standalone_mode=False))
    except click.UsageError as error:
        error.show()
        _end({"error": "UsageError", "what": error.format_message()}, error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped; `reembed status` says where things stand.", err=True)
        _end({"error": "Interrupted", "what": "stopped by the user"}, _INTERRUPTED)


def _unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A mistake of ours: its traceback, without credentials."""
    click.echo(redacted("".join(traceback.format_exception(kind, error, trace))), err=True)


def _end(record: dict[str, Any], code: int) -> NoReturn:
    """The error for scripts too, where --json asked for it but no verb got to print."""
    if "--json" in sys.argv:
        click.echo(json.dumps({**record, "exit_code": code}))
    sys.exit(code)
