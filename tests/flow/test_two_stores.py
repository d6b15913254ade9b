"""The source in one store, the root in another or here: every verb reaches both, each with its own keys."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import obstore
import pyarrow as pa
import pytest
from click.testing import CliRunner
from conftest import Bucket
from inline import Inline, Silent
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import EnvironBuilder

from reembed.api.opened import catalog_of
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import Config, load
from reembed.errors import SourceError
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

pytestmark = pytest.mark.s3

KEYS = {"aws_access_key_id": "env:CORPUS_ID", "aws_secret_access_key": "env:CORPUS_PASS"}
_REFUSED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class _Silent(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        pass


@pytest.fixture
def corpora() -> Iterator[Bucket]:
    """An empty bucket of another S3 server, which answers to the keys of the corpus alone."""
    app, name = create_backend_app("s3"), f"corpora-{uuid.uuid4().hex[:12]}"

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if "Credential=an-id-of-the-corpus/" in environ.get("HTTP_AUTHORIZATION", ""):
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "application/xml")])
        return [_REFUSED]

    server = make_server("127.0.0.1", 0, guarded, threaded=True, request_handler=_Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = {
        "aws_endpoint": f"http://127.0.0.1:{server.server_port}",
        "aws_region": "us-east-1",
        "allow_http": "true",
        **KEYS,
    }
    with server:
        request = EnvironBuilder(method="PUT", path=f"/{name}", base_url="http://127.0.0.1")
        app(request.get_environ(), lambda *_: None)
        yield Bucket(f"s3://{name}", options)
        server.shutdown()


def documents(bucket: Bucket, rows: pa.Table, mode: str = "create") -> str:
    uri = f"{bucket.uri}/passages.lance"
    options = Storage(bucket.uri, tuple(bucket.options.items())).lance_options
    lance.write_dataset(rows, uri, mode=mode, enable_stable_row_ids=True, storage_options=options)
    return uri


def upload(bucket: Bucket, folder: str) -> str:
    """The judged queries beside the documents."""
    store = Storage(bucket.uri, tuple(bucket.options.items())).store
    for file in Path(folder).rglob("*.*"):
        obstore.put(store, f"judged/{file.relative_to(folder)}", file.read_bytes())
    return f"{bucket.uri}/judged"


def holds_no_key(storage: Storage) -> None:
    paths = [path for path, _ in storage.objects("")]
    assert any(path.endswith("config.yaml") for path in paths)
    kept = b"".join(storage.read_bytes(path) for path in paths)
    assert b"-of-the-corpus" not in kept


def names_its_settings(cli: Any, lost: str, uri: str, release: str) -> None:
    """What verbs say where the config names the source, and not how its store is reached."""
    lag = cli("status", "-c", lost)["live"]["lag"]
    assert lag["newest"] is None
    assert lag["why"].startswith(f"cannot open the dataset {uri}")
    for verb in (["verify", "--release", release], ["run"], ["catch-up", release]):
        said = CliRunner().invoke(reembed_cli, [*verb, "-c", lost])
        assert said.exit_code in (1, 2), (verb, said.output)
        assert "source.options" in said.output, (verb, said.output)
        assert "-of-the-corpus" not in said.output


@pytest.mark.ray
@pytest.mark.parametrize("place", ["store", "folder"])
def test_every_verb_reaches_a_source_in_another_store_with_its_own_keys(
    place: str,
    bucket: Bucket,
    corpora: Bucket,
    corpus: Callable[..., str],
    eval_folder: Callable[..., str],
    config_file: Callable[..., str],
    cli: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    here = corpus(150)
    rows = lance.dataset(here).to_table()
    uri, queries = documents(corpora, rows), upload(corpora, eval_folder(here))
    storage = {"root": str(tmp_path / "root"), "keep": 1}
    if place == "store":
        storage = {"root": f"{bucket.uri}/root", "keep": 1, "options": bucket.options}

    def file(dim: int, options: dict[str, str] | None) -> str:
        source = {"uri": uri, **({"options": options} if options else {})}
        encoder = {"model": f"hashing:{dim}"}
        gate = {"queries": queries}
        name = f"{dim}-{bool(options)}.yaml"
        return config_file(uri, name, source=source, encoder=encoder, storage=storage, gate=gate)

    old, new = file(32, corpora.options), file(256, corpora.options)
    if place == "store":  # its workers look the keys up in their own environment
        request.getfixturevalue("ray_local")
        first = cli("run", "-c", old)["id"]
    else:
        first = full_rebuild(load([old], [])[0], Silent(), executor=Inline()).id
    cli("promote", "-c", old, "--initial", "--reason", "a test")
    config: Config = load([new], [])[0]
    second = full_rebuild(config, Silent(), executor=Inline())
    assert cli("compare", "-c", new)["queries"]["count"] == 48
    assert cli("promote", "-c", new)["behind"]["documents"] == 0

    more = pa.table({"doc_id": ["z1"], "title": ["t"], "text": ["one more"]})
    documents(corpora, more, "append")
    assert cli("status", "-c", new)["live"]["lag"]["documents"] == 1
    third = catch_up(config, second, Silent(), executor=Inline())
    assert third.rows == 151
    assert cli("promote", third.id, "-c", new)["behind"]["documents"] == 0
    assert cli("verify", "-c", new, "--release", third.id)["passed"]
    pins = Source(third.source, config.stores.source).dataset().tags.list().keys()
    assert cli("gc", "-c", new, "--yes")["removed"] == [second.id], f"{first} is the previous one"
    left = Source(third.source, config.stores.source).dataset().tags.list().keys()
    assert len(left) < len(pins), "the source keeps a version for a release that is gone"
    holds_no_key(catalog_of(config).storage)

    names_its_settings(cli, file(256, None), uri, third.id)


def test_a_source_with_wrong_keys_is_answered_with_where_they_are_set(
    corpora: Bucket, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    uri = documents(corpora, pa.table({"doc_id": ["a"], "text": ["x"]}))
    known = {k: v for k, v in corpora.options.items() if k not in KEYS}
    assert Source.open(make_config(uri, source={"options": corpora.options})).check_documents() == 1
    with pytest.raises(SourceError, match=f"cannot open the dataset {uri}") as refused:
        Source.open(make_config(uri, source={"options": known}))
    assert "Access Denied" in refused.value.why
    assert refused.value.fix.startswith("reembed config ")
    assert "source.options" in refused.value.fix


def test_an_import_writes_to_a_store_whose_keys_are_named(
    corpora: Bucket, cli: Any, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"doc_id": "a", "text": "x"}) + "\n")
    options = [f"--option={name}={value}" for name, value in corpora.options.items()]
    assert cli("import", str(file), "--to", f"{corpora.uri}/a.lance", *options)["rows"] == 1
