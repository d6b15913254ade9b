"""Faults in every request of a small migration on S3; then the same commands again without.

A process each for the store and for who uses it: the store is moto's, behind a front that forwards
requests to it, in the same process for speed, and does to one of them what networks and stores do.

Replay one case: PYTHONPATH=tests python -m crash.s3_faults KIND AT [lazy]
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from crash.forks import Ended, ForkServer, search_path

KINDS = (
    "slow_down",  # 503, not applied
    "error_before",  # 500, not applied
    "expired",  # 403, not applied: credentials that ran out
    "error_after",  # applied, and 500
    "lost_answer",  # applied, and the connection closed without an answer
    "delay",  # answered late
    "reset",  # the connection is reset, nothing applied
    "truncated",  # half of the body of a GET, then the connection is closed
)
_CHANGING = ("PUT", "POST", "DELETE")
# Requests of these methods only; the others meet any. A read whose answer is lost is a read reset.
_MET_BY = {"truncated": ("GET",), "lost_answer": _CHANGING, "error_after": _CHANGING}
_DELAY_S = 2.0
_WORKERS = 2
_TRIES = 2  # a case may name a request that this history did not come to
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "a-secret-of-nobody"}
_ERRORS = {503: "SlowDown", 500: "InternalError", 403: "ExpiredToken"}
_REFUSED = {"slow_down": 503, "error_before": 500, "expired": 403}

Answer = tuple[int, list[tuple[str, str]], bytes]


# --- the store, in a process of its own -----------------------------------------------------------


class _Front(ThreadingHTTPServer):
    """Counts requests and injects the fault; `fault` is (kind, at)."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import create_backend_app

        super().__init__(("127.0.0.1", 0), _Request)
        self.app = create_backend_app("s3")
        self.lock = threading.Lock()
        self.arm(None, 0)

    def arm(self, kind: str | None, at: int) -> None:
        """Start counting anew."""
        self.kind, self.at = kind, at
        self.seen: list[list[Any]] = []
        self.injected: str | None = None

    def fault_of(self, method: str, path: str) -> str | None:
        """The fault that this request meets, before it is known what the answer is."""
        with self.lock:
            self.seen.append([method, path, 0])
            due = self.injected is None and self.kind and len(self.seen) >= self.at
            if not due or method not in _MET_BY.get(str(self.kind), method):
                return None
            if self.kind != "truncated":  # that needs a body to cut, so it is said later
                self.injected = f"{method} {path}"
            return self.kind


