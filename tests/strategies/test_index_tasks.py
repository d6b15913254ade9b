"""What cannot fit any node is refused before anything is embedded, with settings that do fit."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from typing import Any

import lance
import pytest
from conftest import Quiet
from inline import Inline, Silent

from reembed.catalog.runs import find_runs
from reembed.config.settings import Config
from reembed.engine.executor import ONE_CPU, Needs
from reembed.errors import ReembedError, UsageError
from reembed.events import Listener
from reembed.index.target import TargetMissed
from reembed.planning.sizing import size_of
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.strategies.index_tasks import IndexTasks, Vectors, factory_for, needs_to_grow

GIB = 2**30


class Node(Inline):
    """An executor whose largest node offers so many bytes."""

    def __init__(self, memory: int, gpu_memory: int = 0) -> None:
        self.memory, self.gpu_memory = memory, gpu_memory

    def largest_node_bytes(self, gpus: float = 0) -> int:
        return self.gpu_memory if gpus else self.memory

    def has_gpu(self) -> bool:
        return self.gpu_memory > 0


def config(index: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "alias": "a",
            "source": {"uri": "s", "id_column": "id", "text": "text"},
            "encoder": {"model": "hashing:64"},
            "storage": {"root": "r"},
            "index": index,
        }
    )


def require_index_fits(settings: Config, rows: int, dim: int, node: Node, emit: Listener) -> None:
    """As a run asks."""
    factory = factory_for(settings.index, rows, dim)
    IndexTasks.of(settings, factory, Vectors(rows, dim), node).require_nodes(node, emit)


def tasks_of(index: dict[str, Any], node: Node) -> IndexTasks:
    """Those of 10 million vectors of 768 dimensions."""
    settings = config(index)
    factory = factory_for(settings.index, 10**7, 768)
    return IndexTasks.of(settings, factory, Vectors(10**7, 768), node)


@pytest.mark.parametrize(
    ("index", "memory"),
    [
        ({}, 8 * GIB),  # both training and filling are too large
        ({"factory": "IVF4096,Flat"}, 8 * GIB),
        ({"factory": "IVF4096,PQ384x4fs,RFlat", "shard_rows": 10**9}, 20 * GIB),
        ({"factory": "HNSW32"}, 8 * GIB),
        ({"factory": "Flat"}, GIB),
        ({"kind": "lance"}, 6 * GIB),  # training
        ({"kind": "lance", "factory": "IVF1024_FLAT"}, 2 * GIB),  # a segment
        ({"kind": "lance", "factory": "IVF65536_RQ"}, 8 * GIB),  # training
    ],
)
def test_each_choice_that_a_refusal_names_fits(index: dict[str, Any], memory: int) -> None:
    rows, dim, node = 10**8, 768, Node(memory)
    settings = config(index)
    with pytest.raises(UsageError) as refused:
        require_index_fits(settings, rows, dim, node, Silent())
    assert "fits no node" in refused.value.what
    assert refused.value.fix is not None
    words = shlex.split(refused.value.fix.replace("#", " "))
    told = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
    assert told
    factory_of_lance = any(re.match(r"index\.factory=IVF\d+_", setting) for setting in told)
    assert ("index.kind=lance" in told) == factory_of_lance
    for setting in (s.rstrip(",") for s in told if s != "index.kind=lance"):
        name, value = setting.removeprefix("index.").split("=", 1)
        other = config(index | {name: value if name == "factory" else int(value)})
        require_index_fits(other, rows, dim, node, Silent())


def test_a_node_without_any_room_is_named_by_what_it_needs() -> None:
    node = Node(100 * 2**20)
    with pytest.raises(UsageError) as refused:
        require_index_fits(config({}), 10**6, 64, node, Silent())
    assert refused.value.fix is not None
    assert re.fullmatch(
        r"reembed run --set ray\.address=ADDRESS     # of a cluster with a machine of 1\.0 GiB,"
        r" which offers 7\d\d\.\d MiB \(docs/cluster\.md\)",
        refused.value.fix,
    )


@pytest.mark.parametrize(
    ("factory", "step"), [("Flat", "preparing it"), ("HNSW32", "preparing it"), ("SQ8", "training")]
)
def test_only_an_index_that_is_trained_is_said_to_be(factory: str, step: str) -> None:
    with pytest.raises(UsageError, match=f"fits no node: {step} takes"):
        require_index_fits(config({"factory": factory}), 1000, 64, Node(2**20), Silent())


def test_a_run_is_refused_before_it_embeds(
    corpus: Callable[..., str], make_config: Callable[..., Config], quiet: Quiet
) -> None:
    settings = make_config(corpus(40))
    with pytest.raises(UsageError, match="fits no node"):
        full_rebuild(settings, quiet, executor=Node(2**20))
    (run,) = find_runs(Storage.open(settings.storage.root))
    assert not run.staged()
    full_rebuild(settings, quiet, executor=Node(GIB))


@pytest.mark.parametrize(
    "index", [{"factory": "IVF65536,Flat"}, {"kind": "lance", "factory": "IVF64_FLAT"}]
)
def test_lists_that_cannot_be_trained_on_so_few_documents_are_refused_before_it_starts_ray(
    index: dict[str, Any],
    corpus: Callable[..., str],
    make_config: Callable[..., Config],
    quiet: Quiet,
) -> None:
    settings = make_config(source := corpus(40), index=index)
    with pytest.raises(UsageError, match="does not fit"):
        full_rebuild(settings, quiet, executor=NotStarted())
    (run,) = find_runs(Storage.open(settings.storage.root))
    assert not run.staged()
    full_rebuild(make_config(source), quiet, executor=Inline())


class NotStarted(Inline):
    def connected(self, config: Config) -> Any:
        raise AssertionError("Ray was started")


class Asked(Node):
    """Notes the memory that each task asks for."""

    def __init__(self, memory: int) -> None:
        super().__init__(memory)
        self.asked: dict[str, int] = {}

    def call(self, function: Any, *args: Any, needs: Needs = ONE_CPU) -> Any:
        self.asked[function.__name__] = needs.memory
        return super().call(function, *args, needs=needs)

    def each(self, function: Any, items: Any, needs: Needs = ONE_CPU) -> Any:
        self.asked[function.__name__] = needs.memory
        return super().each(function, items, needs)


def test_every_task_of_an_index_in_lance_asks_for_its_memory(
    corpus: Callable[..., str], make_config: Callable[..., Config], quiet: Quiet
) -> None:
    source = corpus(400)
    settings = make_config(source, index={"kind": "lance", "factory": "IVF4_FLAT"})
    with pytest.raises(UsageError, match="fits no node"):
        full_rebuild(settings, quiet, executor=Node(2**20))
    (run,) = find_runs(Storage.open(settings.storage.root))
    assert not run.staged()
    node = Asked(4 * GIB)
    release = full_rebuild(settings, quiet, executor=node)
    lance.dataset(source).update({"text": "'another'"}, where="doc_id = 'd00007'")
    catch_up(settings, release, quiet, executor=node)
    size = size_of("IVF4_FLAT", 400, 64, 400)
    assert size is not None
    asked = {name: node.asked[name] for name in ("_prepare_task", "_segment_task", "_finish_task")}
    assert list(asked.values()) == [size.train, size.fill, size.serve]
    assert size.fill * 0.9 < node.asked["_grow_task"] < size.fill


def test_a_large_index_is_told_with_its_largest_task_and_a_small_one_is_not(quiet: Quiet) -> None:
    node = Node(64 * GIB)
    require_index_fits(config({}), 10**7, 768, node, quiet)
    require_index_fits(config({}), 1_000, 768, node, quiet)
    size = size_of("IVF65536,PQ384x4fs,Refine(SQ8)", 10**7, 768, 4 * 10**6)
    assert size is not None
    (said,) = quiet.said()
    assert f"index: {size.bytes / GIB:.1f} GiB in 3 files" in said
    assert f"needs {size.largest_task / GIB:.1f} GiB, a node offers 64.0 GiB" in said


def test_without_a_node_nothing_is_refused_and_the_output_says_so(quiet: Quiet) -> None:
    require_index_fits(config({}), 10**9, 768, Node(0), quiet)
    assert "was not checked" in "\n".join(quiet.said())


def test_a_kind_of_unknown_size_is_told_and_asks_for_no_memory(quiet: Quiet) -> None:
    tasks = tasks_of({"factory": "IVF64,RaBitQfs"}, Node(1))
    tasks.require_nodes(Node(1), quiet)
    assert (tasks.train.memory, tasks.fill.memory) == (0, 0)
    assert "is not known" in "\n".join(quiet.said())


@pytest.mark.parametrize(
    ("index", "gpu_memory", "gpus"),
    [
        ({}, 0, (0, 0)),
        ({}, 22 * GIB, (1, 0)),  # fast-scan codes are filled on CPUs
        ({}, 4 * GIB, (0, 0)),  # the sample does not fit the GPU's node
        ({"factory": "IVF65536,SQ8"}, 22 * GIB, (1, 1)),
        ({"factory": "IVF65536,SQ8", "device": "cpu"}, 22 * GIB, (0, 0)),
        ({"device": "gpu"}, 4 * GIB, (1, 1)),
        ({"kind": "lance", "factory": "IVF1024_PQ"}, 22 * GIB, (0, 0)),
    ],
)
def test_gpus_are_asked_for_where_they_are_of_use(
    index: dict[str, Any], gpu_memory: int, gpus: tuple[int, int]
) -> None:
    tasks = tasks_of(index, Node(64 * GIB, gpu_memory))
    assert (tasks.train.gpus, tasks.fill.gpus) == gpus


def test_lists_that_do_not_fit_the_node_with_a_gpu_are_trained_on_cpus_and_the_output_says_so(
    quiet: Quiet,
) -> None:
    for memory in (22 * GIB, 4 * GIB):
        node = Node(64 * GIB, memory)
        tasks_of({}, node).require_nodes(node, quiet)
    (said,) = [line for line in quiet.said() if "trained on CPUs" in line]
    assert "that takes 16.7 GiB, and the largest node with a GPU offers 4.0 GiB" in said


@pytest.mark.parametrize(
    ("index", "gpu_memory", "why"),
    [
        ({}, 0, "no GPU"),
        ({}, 22 * GIB, "FAISS finds no GPU"),  # the package for CPUs
        ({"kind": "lance"}, 22 * GIB, "lance cannot use"),
    ],
)
def test_a_gpu_that_cannot_be_had_is_refused_before_anything_is_embedded(
    index: dict[str, Any],
    gpu_memory: int,
    why: str,
    corpus: Callable[..., str],
    make_config: Callable[..., Config],
    quiet: Quiet,
) -> None:
    settings = make_config(corpus(40), index={**index, "device": "gpu"})
    with pytest.raises(ReembedError, match=why) as refused:
        full_rebuild(settings, quiet, executor=Node(4 * GIB, gpu_memory))
    assert refused.value.fix == "reembed run --set index.device=auto"
    (run,) = find_runs(Storage.open(settings.storage.root))
    assert not run.staged()


def test_a_gpu_that_comes_up_for_the_models_is_waited_for(quiet: Quiet) -> None:
    node = Node(64 * GIB, 0)
    tasks = dataclasses.replace(tasks_of({"device": "gpu"}, node), awaits_gpu=True)
    tasks.require_nodes(node, quiet)
    assert any("no node with a GPU is up, so" in line for line in quiet.said())


class Counted(Node):
    """Counts how often an index was filled."""

    def __init__(self, memory: int) -> None:
        super().__init__(memory)
        self.filled = 0

    def each(self, function: Any, items: Any, needs: Needs = ONE_CPU) -> Any:
        self.filled += function.__name__ in ("_shard_task", "_segment_task")
        return super().each(function, items, needs)


@pytest.mark.parametrize(
    ("missed", "other"),
    [
        ({"factory": "IVF2,PQ1"}, {"factory": "Flat"}),
        ({"kind": "lance", "factory": "IVF2_PQ1"}, {"kind": "lance", "factory": "IVF_FLAT"}),
    ],
)
def test_another_index_of_vectors_that_are_all_staged_is_refused_too_where_it_fits_no_node(
    missed: dict[str, Any],
    other: dict[str, Any],
    corpus: Callable[..., str],
    make_config: Callable[..., Config],
    quiet: Quiet,
) -> None:
    source = corpus(2_000)  # more than are re-ranked
    settings = make_config(source, index={**missed, "ann_recall": 1.0})
    with pytest.raises(TargetMissed):
        full_rebuild(settings, quiet, executor=Node(4 * GIB))
    node = Counted(2**20)
    with pytest.raises(UsageError, match="fits no node"):
        full_rebuild(make_config(source, index=other), quiet, executor=node)
    assert not node.filled


class Unlike(Inline):
    """One node has the CPUs and another one the memory."""

    def largest_node_cpus(self, gpus: float = 0, memory: int = 0) -> int:
        return 8 if memory > 4 * GIB else 64


def test_cpus_and_memory_are_asked_of_the_same_node() -> None:
    wide = config({"factory": "IVF65536,PQ384x4fs,Refine(SQ8)"})
    wide = wide.model_copy(
        update={"embed": wide.embed.model_copy(update={"actors": 64, "cpus_per_actor": 1})}
    )
    tasks = IndexTasks.of(wide, wide.index.factory, Vectors(10**7, 768), Unlike())
    assert tasks.fill.memory > 4 * GIB
    assert (tasks.train.cpus, tasks.fill.cpus) == (8, 8)


def test_a_task_that_grows_an_index_asks_for_its_largest_delta_and_the_positions() -> None:
    factory, table = "IVF65536,PQ384x4fs,Refine(SQ8)", Vectors(10**9, 768)
    settings = config({"factory": factory})
    shard = size_of(factory, 4 * 10**6, 768, 4 * 10**6)
    assert shard is not None
    asked = needs_to_grow(settings, factory, table, Node(64 * GIB))
    assert asked.memory == shard.fill + 9 * 4 * 10**6
    assert needs_to_grow(settings, factory, table, Node(4 * GIB)).memory == 4 * GIB
    small = needs_to_grow(settings, factory, Vectors(10**6, 768), Node(64 * GIB))
    assert small.memory < shard.fill


def test_a_catch_up_is_not_offered_settings_that_only_a_rebuild_can_change() -> None:
    with pytest.raises(UsageError) as refused:
        tasks_of({}, Node(GIB)).require_nodes(Node(GIB), Silent(), resume="reembed catch-up r")
    assert refused.value.fix is not None
    assert refused.value.fix.startswith("reembed catch-up r --set ray.address=ADDRESS     # ")
    assert "index." not in refused.value.fix
