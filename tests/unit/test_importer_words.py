"""What import prints can be pasted, and says what is wrong with the file at hand."""

from __future__ import annotations

import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reembed import report
from reembed.config import SourceConfig, load
from reembed.errors import SourceError
from reembed.importer import import_documents


@pytest.mark.parametrize("name", ["007", "no", "true", "1e3", "a: b", "plain"])
def test_the_run_after_an_import_is_taken_whatever_the_columns_are_called(name):
    line = report._after_import({"columns": [name], "uri": "s.lance"})
    given = shlex.split(line)[3::2]
    rest = ["alias=a", "encoder.model=hashing:16", "storage.root=r"]
    source: SourceConfig = load([], [*given, *rest])[0].source
    assert (source.id_column, source.text) == (name, name)


def test_half_a_surrogate_pair_is_named_and_no_encoding_is_blamed(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "a"}\n{"id": "\\ud83d"}\n')
    with pytest.raises(SourceError, match="half a surrogate pair") as said:
        import_documents([str(file)], str(tmp_path / "a.lance"))
    assert "line 2" in said.value.what
    assert "iconv" not in said.value.fix


def test_a_clash_in_the_only_column_is_not_answered_with_no_columns(tmp_path):
    files = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    pq.write_table(pa.table({"v": [[1]]}), files[0])
    pq.write_table(pa.table({"v": ["x"]}), files[1])
    with pytest.raises(SourceError) as said:
        import_documents(files, str(tmp_path / "a.lance"))
    assert said.value.fix is None
