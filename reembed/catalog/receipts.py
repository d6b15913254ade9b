"""What a worker leaves for each unit: the proof that it is staged, and how it went.

runs/RUN/units/UNIT.json         create-only: of several attempts at one unit the first one counts
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, with_config

from reembed.store.records import first_wrong


@dataclass(frozen=True)
class DeadLetter:
    """A document that has no vector, and why. Its text is not kept."""

    doc_id: str | int
    reason: str
    text_hash: str
    """Digest of the text that failed, in hex; a changed text is tried again."""


@dataclass(frozen=True)
class FileProof:
    """What a file must be, byte for byte."""

    size_bytes: int
    sha256: str


@with_config(ConfigDict(extra="ignore"))
@dataclass(frozen=True)
class _LanceFile:
    """What Lance reads of a data file in the table's own folder; other fields may follow."""

    path: str
    fields: list[int]
    column_indices: list[int]
    file_major_version: int
    file_minor_version: int
    file_size_bytes: int
    base_id: None


@with_config(ConfigDict(extra="ignore"))
@dataclass(frozen=True)
class _LanceFragment:
    """What Lance reads of a staged fragment; other fields may follow."""

    id: int
    files: list[_LanceFile]
    physical_rows: int
    deletion_file: None
    row_id_meta: None
    created_at_version_meta: None
    last_updated_at_version_meta: None


_FRAGMENT = TypeAdapter(_LanceFragment)


def _readable(fragment: str) -> str:
    """Check a fragment before Lance reads it, which panics on fields of other types."""
    try:
        _FRAGMENT.validate_json(fragment, strict=True)
    except ValidationError as error:
        raise ValueError(first_wrong(error)) from None
    return fragment


@dataclass(frozen=True)
class Deletions:
    """A fragment's deletion file, as Lance describes it."""

    fragment: int
    read_version: int
    id: int
    file_type: Literal["array", "bitmap"]
    num_deleted_rows: int


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
    """Tokens that went through the model; equal texts go through it once."""
    computed_tokens: int
    """Tokens that went through the model, with padding."""
    flop: float
    peak_flops: float
    """FLOP/s of its share of the device; 0 if unknown."""
    started_at: float
    """Seconds since the epoch, by its host's clock."""
    waited_s: float
    """Seconds before it in which the model had no unit."""
    embed_s: float
    """Seconds from when the model could start until it ended, its wait for records included."""
    model_s: float
    """The model's part of `embed_s`."""


@dataclass(frozen=True)
class Receipt:
    """Proof that a unit is staged: its files, with their sizes and digests."""

    unit: str
    space: str
    columns: str
    """Digest of the table's columns."""
    rows: int
    """Rows of the table."""
    documents: int
    """Documents that these rows are of."""
    dead_letters: tuple[DeadLetter, ...]
    """Documents without a row."""
    fragments: tuple[Annotated[str, AfterValidator(_readable)], ...]
    """Fragments as JSON, as Lance writes them."""
    files: dict[str, FileProof]
    """What each file that the unit wrote must be, by name: data files, or a deletion file."""
    stats: UnitStats | None
    """None for rows that were kept."""
    deletions: Deletions | None = None
    """The deletion file that a unit wrote in place of fragments."""

    @property
    def tried(self) -> int:
        """Documents that were tried."""
        return self.documents + len(self.dead_letters)
