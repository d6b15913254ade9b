"""Bad input ends early, with what, why and a command; nothing is embedded and nothing is lost."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from click.testing import CliRunner
from inline import Inline
from releases import index_file
from tiny_models import bert_model

from reembed.catalog.lease import driving
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.cli.verbs import cli as reembed_cli
from reembed.lifecycle.promote import promote
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def refused(tmp_path):
    """refused(code, *arguments) -> what the user reads on stderr; no traceback, no units staged."""

    def invoke(code: int, *arguments: str) -> str:
        result = CliRunner().invoke(reembed_cli, list(arguments))
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert not list(tmp_path.glob("root/runs/*/units/*"))
        return result.stderr

    return invoke


def edited(file: str, old: str, new: str) -> str:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new))
    return file


def test_an_unknown_setting_names_the_nearest_and_its_line(corpus, config_file, refused):
    file = edited(config_file(corpus(10)), "unit_documents", "unit_document")
    line = next(
        n
        for n, text in enumerate(Path(file).read_text().splitlines(), 1)
        if "unit_document" in text
    )
    said = refused(2, "run", "-c", file)
    assert (
        f"line {line}: embed.unit_document: unknown setting; did you mean unit_documents?" in said
    )


def test_a_wrong_type_names_the_setting_and_its_line(corpus, config_file, refused):
    said = refused(2, "run", "-c", config_file(corpus(10), embed={"actors": "many"}))
    assert "embed.actors = 'many'" in said
    assert "line " in said


def test_a_key_given_twice_is_refused(corpus, config_file, refused):
    file = config_file(corpus(10))
    Path(file).write_text(Path(file).read_text() + "alias: other\n")
    said = refused(2, "run", "-c", file)
    assert "alias" in said
    assert "twice" in said


def test_a_missing_config_file_says_how_to_name_one(refused):
    said = refused(2, "status", "-c", "nowhere.yaml")
    assert "nowhere.yaml" in said
    assert "fix:" in said


def test_a_missing_dataset(tmp_path, config_file, refused):
    said = refused(2, "run", "-c", config_file(str(tmp_path / "none.lance")))
    assert "error: cannot open the dataset" in said
    assert "fix: reembed import" in said


def test_a_missing_version(corpus, config_file, refused):
    source = corpus(10)
    assert "version 99" in refused(
        2, "run", "-c", config_file(source, source={"uri": source, "version": 99})
    )


@pytest.mark.parametrize("setting", ["text", "id_column"])
def test_a_missing_column_lists_those_there_are(corpus, config_file, refused, setting):
    source = corpus(10)
    said = refused(2, "run", "-c", config_file(source, source={"uri": source, setting: "body"}))
    assert "has no column 'body'" in said
    assert "it has: doc_id, title, text" in said


def test_a_carried_column_that_is_missing(corpus, config_file, refused):
    assert "has no column 'lang'" in refused(
        2, "run", "-c", config_file(corpus(10), table={"carry": ["lang"]})
    )


def test_a_column_that_is_not_text(tmp_path, config_file, refused):
    uri = str(tmp_path / "numbers.lance")
    lance.write_dataset(pa.table({"doc_id": ["a"], "text": [1.5], "body": ["x"]}), uri)
    said = refused(2, "run", "-c", config_file(uri))
    assert f"column 'text' of {uri} version 1 is double, which cannot be text" in said
    assert "source.text=body" in said


def test_a_template_may_only_name_columns(corpus, config_file, refused):
    source = corpus(10)
    file = config_file(source, source={"uri": source, "text": "{title.__class__}"})
    assert "'title.__class__' is not a plain column name" in refused(2, "run", "-c", file)


def test_a_filter_that_is_none(corpus, config_file, refused):
    source = corpus(10)
    said = refused(2, "run", "-c", config_file(source, source={"uri": source, "filter": "year >"}))
    assert "source.filter = 'year >' is not a filter" in said


def test_an_empty_dataset(tmp_path, config_file, refused):
    uri = str(tmp_path / "empty.lance")
    lance.write_dataset(
        pa.table({"doc_id": pa.array([], pa.string()), "text": pa.array([], pa.string())}), uri
    )
    assert "has no documents" in refused(2, "run", "-c", config_file(uri))


def test_a_filter_that_matches_nothing(corpus, config_file, refused):
    source = corpus(10)
    said = refused(
        2, "run", "-c", config_file(source, source={"uri": source, "filter": "doc_id = 'zzz'"})
    )
    assert "the filter \"doc_id = 'zzz'\" matches no row" in said


def test_duplicate_ids_are_shown(tmp_path, config_file, refused):
    uri = str(tmp_path / "twice.lance")
    lance.write_dataset(pa.table({"doc_id": ["a", "b", "a"], "text": ["x", "y", "z"]}), uri)
    assert "is not unique: 'a' (2 rows)" in refused(2, "run", "-c", config_file(uri))


def test_null_ids_are_counted(tmp_path, config_file, refused):
    uri = str(tmp_path / "nulls.lance")
    lance.write_dataset(pa.table({"doc_id": ["a", None], "text": ["x", "y"]}), uri)
    said = refused(2, "run", "-c", config_file(uri))
    assert "1 documents of" in said
    assert "IS NOT NULL" in said


def test_a_model_folder_without_weights(tmp_path, corpus, config_file, refused):
    folder = bert_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    said = refused(2, "run", "-c", config_file(corpus(10), encoder={"model": str(folder)}))
    assert "weights" in said
    assert "fix:" in said


def test_a_dimension_the_model_does_not_have(tmp_path, corpus, config_file, refused):
    folder = bert_model(tmp_path / "model", dim=32)
    file = config_file(corpus(10), encoder={"model": str(folder), "truncate_dim": 64})
    said = refused(2, "run", "-c", file)
    assert "64" in said
    assert "32" in said


def test_logical_cpus_that_leave_no_room(corpus, config_file, cli):
    done = cli.process("run", "-c", config_file(corpus(10)), "--set", "ray.num_cpus=1")
    assert done.returncode == 2
    assert "the actors take 1 logical CPUs, ray.num_cpus is 1" in done.stderr


def test_ids_beyond_64_bits(tmp_path, config_file, refused):
    uri = str(tmp_path / "big.lance")
    lance.write_dataset(
        pa.table({"doc_id": pa.array([1, 2**63], pa.uint64()), "text": ["a", "b"]}), uri
    )
    assert "holds integers above" in refused(2, "run", "-c", config_file(uri))


def test_a_root_that_lance_and_the_store_would_spell_differently(
    corpus, config_file, refused, tmp_path
):
    file = config_file(corpus(10), storage={"root": str(tmp_path / "a#b")})
    assert "holds one of # % ?" in refused(2, "run", "-c", file)


def test_a_root_that_is_a_file(corpus, config_file, refused, tmp_path):
    (tmp_path / "file").write_text("x")
    said = refused(
        2, "run", "-c", config_file(corpus(10), storage={"root": str(tmp_path / "file")})
    )
    assert "is not a folder" in said


def test_usage_errors_have_json_too(cli, corpus, config_file):
    import json

    file = config_file(corpus(10))
    done = cli.process("promote", "-c", file, "--force", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (2, "UsageError")
    both = ("--force", "--without-evidence", "--reason", "WHY")
    done = cli.process("promote", "-c", file, *both)
    assert "give one of --initial, --force and --without-evidence" in done.stderr


def test_gpus_that_are_not_there(corpus, config_file, cli):
    done = cli.process("run", "-c", config_file(corpus(10), embed={"gpus_per_actor": 1}))
    assert done.returncode == 2
    assert "needs 1 GPUs, this machine has 0" in done.stderr


def test_judged_queries_that_are_missing_stop_the_run_before_it_embeds(
    corpus, config_file, refused, tmp_path
):
    file = config_file(corpus(10), gate={"queries": str(tmp_path / "nowhere")})
    assert "nowhere" in refused(2, "run", "-c", file)


def test_import_never_overwrites(tmp_path, refused):
    (tmp_path / "a.jsonl").write_text('{"doc_id": "a", "text": "x"}\n')
    to = str(tmp_path / "a.lance")
    assert (
        CliRunner().invoke(reembed_cli, ["import", str(tmp_path / "a.jsonl"), "--to", to]).exit_code
        == 0
    )
    assert "is already a Lance dataset" in refused(
        2, "import", str(tmp_path / "a.jsonl"), "--to", to
    )


def test_a_secret_on_the_command_line_is_refused(tmp_path, refused):
    said = refused(
        2, "import", "a.jsonl", "--to", "s3://b/a.lance", "--option", "aws_secret_access_key=x"
    )
    assert "aws_secret_access_key is a secret" in said
    assert "set AWS_SECRET_ACCESS_KEY in the environment" in said


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("a.jsonl", '{"doc_id": "a"\n', "a.jsonl, line 1: not JSON"),
        ("a.txt", "hello", "cannot tell the format"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path, refused, name, body, said):
    (tmp_path / name).write_text(body)
    assert said in refused(2, "import", str(tmp_path / name), "--to", str(tmp_path / "a.lance"))


def test_a_verb_that_needs_something_live_says_what_to_do(corpus, config_file, refused, tmp_path):
    file = config_file(corpus(10))
    assert "does not exist" in refused(2, "status", "-c", file)
    (tmp_path / "root").mkdir()
    for verb in (("search", "x"), ("rollback",)):
        said = refused(2, *verb, "-c", file)
        assert "passages serves nothing yet" in said
        assert f"fix: reembed status -c {file}" in said
    assert "has no release that was built with these settings" in refused(2, "promote", "-c", file)


@pytest.fixture
def two_releases(corpus, make_config, config_file, quiet, ray_local, eval_folder):
    """(storage, catalog, live release, candidate, config file of the candidate)."""
    source = corpus(120)
    gate = {"queries": eval_folder(source)}
    releases = []
    for dim in (16, 256):
        config = make_config(source, encoder={"model": f"hashing:{dim}"}, gate=gate)
        releases.append(full_rebuild(config, quiet, executor=Inline()))
        catalog = Catalog(Storage.open(config.storage.root), config.alias)
        if catalog.live() is None:
            promote(catalog, releases[0].id, initial_reason="a test")
    file = config_file(source, encoder={"model": "hashing:256"}, gate=gate)
    return catalog.storage, catalog, *releases, file


def fails(code: int, *arguments: str) -> str:
    result = CliRunner().invoke(reembed_cli, list(arguments))
    assert result.exit_code == code, result.output
    return result.stderr


@pytest.mark.ray
def test_promote_without_comparison_and_with_one_of_a_pair_no_longer_live(two_releases, cli, quiet):
    _, catalog, live, candidate, file = two_releases
    said = fails(3, "promote", "-c", file)
    assert f"release {candidate.id} was never compared with {live.id}" in said
    assert f"fix: reembed compare -c {file} --candidate {candidate.id}" in said
    cli("compare", "-c", file)
    step = catalog.append(catalog.live(), "promote", candidate)
    another = dataclasses.replace(live.place, origin="third")
    third = dataclasses.replace(live, id="third", place=another)
    catalog.register(third)
    catalog.append(step, "promote", third)
    said = fails(4, "promote", candidate.id, "-c", file)
    assert f"was compared with {live.id}, but third is live now" in said
    assert f"fix: reembed compare -c {file} --candidate {candidate.id}" in said


@pytest.mark.ray
def test_a_tampered_index_is_refused_wherever_it_would_be_read(two_releases, cli):
    storage, _, live, candidate, file = two_releases
    path = Path(storage.root) / index_file(storage, candidate)
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    said = fails(1, "promote", "-c", file, "--force", "--reason", "test")
    assert ".faiss is gone, cut short or changed" in said
    assert path.name in fails(1, "compare", "-c", file)
    manifest = f"{candidate.index}/{candidate.index_sha256}.json"
    text = Path(storage.uri(manifest)).read_text()
    Path(storage.uri(manifest)).write_text(text.replace("Flat", "flat"))
    said = fails(1, "promote", "-c", file, "--force", "--reason", "test")
    assert ".json was changed after it was written" in said
    Path(storage.uri(manifest)).write_text(text)
    storage.write(manifest, {**storage.read(manifest), "space": "another"})
    said = fails(1, "promote", "-c", file, "--force", "--reason", "test")
    assert "was replaced after the release was registered" in said
    assert "is the manifest of index" in fails(1, "verify", "-c", file)
    assert "is not verified" in fails(1, "promote", "-c", file, "--force", "--reason", "test")
    assert cli("search", "-c", file, "anything")["release"] == live.id


@pytest.mark.ray
@pytest.mark.parametrize("what", ["index", "table", "verification"])
def test_a_candidate_whose_data_is_gone_or_wrong_is_not_promoted(two_releases, what):
    storage, _, _, candidate, file = two_releases
    if what == "index":
        (Path(storage.root) / index_file(storage, candidate)).unlink()
    elif what == "table":
        next(Path(storage.root, candidate.table, "data").glob("*.lance")).unlink()
    else:
        path = f"runs/{candidate.id}/verify.json"
        storage.write(path, {**storage.read(path), "why": "a test"})
    said = fails(1, "promote", "-c", file, "--force", "--reason", "test")
    assert {
        "index": "is incomplete",
        "table": "gone or cut short",
        "verification": "is not verified",
    }[what] in said


@pytest.mark.ray
def test_a_flipped_bit_in_the_table_is_found_by_verify(two_releases, cli):
    storage, _, _, candidate, file = two_releases
    path = next(Path(storage.root, candidate.table, "data").glob("*.lance"))
    body = bytearray(path.read_bytes())
    body[300] ^= 1
    path.write_bytes(body)
    report = cli("verify", "-c", file, "--sample", "0", code=1)
    assert report["differences"]["damaged"]["examples"] == [path.name]


@pytest.mark.ray
def test_judgements_of_other_ids_decide_nothing(two_releases, cli):
    _, _, _, candidate, file = two_releases
    qrels = Path(*candidate.gate.queries) / "qrels" / "test.tsv"
    lines = qrels.read_text().splitlines()
    qrels.write_text("\n".join([lines[0], *(li.replace("\td", "\tx") for li in lines[1:])]))
    assert "was planned with" in fails(2, "compare", "-c", file)
    accepted = ("--changed-queries", "--reason", "a test")
    assert "no judged document of" in fails(2, "compare", *accepted, "-c", file)
    qrels.write_text("\n".join([*lines[:9], *(li.replace("\td", "\tx") for li in lines[9:])]))
    record = cli("compare", *accepted, "-c", file, code=6)
    rule = next(r for r in record["rules"] if r["name"] == "judged documents")
    assert rule["verdict"] == "inconclusive"


@pytest.mark.ray
def test_two_runs_of_one_plan_at_once(two_releases, quiet, make_config):
    storage, _, _, candidate, file = two_releases
    with driving(Run(storage, candidate.id)):
        said = fails(4, "run", "-c", file)
    assert f"run {candidate.id} is already being driven by process" in said


@pytest.mark.ray
def test_an_index_of_another_space_is_refused(two_releases):
    import numpy as np

    from reembed.errors import IntegrityError, SpaceMismatch
    from reembed.serving.live import OpenRelease

    storage, _, live, candidate, _ = two_releases
    with pytest.raises(SpaceMismatch):
        OpenRelease.open(storage, dataclasses.replace(live, encoder=candidate.encoder))
    with pytest.raises(IntegrityError):
        OpenRelease.open(storage, dataclasses.replace(live, index=candidate.index))
    with pytest.raises(SpaceMismatch):
        OpenRelease.open(storage, live).index.search(np.zeros((1, 64), np.float32), 3)
    shutil.rmtree(Path(storage.root) / live.index)
    with pytest.raises(IntegrityError, match="no manifest of index"):
        OpenRelease.open(storage, live)
