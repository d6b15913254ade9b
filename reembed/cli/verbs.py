"""The verbs. Each parses, calls one function of `reembed.api`, prints, and sets the exit code.

`reembed.api` is loaded when it is first named: `reembed --help` and `reembed status` stay quick.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

import reembed
from reembed.cli import command
from reembed.cli.command import Result, configured, duration, lean_imports, output, words
from reembed.cli.progress import Console
from reembed.errors import UsageError
from reembed.events import Working

if TYPE_CHECKING:
    from reembed.config.settings import Config

_EXIT_CODES = """Exit codes: 0 done, 1 failed, or verify found a difference, 2 cannot be done as asked (usage,
config, source, model), or verify could not finish, 3 gate failed, or not compared yet, 4 conflict (another
promote or run won), 5 release too old (verify --fresh-within), 6 inconclusive, 75 stopped by SIGTERM, or no
node is left, or the model's provider does not answer, 130 stopped by Ctrl-C. After 75 and 130, the same
command resumes a run."""


@click.group(
    epilog=_EXIT_CODES,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.version_option(reembed.__version__, prog_name="reembed")
def cli() -> None:
    """Change the embedding model behind a live vector index, safely.

    `run` builds, `promote` serves: only promote and rollback change the live model.
    """


_VERDICTS = {"pass": 0, "fail": 3, "inconclusive": 6}
_candidate = click.option(
    "--candidate", "release", help="Release to judge. [the one built with these settings]"
)
_reason = click.option("--reason", type=words, help="Why, for the record.")


def _require_reason(flags: str, given: bool, reason: str | None) -> None:
    if given != bool(reason and reason.strip()):
        raise click.UsageError(f"--reason TEXT is required with {flags}, and only there")


@cli.command("import")
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


@cli.command()
@click.option("--fresh", is_flag=True, help="Start over instead of resuming an unfinished run.")
@configured
def run(config: Config, fresh: bool) -> tuple[Result, int]:
    """Build a candidate: embed the documents, index and verify them.

    An unfinished run is resumed. The live release does not change.
    """
    emit = Console()
    emit(Working("loading Ray, Lance and the model's libraries"))
    return reembed.api.run(config, fresh=fresh, emit=emit), 0


@cli.command()
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Also write the settings to this config file."
)
@click.option("--seconds", default=60.0, type=click.FloatRange(1), help="Time to spend.")
@configured
def tune(config: Config, out: str | None, seconds: float) -> tuple[Result, int]:
    """Find the fastest settings of `embed` for this model, corpus and machine."""
    return reembed.api.tune(config, seconds, out, emit=Console()), 0


@cli.command()
@configured
def status(config: Config) -> tuple[Result, int]:
    """Show the live release, the previous one, candidates and unfinished runs."""
    with lean_imports():
        return reembed.api.status(config), 0


@cli.command()
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


@cli.command()
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
@_reason
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
    _require_reason(
        "--changed-queries, --changed-gate or --margin X", any(flags), options["reason"]
    )
    result = reembed.api.compare(config, **options, emit=Console())
    return result, _VERDICTS[result.verdict]


@cli.command()
@_candidate
@click.option(
    "--every",
    type=duration,
    metavar="TIME",
    help="Look again after this time (30m, 1h), until more queries change nothing. [one look]",
)
@click.option("--promote-if-pass", is_flag=True, help="Make the candidate live once it passes.")
@click.option("--new", is_flag=True, help="Give up the last shadow and begin one; needs --reason.")
@_reason
@configured
def shadow(
    config: Config, every: float | None, new: bool, reason: str | None, **options: Any
) -> tuple[Result, int]:
    """Judge a candidate by the queries that arrive, while it and the live release stay up to date.

    Needs strategy: dual_index. Looking often promotes no worse model. After the cut-over a loss that is shown
    rolls back. Exits 3 if the candidate fails or was rolled back, 6 while nothing is decided.
    """
    from reembed.strategies.dual_index import Asked

    _require_reason("--new", new, reason)
    result = reembed.api.shadow(config, Asked(**options, new=reason), every, emit=Console())
    return result, _VERDICTS[result.verdict]


@cli.command()
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
@_reason
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
    _require_reason("--initial, --force or --without-evidence", bool(given), reason)
    why = dict.fromkeys(given, reason)
    return reembed.api.promote(config, **why, **options, emit=Console()), 0


@cli.command("catch-up")
@click.argument("which", metavar="[RELEASE]", default="live")
@click.option("--retry-dead-letters", is_flag=True, help="Try documents without a vector again.")
@configured
def catch_up(config: Config, **options: Any) -> tuple[Result, int]:
    """Embed what changed in the source since a release was built.

    RELEASE is live (the default), previous, or the id of a release. What replaces the live release
    becomes live; nothing is compared, because the model is the same.
    """
    return reembed.api.catch_up(config, **options, emit=Console()), 0


@cli.command("dead-letters")
@click.argument("release", required=False)
@configured
def dead_letters(config: Config, release: str | None) -> tuple[Result, int]:
    """List the documents that could not be embedded, with reasons.

    RELEASE is live, previous, or the id of a release or of an unfinished run. By default it is the
    newest unfinished run with such documents, or else the release that `verify` checks.
    """
    return reembed.api.dead_letters(config, release), 0


@cli.command()
@click.option("--to", help="Release to make live. [the previous one]")
@_reason
@configured
def rollback(config: Config, to: str | None, reason: str | None) -> tuple[Result, int]:
    """Make the previous release live again: one write; no data is moved."""
    return reembed.api.rollback(config, to, reason, emit=Console()), 0


@cli.command()
@configured
def history(config: Config) -> tuple[Result, int]:
    """List every promote, rollback and catch-up: when, what, by whom and why."""
    return reembed.api.history(config), 0


@cli.command()
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


@cli.command()
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


@cli.command()
@click.option("--yes", is_flag=True, help="Delete what is listed.")
@click.option("--drop-run", metavar="RUN", help="Also give up this unfinished run.")
@configured
def gc(config: Config, yes: bool, drop_run: str | None) -> tuple[Result, int]:
    """List what no release needs; delete it with --yes."""
    return reembed.api.gc(config, delete=yes, drop_run=drop_run), 0


@cli.command("config")
@click.option("--check", is_flag=True, help="Only check that the config is valid.")
@configured
def config_verb(config: Config, check: bool) -> tuple[Result, int]:
    """Show the resolved settings and where each comes from."""
    return replace(click.get_current_context().obj, check=check), 0


def main(arguments: list[str] | None = None) -> None:
    """Run the `reembed` command; the jobs pass their arguments."""
    command.run(cli, arguments)
