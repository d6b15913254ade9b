"""Every command that is printed is one the command line takes; what cannot be pasted is listed as prose.

test_pasted_commands.py runs them in the states that print them.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import reembed
from reembed import errors
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import Config

PACKAGE = Path(reembed.__file__).parent
PROGRAMS = {
    "reembed", "export", "ls", "df", "head", "iconv", "jq", "mv", "rm", "cp", "mkdir", "chmod", "pip",
    "git", "hf", "locale", "python", "ray",
}  # fmt: skip
"""What a fix that can be pasted begins with."""
ERRORS = {
    name for name, o in vars(errors).items()
    if isinstance(o, type) and issubclass(o, errors.ReembedError)
}  # fmt: skip
VALUE = "a-value"
"""Stands for what an f-string puts in."""
# Values of our own making, in which nothing is special to a shell, and calls and names that quote.
PLAIN = re.compile(
    r"len\(.+\)|.*\.id|[\w.]*\.run_id|\w+ \+ 1|r\['(id|release|of|from)'\]|new|live|nulls|dim|positions"
    r"|plan\.(resume|restart)|self\.(run_id|resume|base\.release)|release|encoding|wider:g|lower"
    r"|name\.replace\('_', '-'\)|_again\(files, to\)|rate\.documents|by_verdict\[.+\]|plan\.base\.release if .+"
    r"|reasons\.flags|behind|level|sample|newest|run\.run|r\.(of|drop_run|release)"
    r"|c\.documents\.behind|failed\.(level|sampled)|_?set_to\(.+\)|files|given|wanted|more"
)
QUOTED = re.compile(r"shlex\.(quote|join)\(.+\)")
PROSE = {
    "add them to a-value, or remove their judgements",
    "copy or download the model again",
    "correct it or remove it, then run again",
    "download the model again, or save it again with save_pretrained()",
    "give the column another name, or name another one",
    "make its first line a-value, separated by tabs",
    "merge it with peft's merge_and_unload() and save the result",
    "remove a-value from a-value",
    "remove encoder.pooling",
    "remove it from a-value/a-value",
    "remove it from a-value/tokenizer.json, or save the model with resized embeddings",
    "remove the duplicates, or set source.filter to one row per id",
    "rename them to query_id, text, doc_ids and, if graded, grades",
    "columns=a-value",
    "compare(config, margin=0.02)",
    'api.status(api.config(["reembed.yaml"]).config)',
    'options={"aws_region": "eu-west-1"}',
    'reembed.open("./vectors", "docs")',
    '{"queries": ["some words"]}',
    "share=0.01",
    "shadow.close()     # first",
    "index.interleave(candidate)",
    'key="request 17"',
    "doc_ids=[doc_id]",
    "test.clicked(shown, [shown.hits[0].doc_id])     # documents of this answer",
    "index.search(index.encode_queries(texts))     # with the same texts",
    "options=a-value",
    "a-value=a-value",
    "complete the pair in line a-value of a-value, or remove it",
    "reembed.open(a-value, a-value)",
    'options={"a-value": "env:a-value"}',
    "save it as a sentence-transformers model with a text modality",
    "save it with a tokenizer.json",
    "save the model again with save_pretrained()",
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or use the instance role",
    "set RAY_TMPDIR to a folder that can be written, with a short path",
    "set a-value in the environment, and give --option a-value=env:a-value or leave it out",
    "set a-value in the environment, here and on every Ray node",
    "set gate.queries and gate.split to queries with judgements",
    "set gate.queries to judged queries, or give a reason to start without evidence",
    "set gate.queries to one of the two; parts of a set are named by gate.slices",
    "set gate.queries to one of these",
    "set gate.queries to places with different names",
    "name one such as ndcg@10",
    "give the queries ids that are unique in all sets, then run again",
    "rename the column that holds what was asked to text",
    "set gate.a-value to fields of the queries",
    "set gate.split to one of them: a-value",
    "set storage.root to a local folder, or to S3, GCS, Azure or MinIO: any with conditional writes",
    "store it again as UTF-8",
    "unset AWS_SESSION_TOKEN     # and name its keys and token as env:NAME where they are needed",
    'write "{title} {text}"',
    "write it again",
    "write the ids as strings, and set source.id_column to that column",
}
"""What the reader must choose or do by hand."""


OF_THE_READER = {"WHY", "FOLDER", "ADDRESS", "OLD", "NEW"}
"""The reason, the folder of judged queries, a cluster, and run files."""


def printed() -> dict[str, ast.expr]:
    """Every fix of an error, and every string that begins with a command of ours, by its place."""
    found: dict[str, ast.expr] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        inner = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
        for node in ast.walk(tree):
            taken: list[ast.expr] = []
            if isinstance(node, ast.Call) and _name(node.func) in ERRORS:
                taken = list(_fixes(node))
            elif isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in inner:
                taken = [node] if _text(node).startswith("reembed ") else []
            found |= {f"{file.relative_to(PACKAGE)}:{e.lineno}:{e.col_offset}": e for e in taken}
    return found


def _name(function: ast.expr) -> str | None:
    return getattr(function, "id", getattr(function, "attr", None))


def _fixes(call: ast.Call) -> Iterator[ast.expr]:
    given = [*call.args[2:3], *(k.value for k in call.keywords if k.arg == "fix")]
    for fix in given:
        for part in (fix.body, fix.orelse) if isinstance(fix, ast.IfExp) else (fix,):
            if isinstance(part, ast.JoinedStr | ast.Constant) and _text(part):
                yield part


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = node.values if isinstance(node, ast.JoinedStr) else ()
    return "".join(p.value if isinstance(p, ast.Constant) else VALUE for p in parts)


def _first_word(text: str) -> str:
    return text.split(" ", 1)[0]


FIXES = list(printed().items())
COMMANDS = [(p, n) for p, n in FIXES if _first_word(_text(n)) in PROGRAMS]


def test_what_is_not_a_command_is_listed_as_prose():
    prose = {_text(n) for _, n in FIXES if _first_word(_text(n)) not in {*PROGRAMS, VALUE}}
    assert prose == PROSE


@pytest.mark.parametrize(("place", "node"), COMMANDS, ids=[p for p, _ in COMMANDS])
def test_a_command_holds_no_placeholder_and_quotes_what_it_is_given(place: str, node: Any) -> None:
    command = _text(node).partition("     #")[0]
    held = set(re.findall(r"(?<!env:)\b[A-Z][A-Z_]{2,}\b(?!=)|\.\.\.|\w\|\w", command))
    assert held <= {"HEAD", "AND", "NOT", "NULL", "IVF_FLAT", *OF_THE_READER}, command
    for part in getattr(node, "values", ()):
        if isinstance(part, ast.Constant) and "     #" in str(part.value):
            break  # a comment
        if isinstance(part, ast.FormattedValue):
            value = ast.unparse(part.value)
            assert QUOTED.fullmatch(value) or PLAIN.fullmatch(value), f"{value} is not quoted"


@pytest.mark.parametrize(
    ("place", "node"),
    [(p, n) for p, n in COMMANDS if _text(n).startswith("reembed ")],
    ids=[p for p, n in COMMANDS if _text(n).startswith("reembed ")],
)
def test_a_command_of_ours_is_one_that_the_command_line_takes(place: str, node: Any) -> None:
    words = shlex.split(_text(node), comments=True)[1:]
    verb = reembed_cli.commands[words[0]]
    with click.Context(reembed_cli) as parent:
        context = verb.make_context(words[0], words[1:], parent=parent, resilient_parsing=True)
    names = {o for p in verb.params for o in (*p.opts, *p.secondary_opts)}
    flags = [w.removesuffix(VALUE) for w in words if w.startswith("--") and w != "--help"]
    assert set(flags) <= names
    assert context.params is not None
    for setting in re.findall(r"--set '?(\w+)\.(\w+)=", _text(node)):
        section = Config.model_fields[setting[0]].annotation
        assert setting[1] in section.model_fields, setting  # type: ignore[union-attr]
