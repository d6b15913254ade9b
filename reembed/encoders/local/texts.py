"""Tokenizes texts exactly as sentence-transformers does, without loading weights."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reembed.encoders.base import Kind
from reembed.encoders.local.files import Layout, Module, refusing
from reembed.encoders.local.json_files import read_json
from reembed.encoders.tokens import MOST_CHARACTERS, Tokens, blaming_texts, clean
from reembed.errors import SetupError

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

_LEAST_CHARACTERS = 65_536
_CHARACTERS_PER_TOKEN = 250
_UNLIMITED = 10**20  # transformers writes "no limit" as 1e30
# Their position table begins after the padding id, so two of its rows are not used by tokens.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer")
_WORDS = ("word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight")
# Settings that change how sentence-transformers tokenizes.
_UNSUPPORTED = ("query_length", "document_length", "query_expansion", "processing_kwargs")


@dataclass(frozen=True)
class SentenceTokenizer:
    """The tokenizer of a model folder. Threads may share it: nothing changes once it is open.

    backend: a tokenizers.Tokenizer that cuts at max_length tokens and does not pad.
    max_length: tokens, special ones included; None: no limit.
    cut_left: texts that are too long lose their beginning instead of their end.
    """

    layout: Layout
    backend: Any
    max_length: int | None
    prompts: dict[Kind, str]
    prompt_lengths: dict[Kind, int]
    special_tokens: bool
    pad_id: int = 0
    type_ids: bool = False
    cut_left: bool = False

    @property
    def sha256(self) -> str:
        return self.layout.tokenizer_sha256()

    @blaming_texts()
    def tokenize(self, texts: Sequence[str], kind: Kind) -> Tokens:
        """Put the prompt before, add special tokens, cut at max_length.

        Half surrogate pairs become U+FFFD. Texts much longer than max_length (beyond 65,536
        characters and 250 per token; a million if there is no max_length) are cut before
        tokenizing, which is linear in the whole text.
        """
        most = MOST_CHARACTERS
        if self.max_length is not None:
            most = max(_LEAST_CHARACTERS, _CHARACTERS_PER_TOKEN * self.max_length)
        kept = slice(-most, None) if self.cut_left else slice(most)
        encodings = self.backend.encode_batch_fast(
            [self.prompts[kind] + clean(text[kept]) for text in texts],
            add_special_tokens=self.special_tokens,
        )
        rows = [encoding.ids for encoding in encodings]
        offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(offsets[-1]))
        return Tokens(ids, offsets, self.prompt_lengths[kind])


def open_tokenizer(
    layout: Layout, config: EncoderConfig, prompts: dict[Kind, str]
) -> SentenceTokenizer:
    """Return the tokenizer of a model folder.

    Raises:
        SetupError: its files are missing or unreadable, or max_length does not fit the model.
    """
    module = layout.modules[0]
    with refusing(f"{module.folder}: cannot load the tokenizer"):
        if module.kind == "StaticEmbedding":
            opened = _open_static(layout, config, prompts)
        else:
            opened = _open_transformer(layout, config, prompts)
    special = opened.backend.num_special_tokens_to_add(False) if opened.special_tokens else 0
    if opened.max_length is not None and opened.max_length <= special:
        raise SetupError(
            f"encoder.max_length {opened.max_length} leaves no room for text",
            f"The model adds {special} special tokens to every text.",
            f"reembed run --set encoder.max_length={special + 1}",
        )
    return opened


def _open_static(
    layout: Layout, config: EncoderConfig, prompts: dict[Kind, str]
) -> SentenceTokenizer:
    from tokenizers import Tokenizer

    file = layout.modules[0].folder / "tokenizer.json"
    backend = Tokenizer.from_str(json.dumps(read_json(file)))
    backend.no_padding()
    if config.max_length is not None:
        backend.enable_truncation(config.max_length)
    cut = backend.truncation or {}
    return SentenceTokenizer(
        layout,
        backend,
        cut.get("max_length"),
        prompts,
        dict.fromkeys(prompts, 0),
        special_tokens=False,
        cut_left=cut.get("direction") == "left",
    )


def _open_transformer(
    layout: Layout, config: EncoderConfig, prompts: dict[Kind, str]
) -> SentenceTokenizer:
    module = layout.modules[0]
    _require_plain_settings(module)
    with layout.staged() as root:
        fast, positions = _load_fast(module, root / module.folder.relative_to(layout.root))
    if not layout.saved_by_st and fast.chat_template is not None:
        raise _chat(module)
    if (config.max_length or 0) > positions:
        raise SetupError(
            f"encoder.max_length {config.max_length}: the model has positions for {positions}",
            fix=f"reembed run --set encoder.max_length={positions}",
        )
    max_length: int | None = None
    if (most := config.max_length or fast.model_max_length) < _UNLIMITED:
        max_length = int(most)
    _require_rows(module, fast, max_length)
    backend = fast.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    if max_length is not None and max_length > backend.num_special_tokens_to_add(False):
        backend.enable_truncation(max_length, direction=fast.truncation_side)
    special_ids = fast.all_special_ids  # an error, if the files name a token that there is not
    prompt_lengths: dict[Kind, int] = dict.fromkeys(prompts, 0)
    for kind, prompt in prompts.items():
        if prompt and (ids := backend.encode(prompt).ids):
            prompt_lengths[kind] = len(ids) - (ids[-1] in special_ids)
    return SentenceTokenizer(
        layout,
        backend,
        max_length,
        prompts,
        prompt_lengths,
        special_tokens=True,
        pad_id=fast.pad_token_id or 0,
        type_ids="token_type_ids" in fast.model_input_names,
        cut_left=fast.truncation_side == "left",
    )


def _require_rows(module: Module, fast: Any, max_length: int | None) -> None:
    """Refuse a model without a row for a position or an added token: a text with it would stop the run."""
    rows = {name: t.shape[0] for name, t in module.tensors().items() if t.shape}
    tables = (r for n, r in rows.items() if n.endswith("position_embeddings.weight"))
    if (max_length or 0) > (positions := next(tables, _UNLIMITED)):
        raise SetupError(
            f"{module.folder} cuts texts at {max_length:,} tokens",
            f"the model has positions for {positions:,}: longer texts cannot be embedded",
            f"reembed run --set encoder.max_length={positions}",
        )
    words = next((r for n, r in rows.items() if n.endswith(_WORDS)), _UNLIMITED)
    if (last := max(fast.added_tokens_decoder, default=-1)) >= words:
        raise SetupError(
            f"the tokenizer of {module.folder} adds {str(fast.added_tokens_decoder[last])!r} as token {last:,}",
            f"the model has vectors for {words:,} tokens: a text with this one cannot be embedded",
            f"remove it from {module.folder}/tokenizer.json, or save the model with resized embeddings",
        )


def _require_plain_settings(module: Module) -> None:
    if given := [key for key in _UNSUPPORTED if module.settings.get(key)]:
        raise SetupError(f"{module.folder}: the settings {', '.join(given)} are not supported")
    modalities = module.settings.get("modality_config")
    if modalities is not None and ("message" in modalities or "text" not in modalities):
        raise _chat(module)
    if module.settings.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise SetupError(f"{module.folder} is not a feature extractor, so it gives no vectors")


def _chat(module: Module) -> SetupError:
    return SetupError(
        f"{module.folder} takes chat messages or images, not plain text",
        "Its tokenizer has a chat template, through which sentence-transformers would send texts.",
        "save it as a sentence-transformers model with a text modality",
    )


def _load_fast(module: Module, folder: Path) -> tuple[Any, int]:
    """Return the tokenizer as sentence-transformers sets it up, and how many positions the model has."""
    from transformers import AutoConfig, AutoTokenizer

    settings = module.settings
    options = dict(settings.get("processor_kwargs") or settings.get("tokenizer_args") or {})
    if settings.get("max_seq_length") is not None:
        options.setdefault("model_max_length", settings["max_seq_length"])
    own: Any = {"trust_remote_code": False, "local_files_only": True}
    load_tokenizer: Any = AutoTokenizer.from_pretrained
    model = AutoConfig.from_pretrained(folder, **own)
    fast = load_tokenizer(folder, **options | own)
    if not fast.is_fast:
        raise SetupError(
            f"{module.folder}: the tokenizer has no fast version",
            fix="save it with a tokenizer.json",
        )
    if settings.get("do_lower_case"):
        _lowercase(fast.backend_tokenizer)
    positions = getattr(model, "max_position_embeddings", None)
    if positions in (None, -1):
        return fast, _UNLIMITED
    if "model_max_length" not in options:
        fast.model_max_length = min(fast.model_max_length, positions)
    return fast, int(positions) - 2 * (model.model_type in _OFFSET_POSITIONS)


def _lowercase(backend: Any) -> None:
    """Put Lowercase first, unless the normalizer already has it."""
    from tokenizers import normalizers

    kinds: Any = normalizers
    steps = backend.normalizer or ()
    if not isinstance(steps, (tuple, kinds.Sequence)):
        steps = (steps,)
    if not any(isinstance(step, kinds.Lowercase) for step in steps):
        backend.normalizer = kinds.Sequence([kinds.Lowercase(), *steps])
