"""A carried column may have any name that Lance can read; what cannot be carried is refused at once."""

from __future__ import annotations

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed.errors import SourceError
from reembed.source.dataset import Source
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

NAMES = ["__text", "__tokens", "__error", "text", "body", "_score", "a b", 'x"y', "$(touch PWNED)"]


def write(tmp_path, first: int, rows: int) -> str:
    uri = str(tmp_path / "source.lance")
    ids = [f"d{n}" for n in range(first, first + rows)]
    columns = {n: [f"{n} of {d}" for d in ids] for n in NAMES}
    lance.write_dataset(
        pa.table({"doc_id": ids, **columns}), uri, mode="append" if first else "create"
    )
    return uri


def test_names_that_a_pipeline_might_use_itself_are_carried(tmp_path, make_config):
    uri = write(tmp_path, 0, 30)
    config = make_config(uri, table={"carry": NAMES})
    release = full_rebuild(config, Silent(), executor=Inline())
    write(tmp_path, 30, 5)
    release = catch_up(config, release, Silent(), executor=Inline())
    path = f"{config.storage.root}/{release.table}"
    table = lance.dataset(path, version=release.table_version).to_table().sort_by("doc_id")
    expected = lance.dataset(uri).to_table().sort_by("doc_id")
    assert (
        table.select(["doc_id", *NAMES]).to_pylist()
        == expected.select(["doc_id", *NAMES]).to_pylist()
    )


def blob_of_format_2_0(uri):
    blob = pa.field("pages", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    columns = pa.schema([("doc_id", pa.string()), ("text", pa.string()), blob])
    lance.write_dataset(pa.table([["a"], ["t"], [b"x"]], columns), uri, data_storage_version="2.0")


def blob_of_format_2_2(uri):
    columns = pa.schema([("doc_id", pa.string()), ("text", pa.string()), lance.blob_field("pages")])
    data = [pa.array(["a"]), pa.array(["t"]), lance.blob_array([b"x"])]
    lance.write_dataset(pa.table(data, columns), uri, data_storage_version="2.2")


def a_name_that_lance_cannot_read(uri):
    lance.write_dataset(pa.table({"doc_id": ["a"], "text": ["t"], "pages`": ["x"]}), uri)


@pytest.mark.parametrize(
    "make", [blob_of_format_2_0, blob_of_format_2_2, a_name_that_lance_cannot_read]
)
def test_a_column_that_a_scan_does_not_return_is_refused_before_work_starts(
    tmp_path, make_config, make
):
    uri = str(tmp_path / "source.lance")
    make(uri)
    name = lance.dataset(uri).schema.names[-1]
    config = make_config(uri, table={"carry": ["text", name]})
    with pytest.raises(SourceError, match=f"column '{name}' cannot be carried") as found:
        Source.open(config)
    assert found.value.fix == "reembed run --set table.carry='[\"text\"]'"
