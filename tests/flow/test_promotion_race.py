"""Many processes move one alias at the same moment: nothing acknowledged is ever lost.

This file is also the program that races: `python test_promotion_race.py append|promote ROOT ...`.
It says each win the moment it has it, so that a killed one's claims are known.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from crash.forks import search_path
from releases import SOURCE, verified

from reembed.catalog.lines import Place
from reembed.catalog.releases import AliasRecord, Catalog, ManifestProof, Release
from reembed.config.gate import FrozenGate
from reembed.config.settings import EncoderConfig
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import Conflict
from reembed.events import Event
from reembed.lifecycle import promote
from reembed.space import ContentIdentity, Space
from reembed.store.storage import Storage

PROCESSES, ROUNDS = 8, 200
ALIAS = "raced"
KILLED = -signal.SIGKILL


# The program


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)  # noqa: T201


def race_append(catalog: Catalog, me: str, attempts: int) -> None:
    """Read what is live, add the record that follows it; now a promote, now a rollback."""
    rng = random.Random(me)
    for i in range(attempts):
        live = catalog.live()
        to_first = live is not None and rng.random() < 0.3
        release = a_release("first" if to_first else f"{me}-{i}")
        with suppress(Conflict):
            record = catalog.append(live, "rollback" if to_first else "promote", release)
            say(generation=record.generation, token=record.token)


def race_promote(catalog: Catalog, me: str, attempts: int) -> None:
    """Promote my own two releases in turn, so that neither is ever live when its turn comes."""
    for i in range(attempts):
        try:
            record = promote.promote(catalog, f"{me}-{'ab'[i % 2]}", force_reason="race")
            say(generation=record.generation, token=record.token)
        except Conflict as conflict:
            say(conflict=conflict.exit_code)


def a_release(name: str) -> Release:
    """A release record as valid as any; its data is never looked at."""
    space = Space(
        "m", None, ContentIdentity("w", "t"), "mean", "", "", True, None, None, "none", "float32", 8
    )
    return Release(
        id=name,
        alias=ALIAS,
        place=Place("s", name, 0, 1),
        space=space,
        encoder=EncoderConfig(model="hashing:8"),
        table="tables/t.lance",
        table_version=1,
        table_tag="t",
        index="indexes/i",
        index_sha256="0",
        rows=1,
        documents=1,
        dead_letters=0,
        source=SOURCE,
        verify=verified(),
        gate=FrozenGate(),
        sealed_sha256="0",
        golden_sha256="0",
        table_manifest=ManifestProof("1.manifest", 1, "0"),
        created_at="2026-11-23T00:00:00+00:00",
    )


def main(kind: str, root: str, options: str, me: str, attempts: str) -> None:
    catalog = Catalog(Storage.open(root, json.loads(options)), ALIAS)
    catalog.live()  # connected
    say(ready=True)
    sys.stdin.readline()
    {"append": race_append, "promote": race_promote}[kind](catalog, me, int(attempts))


# The tests


def race(
    kind: str, storage: Storage, attempts: int, crashes: tuple[str, ...] = ()
) -> tuple[list[dict[str, Any]], list[int]]:
    """What all racers said, and how each ended; the first of them die at `crashes`."""
    racers = []
    env = os.environ | {"PYTHONPATH": search_path()}
    for i in range(PROCESSES):
        crash = {"REEMBED_CRASH_AT": crashes[i]} if i < len(crashes) else {}
        tries = 1000 if crash else attempts  # who has to win before it dies, goes on until it does
        arguments = [kind, storage.root, json.dumps(dict(storage.options)), f"r{i}", str(tries)]
        racers.append(
            subprocess.Popen(
                [sys.executable, __file__, *arguments],
                env=env | crash,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for racer in racers:
        assert racer.stdout is not None
        assert json.loads(racer.stdout.readline()) == {"ready": True}
    for racer in racers:  # all wait: now they start together
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=100)[0] for racer in racers]
    said = [json.loads(line) for output in outputs for line in output.splitlines()]
    return said, [racer.returncode for racer in racers]


def assert_one_chain(log: list[AliasRecord]) -> None:
    """Each generation once, each record naming the one before it."""
    assert [record.generation for record in log] == list(range(1, len(log) + 1))
    assert [log[0].previous_token, *(b.previous_token for _, b in pairwise(log))] == [
        None,
        *(a.token for a, _ in pairwise(log)),
    ]
    assert len({record.token for record in log}) == len(log)


def assert_claims_are_the_log(said: list[dict[str, Any]], log: list[AliasRecord]) -> None:
    wins = sorted((s["generation"], s["token"]) for s in said if "token" in s)
    assert wins == [(record.generation, record.token) for record in log]
    assert len(wins) == log[-1].generation


@pytest.mark.deep
def test_of_many_appends_at_once_none_is_lost(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path / "root"))
    said, codes = race("append", storage, attempts=ROUNDS)
    log = Catalog(storage, ALIAS).log()
    assert codes == [0] * PROCESSES
    assert_claims_are_the_log(said, log)
    assert_one_chain(log)
    assert len(log) < ROUNDS * PROCESSES, "nobody met anybody: this was no race"
    assert Catalog(storage, ALIAS).require_live() == log[-1]
    assert next(Catalog(storage, ALIAS).standing(log[-1])).release == log[-1].release.id


@pytest.mark.s3
@pytest.mark.deep
def test_of_many_appends_at_once_on_s3_none_is_lost(bucket: Any) -> None:
    storage = Storage.open(f"{bucket.uri}/root", bucket.options)
    said, codes = race("append", storage, attempts=12)
    log = Catalog(storage, ALIAS).log()
    assert codes == [0] * PROCESSES
    assert_claims_are_the_log(said, log)
    assert_one_chain(log)
    assert len(log) < 12 * PROCESSES, "nobody met anybody: this was no race"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A root with one real release."""
    import lance  # here: a racer starts eight times faster without them
    import pyarrow as pa

    from reembed.config.settings import Config
    from reembed.strategies.full_rebuild import full_rebuild

    folder = tmp_path_factory.mktemp("built")
    documents = pa.table({"doc_id": ["a", "b", "c"], "text": ["one", "two", "three"]})
    lance.write_dataset(documents, folder / "docs.lance", enable_stable_row_ids=True)
    settings = {
        "alias": ALIAS,
        "source": {"uri": str(folder / "docs.lance")},
        "encoder": {"model": "hashing:16"},
        "storage": {"root": str(folder / "root")},
    }
    full_rebuild(Config.model_validate(settings), Silent(), executor=RayExecutor())
    return folder / "root"


