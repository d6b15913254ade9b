"""One small lazy migration, told as crash/migration.py tells another: through faults, then once more without.

    documents turn up, a batch, the source changes, a sweep, stop, resume, the rest is swept, run, promote, gc

It starts before the faults do. Each command is given only while it is still to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from crash.migration import NEW, OLD, Acknowledge, Place, of_a_release
from inline import Inline, Silent

from reembed.catalog import lazies
from reembed.catalog.lazy_batches import batches
from reembed.catalog.lazy_queue import Queue
from reembed.catalog.releases import Catalog
from reembed.config.settings import Config
from reembed.lifecycle.collect import collect
from reembed.lifecycle.promote import Reasons, promote
from reembed.serving.index import Index
from reembed.strategies import lazy, lazy_side
from reembed.strategies.full_rebuild import full_rebuild
from reembed.strategies.sweep import Limits, sweep
from reembed.strategies.up_to_date import catch_up_and_follow, promote_up_to_date

_DRAWN, _BATCH, _K = 6, 10, 8
_STEPS = ["running", "stopped", "running", "finished"]


def _config(place: Place, model: str) -> Config:
    settings = place.config(model).model_dump()
    return Config.model_validate(
        {**settings, "strategy": "lazy", "lazy": {"batch_documents": _BATCH}}
    )


def start(place: Place) -> None:
    """The old model serves, and a lazy migration runs."""
    lazy_side.DOCUMENTS = _DRAWN
    first = full_rebuild(place.config(OLD), Silent(), executor=Inline())
    promote(place.catalog(), first.id, initial_reason="the first")
    lazy.start(place.catalog(), _config(place, NEW), "a test", Silent(), executor=Inline())


def migrate(
    place: Place, acknowledge: Acknowledge, unharmed: Callable[[], AbstractContextManager[None]]
) -> None:
    """Do what is still to be done; errors as of every verb."""
    catalog, config = place.catalog(), _config(place, NEW)
    run: dict[str, Any] = {"executor": Inline()}
    found = lazies.current(catalog)
    assert found is not None
    if found.step.state != "finished" and len(catalog.log()) < 3:
        if found.step.number == 1:
            _serve_and_sweep(place, acknowledge, unharmed)
            stopped = lazy.stop(catalog, "a test", keep=True)
            acknowledge("stop", {"step": stopped.step.number, "state": "stopped"})
        if lazy.there(catalog).step.number == 2:
            _require_alone(place)
            resumed = lazy.resume(catalog, None)
            acknowledge("resume", {"step": resumed.step.number, "state": "running"})
        sweep(catalog, config, Limits(), Silent(), **run)
        release = full_rebuild(config, Silent(), **run)
        why = Reasons(force="all of it is migrated")
        moved = promote_up_to_date(catalog, config, release.id, why, Silent(), **run)
        acknowledge("promote", {"generation": moved.generation, "release": moved.release.id})
    collect(catalog, 3, delete=True, drop_run=None)


def _serve_and_sweep(
    place: Place, acknowledge: Acknowledge, unharmed: Callable[[], AbstractContextManager[None]]
) -> None:
    catalog, config = place.catalog(), _config(place, NEW)
    run: dict[str, Any] = {"executor": Inline()}
    plan = lazy.there(catalog).plan
    texts = place.texts(catalog.require_live().release.source.version)
    with Index(catalog, None, 600.0) as index:
        answers = index.search([texts["d010"], texts["d011"]], _K)
    if index.lazy is not None and not index.lazy.dropped:
        ids = {str(h.doc_id) for hits in answers for h in hits}
        acknowledge("turned up", {"ids": sorted(ids)})
    if not batches(catalog.storage, plan):
        lazy.batch(catalog, config, _BATCH, Silent(), **run)
    with unharmed():
        place.change_source()
    old = place.config(OLD)
    catch_up_and_follow(catalog, old, "live", Silent(), retry_dead_letters=False, **run)
    sweep(catalog, config, Limits(budget=_BATCH + 2), Silent(), **run)


def _require_alone(place: Place) -> None:
    """Raise AssertionError if a stopped migration still answers."""
    with Index(place.catalog(), None, 600.0) as index:
        index.search(["text 10 of it"], _K)
        assert index.lazy is None, "the new side of a stopped migration was opened"


def between(place: Place, acknowledged: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What does not hold right after the faults: documents that were queued are served, wait, or have left."""
    catalog = place.catalog()
    found = lazies.current(catalog)
    if found is None or found.step.state == "finished" or len(catalog.log()) > 2:
        return []
    queue = Queue(catalog.storage, found.plan)
    side = Catalog(catalog.storage, found.plan.side).require_live().release
    served = place.rows(side)["doc_id"].to_pylist()
    wanted = {d for _, said in acknowledged for d in said.get("ids", ())}
    lost = (wanted & place.texts().keys()) - {*served, *queue.read(queue.files())}
    return [f"{sorted(lost)} turned up, and are lost"] if lost else []


def violations(place: Place, acknowledged: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What does not hold after it was finished without faults; in words."""
    return [*_at_the_end(place), *_of_promises(place, acknowledged)]


def _at_the_end(place: Place) -> Iterator[str]:
    catalog = place.catalog()
    live = catalog.require_live().release
    if live.space.model != NEW or live.documents != len(place.texts()):
        yield f"{live.id} of {live.documents} documents is live at the end"
    yield from of_a_release(place, catalog, live)
    for text in ("d003 has another text", place.texts()["d010"]):
        with Index(catalog) as index:
            (hits,) = index.search([text], 3)
        if not hits or hits[0].score < 0.99:
            yield f"{text!r} is not found"
    found = lazies.current(catalog)
    if found is None or found.step.state != "finished":
        yield "the migration is not finished"
    left = [p for p, _ in catalog.storage.objects("") if "passages-lazy-1" in p]
    if left:
        yield f"gc left {len(left)} files behind: {left[0]}"


def _of_promises(place: Place, acknowledged: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    catalog = place.catalog()
    folder = f"lazy/{catalog.alias}/1/steps/"
    read = catalog.storage.read
    steps = [read(folder + name)["state"] for name in catalog.storage.names(folder)]
    if steps != _STEPS:
        yield f"the steps of the migration are {steps}"
    log = {(r.generation, r.release.id) for r in catalog.log()}
    for command, said in acknowledged:
        if "step" in said and steps[said["step"] - 1] != said["state"]:
            yield f"{command} was acknowledged as step {said['step']}, and is lost"
        if "generation" in said and (said["generation"], said["release"]) not in log:
            yield f"{command} was acknowledged as step {said['generation']}, and is lost"
