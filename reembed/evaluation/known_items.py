"""Known-item search: is a document found by its own first sentence? It needs no judgements."""

from __future__ import annotations

import re

import numpy as np

from reembed.errors import SourceError
from reembed.evaluation.figures import KnownItems, Sides
from reembed.evaluation.held import Held
from reembed.serving.live import OpenRelease
from reembed.source.dataset import Source
from reembed.store.storage import first_line

ITEMS = 200
"""Documents that are looked for."""
DEPTH = 10
_SEED = 0
_SHORTEST, _LONGEST = 12, 200
_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])")


def known_items(opened: Sides[OpenRelease], source: Source, held: Sides[Held]) -> KnownItems:
    """Search both releases for documents of the source.

    Args:
        opened: the two releases.
        source: the candidate's, at the version that it equals.
        held: the documents that each holds.
    """
    try:
        drawn = source.sample(4 * ITEMS, _SEED)
    except (SourceError, OSError, ValueError) as error:
        return KnownItems(0, None, f"the source cannot be read: {first_line(error)}")
    in_both = np.ones(len(drawn), dtype=bool)
    for side in (held.live, held.candidate):
        in_both &= np.isin([hash(doc_id) for doc_id, _ in drawn], side.hashes)
    items = [
        (d, first_sentence(text)) for (d, text), both in zip(drawn, in_both, strict=True) if both
    ]
    items = [(d, sentence) for d, sentence in items if sentence][:ITEMS]
    if not items:
        return KnownItems(0, None, f"no document has a first sentence of {_SHORTEST} characters")
    return KnownItems(len(items), opened.each(lambda side: _mrr(side, items)))


def first_sentence(text: str) -> str:
    """Return the first sentence, or its first 200 characters; empty if it has fewer than 12."""
    sentence = _END.split(text.strip(), maxsplit=1)[0][:_LONGEST].strip()
    return sentence if len(sentence) >= _SHORTEST else ""


def _mrr(opened: OpenRelease, items: list[tuple[str, str]]) -> float:
    vectors = opened.encode_queries([sentence for _, sentence in items])
    found = [[str(h.doc_id) for h in hits] for hits in opened.search(vectors, DEPTH)]
    ranks = [
        1 / (ids.index(doc_id) + 1) if doc_id in ids else 0.0
        for (doc_id, _), ids in zip(items, found, strict=True)
    ]
    return float(np.mean(ranks))
