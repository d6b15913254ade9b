"""Every order of compare, promote and rollback with several candidates, followed as it is printed.

One root, one alias, a config for each candidate. All states of the alias that some commands reach are
visited, each once. An oracle of a few lines says what a command must have meant; it knows nothing of
reembed's records.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import lance
import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner
from conftest import documents
from inline import Inline, Silent

from reembed.catalog.releases import Catalog
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import Config
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild

DOCUMENTS, QUERIES = 160, 40
GATES = {256: 0.9, 128: 0.9, 8: 0.001}  # the dimensions of a candidate, and the loss it may bring
_COMMAND = re.compile(r"^ *(?:Next|or|Back|fix): (reembed .*)$", re.MULTILINE)
_NAMES_A_RELEASE = ("compare", "promote", "rollback")

STEPS = {2: 6, 3: 4}  # of a path, by the number of candidates

Verdicts = dict[tuple[int, int], str]
State = tuple[dict[Path, bytes], tuple[tuple[int, ...], Verdicts, frozenset[int]]]


@dataclass
class World:
    """The root, and what an onlooker knows: what stands, what was compared, what serves."""

    folder: Path
    releases: dict[int, str]
    """Id of the release of each config."""
    standing: tuple[int, ...] = ()
    verdicts: Verdicts = field(default_factory=dict)
    """By candidate and live."""
    served: frozenset[int] = frozenset()

    @property
    def live(self) -> int | None:
        return self.standing[-1] if self.standing else None

    def run(self, command: str) -> tuple[int, str]:
        """A command as printed; its exit code and all that it prints."""
        words = shlex.split(command, comments=True)[1:]
        if "-c" not in words:
            words += ["-c", str(self.folder / "other.yaml")]
        result = CliRunner().invoke(reembed_cli, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        return result.exit_code, result.output

    def of_config(self, verb: str, dim: int) -> tuple[int, str]:
        return self.run(f"reembed {verb} -c {self.folder / f'{dim}.yaml'}")

    def status(self) -> dict:
        return self._json("reembed status")

    def _json(self, command: str) -> dict:
        code, said = self.run(f"{command} --json")
        assert code == 0, said
        return json.loads(said.splitlines()[-1])

    # --- the alias's state, to come back to it ---

    def save(self) -> State:
        kept = [f for top in ("aliases", "comparisons") for f in self._files(top)]
        onlooker = (self.standing, dict(self.verdicts), self.served)
        return {f: f.read_bytes() for f in kept}, onlooker

    def restore(self, state: State) -> None:
        files, (self.standing, verdicts, self.served) = state
        self.verdicts = dict(verdicts)
        for top in ("aliases", "comparisons"):
            for file in self._files(top):
                if file not in files:
                    file.unlink()
        for file, body in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)

    def _files(self, top: str) -> Iterator[Path]:
        return (f for f in (self.folder / "root" / top).rglob("*") if f.is_file())

    # --- what must hold in every state ---

    def check(self) -> None:
        said = self.status()
        assert (said["live"] or {}).get("release") == self._id(self.live)
        below = self.standing[-2] if len(self.standing) > 1 else None
        assert (said["previous"] or {}).get("release") == self._id(below)
        _, text = self.run("reembed status")
        if said["rolled_back"]:
            assert f"rolled back from {said['rolled_back']['release']}" in text
            assert f"Next: reembed promote {said['rolled_back']['release']}" not in text
        listed = {c["release"]: c["verdict"] for c in said["candidates"]}
        waiting = [d for d in self.releases if d not in self.standing]
        assert listed == {self.releases[d]: self.verdicts.get((d, self.live or 0)) for d in waiting}

        for dim, release in self.releases.items() if said["live"] else ():
            of = self._json(f"reembed dead-letters -c {self.folder / f'{dim}.yaml'}")["of"]
            assert of in (
                release,
                self._id(self.live),
            )  # what has served is looked at as what is live
            assert of == release or dim in self.served

    def _id(self, dim: int | None) -> str | None:
        return None if dim is None else self.releases[dim]

    def check_printed(self, said: str) -> None:
        """Whatever moves or judges names its release; the config that it is typed with does not count."""
        for command in _COMMAND.findall(said):
            verb = command.split()[1]
            if verb in _NAMES_A_RELEASE:
                assert any(r in command for r in self.releases.values()), command

    # --- the steps, each with what it must have done ---

    def compare(self, dim: int) -> str:
        code, said = self.of_config("compare", dim)
        self.check_printed(said)
        if self.live in (None, dim):
            assert code != 0
            return said
        verdict = {0: "pass", 3: "fail"}[code]
        self.verdicts[dim, self.live] = verdict
        assert f"{self.releases[dim]} (candidate) against {self.releases[self.live]}" in said
        assert (verdict == "pass") == (GATES[dim] > 0.5)
        return said

    def promote(self, dim: int) -> str:
        code, said = self.of_config("promote", dim)
        self.check_printed(said)
        allowed = self.live is not None and self.verdicts.get((dim, self.live)) == "pass"
        assert (code == 0) == allowed, said
        if allowed:
            self.serves(dim)
        return said

    def serves(self, dim: int) -> None:
        self.standing, self.served = (*self.standing, dim), self.served | {dim}

    def follow(self, said: str, word: str) -> tuple[int, str]:
        """Type what was printed after `Next:`, `Back:` or `fix:`."""
        (command,) = re.findall(rf"^ *{word}: (reembed .*)$", said, re.MULTILINE)
        return self.run(command)

    def rollback(self) -> str:
        code, said = self.run("reembed rollback")
        self.check_printed(said)
        assert (code == 0) == (len(self.standing) > 1), said
        if code == 0:
            self.standing = self.standing[:-1]
        return said


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("paths")
    rows = documents(DOCUMENTS, 0)
    lance.write_dataset(pa.Table.from_pylist(rows), f"{folder}/s.lance", enable_stable_row_ids=True)
    (folder / "judged" / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"q-{r['doc_id']}", "text": r["title"]}) for r in rows[:QUERIES]]
    (folder / "judged" / "queries.jsonl").write_text("\n".join(lines) + "\n")
    judged = [f"q-{r['doc_id']}\t{r['doc_id']}\t1" for r in rows[:QUERIES]]
    header = "query-id\tcorpus-id\tscore"
    (folder / "judged" / "qrels" / "test.tsv").write_text("\n".join([header, *judged]) + "\n")
    world = World(folder, {})
    for name in (*GATES, "other"):
        dim = name if isinstance(name, int) else 512
        gate = {"queries": f"{folder}/judged", "ann_recall": 0.5, "margin": GATES.get(dim, 0.5)}
        sections = {
            "alias": "passages", "source": {"uri": f"{folder}/s.lance"}, "gate": gate,
            "encoder": {"model": f"hashing:{dim}"}, "storage": {"root": f"{folder}/root"},
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(sections))
        if dim in GATES:
            config = Config.model_validate(sections)
            world.releases[dim] = full_rebuild(config, Silent(), executor=Inline()).id
    return world


def first(world: World, dim: int) -> None:
    """The first promotion is refused until it is called that, by the command that the refusal prints."""
    code, said = world.of_config("promote", dim)
    assert code == 3
    assert "unknown about" in said
    code, said = world.follow(said, "fix")
    assert code == 0, said
    assert "Back:" not in said
    world.serves(dim)


def moves(world: World) -> Iterator[tuple[str, int]]:
    for dim in world.releases:
        if world.live is None:
            yield "first", dim
            continue
        if dim not in world.standing:
            yield "promote", dim
            if (dim, world.live) not in world.verdicts:
                yield "compare", dim
    yield "rollback", 0


def make(world: World, move: tuple[str, int]) -> None:
    """One step, and every command that it prints, each tried from where it was printed."""
    verb, dim = move
    before = world.live
    if verb == "first":
        first(world, dim)
        return
    said = world.rollback() if verb == "rollback" else getattr(world, verb)(dim)
    here = world.save()
    if verb == "compare" and world.verdicts.get((dim, before or 0)) == "pass":
        code, _ = world.follow(said, "Next")
        assert code == 0
        assert world.status()["live"]["release"] == world.releases[dim]
        world.restore(here)
    if verb == "rollback" and world.live != before:
        assert world.status()["rolled_back"]["release"] == world.releases[before]
    if world.live != before and before is not None:
        code, back = world.follow(said, "Back")
        assert code == 0, back
        assert world.status()["live"]["release"] == world.releases[before]
        world.restore(here)


@pytest.mark.parametrize("candidates", [2, 3])
def test_on_every_path_a_verb_means_the_release_of_its_config_and_what_is_printed_works(
    built, candidates
):
    """With two candidates each of which may win, and with a third that fails its comparison."""
    releases = dict(list(built.releases.items())[:candidates])
    hidden = {r for r in built.releases.values() if r not in releases.values()}
    for release in hidden:
        Catalog(Storage.open(f"{built.folder}/root"), "passages").mark_retired(release)
    world = World(built.folder, releases)
    start = world.save()
    queue, seen = [(start, 0)], {((), frozenset(), frozenset())}
    try:
        while queue:
            state, depth = queue.pop(0)
            world.restore(state)
            for move in list(moves(world)):
                world.restore(state)
                make(world, move)
                world.check()
                key = (world.standing, frozenset(world.verdicts), world.served)
                if key not in seen and depth < STEPS[candidates]:
                    seen.add(key)
                    queue.append((world.save(), depth + 1))
    finally:
        world.restore(start)
        for release in hidden:
            Catalog(Storage.open(f"{built.folder}/root"), "passages").unmark_retired(release)
    assert len(seen) >= 20 * candidates - 33, len(seen)
