"""The demo's documents and judged queries: docstrings of the Python on this machine.

A docstring's first sentence says in a few words what the rest explains at length. So the rest
becomes a document, and some of the first sentences become queries, each with exactly one right
answer: the document it was cut from. Files are parsed, never imported; the same Python with the
same packages gives the same files.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

# Packages that come with reembed and explain themselves to users; a missing one is passed over.
PACKAGES = ("networkx", "numpy", "pandas", "pyarrow", "scipy", "sklearn")
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "distutils", "externals"}
SKIPPED_FOLDERS |= {"test", "tests", "testing", "_testing", "idlelib", "lib2to3", "turtledemo"}
DOCUMENTS = 3_000
QUERIES = 500
MIN_QUERY_WORDS = 5
MIN_DOCUMENT_WORDS = 15

# Up to a full stop that no small letter follows ("e.g. this"), else the whole paragraph.
_FIRST_SENTENCE = re.compile(r".+?[.!?](?=\s+[^a-z\s]|\s*$)|.+", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """One docstring, cut after its first sentence."""

    doc_id: str
    module: str
    sentence: str
    text: str


def main(folder: Path, count: int = DOCUMENTS, query_count: int = QUERIES) -> None:
    """Write corpus.jsonl and, in judged/, the queries in BEIR's layout."""
    documents = list(islice(unique(all_documents()), count))
    queries = judged(documents, query_count)
    write(folder, documents, queries)
    modules = len({d.module for d in documents})
    print(f"{folder}/corpus.jsonl: {len(documents):,} docstrings from {modules:,} modules")
    print(f"{folder}/judged: {len(queries):,} first sentences, each judged with its own docstring")


def all_documents() -> Iterator[Document]:
    """Everything usable: the standard library in order, then the packages in a shuffled one."""
    library = Path(sysconfig.get_path("stdlib"))
    yield from of_files(library, "", sorted(source_files(library)))
    files = [(root, file) for root in package_folders() for file in source_files(root)]
    files.sort(key=lambda f: digest(f[1].relative_to(f[0].parent).as_posix()))
    for root, file in files:
        yield from of_files(root, root.name, [file])


def package_folders() -> Iterator[Path]:
    """Where the PACKAGES lie; looking a top-level package up does not import it."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.submodule_search_locations:
            yield Path(spec.submodule_search_locations[0])


def source_files(root: Path) -> Iterator[Path]:
    """The Python files below a folder that belong to the library itself."""
    for file in root.rglob("*.py"):
        if SKIPPED_FOLDERS.isdisjoint(file.relative_to(root).parts):
            yield file


def of_files(root: Path, package: str, files: Iterable[Path]) -> Iterator[Document]:
    """The documents of some files; one that this Python cannot parse has none."""
    for file in files:
        parts = [package, *file.relative_to(root).with_suffix("").parts]
        module = ".".join(p for p in parts if p and p != "__init__")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about other people's escape sequences
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for name, docstring in docstrings(tree, module):
            if document := cut(name, module, docstring):
                yield document


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of a module and of every public class and function in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if docstring := ast.get_docstring(node, clean=False):
            yield name, docstring
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_"):
                yield from docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt):
            yield from docstrings(child, name)


def cut(name: str, module: str, docstring: str) -> Document | None:
    """The document of a docstring, unless one of the two parts says too little."""
    # A few docstrings hold broken surrogates, which JSON could not carry.
    whole = inspect.cleandoc(docstring).encode(errors="replace").decode()
    summary, _, body = whole.partition("\n\n")
    found = _FIRST_SENTENCE.match(summary)
    if not found:
        return None
    sentence = " ".join(found.group().split())
    text = f"{summary[found.end() :].strip()}\n\n{body.strip()}".strip()
    if len(sentence.split()) < MIN_QUERY_WORDS or len(text.split()) < MIN_DOCUMENT_WORDS:
        return None
    return Document(name, module, sentence, text)


def unique(documents: Iterable[Document]) -> Iterator[Document]:
    """Without those whose name, first sentence or text was there before."""
    seen: set[str] = set()
    for document in documents:
        keys = {f"{kind} {value}" for kind, value in vars(document).items() if kind != "module"}
        if seen.isdisjoint(keys):
            yield document
        seen |= keys


def judged(documents: list[Document], count: int) -> list[Document]:
    """The documents whose first sentence becomes a query: a sample that is always the same."""
    return sorted(documents, key=lambda d: digest(d.doc_id))[:count]


def digest(text: str) -> bytes:
    """A shuffled order that depends on nothing but the texts."""
    return hashlib.sha256(text.encode()).digest()


def write(folder: Path, documents: list[Document], queries: list[Document]) -> None:
    """corpus.jsonl, judged/queries.jsonl and judged/qrels/test.tsv."""
    (folder / "judged" / "qrels").mkdir(parents=True, exist_ok=True)
    rows = [{"doc_id": d.doc_id, "module": d.module, "text": d.text} for d in documents]
    _write_lines(folder / "corpus.jsonl", map(json.dumps, rows))
    asked = [{"_id": f"q{n}", "text": d.sentence} for n, d in enumerate(queries)]
    _write_lines(folder / "judged" / "queries.jsonl", map(json.dumps, asked))
    qrels = [f"q{n}\t{d.doc_id}\t1" for n, d in enumerate(queries)]
    _write_lines(folder / "judged" / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *qrels])


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
