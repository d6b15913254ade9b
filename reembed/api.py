"""Every verb as a function: it takes a `Config`, prints nothing, and returns a frozen result.

`to_json()` of a result is what the verb prints with `--json`. `emit` is called with each event. A function
that only reads raises UsageError if the root does not exist. A serving process searches with `reembed.open`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reembed.catalog.releases import Catalog
from reembed.config.options import require_texts
from reembed.config.settings import Config, ResolvedConfig, load, require_config
from reembed.errors import require_whole, texts_of
from reembed.events import Listener, ignore
from reembed.store.storage import Storage

if TYPE_CHECKING:
    from reembed.engine.executor import Executor
    from reembed.evaluation.comparisons import Comparison
    from reembed.lifecycle.dead_letters import DeadLetters
    from reembed.lifecycle.gc_plan import Collected
    from reembed.lifecycle.moves import History, Moved
    from reembed.lifecycle.status import Status
    from reembed.lifecycle.verification import Verified
    from reembed.planning.tune import Tuned
    from reembed.serving.http.options import ServeOptions
    from reembed.serving.http.server import Served
    from reembed.serving.live import SearchResult
    from reembed.source.importer import Imported
    from reembed.strategies.candidate import Built
    from reembed.strategies.dual_index import Asked, Shadowed
    from reembed.strategies.up_to_date import CaughtUp


def _catalog_of(config: Config) -> Catalog:
    """Return the config's alias under its root."""
    require_config(config)
    storage = Storage.existing(config.storage.root, config.storage.options)
    return Catalog(storage, config.alias, config.stores)


def config(files: Sequence[str], overrides: Sequence[str] = ()) -> ResolvedConfig:
    """Load and check config files, left to right, then `NAME=VALUE` overrides.

    The result's `config` is what the other functions take.

    Raises:
        ConfigError: naming every wrong setting with its place and, for a typo, the nearest name.
    """
    named = texts_of("files", files, 'files=["reembed.yaml"]')
    changed = texts_of("overrides", overrides, 'overrides=["embed.actors=2"]')
    return ResolvedConfig(*load(named, changed))


def import_documents(
    files: Sequence[str],
    to: str,
    *,
    file_format: str | None = None,
    columns: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
) -> Imported:
    """Write a Lance dataset from JSONL, CSV or Parquet files, and compare every cell with them.

    Args:
        files: paths, all of one format.
        to: the dataset: a folder that does not exist, or an s3://, gs:// or az:// URL.
        file_format: json, csv or parquet; None: by the files' endings.
        columns: columns to keep; None: all.
        options: object-store settings of the dataset.

    Raises:
        UsageError: the dataset exists, a file is missing or of an unknown format.
        SourceError: a file is not valid, or a column is missing.
        IntegrityError: what was written is not what the files hold.
    """
    from reembed.source import importer

    require_texts(options)
    named = texts_of("files", files, 'files=["documents.jsonl"]')
    kept = None if columns is None else texts_of("columns", columns, 'columns=["text"]')
    stored = None if options is None else dict(options)
    return importer.import_documents(
        named, to, file_format=file_format, columns=kept, options=stored
    )


def tune(
    config: Config, seconds: float = 60.0, out: str | None = None, *, emit: Listener = ignore
) -> Tuned:
    """Find the fastest settings of `embed` for the model, the corpus and this machine.

    Args:
        seconds: the time to spend.
        out: the overlay to write: a YAML file to give after the config.

    Raises:
        UsageError: `out` cannot be written, or holds something else.
        SourceError, EncoderError: the source or the model cannot be used.
    """
    from reembed.planning.tune import tune_and_keep

    require_config(config)
    return tune_and_keep(config, emit, seconds, out)


def run(config: Config, *, fresh: bool = False, emit: Listener = ignore) -> Built:
    """Embed the documents, index and verify them as a candidate. The live release does not change.

    Args:
        fresh: start over instead of resuming an unfinished run.

    Raises:
        SourceError, EncoderError: the source or the model cannot be used.
        RunFailed, NoCapacity, Interrupted: the run stopped; the same call resumes it.
        Conflict: another process drives the run.
    """
    from reembed.strategies.candidate import build

    require_config(config)
    return build(config, emit, executor=_executor(), fresh=fresh)


def status(config: Config) -> Status:
    """Return where the alias stands: live, previous, candidates, unfinished runs."""
    from reembed.lifecycle.status import status

    return status(_catalog_of(config))


def history(config: Config) -> History:
    """Return every promote, rollback and catch-up of the alias, oldest first.

    Raises:
        IntegrityError: the log has a gap.
    """
    from reembed.lifecycle.moves import History

    return History(config.alias, tuple(_catalog_of(config).log()))


