"""What is kept of an index beside its file.

indexes/RELEASE/SHA256.json      create-only; the file beside it is SHA256.faiss
"""

from __future__ import annotations

from dataclasses import dataclass

from reembed.config.settings import IndexConfig


@dataclass(frozen=True)
class IndexManifest:
    """What an index file is, how to search it, and how well that was measured to do."""

    factory: str
    metric: str
    dim: int
    rows: int
    operating_point: dict[str, int]
    """Any of nprobe, ef_search and k_factor; what ann_recall was measured with."""
    ann_recall_at_10: float
    """Mean over the queries."""
    ann_recall_lower: float
    """One-sided 95 % bound of the mean (Student t)."""
    tuned_on: str
    """queries, or documents where there were none: documents are easier."""
    num_queries: int
    faiss_version: str
    device: str
    sha256: str
    size_bytes: int
    space: str
    table: str
    table_version: int
    build_seconds: float
    settings: IndexConfig
    """The section `index` of the config that it was built by; the line's catch-ups are built by it too."""
    rows_since_training: int
    """Rows that were embedded after it was trained: by catch-ups that filled it again."""
