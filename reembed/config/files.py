"""Settings from YAML files and `--set`, checked as a whole, each with the place it came from.

Defaults < files left to right < `--set` left to right. Sections merge, lists are replaced whole.
YAML here is the plain part: no tags, no aliases, no duplicate names, one document of 1 MB at most.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from reembed.errors import ConfigError
from reembed.redact import shown_override

T = TypeVar("T", bound=BaseModel)
Location = tuple[str | int, ...]

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20
_MAX_SHOWN = 60


def load_sections(
    model: type[T], files: list[str], overrides: list[str]
) -> tuple[T, dict[str, str]]:
    """The checked settings and, for each dotted leaf, `FILE:LINE`, `--set NAME` or `default`.

    Raises:
        ConfigError: naming every wrong setting with its place and, for a typo, the nearest name.
    """
    read = _Read()
    for file in files:
        _read_file(file, read)
    for override in overrides:
        _read_override(override, read)
    _complete(model, read.tree)
    try:
        settings = model.model_validate(read.tree, strict=True)
    except ValidationError as error:
        read.problems += _explain(model, read, error)
    if read.problems:
        _refuse(files, read.problems)
    return settings, dict(_origins(settings, read.places, ()))


class _Place(NamedTuple):
    """Where something was written, and the scalar's text as it stood there."""

    file: str
    line: int | None = None
    raw: str | None = None


class _Problem(NamedTuple):
    place: _Place | None
    text: str


@dataclass
class _Read:
    """All that was read so far."""

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[Location, _Place] = field(default_factory=dict)
    problems: list[_Problem] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Refuses what a settings file does not need: tags, aliases, deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _not_allowed("aliases (*name) are not allowed", event)
        if getattr(event, "tag", None):
            raise _not_allowed(f"tags ({event.tag!a}) are not allowed", event)
        if self.depth > _MAX_DEPTH:
            raise _not_allowed("nested too deeply", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _not_allowed(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


@dataclass
class _Reader:
    """Turns the nodes of one file into plain values, noting places and mistakes."""

    file: str
    loader: _Loader
    read: _Read

    def value(self, node: yaml.Node, at: Location, name: yaml.Node | None = None) -> Any:
        raw = node.value if isinstance(node, yaml.ScalarNode) else None
        self.read.places[at] = place = self._place(name or node, raw)
        if isinstance(node, yaml.MappingNode):
            return self._section(node, at)
        if isinstance(node, yaml.SequenceNode):  # tuples: settings are frozen
            return tuple(self.value(item, (*at, i)) for i, item in enumerate(node.value))
        try:
            return self.loader.construct_object(node)
        except (ValueError, OverflowError) as error:  # 2026-13-01: looks like a date, is none
            self._problem(place, f"{_dotted(at)} = {_short(raw or '')}: {error}; quote it if text")
            return raw

    def _section(self, node: yaml.MappingNode, at: Location) -> dict[str, Any]:
        section: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, child in node.value:
            place = self._place(key)
            if not isinstance(key, yaml.ScalarNode):
                self._problem(place, "the name of a setting is a plain word")
            elif key.value in section:
                name = _dotted((*at, key.value))
                self._problem(place, f"{name}: set twice, first in line {lines[key.value]}")
            else:
                lines[key.value] = place.line or 0
                section[key.value] = self.value(child, (*at, key.value), key)
        return section

    def _place(self, node: yaml.Node, raw: str | None = None) -> _Place:
        return _Place(self.file, node.start_mark.line + 1, raw)

    def _problem(self, place: _Place, text: str) -> None:
        self.read.problems.append(_Problem(place, text))


def _read_file(file: str, read: _Read) -> None:
    try:
        loader = _Loader(_text(file))
        node = loader.get_single_node()
        value = {} if node is None else _Reader(file, loader, read).value(node, ())
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: not valid here: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {getattr(error, 'reason', error)}") from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"{file}:{node.start_mark.line + 1 if node else 1}: not a set of named settings",
            "the file must hold lines such as `alias: passages`",
        )
    _merge(read.tree, value)


def _text(file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        folder = Path(file).parent
        present = [str(p) for p in sorted(folder.glob("*.yaml"))]
        near = difflib.get_close_matches(str(Path(file)), present, n=1)
        why = f"did you mean {near[0]}?" if near else f"there are: {', '.join(present) or 'none'}"
        fix = (
            f"reembed config -c {shlex.quote(near[0])} --check"
            if near
            else "name the config with -c"
        )
        raise ConfigError(f"{file}: no such file", why, fix) from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{file}: larger than {_MAX_BYTES:,} bytes: not a settings file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start:,})") from error


