"""The shape of the package at some commits: size, functions, untyped records, import contract.

Nothing is run: the files of each commit are parsed. `code_lines` are those that are not blank, a comment
or a docstring. How long the tests took is not known to git, so it is given: minutes of `make test` and of
the whole `.ci/run` on two cores. `--page` puts the table into docs/architecture.md.

    python bench/structure.py 19e07f6 HEAD --minutes 19e07f6 25 27.3 --page
"""

from __future__ import annotations

import ast
import io
import re
import statistics
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import common  # noqa: E402 - the path comes first

NAME = "structure"
PAGE = ROOT / "docs" / "architecture.md"
_UNTYPED = re.compile(r"dict\[str, Any\]")


def main() -> None:
    """Print a table with a column for each commit, and write the record."""
    parser = common.parser(NAME, __doc__)
    parser.add_argument("commits", nargs="+", help="what git takes as one")
    parser.add_argument("--page", action="store_true", help="put the table into the page")
    parser.add_argument(
        "--minutes",
        nargs=3,
        action="append",
        default=[],
        metavar=("COMMIT", "TEST", "CI"),
        help="minutes of make test and of .ci/run at one of the commits; - where unknown",
    )
    args = common.parse(parser)
    figures = {commit: shape(files_of(commit)) for commit in args.commits}
    for commit, test, ci in args.minutes:
        figures[commit] |= {"make_test_minutes": test, "ci_minutes": ci}
    for line in table(figures):
        common.say(line)
    if args.page:
        common.put_into(PAGE, NAME, "\n".join(table(figures)))
    common.finish(NAME, args, {"commits": figures})


def files_of(commit: str) -> dict[str, str]:
    """Python files of the package at a commit, and pyproject.toml, by path."""
    command = ["git", "archive", commit, "reembed", "pyproject.toml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = [m for m in archive if m.isfile() and m.name.endswith((".py", ".toml"))]
        return {m.name: archive.extractfile(m).read().decode() for m in members}  # type: ignore[union-attr]


def shape(files: dict[str, str]) -> common.Figures:
    """The figures of one commit."""
    modules = {name: text for name, text in files.items() if name.endswith(".py")}
    trees = [ast.parse(text) for text in modules.values()]
    lengths = [text.count("\n") for text in modules.values()]
    code = sum(_code_lines(text, tree) for text, tree in zip(modules.values(), trees, strict=True))
    functions = sorted(length for tree in trees for length in _functions(tree))
    thousands = sum(lengths) / 1000
    conditional = sum(isinstance(node, ast.IfExp) for tree in trees for node in ast.walk(tree))
    untyped = sum(len(_UNTYPED.findall(text)) for text in modules.values())
    return {
        "lines": sum(lengths),
        "code_lines": code,
        "modules": len(modules),
        "folders": len({Path(name).parent for name in modules}),
        "modules_over_400_lines": sum(length > 400 for length in lengths),
        "function_lines_p90": statistics.quantiles(functions, n=10)[-1],
        "function_lines_max": functions[-1],
        "dict_str_any_per_kloc": round(untyped / thousands, 1),
        "conditional_expressions_per_kloc": round(conditional / thousands, 1),
        "import_contract_lines": contract_lines(files["pyproject.toml"]),
    }


def _code_lines(text: str, tree: ast.Module) -> int:
    """Lines that are not blank, a comment or a docstring."""
    rest = {n for n, line in enumerate(text.splitlines(), 1) if line.strip()[:1] not in ("", "#")}
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=last):
                rest -= set(range(first, (last or first) + 1))
    return len(rest)


def _functions(tree: ast.Module) -> Iterator[int]:
    """Lines of each function, its docstring included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def contract_lines(pyproject: str) -> int:
    """Layers of the import contract."""
    contracts = tomllib.loads(pyproject)["tool"]["importlinter"]["contracts"]
    return sum(len(c["layers"]) for c in contracts if c["type"] == "layers")


def table(figures: dict[str, common.Figures]) -> list[str]:
    """Markdown, a row for each figure."""
    names = list(dict.fromkeys(name for f in figures.values() for name in f))
    head = ["| |" + "".join(f" {commit} |" for commit in figures), "|---|" + "---|" * len(figures)]
    rows = (
        f"| {name.replace('_', ' ')} |"
        + "".join(f" {_shown(f.get(name))} |" for f in figures.values())
        for name in names
    )
    return [*head, *rows]


def _shown(figure: float | str | None) -> str:
    if isinstance(figure, int | float):
        return f"{figure:,g}"
    return figure or "-"


if __name__ == "__main__":
    main()
