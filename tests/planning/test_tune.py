"""`tune`: real measurements on a tiny model, and an overlay that a run takes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import Quiet

from reembed.cli.verbs import cli
from reembed.config.settings import load
from reembed.encoders.local import measure
from reembed.encoders.local.measure import Setting
from reembed.encoders.local.sentence import SentenceEncoder
from reembed.encoders.tokens import Tokens
from reembed.events import Event, Notice
from reembed.planning import tune as tuning
from reembed.source.dataset import Source

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_models

LATE = time.monotonic() + 3_600


@pytest.mark.deep
def test_the_overlay_holds_what_was_fastest_and_a_run_takes_it(corpus, config_file, tmp_path):
    model = tiny_models.model_of(tmp_path / "m", "bert")
    file = config_file(corpus(300), encoder={"model": str(model)}, embed={"actors": 7})
    said = Quiet()
    result = tuning.tune(load([file], [])[0], said, seconds=60)
    embed = vars(result.embed)
    assert result.tokens_per_s == max(found.tokens_per_s for found in result.layouts)
    assert "tokenizer_workers" not in embed, "it was not tried"
    assert embed["gpus_per_actor"] == 0
    rates = {r.batch_tokens: r.tokens_per_s for r in result.one_replica if "float32" in r.path}
    assert set(rates) == {1_024, 2_048, 4_096, 8_192}
    overlay = tmp_path / "tuned.yaml"
    overlay.write_text(result.overlay)
    tuned = load([file, str(overlay)], [])[0]
    assert tuned.embed.model_dump(include=set(embed)) == embed
    assert tuned.encoder.model == str(model)


def test_without_time_it_still_measures_one_of_each(corpus, config_file, tmp_path):
    model = tiny_models.model_of(tmp_path / "m", "bert")
    file = config_file(corpus(300), encoder={"model": str(model)}, embed={"dtype": "float32"})
    said = Quiet()
    result = tuning.tune(load([file], [])[0], said, seconds=0.1)
    assert len(result.one_replica) == len(result.layouts) == 1
    assert any("no time left to try 2,048 tokens" in words for words in said.said())


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


@pytest.mark.parametrize("seconds", [1.0, pytest.param(12.0, marks=pytest.mark.deep)])
def test_it_keeps_to_its_seconds_and_writes_only_what_it_tried(
    corpus, config_file, tmp_path, seconds
):
    model = tiny_models.model_of(tmp_path / "m", "bert")
    file = config_file(corpus(300), encoder={"model": str(model)})
    measured: list[float] = []

    def emit(event: Event) -> None:
        if isinstance(event, Notice) and "tokens a batch: " in event.what:
            measured.append(cpu_seconds() - started)

    started = cpu_seconds()
    result = tuning.tune(load([file], [])[0], emit, seconds=seconds)
    # The model is loaded and measured once, however long that takes.
    most = max(seconds * os.cpu_count(), measured[0]) + 4.0 * os.cpu_count()
    assert cpu_seconds() - started < most
    embed = vars(result.embed)
    assert set(embed) == {"dtype", "batch_tokens", "actors", "cpus_per_actor", "gpus_per_actor"}
    one = result.one_replica
    assert embed["batch_tokens"] in {
        t.batch_tokens for t in one if embed["dtype"] == "auto" or embed["dtype"] in t.path
    }
    assert (embed["actors"], embed["cpus_per_actor"]) in {
        (found.actors, found.threads) for found in result.layouts
    }


def test_replicas_that_are_not_done_when_time_is_up_are_ended(make_config, corpus):
    config = make_config(corpus(60))
    tokens, _ = tuning._sample(config)
    before = set(multiprocessing.active_children())
    hour, until = 3600, time.monotonic() + 0.5  # replicas that are not ended outlast the test
    assert (
        measure.together(config.encoder, Setting("auto", 1_024, 1), 2, tokens, hour, until) is None
    )
    assert set(multiprocessing.active_children()) <= before


def test_a_number_type_that_the_model_does_not_keep_is_not_written(
    corpus, make_config, tmp_path, monkeypatch
):
    """The encoder went back to float32, by which nothing in bfloat16 was tried."""
    config = make_config(
        corpus(60), encoder={"model": str(tiny_models.model_of(tmp_path / "m", "bert"))}
    )
    tokens, _ = tuning._sample(config)
    monkeypatch.setattr(measure, "dtypes", lambda *_: ["float32", "bfloat16"])
    load_it = Setting.load
    monkeypatch.setattr(
        Setting, "load", lambda self, config: load_it(replace(self, dtype="float32"), config)
    )
    rates = iter([100.0] * 4 + [1_000.0] * 4)
    monkeypatch.setattr(measure, "rate", lambda *_: next(rates))
    tried: list[tuning.Tried] = []
    trials = tuning._Trials(config, tokens, lambda words: None, 0, 1, inf, inf)
    assert tuning._of_one(trials, tried)[1].dtype == "float32"


def test_on_several_gpus_replicas_are_spread_and_all_of_them_measured(monkeypatch):
    assert tuning._splits(4, 64) == [(4, 1), (8, 1), (12, 1)]
    monkeypatch.setattr(measure, "gpus", lambda: 2)
    devices: list[str] = []

    class Process:
        exitcode, sentinel = 0, 0

        def __init__(self, target, args, daemon):
            devices.append(args[1].device)

        def start(self):
            pass

        def join(self):
            pass

    context = SimpleNamespace(
        Process=Process,
        Barrier=lambda n: None,
        SimpleQueue=lambda: SimpleNamespace(get=lambda: 5.0),
    )
    monkeypatch.setattr(measure.multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(measure, "wait", lambda left, timeout: list(left))
    rate = measure.together(None, Setting("auto", 1, 1), 4, None, 1.0, LATE)
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert rate == 20.0


def test_a_number_type_that_was_asked_for_is_kept(corpus, make_config, tmp_path):
    config = make_config(
        corpus(60),
        encoder={"model": str(tiny_models.model_of(tmp_path / "m", "bert"))},
        embed={"dtype": "float32"},
    )
    assert measure.dtypes(config.encoder, config.embed.dtype) == ["float32"]


def test_a_batch_that_does_not_fit_ends_the_search(corpus, make_config, tmp_path, monkeypatch):
    config = make_config(
        corpus(400),
        encoder={"model": str(tiny_models.model_of(tmp_path / "m", "bert"))},
        embed={"dtype": "float32"},
    )
    plain = SentenceEncoder._forward

    def forward(self, features):
        if features["input_ids"].numel() > 2_500:
            raise torch.OutOfMemoryError("too much")
        return plain(self, features)

    monkeypatch.setattr(SentenceEncoder, "_forward", forward)
    tokens, _ = tuning._sample(config)
    tried: list[tuning.Tried] = []
    trials = tuning._Trials(config, tokens, lambda words: None, 0, 1, inf, inf)
    _, setting = tuning._of_one(trials, tried)
    assert [found.batch_tokens for found in tried] == [1_024, 2_048]
    assert setting.batch_tokens <= 2_048


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1)]),
        (6, [(1, 6), (1, 4), (3, 2), (6, 1)]),
        (8, [(1, 8), (2, 4), (4, 2), (8, 1)]),
        (64, [(4, 16), (8, 8), (16, 4), (32, 2)]),
    ],
)
def test_layouts_use_the_whole_machine(cores, expected):
    assert tuning._splits(0, cores) == expected


def test_replicas_are_measured_side_by_side(make_config, corpus):
    config = make_config(corpus(60))
    tokens, _ = tuning._sample(config)
    alone = measure.together(config.encoder, Setting("auto", 1_024, 1), 1, tokens, 0.3, LATE)
    both = measure.together(config.encoder, Setting("auto", 1_024, 1), 2, tokens, 0.3, LATE)
    assert alone > 0
    assert both > 0


def test_the_sample_is_from_all_over_the_source(make_config, corpus):
    config = make_config(corpus(3_000))
    tokens, per_core = tuning._sample(config)
    assert 256 * 8 <= len(tokens) <= 3_000
    assert isinstance(tokens, Tokens)
    assert per_core > 0


@pytest.mark.parametrize("actors", [1, 3])
def test_units_are_largest_first_and_the_last_of_several_actors_are_quarters(
    make_config, corpus, actors
):
    source = Source.open(make_config(corpus(3_000)))
    units = source.units(120, actors)
    assert sum(unit.rows for unit in units) == 3_000
    assert len({unit.id for unit in units}) == len(units)
    covered = np.concatenate([np.arange(u.rows) + u.offset + u.fragments[0] * 10**6 for u in units])
    assert len(np.unique(covered)) == 3_000
    whole = units if actors == 1 else [u for u in units if u.rows > 30]
    assert [u.rows for u in whole] == sorted((u.rows for u in whole), reverse=True)
    assert (units[-1].rows <= 30) == (actors == 3)


def test_the_overlay_is_shown_as_lines_and_the_next_command_can_be_pasted(
    corpus, config_file, tmp_path
):
    file, out = config_file(corpus(60)), tmp_path / "tuned.yaml"
    said = CliRunner().invoke(cli, ["tune", "-c", file, "--out", str(out), "--seconds", "1"])
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert "embed:" in lines
    assert any(line.startswith("  batch_tokens: ") for line in lines)
    assert lines[-1] == f"Next: reembed run -c {file} -c {out}"
    assert load([file, str(out)], [])


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(
    corpus, config_file, tmp_path
):
    file, out = config_file(corpus(60)), tmp_path / "none" / "tuned.yaml"
    said = CliRunner().invoke(cli, ["tune", "-c", file, "--out", str(out)])
    assert said.exit_code == 2
    assert "nothing was measured" in said.output
    assert f"mkdir -p {out.parent}" in said.output


def test_the_first_batch_of_a_shape_which_makes_kernels_is_not_taken_for_the_rate():
    class MakesKernels:
        def __init__(self):
            self.shapes = set()

        def embed(self, tokens):
            time.sleep(0.001 if len(tokens) in self.shapes else 0.3)
            self.shapes.add(len(tokens))

    tokens = Tokens(np.zeros(1_000, np.int32), np.arange(0, 1_001, 10))
    assert measure.rate(MakesKernels(), tokens, 0.05) > 100_000


def test_tune_without_a_file_named_goes_on_with_the_default_one(
    corpus, config_file, tmp_path, monkeypatch
):
    config_file(corpus(60))
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(cli, ["tune", "--out", "my tuned.yaml", "--seconds", "1"])
    assert said.exit_code == 0, said.output
    last = said.stdout.splitlines()[-1]
    assert last == "Next: reembed run -c reembed.yaml -c 'my tuned.yaml'"
    again = CliRunner().invoke(cli, ["tune", "--out", "my tuned.yaml", "--seconds", "1"])
    assert again.exit_code == 0, again.output


def test_a_file_that_is_no_overlay_is_not_overwritten(corpus, config_file):
    file = Path(config_file(corpus(60)))
    before = file.read_text()
    said = CliRunner().invoke(cli, ["tune", "-c", str(file), "--out", str(file)])
    assert said.exit_code == 2
    assert "nothing was measured" in said.output
    assert "tokens on average" not in said.output
    assert file.read_text() == before


class DiesOnce(Setting):
    """The first process that loads it is killed."""

    def load(self, config):
        marker = Path(os.environ["REEMBED_TEST_MARKER"])
        with contextlib.suppress(FileExistsError):
            marker.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(config)


def test_a_replica_that_dies_does_not_let_the_others_wait(
    make_config, corpus, tmp_path, monkeypatch
):
    monkeypatch.setenv("REEMBED_TEST_MARKER", str(tmp_path / "died"))
    config = make_config(corpus(60))
    tokens, _ = tuning._sample(config)
    with pytest.raises(measure.DoesNotFit, match="2 replica"):
        measure.together(config.encoder, DiesOnce("auto", 1_024, 1), 2, tokens, 0.3, LATE)
