"""Security of the code itself: what it never calls (S4, S7), and what it comes with (S14)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted(
    file
    for folder in ("reembed", "jobs", "bench", "examples")
    for file in (ROOT / folder).rglob("*.py")
)

# Loading any of these can run what is loaded.
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.unsafe_load",
    "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "importlib.import_module", "np.fromfile",
}  # fmt: skip


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute, `().b` of an attribute of what a call gives, else ""."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value) or '()'}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_true(node: ast.expr | None) -> bool:
    """Anything but a plain False is taken for true."""
    return node is not None and not (isinstance(node, ast.Constant) and not node.value)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def loads(call: ast.Call) -> str | None:
    """What is dangerous about a call, None where nothing."""
    name = dotted(call.func)
    if name in FORBIDDEN_CALLS or (name == "yaml.load" and "Safe" not in ast.unparse(call)):
        return name
    for switch in ("allow_pickle", "shell", "trust_remote_code"):
        if is_true(keyword(call, switch)):
            return f"{name}({switch}=...)"
    from_pickle = name.rpartition(".")[2] == "load" and name.partition(".")[0] in PICKLES
    return name if from_pickle else None


def dangerous(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        modules = [m for m in imported(node) if m.partition(".")[0] in PICKLES]
        found = loads(node) if isinstance(node, ast.Call) else None
        for what in [*modules, *filter(None, [found])]:
            yield f"line {node.lineno}: {what}"  # type: ignore[attr-defined]


def test_s4_nothing_is_loaded_that_could_run() -> None:
    assert len(CODE) > 40
    assert [f"{f}: {d}" for f in CODE for d in dangerous(ast.parse(f.read_text()))] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "exec(x)",
        "yaml.load(x)",
        "yaml.load(x, Loader=yaml.Loader)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "subprocess.run(x, shell=True)",
        "torch.load(f)",
        "SentenceTransformer(x, trust_remote_code=True)",
        "os.system(x)",
    ],
)
def test_s4_the_search_finds_what_it_looks_for(line: str) -> None:
    assert list(dangerous(ast.parse(line)))


def test_s4_a_model_put_into_inference_mode_is_not_taken_for_the_builtin() -> None:
    assert not list(dangerous(ast.parse("load(x).float().eval()")))


# S7: ids and texts reach Lance as Arrow values, never as text of a filter

FILTERS = ("filter", "where", "prefilter_sql", "predicate", "when_matched_update_all")
SQL_CALLS = ("sql", "where", "count_rows", "delete")
# Those of these take names of tags, objects and arrays, not a filter.
NOT_TABLES = ("tags", "obstore", "store", "np")


def built(node: ast.expr | None, local: dict[str, list[ast.expr]], depth: int = 0) -> bool:
    """Whether text is put together here: f-string, +, %, format, join, or a local name that is."""
    if isinstance(node, ast.JoinedStr):
        return any(isinstance(v, ast.FormattedValue) for v in node.values)
    if isinstance(node, ast.BinOp):
        return True
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr in (
            "format",
            "join",
            "replace",
        )
    if isinstance(node, ast.IfExp):
        return built(node.body, local, depth) or built(node.orelse, local, depth)
    if isinstance(node, ast.Name) and depth < 5:
        return any(built(value, local, depth + 1) for value in local.get(node.id, []))
    return False


def assignments(function: ast.AST) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and node.value is not None:
                    found.setdefault(target.id, []).append(node.value)
    return found


def filters_of(call: ast.Call) -> list[ast.expr]:
    """The arguments that Lance would parse."""
    found = [k.value for k in call.keywords if k.arg in FILTERS]
    if isinstance(call.func, ast.Attribute) and call.func.attr in SQL_CALLS:
        receiver = dotted(call.func.value).rpartition(".")[2]
        found += call.args[:1] if receiver not in NOT_TABLES else []
    return found


def built_filters(tree: ast.AST) -> Iterator[str]:
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in [tree, *functions]:
        local = assignments(function)
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            said = f"line {node.lineno}: {ast.unparse(node)}"
            if any(built(value, local) for value in filters_of(node)):
                yield said


# What may be put together, and why.
ALLOWED = {
    "f\"_rowid IN ({', '.join(map(str, leaving))})\"": "row ids of Lance's own: integers",
}


def test_s7_no_filter_is_put_together_from_values() -> None:
    found = [f"{f}: {b}" for f in CODE for b in built_filters(ast.parse(f.read_text()))]
    assert [f for f in found if not any(a in f for a in ALLOWED)] == []


@pytest.mark.parametrize(
    "line",
    [
        "d.scanner(filter=f'id = {x}')",
        "d.to_table(filter='id = ' + x)",
        "d.delete(f\"id = '{x}'\")",
        "d.delete('id in ({})'.format(x))",
        "d.sql('select %s' % x)",
        "q.where(','.join(ids))",
        "def f():\n  where = f'id = {x}'\n  d.delete(where)",
        "def f():\n  a = 'id = ' + x\n  b = a\n  d.scanner(filter=b)",
    ],
)
def test_s7_the_search_finds_what_it_looks_for(line: str) -> None:
    assert list(built_filters(ast.parse(line)))


# S14: supply chain


def test_s14_every_module_imports_with_the_network_blocked() -> None:
    program = """
import pkgutil, socket, sys
def refuse(*args, **kwargs):
    raise RuntimeError(f"network: {args}")
socket.socket.connect = socket.socket.connect_ex = socket.socket.bind = refuse
socket.getaddrinfo = socket.create_connection = refuse
import reembed
for module in pkgutil.walk_packages(reembed.__path__, "reembed."):
    __import__(module.name)
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stdout == "fine\n", done.stderr


def test_s14_what_is_required_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *chain.from_iterable(project["optional-dependencies"].values()),
    ]
    names = {re.split(r"[\[<>=!~; ]", line)[0].lower().replace("_", "-") for line in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert all(version and not set(version) & set("*<>,") for _, _, version in pins)
    assert names - {name.lower().replace("_", "-") for name, _, _ in pins} == set()


def test_s14_nothing_is_installed_from_elsewhere_than_a_registry() -> None:
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    assert not re.search(
        r"git\+|https?://[^\s\"]+\.(?:whl|tar\.gz|zip)|--(?:extra-)?index-url", text
    )
