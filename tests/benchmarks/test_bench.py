"""Every measurement is a script that explains itself, and every stored result says where it is from."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import bert_model

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(p for p in ROOT.glob("bench/*.py") if p.stem not in ("common", "__init__"))
RESULTS = sorted(ROOT.glob("bench/results/*.json"))
FIGURES = {
    "scifact": {"ndcg10_exact", "ndcg10_index", "docs", "queries"},
    "kill_resume": {
        "kills",
        "rows",
        "rows_equal",
        "units_embedded_twice",
        "units_in_flight_bound",
        "max_abs_difference",
        "vectors_bitwise_equal",
    },
    "chaos": {
        "histories",
        "crashes",
        "violations",
        "crash_points",
        "syscall_faults",
        "s3_faults",
        "ray_faults",
        "bit_flips",
        "bit_flips_found",
        "mutants",
        "mutants_caught",
        "promotion_rounds",
    },
    "lazy_chaos": {
        "histories",
        "steps",
        "crashes",
        "violations",
        "syscall_faults",
        "s3_faults",
        "mutants",
        "mutants_caught",
    },
    "mutants": {"mutants", "killed", "explained", "survived", "modules", "operators"},
    "encode": {"fp32_ratio", "fp32_cos_min", "bf16_ratio", "bf16_cos_min", "model"},
    "pipeline": {"ratio_bare", "ratio_example", "ratio_peer", "driver_peak_mib"},
    "replica": {"model_busy_s3", "one_thread_busy_s3", "latency_ms", "sleep_s"},
    "scaling": {"cpu", "sleeping", "unit_documents"},
    "gpu_encode": {
        "gpu",
        "minilm_tokens_per_s",
        "bert_base_tokens_per_s",
        "ratio_default",
        "ratio_tuned",
        "mfu",
        "ratio_compiled",
    },
    "memory": {"times", "grown", "small", "large"},
    "overhead": {
        "ratio",
        "ratio_min",
        "ratio_max",
        "docs",
        "bare_docs_per_s",
        "job_docs_per_s",
        "startup_s",
    },
    "stock_vs_reembed": {"rows_in", "stock_rows", "reembed_rows"},
    "million": {
        "rows",
        "kills",
        "driver_peak_mib",
        "seconds",
        "units",
        "units_plan_seconds",
        "units_seal_seconds",
        "units_driver_peak_mib",
    },
    "growth": {"sizes", "now"},
    "lazy_migration": {
        "documents",
        "queries",
        "kills",
        "kills_by_kind",
        "verify",
        "spaces",
        "answers_below_old",
        "twice",
        "lost",
        "stale",
        "ndcg",
        "ndcg_old",
    },
    "lazy_embed": {"queries", "ndcg_old", "ndcg_new", "budgets"},
    "lazy_growth": {"batches", "each", "many", "by_source"},
    "refresh": {"rows", "dim", "open_peak", "refresh_peak", "new_peak"},
    "index_shards": {
        "identical",
        "peak_ratio",
        "peak_ratios",
        "trained",
        "fill_us_per_vector_768",
        "sha256_ns_per_byte",
        "real",
    },
    "gate_errors": {
        "promotes_worse_2m",
        "promotes_worse_1m",
        "peeking_promotes_bad",
        "promotes_worse_grouped",
        "slice_block_05",
        "slice_false_block",
        "operation_false_fail",
        "operation_harm_fails",
        "power",
        "interleaving",
    },
    "verdicts": {"pairs", "wrong", "predicted_wrong", "table"},
    "search": {"1m_64", "200k_384", "ratio_p50", "ratio_batched", "k", "batch"},
    "lazy_latency": {
        "rows",
        "p50_added_ms",
        "p99_added_ms",
        "p99_ratio",
        "text",
        "vectors",
        "cold",
        "warm",
        "expected",
    },
    "lazy_quality": {
        "default_worst_delta",
        "zcommon_worst_delta",
        "rrf_worst_delta",
        "at_100_equals_new",
        "expected",
        "table",
    },
    "bridges": {"same_space_failed", "as they are", "procrustes", "ridge", "table"},
    "golden": {"planted", "refused", "false_refusals", "accepted", "corpus_only"},
    "readers": {"switches", "answers", "errors", "mixed", "p99_ratio", "rss_growth"},
    "serve": {
        "ratio_1",
        "ratio_64",
        "tuples_ratio_64",
        "filters",
        "filter_recall",
        "filter_recall_flat",
        "shadow_p50_ratio",
        "shadow_p99_ratio",
        "http",
    },
    "promote": {
        "promote_ms_p50",
        "promote_ms_max",
        "rollback_ms_p50",
        "s3_promote_ms_p50",
        "lost",
    },
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_explains_itself(script: Path) -> None:
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    assert "--out" in done.stdout


WITHOUT_RAY = {"gpu_encode"}


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_result_says_where_it_is_from(result: Path) -> None:
    record = json.loads(result.read_text())
    assert record["command"].startswith(f"python bench/{result.stem}.py")
    assert {"cpu", "cores", "memory_gib", "platform"} <= record["machine"].keys()
    assert {"python", "torch"} <= record["versions"].keys()
    assert {"ray", "pylance"} <= record["versions"].keys() or result.stem in WITHOUT_RAY
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["commit"])
    assert record.keys() >= FIGURES.get(result.stem, set())


def test_the_page_of_measurements_names_the_records_that_are_older() -> None:
    page = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"The records of 23 November 2026 are (.*?); the others", page, re.S)
    days = {result.stem: json.loads(result.read_text())["at"][:10] for result in RESULTS}
    assert re.findall(r"`(\w+)`", named) == [n for n, day in days.items() if day == "2026-11-23"]
    assert min(days.values()) == "2026-11-23"


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_result_has_a_script_and_no_path_of_a_machine(result: Path) -> None:
    text = result.read_text()
    assert (ROOT / "bench" / f"{result.stem}.py").exists()
    assert not re.search(r"/(work|tmp|home|root|Users)/", text)


def test_the_gpu_script_needs_torch_and_transformers_alone(tmp_path: Path) -> None:
    blocked = ("ray", "lance", "lancedb", "faiss", "pydantic", "obstore", "click")
    (tmp_path / "sitecustomize.py").write_text(f"""
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
""")
    out = tmp_path / "gpu.json"
    command = [sys.executable, "bench/gpu_encode.py", "--rounds", "1", "--lengths", "real"]
    env = os.environ | {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--out", out], cwd=ROOT, env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert record["gpu"] is None
    assert record["minilm_tokens_per_s"] is None
    assert record["models"]["small"]["path"] == "packed float32"


def test_units_are_planned_and_sealed_without_a_model(tmp_path: Path) -> None:
    out = tmp_path / "million.json"
    command = [sys.executable, "bench/million.py", "--units-only", "--units", "60", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert record["units"] == 60
    assert record["units_rows_exact"]


def test_a_whole_search_is_measured_against_its_index_and_reads_no_table(tmp_path: Path) -> None:
    out = tmp_path / "search.json"
    command = [
        sys.executable,
        "bench/search.py",
        "--limit",
        "400",
        "--queries",
        "8",
        "--rounds",
        "3",
    ]
    done = subprocess.run(
        [*command, "--out", out], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert record.keys() >= FIGURES["search"]
    for name in ("1m_64", "200k_384"):
        corpus = record[name]
        assert (corpus["rows"], corpus["table_reads"]) == (400, 0)
        assert 0 < corpus["ratio_p50"] <= record["ratio_p50"]
        assert 0 < corpus["ratio_batched"] <= record["ratio_batched"]


@pytest.fixture
def shown_command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import common

    def show(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["bench/x.py", *arguments])
        return common.command()

    return show


def test_command_names_inputs_without_their_folders(
    shown_command: Callable[..., str], tmp_path: Path
) -> None:
    shown: Any = shown_command(str(tmp_path), f"--workdir={tmp_path}", "--model", "package:a/b")
    name = tmp_path.name
    assert shown == f"python bench/x.py {name} --workdir={name} --model package:a/b"


def test_encode_runs_on_a_processor_without_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There oneDNN refuses products of it."""
    import torch

    from bench import encode
    from reembed.encoders.local import linears

    honest = torch.randn

    def refused(*size: Any, dtype: Any = None, **more: Any) -> Any:
        if dtype is torch.bfloat16:
            raise RuntimeError("bf16 path needs the cpu support avx512bw, avx512vl and avx512dq")
        return honest(*size, dtype=dtype, **more)

    monkeypatch.setattr(torch, "randn", refused)
    monkeypatch.setattr(linears, "has_bfloat16", lambda: False)
    monkeypatch.setattr(encode, "BATCH_SIZES", (8,))
    monkeypatch.setattr(encode, "_WIDTH", 128)
    monkeypatch.setattr(encode.importlib.util, "find_spec", lambda name: None)
    args = argparse.Namespace(
        model=str(bert_model(tmp_path / "bert")),
        limit=8,
        paragraphs=8,
        base_paragraphs=0,
        rounds=1,
        more=0,
        threads=1,
    )
    figures = encode.measure(args, tmp_path)
    assert figures.keys() >= FIGURES["encode"]
    assert figures["fp32_cos_min"] > 0.9999
    for name in ("bf16_ratio", "bf16_cos_min", "bf16_by_openvino", "bf16_ratio_at_peak"):
        assert figures[name] is None
    assert not [e for e in figures["model"]["engines"] if "bfloat16" in e["engine"]]