def _read_override(override: str, read: _Read) -> None:
    name, equals, raw = override.partition("=")
    parts = tuple(name.strip().split("."))
    if not equals or not all(parts):
        text = f"{_short(shown_override(override))}: write it as --set section.name=value"
        read.problems.append(_Problem(_Place("--set"), text))
        return
    read.places[parts] = _Place("--set", raw=raw)
    for i in range(1, len(parts)):
        read.places.setdefault(parts[:i], _Place("--set"))
    value: Any = _override_value(raw)
    for part in reversed(parts):
        value = {part: value}
    _merge(read.tree, value)


def _override_value(raw: str) -> Any:
    """A YAML scalar or list; all else (`{title} {text}`, `query: `) can only be meant as text."""
    aside = _Read()
    try:
        loader = _Loader(raw)
        node = loader.get_single_node()
        value = None if node is None else _Reader("--set", loader, aside).value(node, ())
    except yaml.YAMLError:
        return raw
    return raw if isinstance(value, dict) or aside.problems else value


def _merge(tree: dict[str, Any], newer: dict[str, Any]) -> None:
    for name, value in newer.items():
        older = tree.get(name)
        if isinstance(older, dict) and isinstance(value, dict):
            _merge(older, value)
        elif not (isinstance(older, dict) and value is None):  # an emptied section changes nothing
            tree[name] = value


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _section_at(model: type[BaseModel], at: Location) -> type[BaseModel] | None:
    for name in at:
        known = model.model_fields.get(str(name))
        if known is None or not _is_section(known.annotation):
            return None
        model = known.annotation  # type: ignore[assignment]
    return model


def _names(model: type[BaseModel], at: Location = ()) -> Iterator[str]:
    """Every leaf setting, dotted."""
    for name, known in model.model_fields.items():
        if _is_section(known.annotation):
            yield from _names(known.annotation, (*at, name))  # type: ignore[arg-type]
        else:
            yield _dotted((*at, name))


def _complete(model: type[BaseModel], tree: dict[str, Any]) -> None:
    """Read `embed:` with nothing under it as an empty section; add required sections, so that
    their missing settings are named one by one."""
    for name, known in model.model_fields.items():
        section = _is_section(known.annotation)
        if tree.get(name, "") is None and (section or isinstance(known.default, dict)):
            del tree[name]
        if section and known.is_required():
            tree.setdefault(name, {})
        if section and isinstance(tree.get(name), dict):
            _complete(known.annotation, tree[name])  # type: ignore[arg-type]


def _origins(
    settings: BaseModel | dict[str, Any], places: dict[Location, _Place], at: Location
) -> Iterator[tuple[str, str]]:
    items = settings.items() if isinstance(settings, dict) else iter(settings)
    for name, value in items:
        path = (*at, name)
        if isinstance(value, BaseModel) or (isinstance(value, dict) and value):
            yield from _origins(value, places, path)
        else:
            yield _dotted(path), _origin(places.get(path), _dotted(path))


def _origin(place: _Place | None, name: str) -> str:
    if place is None:
        return "default"
    return f"--set {name}" if place.line is None else f"{place.file}:{place.line}"


