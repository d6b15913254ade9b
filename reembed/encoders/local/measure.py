"""Measures an encoder's speed on this machine: one replica in this process, or several side by side."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reembed import encoders
from reembed.encoders.local import linears
from reembed.encoders.tokens import TokenEncoder, Tokens, require_tokens
from reembed.errors import SetupError

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

_FIRST = 16
_LOAD_S = 120.0


class DoesNotFit(SetupError):
    """This many replicas do not run side by side."""


@dataclass(frozen=True)
class Setting:
    """The tunable settings of one replica; `threads` matter on the CPU only."""

    dtype: str
    batch_tokens: int
    threads: int
    device: str = "auto"

    def load(self, config: EncoderConfig) -> TokenEncoder:
        torch.set_num_threads(self.threads)
        options = asdict(self)
        del options["threads"]
        return require_tokens(encoders.load_encoder(config, **options, for_job=True))


def dtypes(config: EncoderConfig, asked: str) -> list[str]:
    """Return the number types to try: the one asked for, else the device's default and, on a CPU with
    bfloat16, that too."""
    if asked != "auto" or config.model.startswith("hashing:"):
        return [asked]
    if not torch.cuda.is_available() and linears.has_bfloat16():
        return ["float32", "bfloat16"]
    return ["auto"]


def release() -> None:
    """Return the memory of deleted encoders to the device."""
    gc.collect()
    torch.cuda.empty_cache()


def gpus() -> int:
    """Return the number of GPUs on this machine."""
    return torch.cuda.device_count()


def rate(encoder: TokenEncoder, tokens: Tokens, seconds: float) -> float:
    """Return tokens/s over about `seconds`, on as many texts as that takes.

    They are embedded once before, uncounted, because the first batch of a shape compiles kernels.
    """
    some = tokens.take(_spread(len(tokens), _FIRST))
    encoder.embed(some)
    started = time.perf_counter()
    encoder.embed(some)
    guess = float(some.lengths.sum()) / max(time.perf_counter() - started, 1e-9)
    texts = int(len(tokens) * seconds * guess / max(1, int(tokens.lengths.sum())))
    window = tokens.take(_spread(len(tokens), max(_FIRST, texts)))
    encoder.embed(window)
    times, started = 0, time.perf_counter()
    while not times or time.perf_counter() - started < seconds:
        encoder.embed(window)
        times += 1
    return times * float(window.lengths.sum()) / max(time.perf_counter() - started, 1e-9)


def together(
    config: EncoderConfig,
    setting: Setting,
    replicas: int,
    tokens: Tokens,
    seconds: float,
    until: float,
) -> float | None:
    """Return tokens/s of `replicas` processes at once, spread over all GPUs.

    None if they did not finish by `until`, on the monotonic clock; they are killed then.

    Raises:
        DoesNotFit: a process ended early, had to halve its batches, or was not ready in two minutes.
    """
    context = multiprocessing.get_context("spawn")
    ready, rates = context.Barrier(replicas), context.SimpleQueue()
    devices = gpus()
    processes: list[Any] = []
    for n in range(replicas):
        if devices > 1:
            setting = replace(setting, device=f"cuda:{n % devices}")
        task = (config, setting, tokens, seconds, ready, rates)
        processes.append(context.Process(target=_replica, args=task, daemon=True))
        processes[n].start()
    while running := [process.sentinel for process in processes if process.exitcode is None]:
        if not wait(running, until - time.monotonic()):
            for process in processes:
                process.kill()
                process.join()
            return None
        if any(process.exitcode for process in processes):
            ready.abort()  # else the others wait for it
    if any(process.exitcode for process in processes):
        raise DoesNotFit(
            f"{replicas} replica(s) of {config.model} do not run here",
            f"a process ended, most likely because memory was short, or was not ready within"
            f" {_LOAD_S:.0f} s; its own error is above",
            "reembed tune     # with more memory free on this machine",
        )
    return float(sum(rates.get() for _ in processes))


def _replica(
    config: EncoderConfig, setting: Setting, tokens: Tokens, seconds: float, ready: Any, rates: Any
) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = setting.load(config)
    batch_tokens = encoder.batch_tokens
    encoder.embed(tokens.take(_spread(len(tokens), _FIRST)))
    ready.wait(_LOAD_S)
    done, started = 0, time.perf_counter()
    chance = np.random.default_rng(os.getpid())
    mean = max(1.0, float(tokens.lengths.mean()))
    texts = min(len(tokens), max(len(tokens) // 8, math.ceil(2 * setting.batch_tokens / mean)))
    while (elapsed := time.perf_counter() - started) < seconds:
        window = tokens.take(chance.permutation(len(tokens))[:texts])
        encoder.embed(window)
        done += int(window.lengths.sum())
    if encoder.batch_tokens < batch_tokens:
        batch = f"a batch of {setting.batch_tokens:,} tokens"
        raise DoesNotFit(f"{batch} does not fit in memory with the other replicas")
    rates.put(done / max(elapsed, 1e-9))


def _spread(count: int, wanted: int) -> Any:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))
