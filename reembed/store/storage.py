"""One root for everything reembed keeps: a local folder or an object store, through one API.

Records are written create-only (`If-None-Match: *` on S3, a hard link locally): the one
conditional write that every store has. No path leads out of the root, whatever a record says.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import os
import re
import shlex
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from reembed.config.options import Options, as_options, resolved
from reembed.errors import IntegrityError, StorageFailed, UsageError
from reembed.redact import without_options
from reembed.store.paths import absolute, is_remote
from reembed.store.records import Record, decode, encode, from_bytes, to_bytes

T = TypeVar("T")

_CHUNK_BYTES = 8 << 20
_ROOT_RECORD = "root.json"
_ENDPOINT = re.compile(
    r"(?:(?:aws|azure|google)_\w*)?(?:endpoint|account_name|use_emulator)\w*", re.IGNORECASE
)
_LANCE_IO = ("External error: ", "LanceError(IO)")
"""Start of the messages of Lance's ValueErrors for failed reads and writes."""
_CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "connect_timeout", "timeout")
_FLAGS = {"true": True, "false": False}
Root = str | os.PathLike[str]
"""A URL or a folder."""


@functools.cache
def _open_store(root: str, options: Options) -> ObjectStore:
    if not is_remote(root):
        return LocalStore(root, automatic_cleanup=True)
    found = resolved(options).items()
    config = {k: v for k, v in found if k not in _CLIENT_OPTIONS}
    client = {k: _FLAGS.get(v, v) for k, v in found if k in _CLIENT_OPTIONS}
    try:
        return from_url(root, config=config or None, client_options=client or None)  # type: ignore[arg-type]
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"cannot open {root}",
            without_options(str(error).splitlines()[0], found),
            "reembed config --check",
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error, without Lance's note of the place in its own code."""
    return (str(error) or type(error).__name__).split(", /home/")[0].splitlines()[0]


def is_of_storage(error: Exception) -> bool:
    """Return whether a disk or an object store failed, for this process or for Lance."""
    if isinstance(error, ValueError):
        return str(error).startswith(_LANCE_IO)
    return isinstance(error, (OSError, BaseError))


@contextmanager
def storage_errors(
    failed: str = "the storage request failed",
    fix: str = "reembed config     # storage.root, storage.options, and the keys in the environment",
) -> Iterator[None]:
    """Turn an error of a disk or an object store into a StorageFailed that says what failed."""
    try:
        yield
    except (OSError, BaseError, ValueError) as error:
        if not is_of_storage(error):
            raise
        raise StorageFailed(failed, f"{type(error).__name__}: {first_line(error)}", fix) from error


def _not_a_folder(place: str) -> UsageError:
    return UsageError(
        f"storage.root {place} is not a folder",
        "there is a file in its place, or above it",
        f"ls -ld {shlex.quote(place)}     # and set storage.root to a folder",
    )


@dataclass(frozen=True)
class _RootRecord:
    root_id: str
    create_only_at: str


