"""A whole lazy migration while processes of every kind are killed, and what came of it.

On the documents of a BEIR folder. Two processes serve: each searches for queries drawn by Zipf's law, one after the
other, k = 50, and writes down each answer. Beside them run, again and again, a sweep (`reembed sweep --budget`), a
catch-up of the live release, and a writer of the source, which changes, adds and removes documents. Each of the four
kinds is killed (SIGKILL) `--kills` times and started again: at a random moment of the time that the first one of its
kind took, which was left alone; those that serve within 30 s. Then a catch-up and a sweep to 100 %, `reembed run`,
which is killed too, a promotion, and gc.

What is compared comes from other code than reembed's: the old model's first 50 documents by numpy over the table of
the release that answered (`answers_below_old`: answers that hold others; the order that the new model gave to some of
them is what `bench/lazy_quality.py` measures; `ndcg` is that of all answers, with the judgements of the
folder, and of the same old lists), documents of an answer (`twice`: with one document twice), the rows of the last
table against the source (`lost`, `left_over`, `stale`), and its vectors against the model's (`max_abs_difference`).
Exits 1 where one of them is not 0, or `verify` or `spaces` is not what it has to be.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "lazy_migration"
DEPTH, ZIPF, SHOWN = 50, 1.1, 10
KINDS = ("serve", "sweep", "catch-up", "write")
_TIE = 1e-5


def main() -> None:
    args = _arguments()
    if args.act:
        ACTS[args.act](args)
        return
    with common.workdir(args) as folder, common.Reembed() as reembed:
        figures = measure(args, folder, reembed)
        figures["leftover_processes"] = len(reembed.leftovers(60))
    passed = is_clean(figures)
    common.say("clean" if passed else "NOT clean")
    common.finish(NAME, args, {**figures, "passed": passed})
    sys.exit(0 if passed else 1)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="BEIR folder with judgements")
    parser.add_argument("--old", required=True, help="encoder.model of the live release")
    parser.add_argument("--kills", type=int, default=10, help="of each kind [%(default)s]")
    parser.add_argument(
        "--budget", type=int, default=150, help="documents of a sweep [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    common.add_limit(parser)
    parser.add_argument("--act", choices=tuple(ACTS), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    return common.parse(parser)


def is_clean(figures: common.Figures) -> bool:
    none = ("answers_below_old", "twice", "lost", "left_over", "stale", "not_migrated")
    return (
        figures["verify"] == "clean"
        and figures["spaces"] == 1
        and figures["max_abs_difference"] < 1e-4
        and all(figures[name] == 0 for name in none)
    )


def measure(args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> common.Figures:
    source = common.import_corpus(reembed, args.dir, folder, args.limit)
    more: common.Figures = {
        "embed": {"unit_documents": 256},
        "gate": {"queries": str(args.dir.resolve())},
    }
    old = common.write_config(
        folder, "old", source, args, **more, encoder={"model": str(Path(args.old).resolve())}
    )
    lazy = {"strategy": "lazy", "storage": {"root": str(folder / "old")}}
    new = common.write_config(folder, "new", source, args, **more, **lazy)
    first = reembed("run", "-c", str(old))
    reembed("promote", first["id"], "-c", str(old), "--initial", "--reason", "first")
    common.say("the old release is live; the lazy migration starts")
    started = time.monotonic()
    reembed("lazy", "start", "-c", str(new), "--reason", "a measurement")
    ran = Ran(args, folder, reembed, old, new)
    ran.until_killed()
    ran.to_the_end()
    figures = checked(args, folder, reembed, new)
    return {
        "documents": figures.pop("documents"),
        "kills": sum(ran.kills.values()),
        "kills_by_kind": ran.kills,
        **figures,
        "seconds": round(time.monotonic() - started, 1),
    }


@dataclass
class Ran:
    """The processes of a migration, and how often each kind was killed."""

    args: argparse.Namespace
    folder: Path
    reembed: common.Reembed
    old: Path
    new: Path
    kills: dict[str, int] = field(default_factory=dict)
    alive: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    ends_at: dict[str, float] = field(default_factory=dict)
    """When a process is to be killed."""
    began: dict[str, float] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=lambda: {"serve": 30.0})
    """Seconds of one that was left alone, by kind."""
    serving: int = 0
    """Processes that served so far: each has a file and a seed of its own."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.args.seed)

    def until_killed(self) -> None:
        """Let all kinds run, and kill them, until each was killed often enough."""
        names = ("serve 1", "serve 2", "sweep", "catch-up", "write")
        while any(self.kills.get(kind, 0) < self.args.kills for kind in KINDS):
            for name in names:
                self._look(name)
            time.sleep(0.05)
        for name in ("sweep", "catch-up", "write"):
            self._end(name, signal.SIGKILL)
        common.say(f"killed: {json.dumps(self.kills)}")

    def _look(self, name: str) -> None:
        """Start a process that does not run; kill it when its time has come."""
        kind, process = name.split()[0], self.alive.get(name)
        if process is not None and process.poll() is None:
            if time.monotonic() < self.ends_at[name]:
                return
            self._end(name, signal.SIGKILL)
            self.kills[kind] = self.kills.get(kind, 0) + 1
            common.say(f"killed {name}: {self.kills[kind]}")
        elif process is not None and process.returncode not in (0, 4):
            common.say(f"{name} exited with {process.returncode}: {self._said(name)[-600:]}")
            if kind == "serve":
                raise SystemExit("a process that serves ended by itself")
        elif process is not None:
            self.took.setdefault(kind, time.monotonic() - self.began[name])
        self.alive[name] = self._start(kind, name)
        self.began[name] = time.monotonic()
        self.ends_at[name] = self.began[name] + self._until_killed(kind)

    def _until_killed(self, kind: str) -> float:
        if kind not in self.took or self.kills.get(kind, 0) >= self.args.kills:
            return 1e9
        return self.chance.uniform(0.1, 1) * self.took[kind]

    def _start(self, kind: str, name: str) -> subprocess.Popen[str]:
        said = (self.folder / f"{name}.log").open("w")
        if kind == "sweep":
            budget = str(self.args.budget)
            return self.reembed.start(
                *("sweep", "-c", str(self.new), "--budget", budget), stdout=said, stderr=said
            )
        if kind == "catch-up":
            return self.reembed.start(
                *("catch-up", "live", "-c", str(self.old)), stdout=said, stderr=said
            )
        self.serving += kind == "serve"
        seed = self.serving if kind == "serve" else self.chance.randrange(10**9)
        script = [sys.executable, __file__, str(self.args.dir), "--old", self.args.old]
        command = [*script, "--act", kind, "--seed", str(seed), "--root", str(self.folder)]
        return subprocess.Popen(command, env=self.reembed.env, text=True, stdout=said, stderr=said)

    def _said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def _end(self, name: str, how: signal.Signals) -> None:
        process = self.alive.pop(name)
        process.send_signal(how)
        process.wait()

    def to_the_end(self) -> None:
        """Bring the migration to its end, while both processes serve."""
        common.say("catching up, and a sweep to 100 %")
        self.reembed("catch-up", "live", "-c", str(self.old))
        self.reembed("sweep", "-c", str(self.new))
        run = ("run", "-c", str(self.new))
        for _ in range(self.args.kills):
            process = self.reembed.start(*run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(self.chance.uniform(2, 12))
                break  # it was complete before
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                self.kills["run"] = self.kills.get("run", 0) + 1
        release = self.reembed(*run)
        common.say(f"promoting {release['id']}; runs killed: {self.kills.get('run', 0)}")
        self.reembed(
            *("promote", release["id"], "-c", str(self.new), "--force"), "--reason", "a measurement"
        )
        time.sleep(5)  # both processes follow
        for name in ("serve 1", "serve 2"):
            self._end(name, signal.SIGTERM)


# --- the processes that are not reembed's commands ---


def serve(args: argparse.Namespace) -> None:
    """Search, and write down each answer, until it is ended."""
    import numpy as np

    import reembed

    queries = [row["text"] for row in common.read_jsonl(common.queries_file(args.dir))]
    order = np.random.default_rng(0).permutation(len(queries))
    weights = 1 / np.arange(1, len(queries) + 1) ** ZIPF
    chance = np.random.default_rng(args.seed)
    with (
        reembed.open(args.root / "old", "bench", refresh_every=1.0, lazy_budget=1.0) as index,
        (args.root / f"answers-{args.seed}.jsonl").open("w") as answers,
    ):
        while True:
            query = int(order[chance.choice(len(queries), p=weights / weights.sum())])
            (hits,) = index.search([queries[query]], k=DEPTH)
            lazy = index.lazy
            row = {
                "query": query,
                "release": hits[0].release,
                "ids": [hit.doc_id for hit in hits],
                "counts": [lazy.fused, lazy.hits, lazy.hits_new] if lazy else [0, 0, 0],
            }
            answers.write(json.dumps(row) + "\n")
            answers.flush()
            time.sleep(0.3)  # the other processes need the cores, too


def write(args: argparse.Namespace) -> None:
    """Change 6 documents, add 2 and remove 2, a commit each."""
    import lance
    import pyarrow as pa

    uri, chance = str(args.root / "documents.lance"), random.Random(args.seed)
    rows = lance.dataset(uri).to_table(with_row_id=True).to_pylist()
    chance.shuffle(rows)
    leaving = [row.pop("_rowid") for row in rows][8:10]
    changed = [row | {"text": f"{row['text']} Note {args.seed}."} for row in rows[:6]]
    added = [row | {"_id": f"new-{args.seed}-{n}"} for n, row in enumerate(rows[6:8])]
    for some in (changed, added):
        table = pa.Table.from_pylist(some, lance.dataset(uri).schema)
        merge = lance.dataset(uri).merge_insert("_id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(table)
        time.sleep(0.3)
    lance.dataset(uri).delete(f"_rowid IN ({', '.join(map(str, leaving))})")
    time.sleep(5)


ACTS: dict[str, Callable[[argparse.Namespace], None]] = {"serve": serve, "write": write}


# --- what came of it ---


def checked(
    args: argparse.Namespace, folder: Path, reembed: common.Reembed, config: Path
) -> common.Figures:
    """Compare answers and the last table with what numpy, the source and the model say."""
    verified = reembed("verify", "-c", str(config))
    compared = {**of_table(args, folder), **of_answers(args, folder)}
    reembed("gc", "-c", str(config), "--yes")  # afterwards: it removes the releases that answered
    status = reembed("status", "-c", str(config))
    return {
        **compared,
        "verify": "clean" if verified["passed"] else "NOT clean",
        "left_of_the_migration": sorted(p.name for p in (folder / "old" / "lazy").rglob("*.json")),
        "lazy_now": status.get("lazy"),
    }


def of_table(args: argparse.Namespace, folder: Path) -> common.Figures:
    """The live table against the source, row for row, and its vectors against the model's."""
    import lance
    import numpy as np

    from reembed import encoders
    from reembed.catalog.releases import Catalog
    from reembed.config.settings import EncoderConfig
    from reembed.store.storage import Storage

    live = Catalog(Storage.existing(folder / "old"), "bench").require_live().release
    dataset = lance.dataset(str(folder / "old" / live.table), version=live.table_version)
    rows = {row["doc_id"]: row for row in dataset.to_table().to_pylist()}
    wanted = {
        r["_id"]: r for r in lance.dataset(str(folder / "documents.lance")).to_table().to_pylist()
    }
    texts = [f"{wanted[d]['title'] or ''} {wanted[d]['text'] or ''}" for d in rows if d in wanted]
    encoder = encoders.load_encoder(EncoderConfig(model=args.model, max_length=args.max_length))
    expected = encoder.embed_documents(texts).vectors
    found = np.array([row["vector"] for d, row in rows.items() if d in wanted])
    apart = np.abs(expected - found).max(axis=1)
    return {
        "documents": len(rows),
        "lost": len(wanted.keys() - rows.keys()),
        "left_over": len(rows.keys() - wanted.keys()),
        "stale": int((apart > 1e-3).sum()),
        "max_abs_difference": float(apart.max()),
        "spaces": len({row["space"] for row in rows.values()}),
        "not_migrated": sum(row["space"] != live.space.id for row in rows.values()),
    }


def of_answers(args: argparse.Namespace, folder: Path) -> common.Figures:
    """Each answer against the old model's list, by numpy over the table of the release that answered."""
    import numpy as np

    below = twice = counted = 0
    gained: list[tuple[float, float]] = []
    new_share: list[float] = []
    judged = judgements(args.dir)
    lists = OldLists(args, folder)
    for answer in answers(folder):
        counted += 1
        ids = answer["ids"]
        twice += len(set(ids)) < len(ids)
        old = lists.of(answer["release"])
        if old is None:  # of the new model: the migration has ended
            continue
        place, scores = old
        of_query = scores[answer["query"]]
        ranked = np.sort(of_query)[::-1]
        least = ranked[min(DEPTH, len(ranked)) - 1]
        fits = all(d in place and of_query[place[d]] >= least - _TIE for d in ids)
        below += not fits or len(ids) != min(DEPTH, len(ranked))
        if grades := judged.get(answer["query"]):
            names = list(place)
            best = [names[at] for at in np.argsort(-of_query, kind="stable")[:SHOWN]]
            gained.append((ndcg(ids, grades), ndcg(best, grades)))
        if answer["counts"][1]:
            new_share.append(answer["counts"][2] / answer["counts"][1])
    of_all, of_old = np.mean(gained, axis=0) if gained else (0.0, 0.0)
    return {
        "queries": counted,
        "answers_below_old": below,
        "twice": twice,
        "old_releases": lists.releases,
        "ndcg": round(float(of_all), 4),
        "ndcg_old": round(float(of_old), 4),
        "most_hits_new": round(max(new_share, default=0.0), 3),
    }


def answers(folder: Path) -> Iterator[Any]:
    """All that were written down; the last line of a killed process may be cut."""
    for file in folder.glob("answers-*.jsonl"):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


@dataclass
class OldLists:
    """Scores of all documents for each query, by release of the old model."""

    args: argparse.Namespace
    folder: Path
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def releases(self) -> int:
        return sum(found is not None for found in self.known.values())

    def of(self, release: str) -> Any:
        """Place of each document and scores [Q, documents]; None for a release of the new model."""
        if release not in self.known:
            self.known[release] = self._read(release)
        return self.known[release]

    def _read(self, name: str) -> Any:
        import lance
        import numpy as np

        from reembed import encoders
        from reembed.catalog.releases import Catalog
        from reembed.config.settings import EncoderConfig
        from reembed.store.storage import Storage

        release = Catalog(Storage.existing(self.folder / "old"), "bench").release(name)
        encoder = encoders.load_encoder(EncoderConfig(model=str(Path(self.args.old).resolve())))
        if release.space.model != encoder.describe().model:
            return None
        queries = [row["text"] for row in common.read_jsonl(common.queries_file(self.args.dir))]
        uri = str(self.folder / "old" / release.table)
        table = lance.dataset(uri, version=release.table_version).to_table(["doc_id", "vector"])
        vectors = np.array(table["vector"].to_pylist(), np.float32)
        place = {doc_id: at for at, doc_id in enumerate(table["doc_id"].to_pylist())}
        return place, encoder.embed_queries(queries) @ vectors.T


def judgements(folder: Path) -> dict[int, dict[str, int]]:
    """Grades of documents by place of the query."""
    places = {row["_id"]: n for n, row in enumerate(common.read_jsonl(common.queries_file(folder)))}
    found: dict[int, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, doc_id, grade = line.split("\t")
        found.setdefault(places[query], {})[doc_id] = int(grade)
    return found


def ndcg(ids: list[str], grades: dict[str, int]) -> float:
    """nDCG@10 of a list."""
    import numpy as np

    discount = 1 / np.log2(np.arange(2, SHOWN + 2))
    best = sorted(grades.values(), reverse=True)[:SHOWN]
    got = [max(grades.get(d, 0), 0) for d in ids[:SHOWN]]
    ideal = float(discount[: len(best)] @ np.maximum(best, 0))
    return float(discount[: len(got)] @ got) / ideal if ideal else 0.0


if __name__ == "__main__":
    main()
