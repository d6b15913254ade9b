"""Build the index of one table version in shards: prepare, fill each shard, finish.

`prepare` trains an index on a sample and fixes which fragments go into which shard. `fill_shard` fills one, and
searches its vectors exactly for the queries in the same pass. `finish` merges what the shards found, chooses the
operating point and writes the manifest. Each is one task or less; no process holds more than a shard.

Each step ends with a create-only record, so that a build that was killed goes on where it was:

runs/RUN/index/BUILD/prepared.json     what all shards share: the trained index, the queries, the cut
runs/RUN/index/BUILD/shards/N.json     one filled shard: its files by sha256, its rows
runs/RUN/index/BUILD/SHA256.npz        queries, or what a shard has for them
indexes/RUN/                           the files of the index itself; see `catalog.index_manifest`

BUILD follows from the settings and queries, so that a build by others does not go on with these shards.
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import faiss

from reembed import faults
from reembed.catalog.index_manifest import IndexManifest, Segment, StoredFile
from reembed.config.settings import IndexConfig
from reembed.errors import IntegrityError
from reembed.index import files
from reembed.index.exact import VectorSource, check_vectors
from reembed.index.factories import finer
from reembed.index.fill import fill
from reembed.index.queries import checked_queries
from reembed.index.target import Target, better
from reembed.index.train import Device, factory_of, train
from reembed.index.tune import Measured, Tuned, choose, measure
from reembed.index.types import Float32
from reembed.space import sha256_of
from reembed.store.records import encode
from reembed.store.storage import Storage

T = TypeVar("T")

TUNING_DOCUMENTS = 200


@dataclass(frozen=True)
class Trained:
    """An index without vectors that learned the distribution of nearly the same vectors."""

    path: str
    """Folder of the index that it belongs to."""
    file: StoredFile
    rows_since: int
    """Rows that were embedded since it was trained, including those of the index to build."""


@dataclass(frozen=True)
class Build:
    """The index to build: of which table, by which settings, and where it is kept. Picklable."""

    storage: Storage
    path: str
    """Folder of the index."""
    work: str
    """Folder of the run's builds."""
    source: VectorSource
    settings: IndexConfig
    queries: tuple[str, ...] = ()
    """Texts to tune on; none: it is tuned on documents."""
    trained: Trained | None = None
    """What is filled, in place of an index that is trained on this table."""
    instead: str = ""
    """The finer codes that `auto` fell back to; "" if it did not."""
    lists: StoredFile | None = None
    """The trained index of the coarser codes, whose lists are taken."""
    gate_recall: float = 0.0
    """What gate.ann_recall asks of the index; 0 if that is not known."""
    catch_up: str = ""
    """The command of the catch-up that it is part of; "" of a rebuild."""

    @functools.cached_property
    def factory(self) -> str:
        """The factory string that the settings mean for this table."""
        return self.instead or factory_of(self.settings, self.source.rows, self.source.dim)

    def finer(self) -> Build | None:
        """Return the build of the next finer codes; None if there are none, or the settings name a factory."""
        instead = finer(self.factory) if self.settings.factory == "auto" else None
        return replace(self, instead=instead, trained=None) if instead else None

    def like(self, factory: str) -> Build:
        """Return the build of this kind of index if `auto` came to it before, else this build."""
        build: Build | None = self
        while build is not None and build.factory != factory:
            build = build.finer()
        return build or self

    @functools.cached_property
    def records(self) -> str:
        """Folder of the records of its steps.

        The target of the tuning is not part of its name: shards that missed one may reach another.
        """
        told = {
            "factory": self.factory,
            "shard_rows": self.settings.shard_rows,
            "queries": list(self.queries),
            "trained": self.trained and self.trained.file.sha256,
            "measured": [field.name for field in fields(Measured)],
        }
        return f"{self.work}/{sha256_of(told)[:16]}"


@dataclass(frozen=True)
class Prepared:
    """What all shards of a build share."""

    trained: StoredFile
    queries: StoredFile
    """float32 [Q, D]."""
    tuned_on: str
    """queries, or documents if there are none."""
    shards: tuple[tuple[int, ...], ...]
    """Fragment ids of each."""
    rows_since_training: int
    device: str
    seconds: float


