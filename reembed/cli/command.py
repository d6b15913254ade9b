"""What all verbs share: -c, --set, --json and -v, how results and errors are printed, exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import click

from reembed.errors import Interrupted, ReembedError
from reembed.redact import plain, redacted, shown_override


class _Duration(click.ParamType[float]):
    """90s, 30m, 1h, 2d -> seconds."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number, unit = (
            str(value)[:-1],
            {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(str(value)[-1:]),
        )
        if unit is None or not number.isdecimal():
            self.fail(f"{value!r} is not a time: 90s, 30m, 1h or 2d", param, ctx)
        return float(number) * unit


class _Utf8(click.ParamType[str]):
    """Text that can be recorded: the shell passes on any bytes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{value!a} is not UTF-8; set LANG and the terminal to UTF-8", param, ctx)
        return str(value)


DURATION = _Duration()
UTF8 = _Utf8()
_DEFAULT_CONFIG = "reembed.yaml"
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"
_RESUMABLE = ("run", "catch-up")


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """-c, --set and --json; the verb receives the loaded config and returns (result, exit code)."""

    @click.option(
        "-c",
        "--config",
        "files",
        multiple=True,
        help=f"Config file; several go left to right. [{_DEFAULT_CONFIG}]",
    )
    @click.option(
        "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Overrule one setting."
    )
    @output
    @functools.wraps(function)
    def verb(
        *, files: tuple[str, ...], overrides: tuple[str, ...], as_json: bool, **options: Any
    ) -> Any:
        from reembed.config import settings as config

        loaded, origins = config.load(list(files) or [_DEFAULT_CONFIG], list(overrides))
        click.get_current_context().obj = {"origins": origins, "as_json": as_json}
        return function(config=loaded, **options)

    return verb


class _NoPandas:
    """A finder by which pandas is not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """What is imported here loads no pandas and starts no threads for matrix products.

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


def output(function: Callable[..., Any]) -> Callable[..., Any]:
    """--json and -v; prints the verb's result, or its error, and sets the exit code."""

    @click.option(
        "--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else there."
    )
    @click.option("-v", "--verbose", is_flag=True, help="Traceback with an error.")
    @functools.wraps(function)
    def verb(*, as_json: bool, verbose: bool, **options: Any) -> None:
        from reembed.cli import paste
        from reembed.cli.text import text
        from reembed.store.storage import storage_errors

        name = click.get_current_context().info_name or ""
        # The next command after `tune` names its overlay, which leaves the default file out.
        files = options.get("files") or ([_DEFAULT_CONFIG] if name == "tune" else [])
        given = [f"-c {shlex.quote(f)}" for f in files if "overrides" in options]
        given += [f"--set {shlex.quote(shown_override(o))}" for o in options.get("overrides", ())]
        try:
            # Ray prints; stdout is for the result alone.
            with contextlib.redirect_stdout(sys.stderr), storage_errors(), _resumable(name):
                result, code = function(as_json=as_json, **options)
        except ReembedError as error:
            if verbose:
                click.echo(plain(redacted(traceback.format_exc())), err=True)
            click.echo(paste.error(error, given), err=True)
            if as_json:
                click.echo(json.dumps(paste.error_record(error, given)))
            sys.exit(error.exit_code)
        click.echo(_json(result) if as_json else text(name, result, given))
        sys.exit(code)

    return verb


def _json(result: Any) -> str:
    record = result if isinstance(result, dict) else result.to_json()
    return json.dumps(record, default=str)


@contextlib.contextmanager
def _resumable(verb: str) -> Iterator[None]:
    """SIGTERM ends a verb that the same command resumes with 75, wherever it is.

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
    finally:
        signal.signal(signal.SIGTERM, before)
