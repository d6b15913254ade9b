"""What a worker leaves for each unit: the proof that it is staged, and how it went.

runs/RUN/units/UNIT.json         create-only: of several attempts at one unit the first one counts
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from reembed.store.records import holds


@dataclass(frozen=True)
class DeadLetter:
    """A document that has no vector, and why. Its text is not kept."""

    doc_id: str | int
    reason: str
    text_hash: str
    """Digest of the text that failed, in hex: another text is another try."""


@dataclass(frozen=True)
class ProofRecord:
    """What a data file must be, byte for byte."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class DataFileRecord:
    """A data file as Lance describes it, in the table's own folder."""

    path: str
    fields: list[int]
    column_indices: list[int]
    file_major_version: int
    file_minor_version: int
    file_size_bytes: int
    base_id: None


@dataclass(frozen=True)
class FragmentRecord:
    """A fragment as it was staged: new rows alone."""

    id: int
    files: list[DataFileRecord]
    physical_rows: int
    deletion_file: None
    row_id_meta: None
    created_at_version_meta: None
    last_updated_at_version_meta: None


@dataclass(frozen=True)
class UnitStats:
    """How a unit was embedded."""

    device: str
    path: str
    """How the model computes: packed or padded, and in which type."""
    notes: str
    batch_tokens: int
    attempt: int
    copied: int
    """Documents whose vector was copied from another release."""
    tokens: int
    model_tokens: int
    """That went through the model: those of equal texts do once."""
    computed_tokens: int
    """The same with padding."""
    flop: float
    peak_flops: float
    """A second, of the part of the device that is its own; 0 where it is not known."""
    started_at: float
    """Seconds since the epoch, by its host's clock."""
    waited_s: float
    """For the unit, since the one before."""
    embed_s: float
    model_s: float
    """Of them, the model's."""


@dataclass(frozen=True)
class Receipt:
    """A unit is staged: by these files, of these bytes."""

    unit: str
    space: str
    columns: str
    """Digest of the table's columns."""
    rows: int
    dead_letters: tuple[DeadLetter, ...]
    fragments: list[Annotated[dict[str, Any], holds(FragmentRecord)]]
    files: dict[str, Annotated[dict[str, Any], holds(ProofRecord)]]
    stats: UnitStats | None
    """None for rows that were kept."""

    @property
    def documents(self) -> int:
        """Those that were tried."""
        return self.rows + len(self.dead_letters)
