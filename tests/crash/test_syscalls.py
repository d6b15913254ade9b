"""Disk faults and kills in every file operation of a migration; each case replays alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from crash import syscalls
from crash.forks import ForkServer
from crash.syscalls import KINDS, Case

pytestmark = [
    pytest.mark.deep,
    pytest.mark.timeout(400),
    pytest.mark.skipif(syscalls.compiler() is None, reason="no C compiler (cc, gcc or clang)"),
]

CASES, SEED = 72, 20260101


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return syscalls.compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as started:
        yield started


@pytest.fixture
def number_of(server, shim, tmp_path):
    """number_of("write", "/built.faiss", -1) -> its number among all operations of a migration."""

    def find(operation: str, path: str, which: int = 0) -> int:
        found = syscalls.operations(server, shim, tmp_path)
        return [i for i, (n, p) in enumerate(found, 1) if n == operation and path in p][which]

    return find


def test_a_fault_in_any_file_operation_loses_nothing_and_ends_cleanly(tmp_path):
    said = syscalls.run(CASES, SEED, tmp_path)
    assert not said["violations"], "\n\n".join(said["violations"])
    assert said["syscall_faults"] == CASES
    assert set(said["by_kind"]) == set(KINDS)
    assert said["by_operation"].keys() >= {"openat", "write", "mkdir"}
    assert 0 < said["failed_cleanly"] < CASES


def test_a_fault_in_any_file_operation_of_a_lazy_migration_loses_nothing(tmp_path):
    said = syscalls.run(len(KINDS), SEED, tmp_path, lazily=True)
    assert not said["violations"], "\n\n".join(said["violations"])
    assert said["syscall_faults"] == len(KINDS)


def test_operations_that_go_round_libc_are_seen(server, shim, tmp_path):
    found = syscalls.operations(server, shim, tmp_path)
    renamed = [path for name, path in found if name.startswith("renameat")]
    assert [p for p in renamed if p.endswith(".lance")], "no data file got its name"


def test_lance_reports_success_on_a_file_cut_short_and_a_run_does_not(server, shim, tmp_path):
    stock = server.call(
        "crash.syscalls:stock_write", {"shim": str(shim), "folder": str(tmp_path / "stock")}
    )
    assert stock.trouble is None
    assert stock.result["on_disk"] < stock.result["reported"]
    ours = syscalls.one(server, shim, Case("last_write", 1), tmp_path / "ours")
    assert not ours.violations, ours.violations
    assert ours.said is not None
    assert ours.said.startswith("IntegrityError")
    assert "the disk is full, or the last write failed without an error" in ours.said


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("no_space", "No space left on device"), ("io_error", "Input/output error")],
)
def test_an_index_file_cut_short_is_not_taken_for_an_index(
    server, shim, tmp_path, number_of, kind, cause
):
    last = number_of("write", "/built.faiss", 1)  # the second and last of the first index
    result = syscalls.one(server, shim, Case(kind, last), tmp_path / "case")
    assert result.operation.endswith("/built.faiss")
    assert "reembed-index-" in result.operation
    assert not result.violations, result.violations
    assert result.said is not None
    assert "could not be built" in result.said
    assert cause in result.said


def test_a_table_that_cannot_be_created_is_said_in_one_sentence(server, shim, tmp_path, number_of):
    first = number_of("mkdir", "/_transactions")
    result = syscalls.one(server, shim, Case("io_error", first), tmp_path / "case")
    assert result.injected
    assert not result.violations, result.violations
    assert result.said is not None
    assert "Input/output error" in result.said
