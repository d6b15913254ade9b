"""The documents of a lazy migration against an independent computation, after histories of changes."""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import tempfile
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reembed import faults
from reembed.config.settings import Config
from reembed.errors import Conflict, IntegrityError, SourceError
from reembed.source import members as rows
from reembed.source.dataset import Source
from reembed.source.members import Members
from reembed.store.storage import Storage
from reembed.strategies import members as bringing
from reembed.strategies.members import bring

COLUMNS = ["doc_id", "text", "lang", "ignored", "keep"]
POINTS = ("lazy.after_look", "lazy.after_commit", "lazy.after_members")


def row(name, text="a text", lang="en", ignored=0, keep=True):
    return dict(zip(COLUMNS, (name, text, lang, ignored, keep), strict=True))


class Place:
    """A source that changes, and its members."""

    def __init__(self, folder: Path, found: list[dict[str, object]]) -> None:
        self.uri = str(folder / "source.lance")
        self.folder = folder
        self.write(found)
        self.config = Config.model_validate(
            {
                "alias": "docs",
                "source": {"uri": self.uri, "filter": "keep"},
                "encoder": {"model": "hashing:8"},
                "storage": {"root": str(folder / "root")},
                "table": {"carry": ["lang"]},
            }
        )
        self.source = Source.open(self.config)
        storage = Storage.open(self.config.storage.root)
        self.members = Members(storage, "lazy/docs/1/members.lance", self.source.ref)

    def write(self, found, mode="create"):
        table = pa.Table.from_pylist(found)
        place = table.schema.get_field_index("lang")
        table = table.set_column(place, "lang", table["lang"].dictionary_encode())
        lance.write_dataset(
            table, self.uri, mode=mode, enable_stable_row_ids=True, max_rows_per_file=3
        )

    @property
    def dataset(self):
        return lance.dataset(self.uri)

    def wanted_documents(self):
        """What members may hold, by the plainest reading of the source."""
        found = self.dataset.to_table().to_pylist()
        return {r["doc_id"]: (r["text"], r["lang"]) for r in found if r["keep"]}

    def held(self):
        try:
            found = self.members.dataset().to_table().to_pylist()
        except FileNotFoundError:
            return {}
        assert all(set(r) == {"doc_id", "text", "lang"} for r in found)
        held = {r["doc_id"]: (r["text"], r["lang"]) for r in found}
        assert len(held) == len(found), "a document is there twice"
        return held

    def bring(self, *wanted):
        return bring(self.members, self.source.newest(), wanted)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, [row(f"d{i}", f"text {i}") for i in range(10)])


def test_changed_documents_are_replaced_those_that_left_removed_and_wanted_ones_added(place):
    assert place.bring("d1", "d3", "d4", "nobody").added == 3
    place.dataset.update({"text": "'new'"}, where="doc_id = 'd1'")
    place.dataset.delete("doc_id = 'd3'")
    place.dataset.update({"keep": "false"}, where="doc_id = 'd4'")
    place.dataset.update({"lang": "'de'"}, where="doc_id = 'd9'")
    found = place.bring("d9", "d3")
    assert (found.added, found.replaced, found.removed, found.documents) == (1, 1, 2, 2)
    assert place.held() == {"d1": ("new", "en"), "d9": ("text 9", "de")}


def test_a_source_that_did_not_change_costs_nothing(place, monkeypatch):
    place.bring("d1", "d2")
    version, records = place.members.dataset().version, len(looks(place))
    monkeypatch.setattr(bringing.rows, "row_ids_of", None)
    monkeypatch.setattr(bringing.rows, "rows_of", None)
    assert not place.bring().changed
    assert not place.bring("d2", "d1").changed
    assert (place.members.dataset().version, len(looks(place))) == (version, records)


