"""Seal a run: all receipts enter the table in one commit.

It is a single commit that carries the run's id in its transaction properties: Lance has no idempotency
key, and the same append committed twice doubles the rows. A rebuild's is an Overwrite. A catch-up's
is an Update of the version that it builds on: the fragments that stay are not named again.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.fragment import DeletionFile, FragmentMetadata

from reembed import faults
from reembed.catalog.plan import Plan, ThinFragment
from reembed.catalog.receipts import DeadLetter, Deletions, FileProof, Receipt
from reembed.catalog.runs import Run
from reembed.errors import Conflict, IntegrityError, RunFailed, TooManyDeadLetters
from reembed.space import sha256_of
from reembed.store.lance import tags_of
from reembed.store.paths import table_tag
from reembed.store.records import encode
from reembed.table.documents import documents_in
from reembed.table.read import file_path, files_of, files_of_fragment, files_present, open_table
from reembed.table.write import fingerprint

RUN_PROPERTY = "reembed.run"
SEALED_PROPERTY = "reembed.sealed"
_SEALED = "sealed.json"
COMMIT_TRIES = 8
_EXAMPLES = 5


@dataclass(frozen=True)
class Sealed:
    """`sealed.json`: what a version holds, fixed before it is committed."""

    rows: int
    documents: int
    dead_letters: tuple[DeadLetter, ...]
    files: dict[str, FileProof]
    """Every data and deletion file, by name."""

    @property
    def sha256(self) -> str:
        """Digest that the commit names."""
        return sha256_of(encode(self))


@dataclass(frozen=True)
class SealedTable:
    """A committed, tagged table version."""

    path: str
    version: int
    content: Sealed
    tag: str


def seal(run: Run, plan: Plan, columns: pa.Schema, max_dead_letters: int) -> SealedTable:
    """Check every receipt, then bring all units into the table in one commit.

    A run is committed once, however often this is called.

    Raises:
        RunFailed: units are missing, or more documents are dead letters than allowed.
        IntegrityError: a staged file is missing or has another size.
        Conflict: other runs kept committing to this table.
    """
    version = _committed(run, plan)
    if version is None:
        receipts = run.receipts()
        _check_receipts(plan, receipts, fingerprint(columns))
        _check_staying(run, plan, columns)
        record = _content(run, plan, receipts)
        _check_dead_letters(plan, record.dead_letters, max_dead_letters)
        _check_files(run, plan, receipts, record.files)
        if not run.storage.create(run.path(_SEALED), encode(record)):
            raise IntegrityError(
                f"run {run.id} was sealed with other receipts than it has now",
                "receipts were changed or removed since",
                plan.restart,
            )
        faults.point("table.after_sealed")
        version = _commit(run, plan, columns, receipts, record)
    tag = table_tag(run.id)
    version = tagged(open_table(run.storage, plan.table), tag, version)
    faults.point("table.after_tag")
    content = read_sealed(run, plan.table, version)
    # An interrupted call may have allowed more than this one.
    _check_dead_letters(plan, content.dead_letters, max_dead_letters)
    return SealedTable(plan.table, version, content, tag)


def read_sealed(run: Run, path: str, version: int) -> Sealed:
    """Return what a run sealed, as the commit of that version names it.

    Raises:
        IntegrityError: the record is gone, or is not the one that was committed.
    """
    named = properties_of(open_table(run.storage, path), version).get(SEALED_PROPERTY)
    sealed = run.storage.decode_if_there(Sealed, run.path(_SEALED))
    if sealed is None or sealed.sha256 != named:
        raise IntegrityError(
            f"runs/{run.id}/{_SEALED} is not the record that {path} version {version} was made with",
            "it was removed or changed, so the table's files can no longer be verified",
            run.rebuild,
        )
    return sealed


def _content(run: Run, plan: Plan, receipts: list[Receipt]) -> Sealed:
    """Return the counts, dead letters and files of the new version: staged and kept from the base."""
    files = {name: proof for r in receipts for name, proof in r.files.items()}
    dead = tuple(d for r in receipts for d in r.dead_letters)
    rows, documents = sum(r.rows for r in receipts), sum(r.documents for r in receipts)
    if plan.base:
        base = read_sealed(Run(run.storage, plan.base.release), plan.table, plan.base.table_version)
        stay = [name for m in _staying(run, plan) for name in files_of_fragment(m)]
        stay += [f.path for m in _thinned(run, plan, receipts) for f in m.files]
        files |= {name: base.files[name] for name in stay}
        dead += plan.base.dead_letters
        rows, documents = rows + plan.base.rows, documents + plan.base.documents
    return Sealed(rows, documents, dead, files)


def _thinned(run: Run, plan: Plan, receipts: list[Receipt]) -> list[FragmentMetadata]:
    """Return the base version's fragments that lose rows, each with its new deletion file."""
    given = {r.deletions.fragment: r.deletions for r in receipts if r.deletions}
    return [replace(m, deletion_file=_deletion_file(given[m.id])) for m in _held(run, plan, given)]


