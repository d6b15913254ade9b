"""Catch up: bring a release to its source's newest version, embedding only texts that are new.

The new table version shares the data files of the old one. Deletion files name the rows that left, and a
fragment that lost more than a tenth is written again without them, with the same vectors; every file
has a receipt. The index is built by the settings that the gate judged, which are those of the
release's line.
"""

from __future__ import annotations

from dataclasses import asdict

from reembed.catalog.journal import Journal
from reembed.catalog.lease import driving
from reembed.catalog.releases import Catalog, Release
from reembed.config.settings import Config
from reembed.engine.executor import Executor
from reembed.errors import IntegrityError, TooManyDeadLetters
from reembed.events import Behind, Listener, Notice, to_all
from reembed.source.lag import lag
from reembed.store.storage import Storage
from reembed.strategies import steps
from reembed.strategies.catch_up_plan import Pass, as_planned, is_superseded, make_plan, next_pass
from reembed.strategies.context import running
from reembed.strategies.indexing import build_index

_PASSES = 4


def catch_up(
    config: Config,
    release: Release,
    emit: Listener,
    *,
    executor: Executor,
    retry_dead_letters: bool = False,
) -> Release:
    """Return the newest release that `release` grew into; itself if no document differs.

    If others write meanwhile, a few passes are made, each over what came in during the one before.
    The event `Behind` tells what is left.

    Raises:
        SourceError: the source is gone, or its columns changed.
        SpaceMismatch: the model is no longer the one of this release.
        IntegrityError: the release is not verified, or its data was changed.
        Conflict: another process is catching up with the same version.
        RunFailed: it stopped; the same command resumes it.
    """
    storage = Storage.open(config.storage.root, config.storage.options)
    catalog = Catalog(storage, config.alias, config.stores)
    listener = emit  # with the journal of the run that made `release`, if one did here
    for _ in range(_PASSES):
        journaled = to_all(Journal(storage), emit)
        found = next_pass(
            config, catalog, release, journaled, executor=executor, retry=retry_dead_letters
        )
        if found is None:
            break
        with driving(found.run):
            try:
                release = _build(config, found, journaled, executor)
            except (TooManyDeadLetters, IntegrityError) as error:
                if not is_superseded(found):
                    raise
                if catalog.registered(found.run) is None:
                    found.run.abandon()
                journaled(Notice(f"{error.what}: given up, as the source has a newer version"))
                continue
        listener = journaled
        retry_dead_letters = retry_dead_letters and found.leaves_dead_letters
    listener(Behind(release.id, **asdict(lag(catalog, release))))
    return release


def _build(config: Config, found: Pass, emit: Listener, executor: Executor) -> Release:
    """changes -> plan -> embed -> restage -> seal -> index -> verify -> register."""
    plan = make_plan(config, found, emit)
    config = as_planned(config, plan, emit)
    with running(found.run, plan, config, executor, emit) as context:
        steps.embed_documents(context)
        steps.restage_rows(context)
        sealed = steps.seal(context)
        sealed, manifest = build_index(context, sealed)
        report = steps.verify_rows(context, sealed, manifest)
    return steps.register(context, sealed, manifest, report)
