"""What one model replica makes of its time when its records go to an object store.

The replica runs without Ray, and its next units are always there: what is left is what it does itself. Its
model sleeps `--sleep-s` for a unit, as a GPU does from the host's side. Records go to an S3 emulator on the
loopback, each request `--latency-ms` later than it would answer.

`model_busy_s3` is the share of the time in which the model works, from the first unit's start to the last
one's end, with as many threads as an actor has; `one_thread_busy_s3` is the same with one thread, so that
the model waits for its records and for the work around it. Both are the medians of rounds in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the store
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common
from reembed.catalog.plan import EmbedRange
from reembed.catalog.releases import Catalog
from reembed.config.settings import Config
from reembed.encoders.base import Vectors
from reembed.encoders.hashing import HashingEncoder
from reembed.encoders.tokens import Tokens
from reembed.engine.documents import read, tokenized, tokenizer_of
from reembed.engine.executor import EmbedJob
from reembed.engine.pipeline import AT_ONCE
from reembed.engine.ray_executor import RayExecutor
from reembed.engine.turns import CALLER, ModelThread
from reembed.engine.worker import UnitEmbedder, stats_of
from reembed.events import ignore
from reembed.store.storage import Storage
from reembed.strategies.rebuild_plan import Wanted, choose_run, make_plan
from reembed.table import write as table

NAME = "replica"
TARGET = 0.95
_BUCKET = "bench"
_ROWS = 64
Unit = tuple[str, pa.Table]


def main() -> None:
    from crash.s3_faults import KEYS, Store

    args = _arguments()
    os.environ |= KEYS
    busy: dict[int, list[float]] = {AT_ONCE: [], 1: []}
    with common.workdir(args) as folder, Store() as store:
        store.make_bucket(_BUCKET)
        for number in range(args.rounds):
            for threads, shares in busy.items():
                job, units = planned(args, folder / f"{threads}-{number}", store.endpoint)
                shares.append(model_busy(args, job, units, threads))
                common.say(f"{threads} threads: the model is busy {shares[-1]:.1%} of the time")
    figures = {
        "model_busy_s3": statistics.median(busy[AT_ONCE]),
        "one_thread_busy_s3": statistics.median(busy[1]),
        "threads": AT_ONCE,
        "rounds": busy[AT_ONCE],
        "rounds_one_thread": busy[1],
        "sleep_s": args.sleep_s,
        "latency_ms": args.latency_ms,
        "target": TARGET,
        "passed": statistics.median(busy[AT_ONCE]) >= TARGET,
    }
    common.finish(NAME, args, figures)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--sleep-s", type=float, default=0.1, help="of a unit [%(default)s]")
    parser.add_argument("--latency-ms", type=float, default=25, help="of a request [%(default)s]")
    parser.add_argument("--units", type=int, default=100, help="a round [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    return common.parse(parser)


def planned(args: argparse.Namespace, folder: Path, endpoint: str) -> tuple[EmbedJob, list[Unit]]:
    """A planned run below a root on S3, and its units as an actor takes them."""
    folder.mkdir()
    source = common.random_documents(folder / "s.lance", args.units * _ROWS, 20)
    config = Config.model_validate(
        {
            "alias": "bench",
            "source": {"uri": str(source), "id_column": "_id", "options": {}},
            "encoder": {"model": "hashing:64"},
            "embed": {"unit_documents": _ROWS, "gpus_per_actor": 1},
            "storage": {
                "root": f"s3://{_BUCKET}/{folder.name}",
                "options": {
                    "aws_endpoint": endpoint, "aws_region": "us-east-1", "allow_http": "true"
                },
            },
        }
    )  # fmt: skip
    storage = Storage.open(config.storage.root, config.storage.options)
    wanted = Wanted.read(config, Catalog(storage, config.alias), ignore)
    run = choose_run(wanted, fresh=False)
    plan = make_plan(run, wanted, RayExecutor(), ignore)
    columns = table.schema(plan.space, *wanted.source.schema())
    job = EmbedJob(run, plan.without_units(), wanted.source, plan.encoder, config.embed, columns)
    assert plan.space.tokenizer_sha256 is not None
    tokenizer = tokenizer_of(job.encoder, plan.space.tokenizer_sha256)
    units = [u for u in plan.units if isinstance(u, EmbedRange)]
    return job, [(u.id, tokenized(read(job, u), tokenizer)) for u in units]


def model_busy(args: argparse.Namespace, job: EmbedJob, units: list[Unit], threads: int) -> float:
    """Share of the time from the first unit's start to the last one's end in which the model works."""
    plain, requests = HashingEncoder.embed, ("create", "write", "remove")

    def sleeping_model(self: HashingEncoder, tokens: Tokens) -> Vectors:
        time.sleep(args.sleep_s)
        return plain(self, tokens)

    def late(request: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*given: Any) -> Any:
            time.sleep(args.latency_ms / 1_000)
            return request(*given)

        return asked

    with ExitStack() as stack:
        replica = UnitEmbedder(job, turns=ModelThread() if threads > 1 else CALLER)
        patched = [(Storage, name, late(getattr(Storage, name))) for name in requests]
        for owner, name, value in [(HashingEncoder, "embed", sleeping_model), *patched]:
            stack.enter_context(mock.patch.object(owner, name, value))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        done = list(pool.map(lambda unit: replica.embed(*unit), units))
    stats = [stats_of(table) for table in done if table is not None]
    first = min(s.started_at for s in stats)
    last = max(s.started_at + s.embed_s for s in stats)
    return round(sum(s.model_s for s in stats) / (last - first), 3)


if __name__ == "__main__":
    main()