def test_of_a_source_that_changed_only_new_files_are_read(place, monkeypatch):
    place.bring(*(f"d{i}" for i in range(10)))
    place.dataset.update({"text": "'new'"}, where="doc_id = 'd7'")
    read, honest = [], rows.rows_of

    def counted(source, delta):
        for ids, batch in honest(source, delta):
            read.append(batch.num_rows)
            yield ids, batch

    monkeypatch.setattr(bringing.rows, "rows_of", counted)
    assert place.bring().replaced == 1
    assert sum(read) == 1


def test_only_the_ids_that_are_asked_for_are_hashed(place, monkeypatch):
    place.bring("d1")
    hashed, honest = [], rows.digests.of_column

    def counted(column):
        hashed.append(len(column))
        return honest(column)

    monkeypatch.setattr(rows.digests, "of_column", counted)
    assert place.bring("d2", "d8", "nobody", "half a pair: \ud800").added == 2
    assert sum(hashed) == 3, "d1, which members have, and the two"


def test_an_update_that_changes_nothing_of_the_documents_makes_no_new_version(place):
    place.bring("d1", "d2")
    version = place.members.dataset().version
    place.dataset.update({"ignored": "7"}, where="doc_id = 'd1'")
    place.dataset.optimize.compact_files()
    assert not place.bring().changed
    assert place.members.dataset().version == version


def looks(place):
    return place.members.storage.names("lazy/docs/1/looks/")


@pytest.mark.parametrize("commit", ["replace", "remove"])
def test_a_commit_that_comes_after_another_process_took_over_writes_back_nothing(
    place, monkeypatch, commit
):
    place.bring("d1", "d2", "d3")
    place.dataset.update({"text": "'older'"}, where="doc_id = 'd1'")
    place.dataset.delete("doc_id = 'd3'")
    honest = getattr(Members, commit)

    def late(*change):
        monkeypatch.undo()
        place.dataset.update({"text": "'newest'"}, where="doc_id = 'd1'")
        place.dataset.delete("doc_id = 'd2'")
        place.write([row("d3", "again")], mode="append")
        assert place.bring("d3").documents == 2
        honest(*change)

    monkeypatch.setattr(Members, commit, late)
    with pytest.raises(Conflict, match="another process changes"):
        place.bring("d4", "d2")
    assert place.held() == {"d1": ("newest", "en"), "d3": ("again", "en")}
    assert not place.bring().changed


def cut_short(place):
    """As Lance leaves its newest data file where the disk was full at the last write."""
    files = sorted(Path(place.members.uri, "data").iterdir(), key=lambda f: f.stat().st_mtime_ns)
    files[-1].write_bytes(files[-1].read_bytes()[:-40])


@pytest.mark.parametrize("dies", [False, True])
def test_a_file_that_was_cut_short_is_seen_and_written_again(place, monkeypatch, dies):
    place.bring("d1", "d2")
    honest = Members.replace

    def full(*change):
        honest(*change)
        monkeypatch.undo()
        cut_short(place)
        if dies:
            raise KeyboardInterrupt

    monkeypatch.setattr(Members, "replace", full)
    with pytest.raises(KeyboardInterrupt if dies else IntegrityError):
        place.bring("d3")
    assert place.bring("d3").documents == 3
    assert set(place.held()) == {"d1", "d2", "d3"}


def test_of_two_processes_the_one_that_was_taken_for_dead_changes_nothing_more(place, monkeypatch):
    place.bring("d1")
    met = []

    def hook(name):
        if name == "lazy.after_look" and not met:
            met.append(name)
            place.bring("d2")  # a second process

    monkeypatch.setattr(faults, "hook", hook)
    with pytest.raises(Conflict, match="another process changes"):
        place.bring("d3")
    assert set(place.held()) == {"d1", "d2"}


def test_older_versions_are_not_removed_through_a_link(place, monkeypatch):
    monkeypatch.setattr(rows, "KEPT", dt.timedelta(0))
    place.bring("d1")
    place.bring("d2")
    data, elsewhere = Path(place.members.uri, "data"), place.folder / "elsewhere"
    shutil.move(data, elsewhere)
    data.symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    newest = place.members.dataset().version
    with pytest.raises(IntegrityError, match="is a symbolic link"):
        place.members.forget(newest, erase=True)
    assert sorted(elsewhere.iterdir()) == before


