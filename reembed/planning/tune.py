"""`reembed tune`: the fastest settings of `embed` for this model, this corpus and this machine.

Measured on real documents: number type and tokens per batch of one replica, then replicas side by side,
then how fast texts are tokenized. Nothing is written but the overlay.
"""

from __future__ import annotations

import math
import os
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from reembed import encoders
from reembed.config.settings import Config
from reembed.encoders.local import measure
from reembed.encoders.local.measure import Setting
from reembed.encoders.tokens import Tokens
from reembed.engine.documents import texts_of
from reembed.errors import SourceError, UsageError
from reembed.events import Listener, Notice
from reembed.source.dataset import Source

_SAMPLE = 2_048
_BUDGETS = {"cpu": (1_024, 2_048, 4_096, 8_192), "gpu": (8_192, 16_384, 32_768, 65_536, 131_072)}
_WITHIN = 0.97
"""Share of the fastest rate: the smallest batch that reaches it is taken, which leaves memory to others."""
_WORTH_BFLOAT16 = 1.2
_MOST_THREADS = 16
_REPLICAS_PER_GPU = (1, 2, 3)
_TRIAL_S = 2.0
_MARK = "# reembed tune:"


@dataclass(frozen=True)
class _Trials:
    """What every search needs; times are by the monotonic clock."""

    config: Config
    tokens: Tokens
    emit: Listener
    gpus: int
    cores: int
    half: float
    """The rest of the time is for layouts."""
    end: float

    def say(self, what: str) -> None:
        self.emit(Notice(what))

    def is_late(self, took: float, until: float, what: str) -> bool:
        """Return whether one more trial, as long as the last one, would end too late, and say so."""
        late = time.monotonic() + took > until
        if late:
            self.say(f"no time left to try {what}")
        return late


@dataclass(frozen=True)
class Tried:
    """One batch size of one replica."""

    path: str
    batch_tokens: int
    tokens_per_s: int


@dataclass(frozen=True)
class Layout:
    """Replicas side by side on this machine."""

    actors: int
    threads: int
    gpus_per_actor: float
    tokens_per_s: float


@dataclass(frozen=True)
class Fastest:
    """Settings of `embed`."""

    dtype: str
    batch_tokens: int
    actors: int
    cpus_per_actor: int
    gpus_per_actor: float


@dataclass(frozen=True)
class Sample:
    """What was measured with."""

    documents: int
    tokens: int


