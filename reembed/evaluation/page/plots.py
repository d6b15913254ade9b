"""The figures of a report, in units of which a line of text is 12 high."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from reembed.evaluation.figures import Curve, MetricChange, ScoreDistributions, Scores, Sides
from reembed.evaluation.page.model import Box, Dot, Label, Mark, Plot, Stroke, Tone
from reembed.evaluation.page.numbers import between, signed

_WIDTH = 340.0
_LEFT, _RIGHT = 34.0, 330.0
"""Where axes begin and end."""
_SIDES: tuple[tuple[Tone, bool], ...] = (("live", True), ("candidate", False))
"""Each side with whether its marks are hollow: they can be told apart without colour."""


def forest(metrics: dict[str, MetricChange]) -> Plot:
    """Return the change of each metric with its intervals and the loss that the gate allows."""
    changes = [m.change for m in metrics.values()]
    ends = [abs(end or 0) for c in changes for end in (c.low, c.high, c.mean)]
    scale = max(0.05, *ends, *(m.margin or 0 for m in metrics.values())) * 1.1
    bottom = 14.0 + 44 * len(metrics)
    marks: list[Mark] = []
    for row, (name, m) in enumerate(metrics.items()):
        marks += _change(name, m, 38.0 + 44 * row, scale)
    marks.append(Stroke(0, bottom, _WIDTH, bottom, "soft", 1))
    for tick in _ticks(scale):
        x = _across(tick, scale)
        marks.append(Stroke(x, bottom, x, bottom + 4, "soft", 1))
        marks.append(Label(x, bottom + 17, f"{tick:+g}" if tick else "0", "soft", "middle"))
    caption = (
        "Upright line: no change. Thin bar: 95 % interval of the change. Thick bar: its one-sided 95 % bounds, "
        "which the gate uses. A metric of the gate passes only if the whole thick bar lies to the right of the "
        "dashed line, the loss that the gate allows."
    )
    return Plot(caption, _forest_words(metrics), _WIDTH, bottom + 22, tuple(marks))


def _change(name: str, m: MetricChange, y: float, scale: float) -> Iterator[Mark]:
    change = m.change
    yield Label(0, y - 14, f"{name} {signed(change.mean)}")
    zero = _across(0, scale)
    yield Stroke(zero, y - 11, zero, y + 11, "soft", 1)
    if m.margin is not None:
        yield Label(_WIDTH, y - 14, f"allowed loss {m.margin:.4f}", "limit", "end")
        at = _across(-m.margin, scale)
        yield Stroke(at, y - 11, at, y + 11, "limit", 2, dashed=True)
    for low, high, width in ((change.low, change.high, 1.5), (change.lower, change.upper, 5)):
        if low is not None and high is not None:
            yield Stroke(_across(low, scale), y, _across(high, scale), y, "candidate", width)
    yield Dot(_across(change.mean, scale), y, "candidate")


def _across(value: float, scale: float) -> float:
    return _WIDTH / 2 * (1 + value / scale)


def _ticks(scale: float) -> list[float]:
    """Return round values at both sides of 0: three or fewer, so that their labels do not touch."""
    power = 10.0 ** math.floor(math.log10(scale))
    step = next(s for s in (5 * power, 2 * power, power, power / 2) if s <= scale / 1.5)
    return [round(n * step, 10) for n in range(-int(scale / step), int(scale / step) + 1)]


def _forest_words(metrics: dict[str, MetricChange]) -> str:
    of = [
        f"{name} {signed(m.change.mean)}, interval {between(m.change.low, m.change.high)}"
        + (f", allowed loss {m.margin:.4f}" if m.margin is not None else "")
        for name, m in metrics.items()
    ]
    return f"Change of each metric from live to candidate: {'; '.join(of)}."


@dataclass(frozen=True)
class _Scale:
    """Values on an axis."""

    least: float
    most: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.least) / (self.most - self.least or 1.0)
        return self.start + share * (self.end - self.start)


def scores(found: ScoreDistributions, cuts: Sides[float | None]) -> Plot:
    """Return how both sides score their first results; `cuts` are the score cut-offs that correspond, if any."""
    edges = found.edges
    x = _Scale(edges[0], edges[-1], _LEFT, _RIGHT)
    marks: list[Mark] = []
    top = 0.0
    for role, of in vars(found.of).items():
        marks += _histogram(role, of, getattr(cuts, role), edges, x, top)
        top += 118
    middle = (edges[0] + edges[-1]) / 2
    marks += [
        Label(x(edges[0]), top + 12, f"{edges[0]:.3g}", "soft", "start"),
        Label(x(middle), top + 12, f"{middle:.3g}", "soft", "middle"),
        Label(x(edges[-1]), top + 12, f"{edges[-1]:.3g}", "soft", "end"),
    ]
    caption = (
        "Scores of the first ten results. Filled: relevant. Outlined: judged not relevant, or not judged. "
        "The heights of each kind are shares of its own number."
    )
    if cuts.live is not None:
        caption += " Dashed: live's cut-off, and the candidate's with the same recall."
    words = (
        "Histograms of the scores of relevant and other results, of live above and of the candidate"
        " below; the table gives their quartiles."
    )
    return Plot(caption, words, _WIDTH, top + 18, tuple(marks))


def _histogram(
    role: str, of: Scores, cut: float | None, edges: Sequence[float], x: _Scale, top: float
) -> Iterator[Mark]:
    floor, height = top + 106, 84.0
    yield Label(0, top + 12, role)
    tone: Tone = "live" if role == "live" else "candidate"
    for counts, hollow in ((of.relevant, False), (of.others, True)):
        shares = [count / max(sum(counts), 1) for count in counts]
        highest = max(*shares, 1e-9)
        for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
            tall = height * share / highest
            if tall:
                yield Box(x(low), floor - tall, x(high) - x(low), tall, tone, hollow)
    yield Stroke(_LEFT, floor, _RIGHT, floor, "soft", 1)
    if cut is not None and edges[0] <= cut <= edges[-1]:
        yield Stroke(x(cut), top + 6, x(cut), floor, "limit", 2, dashed=True)


def operating(curves: Sides[Curve | None]) -> Plot | None:
    """Return ann_recall over the setting of each index; None if neither has one."""
    known = {role: c for role, c in vars(curves).items() if c is not None}
    if not known:
        return None
    values = [math.log2(p.value) for c in known.values() for p in c.points]
    lowest = min(p.ann_recall_at_10 for c in known.values() for p in c.points)
    x = _Scale(min(values), max(values), _LEFT + 10, _RIGHT - 10)
    y = _Scale(min(lowest, 0.99), 1, 150, 24)
    marks: list[Mark] = list(_axes(x, y))
    for role, (tone, hollow) in zip(("live", "candidate"), _SIDES, strict=True):
        if role in known:
            marks += _operating(known[role], x, y, tone, hollow=hollow)
    settings = ", ".join(f"{c.setting} of {role}" for role, c in known.items())
    caption = (
        f"ann_recall@10 of the index against exact search, over {settings} (each step doubles it). Hollow: live. "
        "Filled: candidate. Large: the value that searches use."
    )
    ends = [
        f"{role}: {c.points[0].ann_recall_at_10:.4f} at {c.points[0].value} to "
        f"{c.points[-1].ann_recall_at_10:.4f} at {c.points[-1].value}, in use {c.value}"
        for role, c in known.items()
    ]
    return Plot(caption, f"ann_recall@10 over {settings}. {'; '.join(ends)}.", _WIDTH, 180, tuple(marks))  # fmt: skip


def _axes(x: _Scale, y: _Scale) -> Iterator[Mark]:
    yield Label(0, 12, "ann_recall@10", "soft")
    for at in (y.least, (y.least + 1) / 2, 1.0):
        yield Stroke(_LEFT, y(at), _RIGHT, y(at), "soft", 0.5)
        yield Label(_LEFT - 4, y(at) + 4, f"{at:.2f}", "soft", "end")
    first, last = math.floor(x.least), math.ceil(x.most)
    step = max(1, math.ceil((last - first) / 8))
    for power in range(first, last + 1, step):
        if x.least <= power <= x.most:
            yield Label(x(power), 168, str(2**power), "soft", "middle")


def _operating(c: Curve, x: _Scale, y: _Scale, tone: Tone, *, hollow: bool) -> Iterator[Mark]:
    at = [(x(math.log2(p.value)), y(p.ann_recall_at_10), p.value == c.value) for p in c.points]
    for (x1, y1, _), (x2, y2, _) in pairwise(at):
        yield Stroke(x1, y1, x2, y2, tone, dashed=hollow)
    for x1, y1, used in at:
        yield Dot(x1, y1, tone, hollow, 6.0 if used else 3.0)
