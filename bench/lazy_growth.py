"""How the cost of a lazy migration's batches grows: with the batches that came before, and with the source.

`many`: 200 batches of 50 documents each, over 20,000 documents. For each tenth of them: the median CPU seconds of a
batch, of a refresh of a process that is open, and of opening the pair; at the end the fragments of the members and of
the new side's table, and the segments of its index. `by_source`: one batch of 100 documents at several sizes of the
source, after one that took in 1,000 (`first`): the source as it was (`same`), after 100 documents came to it
(`added`), and after 100 were changed, of which half are migrated (`changed`). All without Ray, by a model that costs
nothing (`hashing:64`), in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # Inline
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "lazy_growth"
DOCUMENTS, BATCHES, EACH = 20_000, 200, 50
SIZES, ONE, BEFORE = (100_000, 1_000_000), 100, 1_000
_WORDS = 8


def main() -> None:
    args = _arguments()
    figures: common.Figures = {"documents": args.documents, "batches": args.batches, "each": EACH}
    with common.workdir(args) as folder:
        if args.batches:
            figures["many"] = many(folder / "many", args.documents, args.batches)
        figures["by_source"] = {
            str(size): by_source(folder / str(size), size) for size in args.sizes
        }
    common.finish(NAME, args, figures)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="%(default)s")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="[%(default)s]")
    parser.add_argument("--batches", type=int, default=BATCHES, help="[%(default)s]")
    return common.parse(parser)


class Place:
    """A corpus, a live release of it, and a lazy migration."""

    def __init__(self, folder: Path, documents: int) -> None:
        from inline import Inline, Silent

        from reembed.catalog.releases import Catalog
        from reembed.lifecycle.promote import promote
        from reembed.store.storage import Storage
        from reembed.strategies import lazy
        from reembed.strategies.full_rebuild import full_rebuild

        self.folder, self.documents = folder, documents
        folder.mkdir(parents=True)
        common.say(f"building a release of {documents:,} documents")
        common.random_documents(self.uri, documents, _WORDS)
        release = full_rebuild(self.config(32), Silent(), executor=Inline())
        self.catalog = Catalog(Storage.open(str(folder / "root")), "bench")
        promote(self.catalog, release.id, initial_reason="a measurement")
        self.plan = lazy.start(
            self.catalog, self.config(64), "a measurement", Silent(), executor=Inline()
        ).plan
        self.ids = self._dataset().to_table(columns=["_id"])["_id"].to_pylist()

    @property
    def uri(self) -> Path:
        return self.folder / "documents.lance"

    def _dataset(self) -> Any:
        import lance

        return lance.dataset(str(self.uri))

    def config(self, dim: int) -> Any:
        from reembed.config.settings import Config

        return Config.model_validate(
            {
                "alias": "bench",
                "source": {"uri": str(self.uri), "id_column": "_id", "text": "text"},
                "encoder": {"model": f"hashing:{dim}"},
                "index": {"factory": "Flat", "device": "cpu"},
                "storage": {"root": str(self.folder / "root")},
                "strategy": "lazy",
            }
        )

    def batch(self, doc_ids: list[Any]) -> float:
        """Queue documents and migrate them; return its seconds."""
        from inline import Inline, Silent

        from reembed.catalog.lazy_queue import Queue
        from reembed.strategies import lazy

        Queue(self.catalog.storage, self.plan).put(doc_ids)
        began = common.cpu_s()
        lazy.batch(self.catalog, self.config(64), 10_000, Silent(), executor=Inline())
        return common.cpu_s() - began

    def add(self, count: int) -> None:
        """Documents come to the source."""
        import lance

        dataset = self._dataset()
        rows = dataset.take(list(range(count))).to_pylist()
        new = [{**row, "_id": f"new-{n}"} for n, row in enumerate(rows)]
        import pyarrow as pa

        lance.write_dataset(pa.Table.from_pylist(new, dataset.schema), str(self.uri), mode="append")

    def change(self, doc_ids: list[Any]) -> None:
        """Documents get another text."""
        import pyarrow as pa

        dataset = self._dataset()
        rows = [
            {n: d if n == "_id" else "another text" for n in dataset.schema.names} for d in doc_ids
        ]
        merge = dataset.merge_insert("_id").when_matched_update_all()
        merge.execute(pa.Table.from_pylist(rows, dataset.schema))

    def open_s(self) -> float:
        """Seconds to open the pair in this process."""
        import reembed

        began = common.cpu_s()
        with reembed.open(str(self.folder / "root"), "bench"):
            return common.cpu_s() - began

    def parts(self) -> common.Figures:
        """How many parts the new side is made of."""
        import lance

        from reembed.catalog.index_manifest import read_manifest
        from reembed.catalog.releases import Catalog

        storage = self.catalog.storage
        side = Catalog(storage, self.plan.side).require_live().release
        table = lance.dataset(storage.uri(side.table), version=side.table_version)
        members = lance.dataset(storage.uri(self.plan.members))
        manifest: Any = read_manifest(storage, side.index, side.index_sha256)
        return {
            "migrated": side.rows,
            "member_fragments": len(members.get_fragments()),
            "member_versions": len(members.versions()),
            "table_fragments": len(table.get_fragments()),
            "index_segments": len(manifest.segments),
            "files": len(storage.objects("")),
        }


def many(folder: Path, documents: int, batches: int) -> common.Figures:
    """Many small batches."""
    place = Place(folder, documents)
    took: list[float] = []
    opened: list[float] = []
    refreshed: list[float] = []
    import reembed

    tenth = max(1, batches // 10)
    with reembed.open(str(folder / "root"), "bench") as index:
        for n in range(batches):
            took.append(place.batch(place.ids[n * EACH : (n + 1) * EACH]))
            began = common.cpu_s()
            index.refresh()
            refreshed.append(common.cpu_s() - began)
            if (n + 1) % tenth == 0:
                opened.append(statistics.median(place.open_s() for _ in range(3)))
                mid, ref = statistics.median(took[-tenth:]), statistics.median(refreshed[-tenth:])
                common.say(
                    f"{n + 1} batches: {mid:.3f} s, refresh {ref:.3f} s, open {opened[-1]:.3f} s {place.parts()}"
                )
    groups = [slice(n, n + tenth) for n in range(0, batches, tenth)]
    return {
        "batch_s": [round(statistics.median(took[g]), 3) for g in groups],
        "refresh_s": [round(statistics.median(refreshed[g]), 4) for g in groups],
        "open_s": [round(s, 3) for s in opened],
        **place.parts(),
    }


def by_source(folder: Path, size: int) -> common.Figures:
    """One batch beside a source of some size."""
    place = Place(folder, size)
    ids = place.ids[:: max(1, size // 10_000)]
    figures: common.Figures = {"first": place.batch(ids[:BEFORE])}
    start = BEFORE
    for name in ("same", "added", "changed"):
        if name == "added":
            place.add(ONE)
        elif name == "changed":
            place.change(ids[BEFORE - ONE // 2 : BEFORE] + ids[-ONE // 2 :])
        figures[name] = place.batch(ids[start : start + ONE])
        start += ONE
    figures["open"] = statistics.median(place.open_s() for _ in range(3))
    import reembed

    with reembed.open(str(folder / "root"), "bench") as index:
        place.batch(ids[start : start + ONE])
        began = common.cpu_s()
        index.refresh()
        figures["refresh"] = common.cpu_s() - began
    figures = {name: round(seconds, 3) for name, seconds in figures.items()}
    common.say(f"{size:,}: {figures}")
    return figures


if __name__ == "__main__":
    main()
