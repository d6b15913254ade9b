"""Settings from YAML files and `--set`, checked as a whole, each with the place it came from.

Defaults < files left to right < `--set` left to right. Sections merge, lists are replaced whole.
YAML is restricted: no tags, no aliases, no duplicate names, and one document of at most 1 MB.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from reembed.config.mistakes import (
    Explainer,
    Location,
    Place,
    Problem,
    dotted,
    refuse,
    section_of,
    short,
)
from reembed.errors import ConfigError
from reembed.redact import shown_override

T = TypeVar("T", bound=BaseModel)
Tree = dict[str, Any]
"""Settings by name, in sections, as YAML gives them."""
_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20


def load_sections(
    model: type[T], files: list[str], overrides: list[str]
) -> tuple[T, dict[str, str]]:
    """Return the checked settings and, for each dotted leaf, `FILE:LINE`, `--set NAME` or `default`.

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
        read.problems += Explainer(model, read.places).explain(error)
    if read.problems:
        refuse(files, read.problems)
    return settings, dict(_origins(settings, read.places, ()))


@dataclass
class _Read:
    """Everything that was read so far."""

    tree: Tree = field(default_factory=dict)
    places: dict[Location, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """A loader that refuses what a settings file does not need: tags, aliases, deep nesting."""

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
    """Turns the nodes of one file into plain values, and records places and mistakes."""

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
        except (
            ValueError,
            OverflowError,
        ) as error:  # 2026-13-01: looks like a date, and is not one
            self._problem(place, f"{dotted(at)} = {short(raw or '')}: {error}; quote it if text")
            return raw

    def _section(self, node: yaml.MappingNode, at: Location) -> Tree:
        section: Tree = {}
        lines: dict[str, int] = {}
        for key, child in node.value:
            place = self._place(key)
            if not isinstance(key, yaml.ScalarNode):
                self._problem(place, "the name of a setting must be a plain word")
            elif key.value in section:
                name = dotted((*at, key.value))
                self._problem(place, f"{name}: set twice, first in line {lines[key.value]}")
            else:
                lines[key.value] = place.line or 0
                section[key.value] = self.value(child, (*at, key.value), key)
        return section

    def _place(self, node: yaml.Node, raw: str | None = None) -> Place:
        return Place(self.file, node.start_mark.line + 1, raw)

    def _problem(self, place: Place, text: str) -> None:
        self.read.problems.append(Problem(place, text))


def _read_file(file: str, read: _Read) -> None:
    try:
        value, line = _parsed(file, _text(file), read)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{at}: not valid here: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {getattr(error, 'reason', error)}") from error
    if value is None and line == 0:
        return
    if not isinstance(value, dict):
        raise ConfigError(
            f"{file}:{line}: not a set of named settings",
            "the file must hold lines such as `alias: passages`",
        )
    _merge(read.tree, value)


def _parsed(file: str, text: str, read: _Read) -> tuple[Any, int]:
    """Return the value of a YAML text and the line that it begins in; None and 0 if there is none."""
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None, 0
    return _Reader(file, loader, read).value(node, ()), node.start_mark.line + 1


def _text(file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        folder = Path(file).parent
        present = [str(p) for p in sorted(folder.glob("*.yaml"))]
        why, fix = f"there are: {', '.join(present) or 'none'}", "name the config with -c"
        for near in difflib.get_close_matches(str(Path(file)), present, n=1):
            why, fix = f"did you mean {near}?", f"reembed config -c {shlex.quote(near)} --check"
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
        text = f"{short(shown_override(override))}: write it as --set section.name=value"
        read.problems.append(Problem(Place("--set"), text))
        return
    read.places[parts] = Place("--set", raw=raw)
    for i in range(1, len(parts)):
        read.places.setdefault(parts[:i], Place("--set"))
    value: Any = _override_value(raw)
    for part in reversed(parts):
        value = {part: value}
    _merge(read.tree, value)


def _override_value(raw: str) -> Any:
    """Return a YAML scalar or list; all else (`{title} {text}`, `query: `) can only be meant as text."""
    aside = _Read()
    try:
        value, _ = _parsed("--set", raw, aside)
    except yaml.YAMLError:
        return raw
    if isinstance(value, dict) or aside.problems:
        return raw
    return value


def _merge(tree: Tree, newer: Tree) -> None:
    for name, value in newer.items():
        older = tree.get(name)
        if isinstance(older, dict) and isinstance(value, dict):
            _merge(older, value)
        elif not (isinstance(older, dict) and value is None):  # an empty section changes nothing
            tree[name] = value


def _complete(model: type[BaseModel], tree: Tree) -> None:
    """Read `embed:` with nothing under it as an empty section, and add required sections, so that
    their missing settings are named one by one."""
    for name, known in model.model_fields.items():
        section = section_of(known.annotation)
        if tree.get(name, "") is None and (section or isinstance(known.default, dict)):
            del tree[name]
        if section and known.is_required():
            tree.setdefault(name, {})
        if section and isinstance(tree.get(name), dict):
            _complete(section, tree[name])


def _origins(
    settings: BaseModel | Tree, places: dict[Location, Place], at: Location
) -> Iterator[tuple[str, str]]:
    for name, value in dict(settings).items():
        path = (*at, name)
        if isinstance(value, BaseModel) or (isinstance(value, dict) and value):
            yield from _origins(value, places, path)
        else:
            yield dotted(path), _origin(places.get(path), dotted(path))


def _origin(place: Place | None, name: str) -> str:
    if place is None:
        return "default"
    if place.line is None:
        return f"--set {name}"
    return f"{place.file}:{place.line}"