@dataclass(frozen=True)
class Tuned:
    """The fastest settings, and all that was measured."""

    embed: Fastest
    """Settings of `embed`: dtype, batch_tokens, actors, cpus_per_actor, gpus_per_actor."""
    tokens_per_s: int
    docs_per_s: float
    one_replica: list[Tried]
    layouts: list[Layout]
    tokenizer_tokens_per_s_per_core: int
    sample: Sample
    """Numbers of documents and tokens in the sample."""
    seconds: float
    """Time that the measurement took."""
    out: str | None = None
    """The file that the overlay was written to."""

    @property
    def overlay(self) -> str:
        """Return the YAML to give after the config."""
        rates = f"{self.docs_per_s:,.1f} docs/s, {self.tokens_per_s:,} tokens/s on this machine"
        note = f"{_MARK} {rates}; `actors` are of one machine.\n"
        return note + yaml.safe_dump({"embed": vars(self.embed)}, sort_keys=False)

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed tune --json` prints."""
        return {**asdict(self), "overlay": self.overlay}


def tune(config: Config, emit: Listener, seconds: float = 60.0) -> Tuned:
    """Return the best settings among those that were tried until time was up.

    Loading the model and measuring it once are not cut short. Raises what its source and encoder raise.
    """
    started = time.monotonic()
    tokens, per_core = _sample(config)
    gpus, cores = measure.gpus(), len(os.sched_getaffinity(0))
    trials = _Trials(config, tokens, emit, gpus, cores, started + seconds / 2, started + seconds)
    trials.say(f"{len(tokens):,} documents, {tokens.lengths.mean():.0f} tokens on average")
    tried: list[Tried] = []
    loading = time.monotonic()
    alone, setting = _of_one(trials, tried)
    measure.release()
    once = (time.monotonic() - loading) / len(tried)
    layouts = _layouts(trials, setting, once) or [
        Layout(1, setting.threads, float(gpus > 0), alone)  # as it was measured in this process
    ]
    best = max(layouts, key=lambda found: found.tokens_per_s)
    if gpus:
        kept = "embed.tokenizer_workers is left as it is"
        trials.say(f"a core tokenizes {per_core:,.0f} tokens/s; {kept}")
    return Tuned(
        embed=Fastest(
            setting.dtype, setting.batch_tokens, best.actors, best.threads, best.gpus_per_actor
        ),
        tokens_per_s=round(best.tokens_per_s),
        docs_per_s=round(best.tokens_per_s / float(tokens.lengths.mean()), 1),
        one_replica=tried,
        layouts=[replace(found, tokens_per_s=round(found.tokens_per_s)) for found in layouts],
        tokenizer_tokens_per_s_per_core=round(per_core),
        sample=Sample(len(tokens), int(tokens.lengths.sum())),
        seconds=round(time.monotonic() - started, 1),
    )


def tune_and_keep(config: Config, emit: Listener, seconds: float, out: str | None) -> Tuned:
    """Tune, and write the settings to the overlay `out`, if one is named; raise errors as both."""
    if out is None:
        return tune(config, emit, seconds)
    require_overlay(Path(out))
    found = replace(tune(config, emit, seconds), out=out)
    Path(out).write_text(found.overlay)
    return found


def require_overlay(path: Path) -> None:
    """Raise UsageError if the overlay cannot be written there, or would replace something else."""
    out, nothing = f"--out {path}", "nothing was measured"
    written = folder = path.absolute().parent
    held = ""
    if not folder.is_dir():
        fix = f"mkdir -p {shlex.quote(str(path.parent))}"
        raise UsageError(f"{out}: there is no such folder", nothing, fix)
    if path.exists():
        written, held = path, path.read_text(errors="replace")
    if not os.access(written, os.W_OK):
        fix = "reembed tune --out /tmp/tuned.yaml"
        raise UsageError(f"{out}: it cannot be written", nothing, fix)
    if held.strip() and not held.startswith(_MARK):
        fix = f"reembed tune --out {shlex.quote(str(path.with_suffix('.tuned.yaml')))}"
        lost = "this file was not written by tune, and would be lost"
        raise UsageError(f"{out}: {lost}", nothing, fix)


def _sample(config: Config) -> tuple[Tokens, float]:
    """Return tokens of documents from all over the source, and tokens/s of one core tokenizing them."""
    source = Source.open(config)
    units = source.units(max(1, _SAMPLE // 8))
    if not units:
        raise SourceError(f"{source.uri} version {source.version} has no document to try")
    wanted = math.ceil(_SAMPLE * len(units) / max(1, sum(unit.rows for unit in units)))
    chosen = np.unique(np.linspace(0, len(units) - 1, min(len(units), wanted)).astype(int))
    texts = [text for number in chosen for text in texts_of(source.read(units[number]))]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = encoders.load_tokenizer(config.encoder)
    tokenizer.tokenize(texts[:16], "document")
    started = time.perf_counter()
    tokens = tokenizer.tokenize(texts, "document")
    return tokens, float(tokens.lengths.sum()) / max(time.perf_counter() - started, 1e-9)


def _of_one(trials: _Trials, tried: list[Tried]) -> tuple[float, Setting]:
    """Return tokens/s of one replica in this process, and the number type and tokens per batch it took."""
    best: list[tuple[float, Setting]] = []
    took = 0.0
    for dtype in measure.dtypes(trials.config.encoder, trials.config.embed.dtype):
        if tried and trials.is_late(took, trials.half, dtype):
            break
        started = time.monotonic()
        found = _of_dtype(trials, dtype, tried)
        took = time.monotonic() - started
        # bfloat16 is not as exact: it must be worth it.
        if found and (not best or found[0] > _WORTH_BFLOAT16 * best[0][0]):
            best.insert(0, found)
    return best[0]


def _of_dtype(trials: _Trials, dtype: str, tried: list[Tried]) -> tuple[float, Setting] | None:
    """Return tokens/s and the batch of one number type, after one measurement at least; None if it is not used."""
    budgets = _BUDGETS["gpu" if trials.gpus else "cpu"]
    setting = Setting(dtype, budgets[0], min(trials.cores, _MOST_THREADS))
    encoder = setting.load(trials.config.encoder)
    for note in encoder.about.notes:
        trials.say(note)
    if tried and not encoder.about.path.endswith(dtype):
        return None
    rates: dict[int, float] = {}
    took = 0.0
    for budget in budgets:
        if rates and trials.is_late(took, trials.half, f"{budget:,} tokens a batch"):
            break
        started = time.monotonic()
        encoder.batch_tokens = budget
        rate = measure.rate(encoder, trials.tokens, _TRIAL_S / 2)
        took = time.monotonic() - started
        path = encoder.about.path
        fits = encoder.batch_tokens  # less than `budget` if memory was short
        if fits < budget and rates:
            trials.say(f"{path}: {budget:,} tokens a batch do not fit")
            break
        rates[fits] = rate
        trials.say(f"{path}, {fits:,} tokens a batch: {rate:,.0f} tokens/s")
        tried.append(Tried(path, fits, round(rate)))
    fastest = max(rates.values())
    enough = min(b for b, r in rates.items() if r >= _WITHIN * fastest)
    return rates[enough], replace(setting, batch_tokens=enough)


def _layouts(trials: _Trials, setting: Setting, took: float) -> list[Layout]:
    """Return how many replicas may share this machine, measured side by side while there is time; `took` is
    what one trial took so far.
    """
    found: list[Layout] = []
    for replicas, threads in _splits(trials.gpus, trials.cores):
        if trials.is_late(took, trials.end, f"{replicas} replicas"):
            break
        started = time.monotonic()
        shared = replace(setting, threads=threads)
        try:
            tokens_per_s = measure.together(
                trials.config.encoder, shared, replicas, trials.tokens, _TRIAL_S, trials.end
            )
        except measure.DoesNotFit as error:
            trials.say(str(error))
            break
        if tokens_per_s is None:
            trials.say(f"no time left to measure {replicas} replicas side by side")
            break
        took = time.monotonic() - started
        gpus_each = min(1.0, round(trials.gpus / replicas, 3))
        found.append(Layout(replicas, threads, gpus_each, tokens_per_s))
        where = f"with {threads} cores each"
        if trials.gpus:
            where = f"on {trials.gpus} GPU(s)"
        trials.say(f"{replicas} replica(s) {where}: {tokens_per_s:,.0f} tokens/s")
    return found


def _splits(gpus: int, cores: int) -> list[tuple[int, int]]:
    """Return (replicas, threads of each) worth trying, fewest replicas first."""
    if gpus:
        return [(n * gpus, 1) for n in _REPLICAS_PER_GPU]
    threads = [t for t in (16, 8, 4, 2, 1) if t <= cores] or [1]
    first = [] if cores in threads or cores > _MOST_THREADS else [(1, cores)]
    return (first + [(cores // t, t) for t in threads])[:4]
