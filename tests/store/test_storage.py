"""The root: its identity, and the proof that its store refuses to overwrite what is created."""

from __future__ import annotations

import hashlib
import http.client
import pickle
import shlex
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import obstore
import pytest
from conftest import Bucket
from obstore.exceptions import AlreadyExistsError, PermissionDeniedError

from reembed.catalog.releases import Catalog
from reembed.catalog.runs import find_runs
from reembed.errors import ReembedError, UsageError
from reembed.store import storage as storage_module
from reembed.store.storage import Storage, storage_errors


class _Front(BaseHTTPRequestHandler):
    """Forwards to the store; `answer` says what is done with a request that has If-None-Match."""

    protocol_version = "HTTP/1.1"
    store: str
    answer: str

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = dict(self.headers.items())
        conditional = any(h.lower() == "if-none-match" for h in headers)
        if conditional and self.answer == "unknown":
            status, said, data = 400, {}, b"<Error><Code>InvalidArgument</Code></Error>"
        else:
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
            status, said, data = self._forwarded(headers, body)
        if conditional and self.answer == "refused, yet done":
            self.server.refuse = not getattr(self.server, "refuse", True)  # the second time
            status = 412 if self.server.refuse else status
        self.send_response_only(status)
        for name, value in said.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_POST = do_DELETE = do_GET

    def _forwarded(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.store, timeout=30)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


@contextmanager
def in_front_of(endpoint: str, answer: str) -> Iterator[str]:
    """Endpoint of a store that does not know what If-None-Match means."""
    said = {"store": endpoint.removeprefix("http://"), "answer": answer}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Front", (_Front,), said))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def at(bucket: Bucket, endpoint: str, **options: str) -> Storage:
    return Storage.open(f"{bucket.uri}/root", bucket.options | {"aws_endpoint": endpoint} | options)


@pytest.mark.s3
@pytest.mark.parametrize("answer", ["ignored", "refused, yet done"])
def test_a_store_that_overwrites_is_refused_before_the_first_record(bucket, answer):
    with in_front_of(bucket.options["aws_endpoint"], answer) as endpoint:
        storage = at(bucket, endpoint)
        for _ in range(2):
            with pytest.raises(UsageError, match="has no create-only writes: it ignores"):
                storage.create("aliases/docs/00000001.json", {})
        assert not list(storage.objects(""))


@pytest.mark.s3
def test_a_store_that_does_not_know_create_only_writes_is_refused(bucket):
    unheard = pytest.raises(ReembedError, match="the storage request failed")
    with in_front_of(bucket.options["aws_endpoint"], "unknown") as end, unheard, storage_errors():
        at(bucket, end).create("a", {})
    storage = at(bucket, bucket.options["aws_endpoint"], aws_conditional_put="disabled")
    with pytest.raises(UsageError, match="no create-only writes: it does not support them"):
        storage.create("a", {})
    assert not list(storage.objects(""))


@pytest.mark.s3
def test_a_root_is_proven_again_where_it_is_reached_through_another_store(bucket):
    proven = at(bucket, bucket.options["aws_endpoint"])
    assert proven.create("a", {})
    refused = pytest.raises(UsageError, match="overwrote an object")
    with in_front_of(bucket.options["aws_endpoint"], "ignored") as endpoint, refused:
        at(bucket, endpoint).create("b", {})
    assert [path for path, _ in proven.objects("")] == ["a", "root.json"]


