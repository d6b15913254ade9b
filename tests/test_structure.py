"""What keeps the package readable: short modules and short functions."""

from __future__ import annotations

import ast
from pathlib import Path

import reembed

MODULES = sorted(Path(reembed.__file__).parent.rglob("*.py"))


def test_no_module_has_more_than_400_lines():
    sizes = {str(file): len(file.read_text().splitlines()) for file in MODULES}
    assert {file: lines for file, lines in sizes.items() if lines > 400} == {}


def test_no_function_has_more_than_60_lines():
    found = {
        f"{file}:{node.name}": node.end_lineno - node.lineno + 1
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in found.items() if lines > 60} == {}
