"""What stops a run is found before Ray starts, or is said with its place and its cause."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lance
import pyarrow as pa
import pytest
from conftest import Quiet
from inline import Inline

from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import find_runs, open_runs
from reembed.config.settings import Config
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import ReembedError, RunFailed, TooManyDeadLetters, UsageError
from reembed.events import Connected, Event
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


class NoRay(Inline):
    """An executor that must not be reached."""

    def connected(self, config: Config) -> Any:
        raise AssertionError("Ray was started")


def said(quiet: Quiet) -> str:
    return "\n".join(quiet.said())


@pytest.fixture
def nulls(tmp_path: Path) -> str:
    """Forty documents in four files; five have no text, one of them in the last file."""
    uri = str(tmp_path / "nulls.lance")
    texts = [None if i in (0, 4, 9, 20, 39) else f"text {i}" for i in range(40)]
    rows = pa.table({"doc_id": [f"d{i}" for i in range(40)], "text": texts, "n": range(40)})
    lance.write_dataset(rows, uri, max_rows_per_file=10)
    return uri


def test_missing_texts_are_counted_before_anything_is_planned(
    nulls: str, make_config: Callable[..., Config], quiet: Quiet
):
    config = make_config(nulls, embed={"max_dead_letters": 4})
    with pytest.raises(TooManyDeadLetters) as refused:
        full_rebuild(config, quiet, executor=NoRay())
    assert "5 of 40 documents have no text" in refused.value.what
    assert "max_dead_letters allows 4" in refused.value.what
    assert refused.value.fix == "reembed run --set embed.max_dead_letters=5"
    assert all(r.plan() is None for r in find_runs(Storage.open(config.storage.root)))


def test_missing_texts_that_are_allowed_are_said_and_become_dead_letters(
    nulls: str, make_config: Callable[..., Config], quiet: Quiet
):
    config = make_config(nulls, embed={"max_dead_letters": 5})
    release = full_rebuild(config, quiet, executor=Inline())
    assert (release.rows, release.dead_letters) == (35, 5)
    assert "5 of 40 documents have no text: text is null; each is a dead letter" in said(quiet)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({}, 5),
        ({"filter": "n > 4"}, 3),
        ({"filter": "text IS NOT NULL"}, 0),
        ({"text": "{text} {doc_id}"}, 0),
    ],
)
def test_those_texts_are_counted_that_would_be_embedded(
    nulls: str, make_config: Callable[..., Config], source: dict[str, str], expected: int
):
    config = make_config(nulls, source={"uri": nulls, **source})
    assert Source.open(config).null_texts() == expected


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """free(bytes) on every disk from now on."""

    def make(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))

    return make


def test_a_disk_too_small_for_the_vectors_is_said_in_numbers_before_ray_starts(
    corpus: Callable[..., str],
    make_config: Callable[..., Config],
    quiet: Quiet,
    free: Callable[[int], None],
):
    config = make_config(corpus(300), encoder={"model": "hashing:512"}, table={"carry": ["title"]})
    free(500_000)  # 300 x 512 x 4 are 614,400
    with pytest.raises(RunFailed) as refused:
        full_rebuild(config, quiet, executor=NoRay())
    assert refused.value.what == f"{config.storage.root} has 488.3 KiB free"
    assert "300 rows of 512 x float32" in str(refused.value.why)
    free(800_000)  # the vectors fit, the index as well perhaps not
    full_rebuild(config, quiet, executor=Inline())
    assert "little room" in said(quiet)
    quiet.events.clear()
    free(50_000_000)
    full_rebuild(config, quiet, fresh=True, executor=Inline())
    assert "little room" not in said(quiet)


def test_only_what_is_left_to_embed_needs_room(
    corpus: Callable[..., str],
    make_config: Callable[..., Config],
    quiet: Quiet,
    free: Callable[[int], None],
):
    class Dies(Inline):
        def order(self, units: list[Any]) -> list[Any]:
            return units[:-1]

    config = make_config(corpus(300), encoder={"model": "hashing:512"})
    with pytest.raises(RunFailed, match="1 of 5 units are not staged"):
        full_rebuild(config, quiet, executor=Dies())
    free(500_000)
    assert full_rebuild(config, quiet, executor=Inline()).rows == 300


# The same before a catch-up


@pytest.fixture
def grown(
    tmp_path: Path, make_config: Callable[..., Config]
) -> Callable[..., tuple[Config, Release]]:
    """grown(nulls, allowed) -> the config and a release with 1 dead letter; 20 documents came since."""

    def grow(nulls: int, allowed: int = 9) -> tuple[Config, Release]:
        uri = str(tmp_path / "grown.lance")

        def rows(first: int, count: int, missing: int) -> pa.Table:
            numbers = range(first, first + count)
            texts = [None if n < first + missing else f"text {n}" for n in numbers]
            ids = [f"d{n:02}" for n in numbers]
            return pa.table({"doc_id": ids, "text": pa.array(texts, pa.string()), "title": ids})

        lance.write_dataset(rows(0, 40, 1), uri, max_rows_per_file=10, enable_stable_row_ids=True)
        sections: dict[str, Any] = {
            "encoder": {"model": "hashing:512"},
            "table": {"carry": ["title"]},
        }
        built = make_config(uri, embed={"max_dead_letters": 1, "unit_documents": 10}, **sections)
        release = full_rebuild(built, Quiet(), executor=Inline())
        lance.write_dataset(rows(40, 10, nulls), uri, mode="append")
        lance.write_dataset(rows(50, 10, 0), uri, mode="append")
        lance.dataset(uri).update({"title": "'other'"}, where="doc_id = 'd11'")
        lance.dataset(uri).delete("doc_id = 'd21'")
        return make_config(uri, embed={"max_dead_letters": allowed}, **sections), release

    return grow


def test_missing_texts_are_counted_before_a_catch_up_with_the_dead_letters_that_stay(
    grown: Callable[..., tuple[Config, Release]], quiet: Quiet
):
    config, release = grown(nulls=3, allowed=3)
    with pytest.raises(TooManyDeadLetters) as refused:
        catch_up(config, release, quiet, executor=NoRay())
    assert refused.value.what.startswith("3 of 20 documents to embed have no text: text is null")
    assert f"dead letters of {release.id} that stay: 1" in refused.value.what
    assert refused.value.fix == f"reembed catch-up {release.id} --set embed.max_dead_letters=4"
    assert not open_runs(Storage.open(config.storage.root), config.alias)


def test_dead_letters_that_stay_are_held_against_the_limit_before_a_catch_up(
    grown: Callable[..., tuple[Config, Release]], quiet: Quiet
):
    config, release = grown(nulls=0, allowed=0)
    with pytest.raises(TooManyDeadLetters, match=f"dead letters of {release.id} that stay: 1"):
        catch_up(config, release, quiet, executor=NoRay())


def test_missing_texts_that_a_catch_up_may_leave_out_are_said(
    grown: Callable[..., tuple[Config, Release]], quiet: Quiet
):
    newer = catch_up(*grown(nulls=3, allowed=4), quiet, executor=Inline())
    assert (newer.rows, newer.dead_letters) == (55, 4)
    assert "3 of 20 documents to embed have no text: text is null; each is a dead" in said(quiet)


def test_a_disk_too_small_for_a_catch_up_is_said_before_ray_starts(
    grown: Callable[..., tuple[Config, Release]], quiet: Quiet, free: Callable[[int], None]
):
    """21 rows are written: 20 embedded and 1 refreshed; the two files that lost a row get deletion files."""
    config, release = grown(nulls=0)
    free(20 * 512 * 4)
    with pytest.raises(RunFailed) as refused:
        catch_up(config, release, quiet, executor=NoRay())
    assert refused.value.what == f"{config.storage.root} has 40.0 KiB free"
    assert "21 rows of 512 x float32" in str(refused.value.why)
    free(21 * 512 * 4 + 59 * 512 * 4)
    newer = catch_up(config, release, quiet, executor=Inline())
    assert (newer.rows, newer.verify.passed) == (58, True)
    assert "little room" in said(quiet)


@pytest.mark.parametrize("factory", ["Foo", "IVF64,PQ7x4fs"])
def test_an_index_that_faiss_cannot_make_is_refused_before_anything_is_embedded(
    corpus: Callable[..., str], make_config: Callable[..., Config], quiet: Quiet, factory: str
):
    config = make_config(corpus(20), encoder={"model": "hashing:64"}, index={"factory": factory})
    with pytest.raises(UsageError, match="does not fit 64 dimensions"):
        full_rebuild(config, quiet, executor=NoRay())
    assert not Catalog(Storage.open(config.storage.root), config.alias).entries()


_AS_NOBODY = """
import os, sys
from types import SimpleNamespace
from reembed.strategies import preflight
from reembed.errors import UsageError
from reembed.store.storage import Storage
os.setgid(65534); os.setuid(65534)
plan = SimpleNamespace(table="tables/t.lance", alias="a")
for root in sys.argv[1:]:
    try:
        preflight.require_rights(Storage(root), plan)
        print("all can be written to")
    except UsageError as error:
        print(error.what)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")
