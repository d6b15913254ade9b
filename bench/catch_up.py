"""What a catch-up costs after a small change, as a share of a rebuild without its model.

Documents of random words are built by a model that costs little (`hashing:64`), without Ray, in this
process. Then `--shares` of them, chosen at random, get another text (nine in ten) or are deleted. Two
copies of the built release catch up: one by the files that changed, one by comparing every row, since the
version it was built from is cleaned away first. CPU seconds are those of this process, user and system, less
those of the model (`model_s` of the receipts); threads of FAISS that wait for each other sleep, so that a
loaded machine does not make the rebuild look dear. `bytes_rewritten` are the new data and deletion files of the
table, new vectors included, as a share of the table's bytes before.

Afterwards the table is compared with the source here, by other code: every id once, with the digest of its text,
and the vector of the newest text by the model. Exits 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # Inline
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "catch_up"
_WORDS = 8
_STEPS = ("embed_documents", "restage_rows", "seal", "verify_rows", "register")
TARGETS = {
    "share_of_rebuild_0.1pct": 0.02,
    "share_of_rebuild_1pct": 0.10,
    "bytes_rewritten_1pct": 0.03,
}


def main() -> None:
    args = _arguments()
    os.environ["OMP_WAIT_POLICY"] = "passive"  # read when FAISS is loaded
    with common.workdir(args) as folder:
        figures = measure(args, folder)
    met = {key: figures[key] <= most for key, most in TARGETS.items() if key in figures}
    common.say(f"exact: {figures['exact']}; targets met: {met}")
    common.finish(NAME, args, {**figures, "targets": TARGETS, "met": met})
    sys.exit(0 if figures["exact"] else 1)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.set_defaults(model="hashing:64")
    parser.add_argument("--documents", type=int, default=1_000_000, help="[%(default)s]")
    parser.add_argument("--unit-documents", type=int, default=16_384, help="[%(default)s]")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.001, 0.01])
    return common.parse(parser)


def measure(args: argparse.Namespace, folder: Path) -> common.Figures:
    """The rebuild, then each share by files and by comparison."""
    from inline import Inline, Silent

    from reembed.config.settings import load
    from reembed.strategies.catch_up import catch_up
    from reembed.strategies.full_rebuild import full_rebuild

    source = common.random_documents(folder / "documents.lance", args.documents, _WORDS)
    base = {
        "source": {"text": "text"},
        "embed": {"unit_documents": args.unit_documents},
        "index": {"ann_recall": 0.9},  # vectors of random words are nearly uniform: .95 at most
    }
    configs = {
        how: load([str(common.write_config(folder, how, source, args, **base))], [])[0]
        for how in ("delta", "compare")
    }
    timed = Timed()
    release = timed.run(partial(full_rebuild, configs["delta"], Silent(), executor=Inline()))
    root = folder / "delta"
    rebuild = timed.figures(root, release.id)
    common.say(f"rebuild of {args.documents:,}: {rebuild}")
    shutil.copytree(root, folder / "compare")
    releases = dict.fromkeys(configs, release)
    figures: common.Figures = {"documents": args.documents, "rebuild": rebuild, "exact": True}
    for share in args.shares:
        change(source, args.documents, share)
        name = f"{share * 100:g}pct"
        for how, config in configs.items():
            if how == "compare":
                forget_history(source)
            before = files_of(folder / how, releases[how])
            started = releases[how]
            grown = timed.run(partial(catch_up, config, started, Silent(), executor=Inline()))
            found = timed.figures(folder / how, grown.id)
            found["share_of_rebuild"] = round(found["cpu_s"] / rebuild["cpu_s"], 4)
            found["bytes_rewritten"] = rewritten(before, files_of(folder / how, grown))
            found["exact"] = exact(source, folder / how, grown, config)
            figures["exact"] &= found["exact"]
            figures[f"{how}_{name}"] = found
            releases[how] = grown
            common.say(f"{name} by {how}: {found}")
        figures[f"share_of_rebuild_{name}"] = figures[f"delta_{name}"]["share_of_rebuild"]
        figures[f"share_of_rebuild_{name}_compared"] = figures[f"compare_{name}"][
            "share_of_rebuild"
        ]
        figures[f"bytes_rewritten_{name}"] = figures[f"delta_{name}"]["bytes_rewritten"]
    return figures


class Timed:
    """CPU seconds of a strategy, and of each of its steps."""

    def __init__(self) -> None:
        from reembed.strategies import catch_up, catch_up_plan, full_rebuild, steps

        self.steps: dict[str, float] = {}
        self.cpu_s = 0.0
        for module, names in (
            (steps, _STEPS),
            (catch_up_plan, ("changes_of",)),
            (catch_up, ("build_index",)),
            (full_rebuild, ("build_index",)),
        ):
            for name in names:
                setattr(module, name, self._timed(name, getattr(module, name)))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **named)
            finally:
                spent = time.process_time() - started
                self.steps[name] = round(self.steps.get(name, 0.0) + spent, 3)

        return timed

    def run(self, function: Callable[[], Any]) -> Any:
        self.steps, started = {}, time.process_time()
        result = function()
        self.cpu_s = time.process_time() - started
        return result

    def figures(self, root: Path, run_id: str) -> common.Figures:
        """CPU seconds of the last run without its model, and of its steps with it."""
        from reembed.catalog.runs import Run
        from reembed.store.storage import Storage

        receipts = Run(Storage.open(str(root)), run_id).receipts()
        model_s = sum(r.stats.model_s for r in receipts if r.stats)
        return {
            "cpu_s": round(self.cpu_s - model_s, 3),
            "model_s": round(model_s, 3),
            "steps_cpu_s": dict(self.steps),
        }


def change(source: Path, documents: int, share: float) -> None:
    """Give random documents another text, and delete one in ten of them."""
    import lance
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    dataset = lance.dataset(str(source))
    there = np.array(dataset.to_table(columns=["_id"])["_id"].to_pylist())
    chosen = np.random.default_rng(int(share * 1e6)).choice(
        there, int(documents * share), replace=False
    )
    cut = max(1, len(chosen) // 10)
    gone, updated = chosen[:cut], chosen[cut:]
    texts = [f"another text of {name} after {share}" for name in updated]
    rows = pa.table({"_id": updated.tolist(), "text": texts})
    dataset.merge_insert("_id").when_matched_update_all().execute(rows)
    lance.dataset(str(source)).delete(pc.field("_id").isin(gone.tolist()))


def forget_history(source: Path) -> None:
    """Clean all versions of the source away but the newest."""
    import lance

    dataset = lance.dataset(str(source))
    for tag in dataset.tags.list():
        dataset.tags.delete(tag)
    dataset.cleanup_old_versions(older_than=timedelta(microseconds=1), delete_unverified=True)


def files_of(root: Path, release: Any) -> dict[str, int]:
    """The sizes of the files of a release's table."""
    from reembed.store.storage import Storage
    from reembed.table import provenance

    sealed = provenance.require_sealed(Storage.open(str(root)), release)
    return {name: proof.size_bytes for name, proof in sealed.files.items()}


