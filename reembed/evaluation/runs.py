"""Run files in TREC format: what a user's own pipeline found, with either release behind it.

A line is `query-id Q0 doc-id rank score tag`. As trec_eval does, documents are ranked by their
scores, and the rank of a line is not read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from reembed.errors import UsageError
from reembed.evaluation.figures import DEPTH, RunFile, Sides
from reembed.evaluation.metrics import Ranked, ranking
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.rows import Place, bad, text_in
from reembed.plural import counted
from reembed.store.paths import absolute, is_remote

MOST_MISSING = 0.1
"""Share of the judged queries that a run file may lack; beyond it, the file is incomplete or another's."""
_FIELDS = 6
_AGAIN = (
    "reembed compare --runs OLD NEW     # OLD and NEW: files in TREC format, of the judged queries"
)

Found = dict[str, dict[str, float]]
"""For each query, the score of each document."""


@dataclass(frozen=True)
class Run:
    """A run file, as it was read."""

    place: str
    sha256: str
    found: Found


def read_run(uri: str, options: dict[str, str]) -> Run:
    """Read a run file, local or in an object store; .gz is decompressed.

    Raises:
        UsageError: the file cannot be read, or a line has other fields, a score that is not a finite
            number, or a document that the query had before.
    """
    place = Place.of(absolute(uri), options, "a run file", _AGAIN)
    place.require()
    if not is_remote(place.uri) and Path(place.uri).is_dir():
        raise place.missing(why="it is a folder, not a file")
    content = place.content()
    found: Found = {}
    for at, query_id, doc_id, score in _lines(place.uri, content):
        scores = found.setdefault(query_id, {})
        if doc_id in scores:
            raise bad(at, f"query {query_id!r} has document {doc_id!r} twice")
        scores[doc_id] = score
    return Run(place.uri, hashlib.sha256(content).hexdigest(), found)


def read_runs(places: tuple[str, str], options: dict[str, str]) -> Sides[Run]:
    """Read the run files of live and of the candidate.

    Raises:
        UsageError: as `read_run`, or both have the same content.
    """
    runs = Sides(*places).each(lambda place: read_run(place, options))
    if runs.live.found == runs.candidate.found:
        raise UsageError(
            f"--runs: {runs.live.place} and {runs.candidate.place} hold the same results",
            f"sha256 {runs.live.sha256[:12]} and {runs.candidate.sha256[:12]};"
            " nothing can differ, so that the gate would pass whatever the candidate finds",
            _AGAIN,
        )
    return runs


def _lines(place: str, content: bytes) -> Iterator[tuple[str, str, str, float]]:
    """Yield the place, query, document and score of each line that is not blank."""
    for number, line in enumerate(text_in(place, content).split("\n"), start=1):
        cells, at = line.split(), f"{place}:{number}"
        if not cells:
            continue
        if len(cells) != _FIELDS:
            raise bad(at, f"{len(cells)} fields where TREC's format has {_FIELDS}")
        try:
            score = float(cells[4])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise bad(at, f"score {cells[4]!r:.80} is not a finite number")
        yield at, cells[0], cells[2], score


def shared_queries(queries: EvalSet, runs: Sides[Run]) -> EvalSet:
    """Return the judged queries that can be compared.

    One that live's file lacks is left out: a gain over nothing shows nothing. One that only the
    candidate's lacks stays, and counts as one without results, since users would see none.

    Raises:
        UsageError: a file lacks more than a tenth of the queries, or ids are not unique among sets.
    """
    if twice := len(queries.query_ids) - len(set(queries.query_ids)):
        raise UsageError(
            f"{twice} ids of judged queries are in more than one set",
            "a line of a run file names a query by its id alone",
            "give the queries ids that are unique in all sets, then run again",
        )
    for run in (runs.live, runs.candidate):
        missing = [q for q in queries.query_ids if q not in run.found]
        if len(missing) > MOST_MISSING * len(queries.query_ids):
            raise UsageError(
                f"{run.place} lacks {len(missing)} of {counted(len(queries.query_ids), 'judged query')},"
                f" among them {missing[0]!r}",
                _queries_in(run),
                _AGAIN,
            )
    return queries.take([at for at, q in enumerate(queries.query_ids) if q in runs.live.found])


def _queries_in(run: Run) -> str:
    if not run.found:
        return "it has no line"
    return f"it has {counted(len(run.found), 'query')}, such as {next(iter(run.found))!r}"


def lists_of(run: Run, queries: EvalSet) -> Ranked:
    """Return the result lists of a run file, ranked by score, DEPTH documents at most."""
    found = ((query_id, run.found.get(query_id, {})) for query_id in queries.query_ids)
    return Ranked.of(
        ranking(list(scores), list(scores.values()), query_id, DEPTH) for query_id, scores in found
    )


def fit(run: Run, queries: EvalSet, lists: Ranked, held: Collection[str]) -> RunFile:
    """Return how a run file fits all judged queries, and its lists the documents `held` by the release.

    Raises:
        UsageError: the release has no document of its results: the ids are of different kinds.
    """
    asked = set(queries.query_ids)
    documents = {doc_id for found in lists.ids for doc_id in found}
    unknown = documents.difference(held)
    if documents and unknown == documents:
        raise UsageError(
            f"{run.place}: the release has none of the {counted(len(documents), 'document')} in its results",
            f"they are named like {min(documents)!r}",
            "reembed config     # source.id_column and the run file must use the same ids",
        )
    return RunFile(
        place=run.place,
        sha256=run.sha256,
        queries=len(asked & run.found.keys()),
        missing=len(asked - run.found.keys()),
        unjudged=len(run.found.keys() - asked),
        unknown=len(unknown),
    )
