"""The progress line: what it says at 80 columns, on a terminal that is resized, and between units."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from inline import Silent

from reembed.catalog.receipts import Receipt, UnitStats
from reembed.cli.progress import Console, words
from reembed.engine.progress import EmbedProgress
from reembed.events import Progress, Throughput, Working

FIGURES = Throughput(
    done=1_234_567, total=10_000_000, docs_per_s=1_234.5, tokens_per_s=234_567, actors=16, busy=0.97,
    waits_for_input=0.01, waits_for_records=0.0, path="padded on cpu", padding=0.0, mfu=None,
    units_done=123, units=1_000, dead_letters=3, copied=0, startup_s=1.0,
)  # fmt: skip
UNDER_WAY = Progress(FIGURES, eta_s=7_100, waiting=None, last=False)
LOADING = "each actor loads the model and embeds its first unit"


class Terminal:
    """One that wraps lines again when it is resized, as most do, and what is seen on it."""

    def __init__(self) -> None:
        self.reader, writer = os.openpty()
        self.stream = os.fdopen(writer, "w")
        self.lines = [""]
        self.resize(80)

    def resize(self, columns: int) -> None:
        self.take()
        self.columns = columns
        size = struct.pack("HHHH", 50, columns, 0, 0)
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, size)

    def take(self) -> None:
        """What was written since, at the width it was written for."""
        print(
            "\0", end="", file=self.stream, flush=True
        )  # the kernel hands on what came before it late
        written = b""
        while not written.endswith(b"\0"):
            written += os.read(self.reader, 1 << 20)
        for piece in re.findall(r"\r\n|\r\x1b\[2K|[^\r\0]+", written.decode()):
            if piece == "\r\n":
                self.lines.append("")
            elif piece.startswith("\r"):  # only the row of the cursor is erased
                whole = (max(1, len(self.lines[-1])) - 1) // self.columns
                self.lines[-1] = self.lines[-1][: whole * self.columns]
            else:
                self.lines[-1] += piece

    def seen(self) -> list[str]:
        self.take()
        return self.lines


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.stream.close()
    os.close(made.reader)


@pytest.fixture
def console(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Console]:
    """console() -> one whose stderr is the terminal from now on; pytest's own would be in between."""

    def make() -> Console:
        monkeypatch.setattr(sys, "stderr", terminal.stream)
        return Console()

    return make


def test_share_rate_and_time_left_survive_eighty_columns(
    terminal: Terminal, console: Callable[[], Console]
):
    console()(UNDER_WAY)
    (line,) = terminal.seen()
    assert len(line) <= 79
    assert {"12.3%", "1,234.5 docs/s", "ETA 1h58m"} <= set(re.split(r"  +", line))


def test_why_it_waits_survives_eighty_columns(terminal: Terminal, console: Callable[[], Console]):
    figures = replace(FIGURES, docs_per_s=0.0, done=0)
    console()(Progress(figures, eta_s=None, waiting=LOADING, last=False))
    (line,) = terminal.seen()
    assert len(line) <= 79
    assert f"waiting: {LOADING}" in line
    assert "0.0%" in line


@pytest.mark.parametrize("columns", [20, 40, 60, 79, 100, 132, 250])
def test_a_line_never_wraps_and_drops_the_least_important_first(
    terminal: Terminal, console: Callable[[], Console], columns: int
):
    terminal.resize(columns)
    console()(UNDER_WAY)
    (line,) = terminal.seen()
    assert len(line) < columns
    assert "12.3%" in line
    order = ["█", "tokens/s", "units", "busy", "embed", "dead", "1,234,567/", "docs/s", "ETA"]
    there = [word in line for word in order]
    assert there == sorted(there), "a less important part took the place of another"
    assert all(there) == (columns == 250)


def timeless(line: str) -> str:
    return re.sub(r"^\d\d:\d\d:\d\d", "now", line)


