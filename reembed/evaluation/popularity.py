"""How often documents turned up in the answers of a query log, and how many more such queries would show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from reembed.config.gate import GateConfig
from reembed.evaluation.judged import CLICKS, SHOWN, ids_in, place_of_log, time_of

MOST = 1_000_000
"""Documents of a log that are counted at a time, about 200 MB; of more, the half that turned up least is forgotten."""
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Popularity:
    """What a log showed."""

    times: dict[str, int]
    """How many queries showed each document, the most first; of equal ones by id."""
    queries: int
    """Rows of the log."""
    results: int
    """Documents of all answers together."""
    only_clicks: bool
    """Whether the log has no list of what was shown, so that most of it is not known."""
    days: float | None
    """From the first query to the last; None without times."""

    @property
    def ever(self) -> float:
        """Return how many different documents would turn up in the end, if queries stay as they are.

        From how many turned up once and twice (Chao 1984, "Nonparametric estimation of the number of classes in a
        population", bias-corrected): a lower bound on average.
        """
        once, twice = (sum(n == times for n in self.times.values()) for times in (1, 2))
        return len(self.times) + once * (once - 1) / (2 * (twice + 1))

    def without(self, doc_ids: Iterable[str]) -> Popularity:
        """Return what it showed beside some documents."""
        left = dict.fromkeys(doc_ids)
        times = {doc_id: n for doc_id, n in self.times.items() if doc_id not in left}
        fewer = sum(self.times.get(doc_id, 0) for doc_id in left)
        return replace(self, times=times, results=self.results - fewer)


def popularity(gate: GateConfig, options: dict[str, str]) -> Popularity | None:
    """Count the log that a gate names; None if it names none.

    Each query counts one for every different document that it showed or that was clicked, so what is asked often
    counts often. A click counts no more than a place in the list: it says that the document was shown.

    Raises:
        UsageError: the log cannot be read, or a line of it is wrong.
    """
    if gate.logged is None:
        return None
    times: Counter[str] = Counter()
    queries, results, only_clicks = 0, 0, True
    first, last = "", ""
    for shown, clicked, time in _rows(gate.logged, options):
        queries += 1
        only_clicks = only_clicks and not shown
        found = {*shown, *clicked}
        results += len(found)
        times.update(found)
        if len(times) > MOST:
            times = Counter(dict(_most(times)[: MOST // 2]))
        if time is not None:
            first, last = min(first or time, time), max(last, time)
    return Popularity(dict(_most(times)), queries, results, only_clicks, _days(first, last))


def _rows(uri: str, options: dict[str, str]) -> Iterator[tuple[list[str], list[str], str | None]]:
    """Yield what each query of a log showed, what was clicked, and when."""
    for at, row in place_of_log(uri, options).rows({SHOWN, CLICKS, "timestamp"}):
        yield ids_in(row, SHOWN, at), ids_in(row, CLICKS, at), time_of(row, at)


def _most(times: Counter[str]) -> list[tuple[str, int]]:
    return sorted(times.items(), key=lambda item: (-item[1], item[0]))


def _days(first: str, last: str) -> float | None:
    if not first:
        return None
    passed = datetime.fromisoformat(last) - datetime.fromisoformat(first)
    return passed.total_seconds() / _DAY_S