@dataclass(frozen=True)
class Shard:
    """The proof of one filled shard."""

    fragments: tuple[int, ...]
    rows: int
    vectors: StoredFile
    ids: StoredFile
    measured: StoredFile
    seconds: float


def prepared(build: Build) -> Prepared | None:
    """Return what a build began with, if it did."""
    return build.storage.decode_if_there(Prepared, _prepared_path(build))


def prepare(build: Build, queries: Float32 | None) -> Prepared:
    """Train an index, or take a trained one, and fix queries and shards; of two at once, the first one's stay.

    Without queries [Q, D] it is tuned on random documents, which are easier than real queries.

    Raises:
        UsageError: the factory string is wrong, or does not fit the vectors.
        SpaceMismatch: the queries have another dimension.
        ReembedError: the config asks for a GPU and FAISS finds none.
        IntegrityError: the table is empty, or a vector is not finite.
    """
    started = time.monotonic()
    source, storage, trained = build.source, build.storage, build.trained
    device = Device.choose(build.factory, build.settings.device)
    if not build.source.rows:
        raise IntegrityError("the vector table has no rows to index")
    queries, tuned_on = tuning_queries(source, queries)
    if trained is None:
        lists = build.lists and files.get_index(storage, build.path, build.lists)
        file = files.put_index(storage, build.path, train(source, build.factory, device, lists))
    else:
        file = trained.file
        files.copy(storage, trained.path, file, build.path)
    faults.point("index.after_train")
    record = Prepared(
        trained=file,
        queries=files.put_arrays(storage, build.records, {"queries": queries}),
        tuned_on=tuned_on,
        shards=cut_into_shards(source.fragments(), build.settings.shard_rows),
        rows_since_training=trained.rows_since if trained else 0,
        device=device.name(build.factory),
        seconds=round(time.monotonic() - started, 3),
    )
    storage.create(_prepared_path(build), encode(record))
    return required(prepared(build))


def filled(build: Build, number: int) -> Shard | None:
    """Return the proof of a shard, if it was filled."""
    return build.storage.decode_if_there(Shard, _shard_path(build, number))


def fill_shard(build: Build, prepared: Prepared, number: int) -> Shard:
    """Fill one shard, store it, and then its proof; of two at once, the first one's stays.

    Raises:
        IntegrityError: rows are missing, repeated, not finite or of another dimension.
    """
    started = time.monotonic()
    storage, path, fragments = build.storage, build.path, prepared.shards[number]
    queries = files.get_arrays(storage, build.records, prepared.queries)["queries"]
    device = Device.choose(build.factory, build.settings.device)
    trained = files.get_index(storage, path, prepared.trained)
    shard = fill(trained, build.source, fragments, queries, device)
    measured = measure(shard.index, queries, shard.exact, build.source.rows)
    faults.point("index.before_save")
    proof = Shard(
        fragments=fragments,
        rows=shard.index.rows,
        vectors=files.put_index(storage, path, shard.index.faiss_index),
        ids=files.put_ids(storage, path, shard.row_ids, shard.doc_ids),
        measured=files.put_arrays(storage, build.records, vars(measured)),
        seconds=round(time.monotonic() - started, 3),
    )
    faults.point("index.before_shard")
    storage.create(_shard_path(build, number), encode(proof))
    return required(filled(build, number))


def finish(
    build: Build, prepared: Prepared, *, space: str, table: str, table_version: int
) -> IndexManifest:
    """Check that the shards hold every fragment of the table once, tune them together, write the manifest.

    Raises:
        TargetMissed: no operating point reaches index.ann_recall.
        IntegrityError: a shard is missing, or the shards are not the table.
    """
    shards = [required(filled(build, number)) for number in range(len(prepared.shards))]
    _require_whole(build, shards)
    target = Target(build.settings.ann_recall, build.gate_recall, build.catch_up)
    tuned = choose(_measured(build, shards), target.tuned_to)
    target.require(build.factory, tuned, prepared.tuned_on, better(build.factory, target.tuned_to))
    manifest = IndexManifest(
        segments=tuple(_segment(build, prepared, shard, tuned) for shard in shards),
        tombstones=None,
        metric="inner_product",
        dim=build.source.dim,
        space=space,
        table=table,
        table_version=table_version,
        ann_recall_at_10=float(tuned.recalls.mean()),
        ann_recall_lower=files.lower_bound(tuned.recalls),
        tuned_on=prepared.tuned_on,
        num_queries=len(tuned.recalls),
        settings=build.settings,
    )
    faults.point("index.before_manifest")
    return files.put_manifest(build.storage, build.path, manifest)


