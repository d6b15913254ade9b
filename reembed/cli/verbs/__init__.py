"""The verbs. Each parses, calls one function of `reembed.api`, prints, and sets the exit code.

`reembed.api` is loaded when it is first named: `reembed --help` and `reembed status` stay quick.
"""

from __future__ import annotations

import click

import reembed
from reembed.cli import command
from reembed.cli.verbs import build, evidence, lazy, live, queries

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


for _module in (build, evidence, lazy, live, queries):
    for _verb in vars(_module).values():
        if isinstance(_verb, click.Command):
            cli.add_command(_verb)


def main(arguments: list[str] | None = None) -> None:
    """Run the `reembed` command; the jobs pass their arguments."""
    command.run(cli, arguments)
