"""Configuration: one YAML file is a migration; defaults < files left to right < --set left to right.

`source` and `encoder` decide the vectors, `table` what is stored beside them; all other sections
affect only speed or the gate and may change when a run resumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StrictStr, field_validator, model_validator

from reembed.config.files import load_sections
from reembed.config.gate import GateSection
from reembed.config.lazy import LazySection
from reembed.config.options import Stores, as_options, checked
from reembed.config.section import Section
from reembed.config.shadow import ShadowSection
from reembed.errors import UsageError
from reembed.events import ChangedSetting
from reembed.redact import shown_option
from reembed.space import sha256_of

_NAME = r"^[a-z0-9][a-z0-9-]{0,31}$"


class SourceConfig(Section):
    """The documents."""

    uri: StrictStr
    """Lance dataset: a folder, s3://, gs:// or az://."""
    version: Annotated[int, Field(ge=1)] | None = None
    """Lance version to read. Default: the newest, pinned when the run starts."""
    id_column: StrictStr = "doc_id"
    """Column of unique string or integer ids."""
    text: StrictStr = "text"
    """Text column, or a template over several: "{title} {text}"."""
    filter: StrictStr | None = None
    """SQL filter over the source's columns; only matching documents are embedded."""
    options: Annotated[dict[StrictStr, StrictStr] | None, checked("source")] = None
    """Object-store settings of the source, as `storage.options`. Default: those of `storage`."""


class Prompts(Section):
    """Texts put before a query or a document."""

    query: StrictStr | None = None
    """Default: the model's own query prompt."""
    document: StrictStr | None = None
    """Default: the model's own document prompt."""


class EncoderConfig(Section):
    """The model. A change here makes a new space: every vector is computed again."""

    model: StrictStr
    """A sentence-transformers folder, a hub id, `package:NAME/FOLDER` (a folder inside an
    installed package) or `hashing:DIM` (deterministic, for tests)."""
    revision: StrictStr | None = None
    """Commit of a hub model; required for hub ids. Quote it: YAML reads 0123456 as a number."""
    pooling: Literal["cls", "mean", "lasttoken"] | None = None
    """Default: the model's own pooling."""
    normalize: bool | None = None
    """Default: unit length, unless the model itself declares the dot product as its similarity."""
    truncate_dim: Annotated[int, Field(ge=1)] | None = None
    """Keep the first dimensions only (Matryoshka models)."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens kept per text. Default: the model's own limit."""
    prompts: Prompts = Prompts()
    """Prompts that replace the model's own."""


