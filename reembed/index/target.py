"""The ann_recall@10 that an index must reach, and what can be done about one that does not."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from reembed.errors import UsageError
from reembed.index.tune import Tuned

_SQ8_REACHES = 0.99
"""ann_recall@10 up to which one byte a dimension can be suggested: .987 of real texts were measured with every list."""


class TargetMissed(UsageError):
    """No operating point reaches index.ann_recall."""


@dataclass(frozen=True)
class Target:
    """The ann_recall@10 that an index must reach."""

    tuned_to: float
    """index.ann_recall."""
    gate: float = 0.0
    """gate.ann_recall; 0 if it is not known."""
    catch_up: str = ""
    """The command of the catch-up that the index is built for; "" of a rebuild."""

    def require(self, factory: str, tuned: Tuned, tuned_on: str, better: str) -> None:
        """Refuse an index that misses it; `better` is a command that builds another kind.

        Raises:
            TargetMissed: its best point finds fewer.
        """
        reached = float(tuned.recalls.mean())
        if reached >= self.tuned_to:
            return
        values = ", ".join(f"{name} {value}" for name, value in tuned.operating_point.items())
        point = values or "its only point"
        raise TargetMissed(
            f"{factory} does not reach index.ann_recall {self.tuned_to:g}: {reached:.4f} at {point}",
            f"measured on {len(tuned.recalls):,} {tuned_on}; it is the best of the points that were tried:"
            " more lists for each query find hardly more, or make it a full scan",
            self._fix(int(reached * 1000) / 1000, better),
        )

    def _fix(self, lower: float, better: str) -> str:
        if not lower:
            return better
        setting, accepts = f"--set index.ann_recall={lower:g}", "accepts what was reached"
        if lower < self.gate:
            accepts += f", which is below gate.ann_recall {self.gate:g}"
        if not self.catch_up:
            return f"{better}; {setting} {accepts}"
        rebuild, *_ = better.split("     # ")
        return f"{self.catch_up} {setting}     # {accepts}; only a rebuild changes the kind of an index: {rebuild}"


def better(factory: str, target: float) -> str:
    """Return the command that builds an index that reaches more, with the same lists if that can do.

    It cannot where codes are re-ranked: then the lists that are looked into are what limits it.
    """
    one_byte = re.sub(r",PQ[^,]*$", ",SQ8", factory)
    if target >= _SQ8_REACHES or one_byte == factory:
        return "reembed run --set index.factory=Flat     # exact: every vector is compared"
    wanted = shlex.quote(f"index.factory={one_byte}")
    return f"reembed run --set {wanted}     # or --set index.factory=Flat, which is exact"
