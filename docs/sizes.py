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

from reembed.config.settings import EmbedConfig, IndexConfig  # noqa: E402 - the path comes first
from reembed.index.factories import choose_factory  # noqa: E402
from reembed.planning.rebuild import Cluster, Prices, Work, steps  # noqa: E402
from reembed.planning.sizing import IndexSize, size_of  # noqa: E402
from reembed.planning.unit_size import unit_documents  # noqa: E402

DIM, TOKENS = 768, 300
GIB = 2**30
SHARD_ROWS = IndexConfig().shard_rows


@dataclass(frozen=True)
class Profile:
    """A cluster for a number of documents."""

    documents: int
    gpus: int
    index_nodes: int

    @property
    def index(self) -> IndexSize:
        """Sizes of the default index."""
        found = size_of(
            choose_factory(self.documents, DIM, gpu=False), self.documents, DIM, SHARD_ROWS
        )
        assert found is not None
        return found

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


PROFILES = (Profile(10**7, 8, 1), Profile(10**8, 16, 4), Profile(10**9, 64, 8))


def sizes() -> str:
    """Return the table of sizes."""
    head = (
        "| documents | index | files | largest file | train | fill | serve | replace it |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    rows = [
        f"| {i.rows:.0e} | `{i.factory}` | {gib(i.bytes)} in {i.shards} | {gib(i.shard_bytes)} |"
        f" {gib(i.train)} | {gib(i.fill)} | {gib(i.serve)} | {gib(i.refresh)} |"
        for i in (p.index for p in PROFILES)
    ]
    return (head + "\n".join(rows)).replace("1e+0", "1e")


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
    for profile in PROFILES:
        i = profile.index
        lines += [
            f"  #   {profile.documents:.0e} documents: max_workers {profile.gpus} of GPU types,"
            f" {profile.index_nodes} of type index;".replace("1e+0", "1e"),
            f"  #     largest task {gib(i.largest_task)}, index {gib(i.bytes)} in {i.shards} files,"
            f" to serve it {gib(i.serve)}",
        ]
    return "\n".join(lines)


def gib(size: float) -> str:
    """Return bytes in words."""
    return f"{size / GIB:,.1f} GiB"


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "sizes": ("docs/sizing.md", sizes),
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
