"""Addresses of stores, and the names that become part of paths."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from reembed.config.gate import GateConfig
from reembed.config.settings import EncoderConfig
from reembed.errors import IntegrityError, UsageError
from reembed.redact import credentials_in, redacted
from reembed.store.records import DAMAGED

NAME = "[a-z0-9][a-z0-9._-]{0,127}"
"""Form of ids and aliases, which become part of paths."""


def is_remote(uri: str) -> bool:
    """Return whether a URI names an object store."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """Return a URI with a local path made absolute, so that every process uses the same folder.

    Raises:
        UsageError: it holds credentials, or a character that Lance and the store escape differently.
    """
    if (found := credentials_in(uri)) is not None:
        raise UsageError(
            f"{redacted(uri)} holds {found}",
            "addresses are stored and printed; keys and tokens come from the environment",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or use the instance role",
        )
    if any(c in uri for c in "#%?"):
        raise UsageError(
            f"{uri} holds one of # % ?",
            "Lance and the object store escape it differently, so they would use two places",
            f"mv {shlex.quote(uri)} {shlex.quote(re.sub('[#%?]', '-', uri))}     # any name without these characters",
        )
    return uri if is_remote(uri) else str(Path(uri.removeprefix("file://")).expanduser().resolve())


def require_id(kind: str, given: object) -> str:
    """Return the id if it is a plain name, which may be part of a path.

    Raises:
        UsageError: it is not.
    """
    if isinstance(given, str) and re.fullmatch(NAME, given) and ".." not in given:
        return given
    what = f"{given!r:.80} is not a valid {kind}"
    raise UsageError(what, "ids are lowercase letters, digits, dots and hyphens", "reembed status")


def release_path(alias: str, release_id: str) -> str:
    """Return the path of a release's record."""
    return f"releases/{alias}/{release_id}.json"


def index_folder(release_id: str) -> str:
    """Return the folder of a release's index."""
    return f"indexes/{release_id}"


def table_tag(release_id: str) -> str:
    """Return the tag of a release's table version."""
    return f"reembed-{release_id}"


def indexed_tag(release_id: str, segments: str) -> str:
    """Return the tag of the version that has an index; `segments` is a digest of the names of its segments."""
    return f"{table_tag(release_id)}.index-{segments[:16]}"


def is_tag_of(tag: str, release_id: str) -> bool:
    """Return whether a tag is one of a release's table version, with its index or without."""
    own = re.escape(table_tag(release_id))
    return re.fullmatch(rf"{own}(\.index-[0-9a-f]{{16}})?", tag) is not None


def from_anywhere(encoder: EncoderConfig) -> EncoderConfig:
    """Return an encoder's settings with a model folder made absolute, valid in every process."""
    if Path(encoder.model).expanduser().is_dir():
        return encoder.model_copy(update={"model": absolute(encoder.model)})
    return encoder


def absolute_queries(section: GateConfig) -> GateConfig:
    """Return the gate's settings with absolute paths of the queries, valid in every process."""
    settings = section.settings
    places = {"queries": tuple(map(absolute, settings.queries))}
    logged = {"logged": absolute(settings.logged)} if settings.logged else {}
    return settings.model_copy(update=places | logged)


def content_path(folder: str, sha256: str, ending: str) -> str:
    """Return the path of an object that is named by its digest: equal names hold equal bytes.

    Raises:
        IntegrityError: it is not a sha256 in hex.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise IntegrityError(f"{folder}: {sha256[:80]!r} is not a sha256", None, DAMAGED)
    return f"{folder}/{sha256}.{ending}"
