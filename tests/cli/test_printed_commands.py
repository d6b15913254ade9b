"""Every command that is printed can be pasted; what cannot be pasted is listed here as prose."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import lance
import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner
from inline import Inline

import reembed
from reembed import errors
from reembed.cli import cli as reembed_cli
from reembed.config import Config

PACKAGE = Path(reembed.__file__).parent
PROGRAMS = {
    "reembed", "export", "ls", "df", "head", "iconv", "jq", "mv", "rm", "cp", "mkdir", "chmod", "pip",
    "git", "hf", "python", "ray",
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
    r"|plan\.(resume|restart)|self\.(run_id|resume|base\.release)|release|encoding|wider:g"
    r"|name\.replace\('_', '-'\)|_again\(files, to\)|by_verdict\[.+\]|plan\.base\.release if .+"
    r"|reasons\.flags|set_to\(.+\)|files|given|wanted|more"
)
QUOTED = re.compile(r"shlex\.(quote|join)\(.+\)")
PROSE = {
    "add them to a-value, or remove their judgements",
    "columns=[a-value]",
    "correct it or remove it, then run again",
    "download the model again, or save it again with save_pretrained()",
    "give the column another name, or name another one",
    "k=10",
    "make its first line a-value, separated by tabs",
    "merge it with peft's merge_and_unload() and save the result",
    "remove a-value from a-value, and give the file it names the usual name",
    "remove encoder.pooling",
    "remove it from a-value/a-value",
    "remove it from a-value/tokenizer.json, or save the model with resized embeddings",
    "remove the duplicates, or set source.filter to one row per id",
    "rename them to query_id, text, doc_ids and, if graded, grades",
    "columns=a-value",
    'columns=["title"]',
    "complete the pair in line a-value of a-value, or remove it",
    "hit.doc_id",
    "save it as a sentence-transformers model with a text modality",
    "save it with a tokenizer.json",
    "save the model again with save_pretrained()",
    "say which it is with --format: a-value",
    'search(["how do vaccines work"])',
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or use the instance role",
    "set RAY_TMPDIR to a folder that can be written, with a short path",
    "set a-value in the environment, and leave --option a-value out",
    "set gate.queries and gate.split to queries with judgements",
    "set gate.queries to judged queries, such as a BEIR folder, and compare a-value again",
    "set gate.queries to one of these",
    "set gate.split to one of them: a-value",
    "set storage.root to a local folder, or to S3, GCS, Azure or MinIO: any with conditional writes",
    "store it again as UTF-8",
    'write "{title} {text}"',
    "write it again",
    "write the ids as strings, and set source.id_column to that column",
}
"""What the reader must choose or do by hand."""


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
            found |= {f"{file.name}:{e.lineno}:{e.col_offset}": e for e in taken}
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
    held = set(re.findall(r"\b[A-Z][A-Z_]{2,}\b(?!=)|\.\.\.|\w\|\w", command))
    assert held <= {"HEAD", "AND", "NOT", "NULL", "WHY"}, command  # the reason is the reader's
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


# --- in the state that prints them ---

HOSTILE = ["$(touch PWNED)", "`touch PWNED`", "a b", "it's", "; touch PWNED", "-n"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, in which no pasted line may leave a file PWNED."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ends(*words: str) -> str:
    """The fix of a command that ends with an error."""
    result = CliRunner().invoke(reembed_cli, [*words, "--json"])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return str(json.loads(result.stdout)["fix"])


def paste(here: Path, line: str) -> None:
    """Run a printed line, as a shell reads it: ours in this process, else in bash."""
    if not line.startswith("reembed "):
        subprocess.run(["bash", "-c", line], check=True, capture_output=True, cwd=here)
    else:
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {line.removeprefix('reembed ')}"],
            check=True, capture_output=True, text=True, cwd=here,
        ).stdout  # fmt: skip
        result = CliRunner().invoke(reembed_cli, words.split("\0")[:-1])
        assert result.exit_code == 0, result.output
    assert not (here / "PWNED").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_import_over_a_dataset_names_another_place(here: Path, name: str) -> None:
    file = here / f"{name}.jsonl"
    file.write_text('{"doc_id": "a", "text": "t"}\n')
    to = f"{here}/{name}.lance"
    lance.write_dataset(pa.table({"x": [1]}), to)
    paste(here, ends("import", str(file), "--to", to))
    assert lance.dataset(f"{here}/{name}-2.lance").count_rows() == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_import_of_latin_1_is_answered_with_a_conversion(here: Path, name: str) -> None:
    file = here / f"{name}.csv"
    file.write_bytes("doc_id,text\na,caf\u00e9\n".encode("latin-1"))
    paste(here, ends("import", str(file), "--to", str(here / "s.lance")))
    assert "caf\u00e9" in (here / f"{name}-utf8.csv").read_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_or_model_folder_that_is_missing_is_answered_with_what_is_there(
    here: Path, name: str
) -> None:
    folder = here / name
    folder.mkdir()
    paste(here, ends("import", str(folder / "x.jsonl"), "--to", str(here / "s.lance")))
    for model in (str(folder / "missing"), str(folder)):
        paste(here, fix_of_model(model))


def fix_of_model(model: str) -> str:
    from reembed.config import EncoderConfig
    from reembed.encoders import describe

    with pytest.raises(errors.EncoderError) as refused:
        describe(EncoderConfig(model=model), "float32")
    return str(refused.value.fix)


def test_a_hub_id_and_a_branch_are_quoted(here: Path) -> None:
    assert shlex.split(fix_of_model("org/name"))[:2] == ["git", "ls-remote"]


@pytest.mark.parametrize("name", HOSTILE)
def test_tune_names_a_folder_to_make_or_another_file(
    here: Path, name: str, config_file: Any
) -> None:
    file = config_file(str(here / "s.lance"))
    out = here / name / "tuned.yaml"
    paste(here, ends("tune", "-c", file, "--out", str(out)))
    assert out.parent.is_dir()


# --- of a run, a comparison, a promotion: with settings of reembed.yaml in this folder ---


@pytest.fixture
def inline(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs need no Ray, and their config lies here."""
    from reembed.strategies import catch_up, full_rebuild

    for module in (catch_up, full_rebuild):
        monkeypatch.setattr(module, "RayExecutor", Inline)
    return here