def _deletion_file(given: Deletions) -> DeletionFile:
    return DeletionFile(
        given.read_version, given.id, given.file_type, given.num_deleted_rows, base_id=None
    )


def _held(run: Run, plan: Plan, fragments: Container[int]) -> list[FragmentMetadata]:
    """Return these fragments of the base version, with their row ids."""
    if plan.base is None:
        return []
    base = open_table(run.storage, plan.table, plan.base.table_version)
    return [f.metadata for f in base.get_fragments() if f.fragment_id in fragments]


def _staying(run: Run, plan: Plan) -> list[FragmentMetadata]:
    """Return the base version's fragments that a catch-up keeps unchanged."""
    return _held(run, plan, set(plan.base.fragments)) if plan.base else []


def _check_receipts(plan: Plan, receipts: list[Receipt], fingerprint: str) -> None:
    planned = {u.id: u.documents for u in plan.units}
    found = {r.unit: r.tried for r in receipts}
    if missing := sorted(set(planned) - set(found)):
        raise RunFailed(
            f"{len(missing):,} of {len(planned):,} units are not staged: {', '.join(missing[:_EXAMPLES])} ...",
            "the run was interrupted",
            f"{plan.resume}     # the same command resumes it",
        )
    wrong = [u for u, tried in found.items() if planned.get(u) != tried]
    wrong += [r.unit for r in receipts if documents_in(r.rows) != r.documents]
    wrong += [r.unit for r in receipts if (r.space, r.columns) != (plan.space.id, fingerprint)]
    if wrong:
        named = ", ".join(wrong[:_EXAMPLES])
        raise IntegrityError(f"receipts do not match the plan: {named}", None, plan.restart)


def _check_staying(run: Run, plan: Plan, columns: pa.Schema) -> None:
    """Check that fragments that stay have these columns: under another type, Lance reads other values."""
    if not _builds_on_base(plan):
        return
    assert plan.base is not None
    held = open_table(run.storage, plan.table, plan.base.table_version).schema
    found, needed = ([(f.name, f.type) for f in s] for s in (held, columns))
    if found != needed:
        other = ", ".join(f"{n}: {t}" for n, t in needed if (n, t) not in found)
        raise IntegrityError(
            f"run {run.id} keeps rows of {plan.table} version {plan.base.table_version} as they are",
            f"it has other columns than the run writes ({other})",
            plan.restart,
        )


def _check_dead_letters(plan: Plan, dead: tuple[DeadLetter, ...], limit: int) -> None:
    if len(dead) > limit:
        listed = "; ".join(f"{d.doc_id!r}: {d.reason}" for d in dead[:_EXAMPLES])
        tried = plan.documents + (len(plan.base.dead_letters) if plan.base else 0)
        raise TooManyDeadLetters(
            f"{len(dead):,} of {tried:,} documents could not be embedded, {limit:,} are allowed",
            f"{listed}{' ...' if len(dead) > _EXAMPLES else ''} (`reembed dead-letters {plan.run_id}` lists all)",
            f"{plan.resume} --set embed.max_dead_letters={len(dead)}     # the other vectors are kept",
        )


def _check_files(
    run: Run, plan: Plan, receipts: list[Receipt], files: dict[str, FileProof]
) -> None:
    there = files_present(run.storage, plan.table)
    staged = {name for r in receipts for name in r.files}
    for name, proof in files.items():
        size = there.get(file_path(plan.table, name))
        if size != proof.size_bytes:
            found = "is gone" if size is None else f"has {size:,} bytes, not {proof.size_bytes:,}"
            kind, fix = ("staged file ", plan.restart) if name in staged else ("", run.rebuild)
            raise IntegrityError(
                f"{kind}{file_path(plan.table, name)} {found}",
                "someone cleaned up or damaged the table while the run was under way",
                fix,
            )


