"""The steps that strategies share: embed -> restage -> seal -> index -> verify -> register."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from reembed import faults
from reembed.catalog.index_manifest import AnyManifest, read_manifest
from reembed.catalog.plan import EmbedUnit, KeptUnit, Plan
from reembed.catalog.receipts import Receipt
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import VerifyReport
from reembed.catalog.runs import ReceiptCopies, Run
from reembed.encoders import golden
from reembed.engine import reuse
from reembed.engine.executor import ONE_CPU, EmbedJob, Executor, Needs, Tasks
from reembed.engine.progress import EmbedProgress
from reembed.errors import Conflict, IntegrityError
from reembed.events import Candidate, Kept, Sealed, Verified, Working
from reembed.lifecycle import grown, scratch, verify
from reembed.lifecycle.held import held_by
from reembed.lifecycle.scratch import Scratch
from reembed.planning.measured import VERIFY_TASK_BYTES
from reembed.source.dataset import Source
from reembed.store.paths import index_folder
from reembed.store.records import encode
from reembed.store.storage import storage_errors
from reembed.strategies import restage
from reembed.strategies.context import RunContext, base_of, patience_of
from reembed.table import provenance
from reembed.table import seal as sealing
from reembed.table.read import damaged_files, manifest_proof
from reembed.table.seal import SealedTable

T = TypeVar("T")


def embed_documents(context: RunContext) -> None:
    """Embed and stage every unit that has no receipt yet."""
    run, plan, embed = context.run, context.plan, context.config.embed
    staged = run.staged()
    units = [u for u in plan.units if isinstance(u, EmbedUnit)]
    todo = [u for u in units if u.id not in staged]
    if not todo:
        return
    _prove_donors(context)
    progress = EmbedProgress(
        context.emit,
        total=plan.documents,
        done=plan.documents - sum(u.documents for u in todo),
        units=(len(units) - len(todo), len(units)),
        actors=embed.actors,
    )
    job = EmbedJob(run, plan.without_units(), context.source, plan.encoder, embed, context.columns)
    copies = ReceiptCopies(run)

    def heard(receipt: Receipt) -> None:
        progress.receipt(receipt)
        copies.add(receipt)

    with progress.reporting():
        context.executor.embed(job, todo, heard, context.stop)
    context.emit(progress.totals())


def _prove_donors(context: RunContext) -> None:
    """Raise IntegrityError if a file that vectors are copied from, or a record of its release, was changed."""
    storage, donors = context.run.storage, context.plan.donors
    try:
        files = [
            (storage, donor.table, {name: proof})
            for donor in donors
            for name, proof in reuse.proofs(storage, donor).items()
        ]
    except IntegrityError as error:  # a run without this donor is not stopped by it
        raise IntegrityError(error.what, error.why, context.run.rebuild) from error
    if not files:
        return
    named = ", ".join(d.release for d in donors)
    context.emit(Working(f"vectors of equal texts are copied from {named}; checking its files"))
    damaged = [name for found in context.executor.each(damaged_files, files) for name in found]
    if damaged:
        raise IntegrityError(
            f"{len(damaged)} files of {named} are damaged: {damaged[0]}",
            "vectors would be copied from them",
            context.run.rebuild,
        )


def restage_rows(context: RunContext) -> None:
    """Stage again what a catch-up takes over from its base without embedding it."""
    run, plan = context.run, context.plan
    staged = run.staged()
    todo = [u for u in plan.units if isinstance(u, KeptUnit) and u.id not in staged]
    if not todo:
        return
    common = (run, plan.without_units(), context.columns, context.source)
    work = ((common, *one) for one in restage.with_proofs(run, plan, todo))
    context.executor.each(restage.stage_unit, work)
    context.emit(Kept(len(todo), sum(u.rows for u in todo)))


def seal(context: RunContext) -> SealedTable:
    """Commit all staged units to the table, at once."""
    allowed = context.config.embed.max_dead_letters
    sealed = sealing.seal(context.run, context.plan, context.columns, allowed)
    held = sealed.content
    dead = len(held.dead_letters)
    context.emit(Sealed(sealed.path, sealed.version, held.rows, held.documents, dead))
    return sealed


def _golden_sha256(run: Run, plan: Plan) -> str:
    """Digest of the line's golden vectors: a catch-up keeps that of the release it builds on."""
    base = base_of(run.storage, plan)
    return base.golden_sha256 if base else golden.sha256_of(run.storage, plan.origin)


