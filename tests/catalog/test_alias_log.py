"""The log of an alias: few records are read however long it is, and nothing goes back unasked."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from releases import FIRST, make_release

from reembed.catalog import alias as alias_module
from reembed.catalog import lines
from reembed.catalog import releases as catalog_module
from reembed.catalog.lines import Place
from reembed.catalog.releases import AliasRecord, Catalog, Release, Standing
from reembed.config.settings import Config
from reembed.errors import Conflict, IntegrityError, UsageError
from reembed.lifecycle.candidates import candidate, candidates, newest_of, release_of
from reembed.lifecycle.moves import roll_back
from reembed.lifecycle.promote import follow, promote, rollback
from reembed.lifecycle.status import status
from reembed.serving.index import Index
from reembed.source.dataset import Source
from reembed.source.lag import note
from reembed.store.records import SCHEMA_VERSION, encode, to_bytes
from reembed.store.storage import Storage

FORCE = {"force_reason": "a test"}


@pytest.fixture
def catalog(tmp_path):
    return Catalog(Storage.open(str(tmp_path)), "docs")


@pytest.fixture
def reads(monkeypatch):
    """Paths that are read from now on."""
    seen: Counter[str] = Counter()
    plain = Storage.read_bytes

    def read(self: Storage, path: str) -> bytes:
        seen[path] += 1
        return plain(self, path)

    monkeypatch.setattr(Storage, "read_bytes", read)
    return seen


def steps(catalog: Catalog, *releases: Release) -> None:
    for release in releases:
        catalog.append(catalog.live(), "promote", release)


# --- bounded reading ---


@pytest.mark.parametrize("back", [rollback, roll_back])
@pytest.mark.parametrize("length", [3, 64, 65, 300])
def test_who_reads_what_is_live_or_rolls_back_reads_as_many_records_of_any_log(
    catalog, reads, length, back
):
    a, b = make_release(catalog, "a"), make_release(catalog, "b")
    last: AliasRecord | None = None
    for n in range(length):
        last = catalog.append(last, "promote", (a, b)[n % 2])
    reads.clear()
    assert catalog.live() == last
    assert sum(path.startswith("aliases/docs/") for path in reads) == 2
    reads.clear()
    back(catalog)
    assert sum(n for path, n in reads.items() if path.startswith("aliases/")) <= 4
    assert sum(reads.values()) <= 6


def standing_by_the_whole_log(log: list[AliasRecord]) -> list[Standing]:
    """As it was once found, from every record: the oracle."""
    stack: list[Standing] = []
    for record in log:
        lines = [s.origin for s in stack]
        if record.action == "rollback" and record.release.origin in lines:
            stack = stack[: len(lines) - 1 - lines[::-1].index(record.release.origin)]
        elif record.action == "catch-up":
            stack = stack[:-1]
        stack.append(Standing(record.release.id, record.release.origin))
    return stack


@pytest.mark.parametrize("seed", range(6))
def test_what_stands_is_the_same_from_the_newest_records_as_from_the_whole_log(
    catalog, monkeypatch, seed
):
    monkeypatch.setattr(catalog_module, "STANDING", 3)
    monkeypatch.setattr(alias_module, "HINT_EVERY", 4)
    rng = random.Random(seed)
    releases = {n: make_release(catalog, n) for n in ("a", "b", "c", "a-u2-1", "b-u3-1")}
    log: list[AliasRecord] = []
    for _ in range(60):
        live = log[-1] if log else None
        action = rng.choice(["promote", "promote", "rollback", "catch-up"]) if live else "promote"
        release = releases[rng.choice(sorted(releases))]
        if action == "catch-up":
            release = releases.get(f"{live.release.origin}-u2-1", live.release)
        elif action == "rollback" and rng.random() < 0.8:
            stack = [*catalog.standing(live)]
            release = releases[stack[min(1, len(stack) - 1)].release]
        log.append(catalog.append(live, action, release))
        assert [*catalog.standing(log[-1])][::-1] == standing_by_the_whole_log(log)
        assert len(log[-1].standing) <= 3
    assert catalog.log() == log
    assert catalog.live() == log[-1]


@pytest.mark.parametrize(
    "hint", [{"after": 10**7}, {"after": 0}, {"after": -1}, {}, {"after": "x"}, None, b"{"]
)
def test_a_wrong_hint_only_costs_a_listing(catalog, hint):
    release = make_release(catalog, "a")
    for _ in range(70):
        steps(catalog, release)
    if hint is None:
        catalog.storage.remove("aliases/docs.json")
    else:
        body = (
            hint if isinstance(hint, bytes) else to_bytes({"schema_version": SCHEMA_VERSION} | hint)
        )
        catalog.storage.write_bytes("aliases/docs.json", body)
    assert catalog.require_live().generation == 70
    steps(catalog, release)
    assert catalog.require_live().generation == 71


def test_the_hint_spares_the_names_before_it(catalog, monkeypatch):
    release = make_release(catalog, "a")
    for _ in range(70):
        steps(catalog, release)
    listed: list[str] = []
    plain = Storage.names

    def names(storage: Storage, folder: str, after: str = "") -> list[str]:
        found = plain(storage, folder, after)
        listed.extend(found)
        return found

    monkeypatch.setattr(Storage, "names", names)
    assert catalog.require_live().generation == 70
    assert len(listed) <= alias_module.HINT_EVERY


# --- a gap is an error for every reader ---


def copied(catalog: Catalog, of: int, to: int, **changes: Any) -> None:
    """A record of the log, intact by its sha256, under another number."""
    record = catalog.storage.read(f"aliases/docs/{of:08d}.json")
    catalog.storage.write(f"aliases/docs/{to:08d}.json", {**record, **changes})


def chained(catalog: Catalog, at: int) -> None:
    """Two records of other numbers, of which the second follows the first."""
    copied(catalog, 1, at, generation=at, token="first")
    copied(catalog, 2, at + 1, generation=at + 1, previous_token="first")


def gone(catalog: Catalog) -> None:
    catalog.storage.remove("aliases/docs/00000003.json")


PLANTED = {
    "a number far ahead": lambda c: copied(c, 2, 99_999_999, generation=99_999_999),
    "the next number, as it was": lambda c: copied(c, 4, 5),
    "the next number, renumbered": lambda c: copied(c, 2, 5, generation=5),
    "two numbers far ahead, one after the other": lambda c: chained(c, 99_999_998),
    "two numbers ahead, one after the other": lambda c: chained(c, 6),
    "the one before is gone": gone,
    "one further back is gone": lambda c: c.storage.remove("aliases/docs/00000002.json"),
    "the newest exchanged for another": lambda c: copied(c, 2, 4, generation=4),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_a_gap_in_the_log_is_an_error_for_every_reader(catalog, plant):
    a, b = make_release(catalog, "a"), make_release(catalog, "b")
    steps(catalog, a, b, a, b)
    plant(catalog)
    readers = {
        "live": catalog.live, "log": catalog.log, "status": lambda: status(catalog),
        "serving": lambda: Index(catalog),
        "rollback": lambda: rollback(catalog), "promote": lambda: promote(catalog, "a", **FORCE),
        "follow": lambda: follow(catalog, a),
    }  # fmt: skip
    for reader in readers.values():
        with pytest.raises(IntegrityError, match="has a gap at") as refused:
            reader()
        assert refused.value.fix


def test_a_record_that_names_a_later_one_as_deeper_ends_no_reader_in_a_loop(catalog):
    a, b = make_release(catalog, "a"), make_release(catalog, "b")
    steps(catalog, a, b)
    record = catalog.storage.read("aliases/docs/00000002.json")
    top = {"standing": [{"release": "b", "origin": "b"}], "deeper": 2}
    catalog.storage.write("aliases/docs/00000002.json", {**record, **top})
    with pytest.raises(
        IntegrityError, match="names generation 2 as an earlier one, expected less than 2"
    ):
        rollback(catalog)


def rolled_back(catalog: Catalog) -> tuple[str, str] | None:
    found = status(catalog).rolled_back
    return (found.release, found.reason) if found else None


def test_what_was_rolled_back_from_is_told_until_something_else_is_promoted(catalog):
    a, b, c = (make_release(catalog, name) for name in "abc")
    steps(catalog, a, b)
    assert rolled_back(catalog) is None
    rollback(catalog, reason="customers complain")
    assert rolled_back(catalog) == ("b", "customers complain")
    for night in (2, 3):
        newer = make_release(catalog, f"a-u{night}-{night}")
        catalog.append(catalog.live(), "catch-up", newer)
        assert rolled_back(catalog) == ("b", "customers complain")
    steps(catalog, c)
    assert rolled_back(catalog) is None
    rollback(catalog, reason="again")
    assert rolled_back(catalog) == ("c", "again")


@pytest.mark.parametrize("named", [0, 1, 3])
def test_a_record_that_names_what_cannot_be_a_rollback_is_an_error(catalog, named):
    steps(catalog, make_release(catalog, "a"), make_release(catalog, "b"))
    record = catalog.storage.read("aliases/docs/00000002.json")
    catalog.storage.write("aliases/docs/00000002.json", {**record, "rolled_back": named})
    with pytest.raises(
        IntegrityError, match=f"names generation {named} as a rollback, expected 2 to 2"
    ):
        status(catalog)


STRAYS = (
    ".DS_Store", "x.json.bak", "00000003.json.bak", "00000009.json~", "sub/00000007.json", "notes.json",
    "notes.retired", "docs-a-v1-1 (copy).json", "docs-a-v1.json", "other-a-v1-1.json",
    "docs-a-v\N{FULLWIDTH DIGIT ONE}-1.json", "0000000\N{FULLWIDTH DIGIT NINE}.json",
)  # fmt: skip


LINE = "lines/docs/settings/docs-a-v1-1/00000000-00000000000000000001"


def test_files_of_other_names_beside_the_records_break_nothing(tmp_path):
    catalog = Catalog(Storage.open(str(tmp_path)), "docs")
    a, b = make_release(catalog, "docs-a-v1-1"), make_release(catalog, "docs-b-v1-1")
    steps(catalog, a)
    for folder in (
        "aliases/docs",
        "releases/docs",
        "aliases",
        "releases",
        "results",
        "lines",
        "lines/docs",
        LINE,
    ):
        for name in STRAYS:
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("not a record")
        (tmp_path / folder / "a folder").mkdir()
    assert catalog.require_live().release == a
    assert [r.id for r in catalog.releases()] == catalog.ids() == [a.id, b.id]
    assert promote(catalog, b.id, **FORCE).generation == 2
    assert rollback(catalog).release == a
    assert [c.id for c in candidates(catalog, catalog.live())] == [b.id]
    assert catalog.retired() == []
    assert len(catalog.log()) == 3
    c = make_release(catalog, "docs-c-v1-1")
    assert catalog.releases() == [a, b, c]


# --- an alias never goes back by itself ---


def line(catalog: Catalog, *names: str) -> list[Release]:
    return [make_release(catalog, n) for n in names]


def test_a_catch_up_that_finishes_late_does_not_move_live_back(catalog):
    (a,) = line(catalog, "a")
    promote(catalog, "a", **FIRST)
    newer, late = line(catalog, "a-u3-2", "a-u2-1")
    assert follow(catalog, newer).release == newer
    for _ in range(2):
        assert follow(catalog, late).release == newer
    assert follow(catalog, a).release == newer
    assert [r.release.id for r in catalog.log()] == ["a", "a-u3-2"]


def test_who_registers_last_is_not_the_newest_of_its_line(catalog):
    a, newer, late, other = line(catalog, "a", "a-u3-2", "a-u2-1", "b")
    assert catalog.releases().index(late) > catalog.releases().index(newer)
    assert newest_of(catalog, a) == newest_of(catalog, late) == newer
    steps(catalog, a, other)
    assert rollback(catalog).release == newer


def test_of_a_source_made_again_the_later_catch_up_is_the_newer_one(catalog):
    a, of_the_old, of_the_new = line(catalog, "a", "a-u9-1", "a-u2-2")
    steps(catalog, of_the_old)
    assert newest_of(catalog, a) == of_the_new
    assert follow(catalog, of_the_new).release == of_the_new
    assert follow(catalog, of_the_old).release == of_the_new


@pytest.mark.parametrize("reason", [FORCE, {}])
def test_a_promotion_does_not_go_to_an_older_release_of_a_line(catalog, reason):
    a, middle, newest, other = line(catalog, "a", "a-u2-1", "a-u3-2", "b")
    steps(catalog, newest)
    for older in (a, middle):
        with pytest.raises(UsageError, match="is behind a-u3-2") as refused:
            promote(catalog, older.id, **reason)
        assert refused.value.fix == "reembed promote a-u3-2"
    steps(catalog, other)
    with pytest.raises(UsageError, match="is behind a-u3-2"):
        promote(catalog, middle.id, **reason)
    assert catalog.require_live().release == other


def noted(catalog: Catalog, release: Release, number: int, version: int) -> None:
    note(catalog, release, number, Source(replace(release.source, version=version), ()))


def test_a_release_known_to_equal_a_newer_source_is_not_left_for_an_older_one(catalog):
    a, late = line(catalog, "a", "a-u7-1")
    steps(catalog, a)
    noted(catalog, a, 2, 9)  # version 9 has the documents of a again
    assert follow(catalog, late).release == a
    noted(catalog, a, 2, 8)
    noted(catalog, a, 1, 3)  # late as well: it takes nothing back
    assert follow(catalog, late).release == a
    (newer,) = line(catalog, "a-u11-3")
    assert follow(catalog, newer).release == newer


def test_a_promotion_decided_on_one_release_is_not_made_over_another(catalog):
    _, caught_up, _, _ = line(catalog, "a", "a-u2-1", "b", "c")
    before = promote(catalog, "a-u2-1", **FIRST)
    promote(catalog, "c", **FORCE)
    with pytest.raises(Conflict, match="was moved from a-u2-1 to c meanwhile"):
        promote(catalog, "b", **FORCE, decided_on=before)
    assert catalog.require_live().release.id == "c"
    rollback(catalog)
    (newer,) = line(catalog, "a-u3-2")
    follow(catalog, newer)  # live moved on in its line: the decision stands
    assert promote(catalog, "b", **FORCE, decided_on=before).release.id == "b"
    assert caught_up.origin == "a"


@pytest.mark.parametrize("verb", ["rollback", "promote", "follow"])
def test_a_step_is_made_from_the_state_that_it_was_decided_on(catalog, monkeypatch, verb):
    a, b, c, newer = line(catalog, "a", "b", "c", "b-u2-1")
    steps(catalog, a, b)
    plain, moved = Catalog.append, []

    def append(self: Catalog, after: AliasRecord, *args: Any, **more: Any) -> AliasRecord:
        if not moved:  # another operator is quicker by a moment
            moved.append(plain(self, after, "promote", a))
        return plain(self, after, *args, **more)

    monkeypatch.setattr(Catalog, "append", append)
    does = {
        "rollback": lambda: rollback(catalog),
        "promote": lambda: promote(catalog, "c", **FORCE),
        "follow": lambda: follow(catalog, newer),
    }
    with pytest.raises(Conflict, match="was moved to a by"):
        does[verb]()
    assert [r.release.id for r in catalog.log()] == ["a", "b", "a"]
    assert catalog.releases().index(c) == 2


def test_what_gc_took_at_the_same_moment_leaves_the_stack_as_it_was(catalog):
    steps(catalog, *line(catalog, "a", "b", "c"))
    before = catalog.require_live()
    answers = iter([False, True])  # gc marks between our look and our write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "is_retired", lambda self, r: next(answers))
        with pytest.raises(Conflict, match="was being removed by gc"):
            rollback(catalog, "a")
    after = catalog.require_live()
    assert (after.release.id, after.standing, after.deeper) == ("c", before.standing, before.deeper)
    assert rollback(catalog).release.id == "b"


@pytest.mark.parametrize("to", [None, "b", "a"])
def test_a_rollback_to_what_gc_marked_moves_nothing(catalog, to):
    steps(catalog, *line(catalog, "a", "b", "c"))
    before = catalog.log()
    for gone in ("a", "b"):
        catalog.mark_retired(gone)
    with pytest.raises(UsageError, match="was removed by gc"):
        rollback(catalog, to)
    assert catalog.log() == before


def test_two_roots_one_after_the_other_at_one_path_have_tags_of_their_own(tmp_path):
    from reembed.catalog.runs import Run

    place = tmp_path / "root"
    tags = [Run(Storage.open(str(place)), "docs-0-v1-1").pin_tag]
    assert tags[0] == Run(Storage.open(str(place)), "docs-0-v1-1").pin_tag
    shutil.copytree(place, tmp_path / "copy")
    tags.append(Run(Storage.open(str(tmp_path / "copy")), "docs-0-v1-1").pin_tag)
    place.rename(tmp_path / "away")  # as in a second container, which has its own /root
    tags.append(Run(Storage.open(str(place)), "docs-0-v1-1").pin_tag)
    assert len(set(tags)) == 3
    assert json.loads(Path(place, "root.json").read_text())["root_id"]


def test_what_is_live_is_found_without_listing_the_whole_log(catalog, monkeypatch):
    a, b = make_release(catalog, "a"), make_release(catalog, "b")
    last: AliasRecord | None = None
    for n in range(300):
        last = catalog.append(last, "promote", (a, b)[n % 2])
    listed: list[str] = []
    plain = Storage.names

    def names(self: Storage, folder: str, after: str = "") -> list[str]:
        found = plain(self, folder, after)
        listed.extend(found)
        return found

    monkeypatch.setattr(Storage, "names", names)
    assert catalog.live() == last
    assert len(listed) <= 128


@pytest.mark.parametrize("moved", ["promote", "rollback"])
def test_a_catch_up_does_not_follow_an_alias_that_another_line_took_meanwhile(catalog, moved):
    a, b = make_release(catalog, "a"), make_release(catalog, "b")
    newer = make_release(catalog, "b-u2-1", source=replace(b.source, version=2))
    steps(catalog, a, b)
    if moved == "promote":
        steps(catalog, make_release(catalog, "c"))
    else:
        rollback(catalog)
    live = catalog.live()
    with pytest.raises(Conflict, match=f"was moved to {live.release.id} meanwhile"):
        follow(catalog, newer)
    assert catalog.live() == live


def test_what_is_live_already_is_not_a_candidate_whatever_else_waits(catalog):
    a, b = make_release(catalog, "a"), make_release(catalog, "b")
    make_release(catalog, "c")
    steps(catalog, a, b)
    with pytest.raises(UsageError, match="release b is already live") as refused:
        candidate(catalog, None, "b")
    assert refused.value.why == "candidates: c; name one"
    assert candidate(catalog, None, "c").id == "c"


def test_a_config_that_pins_a_source_version_means_the_release_of_that_version(catalog, tmp_path):
    settings = {
        "alias": "docs",
        "encoder": {"model": "hashing:8"},
        "storage": {"root": str(tmp_path)},
    }
    uri = str(tmp_path / "source.lance")
    open_config = Config(**settings, source={"uri": uri})
    mine = open_config.line_settings(uri)
    make_release(catalog, "first", place=Place(mine, "first", 0, 1))
    make_release(catalog, "second", place=Place(mine, "second", 0, 2))
    make_release(catalog, "third", place=Place(mine, "third", 0, 11))
    make_release(catalog, "caught-up", place=Place(mine, "second", 1, 3))
    make_release(catalog, "other", place=Place("other", "other", 0, 1))
    assert release_of(catalog, open_config).id == "third"
    for version, name in ((1, "first"), (2, "caught-up"), (11, "third"), (3, None)):
        found = release_of(catalog, Config(**settings, source={"uri": uri, "version": version}))
        assert (found and found.id) == name


def test_releases_are_in_the_order_in_which_their_runs_were_begun_whatever_their_names(catalog):
    names = ["z", "m", "z-u7-1", "z-u5-2", "a", "docs-10", "docs-9"]
    for name in names:
        make_release(catalog, name)
    assert catalog.ids() == [r.id for r in catalog.releases()] == names
    lines.begin(catalog.storage, "docs", "b", Place("settings", "b", 0, 1))
    assert [e.id for e in catalog.entries()] == [*names, "b"]
    assert catalog.ids() == names


def test_of_two_processes_that_began_a_run_at_once_neither_adds_a_second_run(catalog):
    make_release(catalog, "a")
    place = Place("settings", "b", 0, 1)
    for number in (2, 3):
        catalog.storage.write_bytes(place.mark("docs", "b", f"started-{number:08d}"), b"")
    make_release(catalog, "c")
    assert [(e.id, e.number) for e in catalog.entries()] == [("a", 1), ("b", 2), ("c", 3)]
    lines.begin(catalog.storage, "docs", "b", place)
    assert len(catalog.entries()) == 3


@pytest.mark.parametrize("field", ["settings", "origin"])
@pytest.mark.parametrize("named", ["../../aliases/docs", "a/b", "", "."])
def test_a_release_whose_place_would_lead_elsewhere_is_refused(catalog, field, named):
    record = encode(make_release(catalog, "a"))
    record["place"] |= {field: named}
    catalog.storage.write("releases/docs/a.json", record)
    for reader in (catalog.mark_retired, catalog.release):
        with pytest.raises(IntegrityError, match=f"place.{field}"):
            reader("a")


def test_the_same_id_in_another_alias_is_another_run(catalog):
    other = Catalog(catalog.storage, "other")
    other.register(replace(make_release(catalog, "a"), alias="other"))
    other.mark_retired("a")
    assert (catalog.ids(), catalog.retired()) == (["a"], [])
    assert (other.ids(), other.retired()) == ([], ["a"])
    other.unmark_retired("a")
    assert other.ids() == ["a"]
