"""Verbs about what the alias names: promote, roll back, keep up to date, clean up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import reembed
from reembed.cli.command import Result, configured, lean_imports, reason_option, require_reason
from reembed.cli.progress import Console

if TYPE_CHECKING:
    from reembed.config.settings import Config


@click.command()
@click.argument("release", required=False)
@click.option(
    "--initial",
    is_flag=True,
    help="The first promotion, when nothing is live to compare with; needs --reason.",
)
@click.option("--force", is_flag=True, help="Promote without a passing comparison; needs --reason.")
@click.option(
    "--without-evidence",
    is_flag=True,
    help="Promote although there are no judged queries to compare by; needs --reason.",
)
@reason_option
@click.option(
    "--catch-up/--no-catch-up",
    default=True,
    help="First embed what changed in the source since the candidate was built.",
)
@configured
def promote(config: Config, reason: str | None, **options: Any) -> tuple[Result, int]:
    """Make a candidate live: RELEASE, or the one built with these settings.

    It needs a passing comparison with exactly the release that is live now.
    """
    flags = "initial", "force", "without_evidence"
    given = [flag for flag in flags if options.pop(flag)]
    if len(given) > 1:
        raise click.UsageError("give one of --initial, --force and --without-evidence")
    require_reason("--initial, --force or --without-evidence", bool(given), reason)
    why = dict.fromkeys(given, reason)
    return reembed.api.promote(config, **why, **options, emit=Console()), 0


@click.command("catch-up")
@click.argument("which", metavar="[RELEASE]", default="live")
@click.option("--retry-dead-letters", is_flag=True, help="Try documents without a vector again.")
@configured
def catch_up(config: Config, **options: Any) -> tuple[Result, int]:
    """Embed what changed in the source since a release was built.

    RELEASE is live (the default), previous, or the id of a release. What replaces the live release
    becomes live; nothing is compared, because the model is the same.
    """
    return reembed.api.catch_up(config, **options, emit=Console()), 0


@click.command()
@click.option("--to", help="Release to make live. [the previous one]")
@reason_option
@configured
def rollback(config: Config, to: str | None, reason: str | None) -> tuple[Result, int]:
    """Make the previous release live again: one write; no data is moved."""
    return reembed.api.rollback(config, to, reason, emit=Console()), 0


@click.command()
@configured
def status(config: Config) -> tuple[Result, int]:
    """Show the live release, the previous one, candidates and unfinished runs."""
    with lean_imports():
        return reembed.api.status(config), 0


@click.command()
@configured
def history(config: Config) -> tuple[Result, int]:
    """List every promote, rollback and catch-up: when, what, by whom and why."""
    return reembed.api.history(config), 0


@click.command()
@click.option("--yes", is_flag=True, help="Delete what is listed.")
@click.option("--drop-run", metavar="RUN", help="Also give up this unfinished run.")
@configured
def gc(config: Config, yes: bool, drop_run: str | None) -> tuple[Result, int]:
    """List what no release needs; delete it with --yes."""
    return reembed.api.gc(config, delete=yes, drop_run=drop_run), 0