def test_a_terminal_that_is_resized_shows_whole_lines_only(
    terminal: Terminal, console: Callable[[], Console]
):
    widths, whole = (80, 160, 50, 50, 200, 30, 30, 79, 250, 80), set()
    for columns in widths:
        terminal.resize(columns)
        console()(UNDER_WAY)
        whole.add(timeless(terminal.seen()[-1]))
        terminal.lines = [""]
    emit = console()
    for columns in widths:
        terminal.resize(columns)
        emit(UNDER_WAY)
        assert {timeless(line) for line in terminal.seen() if line} <= whole
    terminal.resize(40)
    emit(Working("building the index"))
    *progress, last = [timeless(line) for line in terminal.seen() if line]
    assert last.endswith("building the index ...")
    assert len(progress) <= 5, "one for each time it became narrower than the line"
    assert set(progress) <= whole


def test_where_stderr_is_no_terminal_lines_are_whole(capsys: pytest.CaptureFixture[str]):
    Console()(replace(UNDER_WAY, last=True))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in ("tokens/s", "ETA 1h58m", "units 123/1,000", "█"))


# The rate


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def progress_of(actors: int, units: int, unit: int = 100) -> EmbedProgress:
    return EmbedProgress(Silent(), total=units * unit, done=0, units=(0, units), actors=actors)


def finish(progress: EmbedProgress, clock: Clock, seconds: float, unit: int = 100) -> None:
    tokens = 20 * unit
    stats = UnitStats(
        device="cpu", path="padded", notes="", batch_tokens=1, attempt=1, copied=0, tokens=tokens,
        model_tokens=tokens, computed_tokens=tokens, flop=0, peak_flops=0.0,
        started_at=clock.now - seconds, waited_s=0.0, embed_s=seconds, model_s=seconds,
    )  # fmt: skip
    progress.receipt(Receipt("u", "", "", unit, unit, (), (), {}, stats))


@pytest.mark.parametrize("lag", [0.0, 2.5, 0.01], ids=["in step", "one after the other", "nearly"])
def test_the_rate_does_not_sag_between_units(clock: Clock, lag: float):
    """Four actors, each ten seconds at a unit of 100 documents: 40 a second, whenever it is asked."""
    progress = progress_of(actors=4, units=80)
    due = [clock.now + 10 + lag * actor for actor in range(4)]
    rates, left = [], []
    while len(rates) < 150:
        clock.now += 1.0
        for actor, at in enumerate(due):
            if at <= clock.now:
                finish(progress, clock, 10.0)
                due[actor] += 10.0
        if rate := progress.now().figures.docs_per_s:
            rates.append(rate)
            left.append(progress.now().eta_s)
    assert min(rates) >= 34
    assert max(rates) <= 46
    assert all(abs((left[0] - i) - eta) <= 30 for i, eta in enumerate(left) if eta)


def test_the_rate_is_that_of_the_last_minute_and_the_total_that_of_the_run(clock: Clock):
    progress = progress_of(actors=1, units=100)
    for seconds in [1.0] * 20 + [10.0] * 20:
        clock.now += seconds
        finish(progress, clock, seconds)
    assert progress.now().figures.docs_per_s == 10.0
    assert progress.totals().figures.docs_per_s == pytest.approx(4_000 / 220, abs=0.1)


def test_the_rate_falls_where_nothing_is_finished_any_more(clock: Clock):
    progress = progress_of(actors=2, units=100)
    for _ in range(6):
        clock.now += 5.0
        finish(progress, clock, 10.0)
    before = progress.now().figures.docs_per_s
    clock.now += 9.0
    assert progress.now().figures.docs_per_s == before
    clock.now += 600.0
    now = progress.now()
    assert now.figures.docs_per_s < before / 10
    assert "no unit was finished for 609 s" in now.waiting


def test_before_any_unit_is_finished_nothing_is_made_up(clock: Clock):
    progress = progress_of(actors=2, units=100)
    clock.now += 20.0
    now = progress.now()
    assert (now.figures.docs_per_s, now.eta_s) == (0.0, None)
    assert now.waiting == f"{LOADING}, for 20 s"


def test_one_unit_gives_no_rate(clock: Clock):
    """Its actor's seconds are all that is known: a small one would seem faster than the run can be."""
    progress = progress_of(actors=1, units=2)
    clock.now += 20.0
    finish(progress, clock, 0.01)
    now = progress.now()
    assert (now.figures.docs_per_s, now.eta_s) == (0.0, None)
    assert "/s" not in words(now)
    clock.now += 2.0
    finish(progress, clock, 0.01)
    assert progress.now().figures.docs_per_s == 50.0
    assert "50.0 docs/s" in words(progress.now())
