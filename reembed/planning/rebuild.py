"""What a rebuild takes, step by step: hours, memory, requests and money. Pure, as `planning.sizing`.

Estimates from the constants of `planning.measured`, which were measured on other machines: they order steps by
what they cost and find what cannot work. N documents of D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reembed.index.factories import lists_of
from reembed.planning import measured
from reembed.planning.sizing import IndexSize
from reembed.table.vector_model import Kind as LanceKind

_HOUR = 3_600.0
_TOKEN_BYTES = 4


@dataclass(frozen=True)
class Work:
    """What is embedded."""

    documents: int
    dim: int
    tokens: int
    """Of a document, on average."""
    unit_documents: int
    """As `planning.unit_size` says."""
    row_bytes: int = 40
    """Of a row beside its vector: digests, space, and what is carried."""

    @property
    def units(self) -> int:
        return math.ceil(self.documents / self.unit_documents)

    @property
    def table_bytes(self) -> int:
        """Bytes of the table, float32."""
        return self.documents * (4 * self.dim + self.row_bytes)


@dataclass(frozen=True)
class Cluster:
    """Where it runs."""

    gpus: int
    gpu_node_cores: int
    """Cores beside each GPU."""
    index_nodes: int
    index_cores: int
    """Of each node that builds the index and verifies."""


@dataclass(frozen=True)
class Prices:
    """US dollars. Assumptions: look them up before you decide by them."""

    gpu_hour: float = 6.9
    """A GPU of an H100 or H200 node, with its share of the node; on demand."""
    index_node_hour: float = 2.0
    """A CPU node of 16 cores (32 virtual CPUs) and 256 GiB; on demand."""
    head_hour: float = 1.0
    reads_1000: float = 0.0004
    writes_1000: float = 0.005


@dataclass(frozen=True)
class Step:
    """One step of a rebuild."""

    name: str
    hours: float
    memory: int
    """Bytes, of its largest process."""
    requests: int
    dollars: float


def steps(work: Work, size: IndexSize, cluster: Cluster, prices: Prices) -> tuple[Step, ...]:
    """Return the steps of a rebuild with this index, in their order."""
    table_reads = work.table_bytes / measured.READ_BYTES
    nodes = cluster.index_nodes * prices.index_node_hour
    reads, writes = (n * work.units for n in measured.REQUESTS_PER_UNIT)
    verify_reads = measured.READS_PER_ROW_VERIFIED * work.documents
    verify_writes = measured.WRITES_PER_ROW_VERIFIED * work.documents

    def step(
        name: str, hours: float, memory: int, requests: tuple[float, float], hourly: float
    ) -> Step:
        asked = (requests[0] * prices.reads_1000 + requests[1] * prices.writes_1000) / 1_000
        dollars = hours * (hourly + prices.head_hour) + asked
        return Step(name, hours, memory, round(sum(requests)), dollars)

    parts = size.bytes / measured.UPLOAD_PART_BYTES
    return (
        step("embed", embed_hours(work, cluster), driver_bytes(work), (reads, writes),
             cluster.gpus * prices.gpu_hour),
        step("train", train_hours(size, cluster.index_cores), size.train,
             (4 * size.dim * size.sample / measured.READ_BYTES, 1), nodes),
        step("fill", fill_hours(work, size, cluster), size.fill, (table_reads, parts), nodes),
        step("verify", verify_hours(work, size, cluster), measured.VERIFY_TASK_BYTES,
             (verify_reads, verify_writes), nodes),
    )  # fmt: skip


def driver_bytes(work: Work) -> int:
    """Return the memory of the driver: it checks ids of few documents itself, and knows every unit."""
    checked = min(work.documents, measured.DOCUMENTS_ON_DRIVER) * measured.DRIVER_BYTES_PER_DOCUMENT
    return measured.DRIVER_BYTES + max(checked, work.units * measured.DRIVER_BYTES_PER_UNIT)


def embed_hours(work: Work, cluster: Cluster) -> float:
    """Return hours of embedding by BERT-base: by the models, their tokenizers or the driver, whichever is slower."""
    tokens = work.documents * work.tokens
    models = tokens / (
        measured.BERT_BASE_TOKENS_PER_GPU_S * measured.GPUS_BUSY * max(1, cluster.gpus)
    )
    cores = max(1, cluster.gpus * cluster.gpu_node_cores)
    tokenizers = tokens / (measured.TOKENIZED_PER_CPU_S * cores)
    return max(models, tokenizers, work.units * measured.DRIVER_S_PER_UNIT) / _HOUR


def train_hours(size: IndexSize, cores: int) -> float:
    """Return hours of training lists on the cores of one node."""
    read = 4 * size.dim * size.sample
    if LanceKind.named(size.factory) is not None:
        cpu_s = measured.LANCE_TRAIN_S_PER_BYTE * read
    else:
        flops = read / 2.0 * lists_of(size.factory) * measured.KMEANS_ITERATIONS
        cpu_s = flops / measured.TRAIN_FLOPS_PER_CPU_S
    return cpu_s / cores / _HOUR


def fill_hours(work: Work, size: IndexSize, cluster: Cluster) -> float:
    """Return hours of reading the table, and filling, writing and hashing all shards."""
    cpu_s = measured.FILL_S_PER_BYTE * 4 * size.dim * size.rows
    cpu_s += measured.SHA256_S_PER_BYTE * size.bytes
    return _slower(cpu_s, work.table_bytes + size.bytes, cluster)


def verify_hours(work: Work, size: IndexSize, cluster: Cluster) -> float:
    """Return hours of reading, hashing and comparing table, source and index."""
    held = work.table_bytes + size.bytes
    cpu_s = measured.VERIFY_S_PER_DOCUMENT * work.documents + measured.SHA256_S_PER_BYTE * held
    return _slower(cpu_s, held + work.documents * work.tokens * _TOKEN_BYTES, cluster)


def _slower(cpu_s: float, moved: float, cluster: Cluster) -> float:
    """Return hours on the index nodes: of their cores, or of their networks."""
    seconds = max(cpu_s / cluster.index_cores, moved / measured.NODE_BYTES_PER_S)
    return seconds / cluster.index_nodes / _HOUR
