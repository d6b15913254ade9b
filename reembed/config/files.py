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
    FIX,
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
    read = _Reader()
    for file in files:
        read.file(file)
    for override in overrides:
        read.override(override)
    _complete(model, read.tree)
    try:
        settings = model.model_validate(read.tree, strict=True)
    except ValidationError as error:
        read.problems += Explainer(model, read.places).explain(error)
    if read.problems:
        refuse(files, read.problems)
    return settings, dict(_origins(settings, read.places, ()))


class _Loader(yaml.SafeLoader):
    """A loader that refuses what a settings file does not need: tags, aliases, deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        refused = None
        if isinstance(event, yaml.AliasEvent):
            refused = "aliases (*name) are not allowed"
        elif getattr(event, "tag", None):
            refused = f"tags ({event.tag!a}) are not allowed"
        elif self.depth > _MAX_DEPTH:
            refused = "nested too deeply"
        if refused:
            raise yaml.MarkedYAMLError(problem=refused, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass
class _Reader:
    """What was read so far: settings, where each stands, and mistakes."""

    tree: Tree = field(default_factory=dict)
    places: dict[Location, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def file(self, file: str) -> None:
        try:
            value, line = self._parsed(file, _text(file))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            at = f":{mark.line + 1}" if mark else ""
            raise ConfigError(f"{file}{at}: not valid here: {error.problem}", None, FIX) from error
        except yaml.YAMLError as error:
            what = f"{file}: not YAML: {getattr(error, 'reason', error)}"
            raise ConfigError(what, None, FIX) from error
        if value is None and line == 0:
            return
        if not isinstance(value, dict):
            raise ConfigError(
                f"{file}:{line}: not a set of named settings",
                "the file must hold lines such as `alias: passages`",
                FIX,
            )
        _merge(self.tree, value)

    def override(self, override: str) -> None:
        name, equals, raw = override.partition("=")
        parts = tuple(name.strip().split("."))
        if not equals or not all(parts):
            text = f"{short(shown_override(override))}: write it as --set section.name=value"
            self.problems.append(Problem(Place("--set"), text))
            return
        self.places[parts] = Place("--set", raw=raw)
        for i in range(1, len(parts)):
            self.places.setdefault(parts[:i], Place("--set"))
        value = _override_value(raw)
        for part in reversed(parts):
            value = {part: value}
        _merge(self.tree, value)

    def _parsed(self, file: str, text: str) -> tuple[Any, int]:
        """Return the value of a YAML text and the line it begins in; None and 0 for an empty text."""
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, 0
        loader.name = file
        return self._value(loader, node, ()), node.start_mark.line + 1

    def _value(
        self, loader: _Loader, node: yaml.Node, at: Location, name: yaml.Node | None = None
    ) -> Any:
        raw = node.value if isinstance(node, yaml.ScalarNode) else None
        self.places[at] = place = Place(loader.name, (name or node).start_mark.line + 1, raw)
        if isinstance(node, yaml.MappingNode):
            return self._section(loader, node, at)
        if isinstance(node, yaml.SequenceNode):  # tuples: settings are frozen
            return tuple(self._value(loader, n, (*at, i)) for i, n in enumerate(node.value))
        try:
            return loader.construct_object(node)
        except (ValueError, OverflowError) as error:  # 2026-13-01 looks like a date, and is not one
            text = f"{dotted(at)} = {short(raw or '')}: {error}; quote it if text"
            self.problems.append(Problem(place, text))
            return raw

    def _section(self, loader: _Loader, node: yaml.MappingNode, at: Location) -> Tree:
        section: Tree = {}
        lines: dict[str, int] = {}
        for key, child in node.value:
            place = Place(loader.name, key.start_mark.line + 1)
            if not isinstance(key, yaml.ScalarNode):
                text = "the name of a setting must be a plain word"
                self.problems.append(Problem(place, text))
            elif key.value in section:
                text = f"{dotted((*at, key.value))}: set twice, first in line {lines[key.value]}"
                self.problems.append(Problem(place, text))
            else:
                lines[key.value] = key.start_mark.line + 1
                section[key.value] = self._value(loader, child, (*at, key.value), key)
        return section


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


def _override_value(raw: str) -> Any:
    """Return a YAML scalar or list; all else (`{title} {text}`, `query: `) can only be meant as text."""
    aside = _Reader()
    try:
        value, _ = aside._parsed("--set", raw)
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
        place = places.get(path)
        if isinstance(value, BaseModel) or (isinstance(value, dict) and value):
            yield from _origins(value, places, path)
        elif place is None:
            yield dotted(path), "default"
        elif place.line is None:
            yield dotted(path), f"--set {dotted(path)}"
        else:
            yield dotted(path), f"{place.file}:{place.line}"