def _builds_on_base(plan: Plan) -> bool:
    """Return whether fragments of the base stay, whole or without some of their rows."""
    if plan.base is None:
        return False
    return bool(plan.base.fragments) or any(isinstance(u, ThinFragment) for u in plan.units)


def _operation(
    run: Run, plan: Plan, columns: pa.Schema, receipts: list[Receipt]
) -> lance.LanceOperation.BaseOperation:
    """Return the operation that makes the run's version: of the base's, or of any version of the table.

    Lance refuses deletion files in an Overwrite.
    """
    staged = [FragmentMetadata.from_json(f) for r in receipts for f in r.fragments]
    if not _builds_on_base(plan):
        return lance.LanceOperation.Overwrite(columns, staged)
    assert plan.base is not None
    thinned = _thinned(run, plan, receipts)
    stay = {*plan.base.fragments, *(m.id for m in thinned)}
    base = open_table(run.storage, plan.table, plan.base.table_version)
    return lance.LanceOperation.Update(
        removed_fragment_ids=[i for f in base.get_fragments() if (i := f.fragment_id) not in stay],
        updated_fragments=thinned,
        new_fragments=staged,
    )


def _to_build_on(run: Run, plan: Plan) -> int:
    """Return the newest version of the table; if the run builds on another, that one is restored first."""
    newest = open_table(run.storage, plan.table)
    if not _builds_on_base(plan):
        return newest.version
    assert plan.base is not None
    return brought_back(run, plan.table, plan.base.table_version)


def brought_back(run: Run, path: str, version: int) -> int:
    """Return the newest version of the table, which is `version`, or that one restored."""
    newest = open_table(run.storage, path)
    if newest.version != version:
        newest = open_table(run.storage, path, version)
        newest.restore()  # is at the version that it made from now on
        faults.point("table.after_restore")
    return newest.version


def _commit(
    run: Run, plan: Plan, columns: pa.Schema, receipts: list[Receipt], record: Sealed
) -> int:
    operation = _operation(run, plan, columns, receipts)
    properties = {
        RUN_PROPERTY: run.id,
        SEALED_PROPERTY: record.sha256,
        "reembed.space": plan.space.id,
    }
    for _ in range(COMMIT_TRIES):
        # Only the newest state says whether ours is in: an answer may be lost, and a commit below
        # versions that were cleaned away "succeeds" without effect.
        if (version := _committed(run, plan)) is not None:
            return version
        version = _to_build_on(run, plan)
        transaction = lance.Transaction(version, operation, transaction_properties=properties)
        faults.point("table.before_commit")
        try:
            lance.LanceDataset.commit(
                run.storage.uri(plan.table), transaction, storage_options=run.storage.lance_options
            )
        except CommitConflictError:
            continue
        faults.point("table.after_commit")
    raise Conflict(
        f"{plan.table} changed at each of {COMMIT_TRIES} attempts to commit run {run.id}",
        "other runs of the same alias and model commit to it at the same time",
        f"{plan.resume}     # the staged vectors are kept",
    )


def _committed(run: Run, plan: Plan) -> int | None:
    """Return the table version that this run's commit made, read from the newest state.

    Lance rebases an Update over a version that another run restored meanwhile: such a version names
    this run, and holds other files than it sealed.
    """
    sealed = run.storage.decode_if_there(Sealed, run.path(_SEALED))
    if sealed is None:
        return None
    dataset = open_table(run.storage, plan.table)
    since = (v["version"] for v in dataset.version_refs() if v["version"] > plan.base_version)
    ours = [
        v
        for v in sorted(since, reverse=True)
        if properties_of(dataset, v).get(RUN_PROPERTY) == run.id
    ]
    whole = (
        v for v in ours if files_of(open_table(run.storage, plan.table, v)) == sealed.files.keys()
    )
    return next(whole, None)


def properties_of(dataset: lance.LanceDataset, version: int) -> dict[str, str]:
    """Return what the commit of a version says of itself."""
    transaction = dataset.read_transaction(version)
    return (transaction and transaction.transaction_properties) or {}


def tagged(dataset: lance.LanceDataset, tag: str, version: int) -> int:
    """Tag the version; of two drivers that both committed, the first tag says which one counts."""
    if tag not in tags_of(dataset):
        try:
            dataset.tags.create(tag, version)
        except ValueError:
            if tag not in tags_of(dataset):
                raise
    return tags_of(dataset)[tag]