class Silent:
    def __call__(self, event: Event) -> None:
        pass


@pytest.fixture
def catalog(built: Path, tmp_path: Path) -> Catalog:
    """A live release, and two candidates for each racer that share its table and index."""
    shutil.copytree(built, tmp_path / "root")
    catalog = Catalog(Storage.open(str(tmp_path / "root")), ALIAS)
    [release] = catalog.releases()
    promote.promote(catalog, release.id, initial_reason="a race")
    for racer in range(PROCESSES):
        for letter in "ab":
            name = f"r{racer}-{letter}"
            place = replace(release.place, origin=name)
            catalog.register(replace(release, id=name, place=place))
    return catalog


@pytest.mark.ray
@pytest.mark.deep
def test_of_many_promotes_at_once_one_wins_each_generation(catalog: Catalog) -> None:
    said, codes = race("promote", catalog.storage, attempts=10)
    assert codes == [0] * PROCESSES
    first, *log = catalog.log()
    wins = sorted((s["generation"], s["token"]) for s in said if "token" in s)
    assert wins == [(record.generation, record.token) for record in log]
    assert_one_chain([first, *log])
    losses = Counter(s["conflict"] for s in said if "conflict" in s)
    assert set(losses) == {4}, "the exit code of a conflict, and at least one"
    assert len(wins) + losses[4] == 10 * PROCESSES
    assert all(r.grounds.forced and r.grounds.reason == "race" for r in log)


@pytest.mark.ray
@pytest.mark.deep
def test_promoters_killed_in_the_middle_leave_a_whole_log(catalog: Catalog) -> None:
    before, after = "promote.before_swap", "promote.after_swap"
    crashes = (f"{before}:1", f"{before}:3", f"{after}:1", f"{after}:1")
    said, codes = race("promote", catalog.storage, attempts=10, crashes=crashes)
    assert codes[: len(crashes)] == [KILLED] * len(crashes)
    assert codes[len(crashes) :] == [0] * (PROCESSES - len(crashes))
    log = catalog.log()
    assert_one_chain(log)
    claimed = {s["token"] for s in said if "token" in s}
    in_log = {record.token for record in log[1:]}
    assert claimed <= in_log, "an acknowledged promotion is lost"
    silent = [r.release.id.split("-")[0] for r in log[1:] if r.token not in claimed]
    assert sorted(silent) == ["r2", "r3"], "killed after their swap, before they could say so"


@pytest.mark.ray
@pytest.mark.deep
@pytest.mark.parametrize(("point", "moved"), [("before_swap", False), ("after_swap", True)])
def test_a_promote_that_is_killed_happened_or_did_not(
    catalog: Catalog, config_file: Callable[..., str], cli: Any, point: str, moved: bool
) -> None:
    file = config_file("unused", alias=ALIAS, storage={"root": catalog.storage.root})
    command = ["promote", "r0-a", "--force", "--reason", "why not", "-c", file]
    killed = cli.process(*command, REEMBED_CRASH_AT=f"promote.{point}")
    assert killed.returncode == KILLED
    assert [r.release.id for r in catalog.log()][1:] == (["r0-a"] if moved else [])
    again = cli.process(*command)
    assert again.returncode == (2 if moved else 0), again.stderr
    assert ("is already live" in again.stderr) == moved
    assert_one_chain(catalog.log())
    assert [r.release.id for r in catalog.log()][1:] == ["r0-a"]


if __name__ == "__main__":
    main(*sys.argv[1:])