def test_ids_that_repeat_are_refused_by_name(place):
    place.bring("d1")
    place.write([row("d1"), row("d5")], mode="append")
    with pytest.raises(SourceError, match="is not unique: 'd1'"):
        place.bring()
    place.dataset.delete("doc_id = 'd1'")
    with pytest.raises(SourceError, match="is not unique: 'd5'"):
        place.bring("d5")


def test_columns_of_another_type_are_refused(place):
    place.bring("d1")
    place.write([row(f"d{i}", lang=str(i)) for i in range(3)], mode="overwrite")
    assert place.bring().replaced == 1
    table = place.dataset.to_table()
    at = table.schema.get_field_index("lang")
    numbers = table.set_column(at, "lang", pa.array(range(3)))
    lance.write_dataset(numbers, place.uri, mode="overwrite")
    with pytest.raises(SourceError, match=r"lang of .* has another type"):
        place.bring()


NAMES = st.sampled_from([f"d{i}" for i in range(12)])
STEPS = st.one_of(
    st.tuples(st.just("insert"), NAMES),
    st.tuples(st.just("text"), NAMES, st.sampled_from(["'a'", "'b'"])),
    st.tuples(st.just("lang"), NAMES, st.sampled_from(["'de'", "'fr'"])),
    st.tuples(st.just("keep"), NAMES, st.sampled_from(["true", "false"])),
    st.tuples(st.just("ignored"), NAMES, st.sampled_from(["1", "2"])),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("compact")),
    st.tuples(st.just("restore"), st.integers(1, 5)),
    st.tuples(st.just("recreate")),
    st.tuples(st.just("bring"), st.lists(NAMES, max_size=5)),
    st.tuples(st.just("killed"), st.lists(NAMES, max_size=5), st.sampled_from(POINTS)),
)


class Killed(Exception):
    pass


def change(place, step):
    kind, *rest = step
    dataset = place.dataset
    if kind == "insert":
        if not dataset.count_rows(f"doc_id = '{rest[0]}'"):
            place.write([row(rest[0], f"late {dataset.version}")], mode="append")
    elif kind in ("text", "lang", "keep", "ignored"):
        dataset.update({kind: rest[1]}, where=f"doc_id = '{rest[0]}'")
    elif kind == "delete":
        dataset.delete(f"doc_id = '{rest[0]}'")
    elif kind == "compact":
        dataset.optimize.compact_files()
    elif kind == "restore":
        lance.dataset(place.uri, version=min(rest[0], dataset.version)).restore()
    elif kind == "recreate":
        found = dataset.to_table().to_pylist()
        shutil.rmtree(place.uri)
        place.write(found or [row("d0")])


@pytest.mark.parametrize("commit_rows", [1, 2_048])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=12))
def test_after_any_history_members_are_what_a_plain_reading_of_the_source_gives(steps, commit_rows):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bringing, "_COMMIT_ROWS", commit_rows)
        place = Place(Path(folder), [row(f"d{i}", f"text {i}") for i in range(6)])
        held: set[str] = set()
        for step in (*steps, ("bring", ["d0", "d5"])):
            if step[0] == "bring":
                place.bring(*step[1])
                there = place.wanted_documents()
                held = (held | set(step[1])) & there.keys()
                assert place.held() == {name: there[name] for name in held}
            elif step[0] == "killed":
                held = killed(patch, place, step[1], step[2], held)
            else:
                change(place, step)


def killed(patch, place, wanted, point, held):
    """A process that dies: no document that was there and still exists is lost, and no other one comes."""

    def die(name):
        if name == point:
            raise Killed

    patch.setattr(faults, "hook", die)
    with contextlib.suppress(Killed):
        place.bring(*wanted)
    patch.setattr(faults, "hook", None)
    there, now = place.wanted_documents(), place.held().keys()
    assert held & there.keys() <= now <= held | set(wanted)
    return set(now)
