"""Numbers with the names of what is counted."""

from __future__ import annotations


def counted(number: int, name: str) -> str:
    """Return a number with the name of what is counted: 1 unit, 2 units, 3 queries."""
    if number == 1:
        return f"1 {name}"
    many = f"{name.removesuffix('y')}ies" if name.endswith("y") else f"{name}s"
    return f"{number:,} {many}"