def puts_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that are put from here on."""
    found, put = [], obstore.put

    def spy(store: Any, path: str, *args: Any, **more: Any) -> Any:
        found.append(path)
        return put(store, path, *args, **more)

    monkeypatch.setattr(obstore, "put", spy)
    return found


def test_the_proof_is_made_once_in_the_life_of_a_root(tmp_path, monkeypatch):
    puts = puts_of(monkeypatch)
    first = Storage.open(str(tmp_path / "root"))
    first.create("a", {})
    assert [p.partition("-")[0] for p in puts] == ["runs/probe"] * 2 + ["root.json", "a"]
    for storage in (first, pickle.loads(pickle.dumps(first)), Storage.open(str(tmp_path / "root"))):
        puts.clear()
        assert storage.create("b", {})
        assert (puts, storage.root_id) == (["b"], first.root_id)
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == ["a", "b", "root.json"]


def test_two_roots_have_two_ids_and_one_root_has_one(tmp_path):
    a, b = (Storage.open(str(tmp_path / name)) for name in "ab")
    assert a.root_id != b.root_id
    assert Storage.open(str(tmp_path / "a")).root_id == a.root_id
    shutil.move(tmp_path / "a", tmp_path / "moved")
    assert Storage.open(str(tmp_path / "moved")).root_id == a.root_id
    assert Storage.open(str(tmp_path / "a")).root_id != a.root_id


def test_reading_leaves_a_root_as_it_is(tmp_path):
    catalog = Catalog(Storage.open(str(tmp_path)), "docs")
    assert (catalog.live(), catalog.releases(), catalog.log()) == (None, [], [])
    assert not list(tmp_path.iterdir())


def test_of_racing_first_uses_one_names_the_root(tmp_path, monkeypatch):
    other, put = Storage.open(str(tmp_path)), obstore.put

    def late(store: Any, path: str, *args: Any, **more: Any) -> Any:
        if path == "root.json":
            monkeypatch.setattr(obstore, "put", put)
            assert other.root_id
        return put(store, path, *args, **more)

    monkeypatch.setattr(obstore, "put", late)
    assert Storage.open(str(tmp_path)).root_id == other.root_id


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_answer_to_the_proof_is_not_taken_for_a_careless_store(tmp_path, monkeypatch, lost):
    put, count = obstore.put, iter(range(1, 10))

    def landed(*args: Any, **more: Any) -> Any:
        done = put(*args, **more)
        if next(count) == lost:  # the client tried again, and met itself
            raise AlreadyExistsError("412 Precondition Failed")
        return done

    monkeypatch.setattr(obstore, "put", landed)
    storage = Storage.open(str(tmp_path))
    assert storage.create("a", {})
    assert storage.root_id == Storage.open(str(tmp_path)).root_id


def test_one_root_is_told_from_another_by_its_store_and_by_nothing_else(tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    plain = Storage.open(str(tmp_path)).address
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert Storage.open(str(tmp_path)).address == plain
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    assert Storage.open(str(tmp_path)).address != plain


def test_size_and_digest_are_of_all_chunks_of_an_object(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_module, "_CHUNK_BYTES", 1_000)
    content = bytes(range(256)) * 65_536  # 16 MiB
    storage = Storage.open(str(tmp_path))
    storage.write_bytes("large", content)
    assert storage.digest("large") == (len(content), hashlib.sha256(content).hexdigest())


def test_settings_of_the_client_that_are_true_or_false_are_passed_as_such(monkeypatch):
    given = {}
    monkeypatch.setattr(storage_module, "from_url", lambda url, **kwargs: given.update(kwargs))
    options = {"allow_http": "true", "allow_invalid_certificates": "false", "timeout": "30s",
               "aws_region": "here"}  # fmt: skip
    assert Storage.open("s3://of-this-test/root", options).store is None
    client = {"allow_http": True, "allow_invalid_certificates": False, "timeout": "30s"}
    assert given == {"config": {"aws_region": "here"}, "client_options": client}


@pytest.mark.parametrize("path", ["a/b.json", "a/b.json#1"])
def test_what_another_process_removed_already_is_removed_without_an_error(tmp_path, path):
    storage = Storage.open(str(tmp_path))
    storage.remove(path)
    (tmp_path / "a").mkdir()
    (tmp_path / path).write_text("half")
    storage.remove(path)
    storage.remove(path)
    assert not (tmp_path / path).exists()


def test_a_tree_goes_with_its_empty_folders_and_nothing_beside_it(tmp_path):
    storage = Storage.open(str(tmp_path))
    for path in ("a/b/c.json", "a/d.json", "ab/c.json"):
        storage.write_bytes(path, b"1234")
    (tmp_path / "a/empty/deep").mkdir(parents=True)
    assert storage.delete_tree("a/") == 8
    assert [f.name for f in tmp_path.iterdir()] == ["ab"]
    assert storage.delete_tree("a/") == 0


def test_a_store_whose_first_answer_was_lost_is_asked_a_second_time_all_the_same(
    tmp_path, monkeypatch
):
    asked: list[bytes] = []
    plain = obstore.put

    def put(store, path, body, mode):
        asked.append(body)
        plain(store, path, body, mode="overwrite")
        if len(asked) == 1:
            raise AlreadyExistsError("it is ours, of the request that was tried again")

    storage = Storage.open(str(tmp_path))
    monkeypatch.setattr(obstore, "put", put)
    with pytest.raises(UsageError, match="overwrote an object"):
        _ = storage.root_id
    assert len(asked) == 2


@pytest.mark.parametrize("refused", [PermissionError("denied"), PermissionDeniedError("denied")])
def test_a_root_where_nothing_may_be_deleted_is_proven_all_the_same(tmp_path, monkeypatch, refused):
    def delete(store: Any, paths: Any) -> None:
        raise refused

    monkeypatch.setattr(obstore, "delete", delete)
    storage = Storage.open(str(tmp_path / "root"))
    assert storage.create("a", {})
    (left,) = (p for p, _ in storage.objects("") if "probe" in p)
    assert left.startswith("runs/")
    assert find_runs(storage) == []
    assert storage.create("b", {})


def test_a_root_may_be_a_path_and_not_a_file(tmp_path):
    assert Storage.open(tmp_path / "root") == Storage.open(str(tmp_path / "root"))
    (tmp_path / "file").write_text("words")
    for place in (tmp_path / "file", tmp_path / "file" / "root"):
        with pytest.raises(UsageError, match="is not a folder") as refused:
            Storage.open(place)
        assert shlex.split(refused.value.fix, comments=True)[-1] == str(place)
