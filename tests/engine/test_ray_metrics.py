"""The figures of a run as Prometheus finds them on a node of the cluster."""

from __future__ import annotations

import time
from urllib.request import urlopen

import ray
from inline import Inline

from reembed.engine.progress import EmbedProgress
from reembed.engine.ray_metrics import COUNTS, RATES, exported
from reembed.events import Event, Listener, Notice, Progress, ignore
from reembed.strategies.full_rebuild import full_rebuild


def scraped(until: float) -> dict[str, str]:
    """The gauges of reembed on the one node, by name, once the last of them shows `until`."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    last, ends = f"ray_reembed_{list(RATES.values())[-1][0]}", time.monotonic() + 120
    found: dict[str, str] = {}
    while float(found.get(last, "nan").rpartition(" ")[2]) != until and time.monotonic() < ends:
        time.sleep(1)
        with urlopen(address, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found = {x.partition("{")[0]: x for x in lines if x.startswith("ray_reembed_")}
    return found


def test_the_progress_of_a_run_is_scraped_from_the_node(ray_local):
    export = exported("docs", "docs-run")
    progress = EmbedProgress(ignore, total=1_000, done=250, units=(2, 8), actors=3).now()
    figures = {**vars(progress.figures), "busy": 0.5, "waits_for_input": 0.25}
    export(Notice("has no figures"))
    export(Progress(type(progress.figures)(**figures), None, None, last=False))
    found = scraped(until=0.25)
    assert found.keys() == {f"ray_reembed_{name}" for name, _ in (COUNTS | RATES).values()}
    assert 'alias="docs"' in found["ray_reembed_documents_done"]
    assert 'run="docs-run"' in found["ray_reembed_documents_done"]
    export(Progress(type(progress.figures)(**figures), None, None, last=True))
    ended = {name: float(x.rpartition(" ")[2]) for name, x in scraped(until=0.0).items()}
    assert (ended["ray_reembed_documents_done"], ended["ray_reembed_units"]) == (250, 8)
    assert ended["ray_reembed_busy_ratio"] == ended["ray_reembed_actors"] == 0


def test_a_run_tells_its_progress_to_the_metrics_of_its_executor(corpus, make_config, quiet):
    heard: dict[tuple[str, str], list[Event]] = {}

    class Watched(Inline):
        def metrics(self, alias: str, run_id: str) -> Listener:
            return heard.setdefault((alias, run_id), []).append

    config = make_config(corpus(40))
    release = full_rebuild(config, quiet, executor=Watched())
    (((alias, run_id), events),) = heard.items()
    assert (alias, run_id) == (config.alias, release.id)
    last = [e for e in events if isinstance(e, Progress)][-1]
    assert last.last
    assert last.figures.done == 40
