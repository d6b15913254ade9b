"""Verbs that lead from documents to a candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

import reembed
from reembed.cli.command import Result, configured, output
from reembed.cli.progress import Console
from reembed.errors import UsageError
from reembed.events import Working

if TYPE_CHECKING:
    from reembed.config.settings import Config


@click.command("import")
@click.argument("files", nargs=-1, required=True)
@click.option("--to", required=True, help="Lance dataset to write.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["json", "csv", "parquet"]),
    help="Format of the files. [by their endings]",
)
@click.option("--columns", help="Comma-separated columns to keep. [all]")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Object-store setting of the dataset.",
)
@output
def import_verb(columns: str | None, options: tuple[str, ...], **rest: Any) -> tuple[Result, int]:
    """Write a Lance dataset from JSONL, CSV or Parquet files."""
    from reembed.config.options import secrets_in

    store_options = dict(o.partition("=")[::2] for o in options)
    for key in secrets_in(store_options):
        raise UsageError(
            f"--option {key} is a secret, and every user of a machine can read its command lines",
            "keys and tokens come from the environment or the instance role",
            f"set {key.upper()} in the environment, and give --option {key}=env:{key.upper()} or leave it out",
        )
    kept = None
    if columns:
        kept = [name.strip() for name in columns.split(",")]
    return reembed.api.import_documents(columns=kept, options=store_options, **rest), 0


@click.command()
@click.option("--fresh", is_flag=True, help="Start over instead of resuming an unfinished run.")
@click.option(
    "--query-only",
    is_flag=True,
    help="Take live's documents and index as they are, and the config's model for queries alone: no document"
    " is embedded.",
)
@click.option(
    "--bridge",
    type=click.IntRange(1),
    metavar="N",
    help="With --query-only: embed N documents of live, to fit a rotation from the new model's space to theirs.",
)
@configured
def run(config: Config, **options: Any) -> tuple[Result, int]:
    """Build a candidate: embed the documents, index and verify them.

    An unfinished run is resumed. The live release does not change.
    """
    emit = Console()
    emit(Working("loading Ray, Lance and the model's libraries"))
    return reembed.api.run(config, **options, emit=emit), 0


@click.command()
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Also write the settings to this config file."
)
@click.option("--seconds", default=60.0, type=click.FloatRange(1), help="Time to spend.")
@configured
def tune(config: Config, out: str | None, seconds: float) -> tuple[Result, int]:
    """Find the fastest settings of `embed` for this model, corpus and machine."""
    return reembed.api.tune(config, seconds, out, emit=Console()), 0


@click.command("dead-letters")
@click.argument("release", required=False)
@configured
def dead_letters(config: Config, release: str | None) -> tuple[Result, int]:
    """List the documents that could not be embedded, with reasons.

    RELEASE is live, previous, or the id of a release or of an unfinished run. By default it is the
    newest unfinished run with such documents, or else the release that `verify` checks.
    """
    return reembed.api.dead_letters(config, release), 0


@click.command("config")
@click.option("--check", is_flag=True, help="Only check that the config is valid.")
@configured
def config_verb(config: Config, check: bool) -> tuple[Result, int]:
    """Show the resolved settings and where each comes from."""
    return replace(click.get_current_context().obj, check=check), 0
