"""Write the tables of docs/sizing.md and the profiles of cluster.yaml, from `reembed.planning`.

python docs/sizes.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from reembed.config.settings import Config, EmbedConfig, IndexConfig, load  # noqa: E402 - the path comes first
from reembed.planning.rebuild import Cluster, Prices, Work, steps  # noqa: E402
from reembed.planning.sizing import IndexSize, size_of  # noqa: E402
from reembed.planning.unit_size import unit_documents  # noqa: E402
from reembed.plural import counted  # noqa: E402
from reembed.strategies.index_kind import chosen  # noqa: E402
from reembed.strategies.index_tasks import factory_for  # noqa: E402

DIM, TOKENS = 768, 300
GIB = 2**30
SHARD_ROWS = IndexConfig().shard_rows
INDEX_GIB = 128
"""Of a node of type index."""
OFFERED = 0.7
"""Of a machine's memory, to Ray's tasks."""


@dataclass(frozen=True)
class Machine:
    """A worker with one GPU: two types of AWS, of which the second is taken where the first has no spot capacity."""

    types: tuple[str, str]
    cores: int
    gib: int

    @property
    def memory(self) -> int:
        """Bytes that Ray offers tasks."""
        return int(OFFERED * self.gib * GIB)


SMALL = Machine(("g6.2xlarge", "g5.2xlarge"), 8, 32)
LARGE = Machine(("g6.4xlarge", "g5.4xlarge"), 16, 64)


@dataclass(frozen=True)
class Profile:
    """A cluster for a number of documents, whose root is on S3."""

    documents: int
    gpus: int
    worker: Machine
    index_nodes: int

    @property
    def config(self) -> Config:
        """The config of a run on it, with the kind of index that `auto` takes."""
        file = str(ROOT / "configs" / "gpu_cluster.yaml")
        config = load([file], [self.setting])[0]
        kind, _ = chosen(config, self.documents, DIM)
        index = config.index.model_copy(update={"kind": kind})
        return config.model_copy(update={"index": index})

    @property
    def setting(self) -> str:
        """What the config of a run on it sets."""
        return f"embed.actors={self.gpus}"

    @property
    def index(self) -> IndexSize:
        """Sizes of the index that a run builds."""
        settings = self.config.index
        factory = factory_for(settings, self.documents, DIM)
        found = size_of(factory, self.documents, DIM, settings.shard_rows)
        assert found is not None
        return found

    @property
    def refresh(self) -> int:
        """Memory of a process that serves it while it is replaced: `faiss_ondisk` maps codes in blocks, too."""
        return self.index.serve if self.config.index.kind == "faiss_ondisk" else self.index.refresh

    @property
    def work(self) -> Work:
        """What is embedded."""
        embed = EmbedConfig(actors=self.gpus, gpus_per_actor=1)
        unit = unit_documents(embed, self.documents, 4 * TOKENS, DIM)
        return Work(self.documents, DIM, TOKENS, unit)

    @property
    def cluster(self) -> Cluster:
        """Its nodes."""
        return Cluster(self.gpus, 24, self.index_nodes, 16)


PROFILES = (
    Profile(10**6, 1, SMALL, 1),
    Profile(10**7, 8, SMALL, 1),
    Profile(10**8, 16, LARGE, 4),
    Profile(10**9, 64, SMALL, 8),
)


def sizes() -> str:
    """Return the table of sizes."""
    head = (
        "| documents | kind | index | files | largest file | train | fill | serve | replace it |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    rows = []
    for p in PROFILES:
        i = p.index
        rows.append(
            f"| {count(p.documents)} | `{p.config.index.kind}` | `{i.factory}` | {gib(i.bytes)} in {i.shards} |"
            f" {gib(i.shard_bytes)} | {gib(i.train)} | {gib(i.fill)} | {gib(i.serve)} | {gib(p.refresh)} |"
        )
    return head + "\n".join(rows)


def nodes() -> str:
    """Return the table of nodes."""
    head = (
        "| documents | `--set` | GPU nodes | index nodes | `max_workers` | a task may have, with a GPU and without |\n"
        "|---|---|---|---|---|---|\n"
    )
    index = gib(OFFERED * INDEX_GIB * GIB)
    rows = [
        f"| {count(p.documents)} | `{p.setting}` | {p.gpus} of {p.worker.gib} GiB |"
        f" {p.index_nodes} of {INDEX_GIB} GiB | {p.gpus + p.index_nodes} | {gib(p.worker.memory)}, {index} |"
        for p in PROFILES
    ]
    return head + "\n".join(rows)


def kinds() -> str:
    """Return the table of bytes by kind of index."""
    names = {
        "exact": "Flat",
        "graph": "HNSW32",
        "lists, float32": "IVF65536,Flat",
        "lists, one byte a dimension": "IVF65536,SQ8",
        "4-bit PQ, re-ranked by float32": f"IVF65536,PQ{DIM // 2}x4fs,RFlat",
        "4-bit PQ, re-ranked by half precision": f"IVF65536,PQ{DIM // 2}x4fs,Refine(SQfp16)",
        "4-bit PQ, re-ranked by one byte a dimension": f"IVF65536,PQ{DIM // 2}x4fs,Refine(SQ8)",
        "Lance's, a byte for four dimensions, re-ranked by the table": f"IVF2048_PQ{DIM // 4}",
    }
    rows = []
    for name, factory in names.items():
        found = size_of(factory, 10**7, DIM, SHARD_ROWS)
        assert found is not None
        each = found.bytes / found.rows
        rows.append(f"| {name} | `{factory}` | {each:,.0f} | {gib(found.bytes)} |")
    head = "| kind | factory | bytes a vector | 1e7 vectors |\n|---|---|---|---|\n"
    return head + "\n".join(rows)


def plan() -> str:
    """Return the table of a rebuild of 1e9 documents."""
    profile = PROFILES[-1]
    found = steps(profile.work, profile.index, profile.cluster, Prices())
    rows = [
        f"| {s.name} | {s.hours:.2f} | {gib(s.memory)} | {s.requests:,} | {s.dollars:,.0f} |"
        for s in found
    ]
    hours, dollars = sum(s.hours for s in found), sum(s.dollars for s in found)
    requests = sum(s.requests for s in found)
    total = f"| all | {hours:.2f} | | {requests:,} | {dollars:,.0f} |"
    head = "| step | hours | largest process | requests | dollars |\n|---|---|---|---|---|\n"
    return head + "\n".join([*rows, total])


def profiles() -> str:
    """Return the comment of cluster.yaml."""
    lines = []
    for p in PROFILES:
        i, w = p.index, p.worker
        lines += [
            f"  #   {count(p.documents)} documents: --set {p.setting}, max_workers {p.gpus + p.index_nodes};",
            f"  #     GPU types {' and '.join(w.types)}, max_workers {p.gpus},"
            f" resources {{CPU: {w.cores}, GPU: 1, memory: {w.memory}}};",
            f"  #     type index, max_workers {p.index_nodes}: its largest task {gib(i.largest_task)};",
            f"  #     index.kind {p.config.index.kind}: {gib(i.bytes)} in {counted(i.shards, 'file')},"
            f" to serve it {gib(i.serve)}",
        ]
    return "\n".join(lines)


def count(documents: int) -> str:
    """Return a power of ten in words."""
    return f"{documents:.0e}".replace("1e+0", "1e")


def gib(size: float) -> str:
    """Return bytes in words."""
    return f"{size / GIB:,.1f} GiB"


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "sizes": ("docs/sizing.md", sizes),
    "nodes": ("docs/sizing.md", nodes),
    "kinds": ("docs/sizing.md", kinds),
    "plan": ("docs/sizing.md", plan),
    "profiles": ("cluster.yaml", profiles),
}
"""What stands between two marks of a file."""


def marked(text: str, name: str) -> tuple[str, str, str]:
    """Return what is before the first mark of a part, between both, and after."""
    before, start, rest = text.partition(_mark(text, f"{name}: made by docs/sizes.py"))
    inside, end, after = rest.partition(_mark(text, f"end of {name}"))
    return before + start, inside, end + after


def _mark(text: str, words: str) -> str:
    return next(line for line in text.splitlines(keepends=True) if words in line)


def main() -> None:
    """Write all of them."""
    for name, (file, make) in PARTS.items():
        path = ROOT / file
        before, _, after = marked(path.read_text(encoding="utf-8"), name)
        path.write_text(f"{before}{make()}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