def verify(
    config: Config,
    release: str | None = None,
    *,
    level: int = 3,
    sample: int = 459,
    resume: bool = False,
) -> Verified:
    """Compare a release with its source again, and keep the report.

    Args:
        release: an id; None: the one built with these settings if it was never live, else the live one.
        level: 0 names and sizes of files; 1 also ids; 2 also every row, the index and the bytes of every
            file; 3 also a sample that is embedded again.
        sample: rows to embed again at level 3.
        resume: continue a verification of the same kind that was interrupted.

    Raises:
        UsageError: the release does not exist, or gc removed it.
        IntegrityError: a record, the index or a version is gone or changed; its fix builds the release again.
        NotVerified: the store or the source could not be read.
        EncoderError: the model could not be loaded, or its provider did not answer.
    """
    from reembed.lifecycle import candidates
    from reembed.lifecycle.verification import verify_release

    require_whole("level", level, 0, 3, 3)
    require_whole("sample", sample, 0, 459)
    catalog = _catalog_of(config)
    asked = candidates.kept(catalog, release) if release else candidates.by_default(catalog, config)
    return verify_release(
        catalog, asked.id, level=level, sample=sample, resume=resume, stall_s=config.embed.stall_s
    )


def compare(  # noqa: PLR0913 - one parameter an option of the verb
    config: Config,
    release: str | None = None,
    *,
    changed_queries: bool = False,
    changed_gate: bool = False,
    margin: float | None = None,
    reason: str | None = None,
    runs: tuple[str, str] | None = None,
    cutoff: float | None = None,
    texts: bool = False,
    reports: Sequence[str] = (),
    emit: Listener = ignore,
) -> Comparison:
    """Compare a candidate with the live release on the same judged queries.

    The comparison and its HTML report are kept; `report` of the result is the report's address.

    Args:
        release: the candidate's id; None: the one built with these settings.
        changed_queries: accept judged queries that changed since the plan, or those that the config names now.
        changed_gate: judge by the gate's group, slices, metrics and latency ratio as the config has them now.
        margin: judge by this margin instead of the planned one.
        reason: why; required with these three and recorded.
        runs: run files in TREC format, made by your own pipeline with each: judged instead of searches.
        cutoff: a cut-off of live's scores, to find the candidate's that correspond to it.
        texts: keep the texts of the queries in the file with the values of each query; the report shows them.
        reports: files to write the report to as well: .html, .md or .json.

    Raises:
        UsageError: nothing is live, judged queries changed, or evidence or a report's place cannot be used.
        IntegrityError: one of the two releases is damaged.
    """
    from reembed.evaluation.kept import compare_and_keep
    from reembed.evaluation.terms import Asked
    from reembed.lifecycle.candidates import candidate
    from reembed.store.paths import absolute_queries

    catalog = _catalog_of(config)
    live = catalog.require_live().release
    new = candidate(catalog, config, release)
    files = tuple(texts_of("reports", reports, 'reports=["report.html"]'))
    settings = changed_queries, margin, reason, runs, cutoff, texts, changed_gate
    asked = Asked(*settings, reports=files)
    return compare_and_keep(catalog, live, new, absolute_queries(config.gate), asked, emit)


def shadow(
    config: Config,
    asked: Asked | None = None,
    every_s: float | None = None,
    *,
    emit: Listener = ignore,
) -> Shadowed:
    """Bring live and a candidate up to date, judge the queries that arrived, and cut over if that is asked for.

    Needs `strategy: dual_index`. After the cut-over the release before is kept up to date for the holdover,
    and a loss that queries show rolls back by itself (`shadow.guardrail_margin`).

    Args:
        asked: the candidate, and what the config does not say (`reembed.strategies.dual_index.Asked`).
        every_s: seconds between two looks, until queries that arrive change nothing more; None: one look.

    Raises:
        UsageError: nothing is live, there is no candidate or no query, or another shadow is under way.
        Conflict: another process moved the alias, or catches up.
        RunFailed: a catch-up stopped; the same call resumes it.
    """
    from reembed.strategies import dual_index

    catalog, asked = _catalog_of(config), asked or dual_index.Asked()
    return dual_index.shadow(catalog, config, asked, every_s, emit, executor=_executor())


def promote(  # noqa: PLR0913 - one parameter an option of the verb
    config: Config,
    release: str | None = None,
    *,
    initial: str | None = None,
    force: str | None = None,
    without_evidence: str | None = None,
    catch_up: bool = True,
    emit: Listener = ignore,
) -> Moved:
    """Catch up with the source, then make a release live.

    The gate is checked first: nothing is embedded for a release that may not become live.

    Args:
        release: an id; None: the one built with these settings.
        initial: the reason for the record, if nothing is live yet to compare with.
        force: the reason for the record, to overrule the gate.
        without_evidence: the reason for the record, if there are no judged queries to compare by.
        catch_up: embed first what changed in the source since the release was built.

    Raises:
        GateFailed, Inconclusive: the comparison is missing or does not pass.
        Conflict: something else became live since the comparison, or at this moment.
        SourceError: the source cannot be read; `catch_up=False` promotes without it.
        IntegrityError: the release is not verified, or its data is not there.
    """
    from reembed.lifecycle.promote import Reasons
    from reembed.strategies.up_to_date import promote_up_to_date

    catalog, reasons = _catalog_of(config), Reasons(force, initial, without_evidence)
    executor = _executor() if catch_up else None
    return promote_up_to_date(catalog, config, release, reasons, emit, executor=executor)


