"""Every shipped config loads, names every setting and explains it."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from reembed.config.settings import Config, load

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("examples/**/*.yaml")])


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string below each setting of a section, and of those that it extends."""
    found: dict[str, str] = {}
    for section in itertools.takewhile(lambda c: c is not BaseModel, model.__mro__):
        (body,) = (c.body for c in ast.parse(inspect.getsource(section)).body)
        for setting, below in itertools.pairwise(body):
            match setting, below:
                case (
                    ast.AnnAssign(target=ast.Name(name)),
                    ast.Expr(ast.Constant(str(text))),
                ):
                    found.setdefault(name, text)
    return found


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """Every leaf setting and its docstring."""
    texts = docstrings(model)
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from leaves(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", texts.get(name)


NAMES = dict(leaves(Config))


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_every_shipped_config_loads(path: Path) -> None:
    load([str(path)], [])


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=ids)
def test_every_setting_is_in_every_config_set_or_left_out(path: Path, tmp_path: Path) -> None:
    known = "|".join(name.rpartition(".")[2] for name in NAMES)
    left_out = re.compile(rf"^( *)# ((?:{known}): \S.*)$")
    lines = [left_out.sub(r"\1\2", line) for line in path.read_text().splitlines()]
    complete = tmp_path / "complete.yaml"
    complete.write_text("\n".join(lines))
    _, origins = load([str(complete)], [])
    unset = {name for name, origin in origins.items() if origin == "default"}
    assert not unset
    for name, origin in origins.items():
        number = int(origin.rpartition(":")[2])
        explained = "  # " in lines[number - 1] or lines[number - 2].lstrip().startswith("# ")
        assert explained, f"{name} in line {number} has no comment"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=ids)
def test_a_copied_config_leaves_no_document_out_and_sets_nothing_of_another_model(
    path: Path,
) -> None:
    """No filter, no pinned version, no cut text, no lost documents, and no other model's settings."""
    config, _ = load([str(path)], [])
    assert (config.source.filter, config.source.version) == (None, None)
    encoder = config.encoder
    assert (encoder.max_length, encoder.truncate_dim) == (None, None)
    assert (encoder.pooling, encoder.normalize, encoder.prompts.document) == (None, None, None)
    assert config.embed.max_dead_letters == 0
    assert config.gate.split == "test"
    assert config.table.carry == ()


def test_every_setting_has_a_docstring() -> None:
    assert [name for name, text in NAMES.items() if not text] == []


def test_there_are_few_enough_settings_to_know_them_all() -> None:
    # 58, and three of a lazy migration: how answers are fused, over how many results, how large a batch is.
    assert len(NAMES) <= 61, "a new setting comes with one removed"
