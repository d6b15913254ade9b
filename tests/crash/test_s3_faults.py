"""Faults in every request of a migration on S3; each case replays alone."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator

import pytest
from crash import s3_faults
from crash.s3_faults import KINDS, Store

pytestmark = [pytest.mark.crash, pytest.mark.s3, pytest.mark.timeout(600)]

CASES, SEED = 105, 20260101


def test_a_fault_in_any_request_loses_nothing_and_ends_cleanly():
    said = s3_faults.run(CASES, SEED)
    assert not said["violations"], "\n\n".join(said["violations"])
    assert said["s3_faults"] == CASES
    assert set(said["by_kind"]) == set(KINDS)
    assert said["by_method"].keys() >= {"GET", "PUT"}


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
    assert (time.monotonic() - started > 1.5) == (kind == "delay")
    assert store.report()["injected"] == f"PUT /bucket/{kind}-1"
    assert ask(store, "GET", f"{kind}-1")[0] == (200 if applied else 404)


def test_a_truncated_answer_says_its_full_length(store):
    store.arm("truncated", 1)
    assert ask(store, "PUT", "whole", b"0123456789")[0] == 200
    assert ask(store, "GET", "whole") == "IncompleteRead"
    assert ask(store, "GET", "whole") == (200, b"0123456789")
    assert "/bucket/whole" in store.report()["injected"]