class EmbedConfig(Section):
    """Affects speed, not vectors. May change when a run resumes, except unit_documents and reuse."""

    actors: Annotated[int, Field(ge=1)] = 1
    """Model replicas."""
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0
    """GPUs each replica reserves; 0 runs on CPU, 0.5 puts two replicas on one GPU."""
    cpus_per_actor: Annotated[int, Field(ge=1)] = 1
    """CPU cores each replica reserves, and torch threads it uses on CPU."""
    batch_tokens: Annotated[int, Field(ge=1)] = 4_096
    """Tokens per forward pass: 2k-4k on CPU, 16k-128k on a GPU. Halved for the rest of the run if the
    device's memory is too small."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number type the model computes in; auto: float16 on CUDA (bfloat16 if the checkpoint is),
    float32 on CPU. A type that changes the vectors too much is not used, and the output says so."""
    tokenizer_workers: Annotated[int, Field(ge=0)] | None = None
    """Concurrent tasks that read and tokenize; 0: each actor tokenizes. Default: 0 on CPU, where
    tokenizing is a hundredth of the work, and two per free core with GPUs."""
    unit_documents: Annotated[int, Field(ge=1)] | None = None
    """Documents per unit, which is staged and resumed as a whole. Default: seconds of embedding, at
    most 50,000 units, or as many as have 128 MiB each."""
    units_in_flight: Annotated[int, Field(ge=1)] = 8
    """Units per actor between reading and writing at once: bounds the memory (256 MiB at least)."""
    unit_deadline_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which a worker that is still embedding one unit is ended. Default: ten times the
    median, at least 60, and 900 until some units are finished."""
    stall_s: Annotated[float, Field(gt=0)] = 1_800
    """Seconds without a finished unit after which the run fails."""
    drain_s: Annotated[float, Field(ge=0)] = 60
    """Seconds that units in progress have to finish after Ctrl-C or SIGTERM."""
    reuse: bool = True
    """Copy the vector of a text that a verified release in this root has in the same space."""
    max_dead_letters: Annotated[int, Field(ge=0)] = 0
    """The run fails if more documents cannot be embedded."""

    @field_validator("dtype", mode="before")
    @classmethod
    def _no_eight_bits(cls, dtype: Any) -> Any:
        if str(dtype).lower() in ("int8", "uint8", "fp8", "float8", "float8_e4m3", "8bit", "q8"):
            raise ValueError(
                "8 bits give different vectors (cosine 0.99 and less): they would be another space"
            )
        return dtype

    @property
    def actor_cpus(self) -> int:
        """Cores a replica reserves: one if it uses a GPU."""
        return 1 if self.gpus_per_actor else self.cpus_per_actor

    @property
    def tokenizes_apart(self) -> bool:
        """Whether texts are tokenized before they reach an actor."""
        if self.tokenizer_workers is None:
            return self.gpus_per_actor > 0
        return self.tokenizer_workers > 0


class TableConfig(Section):
    """The vector table."""

    dtype: Literal["float32", "float16"] = "float32"
    """Stored number type of the vectors; part of the space."""
    carry: tuple[StrictStr, ...] = ()
    """Source columns copied beside the vector, for filtering and showing without a join; the text
    column may be one. A change does not embed anything again: see embed.reuse."""


class IndexConfig(Section):
    """The index."""

    kind: Literal["auto", "faiss", "faiss_ondisk", "lance"] = "auto"
    """auto: by size (docs/sizing.md). faiss: mapped, except lists of fast-scan codes (PQ..x4fs). faiss_ondisk: maps
    these too, from a copy in TMPDIR. lance: Lance's own, beside the table; a search reads from the store."""
    factory: StrictStr = "auto"
    """FAISS factory string; for lance IVF_PQ, IVF_RQ or IVF_FLAT, with a number of lists (IVF256_PQ) and of codes
    (IVF_PQ96) or without; or auto (by the number of vectors and dimensions)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where the index is trained and filled; the saved index is portable either way."""
    ann_recall: Annotated[float, Field(gt=0, le=1)] = 0.98
    """ann_recall@10 against exact search that the index is tuned to."""
    shard_rows: Annotated[int, Field(ge=1)] = 4_000_000
    """Most vectors that one task adds to the index, as far as whole fragments of the table allow."""


class StorageConfig(Section):
    """Where everything is kept."""

    root: StrictStr
    """Folder, s3://, gs:// or az:// that holds tables/, indexes/, aliases/, releases/, runs/."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Releases that gc keeps per alias, live and previous included."""
    erase_deleted: bool = False
    """Write files again that hold vectors of deleted documents, so that gc can remove them: a catch-up then
    rewrites up to the whole table, and fills the index again."""
    options: Annotated[dict[StrictStr, StrictStr], checked("storage")] = Field(default_factory=dict)
    """Object-store settings (aws_endpoint, aws_region, allow_http). Keys and tokens come from the
    environment or the instance role, or are written as env:NAME, the variable that holds them."""


class RayConfig(Section):
    """Where Ray runs. Under `ray job submit` and on a cluster the running Ray is used."""

    address: StrictStr | None = None
    """Cluster to connect to. Default: RAY_ADDRESS if set, else a private cluster on this machine."""
    allow_unauthenticated: bool = False
    """Use a cluster on other machines without a token: anyone who can reach it can run code on it."""
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """Logical CPUs of the private cluster. Default: what the actors need, plus two."""