def _dotted(at: Location) -> str:
    """`table.carry[0]` for ("table", "carry", 0)."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in at).removeprefix(".")


def _explain(model: type[BaseModel], read: _Read, error: ValidationError) -> list[_Problem]:
    problems, missing, meant = [], [], set()
    for detail in error.errors(include_url=False):
        at = tuple(part for part in detail["loc"] if part != "[key]")
        if detail["type"] == "missing":
            missing.append(at)
        elif detail["type"] == "extra_forbidden":
            text, name = _unknown(model, at)
            meant.add(name)
            problems.append(_Problem(_place(read, at), f"{_dotted(at)}: {text}"))
        else:
            problems.append(_wrong(model, read, at, detail))
    for at in missing:  # no second complaint about a name whose typo is already explained
        if not any(_dotted(at[: i + 1]) in meant for i in range(len(at))):
            text = f"{_dotted(at)}: required, but not set"
            problems.append(_Problem(_place(read, at, within_file=True), text))
    return problems


def _place(read: _Read, at: Location, within_file: bool = False) -> _Place | None:
    """The place of the setting, else of the nearest section around it."""
    for end in range(len(at), 0, -1):
        place = read.places.get(at[:end])
        if place and not (within_file and place.line is None):
            return place
    return None


def _unknown(model: type[BaseModel], at: Location) -> tuple[str, str]:
    """What to say of a name that does not exist, and the dotted name probably meant."""
    section, name = _section_at(model, at[:-1]), str(at[-1])
    known = list(section.model_fields) if section else []
    near = difflib.get_close_matches(name, known, n=1) or [k for k in known if f"{name}_" in k]
    if near:
        return f"unknown setting; did you mean {near[0]}?", _dotted((*at[:-1], near[0]))
    elsewhere = [n for n in _names(model) if name in (n, n.rpartition(".")[2])]
    if elsewhere:
        parent, _, leaf = elsewhere[0].rpartition(".")
        return f"unknown setting here; {leaf} goes under {parent or 'no section'}", elsewhere[0]
    return f"unknown setting; known: {', '.join(known)}", ""


def _wrong(model: type[BaseModel], read: _Read, at: Location, detail: ErrorDetails) -> _Problem:
    place = _place(read, at)
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])
        if at:
            return _Problem(place, f"{_dotted(at)}: {text}")
        named = text.partition(":")[0]  # a check of the whole model says which setting it means
        return _Problem(_place(read, tuple(named.split("."))), text)
    raw = place.raw if place and read.places.get(at) is place else None
    declared = _dotted(tuple(p for p in at if isinstance(p, str))) in _names(model)
    secret = not declared or detail["type"] == "dict_type"  # of a store's options, any may be one
    shown = "" if secret else _shown(detail["input"], raw)
    hint = _quote_hint(at, place, detail, raw) if declared else ""
    return _Problem(place, f"{_dotted(at)}{shown}: {_should(detail)}{hint}")


def _should(detail: ErrorDetails) -> str:
    plain = {
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
        "string_pattern_mismatch": "should match {pattern}",
    }
    if detail["type"] in plain:
        return plain[detail["type"]].format(**detail.get("ctx", {}))
    return detail["msg"].replace("Input should", "should")


def _quote_hint(at: Location, place: _Place | None, detail: ErrorDetails, raw: str | None) -> str:
    value = detail["input"]
    if detail["type"] != "string_type" or not raw or value is None:
        return ""
    kind = str(value).lower() if isinstance(value, bool) else "a date"
    if isinstance(value, int | float) and not isinstance(value, bool):
        kind = f"the number {value}" if len(raw) < _MAX_SHOWN else "a number"
    quoted = f'"{_short(raw)}"'
    if place and place.line is None:
        quoted = f"--set '{_dotted(at)}={quoted}'"
    return f", but YAML reads {_short(raw)} as {kind}; quote it: {quoted}"


def _shown(value: Any, raw: str | None) -> str:
    if isinstance(value, str):
        return f" = {_short(repr(value))}"
    if value is None:
        return " is empty"
    return f" = {_short(raw)}" if raw is not None else ""


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _clean(text: str) -> str:
    """A name from a file must not steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _refuse(files: list[str], problems: list[_Problem]) -> NoReturn:
    def order(problem: _Problem) -> tuple[int, int]:
        place = problem.place
        if place is None:
            return len(files) + 1, 0
        return files.index(place.file) if place.line else len(files), place.line or 0

    lines = [f"  {_where(p.place, files)}{_clean(p.text)}" for p in sorted(problems, key=order)]
    count = f"{len(lines)} settings are" if lines[1:] else "1 setting is"
    raise ConfigError("\n".join([f"{', '.join(files) or 'settings'}: {count} wrong", *lines]))


def _where(place: _Place | None, files: list[str]) -> str:
    if place is None:
        return ""
    if place.line is None:
        return "--set "
    return f"line {place.line}: " if len(files) == 1 else f"{place.file}:{place.line}: "
