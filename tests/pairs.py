"""A live release and a candidate beside it, and the queries that judge them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import yaml
from click.testing import CliRunner
from conftest import documents
from inline import Inline, Silent

from reembed import api as check
from reembed.catalog.releases import Catalog, Release
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import Config
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.terms import Asked
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild

PLANNED = Asked()
DOCUMENTS, QUERIES = 240, 52


def options(asked: Asked) -> dict[str, Any]:
    """As `api.compare` takes them."""
    return {name: value for name, value in vars(asked).items() if name != "looked"}


@dataclass(frozen=True)
class Pair:
    """A live release and a candidate beside it, of 256 and of 16 dimensions."""

    folder: Path
    """Of the source and the judged queries."""
    root: str
    judged: str | None

    @property
    def source(self) -> str:
        return str(self.folder / "source.lance")

    @property
    def catalog(self) -> Catalog:
        return Catalog(Storage.open(self.root), "passages")

    @property
    def live(self) -> Release:
        return self.catalog.releases()[0]

    @property
    def candidate(self) -> Release:
        return self.catalog.releases()[1]

    def sections(self, dim: int = 16, **gate: Any) -> dict[str, Any]:
        return {
            "alias": "passages",
            "source": {"uri": self.source},
            "encoder": {"model": f"hashing:{dim}"},
            "storage": {"root": self.root},
            # No test depends on how busy the machine is.
            "gate": {"queries": self.judged, "ann_recall": 0.5, "latency_ratio": 1_000, **gate},
        }

    def config(self, dim: int = 16, **gate: Any) -> Config:
        return Config.model_validate(self.sections(dim, **gate))

    def build(self, dim: int, *, fresh: bool = False, **gate: Any) -> Release:
        return full_rebuild(self.config(dim, **gate), Silent(), fresh=fresh, executor=Inline())

    def compare(self, asked: Asked = PLANNED, which: str | None = None, **gate: Any) -> Comparison:
        config = self.config(**gate)
        return check.compare(config, which or self.candidate.id, **options(asked), emit=Silent())

    def said(self, *arguments: str, code: int = 0) -> str:
        """What a verb prints for people."""
        file = self.folder / "reembed" / "reembed.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(self.sections()))
        result = CliRunner().invoke(reembed_cli, [*arguments, "-c", str(file)])
        assert result.exit_code == code, result.output
        return result.stdout

    def kept(self) -> list[str]:
        paths = [p for p, _ in self.catalog.storage.objects("comparisons/")]
        return [p for p in paths if p.endswith(".json")]

    def judge(self, queries: int) -> str:
        """A BEIR folder: the titles of so many documents, each relevant to its own title alone."""
        folder = self.folder / f"judged-{queries}"
        (folder / "qrels").mkdir(parents=True)
        rows = documents(DOCUMENTS, 0)[:queries]
        lines = [json.dumps({"_id": f"q-{r['doc_id']}", "text": r["title"]}) for r in rows]
        (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
        qrels = ["query-id\tcorpus-id\tscore"]
        qrels += [f"q-{r['doc_id']}\t{r['doc_id']}\t1" for r in rows]
        (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n")
        return str(folder)


def built(folder: Path, *, judged: bool) -> Pair:
    pair = Pair(folder, str(folder / "root"), None)
    table = pa.Table.from_pylist(documents(DOCUMENTS, 0))
    lance.write_dataset(table, pair.source, enable_stable_row_ids=True, max_rows_per_file=100)
    pair = dataclasses.replace(pair, judged=pair.judge(QUERIES) if judged else None)
    pair.catalog.append(None, "promote", pair.build(256))
    pair.build(16)
    return pair


def lent(pair: Pair, tmp_path: Path) -> Iterator[Pair]:
    """The pair with a root of its own; its source and its judged queries are put back after."""
    names = [p.name for p in pair.folder.iterdir() if p.name != "root"]
    for name in (*names, "root"):
        shutil.copytree(pair.folder / name, tmp_path / name)
    yield dataclasses.replace(pair, root=str(tmp_path / "root"))
    for place in pair.folder.iterdir():
        if place.name != "root":
            shutil.rmtree(place)
    for name in names:
        shutil.copytree(tmp_path / name, pair.folder / name)
