"""Which releases give their vectors, each rule with the later checks out of the way."""

from __future__ import annotations

import pytest
from inline import Silent
from unit.test_catalog import SPACE, make_release

from reembed.catalog import Catalog
from reembed.errors import IntegrityError
from reembed.reuse import find_donors
from reembed.storage import Storage


@pytest.fixture
def catalog(tmp_path, short_ids):
    return Catalog(Storage.open(str(tmp_path / "root")), "docs")


def test_a_damaged_record_of_the_own_alias_ends_the_search_for_vectors(catalog):
    release = make_release(catalog, "a")
    assert [d.release for d in find_donors(catalog, SPACE.id, Silent())] == ["a"]
    catalog.storage.write(f"releases/docs/{release.id}.json", {})
    with pytest.raises(IntegrityError, match=release.id):
        find_donors(catalog, SPACE.id, Silent())


def test_the_newest_release_of_each_table_gives_its_vectors(catalog):
    for number in (2, 9, 10):  # by name the tenth comes first
        make_release(catalog, f"a-u{number}", table="tables/a.lance", number=number)
    make_release(catalog, "b")
    assert [d.release for d in find_donors(catalog, SPACE.id, Silent())] == ["a-u10", "b"]