def rewritten(before: dict[str, int], after: dict[str, int]) -> float:
    """The bytes of new files as a share of those that the table had, vectors of new texts included."""
    new = sum(size for name, size in after.items() if name not in before)
    return round(new / sum(before.values()), 4)


def exact(source: Path, root: Path, release: Any, config: Any) -> bool:
    """Whether table and index hold every document of the source once, as its newest text says."""
    import lance
    import numpy as np
    import pyarrow.compute as pc

    from reembed import encoders
    from reembed.catalog.index_manifest import IndexManifest, read_manifest
    from reembed.index import files as index_files
    from reembed.store.storage import Storage

    there = lance.dataset(str(source)).to_table().to_pydict()
    text = dict(zip(there["_id"], there["text"], strict=True))
    table = lance.dataset(str(root / release.table), version=release.table_version)
    rows = table.scanner(columns=["doc_id", "text_hash"], with_row_id=True).to_table().to_pydict()
    held = dict(zip(rows["doc_id"], rows["text_hash"], strict=True))
    digest = {n: hashlib.blake2b(t.encode(), digest_size=16).digest() for n, t in text.items()}
    storage = Storage.open(str(root))
    manifest = read_manifest(storage, release.index, release.index_sha256)
    assert isinstance(manifest, IndexManifest)
    ids = index_files.load(storage, release.index, manifest).ids()
    indexed = sorted(zip(ids["row_id"].to_pylist(), ids["doc_id"].to_pylist(), strict=True))
    newest = [n for n, t in text.items() if t.startswith("another")]
    sample = newest[:: max(1, len(newest) // 500)]
    chosen = pc.field("doc_id").isin(sample)
    found = table.to_table(columns=["doc_id", "vector"], filter=chosen).to_pydict()
    stored = dict(zip(found["doc_id"], found["vector"], strict=True))
    model = encoders.load_encoder(config.encoder)
    again = model.embed_documents([text[n] for n in sample]).vectors
    same = np.allclose(again, np.array([stored[n] for n in sample], np.float32), atol=1e-5)
    return (
        len(rows["doc_id"]) == len(held)
        and held == digest
        and indexed == sorted(zip(rows["_rowid"], rows["doc_id"], strict=True))
        and bool(same)
    )


if __name__ == "__main__":
    main()
