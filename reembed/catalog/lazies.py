"""Lazy migrations of an alias: what is fixed at the start of each, and the steps of its life.

lazy/ALIAS/plans/00000001.json          create-only: from which line to which model; the newest counts
lazy/ALIAS/1/steps/00000001.json        create-only: running, paused, stopped or finished; the newest counts
lazy/ALIAS/1/members.lance              the documents that were migrated, as a source of their own
lazy/ALIAS/1/background.arrow           the same documents embedded by both models
lazy/ALIAS/1/queue/...                  documents that turned up (lazy_queue.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reembed.catalog.alias import who
from reembed.catalog.numbered import numbers
from reembed.catalog.query_model import StoredSpace
from reembed.catalog.releases import Catalog, SourceRef
from reembed.clock import now
from reembed.config.settings import EncoderConfig
from reembed.errors import Conflict
from reembed.plural import counted
from reembed.store.records import decode, encode

State = Literal["running", "paused", "stopped", "finished"]
Fusion = Literal["slots", "zscore", "rrf"]


@dataclass(frozen=True)
class Predicted:
    """What the re-rank test said of the model before any document was migrated (evaluation/rerank.py)."""

    metric: str
    queries: int
    live: float
    """Mean of the metric over the old release's lists."""
    change: float
    """Mean change where the old lists are ranked again by the new model."""
    low: float
    """Of the two-sided 95 % interval of the change."""
    high: float
    verdict: Literal["pass", "fail", "inconclusive"]

    @property
    def words(self) -> str:
        """Return it in one line, for people."""
        change = f"{self.change:+.4f} (95 %: {self.low:+.4f} to {self.high:+.4f})"
        judged = counted(self.queries, "query")
        return f"predicted by {judged}: {self.metric} {self.live:.4f} {change}, {self.verdict}"


@dataclass(frozen=True)
class LazyPlan:
    """What a lazy migration is: fixed when it starts."""

    number: int
    alias: str
    live: str
    """The first release of the line that was live at the start: the old side."""
    side: str
    """The alias of the new side, which holds the documents migrated so far."""
    space: StoredSpace
    """The new space."""
    encoder: EncoderConfig
    source: SourceRef
    """The documents, at the version of the start."""
    documents: int
    """How many there were."""
    fusion: Fusion
    depth: int
    """Results of the old side that are ranked again."""
    predicted: tuple[Predicted, ...]
    """Empty where nobody judged anything, which `reason` explains."""
    background_sha256: str
    reason: str | None
    by: str
    at: str

    @property
    def folder(self) -> str:
        """Path under the root of all that belongs to it."""
        return f"lazy/{self.alias}/{self.number}"

    @property
    def members(self) -> str:
        """Path of the dataset of migrated documents."""
        return f"{self.folder}/members.lance"

    @property
    def background(self) -> str:
        """Path of the documents that both models embedded."""
        return f"{self.folder}/background.arrow"


@dataclass(frozen=True)
class LazyStep:
    """A change of state."""

    number: int
    state: State
    keep: bool
    """Whether the new side is kept after a stop, so that it can be resumed."""
    reason: str | None
    by: str
    at: str


@dataclass(frozen=True)
class Lazy:
    """A lazy migration, as it stands."""

    plan: LazyPlan
    step: LazyStep

    @property
    def serves(self) -> bool:
        """Whether answers are fused; paused: nothing more is migrated, what was is served."""
        return self.step.state in ("running", "paused")


def current(catalog: Catalog) -> Lazy | None:
    """Return the newest lazy migration of the alias; None if there was none.

    A plan without a step was left by a process that died: it never started, and is None, too.

    Raises:
        IntegrityError: records were removed.
    """
    return _lazy(catalog, newest) if (newest := _newest(catalog)) else None


def unstarted(catalog: Catalog) -> LazyPlan | None:
    """Return the newest plan if it has no step yet: the process that wrote it died, or is at it."""
    newest = _newest(catalog)
    return newest if newest and _lazy(catalog, newest) is None else None


def every(catalog: Catalog) -> list[Lazy]:
    """Return every lazy migration of the alias that was started, oldest first."""
    plans = numbers(catalog.storage, _plans(catalog))
    found = (_lazy(catalog, _plan(catalog, number)) for number in plans)
    return [lazy for lazy in found if lazy]


def is_newest(catalog: Catalog, lazy: Lazy) -> bool:
    """Return whether the state is still this one, by two small requests."""
    size = catalog.storage.size
    return bool(size(_step_path(lazy.plan, lazy.step.number))) and not size(
        _step_path(lazy.plan, lazy.step.number + 1)
    )


def side_alias(alias: str, number: int) -> str:
    """Return the alias of the new side of a lazy migration."""
    return f"{alias}-lazy-{number}"


def next_number(catalog: Catalog) -> int:
    """Return the number of the next lazy migration."""
    return len(numbers(catalog.storage, _plans(catalog))) + 1


def begin(catalog: Catalog, plan: LazyPlan) -> None:
    """Keep a plan. It serves nothing before its first step.

    Raises:
        Conflict: another process began one at the same moment.
    """
    path = f"{_plans(catalog)}/{plan.number:08d}.json"
    if not catalog.storage.create(path, encode(plan)):
        raise Conflict(
            f"another lazy migration of {plan.alias} was started at this moment",
            None,
            "reembed lazy status",
        )


def move(
    catalog: Catalog,
    plan: LazyPlan,
    after: LazyStep | None,
    state: State,
    *,
    keep: bool = True,
    reason: str | None = None,
) -> LazyStep:
    """Change the state; `after` is the step that the decision was made on, None for the first.

    Raises:
        Conflict: another process changed it meanwhile.
    """
    number = after.number + 1 if after else 1
    step = LazyStep(number, state, keep, reason, who(), now())
    if not catalog.storage.create(_step_path(plan, number), encode(step)):
        theirs = _step(catalog, plan, number)
        raise Conflict(
            f"lazy migration {plan.number} of {plan.alias} was {theirs.state} by {theirs.by} at this moment",
            None,
            "reembed lazy status",
        )
    return step


def _newest(catalog: Catalog) -> LazyPlan | None:
    plans = numbers(catalog.storage, _plans(catalog))
    return _plan(catalog, plans[-1]) if plans else None


def _plan(catalog: Catalog, number: int) -> LazyPlan:
    return decode(LazyPlan, catalog.storage.read(f"{_plans(catalog)}/{number:08d}.json"))


def _lazy(catalog: Catalog, plan: LazyPlan) -> Lazy | None:
    steps = numbers(catalog.storage, f"{plan.folder}/steps")
    return Lazy(plan, _step(catalog, plan, steps[-1])) if steps else None


def _plans(catalog: Catalog) -> str:
    return f"lazy/{catalog.alias}/plans"


def _step(catalog: Catalog, plan: LazyPlan, number: int) -> LazyStep:
    return decode(LazyStep, catalog.storage.read(_step_path(plan, number)))


def _step_path(plan: LazyPlan, number: int) -> str:
    return f"{plan.folder}/steps/{number:08d}.json"
