"""Which tests reach a line, and what they say of a mutant: a process forked for each.

The parent imports the heavy libraries once and uses none of them: what they start when they are
used (Lance's threads) does not survive a fork. It never imports reembed. A child puts a folder of links
to the package in front of everything else, with the mutated file in place of the real one, so that
processes which the tests start see the mutant too.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = ("encoders/test_packed.py", "planning/test_tune.py", "benchmarks/test_bench.py",
             "evaluation/test_metrics.py", "config/test_cluster_yaml.py", "flow/test_demo.py",
             "flow/test_promotion_race.py", "sim", "crash")  # fmt: skip
"""Tests of other modules, or too slow to be run for every mutant."""
MARKS = "not ray and not s3 and not deep and not gpu"
HEAVY = ("numpy", "scipy.stats", "pyarrow", "pandas", "pydantic", "jinja2", "yaml", "click", "lance",
         "obstore", "faiss", "torch", "transformers", "sentence_transformers", "tokenizers",
         "ray", "ray.data", "pytest", "_pytest.assertion.rewrite", "hypothesis", "moto")  # fmt: skip
MEMORY = 12 << 30
SLACK_S, TIMES = 20.0, 5.0
"""A mutant that runs this much longer than its tests did has killed itself."""
KILLED, SURVIVED, TIMED_OUT, UNREACHED = "killed", "survived", "timed out", "unreached"


@dataclass
class Map:
    """What each test reaches, and how long it takes."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, set[str]]]
    """Tests by module and line."""
    failed: list[str]

    def reaching(self, module: str, first: int, last: int) -> list[str]:
        """Tests that run one of these lines; those of the whole file where none is in a function."""
        lines = self.lines.get(module, {})
        found = set().union(*(lines.get(n, set()) for n in range(first, last + 1)))
        imported = {t for tests in lines.values() for t in tests}
        return sorted(found or imported, key=lambda t: (self.seconds[t], t))


def load_heavy() -> None:
    """Import what every child would import."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in HEAVY:
            importlib.import_module(name)
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    assert not any(name.split(".")[0] == "reembed" for name in sys.modules)


# --- the map ---


def make_map(files: list[str], where: Path) -> Map:
    """Run tests once under coverage, in a forked child; kept in `where`.

    Where only files of tests changed since, these alone are run again.
    """
    stamps = _stamps()
    kept = _still_true(json.loads(where.read_text()), stamps) if where.exists() else None
    known = {t.split("::")[0] for t in kept["stamps"]} if kept else set()
    stale = [name for name in stamps if _is_test(name) and name not in known]
    if kept and not stale:
        return _map(kept)
    where.parent.mkdir(parents=True, exist_ok=True)
    part = where.with_suffix(".part")
    part.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _as_child(where.with_suffix(".log"), None)
        os._exit(_trace(files, part, stale if kept else []))
    os.waitpid(child, 0)
    if not part.exists():
        raise RuntimeError(f"the tests could not be run: see {where.with_suffix('.log')}")
    found = json.loads(part.read_text())
    kept = _joined(kept, found) if kept else found
    where.write_text(json.dumps({**kept, "stamps": stamps}))
    return _map(kept)


def _stamps() -> dict[str, str]:
    """Digests of the files that decide what a test reaches, by name."""
    files = [*ROOT.glob("reembed/**/*.py"), *ROOT.glob("tests/**/*.py")]
    named = {f.relative_to(ROOT).as_posix(): hashlib.sha256(f.read_bytes()) for f in sorted(files)}
    return {name: digest.hexdigest() for name, digest in named.items() if not _is_elsewhere(name)}


def _is_test(name: str) -> bool:
    return name.startswith("tests/") and Path(name).name.startswith("test_")


def _is_elsewhere(name: str) -> bool:
    """Whether it is a test that is not run, or the machinery of mutants or simulations itself."""
    left_out = (*(f"tests/{e}" for e in ELSEWHERE), "tests/mutation")
    return name.startswith(left_out) and (_is_test(name) or not name.startswith("tests/crash"))


def _still_true(kept: dict[str, Any], stamps: dict[str, str]) -> dict[str, Any] | None:
    """What a kept map says of the tests that did not change; None where something else did."""
    before = kept["stamps"]
    if any(before.get(n) != d for n, d in stamps.items() if not _is_test(n)):
        return None
    same = {n for n, d in stamps.items() if before.get(n) == d}
    tests = [t if t.split("::")[0] in same else None for t in kept["seconds"]]
    place = {old: new for new, old in enumerate(n for n, t in enumerate(tests) if t)}
    return {
        "stamps": {n: stamps[n] for n in same},
        "seconds": {t: kept["seconds"][t] for t in tests if t},
        "lines": {
            module: {n: [place[t] for t in reached if t in place] for n, reached in found.items()}
            for module, found in kept["lines"].items()
        },
        "failed": [t for t in kept["failed"] if t in tests],
    }


def _joined(kept: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Two maps of different tests."""
    first = len(kept["seconds"])
    lines = {module: dict(reached) for module, reached in kept["lines"].items()}
    for module, reached in found["lines"].items():
        for n, tests in reached.items():
            at = lines.setdefault(module, {})
            at[n] = [*at.get(n, []), *(first + t for t in tests)]
    return {
        "seconds": kept["seconds"] | found["seconds"],
        "lines": lines,
        "failed": [*kept["failed"], *found["failed"]],
    }


