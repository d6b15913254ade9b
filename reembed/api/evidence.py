"""Whether a release is complete, and whether it is better than what is live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reembed.api.opened import catalog_of, ray_executor
from reembed.config.settings import Config
from reembed.errors import require_whole, texts_of
from reembed.events import Listener, ignore

if TYPE_CHECKING:
    from reembed.evaluation.comparisons import Comparison
    from reembed.lifecycle.verification import Verified
    from reembed.strategies.dual_index import Asked, Shadowed


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
    catalog = catalog_of(config)
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
    document_texts: bool = False,
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
        document_texts: show in the report how the texts of the documents begin; they are read from the source.
        reports: files to write the report to as well: .html, .md or .json.

    Raises:
        UsageError: nothing is live, judged queries changed, or evidence or a report's place cannot be used.
        IntegrityError: one of the two releases is damaged.
        SourceError: texts of documents are asked for, and the source cannot be read.
    """
    from reembed.evaluation.kept import compare_and_keep
    from reembed.evaluation.terms import Asked
    from reembed.lifecycle.candidates import candidate
    from reembed.store.paths import absolute_queries

    catalog = catalog_of(config)
    live = catalog.require_live().release
    new = candidate(catalog, config, release)
    files = tuple(texts_of("reports", reports, 'reports=["report.html"]'))
    settings = changed_queries, margin, reason, runs, cutoff, texts, changed_gate
    asked = Asked(*settings, reports=files, document_texts=document_texts)
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

    catalog, asked = catalog_of(config), asked or dual_index.Asked()
    return dual_index.shadow(catalog, config, asked, every_s, emit, executor=ray_executor())
