"""Records as this format's first versions wrote them (tests/golden/1): later versions must read them.

They are never made anew: a field that came later has a default, and records without it stay.
A run that 0.1 began, stopped and left behind is finished by what comes after it, or refused in words.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from reembed.catalog import AliasRecord, Release
from reembed.errors import UsageError
from reembed.index_store import IndexManifest
from reembed.runs import Lease, Plan
from reembed.storage import from_bytes, to_bytes

GOLDEN = Path(__file__).parents[1] / "golden" / "1"
KINDS = {
    "plan": Plan,
    "plan-catch-up": Plan,
    "release": Release,
    "alias": AliasRecord,
    "index-manifest": IndexManifest,
}


def golden(name: str) -> dict:
    return from_bytes((GOLDEN / f"{name}.json").read_bytes(), name)


@pytest.mark.parametrize("name", KINDS)
def test_a_record_of_format_1_is_read_and_would_be_written_the_same(name):
    record = golden(name)
    again = KINDS[name].from_json(record).to_json()
    assert to_bytes(again) == (GOLDEN / f"{name}.json").read_bytes()


def test_a_release_from_before_releases_were_numbered_is_read():
    release = Release.from_json(golden("release-without-number"))
    assert (release.id, release.number) == ("docs-f22b7dcf-u3-1", 0)


def test_what_is_read_without_a_class_has_the_fields_that_are_read():
    receipt, sealed = golden("receipt"), golden("sealed")
    assert {"unit", "space", "columns", "rows", "dead_letters", "fragments", "files"} <= {*receipt}
    assert {"rows", "dead_letters", "files"} <= {*sealed}
    assert receipt["files"].items() <= sealed["files"].items()
    assert Lease(**golden("lease")).number == 1


@pytest.mark.parametrize("name", ["plan", "receipt", "sealed", "release", "alias"])
def test_a_newer_format_is_refused_in_words(name):
    newer = to_bytes({**golden(name), "schema_version": 2, "what_is_this": 1})
    with pytest.raises(UsageError, match="by another version of reembed") as refused:
        from_bytes(newer, f"runs/x/{name}.json")
    assert (refused.value.why, refused.value.exit_code) == ("format 2, this one knows 1", 2)
