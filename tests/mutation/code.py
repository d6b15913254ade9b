"""Mutants of a source file: mutmut's operators, and four of our own for the lines that guard something.

What a program says (error texts, progress, docstrings) is left as it is: a mutant changes what it does.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libcst as cst
import libcst.matchers as m
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

SAYS = ("emit", "event", "point", "warn", "warning", "info", "echo")
"""Functions that only tell of something, or name a point for the crash tests."""
_LEFT_ALONE = ("len", "isinstance", "cast")
_ERRORS = ("Error", "Failed", "Conflict", "Mismatch", "Letters", "Inconclusive", "Interrupted")


@dataclass(frozen=True)
class Mutant:
    """One change to one file. Its key survives edits elsewhere in the file."""

    module: str
    """Path of the file, from the repository's root."""
    function: str
    operator: str
    before: str
    """The lines that change, joined."""
    after: str
    nth: int
    """Of equal changes to equal lines in one function."""
    first_line: int
    last_line: int
    splice: tuple[int, int, str]
    """Start, end, and what stands there instead."""

    @property
    def key(self) -> str:
        """What names it, in the results and in the explanations."""
        again = f" #{self.nth + 1}" if self.nth else ""
        return f"{self.module} · {self.function} · {self.operator}{again} · `{self.before}` → `{self.after}`"

    def order(self, seed: int) -> str:
        """Where it stands when mutants are drawn."""
        return hashlib.sha256(f"{seed} {self.key}".encode()).hexdigest()

    def code(self, source: str) -> str:
        """The mutated file."""
        start, end, text = self.splice
        return source[:start] + text + source[end:]


def mutants_of(file: Path, root: Path) -> list[Mutant]:
    """Every mutant of a file, those that `says_otherwise` would refuse among them."""
    source = file.read_text(encoding="utf-8")
    visitor = _Visitor(source)
    MetadataWrapper(cst.parse_module(source)).visit(visitor)
    seen: Counter[tuple[str, ...]] = Counter()
    found, module = [], file.relative_to(root).as_posix()
    for operator, function, place, text in visitor.found:
        before, after = visitor.changed(place, text)
        name = (function, operator, before, after)
        splice = (visitor.offset(place.start), visitor.offset(place.end), text)
        found.append(Mutant(module, *name, seen[name], place.start.line, place.end.line, splice))
        seen[name] += 1
    return found


def says_otherwise(mutated: str, source: str) -> bool:
    """Whether it compiles, and to something else."""
    try:
        return ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))
    except (SyntaxError, ValueError):
        return False


# --- operators of our own ---


def drop_statement(node: cst.SimpleStatementLine) -> Iterator[cst.CSTNode]:
    """A call, a raise or an addition that never happens: a guard that is forgotten."""
    only = m.SimpleStatementLine(
        body=[m.OneOf(m.Expr(value=m.Call()), m.Raise(), m.AugAssign(), m.Del())]
    )
    if m.matches(node, only) and not _is_told(node.body[0]):
        yield cst.SimpleStatementLine([cst.Pass()])


def drop_operand(node: cst.BooleanOperation) -> Iterator[cst.CSTNode]:
    """One side of `and` or `or` alone."""
    yield node.left
    yield node.right


def drop_filter(node: cst.CompIf) -> Iterator[cst.CSTNode]:
    """A comprehension that takes everything."""
    yield node.with_changes(test=cst.Name("True"))


def skip_branch(node: cst.If) -> Iterator[cst.CSTNode]:
    """A condition that never holds, and one that always does."""
    yield cst.Name("False")
    yield cst.Name("True")


Operator = Callable[[Any], Iterable[cst.CSTNode]]
OWN: list[tuple[type, str, Operator]] = [
    (cst.SimpleStatementLine, drop_statement.__name__, drop_statement),
    (cst.BooleanOperation, drop_operand.__name__, drop_operand),
    (cst.CompIf, drop_filter.__name__, drop_filter),
]


def _operators() -> list[tuple[type, str, Operator]]:
    theirs: list[tuple[type, str, Operator]] = [
        (kind, f.__name__.removeprefix("operator_"), f) for kind, f in mutators.mutation_operators
    ]
    return theirs + OWN


