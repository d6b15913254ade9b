"""What a run's stages need to embed its units."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import pyarrow as pa

from reembed.catalog.plan import Plan
from reembed.catalog.runs import Run
from reembed.config.settings import EmbedConfig, EncoderConfig
from reembed.source.dataset import Source
from reembed.store.records import encode

DRAIN = "drain.json"


@dataclass(frozen=True)
class _Drain:
    """A request that no other unit is started."""

    token: str


@dataclass(frozen=True)
class EmbedJob:
    """Everything a stage needs, small enough to travel with each task."""

    run: Run
    plan: Plan
    """Without its units."""
    source: Source
    encoder: EncoderConfig
    embed: EmbedConfig
    columns: pa.Schema
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Names this start of the driver: a request to drain is for this start only."""

    @property
    def is_draining(self) -> bool:
        """Whether the driver was asked to end: no other unit is started."""
        asked = self.run.storage.decode_if_there(_Drain, self.run.path(DRAIN))
        return asked is not None and asked.token == self.token

    def drain(self) -> None:
        """Ask that no other unit is started."""
        self.run.storage.write(self.run.path(DRAIN), encode(_Drain(self.token)))
