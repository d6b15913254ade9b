"""How long promotion and rollback take, and whether a race of many loses one.

Two small real releases (`hashing:16`, built once without Ray) take turns: one is promoted, then the
alias is rolled back to the other, 200 times each, in this process, by the same functions as the
commands `promote` and `rollback` call; the commands add the start of a process and, before a
promotion, a last look at the source. Every promotion checks the release's receipts, hashes its index
and looks at every file of its table first. Once in a folder, once on an S3 emulator on the loopback
(moto), which answers in milliseconds where a real store takes tens.

The log grows by a record a step, so the first and the last 20 of the 200 are told apart.

Then 8 processes promote at the same moment, 200 times each: `lost` counts promotions that were
acknowledged and are not in the log, or are there as something else. Exits 1 when there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # Inline, and the race
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common
from reembed import promote
from reembed.catalog import Catalog, Release
from reembed.storage import Storage

NAME = "promote"
ALIAS = "raced"  # as the race of the tests calls it
_ENDS = 20
_BUCKET = "bench"


def main() -> None:
    args = _arguments()
    with common.workdir(args) as folder:
        built = build(folder, args.documents, args.model)
        common.say(f"{args.times} promotions and rollbacks in a folder")
        local = take_turns(copy(built, folder / "local"), args.times)
        common.say("the same on the S3 emulator")
        with s3_emulator() as options:
            s3 = take_turns(upload(built, options), args.times)
        common.say(f"a race of {args.rounds} rounds")
        raced = race(copy(built, folder / "race"), args.rounds)
    figures = {**local, **{f"s3_{k}": v for k, v in s3.items()}, **raced}
    common.say(f"{raced['lost']} of {raced['acknowledged']} acknowledged promotions are lost")
    figures["times"], figures["documents"] = args.times, args.documents
    common.finish(NAME, args, figures)
    sys.exit(1 if raced["lost"] else 0)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.set_defaults(model="hashing:16")
    parser.add_argument("--times", type=int, default=200, help="of each kind [%(default)s]")
    parser.add_argument("--rounds", type=int, default=200, help="of each process [%(default)s]")
    parser.add_argument("--documents", type=int, default=300, help="[%(default)s]")
    return common.parse(parser)


# --- releases ---


def build(folder: Path, documents: int, model: str) -> Path:
    """A root with two releases of the same documents, each with its own table version and index."""
    import lance
    import pyarrow as pa
    from inline import Inline, Silent

    from reembed.config import Config
    from reembed.strategies.full_rebuild import full_rebuild

    source = folder / "documents.lance"
    rows = {
        "doc_id": [f"d{n}" for n in range(documents)],
        "text": [f"text {n} of {n % 7}" for n in range(documents)],
    }
    lance.write_dataset(pa.table(rows), str(source), enable_stable_row_ids=True)
    config = Config.model_validate(
        {
            "alias": ALIAS,
            "source": {"uri": str(source)},
            "encoder": {"model": model},
            "storage": {"root": str(folder / "built")},
        }
    )
    for fresh in (False, True):
        full_rebuild(config, Silent(), fresh=fresh, executor=Inline())
    return folder / "built"


def copy(built: Path, to: Path) -> Catalog:
    """The releases in a root of their own; nothing promoted yet."""
    shutil.copytree(built, to, ignore=shutil.ignore_patterns("root.json"))
    return Catalog(Storage.open(str(to)), ALIAS)


def upload(built: Path, options: dict[str, str]) -> Catalog:
    """The same in a bucket."""
    import obstore

    storage = Storage.open(f"s3://{_BUCKET}/root", options)
    for file in sorted(p for p in built.rglob("*") if p.is_file() and p.name != "root.json"):
        obstore.put(storage.store, str(file.relative_to(built)), file.read_bytes())
    return Catalog(storage, ALIAS)


@contextlib.contextmanager
def s3_emulator() -> Iterator[dict[str, str]]:
    """A moto server on the loopback with one empty bucket; the settings to reach it."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        os.environ.pop(name, None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                request = urllib.request.Request(f"{endpoint}/{_BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=10).close()
                break
            time.sleep(0.1)
        yield {"aws_endpoint": endpoint, "aws_region": "us-east-1", "allow_http": "true"}
    finally:
        server.terminate()
        server.wait(10)


# --- taking turns ---


def take_turns(catalog: Catalog, times: int) -> common.Figures:
    """Promote one release and roll back to the other, again and again."""
    first, second = (release.id for release in catalog.releases())
    promote.promote(catalog, first)
    forward, back = [], []
    for _ in range(times):
        forward.append(_ms(lambda: promote.promote(catalog, second, force_reason="measured")))
        back.append(_ms(lambda: promote.rollback(catalog)))
    log = catalog.log()
    if len(log) != 2 * times + 1 or log[-1].release.id != first:
        raise SystemExit(f"after {times} turns the log has {len(log)} records")
    return {
        **_figures("promote", forward),
        **_figures("rollback", back),
        "generations": len(log),
        "read_log_ms": round(statistics.median(_ms(catalog.log) for _ in range(5)), 2),
    }


def _ms(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return (time.perf_counter() - started) * 1000


def _figures(name: str, times: list[float]) -> common.Figures:
    return {
        f"{name}_ms_p50": round(statistics.median(times), 2),
        f"{name}_ms_max": round(max(times), 2),
        f"{name}_ms_p50_first_{_ENDS}": round(statistics.median(times[:_ENDS]), 2),
        f"{name}_ms_p50_last_{_ENDS}": round(statistics.median(times[-_ENDS:]), 2),
    }


# --- the race ---


def race(catalog: Catalog, rounds: int) -> common.Figures:
    """Processes that promote at once, each its own two candidates in turn; what they were told."""
    from flow import test_promotion_race as racing

    release, *_ = catalog.releases()
    promote.promote(catalog, release.id)
    for racer in range(racing.PROCESSES):
        for letter in "ab":
            _register(catalog, release, f"r{racer}-{letter}")
    started = time.monotonic()
    said, codes = racing.race("promote", catalog.storage, rounds)
    seconds = time.monotonic() - started
    if any(codes):
        raise SystemExit(f"racers exited with {codes}")
    log = catalog.log()
    racing.assert_one_chain(log)
    there = {record.generation: record.token for record in log}
    wins = [s for s in said if "token" in s]
    lost = [w for w in wins if there.get(w["generation"]) != w["token"]]
    return {
        "processes": racing.PROCESSES,
        "rounds": rounds,
        "acknowledged": len(wins),
        "refused": sum("conflict" in s for s in said),
        "lost": len(lost),
        "unclaimed": len(log) - 1 - len(wins),
        "race_seconds": round(seconds, 1),
    }


def _register(catalog: Catalog, release: Release, name: str) -> None:
    """A candidate that shares the release's table and index."""
    catalog.register(replace(release, id=name, run_id=name))


if __name__ == "__main__":
    main()