class _Visitor(cst.CSTVisitor):
    """Collects (operator, function, place, text)."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, source: str) -> None:
        self.found: list[tuple[str, str, CodeRange, str]] = []
        self._lines = source.splitlines()
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._within: list[str] = []
        self._operators = _operators()

    def offset(self, position: Any) -> int:
        return int(self._starts[position.line - 1] + position.column)

    def changed(self, place: CodeRange, text: str) -> tuple[str, str]:
        """The lines that differ, before and after."""
        before = self._lines[place.start.line - 1 : place.end.line]
        end = before[-1][place.end.column :]
        after = (before[0][: place.start.column] + text + end).splitlines()
        while len(before) > 1 and len(after) > 1 and before[-1] == after[-1]:
            before, after = before[:-1], after[:-1]
        while len(before) > 1 and len(after) > 1 and before[0] == after[0]:
            before, after = before[1:], after[1:]
        return " ".join(map(str.strip, before)), " ".join(map(str.strip, after))

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _is_said(node):
            if isinstance(node, cst.SimpleStatementLine):
                self._mutate(node)
            return False
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
            self._within.append(node.name.value)
        self._mutate(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, (cst.FunctionDef, cst.ClassDef)):
            self._within.pop()

    def _mutate(self, node: cst.CSTNode) -> None:
        function = ".".join(self._within) or "<module>"
        for kind, name, operator in self._operators:
            if isinstance(node, kind):
                made = list(operator(node))
                # Of a string's three variants one will do: its case is changed twice for nothing.
                for mutated in made[:1] if name == "string" else made:
                    self._note(name, function, node, mutated)
        if isinstance(node, cst.If):
            for mutated in skip_branch(node):
                self._note("skip_branch", function, node.test, mutated)

    def _note(self, name: str, function: str, node: cst.CSTNode, mutated: cst.CSTNode) -> None:
        place = self.get_metadata(PositionProvider, node, None)
        if place is None:
            return
        if isinstance(node, cst.BaseExpression) and not node.lpar and _needs_brackets(mutated):
            text = f"({_text(mutated)})"
        else:
            text = _text(mutated)
        if isinstance(node, cst.CompIf):
            text = f" {text}"  # the blank before `if` is its own
        self.found.append((name, function, place, text))


def _needs_brackets(mutated: cst.CSTNode) -> bool:
    return isinstance(mutated, (cst.BooleanOperation, cst.IfExp)) and not mutated.lpar


def _is_empty_tuple(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Tuple) and not node.elements


def _text(node: cst.CSTNode) -> str:
    if getattr(node, "lpar", ()) and not _is_empty_tuple(node):
        node = node.with_changes(lpar=(), rpar=())
    return cst.Module([]).code_for_node(node).strip()


def _is_said(node: cst.CSTNode) -> bool:
    """Code that only says something, or runs before anything else does."""
    if isinstance(node, (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom)):
        return True
    if isinstance(node, cst.SimpleString):  # prose; names and keys hold no blank
        return " " in node.value or "\n" in node.value or node.value[0] not in "'\""
    if isinstance(node, cst.SimpleStatementLine):
        return m.matches(node.body[0], m.Raise()) or _is_told(node.body[0])
    if isinstance(node, cst.Call):
        name = _name(node.func)
        return name in _LEFT_ALONE or name in SAYS or name.endswith(_ERRORS)
    if isinstance(node, cst.If):
        return m.matches(node.test, m.Name("TYPE_CHECKING"))
    return False


def _is_told(statement: cst.CSTNode) -> bool:
    """A docstring, or a call that only tells of something."""
    if not isinstance(statement, cst.Expr):
        return False
    value = statement.value
    if isinstance(value, cst.Call):
        return _name(value.func) in SAYS
    return isinstance(value, (cst.SimpleString, cst.ConcatenatedString))


def _name(node: cst.BaseExpression) -> str:
    if isinstance(node, cst.Attribute):
        return node.attr.value
    return node.value if isinstance(node, cst.Name) else ""
