"""What the pages name exists: commands, settings, files, folders, functions."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import reembed
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import Config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
TEXT = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.S)


def commands(text: str) -> list[list[str]]:
    """Every command of reembed in the shell blocks of a page."""
    shown = [body for language, body in BLOCK.findall(text) if language in ("bash", "console")]
    lines = [
        line.removeprefix("$ ") for body in shown for line in body.replace("\\\n", " ").splitlines()
    ]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("reembed ")]


def test_every_command_that_a_page_shows_parses() -> None:
    shown = {name: commands(text) for name, text in TEXT.items()}
    assert {name for name, found in shown.items() if found} >= {
        *("README.md", "docs/operate.md", "docs/evaluate.md"),
    }
    for found in shown.values():
        for _, verb, *arguments in found:
            command = reembed_cli.commands[verb]
            command.make_context(verb, arguments, parent=click.Context(reembed_cli))


def test_every_verb_is_in_the_table_of_commands_and_has_help() -> None:
    rows = re.findall(r"^\| `reembed ([a-z-]+)` \|", TEXT["docs/operate.md"], re.M)
    assert sorted(rows) == sorted(reembed_cli.commands)
    assert all(command.help for command in reembed_cli.commands.values())


def test_the_readme_shows_a_whole_migration() -> None:
    shown = [verb for _, verb, *_ in commands(TEXT["README.md"])]
    assert [v for v in shown if v != "import"] == [
        *("run", "promote", "run", "compare", "promote", "search", "rollback"),
    ]


def test_python_that_a_page_shows_uses_the_public_names() -> None:
    written = [
        text for name, text in TEXT.items() if name != "docs/api.md"
    ]  # that one is generated
    shown = [body for text in written for kind, body in BLOCK.findall(text) if kind == "python"]
    assert len(shown) >= 2
    for body in shown:
        nodes = list(ast.walk(ast.parse(body)))
        used = {
            (node.value.id, node.attr)
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        assert {n.names[0].name for n in nodes if isinstance(n, ast.Import)} == {"reembed"}
        assert all(hasattr(reembed, attribute) for name, attribute in used if name == "reembed")
        assert all(hasattr(reembed.Index, method) for name, method in used if name == "index")


@pytest.mark.parametrize("name", TEXT)
def test_every_setting_that_a_page_names_exists(name: str) -> None:
    sections = {n: f.annotation for n, f in Config.model_fields.items() if n != "alias"}
    named = re.findall(rf"`({'|'.join(sections)})\.([a-z_]+)\b(?!\()", TEXT[name])
    unknown = [(s, n) for s, n in named if n not in getattr(sections[s], "model_fields", {})]
    assert unknown == []


@pytest.mark.parametrize("name", TEXT)
def test_every_file_that_a_page_names_exists(name: str) -> None:
    prose = BLOCK.sub("", TEXT[name])
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", prose)
    missing = [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]
    files = re.findall(r"`((?:[\w-]+/)+[\w.-]*\.(?:py|md|yaml|json))\b", prose)
    tops = (ROOT, ROOT / "tests", ROOT / "reembed")
    missing += [f for f in files if not any((top / f).exists() for top in tops)]
    assert missing == []


@pytest.mark.parametrize("name", TEXT)
def test_every_heading_that_a_link_names_exists(name: str) -> None:
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([\w-]+)\)", TEXT[name]):
        text = (ROOT / name).parent.joinpath(link or Path(name).name).read_text(encoding="utf-8")
        headings = [
            h.strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)", text, re.M)
        ]
        assert anchor in headings


def test_the_tree_names_every_folder_and_only_files_that_are_there() -> None:
    (tree,) = re.findall(r"```\n(reembed/\n.*?)```", TEXT["README.md"], re.S)
    package, top = tree.split("\njobs/", 1)
    rooms = re.findall(r"^  (\w+)/ ", package, re.M)
    there = {p.name for p in (ROOT / "reembed").iterdir() if p.is_dir() and p.name[0] != "_"}
    assert sorted(rooms) == sorted(there)
    assert {"bench", "configs", "docs", "examples", "jobs", "tests"} <= set(
        re.findall(r"(\w+)/", "jobs/" + top)
    )
    assert missing_files(package, ROOT / "reembed") == []


def missing_files(package: str, folder: Path) -> list[str]:
    """Files named in a line of the tree that its room does not hold."""
    missing, room = [], folder
    for line in package.splitlines()[1:]:
        if started := re.match(r"  (\w+)/ ", line):
            room = folder / started[1]
        here = folder if re.match(r"  \w+\.py", line) else room
        missing += [
            f"{here.name}/{f}" for f in re.findall(r"\w+\.py", line) if not (here / f).exists()
        ]
    return missing


def definitions(file: Path) -> set[str]:
    """Every function, method (`Class.method`) and class of a module."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef)}
    return found


HOP = re.compile(r"`((?:\w+/)*\w+\.py):([\w.]+)`")


def test_every_function_that_the_architecture_names_exists() -> None:
    hops = HOP.findall(TEXT["docs/architecture.md"])
    assert len(hops) >= 10
    missing = [
        f"{file}:{name}"
        for file, name in hops
        if not (ROOT / "reembed" / file).exists()
        or name not in definitions(ROOT / "reembed" / file)
    ]
    assert missing == []
