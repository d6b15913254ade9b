"""What all verbs share: -c, --set, --json and -v, how results and errors are printed, exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol

import click

import reembed
from reembed.errors import Interrupted, ReembedError
from reembed.redact import plain, redacted, shown_override

DEFAULT_CONFIG = "reembed.yaml"
"""Read where -c names no file."""
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"
_RESUMABLE = ("run", "catch-up", "shadow", "lazy", "sweep")
_INTERRUPTED = 130
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Result(Protocol):
    """What a verb returns."""

    def to_json(self) -> dict[str, Any]:
        """Return what --json prints."""


def duration(value: str) -> float:
    """Return the seconds of 90s, 30m, 1h or 2d."""
    found = re.fullmatch(r"(\d+)([smhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a time: 90s, 30m, 1h or 2d")
    return float(found[1]) * _SECONDS[found[2]]


def words(value: str) -> str:
    """Return text that can be recorded: the shell passes on any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter(
            f"{value!a} is not UTF-8; set LANG and the terminal to UTF-8"
        ) from None
    return value


reason_option = click.option("--reason", type=words, help="Why, for the record.")


def require_reason(flags: str, given: bool, reason: str | None) -> None:
    """Refuse flags that overrule a rule without --reason, and --reason without them."""
    if given != bool(reason and reason.strip()):
        raise click.UsageError(f"--reason TEXT is required with {flags}, and only there")


def configured(function: Callable[..., tuple[Result, int]]) -> Callable[..., Any]:
    """Add -c and --set to a verb, which receives the loaded config, and what `output` adds."""

    @click.option(
        "-c", "--config", "files", multiple=True, help="Config file; later ones win. [reembed.yaml]"
    )
    @click.option(
        "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override one setting."
    )
    @output
    @functools.wraps(function)
    def verb(
        *, files: tuple[str, ...], overrides: tuple[str, ...], **options: Any
    ) -> tuple[Result, int]:
        resolved = reembed.api.config(files or [DEFAULT_CONFIG], overrides)
        click.get_current_context().obj = resolved
        return function(config=resolved.config, **options)

    return verb


class _NoPandas:
    """An import finder that hides pandas."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Import no pandas here, and start no threads for matrix products.

    For verbs that answer at once and need neither: `pyarrow.dataset` loads pandas wherever it is
    installed, and numpy's OpenBLAS starts a thread for each core. What was imported before stays as
    it is, and pyarrow works with a pandas that is imported later.
    """
    finder: Any = _NoPandas()
    unset = _BLAS_THREADS not in os.environ
    sys.meta_path.insert(0, finder)
    os.environ.setdefault(_BLAS_THREADS, "1")
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if unset:
            del os.environ[_BLAS_THREADS]


def output(function: Callable[..., tuple[Result, int]]) -> Callable[..., Any]:
    """Add --json and -v to a verb; print its result, or its error, and exit with its code."""

    @click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else."
    )
    @click.option("-v", "--verbose", is_flag=True, help="Print the traceback of an error.")
    @functools.wraps(function)
    def verb(*, as_json: bool, verbose: bool, **options: Any) -> None:
        from reembed.cli import paste
        from reembed.cli.text import text
        from reembed.store.storage import storage_errors

        name = click.get_current_context().info_name or ""
        files = options.get("files", ())
        if name == "tune":  # its next command names its overlay, which leaves the default file out
            files = files or [DEFAULT_CONFIG]
        given = [f"-c {shlex.quote(f)}" for f in files if "overrides" in options]
        given += [f"--set {shlex.quote(shown_override(o))}" for o in options.get("overrides", ())]
        try:
            # Ray prints; stdout is for the result alone.
            with contextlib.redirect_stdout(sys.stderr), storage_errors(), _resumable(name):
                result, code = function(**options)
        except ReembedError as error:
            if verbose:
                click.echo(plain(redacted(traceback.format_exc())), err=True)
            click.echo(paste.error(error, given), err=True)
            if as_json:
                click.echo(json.dumps(paste.error_record(error, given)))
            sys.exit(error.exit_code)
        if as_json:
            click.echo(json.dumps(result.to_json(), default=str))
        else:
            click.echo(text(name, result, given))
        sys.exit(code)

    return verb


@contextlib.contextmanager
def _resumable(verb: str) -> Iterator[None]:
    """Make SIGTERM end a verb that the same command resumes with 75, wherever it is.

    Not the others: a promote that moved the alias, started again, would be another promote.
    """
    if verb not in _RESUMABLE or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ended(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    except RuntimeError as error:  # Python 3.11 wraps what a signal raises while a class is made
        if isinstance(error.__cause__, Interrupted):
            raise error.__cause__ from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def run(cli: click.Group, arguments: list[str] | None) -> None:
    """Run the verb that the arguments name, or those of the process, and end the process."""
    sys.excepthook = _unexpected
    try:
        _run_verb(cli, arguments)
    except SystemExit as end:
        if not end.code or "reembed.engine.cluster" not in sys.modules:
            raise
        # Ray, if it was stopped while it started or under a job that was given up, aborts during
        # Python's own exit, and the exit code would be the abort's.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code))


def _run_verb(cli: click.Group, arguments: list[str] | None) -> NoReturn:
    try:
        sys.exit(cli(arguments, prog_name="reembed", standalone_mode=False))
    except click.UsageError as error:
        error.show()
        _end({"error": "UsageError", "what": error.format_message()}, error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped. `reembed status` shows what is live and what is unfinished.", err=True)
        _end({"error": "Interrupted", "what": "stopped by the user"}, _INTERRUPTED)


def _unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of a bug, without credentials."""
    click.echo(redacted("".join(traceback.format_exception(kind, error, trace))), err=True)


def _end(record: dict[str, Any], code: int) -> NoReturn:
    """End the process; with --json, print the error as JSON, because no verb did."""
    if "--json" in sys.argv:
        click.echo(json.dumps({**record, "exit_code": code}))
    sys.exit(code)
