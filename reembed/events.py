"""What reembed tells about its work, as types: one `emit(event)` feeds display, log and records.

A listener is any function of one event: the console prints it, the journal keeps it in the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


class Event:
    """One thing that happened; each kind is a frozen dataclass of plain fields."""

    stage: ClassVar[str]
    """Its name in the log line and in events.jsonl."""

    def __init_subclass__(cls, stage: str = "") -> None:
        if stage:
            cls.stage = stage


Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Working(Event, stage="begin"):
    """A step that takes a while starts."""

    what: str


@dataclass(frozen=True)
class Notice(Event, stage="note"):
    """A fact that the user should know; nothing has to be done about it."""

    what: str


@dataclass(frozen=True)
class ChangedSetting:
    """A setting that has no effect any more: the value that was used, and the value now."""

    name: str
    """Dotted name, as in the config."""
    used: Any
    now: Any


@dataclass(frozen=True)
class Ignored(Event, stage="ignored"):
    """Settings that differ from those that the run was planned or built with."""

    settings: tuple[ChangedSetting, ...]


@dataclass(frozen=True)
class AlreadyBuilt(Event, stage="already"):
    """The run is complete; nothing was done."""

    run: str
    release: str


@dataclass(frozen=True)
class ChangesFound(Event, stage="changes"):
    """A release was compared with a newer version of its source; figures count documents."""

    before: int
    """Source version that the release equals."""
    after: int
    embed: int
    refresh: int
    """Documents with the same text and other carried values."""
    copied: int
    """New documents with the text of another one, whose vector is copied."""
    removed: int
    documents: int
    """Documents that differ, including dead letters that left the source."""
    how: str


@dataclass(frozen=True)
class Planned(Event, stage="plan"):
    """The run's plan was written."""

    run: str
    documents: int
    units: int
    source: str
    source_version: int
    pinned: bool
    """Whether the source version is tagged, so that a cleanup keeps it."""
    space: str
    model: str
    dim: int


@dataclass(frozen=True)
class Resumed(Event, stage="resume"):
    """An unfinished run is resumed."""

    run: str
    staged: int
    """Units that have a receipt."""
    units: int
    source_version: int


@dataclass(frozen=True)
class Connected(Event, stage="ray"):
    """The executor is ready."""

    where: str


@dataclass(frozen=True)
class Throughput:
    """How fast embedding goes, and what it waits for."""

    done: int
    """Documents, those of earlier attempts at this run included."""
    total: int
    docs_per_s: float
    tokens_per_s: int
    actors: int
    busy: float
    """Share of the actors' time in which their models computed."""
    waits_for_input: float
    waits_for_records: float
    path: str
    """How the model computes: packed or padded, number type, device."""
    padding: float
    """Share of computed tokens that were padding, against the others."""
    mfu: float | None
    """Share of the device's matrix product; None if its peak is not known."""
    units_done: int
    """Units, those of earlier attempts included."""
    units: int
    dead_letters: int
    """Documents that could not be embedded in this attempt; `done` includes those of earlier attempts."""
    copied: int
    """Vectors that were copied in this attempt."""
    startup_s: float


@dataclass(frozen=True)
class Progress(Event, stage="embed"):
    """Progress of the embedding; rates are those of the last minute."""

    figures: Throughput
    eta_s: int | None
    waiting: str | None
    """Why nothing moves; None if something does."""
    last: bool
    """Embedding ended, with or without an error."""


@dataclass(frozen=True)
class Embedded(Event, stage="embedded"):
    """All units are embedded; rates count from the first unit's start."""

    figures: Throughput


@dataclass(frozen=True)
class WaitingForNode(Event, stage="waiting"):
    """No node of the cluster has room for an actor."""

    cpus: float
    gpus: float
    stall_s: float
    """Seconds after which the run fails."""


@dataclass(frozen=True)
class WorkerEnded(Event, stage="deadline"):
    """A worker exceeded the deadline of its unit; the unit is tried again."""

    unit: str
    attempt: int
    seconds: float
    deadline_s: float
    ended: bool
    """Whether the process existed and was killed."""


@dataclass(frozen=True)
class Draining(Event, stage="stopping"):
    """A signal came: units in progress are finished, for at most `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Kept(Event, stage="kept"):
    """Rows of the base were staged again without embedding them."""

    units: int
    rows: int


@dataclass(frozen=True)
class Sealed(Event, stage="table"):
    """All units are in the table, in one commit."""

    table: str
    version: int
    rows: int
    documents: int
    dead_letters: int


@dataclass(frozen=True)
class Indexed(Event, stage="index"):
    """The index was built, tuned and saved; or grown from the one before, whose tuning it keeps."""

    factory: str
    device: str
    rows: int
    shards: int
    """Segments that were built from a whole table."""
    seconds: float
    operating_point: dict[str, int]
    ann_recall_at_10: float
    num_queries: int
    tuned_on: str
    deltas: int = 0
    """Segments that were added since."""
    tombstones: int = 0
    """Rows of segments that have left since."""


@dataclass(frozen=True)
class Verified(Event, stage="verify"):
    """Table and index were compared with the source."""

    passed: bool
    rows: int
    sampled: int
    """Rows that were embedded again."""
    differences: dict[str, int]
    """Number of each kind of difference that was found."""
    confidence: str


@dataclass(frozen=True)
class Candidate(Event, stage="candidate"):
    """The release is registered; what serves is unchanged."""

    release: str
    live: str | None


@dataclass(frozen=True)
class AliasMoved(Event, stage="live"):
    """An alias serves another release; its log has the record."""

    alias: str
    action: str
    """promote, rollback or catch-up."""
    generation: int
    """Number of the step in the alias's log."""
    before: str | None
    """The release that served before; None if nothing did."""
    release: str


@dataclass(frozen=True)
class Looked(Event, stage="look"):
    """A shadow judged queries that arrived, or found none."""

    shadow: int
    look: int
    """Number of the newest look; 0 before the first."""
    queries: int
    """Queries that were judged so far, before the cut-over or after it."""
    verdict: str
    guards: bool
    """Whether the candidate is live, and harm is looked for."""


@dataclass(frozen=True)
class LookFailed(Event, stage="failed"):
    """A look of a shadow was not finished; the next one tries again."""

    what: str
    why: str | None
    seconds: float
    """Until the next look."""


@dataclass(frozen=True)
class Behind(Event, stage="lag"):
    """How far a release is behind its source."""

    release: str
    source_version: int
    """The newest version that the release is known to equal."""
    newest: int | None
    """None if the source could not be read: see `why`."""
    documents: int | None
    seconds: float | None
    """Since when it is behind; None if that is not known, or the newest version is not."""
    why: str | None = None

    @property
    def versions(self) -> int | None:
        """Versions after `source_version`."""
        return None if self.newest is None else self.newest - self.source_version


@dataclass(frozen=True)
class Serving(Event, stage="serve"):
    """Requests are answered."""

    alias: str
    release: str
    address: str


def ignore(event: Event) -> None:
    """Do nothing: the listener for callers that want none."""


def to_all(*listeners: Listener) -> Listener:
    """Return a listener that hands each event to all of these, in order."""

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit
