"""Full rebuild: embed every document in a new space and index it. Nothing that is served changes."""

from __future__ import annotations

from reembed.catalog.journal import Journal
from reembed.catalog.lease import driving
from reembed.catalog.lines import begin
from reembed.catalog.releases import Catalog, Release
from reembed.config.settings import Config
from reembed.engine.executor import Executor
from reembed.events import Listener, to_all
from reembed.store.storage import Storage
from reembed.strategies import rebuild_plan, steps
from reembed.strategies.context import running
from reembed.strategies.indexing import build_index
from reembed.strategies.rebuild_plan import Wanted, abandoned_unless_planned, choose_run


def full_rebuild(
    config: Config, emit: Listener, *, executor: Executor, fresh: bool = False
) -> Release:
    """Return a verified candidate release; an unfinished run of these settings is resumed.

    source -> plan -> embed -> seal -> index -> verify -> register

    Raises:
        SourceError, EncoderError, ConfigError: before anything is embedded.
        Conflict: another process drives this run.
        RunFailed: it stopped; the same command resumes it.
    """
    storage = Storage.open(config.storage.root, config.storage.options)
    catalog = Catalog(storage, config.alias, config.stores)
    emit = to_all(Journal(storage), emit)
    wanted = Wanted.read(config, catalog, emit)
    run = choose_run(wanted, fresh=fresh)
    begin(storage, config.alias, run.id, rebuild_plan.place_of(run, wanted))
    with driving(run), abandoned_unless_planned(run):
        steps.require_open(run)
        if (release := catalog.registered(run)) is not None:
            rebuild_plan.emit_already_built(release, run, wanted, emit)
            return release
        plan = rebuild_plan.make_plan(run, wanted, executor, emit)
        with running(run, plan, config, executor, emit) as context:
            steps.embed_documents(context)
            sealed = steps.seal(context)
            sealed, manifest = build_index(context, sealed)
            report = steps.verify_rows(context, sealed, manifest)
        return steps.register(context, sealed, manifest, report)
