"""What is wrong with settings, in words: every mistake with its place and, for a typo, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from reembed.errors import ConfigError

Location = tuple[str | int, ...]
Model = type[BaseModel]

FIX = "reembed config --check     # after correcting that; docs/operate.md explains every setting"
"""Names what is still wrong."""
_MAX_SHOWN = 60
_SHOULD = {
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "tuple_type": "should be a list, such as [a, b]",
    "dict_type": "should be a section of settings",
    "model_type": "should be a section of settings",
    "literal_error": "should be {expected}",
    "greater_than": "should be more than {gt:g}",
    "greater_than_equal": "should be {ge:g} or more",
    "less_than": "should be less than {lt:g}",
    "less_than_equal": "should be {le:g} or less",
    "string_pattern_mismatch": (
        "should be at most 32 lowercase letters, digits and hyphens, with a letter or digit first"
    ),
}


class Place(NamedTuple):
    """Where something is written, and a scalar's text as it is in the file."""

    file: str
    line: int | None = None
    raw: str | None = None


class Problem(NamedTuple):
    """One mistake."""

    place: Place | None
    text: str


def dotted(at: Location) -> str:
    """Return `table.carry[0]` for ("table", "carry", 0)."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in at).removeprefix(".")


def short(text: str) -> str:
    """Return the text, cut to what a line of an error can hold."""
    if len(text) <= _MAX_SHOWN:
        return text
    return text[:_MAX_SHOWN] + "..."


def section_of(annotation: Any) -> Model | None:
    """Return the model of a setting that is a section; None for any other."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def refuse(files: list[str], problems: list[Problem]) -> NoReturn:
    """Raise one error for all mistakes, in the order of the files and their lines."""
    found = sorted(((*_at(p.place, files), p.text) for p in problems), key=lambda found: found[0])
    # Without what could steer a terminal: names come from files.
    lines = [
        "  " + where + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        for _, where, text in found
    ]
    count = "1 setting is" if len(lines) == 1 else f"{len(lines)} settings are"
    what = "\n".join([f"{', '.join(files) or 'settings'}: {count} wrong", *lines])
    raise ConfigError(what, None, FIX)


def _at(place: Place | None, files: list[str]) -> tuple[tuple[int, int], str]:
    """Return where a place comes in the order of files and lines, and what a message calls it."""
    if place is None:
        return (len(files) + 1, 0), ""
    if place.line is None:
        return (len(files), 0), "--set "
    name = f"{place.file}:{place.line}: "
    if len(files) == 1:
        name = f"line {place.line}: "
    return (files.index(place.file), place.line), name


class Explainer(NamedTuple):
    """Turns what pydantic found into problems."""

    model: Model
    places: Mapping[Location, Place]

    def explain(self, error: ValidationError) -> list[Problem]:
        """Return every mistake; a required name whose typo is explained is not named again."""
        problems, missing, meant = [], [], set()
        for detail in error.errors(include_url=False):
            at = tuple(part for part in detail["loc"] if part != "[key]")
            if detail["type"] == "missing":
                missing.append(at)
            elif detail["type"] == "extra_forbidden":
                text, name = self._unknown(at)
                meant.add(name)
                problems.append(Problem(self._place(at), f"{dotted(at)}: {text}"))
            else:
                problems.append(self._wrong(at, detail))
        for at in missing:
            if not any(dotted(at[: i + 1]) in meant for i in range(len(at))):
                place = self._place(at, within_file=True)
                problems.append(Problem(place, f"{dotted(at)}: required, but not set"))
        return problems

    def _place(self, at: Location, *, within_file: bool = False) -> Place | None:
        """Return the place of the setting, else of the nearest section around it."""
        for end in range(len(at), 0, -1):
            place = self.places.get(at[:end])
            if place and not (within_file and place.line is None):
                return place
        return None

    def _unknown(self, at: Location) -> tuple[str, str]:
        """Return what to say of a name that does not exist, and the dotted name probably meant."""
        name, known = str(at[-1]), _names_in(self.model, at[:-1])
        near = difflib.get_close_matches(name, known, n=1) or [k for k in known if f"{name}_" in k]
        if near:
            return f"unknown setting; did you mean {near[0]}?", dotted((*at[:-1], near[0]))
        elsewhere = [n for n in _leaves(self.model) if name in (n, n.rpartition(".")[2])]
        if elsewhere:
            parent, _, leaf = elsewhere[0].rpartition(".")
            return f"unknown setting here; {leaf} goes under {parent or 'no section'}", elsewhere[0]
        return f"unknown setting; known: {', '.join(known)}", ""

    def _wrong(self, at: Location, detail: ErrorDetails) -> Problem:
        place = self._place(at)
        if detail["type"] == "value_error":
            text = str(detail["ctx"]["error"])
            if at:
                return Problem(place, f"{dotted(at)}: {text}")
            named = text.partition(":")[0]  # a check of the whole model says which setting it means
            return Problem(self._place(tuple(named.split("."))), text)
        raw = getattr(self.places.get(at), "raw", None)
        declared = dotted(tuple(p for p in at if isinstance(p, str))) in _leaves(self.model)
        text = dotted(at)
        if declared and detail["type"] != "dict_type":  # of a store's options, any may be a secret
            text += _shown(detail["input"], raw)
        text += f": {_should(detail)}"
        if declared:
            text += _quote_hint(at, place, detail, raw)
        return Problem(place, text)


def _names_in(model: Model, at: Location) -> list[str]:
    """Return the settings of the section at this place; none if there is no section."""
    for name in at:
        known = model.model_fields.get(str(name))
        section = section_of(getattr(known, "annotation", None))
        if section is None:
            return []
        model = section
    return list(model.model_fields)


def _leaves(model: Model, at: Location = ()) -> Iterator[str]:
    """Yield every setting that is not a section, dotted."""
    for name, known in model.model_fields.items():
        if section := section_of(known.annotation):
            yield from _leaves(section, (*at, name))
        else:
            yield dotted((*at, name))


def _should(detail: ErrorDetails) -> str:
    if said := _SHOULD.get(detail["type"]):
        return said.format(**detail.get("ctx", {}))
    return detail["msg"].replace("Input should", "should")


def _quote_hint(at: Location, place: Place | None, detail: ErrorDetails, raw: str | None) -> str:
    """Return how to write a text that YAML reads as something else."""
    value = detail["input"]
    if detail["type"] != "string_type" or not raw or value is None:
        return ""
    quoted = f'"{short(raw)}"'
    if place and place.line is None:
        quoted = f"--set '{dotted(at)}={quoted}'"
    return f", but YAML reads {short(raw)} as {_kind(value, raw)}; quote it: {quoted}"


def _kind(value: Any, raw: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return "a date"
    if len(raw) < _MAX_SHOWN:
        return f"the number {value}"
    return "a number"


def _shown(value: Any, raw: str | None) -> str:
    if isinstance(value, str):
        return f" = {short(repr(value))}"
    if value is None:
        return " is empty"
    if raw is None:
        return ""
    return f" = {short(raw)}"
