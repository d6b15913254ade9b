"""What both releases, or a user's pipeline on both, answer to the judged queries."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reembed.catalog.releases import Catalog
from reembed.evaluation import answers as timing
from reembed.evaluation.answers import Answers, OfIndex, index_used, truncated
from reembed.evaluation.differences import is_empty, judged_of, likeness, means, zero_results
from reembed.evaluation.figures import HowAnswered, LoggedQueries, RunFile, Sides
from reembed.evaluation.held import Held
from reembed.evaluation.known_items import Searched
from reembed.evaluation.logged import Sample, measure
from reembed.evaluation.metrics import Ranked, latency
from reembed.evaluation.operation import Operation
from reembed.evaluation.per_query import Pairs, PerQuery
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.runs import Run, fit, lists_of, shared_queries
from reembed.evaluation.scores import score_distributions
from reembed.evaluation.statistics import Floats
from reembed.serving.live import OpenRelease


@dataclass(frozen=True)
class Both:
    """Answers of both sides."""

    queries: EvalSet
    """Those that can be compared."""
    opened: Sides[OpenRelease]
    answers: Sides[Answers]
    lists: Sides[Ranked]
    """Of the answers, or of run files."""
    held: Sides[Held]
    of_index: Sides[OfIndex]
    search_s: Sides[Floats] | None
    """Seconds that a search takes, [T] each: of the first queries, in pairs; None if too few were timed."""

    @classmethod
    def of(
        cls,
        opened: Sides[OpenRelease],
        judged: EvalSet,
        runs: Sides[Run] | None,
        logged: Sample | None,
    ) -> Both:
        """Search both releases; take the lists of run files, if there are any, in place of what they find."""
        queries = shared_queries(judged, runs) if runs else judged
        answers = opened.each(lambda side: Answers.of(side, queries.texts, queries.query_ids))
        lists = answers.each(lambda side: side.lists)
        if runs:
            lists = runs.each(lambda run: lists_of(run, queries))
        named = frozenset(_named(lists if runs else None, logged))
        held = opened.each(lambda side: Held.read(side, queries, named))
        of_index = answers.each(Answers.of_index)
        times = timing.search_times(answers)
        return cls(queries, opened, answers, lists, held, of_index, times)

    def figures(self, catalog: Catalog) -> HowAnswered:
        """Return how both answer, whatever the judgements are."""
        live, candidate = self.lists.live, self.lists.candidate
        alike = likeness(live, candidate)
        return HowAnswered(
            ann_recall_at_10=self.of_index.each(lambda of: float(np.nanmean(of.ann_recall_Q))),
            overlap_at_10=float(alike["overlap@10"].mean()),
            rbo=float(alike["rbo"].mean()),
            same_lists=sum(map(operator.eq, live.ids, candidate.ids)),
            judged_at_10=means(judged_of(self.queries, live, candidate)),
            zero_results=zero_results(live.ids, candidate.ids),
            latency=self.search_s.each(latency) if self.search_s else None,
            encoding=timing.encoding_latency(self.answers),
            index=self.opened.each(lambda side: index_used(catalog.storage, side)),
            curve=self.of_index.each(lambda of: of.curve),
            scores=score_distributions(self.queries, self.lists),
            not_embedded=self.answers.each(lambda side: len(side.texts) - len(side.known)),
            truncated=self.answers.each(truncated),
        )

    def operation(self, answered: HowAnswered, items: Searched) -> Operation:
        """Return what the rules about answers judge."""
        return Operation(
            judged_at_10=answered.judged_at_10,
            empty=self.lists.each(lambda side: is_empty(side.ids)),
            search_s=self.search_s,
            known_items=items,
        )

    def rows(self, pairs: Pairs) -> PerQuery:
        """Return the values of each query, with these metrics."""
        lists = self.lists.live, self.lists.candidate
        more = {
            "judged@10": judged_of(self.queries, *lists),
            "ann_recall@10": (
                self.of_index.live.ann_recall_Q,
                self.of_index.candidate.ann_recall_Q,
            ),
        }
        return PerQuery.of("judged", self.queries, lists, pairs | more, likeness(*lists))

    def run_files(self, runs: Sides[Run], judged: EvalSet) -> Sides[RunFile]:
        """Return how run files fit all judged queries and the documents of each release."""
        return Sides(
            fit(runs.live, judged, self.lists.live, self.held.live.named),
            fit(runs.candidate, judged, self.lists.candidate, self.held.candidate.named),
        )

    def of_log(self, logged: Sample) -> tuple[LoggedQueries, PerQuery]:
        """Ask logged queries, too."""
        return measure(logged, self.opened, self.held.candidate.named)


def _named(lists: Sides[Ranked] | None, logged: Sample | None) -> Iterator[str]:
    """Yield the documents that run files and clicks name."""
    if lists:
        for found in (*lists.live.ids, *lists.candidate.ids):
            yield from found
    if logged:
        for clicks in logged.queries.qrels:
            yield from clicks
