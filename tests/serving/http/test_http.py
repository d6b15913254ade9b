"""The HTTP application: what it answers, what it refuses, and what it counts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from inline import Silent
from releases import promoted

import reembed
from reembed.cli.text import text
from reembed.errors import UsageError
from reembed.events import Serving
from reembed.serving.http import server
from reembed.serving.http.app import create_app
from reembed.serving.http.options import ServeOptions

TOKEN = "a token of sixteen or more"
LIMITS = ServeOptions(max_k=20, max_queries=3, max_request_bytes=4_096)


def build(config: Any, **reason: str) -> Any:
    return promoted(config, **reason)[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    import lance
    import pyarrow as pa

    from reembed.config.settings import Config

    folder = tmp_path_factory.mktemp("http")
    names = [f"d{n:03}" for n in range(120)]
    rows = {"doc_id": names, "text": [f"words of {n}" for n in names], "year": list(range(120))}
    lance.write_dataset(pa.table(rows), str(folder / "s.lance"), enable_stable_row_ids=True)
    config = Config(
        alias="docs",
        source={"uri": str(folder / "s.lance")},
        encoder={"model": "hashing:32"},
        table={"carry": ["year"]},
        storage={"root": str(folder / "root")},
    )
    return config, build(config)


@pytest.fixture
def index(built):
    config, _ = built
    with reembed.open(config.storage.root, config.alias) as opened:
        yield opened


@pytest.fixture
def client(index):
    return TestClient(
        create_app(index, LIMITS, None), "http://localhost", raise_server_exceptions=False
    )


def test_texts_get_the_hits_of_the_index_and_the_release_that_answered(client, index):
    asked = {"queries": ["words of d007", "nothing like it"], "k": 4, "columns": ["year"]}
    said = client.post("/search", json=asked).json()
    assert (said["release"], said["space"]) == (index.release.id, index.release.space.id)
    expected = index.search(asked["queries"], 4, ["year"])
    assert [[h["doc_id"] for h in r["hits"]] for r in said["results"]] == [
        [h.doc_id for h in hits] for hits in expected
    ]
    assert said["results"][0]["hits"][0]["columns"] == expected[0][0].columns


def test_a_filter_is_applied(client):
    asked = {"queries": ["words"], "k": 20, "columns": ["year"], "filter": "year >= 117"}
    (found,) = client.post("/search", json=asked).json()["results"]
    assert {h["columns"]["year"] for h in found["hits"]} == {117, 118, 119}


def test_vectors_are_searched_with_the_id_of_their_space(client, index):
    encoded = index.encode_queries(["words of d003"])
    asked = {"vectors": encoded.vectors.tolist(), "k": 1}
    assert client.post("/search", json=asked).status_code == 400
    said = client.post("/search", json={**asked, "space": encoded.space}).json()
    assert (
        said["results"][0]["hits"][0]["doc_id"] == index.search(["words of d003"], 1)[0][0].doc_id
    )
    other = client.post("/search", json={**asked, "space": "0123456789ab"})
    assert (other.status_code, other.json()["error"]) == (409, "SpaceMismatch")


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({}, 400, "give either queries or vectors"),
        ({"queries": ["a"], "vectors": [[0.0]]}, 400, "give either queries or vectors"),
        ({"queries": ["a"] * 4}, 400, "allows 3"),
        ({"queries": ["a"], "k": 21}, 400, "allows 20"),
        ({"queries": ["a"], "k": 0}, 400, "k must be"),
        ({"queries": "a"}, 422, "queries"),
        ({"queries": ["a"], "k": True}, 422, "k: Input should be a valid integer"),
        ({"queries": ["a"], "k": "5"}, 422, "k: Input should be a valid integer"),
        ({"queries": ["a"], "limit": 3}, 422, "limit"),
        ({"queries": ["a"], "columns": ["text"]}, 400, "text is not carried"),
        ({"queries": ["a"], "filter": "no_column = 1"}, 400, "no_column"),
        ({"vectors": [[0.0] * 31], "space": "SPACE"}, 409, "31"),
        ({"vectors": [[0.0] * 32, [0.0]], "space": "SPACE"}, 400, "several lengths"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(client, index, asked, status, said):
    if asked.get("space"):
        asked = {**asked, "space": index.release.space.id}
    found = client.post("/search", json=asked)
    assert found.status_code == status, found.text
    assert said in found.json()["what"] + str(found.json()["why"])
    assert found.json().keys() == {"error", "what", "why", "fix"}


def test_what_json_does_not_have_is_no_request(client):
    body = '{"vectors": [[NaN]], "space": "x"}'
    found = client.post("/search", content=body, headers={"content-type": "application/json"})
    assert found.status_code in (400, 409, 422)


def test_integers_are_numbers_of_a_vector(client, index):
    asked = {"vectors": [[1, *[0] * 31]], "space": index.release.space.id}
    assert client.post("/search", json=asked).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("{{{", "application/json", "the body is not JSON: Expecting property name"),
        ("[]", "application/json", "must be an object"),
        ('{"queries": ["a"]}', "text/plain", "if content-type is application/json"),
    ],
)
def test_a_body_that_is_no_json_object_is_told_so(client, body, kind, said):
    found = client.post("/search", content=body, headers={"content-type": kind})
    assert found.status_code == 422
    assert said in f"{found.json()['what']} {found.json()['why']}"


def test_no_queries_get_no_results(client, index):
    assert client.post("/search", json={"queries": []}).json()["results"] == []
    asked = {"vectors": [], "space": index.release.space.id}
    assert client.post("/search", json=asked).json()["results"] == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_however_it_is_sent(client, chunked):
    body = json.dumps({"queries": ["word " * 1_000]}).encode()
    assert len(body) > LIMITS.max_request_bytes
    content = iter([body[:2_000], body[2_000:]]) if chunked else body
    headers = {"content-type": "application/json"}
    found = client.post("/search", content=content, headers=headers)
    assert (found.status_code, found.json()["what"]) == (413, "the request is too large")


def test_a_token_opens_all_but_what_probes_ask(index):
    client = TestClient(create_app(index, LIMITS, TOKEN))
    asked = {"queries": ["words"]}
    for headers in ({}, {"authorization": "Bearer no"}, {"authorization": TOKEN}):
        found = client.post("/search", json=asked, headers=headers)
        assert found.status_code == 401
        assert found.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/openapi.json", headers=headers).status_code == 401
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert client.post("/search", json=asked, headers=headers).status_code == 200


def test_metrics_count_requests_queries_and_empty_answers_and_name_the_release(client, index):
    client.post("/search", json={"queries": ["a", "b"]})
    client.post("/search", json={"queries": ["a"], "filter": "year < 0"})
    client.post("/search", json={"queries": ["a"], "k": 999})
    client.get("/no/such/path")
    said = client.get("/metrics").text
    value = {
        k: float(v) for k, v in re.findall(r"^(reembed_[^#\s]+(?:\{.*\})?) (\S+)$", said, re.M)
    }
    assert value['reembed_requests_total{path="/search",status="200"}'] == 2
    assert value['reembed_requests_total{path="/search",status="400"}'] == 1
    assert value['reembed_requests_total{path="other",status="404"}'] == 1
    assert value["reembed_queries_total"] == 3
    assert value["reembed_queries_without_results_total"] == 1
    assert value["reembed_search_seconds_count"] == 2
    assert value["reembed_refresh_failing"] == 0
    assert value["reembed_documents"] == index.release.documents
    assert f'release="{index.release.id}"' in said


def test_what_no_route_answers_and_what_breaks_is_told_in_the_same_form(client, index, monkeypatch):
    for found, status in ((client.get("/none"), 404), (client.get("/search"), 405)):
        assert found.status_code == status
        assert found.json().keys() == {"error", "what", "why", "fix"}
    monkeypatch.setattr(type(index), "current", property(lambda self: 1 / 0))
    found = client.post("/search", json={"queries": ["a"]})
    assert (found.status_code, found.json()["error"]) == (500, "ZeroDivisionError")
    monkeypatch.undo()
    assert 'reembed_requests_total{path="/search",status="500"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "10.0.0.1", ""])
def test_without_a_token_a_request_for_another_host_is_refused(index, host):
    client = TestClient(create_app(index, LIMITS, None), "http://localhost")
    assert client.get("/health", headers={"host": host}).status_code == 403
    for own in ("localhost:8080", "127.0.0.1", "[::1]:80"):
        assert client.get("/health", headers={"host": own}).status_code == 200
    tokened = TestClient(create_app(index, LIMITS, TOKEN), "http://localhost")
    assert tokened.get("/health", headers={"host": host}).status_code == 200


def test_refused_requests_are_counted(index):
    client = TestClient(create_app(index, LIMITS, TOKEN))
    client.post("/search", json={"queries": ["a"]})
    headers = {"authorization": f"bearer {TOKEN} "}
    client.post("/search", content=b" " * 5_000, headers=headers)
    said = client.get("/metrics", headers=headers).text
    for status in (401, 413):
        assert f'reembed_requests_total{{path="/search",status="{status}"}} 1.0' in said


def test_the_current_release_is_told_and_a_refresh_that_fails(client, index):
    said = client.get("/release").json()
    assert (said["release"], said["refresh_error"]) == (index.release.id, None)
    index.refresh_error = OSError("the store does not answer")
    assert client.get("/release").json()["refresh_error"] == "the store does not answer"
    index.refresh_error = OSError("https://user:pa55word@host/?X-Amz-Signature=deadbeef")
    said = client.get("/release").text
    assert "pa55word" not in said
    assert "deadbeef" not in said
    assert "reembed_refresh_failing 1.0" in client.get("/metrics").text
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_another_address_than_this_machine_s_own_needs_a_token(built, host):
    config, _ = built
    with pytest.raises(UsageError, match="needs a token"):
        server.serve(config, host, 0, ServeOptions(), Silent())
    with pytest.raises(UsageError, match="needs a token"):
        server.application(config, ServeOptions())


@pytest.mark.parametrize("value", [None, "", "short"])
def test_a_variable_without_a_token_is_refused(monkeypatch, value):
    monkeypatch.delenv("SOME_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_TOKEN", value)
    with pytest.raises(UsageError, match="SOME_TOKEN"):
        server.token_of(ServeOptions("env:SOME_TOKEN"))


def test_a_token_from_a_file_may_end_with_a_line(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", f"{TOKEN}\n")
    assert server.token_of(ServeOptions("env:SOME_TOKEN")) == TOKEN


def test_it_listens_once_the_index_is_open(built, monkeypatch):
    config, _ = built
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def opened(*_):
        with socket.socket() as early:
            assert early.connect_ex(("127.0.0.1", port))
        raise UsageError("it was looked at")

    monkeypatch.setattr(server, "_opened", opened)
    with pytest.raises(UsageError, match="it was looked at"):
        server.serve(config, "127.0.0.1", port, ServeOptions(), Silent())


@pytest.mark.parametrize("wrong", [{"token": TOKEN}, {"max_k": 0}, {"refresh_every": 0.0}])
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError) as refused:
        ServeOptions(**wrong)
    assert TOKEN not in str(refused.value)


def test_a_port_in_use_is_said_before_anything_is_opened(built):
    config, _ = built
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = config.model_copy(update={"alias": "none"})
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be served at"):
            server.serve(busy, "127.0.0.1", port, ServeOptions(), Silent())


def test_the_command_serves_follows_the_alias_and_finishes_what_is_under_way(
    corpus, make_config, config_file
):
    source = corpus(130)
    config = make_config(source)
    build(config)
    file = config_file(source)
    command = [sys.executable, "-c", "from reembed.cli.verbs import main; main()"]
    served = subprocess.Popen(
        [*command, *["serve", "--json", "--port", "0", "--refresh-every", "0.2", "-c"], file],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    try:
        assert served.stderr is not None
        address = next(m[0] for line in served.stderr if (m := re.search(r"http://[\d.:]+", line)))
        with httpx.Client(base_url=address) as client:  # it takes requests once it says where
            first = client.post("/search", json={"queries": ["bada"]}).json()["release"]
            second = build(config, force_reason="a test").id
            answers = set()
            while second not in answers:
                answers.add(client.post("/search", json={"queries": ["bada"]}).json()["release"])
            assert answers <= {first, second}
        body = json.dumps({"queries": ["bada"]}).encode()
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            slow.sendall(_head(host, len(body)) + body[:5])
            assert httpx.get(f"{address}/health").status_code == 200  # the request above has begun
            served.send_signal(signal.SIGTERM)
            with contextlib.suppress(httpx.TransportError):
                while httpx.get(f"{address}/health"):
                    pass
            slow.sendall(body[5:])
            assert slow.recv(1_000).startswith(b"HTTP/1.1 200")
        out, _ = served.communicate(timeout=30)
        assert served.returncode == 0
        assert json.loads(out)["address"] == address
    finally:
        served.kill()


def test_it_says_where_it_serves_once_it_takes_requests(built):
    taken: list[int] = []

    def emit(event: object) -> None:
        if isinstance(event, Serving):
            host, port = event.address.removeprefix("http://").split(":")
            with socket.socket() as early:
                taken.append(early.connect_ex((host, int(port))))
            os.kill(os.getpid(), signal.SIGTERM)

    server.serve(built[0], "127.0.0.1", 0, ServeOptions(), emit)
    assert taken == [0]


def test_connections_that_wait_when_it_is_stopped_get_their_answers(built):
    """The signal comes while the server's loop is busy: all of them are in the socket's queue."""
    body = json.dumps({"queries": ["words"]}).encode()
    clients: list[socket.socket] = []

    def emit(event: object) -> None:  # the loop does nothing else meanwhile
        if isinstance(event, Serving):
            host, port = event.address.removeprefix("http://").split(":")
            for n in range(50):
                client = socket.create_connection((host, int(port)), timeout=30)
                sent = _head(host, len(body)) + body
                client.sendall(sent if n % 2 else sent[:20])
                clients.append(client)
            os.kill(os.getpid(), signal.SIGTERM)

    served = server.serve(built[0], "127.0.0.1", 0, ServeOptions(), emit)
    answers = [_read(client) for client in clients[1::2]]
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert all(b"connection: close" in answer.lower() for answer in answers)
    assert served.requests == 25


def test_a_server_that_was_stopped_says_what_it_did():
    said = text("serve", server.Served("http://127.0.0.1:8080", 1), [])
    assert said == "stopped: 1 request answered at http://127.0.0.1:8080"


def _read(client):
    """Return all that comes until the server ends the connection."""
    parts = []
    while part := client.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def _head(host, length):
    lines = ("POST /search HTTP/1.1", f"host: {host}", "content-type: application/json")
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


@pytest.mark.ray
@pytest.mark.deep
def test_ray_serve_runs_replicas_of_it(built, monkeypatch, ray_local):
    from ray import serve

    from reembed.engine import ray_serve

    config, release = built
    monkeypatch.setenv("SERVE_TEST_TOKEN", TOKEN)

    def application():
        os.environ["SERVE_TEST_TOKEN"] = TOKEN  # of the replica's process
        return server.application(config, ServeOptions("env:SERVE_TEST_TOKEN"))

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    try:
        serve.run(ray_serve.replicas(application, "docs", 2), name="docs")
        address, headers = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {TOKEN}"}
        asked = {"vectors": np.ones((1, 32)).tolist(), "space": release.space.id}
        assert httpx.post(f"{address}/search", json=asked).status_code == 401
        said = httpx.post(f"{address}/search", json=asked, headers=headers, timeout=30).json()
        assert said["release"] == release.id
        assert len(said["results"][0]["hits"]) == 10
    finally:
        serve.shutdown()