def verify_rows(context: RunContext, sealed: SealedTable, manifest: AnyManifest) -> VerifyReport:
    """Compare every row with its source; return the report, which passed.

    Raises IntegrityError if the table or the index differs from the source.
    """
    run, plan, vectors = context.run, context.plan, context.vectors(sealed)
    subject = verify.Subject(
        context.source,
        vectors,
        plan.space,
        plan.encoder,
        tuple(d.doc_id for d in sealed.content.dead_letters),
        held_by(vectors, index_folder(run.id), manifest),
        sealed.content.files,
        origin=plan.origin,
        patience=patience_of(plan, context.config),
        golden_sha256=_golden_sha256(run, plan),
    )
    older, place = scratch.folders(run), Scratch.of(run)
    tasks = _VerifyTasks(context.executor, sealed.path)
    report = _verify_new(context, subject, place, tasks)
    if report is None:
        again = min(verify.SAMPLE, sealed.content.rows)
        context.emit(Working(f"comparing every row with its source, embedding {again:,} again"))
        report = verify.verify(subject, place, tasks=tasks)
    scratch.remove(run, {*older, place.path})
    run.storage.write(provenance.verification_path(run.id), encode(report))
    differences = {str(k): d.count for k, d in report.differences.items() if d.count}
    context.emit(
        Verified(
            passed=report.passed,
            rows=report.rows,
            sampled=report.sampled,
            differences=differences,
            confidence=report.confidence,
        )
    )
    if not report.passed:
        wrong = ", ".join(f"{count} {kind}" for kind, count in differences.items())
        raise IntegrityError(f"the table differs from its source: {wrong}", None, run.rebuild)
    return report


def _verify_new(
    context: RunContext, subject: verify.Subject, place: Scratch, tasks: Tasks
) -> VerifyReport | None:
    """Verify a catch-up by what is new in it; None if everything must be compared."""
    run, plan = context.run, context.plan
    base = base_of(run.storage, plan)
    if base is None or not provenance.is_verified(run.storage, base):
        return None
    manifest = read_manifest(run.storage, base.index, base.index_sha256)
    sealed = provenance.require_sealed(run.storage, base)
    table = replace(subject.table, version=base.table_version)
    before = grown.Before(
        Source(base.source, context.source.options),
        table,
        held_by(table, base.index, manifest),
        sealed.files,
        tuple(d.doc_id for d in sealed.dead_letters),
        base.verify,
    )
    context.emit(Working(f"comparing what is new since {base.id} with its source"))
    try:
        return grown.verify_new(subject, before, place, tasks=tasks)
    except grown.CompareAll as why:
        context.emit(Working(f"everything is compared: {why}"))
        return None


@dataclass(frozen=True)
class _VerifyTasks:
    """Runs tasks of a verification on an executor; a failed store is told as such."""

    executor: Executor
    table: str

    def call(self, function: Callable[..., T], *args: Any, needs: Needs = ONE_CPU) -> T:
        found = self.executor.call(
            _verify_task, self.table, function, *args, needs=self._with_memory(needs)
        )
        return cast(T, found)

    def each(
        self,
        function: Callable[..., T],
        items: Iterable[tuple[Any, ...]],
        needs: Needs = ONE_CPU,
    ) -> list[T]:
        given = ((self.table, function, *item) for item in items)
        return self.executor.each(_verify_task, given, self._with_memory(needs))

    def _with_memory(self, needs: Needs) -> Needs:
        """Return these with the memory that a task takes, or all of the largest node if that is less."""
        memory = min(VERIFY_TASK_BYTES, self.executor.largest_node_bytes())
        return replace(needs, memory=needs.memory or memory)


def _verify_task(table: str, function: Callable[..., T], *args: Any) -> T:
    with storage_errors(f"{table} could not be verified"):
        return function(*args)


def require_open(run: Run) -> None:
    """Raise Conflict if the run was given up."""
    if (result := run.result()) is not None and result.release is None:
        raise Conflict(
            f"run {run.id} was given up while this process was building it",
            "someone ran it with --fresh or dropped it because this process seemed dead",
            "reembed run",
        )


def register(
    context: RunContext, sealed: SealedTable, manifest: AnyManifest, report: VerifyReport
) -> Release:
    """Register the release as a candidate; what serves is unchanged.

    Raises:
        IntegrityError: the sealed version is gone.
        Conflict: the run was given up meanwhile.
    """
    run, plan = context.run, context.plan
    catalog = Catalog(run.storage, plan.alias)
    table_manifest = manifest_proof(run.storage, sealed.path, sealed.version)
    if table_manifest is None:
        raise IntegrityError(f"{sealed.path} has lost version {sealed.version}", None, run.rebuild)
    require_open(run)
    faults.point("run.before_register")
    release = catalog.register(
        Release(
            id=run.id,
            alias=plan.alias,
            place=plan.place,
            space=plan.space,
            encoder=plan.encoder,
            table=sealed.path,
            table_version=sealed.version,
            table_tag=sealed.tag,
            sealed_sha256=sealed.content.sha256,
            table_manifest=table_manifest,
            index=index_folder(run.id),
            index_sha256=manifest.sha256,
            golden_sha256=_golden_sha256(run, plan),
            rows=sealed.content.rows,
            documents=sealed.content.documents,
            dead_letters=len(sealed.content.dead_letters),
            source=plan.source,
            verify=report,
            gate=plan.gate,
            queries=plan.queries,
        )
    )
    faults.point("run.after_register")
    run.finish(release.id)
    try:
        require_open(run)  # given up since: of both, the one that looks last sees the other
    except Conflict:
        catalog.mark_retired(release.id)
        raise
    live = catalog.live()
    context.emit(Candidate(release.id, live.release.id if live else None))
    return release
