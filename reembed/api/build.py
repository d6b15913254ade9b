"""From documents to a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reembed.api.opened import catalog_of, ray_executor
from reembed.config.options import require_texts
from reembed.config.settings import Config, ResolvedConfig, load, require_config
from reembed.errors import UsageError, require_whole, texts_of
from reembed.events import Listener, ignore

if TYPE_CHECKING:
    from reembed.lifecycle.dead_letters import DeadLetters
    from reembed.planning.tune import Tuned
    from reembed.source.importer import Imported
    from reembed.strategies.candidate import Built


def config(files: Sequence[str], overrides: Sequence[str] = ()) -> ResolvedConfig:
    """Load and check config files, left to right, then `NAME=VALUE` overrides.

    The result's `config` is what the other functions take.

    Raises:
        ConfigError: naming every wrong setting with its place and, for a typo, the nearest name.
    """
    named = texts_of("files", files, 'files=["reembed.yaml"]')
    changed = texts_of("overrides", overrides, 'overrides=["embed.actors=2"]')
    return ResolvedConfig(*load(named, changed))


def import_documents(
    files: Sequence[str],
    to: str,
    *,
    file_format: str | None = None,
    columns: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
) -> Imported:
    """Write a Lance dataset from JSONL, CSV or Parquet files, and compare every cell with them.

    Args:
        files: paths, all of one format.
        to: the dataset: a folder that does not exist, or an s3://, gs:// or az:// URL.
        file_format: json, csv or parquet; None: by the files' endings.
        columns: columns to keep; None: all.
        options: object-store settings of the dataset.

    Raises:
        UsageError: the dataset exists, a file is missing or of an unknown format.
        SourceError: a file is not valid, or a column is missing.
        IntegrityError: what was written is not what the files hold.
    """
    from reembed.source import importer

    require_texts(options)
    named = texts_of("files", files, 'files=["documents.jsonl"]')
    kept = None if columns is None else texts_of("columns", columns, 'columns=["text"]')
    stored = None if options is None else dict(options)
    return importer.import_documents(
        named, to, file_format=file_format, columns=kept, options=stored
    )


def tune(
    config: Config, seconds: float = 60.0, out: str | None = None, *, emit: Listener = ignore
) -> Tuned:
    """Find the fastest settings of `embed` for the model, the corpus and this machine.

    Args:
        seconds: the time to spend.
        out: the overlay to write: a YAML file to give after the config.

    Raises:
        UsageError: `out` cannot be written, or holds something else.
        SourceError, EncoderError: the source or the model cannot be used.
    """
    from reembed.planning.tune import tune_and_keep

    require_config(config)
    return tune_and_keep(config, emit, seconds, out)


def run(
    config: Config,
    *,
    fresh: bool = False,
    query_only: bool = False,
    bridge: int | None = None,
    emit: Listener = ignore,
) -> Built:
    """Embed the documents, index and verify them as a candidate. The live release does not change.

    Args:
        fresh: start over instead of resuming an unfinished run.
        query_only: take live's documents and index as they are, and the config's model for queries alone;
            nothing is embedded.
        bridge: with `query_only`: embed this many documents of live, to fit a rotation between the two spaces.

    Raises:
        UsageError: `query_only`, and nothing is live or it has this model; a bridge without it.
        GateFailed: `query_only` without a bridge, and the model's vectors have another number of dimensions.
        SourceError, EncoderError: the source or the model cannot be used.
        RunFailed, NoCapacity, Interrupted: the run stopped; the same call resumes it.
        Conflict: another process drives the run.
    """
    from reembed.strategies.candidate import QueryOnly, build

    require_config(config)
    if bridge is not None and not query_only:
        raise UsageError(
            "a bridge brings queries to documents of another model",
            "a run that embeds the documents with the same model needs none",
            "reembed run --query-only --bridge 1000",
        )
    if bridge is not None:
        require_whole("bridge", bridge, 1, 1000)
    only = QueryOnly(bridge) if query_only else None
    return build(config, emit, executor=ray_executor(), fresh=fresh, only=only)


def dead_letters(config: Config, which: str | None = None) -> DeadLetters:
    """Return the documents without a vector, with reasons: of a release, or of a run so far.

    Args:
        which: live, previous, or the id of a release or of an unfinished run. None: the newest
            unfinished run with such documents, or else the release that `verify` checks.

    Raises:
        UsageError: no release and no run has that id, or nothing was built.
        IntegrityError: the record of the release's table is not the one it was made with.
    """
    from reembed.lifecycle.dead_letters import dead_letters

    return dead_letters(catalog_of(config), config, which)
