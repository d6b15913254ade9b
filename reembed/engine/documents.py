"""A unit's documents as Arrow tables, from the source to the model.

Columns: doc_id, text_hash, carried columns, the text or its tokens, and `reembed.error`: null, or why
the document is not embedded.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reembed import digests, encoders
from reembed.catalog.plan import EmbedRows, EmbedUnit
from reembed.config.settings import EncoderConfig
from reembed.encoders.base import Rows
from reembed.encoders.tokens import Tokenizer, Tokens, tokenize_documents
from reembed.engine import reuse
from reembed.engine.executor import EmbedJob
from reembed.errors import SpaceMismatch
from reembed.source.dataset import TEXT
from reembed.store.records import decode, encode
from reembed.table.read import from_vectors

# With a dot, as TEXT: no carried column can be called so.
TOKENS, ERROR, GIVEN = "reembed.tokens", "reembed.error", "reembed.given"
NO_TEXT = "its text is null"
_PROMPT = "reembed.prompt"


@dataclass(frozen=True)
class _Prompt:
    """What the texts of a table of tokens begin with."""

    length: int


@functools.cache
def tokenizer_of(config: EncoderConfig, sha256: str) -> Tokenizer:
    """Return this process's tokenizer; raise SpaceMismatch if its files are not those of the plan's space."""
    # Ray runs as many of these tasks as there are cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = encoders.load_tokenizer(config)
    if tokenizer.sha256 != sha256:
        raise SpaceMismatch(
            f"{config.model} has another tokenizer on {socket.gethostname()}",
            f"sha256 {tokenizer.sha256[:12]} where the plan has {sha256[:12]}: its ids would mean other words",
            "reembed config --check     # on that node: every node needs the same model folder",
        )
    return tokenizer


def documents_of(job: EmbedJob, unit: EmbedUnit) -> pa.Table:
    """Return the unit's documents, as `Source.read`."""
    if isinstance(unit, EmbedRows):
        return job.source.take(unit.row_ids.read(job.run).tolist())
    return job.source.read(unit)


def read(job: EmbedJob, unit: EmbedUnit) -> pa.Table:
    """Return the unit's documents with their texts, and `reembed.given` if the run copies vectors."""
    documents = documents_of(job, unit)
    texts = documents[TEXT]
    hashes = digests.of_column(texts)
    stored = [None, pa.py_buffer(hashes)]
    column = pa.Array.from_buffers(pa.binary(digests.BYTES), documents.num_rows, stored)
    errors = pc.if_else(texts.is_null(), NO_TEXT, pa.scalar(None, pa.string()))
    documents = documents.append_column("text_hash", column)
    documents = documents.append_column(ERROR, errors)
    if not job.plan.donors:
        return documents
    known = reuse.known(job.run.storage, job.plan.donors, job.plan.space.dim)
    places = known.find(digests.stack(hashes))
    found = (places >= 0) & texts.is_valid().to_numpy()
    vectors = np.zeros((documents.num_rows, job.plan.space.dim), np.float32)
    vectors[found] = known.vectors(places[found])
    given = from_vectors(vectors, pa.float32(), valid=found)
    return documents.append_column(GIVEN, given)


def tokenized(documents: pa.Table, tokenizer: Tokenizer) -> pa.Table:
    """Replace the texts by `reembed.tokens`, large_list<uint16 or int32>.

    A text that cannot be tokenized gets a `reembed.error`; documents with an error or a given vector
    get no tokens. The length of the prompt is in the metadata.
    """
    errors = documents[ERROR].to_pylist()
    tokens, failures = tokenize_documents(
        tokenizer.tokenize, texts_of(documents), to_embed(documents)
    )
    for row, why in failures.items():
        errors[row] = why
    out = documents.drop_columns([TEXT, ERROR])
    out = out.append_column(TOKENS, _column(tokens))
    out = out.append_column(ERROR, pa.array(errors, pa.string()))
    prompt = encode(_Prompt(tokens.prompt_length))
    return out.replace_schema_metadata({_PROMPT: json.dumps(prompt)})


def prepared(job: EmbedJob, documents: pa.Table) -> pa.Table:
    """Return documents as an actor takes them: tokenized, if that is to be done apart from the model."""
    sha256 = job.plan.space.tokenizer_sha256
    if sha256 is None or not job.embed.tokenizes_apart:
        return documents
    return tokenized(documents, tokenizer_of(job.encoder, sha256))


def texts_of(documents: pa.Table) -> list[str]:
    """Return the texts; "" for null."""
    return [(text or b"").decode("utf-8", "replace") for text in documents[TEXT].to_pylist()]


def to_embed(documents: pa.Table) -> Rows:
    """Return the rows without an error and without a given vector."""
    todo = documents[ERROR].is_null().to_numpy()
    if GIVEN in documents.column_names:
        todo = todo & documents[GIVEN].is_null().to_numpy()
    return np.flatnonzero(todo)


def _column(tokens: Tokens) -> pa.Array:
    """Return ids of consecutive texts as lists, without a copy; in 16 bits where all fit."""
    ids = tokens.ids
    if not len(ids) or (ids.min() >= 0 and ids.max() < 1 << 16):
        ids = ids.astype(np.uint16)
    return pa.LargeListArray.from_arrays(pa.array(tokens.offsets), pa.array(ids))


def tokens_of(documents: pa.Table) -> Tokens:
    """Return the tokens of all documents; none for those that are not to embed."""
    column = documents[TOKENS].combine_chunks()
    ids = column.values.to_numpy().astype(np.int32, copy=False)
    prompt = decode(_Prompt, json.loads(documents.schema.metadata[_PROMPT.encode()]))
    return Tokens(ids, column.offsets.to_numpy(), prompt.length)
