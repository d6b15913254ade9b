"""How the job scales with its actors: CPU actors with a real model, and many with one that sleeps.

CPU actors share the cores of this machine: more of them than cores can only show what they cost. The
sleeping model takes a fixed time for a unit and no core, as a GPU does from the host's side: so
actors on pretended GPUs show what reading, moving, writing and the driver allow. Every one of them
gets the same number of units.

`efficiency` is documents/s against so many times those of the fewest actors, from the first unit to
the last: many processes that load one after the other on few cores are in it. `steady_busy` is the
share of the actors' time in which their models work, from when the last of them has its first unit
to when the last unit is started: start and tail apart. Then documents/s by the documents of a unit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "scaling"
_SLEEPING = """
import time
from reembed.encoders import hashing
plain = hashing.HashingEncoder.embed
def slow(self, tokens):
    if len(tokens) > 8:
        time.sleep({seconds})
    return plain(self, tokens)
hashing.HashingEncoder.embed = slow
"""


def main() -> None:
    args = _arguments()
    with common.workdir(args) as folder, common.Reembed() as reembed:
        cpu = [cpu_actors(args, folder, reembed, n) for n in map(int, args.cpu_actors.split(","))]
        with sleeping(args, folder, reembed):
            gpu = [
                fake_gpus(args, folder, reembed, n) for n in map(int, args.gpu_actors.split(","))
            ]
        units = [unit_size(args, folder, reembed, n) for n in map(int, args.unit_sizes.split(","))]
    for rows in (cpu, gpu):
        each = rows[0]["docs_per_s"] / rows[0]["actors"]
        for row in rows:
            row["efficiency"] = round(row["docs_per_s"] / (each * row["actors"]), 3)
            common.say(
                f"{row['actors']} actors: {row['docs_per_s']} docs/s, {row['efficiency']:.0%}"
            )
    figures = {"cpu": cpu, "sleeping": gpu, "unit_documents": units, "sleep_s": args.sleep_s}
    common.finish(NAME, args, figures)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--cpu-actors", default="1,2,4", help="[%(default)s]")
    parser.add_argument("--gpu-actors", default="4,16,64", help="[%(default)s]")
    parser.add_argument("--unit-sizes", default="64,256,1024,4096", help="[%(default)s]")
    parser.add_argument("--paragraphs", type=int, default=4_096, help="[%(default)s]")
    parser.add_argument("--sleep-s", type=float, default=8.0, help="of a unit [%(default)s]")
    parser.add_argument("--units-each", type=int, default=20, help="per actor [%(default)s]")
    return common.parse(parser)


class sleeping:
    """A Ray with pretended GPUs, whose workers' model sleeps."""

    def __init__(self, args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> None:
        self._folder = folder / "sleeping"
        self._folder.mkdir()
        text = _SLEEPING.format(seconds=args.sleep_s)
        (self._folder / "sitecustomize.py").write_text(text)
        self._gpus = max(map(int, args.gpu_actors.split(",")))
        self._reembed = reembed

    def __enter__(self) -> None:
        env = self._reembed.env
        self._before = dict(env)
        env["PYTHONPATH"] = f"{self._folder}{os.pathsep}{env.get('PYTHONPATH', '')}"
        cpus = str(self._gpus + 8)  # logical: an actor that waits for its GPU takes none
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head"]
        command += ["--num-gpus", str(self._gpus), "--num-cpus", cpus, "--disable-usage-stats"]
        command += ["--include-dashboard", "false", "--port", "0"]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        env["RAY_ADDRESS"] = "auto"  # the one of RAY_TMPDIR, which is our own

    def __exit__(self, *_: object) -> None:
        self._reembed.end()  # not `ray stop`, which ends every Ray of the machine
        self._reembed.env.clear()
        self._reembed.env.update(self._before)


def cpu_actors(
    args: argparse.Namespace, folder: Path, reembed: common.Reembed, actors: int
) -> common.Figures:
    """The model over real paragraphs."""
    file = folder / "paragraphs.jsonl"
    source = folder / "paragraphs.lance"
    if not file.exists():
        texts = common.paragraphs(args.paragraphs)
        rows = [{"_id": str(n), "text": text} for n, text in enumerate(texts)]
        reembed("import", str(common.write_jsonl(file, rows)), "--to", str(source))
    embed = {"actors": actors, "unit_documents": 256}
    return _job(args, folder, reembed, f"cpu-{actors}", source, embed)


def fake_gpus(
    args: argparse.Namespace, folder: Path, reembed: common.Reembed, actors: int
) -> common.Figures:
    """The sleeping model: every actor gets the same number of units."""
    unit = 256
    source = common.random_documents(
        folder / f"gpu-{actors}.lance", actors * args.units_each * unit, 60
    )
    args.model = "hashing:64"
    embed = {"actors": actors, "gpus_per_actor": 1, "unit_documents": unit}
    return _job(args, folder, reembed, f"gpu-{actors}", source, embed)


def unit_size(
    args: argparse.Namespace, folder: Path, reembed: common.Reembed, documents: int
) -> common.Figures:
    """The same documents in units of so many: what is left of the rate where units are small."""
    source = folder / "units.lance"
    if not source.exists():
        common.random_documents(source, 32_768, 60)
    args.model = "hashing:64"
    embed = {"unit_documents": documents}
    return _job(args, folder, reembed, f"unit-{documents}", source, embed)


def _job(
    args: argparse.Namespace,
    folder: Path,
    reembed: common.Reembed,
    name: str,
    source: Path,
    embed: common.Figures,
) -> common.Figures:
    more = {"source": {"text": "text"}, "ray": {"allow_unauthenticated": True}}
    config = common.write_config(folder, name, source, args, embed=embed, **more)
    others = common.busy_cores()
    common.say(f"{name}, beside others that use {others} cores")
    driver = reembed.start("run", "-c", str(config), "--json", stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(driver.pid, 0)
    if status:
        raise SystemExit(f"reembed run exited with {os.waitstatus_to_exitcode(status)}")
    embedded = common.embedded(folder / name)
    return {
        "actors": embed.get("actors", 1),
        "unit_documents": embed["unit_documents"],
        "documents": embedded["done"],
        "docs_per_s": embedded["docs_per_s"],
        "busy": embedded["busy"],
        "steady_busy": _steady(folder / name, embed.get("actors", 1)),
        "waits_for_input": embedded["waits_for_input"],
        "startup_s": embedded["startup_s"],
        "driver_cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "others_cores": others,
    }


def _steady(root: Path, actors: int) -> float | None:
    """Share of the actors' time in which a model works while all are there and units are left.

    None: the last actor came after the last unit was started.
    """
    units = [json.loads(f.read_text())["stats"] for f in root.glob("runs/*/units/*.json")]
    spans = sorted((u["started_at"], u["started_at"] + u["embed_s"], u["model_s"]) for u in units)
    until = spans[-1][0]
    at_work = [(at, sum(start <= at < end for start, end, _ in spans)) for at, _, _ in spans]
    since = next((at for at, count in at_work if count >= actors), until)
    if until <= since:
        return None
    worked = sum(max(0.0, min(end, until) - max(end - model_s, since)) for _, end, model_s in spans)
    return float(round(worked / ((until - since) * actors), 3))


if __name__ == "__main__":
    main()
