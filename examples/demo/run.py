"""Migrate a real index to a better model, on this machine and without network: `make demo`.

The documents are the docstrings of the Python that runs this; both models come with PyPI packages.
Each step is a command you could type yourself; this script prints it, runs it and stops at the
first that fails. Everything is kept in demo-data/, which each run recreates.
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
    " 'make a http request and read the response'"
    " 'compare two strings and see how similar they are'"
    " 'average of numbers in a list'"
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
    (
        "Let it serve; nothing serves yet, so there is nothing to compare it with",
        f"reembed promote {OLD} --initial --reason 'the first release'",
    ),
    ("Ask it something", f"{SEARCH} {OLD}"),
    (
        "The migration: build a second release with the new model, while the first one serves",
        f"reembed run {NEW}",
    ),
    ("Which is better? Ask both the same judged queries", f"reembed compare {NEW}"),
    ("The gate passed, so let the new one serve", f"reembed promote {NEW}"),
    (
        "Ask the same again (three questions prove nothing; the judged ones did)",
        f"{SEARCH} {NEW}",
    ),
    (
        "If something is wrong with it: back to the old one, at once",
        f"reembed rollback {NEW} --reason 'to show it'",
    ),
    ("Nothing was wrong, and the comparison still holds: forward again", f"reembed promote {NEW}"),
    ("Who moved the alias, and when", f"reembed history {NEW}"),
    ("Where things stand", f"reembed status {NEW}"),
)

LAST_WORDS = """
Done in {took}. The comparison as a page:
  {page}

Try next:
  source {activate}
  # Search with the live model.
  reembed search {new} 'your own question'
  # Would the gate let the old model back in? RELEASE is the previous one in `status`.
  reembed compare {new} --candidate RELEASE
  # Build again; stop it with Ctrl-C half way and start it without --fresh: it resumes.
  reembed run {new} --fresh
  # Then your own documents: every setting is explained in configs/local.yaml."""


def main() -> int:
    """Run all steps; the exit code of the first that failed, else 0."""
    started = time.monotonic()
    os.chdir(ROOT)
    shutil.rmtree(DATA, ignore_errors=True)
    for number, (what, command) in enumerate(STEPS, 1):
        print(f"\n[{number}/{len(STEPS)}] {what}\n$ {command}", flush=True)
        if code := subprocess.run(arguments(command), env=environment(), check=False).returncode:
            print(f"\nStopped: this command exited with {code}.", file=sys.stderr)
            return code
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    report = max(DATA.glob("reembed/comparisons/*/*/*/*.html"))
    activate = os.path.relpath(Path(sys.prefix) / "bin" / "activate")
    took = f"{minutes} min {seconds} s"
    page = report.resolve().as_uri()
    print(LAST_WORDS.format(took=took, page=page, activate=activate, new=NEW))
    return 0


def arguments(command: str) -> list[str]:
    """The command with this Python's own programs, whether or not its environment is activated."""
    program, *rest = shlex.split(command)
    if program == "python":
        return [sys.executable, *rest]
    return [str(Path(sys.executable).with_name(program)), *rest]


def environment() -> dict[str, str]:
    """Nothing that the demo needs is on a hub, and it needs no cluster."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    sys.exit(main())
