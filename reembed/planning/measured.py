"""Measured constants that sizes, hours and requests are computed from, each with the record it comes from.

Bytes, CPU seconds of one core (AMD EPYC, Zen 3), and counts. tests/planning/test_sizing.py compares them with
the records in bench/results.
"""

from __future__ import annotations

MIB = 2**20

ID_BYTES = 32
"""A row id and a document id of about 16 characters (search.json: ids_mib)."""

LISTS_RATIO = 1.6
"""Memory of growing lists over their bytes (index_shards.json: IVF-Flat in peak_ratios); other codes are reserved."""
TRAIN_RATIO = 1.3
"""Memory of the task that trains, over its sample and its centroids (index_shards.json: trained), beside TASK_BYTES."""
TASK_BYTES = 640 * MIB
"""Of a task that trains or builds in Lance: Python, Lance's buffers, a batch of vectors (index_shards.json)."""
FILL_TASK_BYTES = 256 * MIB
"""Of a task that fills a shard: the same, and what it found for the queries; it keeps no freed buffers
(index_shards.json: peak_ratios)."""
LANCE_RATIOS = {"PQ": 5.0, "RQ": 2.0, "FLAT": 0.4}
"""Memory of building a segment of Lance's index over its codes, beside TASK_BYTES (index_shards.json: lance)."""
LANCE_TRAIN_RATIO = 3.3
"""Memory of training the lists of Lance's index over its sample, beside TASK_BYTES (docs/decisions/026)."""
LANCE_MODEL_RATIO = 2.1
"""Memory of its centroids and codebook while a segment is built, over their bytes (docs/decisions/026)."""
LANCE_CACHE_BYTES = 6 * 2**30
"""What Lance keeps of an index that it searches: its own default."""

VERIFY_TASK_BYTES = 640 * MIB
"""A task of a verification (442 MiB over its start with one segment of 3 M rows, 198 in growth.json, whose segments
have 100,000; less than 512 by its cut)."""
SERVE_BYTES = 150 * MIB
"""Libraries of a process that serves, beside its model (docs/decisions/027)."""
DRIVER_BYTES = 330 * MIB
"""The driver (pipeline.json: driver_peak_mib)."""
DRIVER_BYTES_PER_DOCUMENT = 44
"""Of its check of ids (growth.json: check_documents between 1 M and 3 M)."""
DOCUMENTS_ON_DRIVER = 1_000_000
"""Ids of more documents are checked by partition (strategies/unique_ids.py)."""
DRIVER_BYTES_PER_UNIT = 11_000
"""million.json: units_driver_peak_mib with 100,000 units."""

BERT_BASE_TOKENS_PER_GPU_S = 1_979_359
"""Embedding stage on one H200, model of BERT-base's shape, 768 dimensions (gpu_encode.json)."""
GPUS_BUSY = 0.98
"""Share of the time in which 64 models work (scaling.json, simulated GPUs)."""
TOKENIZED_PER_CPU_S = 240_000
"""Tokens; `reembed tune` on one core."""
DRIVER_S_PER_UNIT = 0.014
"""docs/decisions/023."""

TRAIN_FLOPS_PER_CPU_S = 60e9
"""k-means, float32 (index_shards.json: trained)."""
LANCE_TRAIN_S_PER_BYTE = 44e-9
"""CPU seconds of training Lance's lists, which it finds in levels, by bytes of the sample (docs/decisions/026)."""
KMEANS_ITERATIONS = 10
"""FAISS's default for lists."""
FILL_S_PER_BYTE = 53e-9
"""CPU seconds of filling by bytes of float32 (index_shards.json: fill_us_per_vector_768); Lance's is less by a tenth
(docs/decisions/026)."""
VERIFY_S_PER_DOCUMENT = 3.9e-6
"""growth.json: verify with 3 M rows of 64 dimensions."""
SHA256_S_PER_BYTE = 0.49e-9
"""index_shards.json: sha256_ns_per_byte."""

REQUESTS_PER_UNIT = (13.5, 5.0)
"""Reads; writes and lists. Counted with moto, before receipts were stored by the hundred (docs/decisions/023)."""
READS_PER_ROW_VERIFIED = 0.008
"""Ranges (docs/decisions/024)."""
WRITES_PER_ROW_VERIFIED = 4e-6
"""docs/decisions/024."""
UPLOAD_PART_BYTES = 5 * MIB
"""Of an index file (index/files.py)."""
READ_BYTES = 4 * MIB
"""ASSUMED, not measured: bytes of a range that a scan of the table reads."""
NODE_BYTES_PER_S = 1.2e9
"""ASSUMED, not measured: what a node reads from the object store (10 Gbit/s)."""