def test_a_folder_that_may_not_be_written_to_is_found_before_it_is_needed():
    closed = ("indexes", "releases/a", "tables/t.lance/data", "")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        roots = [Path(folder) / str(number) for number, _ in enumerate(closed)]
        for root, name in zip(roots, closed, strict=True):
            for other in filter(None, closed):
                (root / other).mkdir(parents=True)
            for place in (root, *root.rglob("*")):
                place.chmod(0o777)
            (root / name).chmod(0o755 if name else 0o777)
        Path(folder).chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, *map(str, roots)],
            capture_output=True,
            text=True,
            check=True,
        )
    found = [
        f"{root / name} cannot be written to" for root, name in zip(roots, closed, strict=True)
    ]
    assert done.stdout.splitlines() == [*found[:-1], "all can be written to"]


# With Ray: the cause is made in another process


class FillsTheDisk(Quiet):
    """Once Ray runs, the disk of the root has 4 KiB left."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Connected):
            with open(f"{self.root}/ballast", "wb") as file:
                file.write(b"0" * (shutil.disk_usage(self.root).free - 4_096))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield str(disk)
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.ray
def test_a_full_disk_is_said_with_its_place_and_not_as_a_function_that_failed(
    corpus: Callable[..., str], make_config: Callable[..., Config], small_disk: str, ray_local: None
):
    config = make_config(corpus(300), storage={"root": small_disk})
    with pytest.raises(ReembedError) as failed:
        full_rebuild(config, FillsTheDisk(small_disk), executor=RayExecutor())
    text = str(failed.value)
    assert small_disk in text
    assert "No space left on device" in text
    assert "UDF" not in text


@pytest.mark.ray
def test_a_source_file_that_is_gone_is_said_with_its_path(
    corpus: Callable[..., str], make_config: Callable[..., Config], ray_local: None
):
    source = corpus(300)

    class Removes(Quiet):
        def __call__(self, event: Event) -> None:
            if isinstance(event, Connected):
                for file in sorted(Path(source).glob("data/*"))[1:]:
                    file.unlink()

    with pytest.raises(ReembedError) as failed:
        full_rebuild(make_config(source), Removes(), executor=RayExecutor())
    text = str(failed.value)
    assert f"could not be read from {source} version 1" in text
    assert "data/" in text
    assert "ot found" in text


@pytest.mark.ray
def test_an_error_of_no_known_kind_is_named_as_it_was_raised(
    corpus: Callable[..., str], make_config: Callable[..., Config], ray_local: None
):
    class Breaks(Quiet):
        def __call__(self, event: Event) -> None:
            if isinstance(event, Connected):  # a receipt's place is taken by a folder
                (run,) = find_runs(Storage.open(config.storage.root))
                for unit in run.plan().units:  # type: ignore[union-attr]
                    Path(config.storage.root, run.path(f"units/{unit.id}.json")).mkdir(parents=True)

    config = make_config(corpus(130))
    with pytest.raises(ReembedError) as failed:
        full_rebuild(config, Breaks(), executor=RayExecutor())
    assert "UDF" not in str(failed.value)
    assert "units/" in str(failed.value)