class _Request(BaseHTTPRequestHandler):
    server: _Front
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/-/"):
            self._control(json.loads(body))
            return
        fault = self.server.fault_of(self.command, unquote(urlsplit(self.path).path))
        if fault == "reset":
            self._hang_up(reset=True)
            return
        if fault in _REFUSED:
            self._answer(_error(_REFUSED[fault]))
            return
        if fault == "delay":
            time.sleep(_DELAY_S)
        answer = self._applied(body)
        if fault == "lost_answer":
            self._hang_up()
        elif fault == "error_after":
            self._answer(_error(500))
        else:
            self._answer(answer, cut=fault == "truncated" and len(answer[2]) > 1)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _control(self, asked: list[Any]) -> None:
        if asked:
            self.server.arm(*asked)
        said = {"seen": self.server.seen, "injected": self.server.injected}
        self._answer((200, [], json.dumps(said).encode()))

    def _applied(self, body: bytes) -> Answer:
        """What moto answers."""
        from werkzeug.test import EnvironBuilder, run_wsgi_app

        url = urlsplit(self.path)
        environ = EnvironBuilder(
            method=self.command,
            path=unquote(url.path),
            query_string=url.query,
            data=body,
            headers=list(self.headers.items()),
            base_url=f"http://{self.headers['Host']}",
        ).get_environ()
        environ["RAW_URI"] = environ["REQUEST_URI"] = self.path
        parts, status, headers = run_wsgi_app(self.server.app, environ, buffered=True)
        return int(status.split()[0]), list(headers.items()), b"".join(parts)

    def _answer(self, answer: Answer, *, cut: bool = False) -> None:
        status, headers, body = answer
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if cut:
            with self.server.lock:
                self.server.injected = f"GET {self.path}"
            body = body[: len(body) // 2]
        if self.command != "HEAD":
            self.wfile.write(body)
        if cut:
            self._hang_up()

    def _hang_up(self, *, reset: bool = False) -> None:
        self.close_connection = True
        self.wfile.flush()
        if reset:  # what close() does with no time to linger
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def _error(status: int) -> Answer:
    code = _ERRORS[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
    return status, [("Content-Type", "application/xml")], body.encode()


def _serve() -> None:
    server = _Front()
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started it is gone


# --- who uses it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One fault."""

    kind: str
    at: int
    lazily: bool = False

    @property
    def replay(self) -> str:
        """Runs it alone."""
        lazy = " lazy" if self.lazily else ""
        return f"PYTHONPATH=tests python -m crash.s3_faults {self.kind} {self.at}{lazy}"


@dataclass(frozen=True)
class Result:
    """What came of a case."""

    case: Case
    injected: str | None
    """The request that met the fault."""
    said: str | None
    """The error that the command ended with; None: success."""
    violations: list[str]


class Store:
    """with Store() as store: store.endpoint, store.arm("reset", 17), store.report()."""

    def __enter__(self) -> Store:
        env = os.environ | {"PYTHONPATH": search_path()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crash.s3_faults"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.endpoint = f"http://127.0.0.1:{int(self._pipe(self._process.stdout).readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait(30)
        self._pipe(self._process.stdout).close()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def arm(self, kind: str | None, at: int = 0) -> None:
        """From here on requests count; None: nothing happens to them."""
        self._ask("/-/", json.dumps([kind, at]).encode())

    def report(self) -> dict[str, Any]:
        """Requests since `arm`, and the one that met the fault."""
        return dict(json.loads(self._ask("/-/", b"[]")))

    def make_bucket(self, name: str) -> None:
        """An empty one."""
        self._ask(f"/{name}", b"")

    def _ask(self, path: str, body: bytes) -> bytes:
        request = urllib.request.Request(f"{self.endpoint}{path}", data=body, method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


def place_of(task: dict[str, Any]) -> Any:
    """Documents and all else in one bucket."""
    from crash.migration import Place

    bucket, options = task["bucket"], {"aws_region": "us-east-1", "allow_http": "true"}
    options["aws_endpoint"] = task["endpoint"]
    source, root = f"s3://{bucket}/source.lance", f"s3://{bucket}/root"
    lazily = bool(task.get("lazily"))
    return Place(source, root, options, documents=30, unit=10, models=1, lazily=lazily)


def suffer(task: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: the migration, through one fault; nobody else writes meanwhile."""
    from crash.migration import prepared, told

    os.environ |= KEYS
    acknowledged: list[Any] = []
    place = place_of(task)
    store = Store()
    store.endpoint = task["endpoint"]
    prepared(place)
    store.arm(task["kind"], int(task["at"]))
    said = told(place, lambda command, done: acknowledged.append([command, done]))
    return {"said": said, "acknowledged": acknowledged}


def recover(task: dict[str, Any]) -> list[str]:
    """In a process of its own, without faults: the same commands to their end, and what does not hold."""
    from crash.migration import lazy_migration, told, violations

    os.environ |= KEYS
    place, acknowledged = place_of(task), task["acknowledged"]
    if place.lazily and (wrong := lazy_migration().between(place, acknowledged)):
        return list(wrong)
    failed = told(place, lambda command, done: acknowledged.append([command, done]))
    if failed:
        return [f"the same commands fail without faults: {failed}"]
    return violations(place, acknowledged)


def one(server: ForkServer, store: Store, case: Case, bucket: str) -> Result:
    """A case from an empty bucket to the checks."""
    store.arm(None)
    store.make_bucket(bucket)
    task: dict[str, Any] = {"bucket": bucket, "endpoint": store.endpoint, **vars(case)}
    first = server.call("crash.s3_faults:suffer", task)
    injected = store.report()["injected"]
    store.arm(None)
    said = first.result or {"said": None, "acknowledged": []}
    second = server.call("crash.s3_faults:recover", task | said)
    wrong = [*_of_a_process("through the fault", first), *_of_a_process("after it", second)]
    wrong += second.result or []
    if (said["said"] or "").startswith(("Conflict", "IntegrityError")):
        wrong.append(f"one writer, nothing damaged, and yet {said['said']}")
    named = [f"{w}\n  after {case.kind} of {injected}\n  {case.replay}" for w in wrong]
    return Result(case, injected, said["said"], named)


def _of_a_process(when: str, ended: Ended) -> Iterator[str]:
    if ended.trouble or ended.killed:
        yield f"no clean end {when}: {ended.trouble or 'killed'}"


def requests(server: ForkServer, store: Store, *, lazily: bool = False) -> list[tuple[str, str]]:
    """(method, path) of every one in a migration without faults."""
    store.make_bucket("dry")
    task = {"bucket": "dry", "endpoint": store.endpoint, "kind": None, "at": 0, "lazily": lazily}
    ended = server.call("crash.s3_faults:suffer", task)
    if ended.trouble or ended.result["said"]:
        raise RuntimeError(f"the migration fails without faults: {ended}")
    return [(method, path) for method, path, _ in store.report()["seen"]]


def cases_of(
    found: list[tuple[str, str]], cases: int, seed: int, *, lazily: bool = False
) -> list[Case]:
    """Cases of every kind, each spread evenly over the requests that can meet it."""
    rng = random.Random(seed)
    chosen = []
    for k, kind in enumerate(KINDS):
        share = len(range(k, cases, len(KINDS)))
        at = [i for i, (method, _) in enumerate(found, 1) if method in _MET_BY.get(kind, method)]
        for i in range(share):
            place = (i + rng.random()) / share
            chosen.append(Case(kind, at[int(place * len(at))], lazily))
    rng.shuffle(chosen)
    return chosen


def run(cases: int, seed: int, *, lazily: bool = False) -> dict[str, Any]:
    """So many faults, each in a migration of its own; what was violated, with how to replay it."""
    started = time.monotonic()
    free: SimpleQueue[tuple[ForkServer, Store]] = SimpleQueue()
    results: list[Result] = []

    def work(numbered: tuple[int, Case]) -> Result:
        server, store = free.get()
        try:
            return one(server, store, numbered[1], f"case-{numbered[0]}")
        finally:
            free.put((server, store))

    with ForkServer() as a, ForkServer() as b, Store() as c, Store() as d:
        free.put((a, c))
        free.put((b, d))
        found = requests(a, c, lazily=lazily)
        with ThreadPoolExecutor(_WORKERS) as pool:
            for extra in range(_TRIES):
                missing = cases - sum(r.injected is not None for r in results)
                numbered = enumerate(
                    cases_of(found, missing, seed + extra, lazily=lazily), len(results)
                )
                results += pool.map(work, numbered)
    met = [r for r in results if r.injected]
    return {
        "s3_faults": len(met),
        "by_kind": dict(Counter(r.case.kind for r in met)),
        "by_method": dict(Counter((r.injected or "").split()[0] for r in met)),
        "requests": len(found),
        "failed_cleanly": sum(r.said is not None for r in met),
        "violations": [v for r in results for v in r.violations],
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
    }


def _replay(kind: str, at: str, lazily: str = "") -> int:
    case = Case(kind, int(at), lazily == "lazy")
    with ForkServer() as server, Store() as store:
        result = one(server, store, case, "replay")
    wrong = "\n".join(result.violations) or "nothing is violated"
    sys.stdout.write(f"met by {result.injected}\n{result.said}\n{wrong}\n")
    return 1 if result.violations else 0


if __name__ == "__main__":
    if not sys.argv[1:]:
        _serve()
    else:
        sys.exit(_replay(*sys.argv[1:]))
