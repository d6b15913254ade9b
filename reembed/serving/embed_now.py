"""Embed documents of an answer that are not migrated while the answer waits for its new side.

The vector of a document that is ready in time counts in that answer as if the document were migrated. It is kept, so
that the next answer with the document has it at once. Nothing is written: the documents are queued as others are.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections import OrderedDict
from concurrent.futures import wait

from reembed import digests
from reembed.catalog.releases import Release
from reembed.encoders.base import Encoder
from reembed.errors import UsageError
from reembed.index.types import Float32, Int64
from reembed.serving.in_time import Alone, InTime
from reembed.serving.lazy_counts import Counts
from reembed.serving.lazy_fusion import Vectors
from reembed.serving.live import OpenRelease
from reembed.source.columns import text_columns
from reembed.source.documents import text_of
from reembed.table.read import TableVersion

AT_ONCE = 16
"""Documents that go through the model together."""
KEPT_BYTES = 32 * 2**20
"""Memory of the vectors that are kept."""
_OVERHEAD = 250
"""Bytes of a kept vector beside its numbers."""


class EmbedNow:
    """The new model for documents of answers, one piece of work at a time. Threads may share it."""

    def __init__(self, first: int, in_time: InTime, counts: Counts) -> None:
        """Take how many documents of each list are to be embedded, from the first place on."""
        self.first, self._in_time, self._counts = first, in_time, counts
        self._model, self._lock = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[bytes, Float32] = OrderedDict()
        """Vectors by the digest of their text."""

    def vectors(self, old: OpenRelease, new: OpenRelease, rows: Int64, until: float) -> Vectors:
        """Return the vectors of those documents that are ready before a time of `time.perf_counter`.

        An error of the model is told, and costs the answer nothing but these vectors.

        Args:
            old: the live release, which carries its text.
            new: the release of the new side, whose model embeds.
            rows: row ids of the live release's table, each once; the first ones are embedded first.
            until: when the answer waits no more.
        """
        made: dict[int, Float32] = {}
        dim = new.release.space.dim
        if not len(rows):
            return Vectors.of(made, dim)
        try:
            work = self._in_time.begin(self._make, old, new.encoder, rows, until, made)
        except Alone:  # too much is under way
            return Vectors.of(made, dim)
        wait([work], max(0.0, until - time.perf_counter()))
        if not work.done():
            work.cancel()
        elif isinstance(error := work.exception(), Exception):
            self._in_time.tell(error, "could not embed documents of an answer; it is without them")
        return Vectors.of(dict(made), dim)

    def _make(
        self,
        old: OpenRelease,
        encoder: Encoder,
        rows: Int64,
        until: float,
        made: dict[int, Float32],
    ) -> None:
        """Add vectors to `made` by row, until it is too late."""
        require_text(old.release)
        texts = _texts(old.table, old.release, rows)
        missing = dict(texts)
        for row, (text_hash, _) in texts.items():
            if (kept := self._found(text_hash)) is not None:
                made[row] = kept
                del missing[row]
        todo = list(missing.items())
        for start in range(0, len(todo), AT_ONCE):
            if not self._model.acquire(timeout=max(0.0, until - time.perf_counter())):
                return
            try:
                if time.perf_counter() >= until:
                    return
                some = todo[start : start + AT_ONCE]
                embedded = encoder.embed_documents([text for _, (_, text) in some])
            finally:
                self._model.release()
            self._counts.add(embedded=len(some) - len(embedded.failures))
            for at, (row, (text_hash, _)) in enumerate(some):
                if at not in embedded.failures:
                    made[row] = self._keep(text_hash, embedded.vectors[at].copy())

    def _found(self, text_hash: bytes) -> Float32 | None:
        with self._lock:
            if text_hash in self._kept:
                self._kept.move_to_end(text_hash)
            return self._kept.get(text_hash)

    def _keep(self, text_hash: bytes, vector: Float32) -> Float32:
        most = KEPT_BYTES // (vector.nbytes + _OVERHEAD)
        with self._lock:
            self._kept[text_hash] = vector
            while len(self._kept) > most:
                self._kept.popitem(last=False)
        return vector


def require_text(release: Release) -> None:
    """Check that a release carries the columns that its text is made of.

    Raises:
        UsageError: it does not.
    """
    columns = text_columns(release.source)
    missing = [c for c in columns if c not in release.source.carry]
    if missing:
        carry = f"table.carry=[{','.join(dict.fromkeys([*release.source.carry, *columns]))}]"
        raise UsageError(
            f"release {release.id} does not carry {', '.join(missing)}, so lazy_embed has no text to embed",
            "documents of answers are embedded from the carried columns of the live table",
            f"reembed run --set {shlex.quote(carry)}     # with live's model, and promoted before `reembed lazy start`:"
            " answers are of both sides only while the line is live that the migration started from",
        )


def _texts(table: TableVersion, release: Release, rows: Int64) -> dict[int, tuple[bytes, str]]:
    """Return by row the digest of the text that was embedded, and that text; rows without it are left out."""
    found = table.take(rows, ["text_hash", *text_columns(release.source)])
    hashes, texts = found["text_hash"].to_pylist(), text_of(release.source, found).to_pylist()
    return {
        row: (text_hash, text.decode("utf-8", "replace"))
        for row, text_hash, text in zip(rows.tolist(), hashes, texts, strict=True)
        if text is not None and digests.digest(text) == text_hash
    }
