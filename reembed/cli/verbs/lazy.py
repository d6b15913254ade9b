"""Verbs of a lazy migration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import click

import reembed
from reembed.cli.command import Result, configured, duration, reason_option
from reembed.cli.progress import Console

if TYPE_CHECKING:
    from reembed.api.lazy import LazyAction
    from reembed.catalog.lazies import Fusion
    from reembed.config.settings import Config
    from reembed.strategies.simulate import Rate


_PER: dict[str, Literal["query", "hour", "day"]] = {"q": "query", "h": "hour", "d": "day"}


def share(value: str) -> float:
    """Return the share of 50% or 0.5."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", value)
    given = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < given <= 1:
        raise click.BadParameter(f"{value!r} is not a share: 50% or 0.5")
    return given


@click.command()
@click.argument("action", type=click.Choice(["start", "pause", "resume", "stop", "status"]))
@click.option("--keep/--drop", default=True, help="stop: keep the new side, or let gc remove it.")
@reason_option
@configured
def lazy(config: Config, action: LazyAction, keep: bool, reason: str | None) -> tuple[Result, int]:
    """Migrate documents as they turn up in answers: start, pause, resume, stop or status.

    The live release serves all the time. stop is one write, needs --reason, and returns to the live release alone.
    start needs strategy: lazy; it exits 3 if the model is worse on judged queries, and 6 if they cannot tell, which
    --reason overrules.
    """
    if action == "stop" and not reason:
        raise click.UsageError("--reason TEXT is required with stop")
    if not keep and action != "stop":
        raise click.UsageError("--drop goes with stop")
    return reembed.api.lazy(config, action, keep=keep, reason=reason, emit=Console()), 0


@click.command()
@click.option("--budget", type=click.IntRange(1), metavar="N", help="Documents to migrate at most.")
@click.option(
    "--for", "for_s", type=duration, metavar="TIME", help="Start no batch after this time: 10m, 1h."
)
@click.option(
    "--until", type=share, metavar="SHARE", help="End once this share is migrated: 50%. [100%]"
)
@click.option(
    "--every",
    "every_s",
    type=duration,
    default="0s",
    metavar="TIME",
    help="From the start of a batch to that of the next, at least: 90s, 5m.",
)
@configured
def sweep(
    config: Config, budget: int | None, for_s: float | None, until: float | None, every_s: float
) -> tuple[Result, int]:
    """Migrate documents of a lazy migration: those that turned up first, then the others.

    The same command continues where it ended. It also ends when the migration is paused or stopped.
    """
    from reembed.strategies.sweep import Limits

    limits = Limits(budget, for_s, until, every_s)
    return reembed.api.sweep(config, limits, emit=Console()), 0


def rate(value: str) -> Rate:
    """Return the rate of 500/d, 20/h or 3/q."""
    from reembed.strategies.simulate import Rate

    found = re.fullmatch(r"([1-9]\d*)/([qhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a rate: 500/d, 20/h or 3/q")
    return Rate(int(found[1]), _PER[found[2]])


@click.command()
@click.option(
    "--queries", default=10_000, type=click.IntRange(1), help="Last queries of the log to replay."
)
@click.option("-k", default=10, type=click.IntRange(1, 100), help="Documents an answer shows.")
@click.option(
    "--fusion",
    "fusions",
    multiple=True,
    type=click.Choice(["slots", "zscore", "rrf"]),
    help="Rule to measure; several times for several. [lazy.fusion]",
)
@click.option(
    "--sweep",
    type=rate,
    metavar="RATE",
    help="Also with a sweep of so many documents a day, an hour or a query of the log: 500/d, 20/h, 3/q.",
)
@configured
def simulate(
    config: Config, queries: int, k: int, fusions: tuple[Fusion, ...], sweep: Rate | None
) -> tuple[Result, int]:
    """Replay the query log against a lazy migration, before it is started.

    Prints which share of the documents and of the results would be migrated over time and, with judged queries,
    how good the answers would be. Stores nothing.
    """
    from reembed.strategies.simulate import Wanted

    wanted = Wanted(queries, k, tuple(dict.fromkeys(fusions)), sweep)
    return reembed.api.simulate(config, wanted, emit=Console()), 0
