"""Running the command line as a process: exit codes, and what an error outside of a verb prints."""

from __future__ import annotations

import json
import os
import sys
import traceback
from types import TracebackType
from typing import Any, NoReturn

import click

from reembed.redact import redacted

_INTERRUPTED = 130


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
        click.echo("Stopped; `reembed status` says where things stand.", err=True)
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
