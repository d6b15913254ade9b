"""`reembed tune`: the fastest settings of `embed` for this model, this corpus and this machine.

In about a minute, on real documents: number type and tokens per batch with one replica, then replicas
side by side, then how fast texts are tokenized. Nothing is written but the overlay.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from reembed import encoders
from reembed.config import Config
from reembed.encoders import measure
from reembed.encoders.base import Tokens
from reembed.encoders.measure import Setting
from reembed.errors import SourceError
from reembed.source import TEXT, Source

_SAMPLE = 2_048
_BUDGETS = {"cpu": (1_024, 2_048, 4_096, 8_192), "gpu": (8_192, 16_384, 32_768, 65_536, 131_072)}
_WITHIN = 0.97
"""Of the fastest: the smallest such batch is taken, which leaves memory to others."""
_WORTH_BFLOAT16 = 1.2
_MOST_THREADS = 16
_REPLICAS_PER_GPU = (1, 2, 3)
_TRIAL_S = 2.0
_HEADROOM = 1.25
_MARK = "# reembed tune:"

Say = Callable[[str], None]


def tune(config: Config, say: Say, seconds: float = 60.0) -> dict[str, Any]:
    """The best settings found until time was up, and everything that was measured.

    Raises:
        SourceError, EncoderError: the source or the model cannot be used.
    """
    deadline = time.monotonic() + seconds
    tokens, per_core = _sample(config)
    say(f"{len(tokens):,} documents, {tokens.lengths.mean():.0f} tokens on average")
    gpus, cores = measure.gpus(), len(os.sched_getaffinity(0))
    setting, tried = _of_one(config, tokens, say, (gpus, cores, deadline - seconds / 2))
    measure.release()
    layouts = _layouts(config, setting, tokens, say, (gpus, cores, deadline))
    best = max(layouts, key=lambda found: found["tokens_per_s"])
    workers = math.ceil(_HEADROOM * best["tokens_per_s"] / per_core) if gpus else 0
    embed = {
        "dtype": setting.dtype,
        "batch_tokens": setting.batch_tokens,
        "actors": best["actors"],
        "cpus_per_actor": best["threads"],
        "gpus_per_actor": best["gpus_per_actor"],
        "tokenizer_workers": workers,
    }
    mean = float(tokens.lengths.mean())
    return {
        "embed": embed,
        "tokens_per_s": round(best["tokens_per_s"]),
        "docs_per_s": round(best["tokens_per_s"] / mean, 1),
        "one_replica": tried,
        "layouts": [{**found, "tokens_per_s": round(found["tokens_per_s"])} for found in layouts],
        "tokenizer_tokens_per_s_per_core": round(per_core),
        "sample": {"documents": len(tokens), "tokens": int(tokens.lengths.sum())},
        "seconds": round(seconds - (deadline - time.monotonic()), 1),
    }


def is_overlay(text: str) -> bool:
    """Whether this is what `overlay` makes, or nothing."""
    return not text.strip() or text.startswith(_MARK)


def overlay(result: dict[str, Any]) -> str:
    """The YAML to give after the config."""
    note = (
        f"{_MARK} {result['docs_per_s']:,.1f} docs/s, {result['tokens_per_s']:,} tokens/s on this"
        " machine; `actors` are of one machine.\n"
    )
    return note + yaml.safe_dump({"embed": result["embed"]}, sort_keys=False)


def _sample(config: Config) -> tuple[Tokens, float]:
    """Tokens of documents from all over the source, and tokens/s of one core tokenizing them."""
    source = Source.open(config)
    units = source.units(max(1, _SAMPLE // 8))
    if not units:
        raise SourceError(f"{source.uri} version {source.version} has no document to try")
    wanted = math.ceil(_SAMPLE * len(units) / max(1, sum(unit.rows for unit in units)))
    chosen = np.unique(np.linspace(0, len(units) - 1, min(len(units), wanted)).astype(int))
    texts = [
        (text or b"").decode("utf-8", "replace")
        for number in chosen
        for text in source.read(units[number])[TEXT].to_pylist()
    ]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = encoders.load_tokenizer(config.encoder)
    tokenizer.tokenize(texts[:16], "document")
    started = time.perf_counter()
    tokens = tokenizer.tokenize(texts, "document")
    return tokens, float(tokens.lengths.sum()) / max(time.perf_counter() - started, 1e-9)


def _of_one(
    config: Config, tokens: Tokens, say: Say, machine: tuple[int, int, float]
) -> tuple[Setting, list[dict[str, Any]]]:
    """Number type and tokens per batch of one replica; each type has one measured at least."""
    gpus, cores, deadline = machine
    tried: list[dict[str, Any]] = []
    best: dict[str, tuple[float, Setting]] = {}
    for dtype in measure.dtypes(config.encoder, config.embed.dtype):
        budgets = _BUDGETS["gpu" if gpus else "cpu"]
        setting = Setting(dtype, budgets[0], min(cores, _MOST_THREADS))
        encoder = setting.load(config.encoder)
        rates: dict[int, float] = {}
        for budget in budgets:
            if rates and time.monotonic() > deadline:
                say(f"no time left to try {budget:,} tokens a batch")
                break
            encoder.batch_tokens = budget
            rates[budget] = measure.rate(encoder, tokens, _TRIAL_S / 2)
            if encoder.batch_tokens < budget:  # it did not fit
                rates.pop(budget)
                break
            say(f"{encoder.path}, {budget:,} tokens a batch: {rates[budget]:,.0f} tokens/s")
            tried.append(
                {"path": encoder.path, "batch_tokens": budget, "tokens_per_s": round(rates[budget])}
            )
        if not rates:
            say(f"{encoder.path}: {budgets[0]:,} tokens a batch do not fit")
            rates[encoder.batch_tokens] = measure.rate(encoder, tokens, _TRIAL_S / 2)
        fastest = max(rates.values())
        enough = min(b for b, r in rates.items() if r >= _WITHIN * fastest)
        for note in encoder.notes:
            say(note)
        best[dtype] = (fastest, replace(setting, batch_tokens=enough))
        del encoder
        measure.release()
    first, *others = best.values()
    for rate, setting in others:
        if rate > _WORTH_BFLOAT16 * first[0]:
            first = (rate, setting)
    return first[1], tried


def _layouts(
    config: Config, setting: Setting, tokens: Tokens, say: Say, machine: tuple[int, int, float]
) -> list[dict[str, Any]]:
    """How many replicas share this machine, measured side by side while there is time."""
    gpus, cores, deadline = machine
    found: list[dict[str, Any]] = []
    took = 0.0
    for replicas, threads in _splits(gpus, cores):
        if found and time.monotonic() + took > deadline:
            say(f"no time left to try {replicas} replicas")
            break
        started = time.monotonic()
        shared = replace(setting, threads=threads)
        try:
            tokens_per_s = measure.together(config.encoder, shared, replicas, tokens, _TRIAL_S)
        except measure.DoesNotFit as error:
            if not found:
                raise
            say(str(error))
            break
        took = time.monotonic() - started
        found.append(
            {
                "actors": replicas * max(1, gpus),
                "threads": threads,
                "gpus_per_actor": round(1 / replicas, 3) if gpus else 0,
                "tokens_per_s": tokens_per_s * max(1, gpus),
            }
        )
        where = "on a GPU" if gpus else f"with {threads} cores each"
        say(f"{replicas} replica(s) {where}: {tokens_per_s:,.0f} tokens/s")
    return found


def _splits(gpus: int, cores: int) -> list[tuple[int, int]]:
    """(replicas, threads of each) worth trying, fewest replicas first."""
    if gpus:
        return [(n, 1) for n in _REPLICAS_PER_GPU]
    threads = [t for t in (16, 8, 4, 2, 1) if t <= cores] or [1]
    first = [] if cores in threads or cores > _MOST_THREADS else [(1, cores)]
    return (first + [(cores // t, t) for t in threads])[:4]
