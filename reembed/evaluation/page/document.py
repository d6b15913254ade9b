"""The report of a comparison: its page, and the files that it is written as."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from reembed.catalog.releases import AliasRecord, Release
from reembed.errors import UsageError
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.page import grounds, operation, quality
from reembed.evaluation.page.html import html
from reembed.evaluation.page.markdown import markdown
from reembed.evaluation.page.model import Judged, Page
from reembed.evaluation.page.numbers import clipped
from reembed.evaluation.per_query import ChangedMost, PerQuery
from reembed.source.dataset import Source
from reembed.store.records import encode

ENDINGS = (".html", ".md", ".json")
_MOST_TEXT, _MOST_BYTES, _MOST_IN_A_COMMENT = 160, 320, 60
"""Characters that are shown of a document's text, what they may take in HTML, and characters in Markdown."""
_MOST, _OF_ALL, _IN_A_COMMENT = 20, 80, 12
"""Queries that are shown: of those that lost, or won, by one metric; in all; in all in Markdown. So a page stays
below a megabyte, and Markdown below the 65,536 characters of a comment on GitHub."""


@dataclass(frozen=True)
class Report:
    """What a report is made from."""

    comparison: Comparison
    values: PerQuery
    candidate: Release
    log: list[AliasRecord]
    texts: Mapping[str, str] = field(default_factory=dict)
    """How the texts of documents begin, by id, if the report shows them."""

    @property
    def documents(self) -> set[str]:
        """Return the ids of the documents that it shows."""
        shown = self._changed_most(self._most(_OF_ALL)).values()
        return {doc_id for most in shown for doc_id in most.documents}

    def with_texts(self, source: Source) -> Report:
        """Return the same with how the texts of the documents begin.

        Raises:
            SourceError: the source cannot be read.
        """
        texts = source.texts(self.documents)
        return replace(self, texts={d: beginning(text) for d, text in texts.items()})

    def html(self) -> str:
        """Return one file of HTML that loads nothing."""
        return html(self._page(self._most(_OF_ALL)))

    def markdown(self) -> str:
        """Return Markdown for a comment on a pull request."""
        short = {d: clipped(text, _MOST_IN_A_COMMENT) for d, text in self.texts.items()}
        return markdown(replace(self, texts=short)._page(self._most(_IN_A_COMMENT)))

    def json(self) -> str:
        """Return the comparison's record, and the queries that changed most."""
        most = {
            metric: dataclasses.asdict(found)
            for metric, found in self._changed_most(self._most(_OF_ALL)).items()
        }
        return json.dumps(encode(self.comparison) | {"changed_most": most}, indent=2)

    def write(self, place: Path) -> None:
        """Write it as the ending of a path says."""
        write = {".html": self.html, ".md": self.markdown, ".json": self.json}[place.suffix]
        place.write_text(write(), encoding="utf-8")

    def _most(self, of_all: int) -> int:
        return max(1, min(_MOST, of_all // (2 * len(self.comparison.gate.metrics))))

    def _changed_most(self, most: int) -> dict[str, ChangedMost]:
        metrics = self.comparison.gate.metrics
        found = {metric: self.values.changed_most(metric, most) for metric in metrics}
        return {metric: some.with_texts(self.texts) for metric, some in found.items()}

    def _page(self, most: int) -> Page:
        c = self.comparison
        sections = (
            quality.changes(c),
            quality.slices(c),
            quality.changed_most(self._changed_most(most)),
            operation.score_section(c),
            operation.latency(c),
            operation.cut_offs(c),
            operation.curves(c),
            operation.sizes(c),
            operation.logged(c),
            grounds.compared(c, self.candidate, self.log),
            grounds.forward_and_back(c),
        )
        return Page(
            title=f"{c.alias}: candidate against live",
            verdict=Judged(c.verdict),
            lead=quality.lead(c),
            sections=tuple(s for s in sections if s is not None),
        )


def beginning(text: str) -> str:
    """Return as much of a document's text as the report shows."""
    shown = clipped(text, _MOST_TEXT)
    while len(escape(shown).encode()) > _MOST_BYTES:
        shown = clipped(shown, len(shown) * 3 // 4)
    return shown


def require_places(places: tuple[str, ...]) -> None:
    """Check that reports can be written to these files.

    Raises:
        UsageError: an ending is unknown, or a folder is not there.
    """
    for place in map(Path, places):
        if place.suffix not in ENDINGS:
            what = f"{place}: unknown kind of report"
            why = f"known endings: {', '.join(ENDINGS)}"
            raise UsageError(what, why, "reembed compare --report report.html")
        if not place.parent.is_dir():
            raise UsageError(
                f"{place}: cannot be written",
                f"there is no folder {place.parent}",
                f"mkdir -p {shlex.quote(str(place.parent))}",
            )
