"""The steps of a verification that are done, kept so that an interrupted one can be resumed.

runs/RUN/verifying.json          written after each step, removed at the end
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from reembed.catalog.reports import Differences
from reembed.catalog.runs import Run
from reembed.store.records import decode, encode

_NAME = "verifying.json"


@dataclass(frozen=True)
class RowsCompared:
    """What the comparison of the rows with the source found."""

    differences: Differences
    behind: Differences | None
    documents: int
    """Of the source."""
    rows: int
    """Of the table."""
    table_documents: int
    """That these rows are of."""
    sampled: int
    seed: int | None
    """The seed of the sample, so that a resumed verification names that of the rows it took over."""


@dataclass(frozen=True)
class Done:
    """Results of the steps that are done."""

    damaged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Damaged files of each group of files, by the first file of the group."""
    rows: RowsCompared | None = None


@dataclass(frozen=True)
class JournalKey:
    """What a verification reads; a journal is resumed only by one that reads the same."""

    table_version: int
    source_version: int
    newest_version: int | None
    """Newest version of the source; None if the table is compared with none that is newer."""
    level: int
    sample: int


@dataclass(frozen=True)
class JournalRecord:
    """A journal as it is stored."""

    key: JournalKey
    done: Done


class Journal:
    """Makes each step once: the result is the one kept before, or made now and kept."""

    def __init__(self, done: Done | None = None, keep: Callable[[Done], None] | None = None):
        self.done = done or Done()
        self._keep = keep

    @classmethod
    def open(cls, run: Run, key: JournalKey, *, resume: bool) -> Journal:
        """Return the journal of a run's verification; with `resume`, with the steps done before.

        Raises:
            IntegrityError: the stored journal is damaged.
        """
        done = Done()
        if resume and (kept := run.storage.read_if_there(run.path(_NAME))) is not None:
            record = decode(JournalRecord, kept)
            done = record.done if record.key == key else done

        def keep(done: Done) -> None:
            run.storage.write(run.path(_NAME), encode(JournalRecord(key, done)))

        return cls(done, keep)

    def damaged(self, group: str, look: Callable[[], list[str]]) -> tuple[str, ...]:
        """Return the damaged files of a group, which is named by its first file."""
        if group not in self.done.damaged:
            self._add(replace(self.done, damaged={**self.done.damaged, group: tuple(look())}))
        return self.done.damaged[group]

    def rows(self, compare: Callable[[], RowsCompared]) -> RowsCompared:
        """Return what was found in the rows."""
        if self.done.rows is None:
            self._add(replace(self.done, rows=compare()))
        assert self.done.rows is not None
        return self.done.rows

    def _add(self, done: Done) -> None:
        self.done = done
        if self._keep is not None:
            self._keep(done)


def remove_journal(run: Run) -> None:
    """Remove the journal of a verification that ended."""
    run.storage.remove(run.path(_NAME))
