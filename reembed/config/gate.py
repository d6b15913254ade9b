"""The settings of the gate: which queries judge, and what they must show."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictStr, field_validator, model_validator

from reembed.config.options import checked
from reembed.config.section import Section

QUERY_FIELDS = frozenset(
    {"_id", "query_id", "text", "doc_ids", "grades", "clicks", "shown", "timestamp", "set"}
)
"""Fields of judged and logged queries that have a meaning of their own; `set` is the slice of the sets."""


_METRIC = re.compile(r"(?:ndcg|recall|mrr)@(?:100|[1-9][0-9]?)")


def _listed(value: Any) -> Any:
    """Return one place as a list of one, and none as an empty list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


class GateConfig(Section):
    """What `compare` must show before `promote`. Fixed in the run's plan before results exist."""

    queries: Annotated[tuple[StrictStr, ...], BeforeValidator(_listed)] = ()
    """Judged queries: one or several of a BEIR folder, or Lance, Parquet or JSONL with query_id, text
    and doc_ids."""
    split: StrictStr = "test"
    """Which qrels/SPLIT.tsv of a BEIR folder."""
    slices: tuple[StrictStr, ...] = ()
    """Fields of the queries whose values divide them into slices."""
    group: StrictStr | None = None
    """Field that queries which belong together share: paraphrases of one question, queries of one user."""
    logged: StrictStr | None = None
    """Logged queries: JSONL, Parquet or Lance with text and, where known, clicks. Nothing is decided by them."""
    logged_sample: Annotated[int, Field(ge=1)] = 1000
    """How many different texts of the log are asked."""
    metrics: tuple[StrictStr, ...] = ("ndcg@10", "recall@10")
    """Metrics that must not lose more than the margin: ndcg@K, recall@K, mrr@K, with K from 1 to 100."""
    margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest loss of each of these metrics that may pass, absolute. Default: 0.01, or 2 % of
    live's value if that is more."""
    ann_recall: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Lower 95 % bound that the candidate index's ann_recall@10 must reach."""
    latency_ratio: Annotated[float, Field(gt=0)] = 2.0
    """Times live's p95 latency that the candidate's may be; one below 10 ms always passes."""

    @model_validator(mode="after")
    def _columns_can_be_told_apart(self) -> GateConfig:
        names = [*self.slices, *([self.group] if self.group else [])]
        if len(set(names)) < len(names):
            raise ValueError("gate.slices and gate.group name a field twice")
        if own := sorted(QUERY_FIELDS.intersection(names)):
            raise ValueError(
                f"gate.slices or gate.group names {', '.join(own)}, which means something else"
            )
        return self

    @field_validator("metrics")
    @classmethod
    def _are_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("must name one metric at least, and each once")
        if wrong := [name for name in value if not _METRIC.fullmatch(name)]:
            raise ValueError(
                f"{wrong[0]!r} is not a metric: ndcg@K, recall@K or mrr@K, K from 1 to 100"
            )
        return value

    @property
    def settings(self) -> GateConfig:
        """Only these settings, of a config's section or of a plan's gate."""
        return GateConfig(**self.model_dump(include=set(GateConfig.model_fields)))


class GateSection(GateConfig):
    """What `compare` must show before `promote`, and how the store of the queries is reached."""

    options: Annotated[dict[StrictStr, StrictStr] | None, checked("gate")] = None
    """Object-store settings of the queries, as `storage.options`. Default: those of the source."""


class FrozenGate(GateConfig):
    """A gate as a plan keeps it: its settings, and the digest of the queries they name."""

    sha256: StrictStr | None = None
    """Digest of the queries and judgements; None if no queries are named."""
    count: Annotated[int, Field(ge=1)] | None = None
    """How many queries can be scored; None if no queries are named."""
