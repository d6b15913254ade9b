"""The demo's own code: its corpus, its old model, and commands and configs that are valid."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from reembed import encoders
from reembed.cli import verbs as cli
from reembed.config import settings as config
from reembed.evaluation import queries as evalset

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "demo"


def load(name: str) -> ModuleType:
    """A script of the demo as a module."""
    spec = importlib.util.spec_from_file_location(f"demo_{name}", DEMO / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


corpus, models, run = load("corpus"), load("models"), load("run")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    corpus.main(folder, 120, 30)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]


def test_documents_have_unique_ids_and_texts(written: Path) -> None:
    documents = rows(written)
    assert len(documents) == 120
    assert len({d["doc_id"] for d in documents}) == 120
    assert len({d["text"] for d in documents}) == 120
    assert all(d["doc_id"].startswith(d["module"]) for d in documents)
    assert all(len(d["text"].split()) >= corpus.MIN_DOCUMENT_WORDS for d in documents)


def test_each_query_is_judged_with_one_document_that_exists(written: Path) -> None:
    judged = evalset.load_eval_set(str(written / "judged"), "test", {})
    known = {d["doc_id"] for d in rows(written)}
    assert len(judged.texts) == len(set(judged.texts)) == 30
    assert judged.dropped == 0
    assert all(len(q) == 1 and set(q) <= known for q in judged.qrels)
    assert all(len(text.split()) >= corpus.MIN_QUERY_WORDS for text in judged.texts)


def test_no_document_contains_the_query_it_is_the_answer_to(written: Path) -> None:
    judged = evalset.load_eval_set(str(written / "judged"), "test", {})
    text_of = {d["doc_id"]: " ".join(d["text"].split()) for d in rows(written)}
    found = [
        query
        for query, qrels in zip(judged.texts, judged.qrels, strict=True)
        if query in text_of[next(iter(qrels))]
    ]
    assert not found


def test_the_corpus_is_the_same_each_time(written: Path, tmp_path: Path) -> None:
    corpus.main(tmp_path, 120, 30)
    for file in ("corpus.jsonl", "judged/queries.jsonl", "judged/qrels/test.tsv"):
        assert (tmp_path / file).read_bytes() == (written / file).read_bytes()


WORDS = " ".join(["word"] * corpus.MIN_DOCUMENT_WORDS)


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        (f"Copy one file to another. {WORDS.title()}", "Copy one file to another."),
        (f"Copy a file, e.g. one\n  of mine.\n\n  {WORDS}", "Copy a file, e.g. one of mine."),
        (f"Copy one file to another\n\n{WORDS}", "Copy one file to another"),
    ],
    ids=["in one paragraph", "over two lines", "without a full stop"],
)
def test_a_docstring_is_cut_after_its_first_sentence(docstring: str, sentence: str) -> None:
    document = corpus.cut("shutil.copy", "shutil", docstring)
    assert document.sentence == sentence
    assert document.text.lower() == WORDS


@pytest.mark.parametrize(
    "docstring", [f"Too short.\n\n{WORDS}", "Copy one file to another.\n\nSo."]
)
def test_a_docstring_that_says_too_little_is_left_out(docstring: str) -> None:
    assert corpus.cut("shutil.copy", "shutil", docstring) is None


def test_private_names_and_inner_functions_are_left_out() -> None:
    source = '"m"\ndef f():\n  "f"\n  def inner(): "inner"\nclass C:\n  "C"\n  def _p(self): "p"\n'
    source += "  if True:\n    def g(self): 'g'\n"
    names = [name for name, _ in corpus.docstrings(corpus.ast.parse(source), "m")]
    assert names == ["m", "m.f", "m.C", "m.C.g"]


def test_the_old_model_is_one_that_reembed_reads(tmp_path: Path) -> None:
    models.main(tmp_path / "wordllama")
    section = config.EncoderConfig(model=str(tmp_path / "wordllama"))
    assert encoders.describe(section, "float32").dim == 256


def test_the_two_configs_differ_in_the_model_but_not_in_what_they_serve() -> None:
    old, _ = config.load([str(DEMO / "old.yaml")], [])
    new, _ = config.load([str(DEMO / "new.yaml")], [])
    assert old.encoder != new.encoder
    for section in ("alias", "source", "table", "storage", "gate"):
        assert getattr(old, section) == getattr(new, section)


COMMANDS = list(dict.fromkeys(command for _, command in run.STEPS))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("reembed ")])
def test_each_command_of_the_demo_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, verb, *arguments = shlex.split(command)
    context = cli.cli.commands[verb].make_context(verb, arguments)
    files = context.params.get("files", ())
    assert verb == "import" or all(Path(file).is_file() for file in files)


def test_a_command_with_a_typo_does_not_parse() -> None:
    with pytest.raises(click.UsageError):
        cli.cli.commands["promote"].make_context("promote", ["--reasn", "x"])


def test_the_other_commands_are_scripts_of_the_demo() -> None:
    others = [shlex.split(c) for c in COMMANDS if not c.startswith("reembed ")]
    assert all(c[0] == "python" and (ROOT / c[1]).is_file() for c in others)


@pytest.mark.deep
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_whole_demo_runs() -> None:
    done = subprocess.run([sys.executable, DEMO / "run.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: pass" in done.stdout