@dataclass(frozen=True)
class Storage:
    """Small records by path under the root. Picklable: each process opens its own connection."""

    root: str
    options: Options = field(default=(), repr=False)

    @classmethod
    def open(cls, root: Root, options: Mapping[str, str] | None = None) -> Storage:
        """Return the storage at a URL, or at a folder, which is created if it does not exist.

        A new folder is closed to other users, because vectors reveal their texts; an existing one
        keeps its mode. UsageError if a file is there.
        """
        storage = cls._at(root, options)
        if not is_remote(storage.root):
            try:
                Path(storage.root).mkdir(mode=0o700, parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise _not_a_folder(storage.root) from None
        return storage

    @classmethod
    def existing(cls, root: Root, options: Mapping[str, str] | None = None) -> Storage:
        """Return the storage at a URL or an existing folder, for readers; UsageError if there is none."""
        storage = cls._at(root, options)
        if is_remote(storage.root) or Path(storage.root).is_dir():
            return storage
        if Path(storage.root).exists():
            raise _not_a_folder(storage.root)
        what = f"storage.root {storage.root} does not exist"
        raise UsageError(what, "nothing was built there", "reembed run")

    @classmethod
    def _at(cls, root: Root, options: Mapping[str, str] | None) -> Storage:
        return cls(absolute(os.fspath(root)).rstrip("/"), as_options(options))

    @property
    def store(self) -> ObjectStore:
        """Return this process's obstore handle."""
        return _open_store(self.root, self.options)

    @functools.cached_property
    def root_id(self) -> str:
        """Return 32 hex digits from `root.json` that name this root, whatever its address.

        The first use makes the record, after a proof that the store refuses to overwrite. The proof
        holds for one address: a root that was copied to another store is proven there again.

        Raises:
            UsageError: the store overwrites what it was asked to create.
        """
        record = self.decode_if_there(_RootRecord, _ROOT_RECORD)
        if record is None or record.create_only_at != self.address:
            self._prove_create_only()
        if record is None:
            mine = _RootRecord(uuid.uuid4().hex, self.address)
            with suppress(AlreadyExistsError):  # another process was first, or ours landed unheard
                obstore.put(self.store, _ROOT_RECORD, to_bytes(encode(mine)), mode="create")
            record = decode(_RootRecord, self.read(_ROOT_RECORD))
        return record.root_id

    @property
    def address(self) -> str:
        """Return the sha256 of the settings that decide which store holds the root."""
        settings = {**resolved(self.options), **os.environ}
        endpoints = {k: v for k, v in settings.items() if _ENDPOINT.fullmatch(k)}
        return hashlib.sha256(json.dumps([self.root, endpoints]).encode()).hexdigest()

    def _prove_create_only(self) -> None:
        """Create an object twice: promotions, receipts and plans rest on the second being refused."""
        path, first = f"runs/probe-{uuid.uuid4().hex}", b"first"  # where a run may also delete
        for body in (first, b"second"):
            try:
                obstore.put(self.store, path, body, mode="create")
            except AlreadyExistsError:
                continue
            except NotImplementedError as error:
                raise self._careless(
                    "it does not support them, or its settings switch them off"
                ) from error
        found = self.read_bytes(path)
        with suppress(OSError, BaseError, IntegrityError):  # not allowed to delete: the probe stays
            self.remove(path)
        if found != first:
            raise self._careless("it ignores `If-None-Match: *` and overwrote an object")

    def _careless(self, how: str) -> UsageError:
        return UsageError(
            f"the store of {self.root} has no create-only writes: {how}",
            "two promotions at the same time would both succeed, and one would be lost",
            "set storage.root to a local folder, or to S3, GCS, Azure or MinIO: any with conditional writes",
        )

    @property
    def lance_options(self) -> dict[str, str] | None:
        """Return `storage_options` for Lance, which uses the same keys."""
        return resolved(self.options) or None

    def uri(self, path: str) -> str:
        """Return the full URI of a path, for Lance; IntegrityError if it leads out of the root."""
        self._require_below(path)
        return f"{self.root}/{path}"

    def create(self, path: str, record: Mapping[str, Any], *, proven_at: str | None = None) -> bool:
        """Write a JSON record if there is none; return False if another writer's record exists.

        `proven_at` is the `address` at which the store is known to refuse to overwrite. Without it,
        or with another one, the proof in `root.json` is read first.

        If the answer to a write was lost, the client's own retry is refused as if another writer
        were first. So on refusal the bytes are read back, and equal ones are ours.
        """
        if proven_at != self.address:
            _ = self.root_id  # proves the store, once in the life of the root
        body = to_bytes(record)
        try:
            obstore.put(self.store, path, body, mode="create")
        except AlreadyExistsError:
            return self.read_bytes(path) == body
        return True

    def write(self, path: str, record: Mapping[str, Any]) -> None:
        """Write a JSON record, replacing an existing one."""
        self.write_bytes(path, to_bytes(record))

    def write_bytes(self, path: str, body: bytes) -> None:
        """Write bytes, replacing an existing object."""
        obstore.put(self.store, path, body)

    def read_bytes(self, path: str) -> bytes:
        """Return all bytes of an object; FileNotFoundError if it does not exist."""
        return bytes(obstore.get(self.store, path).bytes())

    def read_range(self, path: str, start: int, size: int) -> bytes:
        """Return `size` bytes of an object from `start`; FileNotFoundError if it does not exist."""
        return bytes(obstore.get_range(self.store, path, start=start, length=size))

    def digest(self, path: str) -> tuple[int, str] | None:
        """Return size and sha256 of an object as it is now; None if it does not exist."""
        sha256, size = hashlib.sha256(), 0
        try:
            chunks = obstore.get(self.store, path).stream(min_chunk_size=_CHUNK_BYTES)
        except FileNotFoundError:
            return None
        for chunk in chunks:
            sha256.update(chunk)
            size += len(chunk)
        return size, sha256.hexdigest()

    def size(self, path: str) -> int | None:
        """Return the size of an object in bytes; None if it does not exist."""
        try:
            return int(obstore.head(self.store, path)["size"])
        except FileNotFoundError:
            return None

    def read(self, path: str) -> Record:
        """Return a JSON record; FileNotFoundError if it does not exist, other errors as `from_bytes`."""
        return from_bytes(self.read_bytes(path), self.uri(path))

    def read_if_there(self, path: str) -> Record | None:
        """Return a JSON record; None if it does not exist."""
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def decode_if_there(self, kind: type[T], path: str) -> T | None:
        """Return the dataclass that a JSON record describes; None if the record does not exist."""
        record = self.read_if_there(path)
        return None if record is None else decode(kind, record)

    def objects(self, prefix: str) -> list[tuple[str, int]]:
        """Return (path, size in bytes) of every object below a prefix, sorted."""
        pages = obstore.list(self.store, prefix)
        return sorted((o["path"], o["size"]) for page in pages for o in page)

    def written(self, prefix: str) -> dict[str, dt.datetime]:
        """Return when each object below a prefix was written, by the store's clock, in UTC; half-written files, too."""
        pages = obstore.list(self.store, prefix)
        times = {o["path"]: o["last_modified"] for page in pages for o in page}
        for path, _ in self.torn(prefix):
            times[path] = dt.datetime.fromtimestamp(os.stat(self.uri(path)).st_mtime, dt.UTC)
        return times

    def is_shared(self, path: str) -> bool:
        """Return whether other paths lead to the same local file, so that deleting this one frees nothing."""
        return not is_remote(self.root) and os.stat(self.uri(path)).st_nlink > 1

    def names(self, folder: str, after: str = "") -> list[str]:
        """Return the sorted names of the objects below a folder; only those after `after`, if given."""
        offset = f"{folder}{after}" if after else None
        pages = obstore.list(self.store, folder, offset=offset)
        return sorted(o["path"].removeprefix(folder) for page in pages for o in page)

    def folders(self, prefix: str) -> list[str]:
        """Return the sorted names of the folders directly below a prefix."""
        listing = obstore.list_with_delimiter(self.store, prefix)
        return sorted(p.rsplit("/", 1)[-1] for p in listing["common_prefixes"])

    def torn(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Return (path, size in bytes) of local files that a killed process left half written.

        They end in #N, which the store's own listing leaves out. Object stores have none.
        """
        if is_remote(self.root):
            return
        for file in sorted(Path(self.uri(prefix)).rglob("*#*")):
            if re.fullmatch(r".*#\d+", file.name) and file.is_file() and not file.is_symlink():
                yield str(file.relative_to(self.root)), file.stat().st_size

    def remove(self, path: str) -> None:
        """Delete one object, if it is there and `require_own` allows it."""
        self.require_own(path)
        if not is_remote(self.root) and re.search(r"#\d+$", path):
            Path(self.uri(path)).unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            obstore.delete(self.store, path)

    def delete_tree(self, prefix: str) -> int:
        """Delete every object below a prefix, if `require_own` allows it; return the bytes freed.

        Half written files and empty folders go, too.
        """
        self.require_own(prefix)
        found, torn = self.objects(prefix), list(self.torn(prefix))
        for path, _ in torn:
            Path(self.uri(path)).unlink(missing_ok=True)
        if found:
            obstore.delete(self.store, [path for path, _ in found])
        folders = () if is_remote(self.root) else os.walk(f"{self.root}/{prefix}", topdown=False)
        for folder, _, _ in folders:
            with suppress(OSError):  # another process has written into it
                if folder.rstrip("/") != self.root:
                    os.rmdir(folder)
        return sum(size for _, size in (*found, *torn))

    def require_own(self, path: str) -> None:
        """Raise an IntegrityError if a path leads out of the root, or a symbolic link lies on or below it.

        A link leads to files of someone else or of another release, and both listing a local folder
        and Lance's clean-up follow it.
        """
        self._require_below(path)
        if is_remote(self.root):
            return
        root, parts = Path(self.root), PurePosixPath(path).parts
        on_the_way = (root.joinpath(*parts[: n + 1]) for n in range(len(parts)))
        below = (Path(f, n) for f, folders, names in os.walk(root / path) for n in folders + names)
        for place in filter(Path.is_symlink, chain(on_the_way, below)):
            raise IntegrityError(
                f"{place} is a symbolic link to {place.readlink()}",
                "nothing at or behind a link is deleted: what it leads to may belong to someone else",
                f"rm {shlex.quote(str(place))}     # removes only the link; then run the same command again",
            )

    def _require_below(self, path: str) -> None:
        if path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise IntegrityError(
                f"{path!r} is not a path below {self.root}",
                "the record that names it was damaged or written by someone else",
                "reembed verify",
            )


def readable(size: int) -> str:
    """Return a number of bytes in a readable unit."""
    if size < 1024:
        return f"{size:,} bytes"
    power = min((size.bit_length() - 1) // 10, 4)
    return f"{size / 1024**power:,.1f} {' KMGT'[power]}iB"
