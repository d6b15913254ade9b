"""docs/api.md says what the code says."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest

import reembed
from reembed import api

SCRIPT = Path(__file__).parents[2] / "docs" / "reference.py"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_its_script_writes(reference):
    assert reference.PAGE.read_text() == reference.page(), "run: python docs/reference.py"


def test_every_verb_and_every_public_name_is_in_the_reference(reference):
    page = reference.page()
    assert set(api.__all__) == {verb.__name__ for verb, _ in reference.VERBS}
    for name in set(reembed.__all__) - {"__version__", "api"}:
        assert f"`{name}`" in page or f"reembed.{name}" in page


def test_every_method_and_every_argument_of_a_verb_is_described(reference):
    for verb, _ in reference.VERBS:
        said = inspect.getdoc(verb)
        assert said.splitlines()[0].endswith(".")
        names = set(inspect.signature(verb).parameters) - {"config", "emit"}  # the module says it
        if "Args:" in said:
            assert all(f"{name}: " in said for name in names), (verb.__name__, names)
    methods = [m for m in vars(reembed.Index).values() if inspect.isfunction(m)]
    assert all(inspect.getdoc(m) for m in methods if not m.__name__.startswith("_"))
