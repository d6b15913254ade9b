"""One bit of one byte of one artefact, at random: it must be noticed before anything is served.

What is flipped: data files and the manifest of the live table version, its index, and every record
of ours that the version, the release and the alias rest on. Not flipped, since nothing is read from
them: transaction files of Lance (their property is only compared), events, progress, reports.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from conftest import documents
from inline import Inline, Silent
from releases import index_file

from reembed.catalog.releases import Catalog
from reembed.catalog.reports import VerifyReport
from reembed.catalog.runs import Run
from reembed.config.settings import Config
from reembed.errors import IntegrityError
from reembed.lifecycle import verification
from reembed.lifecycle.promote import promote
from reembed.store.records import decode
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


def run(flips: int, seed: int, folder: Path) -> dict[str, Any]:
    """Flip, look, put back; which flips were not noticed."""
    started, chance = time.monotonic(), random.Random(seed)
    catalog, kinds = _built(folder)
    (verified,) = kinds["verify"]
    report = verified.read_bytes()
    counts, missed = Counter[str](), []
    for _ in range(flips):
        kind = chance.choice(sorted(kinds))
        file = chance.choice(kinds[kind])
        kept = file.read_bytes()
        body = bytearray(kept)
        place, bit = chance.randrange(len(body)), chance.randrange(8)
        body[place] ^= 1 << bit
        file.write_bytes(body)
        counts[kind] += 1
        if not _noticed(catalog):
            missed.append(f"{kind} {file.name} byte {place} bit {bit}")
        file.write_bytes(kept)
        verified.write_bytes(report)  # what fails to verify is remembered
    assert not _noticed(catalog), "it is as it was, and something is noticed"
    return {
        "bit_flips": flips,
        "bit_flips_found": flips - len(missed),
        "by_kind": dict(sorted(counts.items())),
        "violations": missed,
        "seconds": round(time.monotonic() - started, 1),
    }


def _built(folder: Path) -> tuple[Catalog, dict[str, list[Path]]]:
    """A live release that was caught up once, and its files by kind."""
    uri = str(folder / "source.lance")
    rows = pa.Table.from_pylist(documents(60, 0))
    lance.write_dataset(rows, uri, enable_stable_row_ids=True, max_rows_per_file=20)
    config = Config(
        alias="docs",
        source={"uri": uri},
        encoder={"model": "hashing:16"},
        embed={"unit_documents": 10},
        storage={"root": str(folder / "root")},
    )
    catalog = Catalog(Storage.open(config.storage.root), "docs")
    first = full_rebuild(config, Silent(), executor=Inline())
    promote(catalog, first.id, initial_reason="test")
    lance.dataset(uri).update({"text": "'another text'"}, where="doc_id < 'd00004'")
    live = catch_up(config, first, Silent(), executor=Inline())
    promote(catalog, live.id, force_reason="test")
    root = folder / "root"
    table, run_folder = root / live.table, root / "runs" / live.id
    used = lance.dataset(str(table), version=live.table_version).get_fragments()
    return catalog, {
        "data": [table / "data" / f.path for m in used for f in m.data_files()],
        "manifest": [table / "_versions" / live.table_manifest.name],
        "index": [root / index_file(catalog.storage, live)],
        "index ids": [root / index_file(catalog.storage, live, "arrow")],
        "index manifest": [root / live.index / f"{live.index_sha256}.json"],
        "sealed": [run_folder / "sealed.json"],
        "plan": [run_folder / "plan.json"],
        "receipt": sorted((run_folder / "units").iterdir()),
        "release": [root / "releases" / "docs" / f"{live.id}.json"],
        "alias": sorted((root / "aliases" / "docs").iterdir()),
        "verify": [run_folder / "verify.json"],
    }


def _noticed(catalog: Catalog) -> bool:
    """Whether reading everything that the live release rests on says that something is wrong."""
    try:
        release = catalog.log()[-1].release
        if catalog.release(release.id) != release:
            return True
        run = Run(catalog.storage, release.id)
        run.plan()
        run.receipts()
        if not decode(VerifyReport, catalog.storage.read(run.path("verify.json"))).passed:
            return True
        report = verification.verify_release(
            catalog, release.id, level=2, sample=0, resume=False, stall_s=60
        )
    except IntegrityError:
        return True
    return not report.passed
