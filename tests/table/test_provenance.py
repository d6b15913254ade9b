"""Whether an index and a table are those of a release: each check with the others out of the way."""

from __future__ import annotations

import dataclasses

import lance
import pytest
from inline import Inline, Silent

from reembed.catalog.plan import Donor
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.engine import reuse
from reembed.errors import IntegrityError
from reembed.lifecycle import complete, promote
from reembed.lifecycle.scratch import Scratch
from reembed.source.dataset import Source
from reembed.store.records import encode
from reembed.store.storage import Storage
from reembed.strategies import catch_up_plan
from reembed.strategies.changes import Changes
from reembed.strategies.differing import Comparing
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import provenance


@pytest.fixture
def built(corpus, make_config):
    """(catalog, release): its table has several files."""
    config = make_config(corpus(300))
    release = full_rebuild(config, Silent(), executor=Inline())
    return Catalog(Storage.open(config.storage.root), config.alias), release


def tags(catalog, release):
    return lance.dataset(catalog.storage.uri(release.table)).tags


def test_a_version_that_was_not_sealed_is_refused(built):
    catalog, release = built
    provenance.require_table(catalog.storage, release)
    tags(catalog, release).create("another", release.table_version)
    tags(catalog, release).delete(release.table_tag)
    with pytest.raises(IntegrityError, match="was not sealed") as refused:
        provenance.require_table(catalog.storage, release)
    assert refused.value.why == f"it has no tag {release.table_tag}"
    assert refused.value.fix.startswith("reembed status")


def test_a_tag_on_another_version_is_refused(built):
    catalog, release = built
    dataset = lance.dataset(catalog.storage.uri(release.table))
    dataset.delete("doc_id = 'd00001'")
    tags(catalog, release).update(release.table_tag, dataset.version)
    with pytest.raises(IntegrityError, match="was not sealed") as refused:
        provenance.require_table(catalog.storage, release)
    assert refused.value.why == f"its tag {release.table_tag} names version {dataset.version}"


def test_a_release_whose_table_version_is_not_the_sealed_one_is_not_promoted(built):
    catalog, release = built
    dataset = lance.dataset(catalog.storage.uri(release.table))
    dataset.delete("doc_id = 'd00001'")
    tags(catalog, release).update(release.table_tag, dataset.version)
    with pytest.raises(IntegrityError, match="was not sealed"):
        promote.promote(catalog, release.id, initial_reason="a test")
    assert catalog.live() is None


@pytest.mark.parametrize("field", ["name", "size_bytes", "sha256"])
def test_a_table_whose_manifest_is_another_is_refused_before_lance_opens_it(
    built, field, monkeypatch
):
    catalog, release = built

    def opened(*arguments):
        raise AssertionError("it was opened")

    monkeypatch.setattr(provenance, "open_table", opened)
    other = dataclasses.replace(
        release, table_manifest=dataclasses.replace(release.table_manifest, **{field: 0})
    )
    with pytest.raises(IntegrityError, match="is not what release") as refused:
        provenance.require_table(catalog.storage, other)
    assert refused.value.why == "its manifest is different"
    with pytest.raises(AssertionError, match="it was opened"):
        provenance.require_table(catalog.storage, release)


def donor(release):
    fields = ("id", "alias", "origin", "table", "table_version", "rows")
    return Donor(*(getattr(release, f) for f in fields))


def test_a_release_of_other_files_gives_no_vector_and_is_not_caught_up(built, monkeypatch):
    """The record of its files is the one that the table names, and not the one of the release."""
    catalog, release = built
    source = Source(release.source, ())
    assert len(reuse.proofs(catalog.storage, donor(release))) == 5
    comparing = Comparing(Scratch.of(Run(catalog.storage, release.id)))
    changes = catch_up_plan.changes_of(catalog, release, (source, source), comparing, retry=False)
    assert isinstance(changes, Changes)
    other = dataclasses.replace(release, sealed_sha256="0" * 64)
    catalog.storage.write(f"releases/{other.alias}/{other.id}.json", encode(other))
    with pytest.raises(IntegrityError, match="another record of its table's files"):
        reuse.proofs(catalog.storage, donor(other))
    with pytest.raises(IntegrityError, match="another record of its table's files"):
        catch_up_plan.changes_of(catalog, other, (source, source), comparing, retry=False)


@pytest.mark.parametrize("file", range(5))
def test_a_release_that_lacks_one_of_its_files_is_not_promoted(built, file):
    catalog, release = built
    # A newer version lies above it, all of whose files are there.
    uri = catalog.storage.uri(release.table)
    dataset = lance.dataset(uri, release.table_version)
    names = [f.path for m in dataset.get_fragments() for f in m.data_files()]
    lance.write_dataset(dataset.to_table(), uri, mode="overwrite")
    complete.require_complete(catalog, release)
    catalog.storage.remove(f"{release.table}/data/{names[file]}")
    with pytest.raises(IntegrityError, match="1 files of the table") as refused:
        complete.require_complete(catalog, release)
    assert refused.value.why == names[file]


def test_a_table_of_another_manifest_gives_no_vector(built):
    catalog, release = built
    manifest = dataclasses.replace(release.table_manifest, sha256="0" * 64)
    other = dataclasses.replace(release, table_manifest=manifest)
    catalog.storage.write(f"releases/{other.alias}/{other.id}.json", encode(other))
    with pytest.raises(IntegrityError, match="is not what release"):
        reuse.proofs(catalog.storage, donor(other))


@pytest.mark.parametrize(("admitted", "since"), [(True, False), (False, True), (True, True)])
def test_a_release_is_verified_where_it_was_when_registered_and_at_the_last_look(
    built, admitted, since
):
    catalog, release = built
    failed = dataclasses.replace(release.verify, why="a test")
    reports = {True: release.verify, False: failed}
    admitted_as = dataclasses.replace(release, verify=reports[admitted])
    newest = encode(reports[since])
    catalog.storage.write(provenance.verification_path(release.id), newest)
    assert provenance.is_verified(catalog.storage, admitted_as) == (admitted and since)
