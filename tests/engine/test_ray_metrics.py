"""The figures of a run as Prometheus finds them on a node of the cluster."""

from __future__ import annotations

import time
from urllib.request import urlopen

import ray

from reembed.engine.progress import EmbedProgress
from reembed.engine.ray_metrics import GAUGES, exported
from reembed.events import Notice, ignore


def scraped() -> str:
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urlopen(address, timeout=30) as answer:
        return answer.read().decode()


def test_the_progress_of_a_run_is_scraped_from_the_node(ray_local):
    export = exported("docs", "docs-run")
    progress = EmbedProgress(ignore, total=1_000, done=250, units=(2, 8), actors=3)
    export(Notice("has no figures"))
    export(progress.now())
    until = time.monotonic() + 120
    found: dict[str, str] = {}
    while len(found) < len(GAUGES) and time.monotonic() < until:
        time.sleep(1)
        lines = [line for line in scraped().splitlines() if line.startswith("ray_reembed_")]
        found = {line.partition("{")[0]: line for line in lines}
    assert found.keys() == {f"ray_reembed_{name}" for name, _ in GAUGES.values()}
    done = found["ray_reembed_documents_done"]
    assert 'alias="docs"' in done
    assert 'run="docs-run"' in done
    assert float(done.rpartition(" ")[2]) == 250
    assert float(found["ray_reembed_units"].rpartition(" ")[2]) == 8
