"""Comparisons that were made: every one is kept, none is overwritten, and `promote` reads the newest.

comparisons/ALIAS/CANDIDATE/LIVE/00000001.json   create-only; CANDIDATE and LIVE are the rebuilds
                                                 that the two releases grew out of by catch-ups
comparisons/ALIAS/CANDIDATE/LIVE/00000001.html   its report
comparisons/ALIAS/CANDIDATE/LIVE/00000001.pass   or .fail, .inconclusive: empty, so that a listing
                                                 shows every verdict; nothing is decided by it
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import get_args

from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import Evidence, Outcome
from reembed.errors import IntegrityError
from reembed.evaluation.comparison import Comparison
from reembed.store.records import decode, encode

_NUMBER = re.compile(r"([0-9]{8})\.json")


def keep(catalog: Catalog, live: Release, candidate: Release, record: Comparison) -> Comparison:
    """Add a comparison to those of its pair, and return it with its number, the earlier ones and its report's path."""
    pair = f"{folder(catalog, candidate)}/{live.origin}"
    while True:
        earlier = tuple(r.summary() for r in of_model(catalog, live, candidate))
        number = len(_numbers(catalog, pair)) + 1
        path = f"{pair}/{number:08d}"
        kept = replace(record, number=number, earlier=earlier, report=f"{path}.html")
        if catalog.storage.create(f"{path}.json", encode(kept)):
            catalog.storage.write_bytes(f"{path}.{kept.verdict}", b"")
            return kept


def read(catalog: Catalog, path: str) -> Comparison:
    """Return a comparison that was kept.

    Raises:
        IntegrityError: it has another form than `keep` gives it.
    """
    return decode(Comparison, catalog.storage.read(path))


def newest(catalog: Catalog, live: Release, candidate: Release) -> Comparison | None:
    """Return the last comparison of a candidate's line with live's; None if there is none.

    Raises:
        IntegrityError: comparisons were removed, or this one is of another pair.
    """
    pair = f"{folder(catalog, candidate)}/{live.origin}"
    numbers = _numbers(catalog, pair)
    if not numbers:
        return None
    path = f"{pair}/{numbers[-1]:08d}.json"
    record = read(catalog, path)
    compared = record.candidate.release, record.live.release
    origins = [catalog.release(r).origin for r in compared]
    if origins != [candidate.origin, live.origin] or record.number != numbers[-1]:
        raise IntegrityError(
            f"{path} is a comparison of other releases",
            "it compared {} with {}".format(*compared),
            f"reembed compare --candidate {candidate.id}",
        )
    return record


def last(catalog: Catalog, live: Release, candidate: Release) -> Evidence | None:
    """Return what the alias's log keeps of a pair's last comparison when the gate is overruled, if any."""
    found = _with_live(catalog, live).get(candidate.origin)
    return found[-1].evidence() if found else None


def compared_with(catalog: Catalog, candidate: Release) -> list[str]:
    """Return the lines that a candidate's line was compared with, by their first release."""
    return catalog.storage.folders(f"{folder(catalog, candidate)}/")


@dataclass(frozen=True)
class Newest:
    """The last comparison of a pair."""

    path: str
    named: Outcome | None
    """The verdict that a file beside it names; None if its writer was killed before that."""

    def verdict(self, catalog: Catalog) -> Outcome:
        """Return the verdict as named, or as the comparison says."""
        return self.named or read(catalog, self.path).verdict


Pairs = dict[tuple[str, str], Newest]
"""By the lines of candidate and live."""


def pairs(catalog: Catalog) -> Pairs:
    """Return what was compared with what: one listing, no record is read."""
    listed = _listed(catalog)
    outcomes: tuple[Outcome, ...] = get_args(Outcome)

    def newest(path: str) -> Newest:
        stem = path.removesuffix(".json")
        return Newest(path, next((o for o in outcomes if f"{stem}.{o}" in listed), None))

    return {pair: newest(paths[-1]) for pair, paths in _paths(listed).items()}


def of_model(catalog: Catalog, live: Release, candidate: Release) -> list[Comparison]:
    """Return the comparisons of a candidate's weights with live's line, oldest first.

    Other settings (prompts, dtype, dimensions) do not count: a small change of one is not a new
    model, and another space costs only a run.
    """
    found = [r for records in _with_live(catalog, live, every=True).values() for r in records]
    weights = candidate.space.identity.model_sha256
    mine = [r for r in found if r.candidate.model_sha256 == weights]
    return sorted(mine, key=lambda r: (r.at, r.candidate.release, r.number))


def folder(catalog: Catalog, candidate: Release) -> str:
    """Return the folder of the comparisons of a candidate's line."""
    return f"comparisons/{catalog.alias}/{candidate.origin}"


def _with_live(
    catalog: Catalog, live: Release, *, every: bool = False
) -> dict[str, list[Comparison]]:
    """Return comparisons with live's line by the candidate's line: the newest of each, or every one."""
    return {
        line: [read(catalog, p) for p in (found if every else found[-1:])]
        for (line, live_line), found in _paths(_listed(catalog)).items()
        if live_line == live.origin
    }


def _listed(catalog: Catalog) -> dict[str, None]:
    """Return the paths of what is kept of an alias's comparisons, sorted."""
    return {path: None for path, _ in catalog.storage.objects(f"comparisons/{catalog.alias}/")}


def _paths(listed: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """Return the paths of the comparisons of each pair, oldest first."""
    paths: dict[tuple[str, str], list[str]] = {}
    for path in listed:
        place = path.split("/")[2:]
        if len(place) == 3 and _NUMBER.fullmatch(place[2]):
            paths.setdefault((place[0], place[1]), []).append(path)
    return paths


def _numbers(catalog: Catalog, pair: str) -> list[int]:
    names = map(_NUMBER.fullmatch, catalog.storage.names(f"{pair}/"))
    numbers = [int(m[1]) for m in names if m]
    if numbers != list(range(1, len(numbers) + 1)):
        raise IntegrityError(
            f"comparisons were removed from {pair}",
            f"there are numbers {', '.join(map(str, numbers))}",
            "reembed status     # and put the files back from a backup of the store",
        )
    return numbers