def _map(kept: dict[str, Any]) -> Map:
    names = list(kept["seconds"])
    lines = {
        module: {int(n): {names[t] for t in tests} for n, tests in found.items()}
        for module, found in kept["lines"].items()
    }
    return Map(kept["seconds"], lines, kept["failed"])


def _trace(files: list[str], where: Path, only: list[str]) -> int:
    """Run the tests of these files, or all, and write what each reaches."""
    import coverage
    import pytest

    cov = coverage.Coverage(data_file=None, source=["reembed"], branch=False, config_file=False)
    seconds: dict[str, float] = defaultdict(float)
    failed: list[str] = []

    class Recorder:
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_protocol(self, item: Any) -> Any:
            cov.switch_context(item.nodeid)
            return (yield)

        def pytest_runtest_logreport(self, report: Any) -> None:
            seconds[report.nodeid] += report.duration
            if report.failed and report.nodeid not in failed:
                failed.append(report.nodeid)

    cov.start()
    left_out = [f"--ignore={ROOT / 'tests' / name}" for name in ELSEWHERE]
    arguments = [*_arguments(), "-m", MARKS, *left_out, *(only or ["tests"])]
    status = pytest.main(arguments, plugins=[Recorder()])
    cov.stop()
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(status)
    data = cov.get_data()
    tests = {t: i for i, t in enumerate(seconds)}
    lines = {}
    for module in files:
        by_line = data.contexts_by_lineno(str(ROOT / module))
        lines[module] = {
            n: [tests[t] for t in names if t in tests and t not in failed]
            for n, names in by_line.items()
        }
    kept = {"seconds": seconds, "lines": lines, "failed": failed}
    where.write_text(json.dumps(kept))
    return 0


def _arguments() -> list[str]:
    return ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-o", "addopts=",
            "--import-mode=importlib", f"--rootdir={ROOT}",
            "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # fmt: skip


# --- one mutant ---


@dataclass
class Trial:
    """A child at work on a mutant."""

    pid: int
    folder: Path
    deadline: float
    started: float

    def outcome(self) -> tuple[str, str | None] | None:
        """What came of it and by which test; None while it runs."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done:
            if time.monotonic() < self.deadline:
                return None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return self._end(TIMED_OUT), None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # servers that its tests started
        killer = self.folder / "killer"
        by = killer.read_text() if killer.exists() else None
        survived = os.waitstatus_to_exitcode(status) == 0
        return self._end(SURVIVED if survived else KILLED), by

    def _end(self, outcome: str) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        return outcome


def begin(module: str, code: str, tests: list[str], expected_s: float) -> Trial:
    """Start the tests against a mutated file."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="reembed-mutant-", dir=shm if shm.is_dir() else None))
    package = _linked(folder / "package", module, code)
    pid = os.fork()
    if pid == 0:
        code_ = 70
        try:
            _as_child(folder / "log", package)
            code_ = _run(folder, tests)
        finally:
            os._exit(code_)
    now = time.monotonic()
    return Trial(pid, folder, now + SLACK_S + TIMES * expected_s, now)


def _linked(folder: Path, module: str, code: str) -> Path:
    """The package by links, one file of it mutated."""
    for file in sorted((ROOT / "reembed").rglob("*")):
        name = file.relative_to(ROOT)
        if "__pycache__" in name.parts or file.is_dir():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.as_posix() == module:
            (folder / name).write_text(code, encoding="utf-8")
        else:
            (folder / name).symlink_to(file)
    return folder


def _as_child(log: Path, package: Path | None) -> None:
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(out, stream)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    paths = [*([str(package)] if package else []), str(ROOT), str(ROOT / "tests")]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(log.parent / "hypothesis")
    os.chdir(ROOT)


def _run(folder: Path, tests: list[str]) -> int:
    import pytest

    class Killer:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                (folder / "killer").write_text(report.nodeid)

    return int(
        pytest.main(
            [*_arguments(), "-x", f"--basetemp={folder / 'tmp'}", *tests], plugins=[Killer()]
        )
    )