def catch_up(
    config: Config,
    which: str = "live",
    *,
    retry_dead_letters: bool = False,
    emit: Listener = ignore,
) -> CaughtUp:
    """Bring a release up to date with its source; what replaces the live release becomes live.

    Args:
        which: live, previous or the id of a release.
        retry_dead_letters: try documents without a vector again.

    Raises:
        Conflict: live was rolled back to older documents of its model, before or meanwhile, or another model
            went live meanwhile; what was built stays.
        SourceError: the source cannot be read.
        RunFailed: the pass stopped; the same call resumes it.
    """
    from reembed.strategies.up_to_date import catch_up_and_follow

    catalog, run = _catalog_of(config), _executor()
    return catch_up_and_follow(
        catalog, config, which, emit, executor=run, retry_dead_letters=retry_dead_letters
    )


def _executor() -> Executor:
    from reembed.engine.ray_executor import RayExecutor

    return RayExecutor()


def dead_letters(config: Config, which: str | None = None) -> DeadLetters:
    """Return the documents without a vector, with reasons: of a release, or of a run so far.

    Args:
        which: live, previous, or the id of a release or of an unfinished run. None: the newest
            unfinished run with such documents, or else the release that `verify` checks.

    Raises:
        UsageError: no release and no run has that id, or nothing was built.
        IntegrityError: the record of the release's table is not the one it was made with.
    """
    from reembed.lifecycle.dead_letters import dead_letters

    return dead_letters(_catalog_of(config), config, which)


def rollback(
    config: Config, to: str | None = None, reason: str | None = None, *, emit: Listener = ignore
) -> Moved:
    """Make the previous release, or `to`, live again.

    Raises:
        UsageError: no release was live before, or that one is gone.
        Conflict: another process moved the alias at this moment.
        IntegrityError: that release is not verified, or its data is not there.
    """
    from reembed.lifecycle.moves import roll_back

    return roll_back(_catalog_of(config), to, reason, emit)


def search(
    config: Config,
    queries: Sequence[str],
    k: int = 10,
    release: str | None = None,
    columns: Sequence[str] = (),
    filter: str | None = None,
) -> SearchResult:
    """Return the k best documents of each query, in a release or in what is live.

    It opens the release for this one call; `reembed.open` keeps it open. `filter`: as of `Index.search`.

    Raises:
        UsageError: nothing is live, the release does not exist, a column is not carried, or `filter` is not
            a condition over carried columns.
        IntegrityError: a record, the index or the table is not what was registered.
    """
    from reembed.lifecycle import candidates
    from reembed.serving.live import OpenRelease, SearchResult, require_carried

    catalog = _catalog_of(config)
    asked = candidates.kept(catalog, release) if release else catalog.require_live().release
    require_carried(asked, columns)
    hits = OpenRelease.open(catalog.storage, asked).search(queries, k, columns, filter)
    return SearchResult(asked, tuple(queries), tuple(map(tuple, hits)))


def serve(
    config: Config,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    options: ServeOptions | None = None,
    emit: Listener = ignore,
) -> Served:
    """Answer searches over HTTP, until the process gets SIGTERM or Ctrl-C.

    A host that other machines reach needs a token in `options` (`reembed.serving.http.options.ServeOptions`); port 0
    takes a free one.

    Raises:
        UsageError: nothing is live, the address is in use or needs a token, or the extra `serve` is not installed.
        IntegrityError, SpaceMismatch: as `reembed.open`.
    """
    from reembed.serving.http import options as how

    require_config(config)
    require_whole("port", port, 0, 8080, 65_535)
    served: Served = how.server().serve(config, host, port, options or how.ServeOptions(), emit)
    return served


def gc(config: Config, *, delete: bool = False, drop_run: str | None = None) -> Collected:
    """List what no release needs; `storage.keep` says how many releases stay.

    Args:
        delete: delete it; without this, nothing is changed.
        drop_run: an unfinished run to give up as well.

    Raises:
        UsageError: no unfinished run has that id.
        Conflict: a process drives that run.
        IntegrityError: a record names what another run or release made; then nothing is deleted.
    """
    from reembed.lifecycle import gc

    return gc.collect(_catalog_of(config), config.storage.keep, delete=delete, drop_run=drop_run)
