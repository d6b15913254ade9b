"""What is said of a source that does not fit can be pasted into a shell, whatever its names hold."""

from __future__ import annotations

import shlex
import subprocess

import lance
import pyarrow as pa
import pytest

from reembed.errors import SourceError
from reembed.source.dataset import Source

HOSTILE = ["$(touch PWNED)", "`touch PWNED`", "a b", "a'b\"c", "; touch PWNED", "007", "a: b"]


def refused(make_config, uri, **source) -> SourceError:
    with pytest.raises(SourceError) as error:
        Source.open(make_config(uri, source={"uri": uri, **source})).check_documents()
    return error.value


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("setting", ["source.text", "source.id_column"])
def test_a_column_that_is_missing_is_answered_with_one_that_is_there(
    make_config, tmp_path, name, setting
):
    uri = str(tmp_path / "s.lance")
    lance.write_dataset(pa.table({name: ["a", "b"]}), uri)
    given = {"text": name, "id_column": name} | {setting.removeprefix("source."): name + "x"}
    fix = refused(make_config, uri, **given).fix
    command = shlex.split(fix)
    assert command[:3] == ["reembed", "run", "--set"]
    said = subprocess.run(
        ["sh", "-c", f"printf %s {fix.partition('--set ')[2]}"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert said == command[3]
    assert not (tmp_path / "PWNED").exists()
    from reembed.config.settings import load

    file = tmp_path / "reembed.yaml"
    config, _ = load([str(file)], [command[3]])
    found = {"source.text": config.source.text, "source.id_column": config.source.id_column}
    assert found[setting] == name


@pytest.mark.parametrize("name", HOSTILE[:5])
def test_ids_that_are_null_are_answered_with_a_filter_that_can_be_pasted(
    make_config, tmp_path, name
):
    uri = str(tmp_path / "s.lance")
    lance.write_dataset(pa.table({name: ["a", None], "text": ["t", "u"]}), uri)
    if "`" in name:
        pytest.skip("Lance takes no backtick within backticks")
    fix = refused(make_config, uri, id_column=name).fix
    condition = shlex.split(fix)[3].partition("=")[2]
    source = Source.open(
        make_config(uri, source={"uri": uri, "id_column": name, "filter": condition})
    )
    assert source.check_documents() == 1


def test_a_folder_of_lancedb_tables_is_answered_with_its_tables(make_config, tmp_path):
    for table in ("one", "two"):
        lance.write_dataset(
            pa.table({"doc_id": ["a"], "text": ["t"]}), f"{tmp_path}/db/{table}.lance"
        )
    error = refused(make_config, str(tmp_path / "db"))
    assert "2 tables" in error.what
    assert f"{tmp_path}/db/two.lance" in error.why
    assert shlex.split(error.fix)[-1] == f"source.uri={tmp_path}/db/one.lance"


@pytest.mark.parametrize("below", ["", "/db", "/a/db/"])
def test_a_prefix_of_lancedb_tables_in_an_object_store_is_answered_with_its_tables(
    make_config, bucket, below
):
    place = f"{bucket.uri}{below}"
    for table in ("two", "one"):
        lance.write_dataset(
            pa.table({"doc_id": ["a"], "text": ["t"]}),
            f"{place.rstrip('/')}/{table}.lance",
            storage_options=bucket.options,
        )
    config = make_config(place, storage={"options": bucket.options})
    with pytest.raises(SourceError) as error:
        Source.open(config)
    assert "2 tables" in error.value.what
    assert f"{place.rstrip('/')}/two.lance" in error.value.why
    named = shlex.split(error.value.fix)[-1].removeprefix("source.uri=")
    assert named == f"{place.rstrip('/')}/one.lance"
    opened = Source.open(make_config(named, storage={"options": bucket.options}))
    assert opened.check_documents() == 1


def test_a_prefix_without_tables_or_that_cannot_be_listed_is_answered_with_an_import_or_the_keys(
    make_config, bucket
):
    for uri in (f"{bucket.uri}/none", "s3://no-such-bucket/db"):
        with pytest.raises(SourceError) as error:
            Source.open(make_config(uri, storage={"options": bucket.options}))
        assert f"cannot open the dataset {uri}" in error.value.what
        assert error.value.fix.startswith(("reembed import", "reembed config"))


def test_ids_that_are_not_utf8_are_refused_in_words(make_config, tmp_path):
    uri = str(tmp_path / "s.lance")
    bad = pa.array([b"ok", b"\xff\xfe"], pa.binary()).view(pa.string())
    lance.write_dataset(pa.table({"doc_id": bad, "text": ["t", "u"]}), uri)
    error = refused(make_config, uri)
    assert "doc_id of" in error.what
    assert "invalid utf-8" in error.why
