"""Any order of commands, on real Lance, against a dict: Hypothesis looks for one that goes wrong.

The simulator covers deaths and processes at once; this covers orders that nobody thought of, and
shrinks what it finds to the shortest one.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from inline import Inline, Silent

from reembed import digests, faults
from reembed.catalog.releases import Catalog
from reembed.config.settings import Config
from reembed.errors import ReembedError, UsageError
from reembed.lifecycle import gc, verification
from reembed.lifecycle.candidates import candidate, newest_of
from reembed.lifecycle.promote import follow, promote, rollback
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

IDS = st.sampled_from([f"d{n}" for n in range(12)])
TEXTS = st.sampled_from(["wing", "wing flutter", "heat", "shock wave", None])
POINTS = ("run.after_plan", "embed.before_write", "table.after_fragments", "table.after_receipt",
          "table.after_sealed", "table.before_commit", "table.after_commit", "table.after_tag",
          "verify.after_piece", "verify.before_remove", "index.before_shard",
          "index.before_manifest", "run.before_register", "run.after_register")  # fmt: skip
_numbers = itertools.count()


class Died(BaseException):
    """A command died at a crash point."""


class Migration(RuleBasedStateMachine):
    """The commands, and a dict of what the source holds at each of its versions."""

    def __init__(self) -> None:
        super().__init__()
        shm = Path("/dev/shm")
        base = shm if shm.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix=f"reembed-rules-{next(_numbers)}-", dir=base))
        self.uri, self.now = str(self.folder / "s.lance"), dict[str, str | None]()
        self.versions: dict[int, dict[str, str | None]] = {}
        self.expected_live: list[str] = []

    def teardown(self) -> None:
        faults.hook = None
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def catalog(self) -> Catalog:
        return Catalog(Storage.open(str(self.folder / "root")), "docs")

    def config(self, model: str = "hashing:16") -> Config:
        return Config(
            alias="docs",
            source={"uri": self.uri},
            encoder={"model": model},
            embed={"unit_documents": 3, "max_dead_letters": 20},
            storage={"root": str(self.folder / "root"), "keep": 2},
        )

    # --- the source ---

    @initialize(documents=st.dictionaries(IDS, TEXTS, min_size=3), stable=st.booleans())
    def made(self, documents: dict[str, str | None], stable: bool) -> None:
        self.now = documents
        lance.write_dataset(
            self.rows(documents), self.uri, enable_stable_row_ids=stable, max_rows_per_file=4
        )
        self.remember()

    @rule(documents=st.dictionaries(IDS, TEXTS, min_size=1, max_size=4))
    def upsert(self, documents: dict[str, str | None]) -> None:
        merge = lance.dataset(self.uri).merge_insert("doc_id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(self.rows(documents))
        self.now |= documents
        self.remember()

    @precondition(lambda self: len(self.now) > 2)
    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        doc_id = data.draw(st.sampled_from(sorted(self.now)))
        lance.dataset(self.uri).delete(f"doc_id = '{doc_id}'")
        del self.now[doc_id]
        self.remember()

    @rule()
    def compact(self) -> None:
        lance.dataset(self.uri).optimize.compact_files()
        self.remember()

    @rule()
    def overwrite(self) -> None:
        lance.write_dataset(self.rows(self.now), self.uri, mode="overwrite", max_rows_per_file=4)
        self.remember()

    def rows(self, documents: dict[str, str | None]) -> pa.Table:
        columns = pa.schema([("doc_id", pa.string()), ("text", pa.string())])
        return pa.table([list(documents), list(documents.values())], columns)

    def remember(self) -> None:
        for version in range(
            max(self.versions, default=0) + 1, lance.dataset(self.uri).version + 1
        ):
            self.versions[version] = dict(self.now)

    # --- the commands ---

    @rule(model=st.sampled_from(["hashing:16", "hashing:24"]))
    def run(self, model: str) -> None:
        if any(t is not None for t in self.now.values()):
            full_rebuild(self.config(model), Silent(), executor=Inline())

    @rule(point=st.sampled_from(POINTS), passing=st.integers(1, 3))
    def run_and_die(self, point: str, passing: int) -> None:
        left = [passing]

        def hook(name: str) -> None:
            if name == point:
                left[0] -= 1
                if left[0] == 0:
                    raise Died

        faults.hook = hook
        try:
            self.run("hashing:16")
        except Died:
            pass
        finally:
            faults.hook = None

    @precondition(lambda self: any(t is not None for t in self.now.values()))
    @rule(model=st.sampled_from(["hashing:16", "hashing:24"]))
    def promote(self, model: str) -> None:
        try:
            chosen = candidate(self.catalog, self.config(model))
        except UsageError:
            return
        newest = catch_up(
            self.config(), newest_of(self.catalog, chosen), Silent(), executor=Inline()
        )
        reason = "force_reason" if self.expected_live else "initial_reason"
        promote(self.catalog, newest.id, **{reason: "test"})
        self.expected_live.append(newest.origin)

    @precondition(lambda self: len(self.expected_live) > 1)
    @rule()
    def rollback(self) -> None:
        rollback(self.catalog)
        self.expected_live.pop()

    @precondition(lambda self: self.expected_live)
    @rule()
    def catch_up(self) -> None:
        if not any(t is not None for t in self.now.values()):
            return
        live = self.catalog.require_live().release
        newest = catch_up(self.config(), newest_of(self.catalog, live), Silent(), executor=Inline())
        follow(self.catalog, newest)

    @rule()
    def collect(self) -> None:
        planned = gc.plan(self.catalog, 2)
        gc.apply(self.catalog, planned, 2)
        again = gc.plan(self.catalog, 2)
        assert not again.remove
        assert not again.orphans

    # --- what always holds ---

    @invariant()
    def releases_are_their_source(self) -> None:
        live = self.catalog.live()
        stack = list(self.catalog.standing(live))
        assert [s.origin for s in reversed(stack)] == self.expected_live
        for standing in stack[:2]:
            newest = newest_of(self.catalog, self.catalog.release(standing.release))
            texts = self.versions[newest.source.version]
            expected = {d: digests.digest(t.encode()) for d, t in texts.items() if t is not None}
            path = str(self.folder / "root" / newest.table)
            table = lance.dataset(path, version=newest.table_version).to_table(
                columns=["doc_id", "text_hash"]
            )
            assert table.num_rows == len(expected)
            assert dict(zip(*(c.to_pylist() for c in table.columns), strict=True)) == expected

    @invariant()
    def live_verifies(self) -> None:
        live = self.catalog.live()
        if live is None:
            return
        try:
            found = verification.verify_release(
                self.catalog, live.release.id, level=3, sample=20, resume=False, stall_s=60
            )
        except ReembedError as error:  # pragma: no cover
            raise AssertionError(str(error)) from error
        assert found.passed


TestMigration = pytest.mark.deep(pytest.mark.timeout(600)(Migration.TestCase))
TestMigration.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
