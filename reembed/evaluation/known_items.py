"""Known-item search: is a document found by its own first sentence? It needs no judgements.

Arrays: I documents that are looked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from reembed.errors import SourceError
from reembed.evaluation.figures import KnownItems, Sides
from reembed.evaluation.held import Held
from reembed.evaluation.statistics import Floats
from reembed.serving.live import OpenRelease
from reembed.source.dataset import Source
from reembed.store.storage import first_line

ITEMS = 200
"""Documents that are looked for."""
DEPTH = 10
SEED = 0
_SHORTEST, _LONGEST = 12, 200
_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])")


@dataclass(frozen=True)
class Searched:
    """What both releases find for each document that was looked for."""

    figures: KnownItems
    reciprocal: Sides[Floats]
    """1 / rank of the document, 0 if it is not among the first ten [I]."""
    repeated: int
    """Documents left out, since others of the sample begin with the same sentence."""

    @classmethod
    def nothing(cls, why: str, repeated: int = 0) -> Searched:
        """Return that nothing was looked for."""
        return cls(KnownItems(0, None, why), Sides(np.empty(0), np.empty(0)), repeated)


def known_items(opened: Sides[OpenRelease], source: Source, held: Sides[Held]) -> Searched:
    """Search both releases for documents of the source, by sentences that only one of them begins with.

    Args:
        opened: the two releases.
        source: the candidate's, at the version that it equals.
        held: the documents that each holds.
    """
    try:
        drawn = source.sample(4 * ITEMS, SEED)
    except (SourceError, OSError, ValueError) as error:
        return Searched.nothing(f"the source cannot be read: {first_line(error)}")
    in_both = np.ones(len(drawn), dtype=bool)
    for side in (held.live, held.candidate):
        in_both &= np.isin([hash(doc_id) for doc_id, _ in drawn], side.hashes)
    sentences = [(doc_id, first_sentence(text)) for doc_id, text in drawn]
    begins = [item for item, both in zip(sentences, in_both, strict=True) if both and item[1]]
    alone = _alone(begins, (sentence for _, sentence in sentences))
    repeated, items = len(begins) - len(alone), alone[:ITEMS]
    if not items:
        what = f"a first sentence of {_SHORTEST} characters that no other begins with"
        return Searched.nothing(f"no document of {len(drawn):,} has {what}", repeated)
    reciprocal = opened.each(lambda side: _reciprocal(side, items))
    mrr = reciprocal.each(lambda ranks_I: float(ranks_I.mean()))
    return Searched(KnownItems(len(items), mrr), reciprocal, repeated)


def _alone(items: list[tuple[str, str]], sentences: Iterable[str]) -> list[tuple[str, str]]:
    """Return the items whose sentence occurs once: a shared one (a header, a greeting) finds any of them."""
    times = Counter(sentences)
    return [(doc_id, sentence) for doc_id, sentence in items if times[sentence] == 1]


def first_sentence(text: str) -> str:
    """Return the first sentence, or its first 200 characters; empty if it has fewer than 12."""
    sentence = _END.split(text.strip(), maxsplit=1)[0][:_LONGEST].strip()
    return sentence if len(sentence) >= _SHORTEST else ""


def _reciprocal(opened: OpenRelease, items: list[tuple[str, str]]) -> Floats:
    vectors = opened.encode_queries([sentence for _, sentence in items])
    found = [[str(h.doc_id) for h in hits] for hits in opened.search(vectors, DEPTH)]
    ranks = [
        1 / (ids.index(doc_id) + 1) if doc_id in ids else 0.0
        for (doc_id, _), ids in zip(items, found, strict=True)
    ]
    return np.array(ranks)
