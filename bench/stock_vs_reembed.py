"""The same rows and the same crash: Ray Data checkpointing with lance-ray's sink, and reembed.

Rows kept by each after the driver was killed (SIGKILL) while rows were being written, and the same
command was started again until it said success. Both embed the same 400 documents of the same Lance
dataset by the same encoder with one actor and write 50 rows at a time; each driver is killed the
moment that its own records (checkpoints there, receipts here) say that 150 rows or more are done,
long before anything is committed. A start that takes longer than `--patience` seconds is killed and
counted as hung.

The stock pipeline is configured as its documentation says, nothing else is changed:

    context.checkpoint_config = CheckpointConfig(id_column="_id", checkpoint_path=PATH)
    documents = lance_ray.read_lance(SOURCE, columns=["_id", "text"])
    vectors = documents.map_batches(Embed, batch_size=50, compute=ActorPoolStrategy(size=1))
    lance_ray.write_lance(vectors, TABLE, schema=SCHEMA, mode="append",
                          min_rows_per_file=50, max_rows_per_file=50)

* `mode="append"` to a table that is there, empty: what a crashed job had committed would be kept.
* `min_rows_per_file=50`, for 400 rows to take eight write tasks; by default a task takes a million
  rows, and what is shown here on 400 rows happens to tables of many millions.
* Eight logical CPUs for both: checkpointing adds filter actors when it resumes, and on few CPUs they
  leave nothing for the job, which then waits (`--cpus 2` shows it).

Rows are checkpointed when a write *task* ends, the files it wrote are committed when the *job* ends:
between the two a crash leaves rows that are "done" and in no table (ray issue 59871). Needs
lance-ray: pip install -e ".[bench]".
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "stock_vs_reembed"
_POLL_S = 0.005
_MOST_STARTS = 5
_SUCCESS = "success"


def main() -> None:
    args = _arguments()
    if args.stock:
        stock(args.stock, args)
        return
    if importlib.util.find_spec("lance_ray") is None:
        raise SystemExit('lance-ray is not installed: pip install -e ".[bench]"')
    with common.workdir(args) as folder, common.Reembed() as reembed:
        figures = measure(args, folder, reembed)
    for name in ("stock", "reembed"):
        common.say(f"{name}: {figures[f'{name}_rows']} of {figures['rows_in']} rows are there")
    common.finish(NAME, args, figures)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.set_defaults(model="hashing:64")
    parser.add_argument("--rows", type=int, default=400, help="[%(default)s]")
    parser.add_argument("--rows-per-unit", type=int, default=50, help="[%(default)s]")
    parser.add_argument("--words", type=int, default=4_000, help="of a document [%(default)s]")
    parser.add_argument(
        "--kill-at", type=int, default=150, help="rows that are done by then [%(default)s]"
    )
    parser.add_argument("--cpus", type=int, default=8, help="logical ones [%(default)s]")
    parser.add_argument("--patience", type=float, default=180, help="of one start [%(default)s]")
    parser.add_argument("--stock", type=Path, help=argparse.SUPPRESS)  # one start of that pipeline
    return common.parse(parser)


def measure(args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> common.Figures:
    """Both pipelines through the same crash."""
    source = write_documents(folder / "documents.lance", args.rows, args.words)
    return {
        "rows_in": args.rows,
        "rows_per_unit": args.rows_per_unit,
        "logical_cpus": args.cpus,
        **_measure_stock(args, folder, reembed),
        **_measure_reembed(args, folder, source, reembed),
    }


def write_documents(to: Path, rows: int, words: int) -> Path:
    import lance
    import pyarrow as pa

    chance = random.Random(0)
    known = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(20_000)]
    texts = [" ".join(chance.choices(known, k=words)) for _ in range(rows)]
    ids = [f"d{n}" for n in range(rows)]
    lance.write_dataset(pa.table({"_id": ids, "text": texts}), str(to), enable_stable_row_ids=True)
    return to


# --- starts ---


def crash_and_resume(
    name: str, start: Callable[[], subprocess.Popen[str]], done: Callable[[], int], args: Any
) -> common.Figures:
    """Kill the first start once enough rows are done; start again until it says success."""
    said, seconds = [], []
    for number in range(_MOST_STARTS):
        began = time.monotonic()
        word = _one_start(start(), done if number == 0 else lambda: -1, args)
        seconds.append(round(time.monotonic() - began, 1))
        said.append(word)
        common.say(f"{name}, start {number + 1}: {word}; {done()} rows are done by its records")
        if word == _SUCCESS:
            break
    if said[0] == _SUCCESS:
        raise SystemExit(f"{name} ended before it could be killed: give --words more")
    return {
        f"{name}_starts": len(said),
        f"{name}_said": said,
        f"{name}_seconds": seconds,
    }


def _one_start(process: subprocess.Popen[str], done: Callable[[], int], args: Any) -> str:
    """How it ended, in words."""
    deadline = time.monotonic() + args.patience
    while process.poll() is None:
        if (rows := done()) >= args.kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return f"killed with {rows} rows done"
        if time.monotonic() > deadline:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return f"hung: killed after {args.patience:.0f} s"
        time.sleep(_POLL_S)
    return f"failed, exit code {process.returncode}" if process.returncode else _SUCCESS


def _rows(table: Path, version: int | None = None) -> tuple[int, int]:
    """Rows of a table, and how many ids they have."""
    import lance

    column = "_id" if version is None else "doc_id"
    ids = lance.dataset(str(table), version=version).to_table(columns=[column])[column].to_pylist()
    return len(ids), len(set(ids))


# --- reembed ---


def _measure_reembed(
    args: argparse.Namespace, folder: Path, source: Path, reembed: common.Reembed
) -> common.Figures:
    config = common.write_config(
        folder,
        "reembed",
        source,
        args,
        source={"text": "text"},
        embed={"unit_documents": args.rows_per_unit},
        ray={"num_cpus": args.cpus},
    )
    root = folder / "reembed"

    def start() -> subprocess.Popen[str]:
        return reembed.start("run", "-c", str(config), stdout=subprocess.DEVNULL)

    def done() -> int:
        return len(list(root.glob("runs/*/units/*.json"))) * int(args.rows_per_unit)

    figures = crash_and_resume("reembed", start, done, args)
    release = reembed("run", "-c", str(config))  # already done: what it ended in
    rows, ids = _rows(root / release["table"], release["table_version"])
    return {**figures, "reembed_rows": rows, "reembed_distinct": ids}


# --- the stock pipeline ---


def _measure_stock(
    args: argparse.Namespace, folder: Path, reembed: common.Reembed
) -> common.Figures:
    import lance

    table, checkpoints = folder / "stock.lance", folder / "checkpoints"
    lance.write_dataset(_schema(args).empty_table(), str(table), mode="create")
    options = {"model": args.model, "rows-per-unit": args.rows_per_unit, "cpus": args.cpus}
    command = [sys.executable, __file__, *(f"--{k}={v}" for k, v in options.items())]
    command.append(f"--stock={folder}")
    errors = folder / "stock.log"

    def start() -> subprocess.Popen[str]:
        with errors.open("a") as log:
            return subprocess.Popen(
                command, env=reembed.env, text=True, stdout=subprocess.DEVNULL, stderr=log
            )

    figures = crash_and_resume("stock", start, lambda: _checkpointed(checkpoints), args)
    rows, ids = _rows(table)
    if figures["stock_said"][-1] != _SUCCESS:
        common.say(errors.read_text()[-2_000:])
    return {**figures, "stock_rows": rows, "stock_distinct": ids}


def _checkpointed(checkpoints: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    for file in checkpoints.rglob("*.parquet"):
        with contextlib.suppress(OSError, pa.ArrowInvalid):  # half written, or gone
            rows += int(pq.read_metadata(file).num_rows)
    return rows


def _schema(args: argparse.Namespace) -> Any:
    import pyarrow as pa

    width = int(args.model.partition(":")[2])
    vector = pa.list_(pa.float32(), width)
    return pa.schema([("_id", pa.string()), ("vector", vector)])


class Embed:
    """An actor of the stock pipeline: ids and texts to ids and vectors, by reembed's encoder."""

    def __init__(self, model: str, schema: Any) -> None:
        from reembed.config.settings import EncoderConfig
        from reembed.encoders import load_encoder

        self._encoder, self._schema = load_encoder(EncoderConfig(model=model)), schema

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        texts = batch["text"].to_pylist()
        vectors = self._encoder.embed_documents(texts).vectors
        return pa.table(
            [batch["_id"], pa.array(list(vectors), self._schema.field(1).type)], self._schema
        )


def stock(folder: Path, args: argparse.Namespace) -> None:
    """One start of the stock pipeline."""
    import lance_ray
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.checkpoint import CheckpointConfig

    ray.init(address="local", num_cpus=args.cpus, include_dashboard=False)
    context = DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="_id", checkpoint_path=str(folder / "checkpoints")
    )
    documents = lance_ray.read_lance(str(folder / "documents.lance"), columns=["_id", "text"])
    vectors = documents.map_batches(
        Embed,
        fn_constructor_args=(args.model, _schema(args)),
        batch_size=args.rows_per_unit,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=1),
    )
    lance_ray.write_lance(
        vectors,
        str(folder / "stock.lance"),
        schema=_schema(args),
        mode="append",
        min_rows_per_file=args.rows_per_unit,
        max_rows_per_file=args.rows_per_unit,
    )
    print(_SUCCESS)


if __name__ == "__main__":
    main()
