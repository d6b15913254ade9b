"""What import prints can be pasted, and says what is wrong with the file at hand."""

from __future__ import annotations

import shlex
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from reembed.cli import paste as following
from reembed.cli.verbs import cli
from reembed.config.settings import SourceConfig, load
from reembed.errors import SourceError, UsageError
from reembed.source.dataset import Source
from reembed.source.importer import Imported, import_documents


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A folder whose config names another dataset."""
    monkeypatch.chdir(tmp_path)
    Path("reembed.yaml").write_text("source: {uri: another.lance}\n")


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("name", ["007", "no", "true", "1e3", "a: b", "plain"])
def test_the_run_after_an_import_is_taken_whatever_the_columns_are_called(name):
    line = following.after_import(Imported("s.lance", 1, {name: "string"}, {}, (), 1))
    given = shlex.split(line)[3::2]
    rest = ["alias=a", "encoder.model=hashing:16", "storage.root=r"]
    source: SourceConfig = load([], [*given, *rest])[0].source
    assert (source.id_column, source.text) == (name, name)


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize(
    ("columns", "chosen", "others"),
    [
        ({"docid": "string", "body": "string", "year": "int64"}, ("docid", "body"), ""),
        ({"id": "int64", "title": "string", "text": "string"}, ("id", "text"), "title"),
        ({"doc_id": "string", "title": "large_string", "Body": "string", "extra": "string"},
         ("doc_id", "Body"), "title, extra"),
        ({"id": "int64", "lang": "string", "words": "string"}, ("id", "lang"), "words"),
        ({"id": "int64", "year": "int64"}, ("id", "year"), ""),
    ],
)  # fmt: skip
def test_the_run_after_an_import_names_a_column_of_strings_and_the_others(columns, chosen, others):
    line = following.after_import(Imported("s.lance", 1, columns, {}, (), 1))
    command, _, comment = line.partition("     # ")
    id_column, text = (
        f"--set source.{s}={c}" for s, c in zip(("id_column", "text"), chosen, strict=True)
    )
    assert command.endswith(f"{id_column} {text}")
    assert comment == (f"or another column as text: {others}" if others else "")


def test_an_import_without_a_config_says_what_to_write_into_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = {"id": "int64", "a title": "string", "text": "string"}
    line = following.after_import(Imported("it's.lance", 1, columns, {}, (), 1))
    command, comment = line.split("     # ")
    assert command == "reembed run"
    source = comment.partition("reembed.yaml (README.md), with ")[2].partition("; ")[0]
    Path("reembed.yaml").write_text(source)
    rest = ["alias=a", "encoder.model=hashing:16", "storage.root=r"]
    found = load(["reembed.yaml"], rest)[0].source
    assert (found.uri, found.id_column, found.text) == ("it's.lance", "id", "text")
    assert comment.endswith("; or another column as text: a title")


def test_files_of_two_formats_are_imported_apart(tmp_path):
    rows = pa.table({"doc_id": ["a"], "text": ["t"]})
    pq.write_table(rows, tmp_path / "d.parquet")
    (tmp_path / "d.csv").write_text("doc_id,text\nb,t\n")
    files = [str(tmp_path / f"d.{kind}") for kind in ("parquet", "csv")]
    with pytest.raises(UsageError, match="these are parquet and csv") as refused:
        import_documents(files, str(tmp_path / "s.lance"))
    words = shlex.split(str(refused.value.fix), comments=True)
    assert CliRunner().invoke(cli, words[1:]).exit_code == 0
    assert lance.dataset(str(tmp_path / "s.lance")).count_rows() == 1


def test_the_column_that_holds_the_ids_is_not_advised_as_text(tmp_path, make_config):
    uri = str(tmp_path / "s.lance")
    columns = {"docid": ["007"], "body": ["hello"], "year": [1999]}
    lance.write_dataset(pa.table(columns), uri)
    for wrong in ("year", "docidd"):
        with pytest.raises(SourceError) as said:
            Source.open(make_config(uri, source={"id_column": "docid", "text": wrong}))
        assert said.value.fix == "reembed run --set source.text=body"
    for wrong in ("titel", "score"):
        with pytest.raises(SourceError) as said:
            Source.open(make_config(uri, source={"id_column": wrong, "text": "body"}))
        assert said.value.fix in [
            f"reembed run --set source.id_column={c}" for c in ("docid", "year")
        ]


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


CLASH = "a column of types that share nothing"
CASES = {
    CLASH: ({}, "--columns id"),
    "a column that is not there": ({"columns": ["id", "none"]}, "--columns id"),
    "a dataset that is there": ({"columns": ["id"]}, "-2.lance"),
    "a folder with something else in it": ({"columns": ["id"]}, "-documents.lance"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_import_advises_keeps_what_was_asked_and_works(tmp_path, monkeypatch, case):
    asked, part = CASES[case]
    monkeypatch.chdir(tmp_path)
    for name, column in (("a b.x", pa.array([[1]])), ("c.x", pa.array(["x"]))):
        pq.write_table(pa.table({"id": [name], "v": column}), name)
    if "dataset" in case:
        lance.write_dataset(pa.table({"id": ["a"]}), "out.lance")
    if "folder" in case:
        Path("out.lance").mkdir()
        Path("out.lance/other").touch()
    options = {"allow_http": "true", "aws_secret_access_key": "hidden"}
    with pytest.raises((SourceError, UsageError)) as said:
        import_documents(
            ["a b.x", "c.x"], "out.lance", file_format="parquet", options=options, **asked
        )
    fix = said.value.fix
    assert "hidden" not in fix
    assert part in fix
    assert "--option allow_http=true" in fix
    done = CliRunner().invoke(cli, shlex.split(fix)[1:])
    assert done.exit_code == 0, done.output
    found = lance.dataset(shlex.split(fix)[shlex.split(fix).index("--to") + 1]).to_table()
    assert found.to_pydict() == {"id": ["a b.x", "c.x"]}


def test_files_of_an_unknown_ending_are_answered_with_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.x").write_text('{"id": "1", "t": "x"}')
    with pytest.raises(UsageError) as said:
        import_documents(["a.x"], "out.lance", columns=["t"])
    done = CliRunner().invoke(cli, shlex.split(said.value.fix, comments=True)[1:])
    assert done.exit_code == 0, done.output
    assert lance.dataset("out.lance").to_table().to_pydict() == {"t": ["x"]}


@pytest.mark.parametrize("row", ["a,b,c", '"a"b,c'])
def test_a_wrong_line_of_csv_is_shown(tmp_path, row):
    file = tmp_path / "it's.csv"
    file.write_text(f"doc_id,text\n{row}\n")
    with pytest.raises(SourceError, match="line 2") as refused:
        import_documents([str(file)], str(tmp_path / "s.lance"))
    assert shlex.split(str(refused.value.fix), comments=True) == ["sed", "-n", "2p", str(file)]
