"""Team-draft interleaving: two result lists shown as one, and which of them the clicks prefer.

Radlinski, Kurup and Joachims 2008, "How does clickthrough data reflect retrieval quality?". Both
lists answer the same user at the same moment, so it takes far fewer queries than a comparison of two means.
The credits are judged by `evaluation.sequential.always_valid`: the limit 0 asks whether the candidate is preferred.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from reembed.errors import UsageError

Team = Literal["live", "candidate"]


@dataclass(frozen=True)
class Interleaved:
    """One list for the user, best first."""

    doc_ids: tuple[str, ...]
    teams: tuple[Team, ...]
    """The release that each document is credited to."""


def team_draft(live: Sequence[str], candidate: Sequence[str], k: int, key: str) -> Interleaved:
    """Merge two lists of document ids, best first: both pick their best document that is left, in turns.

    The team with fewer picks goes first, and a coin decides between equals. Neither gains by a document that
    both have: either may be the one to pick it.

    Args:
        live: what the live release answers.
        candidate: what the candidate answers.
        k: how many documents to show; fewer if both lists end.
        key: what the coin depends on, so that the same answer can be made again: a seed and the request's id,
            or a seed, the user and the query. The query alone would give each user the same coin.
    """
    coin = random.Random(key)
    lists: dict[Team, Sequence[str]] = {"live": live, "candidate": candidate}
    teams: dict[str, Team] = {}  # in the order in which they are shown
    while len(teams) < k:
        left = {team: _best_left(doc_ids, teams) for team, doc_ids in lists.items()}
        able = [team for team, doc_id in left.items() if doc_id is not None]
        if not able:
            break
        picks = list(teams.values())
        fewest = min(map(picks.count, able))
        team = coin.choice([t for t in able if picks.count(t) == fewest])
        teams[str(left[team])] = team
    return Interleaved(tuple(teams), tuple(teams.values()))


def _best_left(doc_ids: Sequence[str], shown: Collection[str]) -> str | None:
    return next((d for d in doc_ids if d not in shown), None)


def credit(shown: Interleaved, clicked: Collection[str]) -> int:
    """Return which team has more of the clicked documents: 1 the candidate, -1 live, 0 neither.

    Raises:
        UsageError: a clicked document was not shown.
    """
    team_of = dict(zip(shown.doc_ids, shown.teams, strict=True))
    if unknown := sorted(set(clicked) - team_of.keys()):
        raise UsageError(
            f"clicked document {unknown[0]!r:.80} is not among the {len(team_of)} shown",
            "a click counts for the release that picked the document",
            "test.clicked(shown, [shown.hits[0].doc_id])     # documents of this answer",
        )
    teams = [team_of[d] for d in set(clicked)]
    ahead = teams.count("candidate") - teams.count("live")
    return (ahead > 0) - (ahead < 0)