def settle(here: Path, column: str = "text", **sections: Any) -> None:
    """Documents of which one has no text, and reembed.yaml."""
    texts = [f"wing {n} flutter heat" for n in range(40)]
    rows = {"doc_id": [f"d{n}" for n in range(40)], column: [*texts[:-1], None], "year": [1] * 40}
    lance.write_dataset(pa.table(rows), str(here / "s.lance"))
    settings: dict[str, Any] = {
        "alias": "docs",
        "source": {"uri": str(here / "s.lance"), "text": column},
        "encoder": {"model": "hashing:16"},
        "embed": {"max_dead_letters": 1},
        "storage": {"root": str(here / "root")},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    (here / "reembed.yaml").write_text(yaml.safe_dump(settings))


REFUSED: dict[str, dict[str, Any]] = {
    "another form of hashing": {"encoder": {"model": "hashing:x"}},
    "texts that are NULL": {"embed": {"max_dead_letters": 0}},
    "a factory that FAISS does not know": {"index": {"factory": "Flatt"}},
    "a filter of two literals": {"source": {"filter": "\"doc_id\" != 'd1'"}},
}


@pytest.mark.parametrize("column", ["text", *HOSTILE[2:4]])
@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_is_refused_runs_with_what_is_printed(inline, case, column) -> None:
    settle(inline, column, **REFUSED[case])
    paste(inline, ends("run"))


@pytest.mark.parametrize("column", [c for c in HOSTILE if "`" not in c])
def test_a_text_column_that_is_missing_is_answered_with_a_run(inline, column) -> None:
    settle(inline, column)
    paste(inline, ends("run", "--set", f"source.text={json.dumps(column + 'x')}"))


def test_a_column_that_lance_cannot_read_is_refused(inline) -> None:
    settle(inline, "`touch PWNED`")
    assert ends("run").startswith("give the column another name")


def test_next_lines_lead_from_a_run_to_a_search(inline) -> None:
    settle(inline)
    followed = follow_from(inline, "reembed run", 6)
    assert [line.split()[1] for line in followed] == ["run", "promote", "search"]


def follow_from(here: Path, line: str, steps: int) -> list[str]:
    """Commands that were run, each the `Next:` of the one before."""
    done: list[str] = []
    while line and len(done) < steps:
        words = shlex.split(line, comments=True)[1:]
        result = CliRunner().invoke(reembed_cli, words)
        assert result.exit_code == 0, result.output
        done.append(line)
        found = re.search(r"^Next: (reembed .*)$", result.output, re.MULTILINE)
        line = found[1] if found else ""
    return done
