"""docs/sizing.md and cluster.yaml say what `reembed.planning` computes."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from docs_sizes import SIZES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", SIZES.PARTS)
def test_tables_and_profiles_are_what_the_formulas_give(name: str) -> None:
    file, make = SIZES.PARTS[name]
    _, inside, _ = SIZES.marked((ROOT / file).read_text(encoding="utf-8"), name)
    assert inside == make() + "\n", "python docs/sizes.py"


def test_examples_of_the_page_give_what_it_shows() -> None:
    failed, tried = doctest.testfile(str(ROOT / "docs" / "sizing.md"), module_relative=False)
    assert tried >= 6
    assert failed == 0
