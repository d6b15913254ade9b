"""Migrate a real index to a better model, on this machine and without network: `make demo`.

The documents are the docstrings of the Python that runs this; both models come with PyPI packages.
Each step is a command you could type yourself; this script prints it, runs it and goes on as long
as they succeed. Everything is kept in demo-data/, which each run makes anew.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path("demo-data")  # from ROOT, where every command is started
OLD = "-c examples/demo/old.yaml"
NEW = "-c examples/demo/new.yaml"
SEARCH = (
    "reembed search -k 3 --show module"
    " 'how do I read a csv file with named columns'"
    " 'run several coroutines at the same time and wait for all of them'"
    " 'find out which lines differ between two texts'"
)

# What happens, and the command that does it.
STEPS = (
    (
        "Collect the documents and judged queries: docstrings of Python and some packages",
        f"python examples/demo/corpus.py {DATA}",
    ),
    (
        "Make a model folder from the package wordllama: the old model",
        f"python examples/demo/models.py {DATA}/wordllama-256",
    ),
    (
        "Make a versioned Lance dataset of the documents",
        f"reembed import {DATA}/corpus.jsonl --to {DATA}/pydocs.lance",
    ),
    ("Build a first release with the old model", f"reembed run {OLD}"),
    ("Let it serve; nothing serves yet, so there is nothing to compare", f"reembed promote {OLD}"),
    ("Ask it something", f"{SEARCH} {OLD}"),
    (
        "Build a second release with the new model: the migration. The first one still serves",
        f"reembed run {NEW}",
    ),
    ("Which is better? Ask both the same judged queries", f"reembed compare {NEW}"),
    ("The gate passed, so let the new one serve", f"reembed promote {NEW}"),
    ("Ask the same again", f"{SEARCH} {NEW}"),
    (
        "Something is wrong with it? Back to the old one, at once",
        f"reembed rollback {NEW} --reason 'to show it'",
    ),
    ("It was nothing; the comparison still holds", f"reembed promote {NEW}"),
    ("Who moved the alias, and when", f"reembed history {NEW}"),
    ("Where things stand", f"reembed status {NEW}"),
)

LAST_WORDS = """\
Done in {minutes} min {seconds} s.

Report:    {report}
Try next:
  {activate}
  reembed search {new} --show module 'your own question'
  reembed verify {new}            # is every document in the index, as the source has it now?
  reembed compare {new} --candidate OLD   # the way back, judged: OLD is a release from `status`
  reembed run {new} --fresh       # stop it with Ctrl-C half way, then start it without --fresh
  configs/local.yaml                # every setting, explained; then your own documents"""


def main() -> int:
    """Run all steps; the exit code of the first that failed, else 0."""
    started = time.monotonic()
    os.chdir(ROOT)
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    (DATA / ".gitignore").write_text("*\n")
    for number, (what, command) in enumerate(STEPS, 1):
        print(f"\n[{number}/{len(STEPS)}] {what}\n$ {command}", flush=True)
        if code := subprocess.run(arguments(command), env=environment(), check=False).returncode:
            print(f"\nStopped: this command exited with {code}.", file=sys.stderr)
            return code
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    (report,) = DATA.glob("reembed/runs/*/report.html")
    activate = Path(sys.prefix) / "bin" / "activate"
    print(
        "\n"
        + LAST_WORDS.format(
            minutes=minutes,
            seconds=seconds,
            report=report.resolve().as_uri(),
            activate=f". {activate}" ,
            new=NEW,
        )
    )
    return 0


def arguments(command: str) -> list[str]:
    """The command with this Python's own programs, whether or not its environment is activated."""
    program, *rest = shlex.split(command)
    if program == "python":
        return [sys.executable, *rest]
    return [str(Path(sys.executable).with_name(program)), *rest]


def environment() -> dict[str, str]:
    """No hub: nothing that the demo needs is there."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    sys.exit(main())