RESERVED_COLUMNS = frozenset({"doc_id", "vector", "space", "text_hash", "source_version"})
"""Names of a vector table's own columns."""


class Config(Section):
    """One migration."""

    alias: Annotated[StrictStr, Field(pattern=_NAME)]
    """The name that serving resolves."""
    source: SourceConfig
    encoder: EncoderConfig
    storage: StorageConfig
    embed: EmbedConfig = EmbedConfig()
    table: TableConfig = TableConfig()
    index: IndexConfig = IndexConfig()
    gate: GateSection = GateSection()
    strategy: Literal["full_rebuild", "dual_index", "lazy"] = "full_rebuild"
    """How the model is changed. full_rebuild: `reembed run`, `reembed compare`, then promote. dual_index: after the
    run `reembed shadow` keeps both releases up to date, and judges the queries that arrive until they decide. lazy:
    `reembed lazy start` migrates the documents that turn up, before the run."""
    shadow: ShadowSection = ShadowSection()
    lazy: LazySection = LazySection()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _carry_is_not_reserved(self) -> Config:
        clash = set(self.table.carry) & RESERVED_COLUMNS
        if len(set(self.table.carry)) < len(self.table.carry):
            raise ValueError("table.carry names a column twice")
        if clash:
            raise ValueError(
                f"table.carry: {', '.join(sorted(clash))} is a column reembed writes itself"
            )
        return self

    def shown(self) -> dict[str, Any]:
        """Return all settings as plain data, to be printed and kept: *** for what may hold a secret."""
        settings = self.model_dump(mode="json")
        for section in ("source", "gate", "storage"):
            if options := settings[section]["options"]:
                settings[section]["options"] = {k: shown_option(k, v) for k, v in options.items()}
        return settings

    @property
    def stores(self) -> Stores:
        """Access to the stores of the source and of the judged queries."""
        source, queries = self.source.options, self.gate.options
        source = self.storage.options if source is None else source
        return Stores(as_options(source), as_options(source if queries is None else queries))

    def result_key(self, uri: str) -> str:
        """Return 16 hex digits over the settings that decide what a run produces, without the version.

        `uri` is the source's, absolute: another folder of the same relative name is another source.
        """
        decides = {
            "alias": self.alias,
            "source": self.source.model_dump(exclude={"version", "options"}) | {"uri": uri},
            "encoder": self.encoder.model_dump(),
            "table": self.table.model_dump(),
        }
        return sha256_of(decides)[:16]

    def line_settings(self, uri: str) -> str:
        """Return the digest that the lines built with these settings are filed under."""
        return self.result_key(uri)[:8]


@dataclass(frozen=True)
class ResolvedConfig:
    """Checked settings, and where each came from."""

    config: Config
    origins: dict[str, str]
    """`file:line`, `--set NAME` or `default`, of each dotted setting."""
    check: bool = False
    """Whether only the check was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed config --json` prints, without secrets."""
        return {
            "valid": True,
            "check": self.check,
            "settings": self.config.shown(),
            "origins": self.origins,
        }


def load(files: list[str], overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """Return the checked config and, for each dotted setting, the file:line or --set it came from.

    Raises:
        ConfigError: naming every wrong setting with its place and, for a typo, the nearest name.
    """
    return load_sections(Config, files, overrides)


def require_config(config: object) -> None:
    """Refuse what is not a `Config`, as a `ResolvedConfig`.

    Raises:
        UsageError: with what to write instead.
    """
    if not isinstance(config, Config):
        raise UsageError(
            f"config must be a Config, not of type {type(config).__name__}",
            "`api.config` returns the settings as `.config`, beside where each came from",
            'api.status(api.config(["reembed.yaml"]).config)',
        )


def changed_settings(
    section: str, used: Mapping[str, Any], now: Mapping[str, Any]
) -> list[ChangedSetting]:
    """Return each setting of a section whose value now differs from the one that was used."""
    return [
        ChangedSetting(f"{section}.{name}", used[name], value)
        for name, value in now.items()
        if name in used and used[name] != value
    ]
