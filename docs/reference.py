"""Write docs/api.md, the API reference, from signatures and docstrings.

python docs/reference.py
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
sys.path.insert(0, str(PAGE.parents[1]))

import reembed  # noqa: E402 - the path comes first
from reembed import api, errors  # noqa: E402
from reembed.config.settings import ResolvedConfig, Section  # noqa: E402
from reembed.lifecycle import dead_letters, gc_plan, moves, status  # noqa: E402
from reembed.lifecycle.lazy_status import LazyStatus  # noqa: E402
from reembed.lifecycle.verification import Verified  # noqa: E402
from reembed.planning.tune import Tuned  # noqa: E402
from reembed.serving.http.server import Served  # noqa: E402
from reembed.serving.live import SearchResult  # noqa: E402
from reembed.source.importer import Imported  # noqa: E402
from reembed.strategies.candidate import Built  # noqa: E402
from reembed.strategies.dual_index import Shadowed  # noqa: E402
from reembed.strategies.simulate import Simulated  # noqa: E402
from reembed.strategies.sweep import Swept  # noqa: E402
from reembed.strategies.up_to_date import CaughtUp  # noqa: E402

VERBS = (
    (api.config, ResolvedConfig),
    (api.import_documents, Imported),
    (api.tune, Tuned),
    (api.run, Built),
    (api.status, status.Status),
    (api.verify, Verified),
    (api.compare, None),
    (api.shadow, Shadowed),
    (api.simulate, Simulated),
    (api.lazy, LazyStatus),
    (api.sweep, Swept),
    (api.promote, moves.Moved),
    (api.catch_up, CaughtUp),
    (api.rollback, moves.Moved),
    (api.history, moves.History),
    (api.search, SearchResult),
    (api.serve, Served),
    (api.dead_letters, dead_letters.DeadLetters),
    (api.gc, gc_plan.Collected),
)
"""Functions in the order of a migration, and what each returns."""
_ENTRY = re.compile(r"([\w, ]+): (.*)")


def page() -> str:
    """Return the whole reference as Markdown."""
    parts = [
        "# API reference",
        "Generated from docstrings by `python docs/reference.py`.",
        "## Search",
        *function("reembed.open", reembed.open),
        *whole_class(reembed.Index, "reembed.Index"),
        *whole_class(reembed.Hit, "reembed.Hit"),
        *whole_class(reembed.EncodedQueries, "reembed.EncodedQueries"),
        "## Verbs",
        text(api),
        *verbs(),
        "## Config",
        *settings(reembed.Config),
        "## Errors",
        *error_table(),
    ]
    return "\n\n".join(parts) + "\n"


def verbs() -> Iterator[str]:
    """Yield every verb, and each result after the first verb that returns it."""
    shown: set[type] = set()
    for verb, result in VERBS:
        yield from function(f"api.{verb.__name__}", verb)
        if result is not None and result not in shown:
            shown.add(result)
            yield from whole_class(result, result.__name__)


def function(name: str, of: Any, level: str = "###") -> Iterator[str]:
    """Yield a function: its signature and its docstring."""
    yield f"{level} {name}"
    yield f"```python\n{name.rpartition('.')[2]}{_signature(of)}\n```"
    yield text(of)


def _signature(of: Any) -> str:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    assert isinstance(tree, ast.FunctionDef)
    assert tree.returns is not None
    given = ast.unparse(tree.args).removeprefix("self").removeprefix(", ")
    return f"({given}) -> {ast.unparse(tree.returns)}"


def whole_class(of: type, name: str) -> Iterator[str]:
    """Yield a class: its docstring, its attributes, its methods."""
    yield f"### {name}"
    yield text(of)
    if attributes := [*_fields(of), *_properties(of)]:
        yield "\n".join(attributes)
    for method, found in vars(of).items():
        if inspect.isfunction(found) and not method.startswith("_"):
            first = text(found) if method == "to_json" else None
            if first is None:
                yield from function(f"{of.__name__}.{method}", found, "####")


def _fields(of: type) -> Iterator[str]:
    said = attribute_texts(of)
    for field in dataclasses.fields(of) if dataclasses.is_dataclass(of) else ():
        yield f"- `{field.name}`: `{field.type}`{_after(said.get(field.name))}"


def _properties(of: type) -> Iterator[str]:
    for name, found in vars(of).items():
        if isinstance(found, property) and not name.startswith("_"):
            returns = inspect.signature(found.fget).return_annotation
            yield f"- `{name}`: `{returns}`{_after(_first(found))}"


def _after(words: str | None) -> str:
    return f". {words}" if words else ""


def settings(of: type[Section]) -> Iterator[str]:
    """Yield the config: its own settings and its sections."""
    yield f"`reembed.Config`: {_first(of)} `configs/local.yaml` explains every setting."
    said = attribute_texts(of)
    lines = []
    for name, field in of.model_fields.items():
        section = inspect.isclass(field.annotation) and issubclass(field.annotation, Section)
        words = _first(field.annotation) if section else said[name]
        lines.append(f"- `{name}`{' (required)' if field.is_required() else ''}: {words}")
    yield "\n".join(lines)


def error_table() -> Iterator[str]:
    """Yield the errors with their exit codes."""
    yield text(errors.ReembedError)
    rows = ["| error | is a | exit code | |", "|---|---|---|---|"]
    for name, found in vars(errors).items():
        if isinstance(found, type) and issubclass(found, errors.ReembedError):
            code = "75 or 130" if found is errors.Interrupted else found.exit_code
            rows.append(f"| `{name}` | `{found.__base__.__name__}` | {code} | {_first(found)} |")
    yield "\n".join(rows)


def text(of: Any) -> str:
    """Return a docstring as Markdown: its sections as lists."""
    lines: list[str] = []
    for block in re.split(r"\n(?=\w+:\n)", inspect.getdoc(of) or ""):
        title, _, rest = block.partition(":\n")
        if title in ("Args", "Raises", "Returns"):
            lines += [f"\n{title}:\n", *_entries(rest)]
        else:
            lines.append(block.strip())
    return "\n".join(lines)


def _entries(block: str) -> Iterator[str]:
    for entry in re.split(r"\n(?! )", textwrap.dedent(block).strip()):
        words = " ".join(line.strip() for line in entry.splitlines())
        named = _ENTRY.fullmatch(words)
        yield f"- `{named[1]}`: {named[2]}" if named else f"- {words}"


def attribute_texts(of: type) -> dict[str, str]:
    """Return the docstring of each attribute: the string that stands after it in the class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: " ".join(str(after.value.value).split())
        for field, after in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }


def _first(of: Any) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(of) or "").partition("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(page())
