"""What several tests share: a corpus, judged queries, settings, the verbs, one local Ray.

Fixtures that make something are functions, so that one test can make two of them; all they write
lies below the test's `tmp_path`.

    def test_...(corpus, eval_folder, make_config, ray_local, quiet):
        source = corpus(300)                                      # Lance: doc_id, title, text
        config = make_config(source, gate={"queries": eval_folder(source)})
        release = full_rebuild(config, quiet, executor=RayExecutor())

`ray_local` is one Ray for all tests: ask for it wherever a run is started in this process, else
each run starts a Ray of its own (3-9 s).
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lance
import pyarrow as pa
import pytest
import ray
import yaml
from click.testing import CliRunner

from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import Config, load
from reembed.events import Event, Notice, Working

E = TypeVar("E")

# Before Ray starts, so that its workers inherit it. The S3 server of `bucket` takes any keys: so no
# test can reach a real bucket with the keys of whoever runs it, and without keys an S3 client asks
# the network for an instance role.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-nobody",
    "CORPUS_ID": "an-id-of-the-corpus",  # of the store in tests/flow/test_two_stores.py
    "CORPUS_PASS": "a-password-of-the-corpus",
    "HF_HUB_OFFLINE": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
}
for _name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "RAY_ADDRESS"):
    os.environ.pop(_name, None)

_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
_FRAGMENT_ROWS = 120


def documents(n: int, seed: int) -> list[dict[str, str]]:
    """`n` documents of made-up words; each title holds a word that only its own text repeats."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4))) for _ in range(400)]
    rows = []
    for i in range(n):
        own = "".join(rng.choices(_SYLLABLES, k=5))
        text = [*rng.choices(words, k=rng.randint(8, 40)), own]
        rng.shuffle(text)
        title = f"{own} {rng.choice(words)}"
        rows.append({"doc_id": f"d{i:05d}", "title": title, "text": " ".join(text)})
    return rows


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., str]:
    """corpus(n=300, seed=0) -> URI of a new Lance dataset: doc_id, title, text; several fragments."""

    def write(n: int = 300, seed: int = 0) -> str:
        uri = str(tmp_path / f"corpus-{n}-{seed}.lance")
        table = pa.Table.from_pylist(documents(n, seed))
        lance.write_dataset(
            table, uri, enable_stable_row_ids=True, max_rows_per_file=_FRAGMENT_ROWS
        )
        return uri

    return write


@pytest.fixture
def eval_folder(tmp_path: Path) -> Callable[..., str]:
    """eval_folder(source, queries=48) -> BEIR folder: titles of that many documents, each judged.

    The gate passes nothing below 20 queries.
    """

    def write(source: str, queries: int = 48) -> str:
        folder = tmp_path / f"judged-{Path(source).stem}-{queries}"
        (folder / "qrels").mkdir(parents=True)
        rows = lance.dataset(source).to_table(columns=["doc_id", "title"]).to_pylist()
        judged = random.Random(0).sample(rows, queries)
        lines = [json.dumps({"_id": f"q-{r['doc_id']}", "text": r["title"]}) for r in judged]
        (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
        qrels = [
            "query-id\tcorpus-id\tscore",
            *(f"q-{r['doc_id']}\t{r['doc_id']}\t1" for r in judged),
        ]
        (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n")
        return str(folder)

    return write


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., str]:
    """config_file(source, encoder={...}, storage={...}, ...) -> YAML; sections merge over small ones."""

    def write(source: str, /, name: str = "reembed.yaml", **sections: Any) -> str:
        settings: dict[str, Any] = {
            "alias": "passages",
            "source": {"uri": source},
            "encoder": {"model": "hashing:64"},
            "embed": {"unit_documents": 64},
            "storage": {"root": str(tmp_path / "root")},
        }
        for section, values in sections.items():
            merged = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
            settings[section] = merged
        file = tmp_path / name
        file.write_text(yaml.safe_dump(settings))
        return str(file)

    return write


@pytest.fixture
def make_config(config_file: Callable[..., str]) -> Callable[..., Config]:
    """make_config(source, encoder={...}, ...) -> the loaded config; as config_file."""

    def make(source: str, /, **sections: Any) -> Config:
        return load([config_file(source, **sections)], [])[0]

    return make


@dataclass(frozen=True)
class Bucket:
    """An empty S3 bucket and the settings to reach it; the keys are in the environment."""

    uri: str
    options: dict[str, str]


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto server on the loopback, for all tests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def bucket(s3_endpoint: str) -> Bucket:
    name = f"b-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{s3_endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    options = {"aws_endpoint": s3_endpoint, "aws_region": "us-east-1", "allow_http": "true"}
    return Bucket(f"s3://{name}", options)


class Quiet:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def stages(self) -> list[str]:
        """Names of what was heard, in order."""
        return [event.stage for event in self.events]

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def said(self) -> list[str]:
        """The words of steps and notices, in order."""
        return [e.what for e in self.events if isinstance(e, Working | Notice)]


@pytest.fixture
def quiet() -> Quiet:
    return Quiet()


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One Ray of 4 logical CPUs for all tests; `cluster.connected` uses it."""
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


class Verbs:
    """The command line: cli("status", "-c", file) here, cli.process(...) as its own process."""

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        """The JSON a verb prints on stdout; it must end with exit code `code`."""
        result = CliRunner().invoke(reembed_cli, [*arguments, "--json"])
        said = f"{arguments} ended with {result.exit_code}:\n{result.output}"
        assert result.exit_code == code, said
        return json.loads(result.stdout)

    def process(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """A finished `reembed` process, with these variables set on top of the environment."""
        return subprocess.run(
            self.command(*arguments),
            env=os.environ | env,
            capture_output=True,
            text=True,
            check=False,
        )

    @staticmethod
    def command(*arguments: str) -> list[str]:
        """What to start for a `reembed` process."""
        return [str(Path(sys.executable).with_name("reembed")), *arguments]


@pytest.fixture
def cli() -> Verbs:
    return Verbs()
