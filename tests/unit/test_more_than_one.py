"""What is promised of one release, chunk, range or column holds for the second too; each check alone."""

from __future__ import annotations

import hashlib
from collections import Counter

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed import attempts, gc
from reembed import storage as storage_module
from reembed.catalog import Catalog
from reembed.errors import UsageError
from reembed.lag import caught_up, note
from reembed.runs import Run
from reembed.source import Source
from reembed.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


def test_size_and_digest_are_of_all_chunks_of_an_object(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_module, "_CHUNK_BYTES", 1_000)
    content = bytes(range(256)) * 65_536  # 16 MiB
    storage = Storage.open(str(tmp_path))
    storage.write_bytes("large", content)
    assert storage.digest("large") == (len(content), hashlib.sha256(content).hexdigest())


def test_only_a_document_that_kills_alone_is_poison_not_a_range(tmp_path, monkeypatch):
    run = Run(Storage.open(str(tmp_path)), "docs-0-v1-1")
    for _ in range(4):
        attempts.begin(run, "u", 40)
    deaths = Counter({(0, 3): 2, (6, 9): 5, (12, 15): 2, (12, 13): 2, (20, 21): 1})
    monkeypatch.setattr(attempts, "_died_alone", lambda *a: [1, 2])
    monkeypatch.setattr(attempts, "_deaths", lambda *a: deaths)
    attempt = attempts.begin(run, "u", 40)
    assert attempt.poison == {12}
    tried = [row for start, stop in attempt.ranges() for row in range(start, stop)]
    assert tried == [row for row in range(40) if row != 12]


def test_a_text_of_several_columns_has_each_of_them_and_a_null_is_empty(tmp_path, make_config):
    uri = str(tmp_path / "s.lance")
    rows = {"doc_id": ["a", "b"], "title": ["one", None], "body": [None, "two"]}
    lance.write_dataset(pa.table(rows), uri)
    config = make_config(uri, source={"text": "T: {title} / {body}."})
    (part,) = Source.open(config).scan()
    texts = [c for c in part.column_names if c != "doc_id"]
    assert part[texts[0]].to_pylist() == [b"T: one / .", b"T:  / two."]


def test_a_record_of_a_source_holds_no_store_setting(corpus, make_config):
    source = Source.open(make_config(corpus(120)))
    record = Source.from_json(source.to_json(), {"aws_secret_access_key": "s"}).to_json()
    assert "options" not in record
    assert Source.from_json(record, {}).to_json() == source.to_json()


@pytest.fixture
def two(corpus, make_config, tmp_path):
    """(config, catalog, releases): two releases of one alias, of two sources, several files each."""
    sources = corpus(300), corpus(180, 1)
    made = []
    for number, uri in enumerate(sources):
        config = make_config(uri, name=f"{number}.yaml")
        made.append((config, full_rebuild(config, Silent(), executor=Inline())))
    catalog = Catalog(Storage.open(made[0][0].storage.root), "passages")
    return [c for c, _ in made], catalog, [r for _, r in made]


def test_files_that_the_records_of_any_kept_release_name_are_proven(two):
    _, catalog, releases = two
    proven = gc._proven_files(catalog, releases)
    for release in releases:
        dataset = lance.dataset(catalog.storage.uri(release.table), release.table_version)
        files = {
            f"{release.table}/data/{f.path}"
            for m in dataset.get_fragments()
            for f in m.data_files()
        }
        assert len(files) > 1
        assert files <= proven


def test_only_an_unfinished_run_can_be_dropped(two):
    _, catalog, releases = two
    for name in ("none-0-v1-1", releases[0].run_id, releases[1].run_id):
        with pytest.raises(UsageError, match=f"has no unfinished run {name}"):
            gc.droppable(catalog, name)


def test_the_version_that_a_release_was_found_to_equal_is_kept_for_each_release(two):
    configs, catalog, releases = two
    sources = [Source.from_json(r.source, {}) for r in releases]
    assert [caught_up(catalog, r).version for r in releases] == [s.version for s in sources]
    uri = configs[0].source.uri
    dataset = lance.dataset(uri)
    dataset.update({"title": "'other'"}, where="doc_id = 'd00001'")
    newer = sources[0].newest()
    note(catalog, releases[0], 7, newer)
    assert caught_up(catalog, releases[0]).version == newer.version > sources[0].version
    assert caught_up(catalog, releases[1]).version == sources[1].version


def test_a_catch_up_holds_the_source_version_it_reads_until_it_is_registered(two, monkeypatch):
    """The writer may clean old versions away between the plan and the last unit."""
    configs, _, releases = two
    uri = configs[0].source.uri
    late = pa.table({"doc_id": ["x"], "title": ["x"], "text": ["x"]})
    lance.write_dataset(late, uri, mode="append")
    version, held = lance.dataset(uri).version, []
    honest = Inline.embed

    def embed(self, job, units, on_receipt, stop):
        held.extend(t["version"] for t in lance.dataset(uri).tags.list().values())
        honest(self, job, units, on_receipt, stop)

    monkeypatch.setattr(Inline, "embed", embed)
    catch_up(configs[0], releases[0], Silent(), executor=Inline())
    assert version in held