def cut_into_shards(fragments: list[tuple[int, int]], most: int) -> tuple[tuple[int, ...], ...]:
    """Return fragment ids by shard, in the order of the table: as few shards as can be, the largest as small as can be.

    Shards have at most `most` rows, unless a single fragment has more.
    """
    shards = _cut(fragments, most)
    sizes = range(-(-sum(rows for _, rows in fragments) // len(shards)), most)
    even = bisect_left(sizes, -len(shards), key=lambda size: -len(_cut(fragments, size)))
    return _cut(fragments, sizes.start + even) if sizes else shards


def _cut(fragments: list[tuple[int, int]], most: int) -> tuple[tuple[int, ...], ...]:
    """Return fragment ids by shard, each filled with at most `most` rows before the next one begins."""
    shards: list[list[int]] = []
    held = 0
    for fragment, rows in fragments:
        if not shards or held + rows > most:
            shards.append([])
            held = 0
        shards[-1].append(fragment)
        held += rows
    return tuple(map(tuple, shards))


def tuning_queries(source: VectorSource, queries: Float32 | None) -> tuple[Float32, str]:
    """Return vectors to tune on, and whether they are queries or documents."""
    if queries is not None and len(queries):
        return checked_queries(queries, source.dim, 1), "queries"
    documents = source.sample(TUNING_DOCUMENTS, seed=1)
    check_vectors(documents, source.dim)
    return documents, "documents"


def _require_whole(build: Build, shards: list[Shard]) -> None:
    """Compare the shards with the table's own list of fragments, and their files with what is stored."""
    held = [fragment for shard in shards for fragment in shard.fragments]
    require_all_rows(build.source, held, sum(shard.rows for shard in shards), "shards")
    files.require_whole(build.storage, build.path, (f for s in shards for f in (s.vectors, s.ids)))


def require_all_rows(source: VectorSource, held: Sequence[int], rows: int, called: str) -> None:
    """Compare the fragments that the parts of an index hold, and their rows, with the table's own list."""
    fragments = [fragment for fragment, _ in source.fragments()]
    if list(held) != fragments or rows != source.rows:
        raise IntegrityError(
            f"the {called} of the index are not the table",
            f"they hold {rows:,} rows of {len(held):,} fragments,"
            f" the table {source.rows:,} of {len(fragments):,}",
            "reembed run --fresh",
        )


def _measured(build: Build, shards: list[Shard]) -> Iterator[Measured]:
    for shard in shards:
        yield Measured.of(files.get_arrays(build.storage, build.records, shard.measured))


def _segment(build: Build, prepared: Prepared, shard: Shard, tuned: Tuned) -> Segment:
    return Segment(
        kind="base",
        trained=prepared.trained,
        vectors=shard.vectors,
        ids=shard.ids,
        rows=shard.rows,
        fragments=shard.fragments,
        factory=build.factory,
        operating_point=tuned.operating_point,
        device=prepared.device,
        faiss_version=faiss.__version__,
        build_seconds=shard.seconds,
        rows_since_training=prepared.rows_since_training,
    )


def _prepared_path(build: Build) -> str:
    return f"{build.records}/prepared.json"


def _shard_path(build: Build, number: int) -> str:
    return f"{build.records}/shards/{number:05d}.json"


def required(record: T | None) -> T:
    """Return a record of a build; IntegrityError if it is gone."""
    if record is None:
        raise IntegrityError(
            "a record of the index's build is gone", "gc or someone removed it", "reembed run"
        )
    return record
