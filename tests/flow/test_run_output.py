"""What a run says of itself: each step before the first document, and each setting it ignores."""

from __future__ import annotations

import pytest
from inline import Inline

from reembed.console import Console
from reembed.errors import RunFailed
from reembed.strategies.full_rebuild import full_rebuild


def test_each_setting_that_a_planned_run_ignores_is_named_with_both_values(
    corpus, make_config, quiet
):
    source = corpus(300)
    full_rebuild(make_config(source), quiet, executor=Inline())
    changed = {"gate": {"margin": 0.3, "split": "dev"}, "index": {"factory": "HNSW16"}}
    other = make_config(source, embed={"unit_documents": 32}, **changed)
    full_rebuild(other, quiet, executor=Inline())
    stage, fields = quiet.events[-1]
    assert stage == "ignored"
    assert fields["settings"] == [
        ("gate.split", "test", "dev"),
        ("gate.margin", None, 0.3),
        ("index.factory", "auto", "HNSW16"),
        ("embed.unit_documents", 64, 32),
    ]


def test_what_a_resumed_run_ignores_is_said_in_one_line_and_what_it_takes_is_not(
    corpus, make_config, quiet, capsys
):
    class Dies(Inline):
        def order(self, units):
            return units[:-1]

    source = corpus(300)
    with pytest.raises(RunFailed):
        full_rebuild(make_config(source), quiet, executor=Dies())
    changed = {"gate": {"margin": 0.3}, "index": {"factory": "Flat"}}
    other = make_config(source, embed={"unit_documents": 32, "batch_tokens": 512}, **changed)
    full_rebuild(other, Console(), executor=Inline())
    (line,) = (line for line in capsys.readouterr().err.splitlines() if " ignored " in line)
    assert "gate.margin 0.3 (planned: left out)" in line
    assert "embed.unit_documents 32 (planned: 64)" in line
    assert "index" not in line
    assert "batch_tokens" not in line


def test_a_larger_unit_that_would_have_cut_nothing_is_not_said_to_be_ignored(
    corpus, make_config, quiet
):
    source = corpus(100)
    full_rebuild(make_config(source, embed={"unit_documents": 500}), quiet, executor=Inline())
    full_rebuild(make_config(source, embed={"unit_documents": 900}), quiet, executor=Inline())
    assert quiet.stages()[-1] == "already"


def test_what_goes_on_before_the_first_document_is_said(corpus, make_config, quiet):
    full_rebuild(make_config(corpus(60)), quiet, executor=Inline())
    before = quiet.events[: quiet.stages().index("embed")]
    said = " ".join(fields.get("what", "") for stage, fields in before if stage == "begin")
    for step in ("reading the model's files", "reading every id", "starting this process"):
        assert step in said
