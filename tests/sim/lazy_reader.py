"""A process that serves in a lazy history, and what each of its answers must be, by numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reembed import encoders
from reembed.catalog.releases import Release
from reembed.errors import ReembedError
from reembed.serving.index import Index
from reembed.serving.lazy_counts import LazyCounts
from reembed.serving.lazy_pair import LazyPair, Shared
from sim.engine import attempt

if TYPE_CHECKING:
    from sim.lazy_history import LazyHistory

_ALONE = ("late", "failed", "skipped", "vectors", "unread")
_NEAR = 1e-4
"""Two scores that differ by less are of one rank."""


class Reader:
    """One open index, asked step by step."""

    def __init__(self, history: LazyHistory, index: Index) -> None:
        self.history, self.index = history, index
        self.is_over = False
        """Whether it read that the migration serves no more: then no answer is of the new side."""
        self.owed: set[str] = set()
        """Documents that turned up and are to be written down."""
        self._shared: Shared | None = None

    def act(self, what: str) -> None:
        """Do what a process that serves does: answer, look at the state, write down, refresh."""
        done = {"ask": self.ask, "look": self.look, "write": self.write, "refresh": self.refresh}
        done[what]()

    def close(self) -> None:
        """The process ends in order: what turned up is written down."""
        self._pair()
        before = self._counts()
        self.index.close()
        self._settle(before)

    def forget(self) -> None:
        """The process is gone, and its threads end."""
        serving = self.index._lazy
        serving._closed = True
        serving._leave(write=False)

    def look(self) -> None:
        """As the thread of the watch does twice a second."""
        if self._pair() is None or self._shared is None:
            return
        watch, serves = self._shared.watch, self.history.serves()
        if watch.has_ended:
            return
        if not isinstance(_tried(watch._look), Exception) and not serves:
            self.is_over = True

    def write(self) -> None:
        """As the thread of what turned up does."""
        if self._pair() is not None and self._shared is not None:
            before = self._counts()
            with self.history.refusing():
                self._shared.turned_up._write()
            self._settle(before)

    def _settle(self, before: LazyCounts) -> None:
        """All that turned up was written down, or counted as dropped."""
        if self._shared is None:
            return
        number = self._shared.plan.number
        lost = {d for d in self.owed if (number, d) not in self.history.queued}
        self.owed.clear()
        if lost and self._counts().dropped == before.dropped:
            self.history.violation(f"reader: {sorted(lost)[:3]} turned up and are not queued")

    def refresh(self) -> None:
        history = self.history
        serves, unread = history.serves(), history.unread
        plan = self._plan_number()
        live, side = len(history.tokens("docs")), len(history.tokens(f"docs-lazy-{plan}"))
        done = _tried(self.index.refresh)
        if isinstance(done, Exception) or history.unread > unread:
            return
        if not serves and not history.serves():
            self.is_over = True
        elif serves or history.serves():
            self.is_over = False
        record, pair = self.index._open()
        if record.generation < live:
            history.violation("reader: a refresh left a release that was replaced before")
        if not isinstance(pair, LazyPair) or pair.shared.plan.number != plan or pair.side.broken:
            return
        tokens = history.tokens(f"docs-lazy-{plan}")
        if pair.side.token in tokens and tokens.index(pair.side.token) + 1 < side:
            history.violation("reader: a refresh left a new side that was replaced before")

    def _plan_number(self) -> int:
        return len(self.history._records("lazy/docs/plans"))

    def _pair(self) -> LazyPair | None:
        pair = self.index.current
        paired = pair if isinstance(pair, LazyPair) else None
        shared = paired.shared if paired else None
        if shared is not self._shared:
            self._shared = shared
            self.owed.clear()
        return paired

    def _counts(self) -> LazyCounts:
        return self.index.lazy or LazyCounts()

    # --- answers ---

    def ask(self) -> None:
        """One question, and all that must hold of the answer."""
        history, pair, current = self.history, self._pair(), self.index.current
        old = pair.old if pair else current
        texts = history.texts(old.release)
        query, k = texts[history.rng.choice(sorted(texts))], history.rng.choice((3, 14))
        opened = pair.side.opened if pair else None
        ended = pair is not None and pair.shared.watch.has_ended
        before = self._counts()
        hits = attempt(lambda: current.search([query], k)[0])
        if isinstance(hits, ReembedError):
            history.violation(f"reader: {hits}")
            return
        answer = [(str(h.doc_id), h.score) for h in hits]
        if len({d for d, _ in answer}) < len(answer):
            history.violation("reader: a document is in an answer twice")
        if unknown := [d for d, _ in answer if d not in texts]:
            history.violation(f"reader: {unknown[:3]} are not in {old.release.id}")
            return
        side = opened.release.release if opened else None
        new = history.texts(side) if side else {}
        migrated = {d for d, text in texts.items() if new.get(d) == text}
        fused = self._check_counts(before, pair, ended, answer, migrated)
        if fused and self.is_over and migrated:
            history.violation("reader: an answer of the new side after the stop was read")
        if not fused or side is None:
            self._check_old(old.release, query, answer, k)
        elif pair is not None and pair.shared.plan.fusion == "slots":
            depth = max(k, pair.shared.plan.depth)
            listed = [(str(h.doc_id), h.score) for h in old.search([query], depth)[0]]
            self._check_old(old.release, query, listed, depth)
            self._check_slots(side, query, (answer, listed), migrated)
        else:
            self._check_both(side, query, answer, migrated)
        if pair is not None and not ended and pair.shared.watch.queues and not pair.side.broken:
            self.owed |= {d for d, _ in answer if d not in migrated}

    def _check_counts(
        self, before: LazyCounts, pair: Any, ended: bool, answer: Any, migrated: set[str]
    ) -> bool:
        """One answer is counted once, and its documents by their side; whether both sides answered."""
        after = self._counts()
        more = {
            name: getattr(after, name) - getattr(before, name)
            for name in ("fused", *_ALONE, "hits", "hits_new")
        }
        expected = (0, 0, 0)
        if pair is not None and not ended:
            expected = (1, len(answer), sum(d in migrated for d, _ in answer))
        answers = more["fused"] + sum(more[name] for name in _ALONE)
        if (answers, more["hits"], more["hits_new"]) != expected:
            self.history.violation(f"reader: an answer of {expected} was counted as {more}")
        return bool(more["fused"] == 1)

    def _scores(self, release: Release, query: str) -> tuple[dict[str, float], dict[str, str]]:
        texts = self.history.texts(release)
        asked = encoders.load_encoder(release.encoder).embed_queries([query])[0]
        return {d: float(asked @ self.history.vector(release, t)) for d, t in texts.items()}, texts

    def _check_old(self, release: Release, query: str, answer: Any, k: int) -> None:
        """The k best of the old side, each with its score; documents of one score in any order."""
        scores, _ = self._scores(release, query)
        best = sorted(scores.values(), reverse=True)[:k]
        found = [score for _, score in answer]
        own = [scores[d] for d, _ in answer]
        if len(found) != len(best) or not (
            np.allclose(found, best, atol=_NEAR) and np.allclose(found, own, atol=_NEAR)
        ):
            self.history.violation(f"reader: an answer of {release.id} alone is not its best {k}")

    def _check_slots(
        self, side: Release, query: str, both: tuple[Any, Any], migrated: set[str]
    ) -> None:
        """Migrated documents change places among those that they have in the old list, by their new scores."""
        answer, listed = both
        scores, _ = self._scores(side, query)
        order = iter(sorted((scores[d] for d, _ in listed if d in migrated), reverse=True))
        wrong = len(answer) > len(listed) or not {d for d, _ in answer} <= {d for d, _ in listed}
        for (was, place), (is_now, score) in zip(listed, answer, strict=False):
            wrong |= abs(place - score) > _NEAR
            if was in migrated:
                wrong |= is_now not in migrated or abs(scores[is_now] - next(order)) > _NEAR
            else:
                wrong |= was != is_now
        if wrong:
            self.history.violation(f"reader: an answer is not the old list ranked by {side.id}")

    def _check_both(self, side: Release, query: str, answer: Any, migrated: set[str]) -> None:
        """Best first. Where both sides are searched, the other tests say which is where."""
        found = [score for _, score in answer]
        if found != sorted(found, reverse=True):
            self.history.violation(f"reader: an answer with {side.id} is not best first")


def _tried(work: Any) -> Any:
    """What it returns, or the error that a thread of the process would log."""
    try:
        return work()
    except (ReembedError, OSError, ValueError) as error:
        return error
