"""`Index`: what an alias serves, open for queries in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self
from weakref import WeakValueDictionary, finalize

from reembed.catalog.releases import AliasRecord, Catalog, Release
from reembed.config.options import require_texts, secrets_in
from reembed.errors import UsageError, require_positive, require_whole
from reembed.index.types import Float32
from reembed.serving.embed_now import require_text
from reembed.serving.follow import Follower
from reembed.serving.in_time import BUDGET_S
from reembed.serving.interleave import Interleaving
from reembed.serving.lazy_counts import LazyCounts
from reembed.serving.lazy_serving import LazyServing
from reembed.serving.live import EncodedQueries, Hit, OpenRelease
from reembed.serving.shadow import Shadow, ShadowRead
from reembed.store.paths import require_id
from reembed.store.storage import Storage

if TYPE_CHECKING:
    from lancedb.table import Table


def open(
    root: str | os.PathLike[str],
    alias: str,
    *,
    options: Mapping[str, str] | None = None,
    refresh_every: float | None = None,
    lazy_budget: float = BUDGET_S,
    lazy_embed: int = 0,
) -> Index:
    """Open what an alias serves: its index, its table and its query model, checked.

    The index is mapped: it takes room in the page cache, and memory of the process's own only for lists of fast-scan
    codes (PQ..x4fs), a quarter of a byte or less per dimension and vector. From an object store, a copy takes
    room in the temporary folder (TMPDIR) until the index is freed.

    Args:
        root: `storage.root` of the config: a folder, or an s3://, gs:// or az:// URL. Nothing is
            created or written there.
        alias: the name that was promoted to.
        options: `storage.options` of the config, for object stores. A key or token is written as
            `env:NAME`, or comes from the environment or the instance role.
        refresh_every: seconds between refreshes by a thread, until the index is closed; None: only `refresh`
            follows the alias. A refresh that fails leaves the release before in service, is logged, and is in
            `refresh_error` until one succeeds.
        lazy_budget: seconds that an answer waits for the new side of a lazy migration once the old side's part is
            ready; then it is the old side's alone.
        lazy_embed: while a lazy migration serves, embed those of the first so many documents of each answer that are
            not migrated with the new model, as many as are ready within `lazy_budget`. The live release must carry
            the columns of its text (`table.carry`).

    Raises:
        UsageError: the root does not exist, nothing was promoted to the alias, an option holds a secret,
            `refresh_every` or `lazy_budget` is not positive, or `lazy_embed` is not valid.
        IntegrityError: a record, the index or the table is not what was registered.
        SpaceMismatch: the model found here does not produce the vectors of the release.
    """
    if not isinstance(root, str | os.PathLike):
        raise UsageError(
            f"root must be a path or a URL, not {root!r:.80}",
            None,
            'reembed.open("./vectors", "docs")',
        )
    require_texts(options)
    if secrets := secrets_in(options or {}):
        raise UsageError(
            f"options hold a secret: {', '.join(secrets)}",
            "a process that opens an index may be logged and pickled with its options",
            f'options={{"{secrets[0]}": "env:{secrets[0].upper()}"}}',
        )
    catalog = Catalog(Storage.existing(root, options), alias)
    return Index(catalog, refresh_every, lazy_budget, lazy_embed)


class Index:
    """The release that an alias names, open for queries; `refresh` follows the alias.

    While a lazy migration of the alias serves, answers are of both its sides (docs/lazy.md).
    Threads may share it. It is a context manager that closes itself; a closed one raises UsageError.
    """

    def __init__(
        self,
        catalog: Catalog,
        refresh_every: float | None = None,
        lazy_budget: float = BUDGET_S,
        lazy_embed: int = 0,
    ) -> None:
        """Open what is live now; the rest is as `reembed.open` says.

        Raises:
            UsageError: nothing was promoted yet, the alias is not a plain name, a number is not valid, or the live
                release does not carry the text that `lazy_embed` needs.
        """
        require_positive("lazy_budget", lazy_budget, BUDGET_S)
        require_whole("lazy_embed", lazy_embed, 0, 50)
        if refresh_every is not None:
            require_positive("refresh_every", refresh_every, 30.0)
        self._catalog = catalog
        self._loading = threading.Lock()
        self._closing = threading.Lock()
        self._shadowing = threading.Lock()
        self._shadow: Shadow | None = None
        self._lazy = LazyServing(catalog, lazy_budget, lazy_embed)
        finalize(self, self._lazy.close)  # also at exit: documents that turned up are kept
        require_id("alias", catalog.alias)
        live = catalog.require_live()
        if lazy_embed:
            require_text(live.release)
        self._opened: WeakValueDictionary[str, OpenRelease] = WeakValueDictionary()
        """What is open here by the release's id: live, candidates beside it, and those that searches still hold."""
        self._serving: tuple[AliasRecord, OpenRelease] | None = self._load(live)
        """A step of the alias and its open release, replaced together."""
        self.refresh_error: Exception | None = None
        """Why the last refresh of `refresh_every` failed; None if it did not."""
        self._follower = None if refresh_every is None else Follower(self, refresh_every)

    @property
    def alias(self) -> str:
        """The name that it follows."""
        return self._catalog.alias

    @property
    def release(self) -> Release:
        """The release that answers: its id, rows, space (with the model), source and more."""
        return self.current.release

    @property
    def current(self) -> OpenRelease:
        """The open release that answers, with its index, table and encoder.

        It stays usable after a `refresh`, for a caller that asks one release several things.
        """
        return self._open()[1]

    @property
    def lazy(self) -> LazyCounts | None:
        """What became of the answers while lazy migrations served; None if none did since it was opened."""
        return self._lazy.counts

    def search(
        self,
        queries: Sequence[str] | Float32 | EncodedQueries,
        k: int = 10,
        columns: Sequence[str] = (),
        filter: str | None = None,
    ) -> list[list[Hit]]:
        """Return the k best documents of each query, best first; fewer if fewer meet the filter.

        All hits of a call are of one release.

        Args:
            queries: texts, or what `encode_queries` returned, or vectors float32 [Q, dim] of the space of
                whatever release is live. Without queries the result is empty.
            k: hits per query.
            columns: carried columns (`table.carry`) to return with each hit.
            filter: a condition over carried columns in Lance's SQL, such as `"category = 'x' AND year > 2020"`,
                that each document must meet; it is applied before k. A column that is null meets only IS NULL.
                The first search with a filter reads its columns of all rows.

        Raises:
            UsageError: `queries`, `k`, `columns` or `filter` are not valid.
            SpaceMismatch, EncoderError: vectors are of another space, have another dimension, or hold NaN
                or infinity.
            IntegrityError: gc removed the table that `columns` and `filter` are read from; `refresh`
                opens what is live.
        """
        shadow = self._shadow
        if shadow is None or not shadow.is_open:
            return self.current.search(queries, k, columns, filter)
        return shadow.search(self.current, queries, k, columns, filter)

    def shadow(
        self,
        candidate: str,
        on_read: Callable[[ShadowRead], object],
        share: float = 0.01,
        seed: int | None = None,
    ) -> Shadow:
        """Repeat a sample of the calls of `search` on a candidate, until what is returned is closed.

        The answers are those of the live release; the candidate is asked after them, in a thread of its own, which
        takes processor time and memory of this process. It is asked 50 times a second at most; calls that come sooner
        are dropped, and counted.

        Args:
            candidate: id of a release of the alias. It stays the same when the alias moves; while it is live itself,
                nothing is read.
            on_read: called in that thread with what both releases found. What it raises is counted.
            share: share of the calls, above 0 and at most 1.
            seed: of the sample; None: another one each time.

        Raises:
            UsageError: the release does not exist, gc removed it, another shadow is open, or `share` is not valid.
            IntegrityError, SpaceMismatch: as `open`.
        """
        with self._shadowing:
            if self._shadow is not None and self._shadow.is_open:
                what = f"{self._shadow.release.id} is a shadow of {self.alias} already"
                raise UsageError(what, "an index has one at a time", "shadow.close()     # first")
            self._shadow = Shadow(self._candidate(candidate), share, on_read, seed)
            return self._shadow

    def interleave(self, candidate: str, timeout_s: float = 1.0) -> Interleaving:
        """Return what answers with results of the live release and of a candidate in one list, and takes clicks.

        Args:
            candidate: id of a release of the alias.
            timeout_s: seconds that an answer waits for the candidate; then it is the live release's alone.

        Raises:
            UsageError: the release does not exist, gc removed it, or `timeout_s` is not positive.
            IntegrityError, SpaceMismatch: as `open`.
        """
        require_positive("timeout_s", timeout_s, 1.0)
        return Interleaving(lambda: self.current, self._candidate(candidate), timeout_s)

    def _candidate(self, release_id: str) -> OpenRelease:
        release = self._catalog.release(release_id)
        if self._catalog.is_retired(release):
            raise UsageError(f"release {release.id} was removed by gc", None, "reembed status")
        return self._open_release(release)

    def encode_queries(self, texts: Sequence[str]) -> EncodedQueries:
        """Return the vectors of query texts [Q, dim] with their space, for `search`.

        They can be kept: once a release of another space is live, `search` refuses them. While a lazy migration
        serves they are of both spaces, and are searched on both sides; after its end, on what was the new one.

        Raises:
            UsageError: it is not a list of texts, or the model knows no word of a text.
        """
        return self.current.encoded(texts)

    def lancedb(self) -> Table:
        """Return the table of the release that answers as LanceDB's: hybrid search, full text, SQL.

        It is at exactly the version of that release, and stays there: after a `refresh`, ask again. LanceDB refuses
        to write to it as long as it is not moved to another version (`checkout_latest`, `restore`): do not, the
        table belongs to reembed. Query vectors come from `encode_queries`.

        Raises:
            UsageError: LanceDB is not installed: `pip install 'reembed-ray[lancedb]'`.
            IntegrityError: gc removed the table, or it is not the one that was registered.
        """
        return self.current.lancedb()

    def refresh(self) -> bool:
        """Follow the alias, and its lazy migration; return True if one of them moved.

        A search sees the old release or the new one, never a mix. One thread loads at a time: a call
        during a load returns False at once, and searches continue in the old release. The memory of
        the old release is freed when the last search in it ends. Files of the index that both releases
        have, as after a catch-up, stay open and are not read again. So does the model, if both are of one
        space; it must give the golden vectors of the new release, too.

        Raises:
            IntegrityError, SpaceMismatch: as `open`; the old release continues to serve.
        """
        if not self._loading.acquire(blocking=False):
            return False
        try:
            before, open_now = self._open()
            record = self._catalog.require_live()
            opens = record.token != before.token
            loaded = self._load(record, open_now, opens=opens)
            moved = opens or loaded[1] is not open_now
            if moved:
                with self._closing:
                    self._open()
                    self._serving = loaded
            self.refresh_error = None
            return moved
        finally:
            self._loading.release()

    def close(self) -> None:
        """Free the index and the model when all running searches have ended. May be called again."""
        if self._follower is not None:
            self._follower.stop()
        if self._shadow is not None:
            self._shadow.close()
        with self._closing:
            self._serving = None
        self._lazy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load(
        self, record: AliasRecord, before: OpenRelease | None = None, *, opens: bool = True
    ) -> tuple[AliasRecord, OpenRelease]:
        """Return a step with its release, which is opened, or is still the one before."""
        old = before
        if old is None or opens:
            old = self._open_release(record.release)
        return record, self._lazy.beside(old, before)

    def _open_release(self, release: Release) -> OpenRelease:
        """Open a release; one that is open already, or parts that another has, are shared: a candidate may go live."""
        held = [opened for held in self._opened.valuerefs() if (opened := held()) is not None]
        for opened in held:
            if opened.release == release:
                return opened
        alike = [opened for opened in held if opened.release.space == release.space]
        same_line = [opened for opened in alike if opened.release.origin == release.origin]
        beside = next(iter([*same_line, *alike]), None)
        opened = OpenRelease.open(self._catalog.storage, release, beside)
        self._opened[release.id] = opened
        return opened

    def _open(self) -> tuple[AliasRecord, OpenRelease]:
        serving = self._serving
        if serving is None:
            raise UsageError(
                f"the index of {self.alias} is closed",
                "close() freed its index and its model",
                f"reembed.open({self._catalog.storage.root!r}, {self.alias!r})",
            )
        return serving
