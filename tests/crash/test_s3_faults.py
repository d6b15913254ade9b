"""Faults in every request of a migration on S3; each case replays alone."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from typing import Any

import pytest
from crash import s3_faults
from crash.migration import OLD
from crash.s3_faults import KINDS, Store
from inline import Inline, Silent
from obstore.exceptions import BaseError

from reembed.errors import SourceError
from reembed.lifecycle.promote import Reasons, admissible
from reembed.source.dataset import Source
from reembed.store.lance import open_dataset
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table.read import used_files

pytestmark = [pytest.mark.deep, pytest.mark.s3, pytest.mark.timeout(600)]

CASES, SEED = 105, 20260101
LAZY = 4


def test_a_fault_in_any_request_loses_nothing_and_ends_cleanly():
    said = s3_faults.run(CASES, SEED)
    assert not said["violations"], "\n\n".join(said["violations"])
    assert said["s3_faults"] == CASES
    assert set(said["by_kind"]) == set(KINDS)
    assert said["by_method"].keys() >= {"GET", "PUT"}


def test_a_fault_in_any_request_of_a_lazy_migration_loses_nothing():
    said = s3_faults.run(LAZY, SEED, lazily=True)
    assert not said["violations"], "\n\n".join(said["violations"])
    assert said["s3_faults"] == LAZY


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store() as started:
        started.make_bucket("bucket")
        yield started


def ask(store: Store, method: str, key: str, body: bytes = b"") -> tuple[int, bytes] | str:
    """(status, body), or the name of what went wrong."""
    connection = http.client.HTTPConnection(store.endpoint.removeprefix("http://"), timeout=30)
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4"}
    try:
        connection.request(method, f"/bucket/{key}", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (http.client.HTTPException, ConnectionError) as error:
        return type(error).__name__
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("kind", "answer", "applied"),
    [
        ("slow_down", 503, False),
        ("error_before", 500, False),
        ("expired", 403, False),
        ("error_after", 500, True),
        ("lost_answer", "RemoteDisconnected", True),
        ("reset", "ConnectionResetError", False),
        ("delay", 200, True),
    ],
)
def test_a_write_meets_the_fault_that_its_kind_says(store, kind, answer, applied):
    store.arm(kind, 2)
    started = time.monotonic()
    assert ask(store, "PUT", f"{kind}-0", b"first")[0] == 200
    met = ask(store, "PUT", f"{kind}-1", b"second")
    assert (met if isinstance(met, str) else met[0]) == answer
    assert kind != "delay" or time.monotonic() - started > 1.5
    assert store.report()["injected"] == f"PUT /bucket/{kind}-1"
    assert ask(store, "GET", f"{kind}-1")[0] == (200 if applied else 404)


def test_a_truncated_answer_says_its_full_length(store):
    store.arm("truncated", 1)
    assert ask(store, "PUT", "whole", b"0123456789")[0] == 200
    assert ask(store, "GET", "whole") == "IncompleteRead"
    assert ask(store, "GET", "whole") == (200, b"0123456789")
    assert "/bucket/whole" in store.report()["injected"]


def test_a_refused_request_is_not_taken_for_a_dataset_that_is_gone(store, monkeypatch):
    for name, value in s3_faults.KEYS.items():
        monkeypatch.setenv(name, value)
    store.arm(None)
    store.make_bucket("refused")
    place = s3_faults.place_of({"bucket": "refused", "endpoint": store.endpoint})
    place.write_source()
    release = full_rebuild(place.config(OLD), Silent(), executor=Inline())
    catalog = place.catalog()
    source = Source(release.source, catalog.source_options)
    with pytest.raises(FileNotFoundError):
        open_dataset(f"{place.source}-of-nobody", None, place.options)
    with pytest.raises(FileNotFoundError):
        open_dataset(place.source, 99, place.options)

    def met_by(asks: Any) -> list[str]:
        """What comes of asking when the first, second ... request is refused, until none is."""
        found: list[str] = []
        while True:
            store.arm("expired", len(found) + 1)
            try:
                said = asks()
            except (OSError, BaseError, SourceError) as error:
                said = "no answer" if not isinstance(error, FileNotFoundError) else "gone"
            if store.report()["injected"] is None:
                return found
            found.append(str(said))

    first = Reasons(initial="a test")
    of_source = met_by(lambda: source.is_as_planned(release.source))
    of_gc = met_by(lambda: len(used_files(catalog.storage, release.table)) == 3)
    of_promote = met_by(lambda: admissible(catalog, release, None, first).comparison is None)
    assert min(map(len, (of_source, of_gc, of_promote))) >= 2
    assert {*of_source, *of_gc, *of_promote} <= {"True", "no answer"}
