"""Commands that are printed, pasted into a shell in the state that prints them, hostile names included."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner
from inline import Inline
from tiny_models import bert_model

from reembed import errors, faults
from reembed.cli.paste import _CONFIGURED, error, error_record
from reembed.cli.verbs import cli as reembed_cli
from reembed.encoders.hashing import HashingEncoder
from reembed.engine import attempts
from reembed.lifecycle import complete

HOSTILE = ["$(touch PWNED)", "`touch PWNED`", "a b", "it's", "; touch PWNED", "-n"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, in which no pasted line may leave a file PWNED."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ends(*words: str) -> str:
    """The fix of a command that ends with an error."""
    result = CliRunner().invoke(reembed_cli, [*words, "--json"])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return str(json.loads(result.stdout)["fix"])


def paste(here: Path, line: str) -> None:
    """Run a printed line, as a shell reads it: ours in this process, else in bash."""
    if not line.startswith("reembed "):
        subprocess.run(["bash", "-c", line], check=True, capture_output=True, cwd=here)
    else:
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {line.removeprefix('reembed ')}"],
            check=True, capture_output=True, text=True, cwd=here,
        ).stdout  # fmt: skip
        result = CliRunner().invoke(reembed_cli, words.split("\0")[:-1])
        assert result.exit_code == 0, result.output
    assert not (here / "PWNED").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_import_over_a_dataset_names_another_place(here: Path, name: str) -> None:
    file = here / f"{name}.jsonl"
    file.write_text('{"doc_id": "a", "text": "t"}\n')
    to = f"{here}/{name}.lance"
    lance.write_dataset(pa.table({"x": [1]}), to)
    paste(here, ends("import", str(file), "--to", to))
    assert lance.dataset(f"{here}/{name}-2.lance").count_rows() == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_import_of_latin_1_is_answered_with_a_conversion(here: Path, name: str) -> None:
    file = here / f"{name}.csv"
    file.write_bytes("doc_id,text\na,caf\u00e9\n".encode("latin-1"))
    paste(here, ends("import", str(file), "--to", str(here / "s.lance")))
    assert "caf\u00e9" in (here / f"{name}-utf8.csv").read_text()


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ({"uri": "s.lance", "text": "{title} {text}"}, []),
        ({"uri": "s.lance", "text": "{title} {body}"}, ["source.text=text"]),
        ({"uri": "s.lance", "id_column": "id"}, ["source.id_column=doc_id"]),
        ({"uri": "another.lance"}, ["source.text=text", "source.id_column=doc_id"]),
        (None, None),  # there is no config that could be overridden
    ],
)
def test_the_run_after_an_import_leaves_a_config_that_names_it_as_it_is(
    here: Path, source: dict[str, str] | None, given: list[str] | None
) -> None:
    file = here / "rows.jsonl"
    file.write_text('{"doc_id": "a", "title": "wing", "text": "t"}\n')
    if source is not None:
        write_settings(here, source=source)
    said = CliRunner().invoke(reembed_cli, ["import", str(file), "--to", "s.lance"]).output
    (command,) = re.findall("^Next: (.*)$", said, re.MULTILINE)
    assert command.startswith("reembed run     # first write") == (given is None)
    assert (command == "reembed run") == (given == [])
    assert all(f"--set {setting}" in command for setting in given or [])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_or_model_folder_that_is_missing_is_answered_with_what_is_there(
    here: Path, name: str
) -> None:
    folder = here / name
    folder.mkdir()
    paste(here, ends("import", str(folder / "x.jsonl"), "--to", str(here / "s.lance")))
    for model in (str(folder / "missing"), str(folder)):
        paste(here, fix_of_model(model))


def fix_of_model(model: str) -> str:
    from reembed.config.settings import EncoderConfig
    from reembed.encoders import describe

    with pytest.raises(errors.EncoderError) as refused:
        describe(EncoderConfig(model=model), "float32")
    return str(refused.value.fix)


def test_a_hub_id_and_a_branch_are_quoted(here: Path) -> None:
    assert shlex.split(fix_of_model("org/name"))[:2] == ["git", "ls-remote"]


@pytest.mark.parametrize("name", HOSTILE)
def test_tune_names_a_folder_to_make_or_another_file(
    here: Path, name: str, config_file: Any
) -> None:
    file = config_file(str(here / "s.lance"))
    out = here / name / "tuned.yaml"
    paste(here, ends("tune", "-c", file, "--out", str(out)))
    assert out.parent.is_dir()


# --- of a run, a comparison, a promotion: with settings of reembed.yaml in this folder ---


@pytest.fixture
def inline(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs need no Ray, and their config lies here."""
    from reembed.engine import ray_executor

    monkeypatch.setattr(ray_executor, "RayExecutor", Inline)
    return here


def settle(here: Path, column: str = "text", **sections: Any) -> None:
    """Documents of which one has no text, and reembed.yaml."""
    write_documents(here, column)
    write_settings(here, column, **sections)


def write_documents(here: Path, column: str) -> None:
    texts = [f"wing {n} flutter heat" for n in range(40)]
    rows = {"doc_id": [f"d{n}" for n in range(40)], column: [*texts[:-1], None], "year": [1] * 40}
    lance.write_dataset(pa.table(rows), str(here / "s.lance"))


def write_settings(here: Path, column: str = "text", **sections: Any) -> None:
    settings: dict[str, Any] = {
        "alias": "docs",
        "source": {"uri": str(here / "s.lance"), "text": column},
        "encoder": {"model": "hashing:16"},
        "embed": {"max_dead_letters": 1},
        "storage": {"root": str(here / "root")},
        "gate": {"margin": 0.05},  # equal results of 30 queries show no less
    }
    for name, values in sections.items():
        merged = {**settings.get(name, {}), **values} if isinstance(values, dict) else values
        settings[name] = merged
    (here / "reembed.yaml").write_text(yaml.safe_dump(settings))


REFUSED: dict[str, dict[str, Any]] = {
    "another form of hashing": {"encoder": {"model": "hashing:x"}},
    "texts that are NULL": {"embed": {"max_dead_letters": 0}},
    "a factory that FAISS does not know": {"index": {"factory": "Flatt"}},
    "a filter of two literals": {"source": {"filter": "\"doc_id\" != 'd1'"}},
}


@pytest.mark.parametrize("column", ["text", *HOSTILE[2:4]])
@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_is_refused_runs_with_what_is_printed(inline, case, column) -> None:
    settle(inline, column, **REFUSED[case])
    paste(inline, ends("run"))


@pytest.mark.parametrize("column", [c for c in HOSTILE if "`" not in c])
def test_a_text_column_that_is_missing_is_answered_with_a_run(inline, column) -> None:
    settle(inline, column)
    paste(inline, ends("run", "--set", f"source.text={json.dumps(column + 'x')}"))


def test_the_other_columns_of_a_template_stay(inline) -> None:
    settle(inline)
    lance.dataset(str(inline / "s.lance")).add_columns({"title": "'wing ' || doc_id"})
    fix = ends("run", "--set", "source.text={titel}: {text}", "--set", "table.carry=[]")
    assert "{title}: {text}" in fix
    paste(inline, fix)


def test_a_config_that_is_missing_is_answered_with_one_that_is_there(inline) -> None:
    settle(inline)
    paste(inline, ends("status", "-c", "reembd.yaml"))


@pytest.mark.parametrize("body", ['[{"doc_id": "a"},\n{"doc_id": "b"}]\n', '{\n"doc_id": "a"}\n'])
def test_json_that_is_not_one_object_a_line_is_written_so(here: Path, body: str) -> None:
    (here / "a.json").write_text(body)
    fix = ends("import", "a.json", "--to", "s.lance")
    assert fix.startswith("jq ")
    assert shutil.which("jq") is None or paste(here, fix) is None


def test_a_line_that_is_not_json_is_shown(here: Path) -> None:
    (here / "a.jsonl").write_text('{"doc_id": "a"}\n{"doc_id": \n')
    assert ends("import", "a.jsonl", "--to", "s.lance").startswith("sed -n 2p a.jsonl ")


def test_a_column_that_lance_cannot_read_is_refused(inline) -> None:
    settle(inline, "`touch PWNED`")
    assert ends("run").startswith("give the column another name")


def test_next_lines_lead_from_a_run_to_a_search(inline) -> None:
    settle(inline)
    followed = follow_from(inline, "reembed run", 6)
    assert [line.split()[1] for line in followed] == ["run", "promote", "search"]


def next_of(said: str) -> str:
    """The command that is printed as the next one."""
    found = re.search(r"^Next: (reembed .*)$", said, re.MULTILINE)
    return found[1] if found else ""


def follow_from(here: Path, line: str, steps: int) -> list[str]:
    """Commands that were run, each the `Next:` of the one before."""
    done: list[str] = []
    while line and len(done) < steps:
        words = shlex.split(line, comments=True)[1:]
        result = CliRunner().invoke(reembed_cli, words)
        assert result.exit_code == 0, result.output
        done.append(line)
        line = next_of(result.output)
    return done


OF_A_MODEL: dict[str, dict[str, Any]] = {
    "more positions than it has": {"max_length": 99_999},
    "more dimensions than it has": {"truncate_dim": 9_999},
}


@pytest.mark.parametrize("case", OF_A_MODEL)
def test_a_model_asked_for_what_it_lacks_runs_with_what_is_printed(inline, case) -> None:
    model = bert_model(inline / "it's a model")
    settle(inline, encoder={"model": str(model), **OF_A_MODEL[case]})
    paste(inline, ends("run"))


# --- after a run ---


def says(*words: str) -> dict[str, Any]:
    """What a command answers."""
    result = CliRunner().invoke(reembed_cli, [*words, "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


def fails(*words: str) -> str:
    """The fix of a command that ends with an error, whatever its exit code."""
    result = CliRunner().invoke(reembed_cli, [*words, "--json"])
    assert result.exit_code, result.output
    return str(json.loads(result.stdout.splitlines()[-1])["fix"])


def newest_candidate() -> str:
    """Id of a release that waits."""
    return str(says("status")["candidates"][-1]["release"])


def built() -> str:
    """Id of the release that a run made."""
    says("run")
    return newest_candidate()


def serving(here: Path) -> str:
    """Id of a release that serves."""
    settle(here)
    release = built()
    paste(here, fails("promote", release))  # which asks for --initial
    assert says("status")["live"]["release"] == release
    return release


def late(here: Path, name: str) -> None:
    row = {"doc_id": [name], "text": [f"wing of {name}"], "year": [2]}
    lance.write_dataset(pa.table(row), str(here / "s.lance"), mode="append")


def killed(point: str, *words: str) -> None:
    """A command that ends at a point as if its process had been killed there."""

    class Killed(BaseException):
        pass

    def hook(name: str) -> None:
        if name == point:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "hook", hook)
        with pytest.raises(Killed):
            CliRunner().invoke(reembed_cli, [*words], catch_exceptions=False)


def test_documents_that_came_since_are_caught_up_with(inline) -> None:
    first = serving(inline)
    late(inline, "one more")
    result = CliRunner().invoke(reembed_cli, ["verify", "--release", first, "--fresh-within", "0s"])
    assert result.exit_code == 5, result.output
    assert next_of(CliRunner().invoke(reembed_cli, ["status"]).output) == "reembed catch-up live"
    followed = follow_from(inline, next_of(result.output), 3)
    assert [line.split()[1] for line in followed] == ["catch-up", "status", "search"]
    assert says("status")["live"]["lag"]["documents"] == 0


def test_an_older_release_of_a_line_names_the_newer(inline) -> None:
    settle(inline)
    first = built()
    late(inline, "one more")
    paste(inline, f"reembed catch-up {first}")
    fix = fails("promote", first, "--no-catch-up", "--initial", "--reason", "a test")
    assert fix == f"reembed promote {newest_candidate()}"
    paste(inline, fails(*shlex.split(fix)[1:]))  # which asks for --initial


@pytest.mark.parametrize("level", ["0", "1"])
def test_how_fresh_is_known_only_where_the_source_is_read(inline, level) -> None:
    release = serving(inline)
    words = ("verify", "--release", release, "--level", level, "--fresh-within", "1h")
    result = CliRunner().invoke(reembed_cli, [*words, "--json"])
    if result.exit_code:
        paste(inline, str(json.loads(result.stdout.splitlines()[-1])["fix"]))


def test_a_run_that_was_killed_goes_on_with_what_status_prints(inline) -> None:
    settle(inline)
    killed("table.after_sealed", "run")
    (run,) = says("status")["runs"]
    paste(inline, run["resume"])
    assert not says("status")["runs"]


def test_the_hint_of_a_run_that_was_killed_has_the_options_that_status_was_given(inline) -> None:
    serving(inline)
    late(inline, "one more")
    killed("table.after_receipt", "catch-up", "live")
    (inline / "reembed.yaml").rename(inline / "another.yaml")
    said = CliRunner().invoke(reembed_cli, ["status", "-c", "another.yaml"]).output
    (resume,) = re.findall("stopped; `(reembed catch-up .*)` resumes it", said)
    assert resume == next_of(said)
    paste(inline, resume)
    assert not says("status", "-c", "another.yaml")["runs"]


def data_files(here: Path) -> set[Path]:
    return set((here / "root/tables").glob("*/data/*"))


def test_a_run_that_was_killed_goes_on_with_its_own_settings_whatever_status_was_given(
    inline,
) -> None:
    settle(inline)
    killed("table.after_sealed", "run")
    (run,) = says("status")["runs"]
    result = CliRunner().invoke(reembed_cli, ["status", "--set", "encoder.model=hashing:24"])
    paste(inline, next_of(result.output))
    assert not says("status")["runs"]
    assert newest_candidate() == run["run"]


def test_a_run_is_given_up_with_what_gc_prints(inline) -> None:
    settle(inline)
    killed("table.after_receipt", "run")
    (run,) = says("status")["runs"]
    result = CliRunner().invoke(reembed_cli, ["gc", "--drop-run", run["run"]])
    assert says("status")["runs"]
    paste(inline, next_of(result.output))
    assert not says("status")["runs"]


def test_a_table_that_cannot_be_read_is_named_when_it_is_to_be_caught_up(inline) -> None:
    release = serving(inline)
    late(inline, "one more")
    for file in data_files(inline):
        file.write_bytes(bytes(b ^ 0x55 for b in file.read_bytes()))
    result = CliRunner().invoke(reembed_cli, ["catch-up", release, "--json"])
    told = json.loads(result.stdout.splitlines()[-1])
    assert f"of release {release} could not be compared with" in told["what"]
    assert told["fix"] == f"reembed verify --release {release}"


def test_a_catch_up_whose_staged_files_are_gone_is_dropped_and_done_again(inline) -> None:
    release = serving(inline)
    late(inline, "one more")
    before = data_files(inline)
    killed("table.before_commit", "catch-up", release)
    for file in data_files(inline) - before:
        file.unlink()
    dropped, then = fails("catch-up", release).split("     # then: ")
    assert dropped.startswith("reembed gc --drop-run")
    paste(inline, dropped)
    paste(inline, then)
    assert says("status")["live"]["lag"]["documents"] == 0


def test_a_catch_up_whose_release_lost_files_meanwhile_is_not_done_again_but_built_again(
    inline,
) -> None:
    release = serving(inline)
    late(inline, "one more")
    held = data_files(inline)
    killed("table.after_receipt", "catch-up", release)
    for file in held:
        file.unlink()
    repaired_by(inline, fails("catch-up", release))


def test_a_table_whose_files_are_gone_is_not_caught_up_but_built_again(inline) -> None:
    release = serving(inline)
    late(inline, "one more")
    for file in data_files(inline):
        file.unlink()
    paste(inline, fails("catch-up", release))
    assert newest_candidate() != release


def test_an_index_or_files_that_are_gone_are_built_again(inline) -> None:
    settle(inline)
    release = built()
    for what in ("indexes/*/*.json", "indexes/*/*.faiss", "indexes/*/*.arrow", "tables/*/data/*"):
        for file in (inline / "root").glob(what):
            file.unlink()
        paste(inline, fails("promote", release, "--initial", "--reason", "a test"))
        release = newest_candidate()


def test_a_release_that_verify_finds_damaged_is_built_again(inline) -> None:
    settle(inline)
    release = built()
    for file in data_files(inline):
        content = bytearray(file.read_bytes())
        content[40] ^= 1
        file.write_bytes(content)
    write_settings(
        inline, encoder={"model": "hashing:24"}
    )  # the settings are another release's by now
    result = CliRunner().invoke(reembed_cli, ["verify", "--release", release])
    assert result.exit_code, result.output
    said = re.search(r"^ *(?:Next|fix): (reembed .*)$", result.output, re.MULTILINE)
    assert said, result.output
    paste(inline, said[1])
    assert says("verify", "--release", newest_candidate())["passed"]
    assert says("status")["candidates"][-1]["model"] == "hashing:16"


def test_a_link_among_the_files_of_a_table_is_removed_alone(inline) -> None:
    settle(inline)
    for _ in range(3):
        says("run", "--fresh", "--set", "embed.reuse=false")
    mine = inline / "it's mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    (table,) = (inline / "root/tables").iterdir()
    (table / "data/a link").symlink_to(mine)
    paste(inline, fails("gc", "--yes"))
    assert says("gc", "--yes")
    assert (mine / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "words",
    [
        ("gc", "--drop-run", "docs-0-v1-9", "--yes"),
        ("rollback",),
        ("compare", "--candidate", "docs-0-v1-9"),
        ("promote", "docs-0-v1-9"),
        ("verify", "--release", "docs-0-v1-9"),
        ("search", "wing", "--show", "year"),
        ("search", "x; touch PWNED", "-k", "3", "--show", "doc_id", "--show", "vector"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_what_is_not_there_is_answered_with_what_is(inline, words) -> None:
    serving(inline)
    paste(inline, fails(*words))


# --- a fault in what two releases of a table share ---


def of_a_faulty_device(patch: pytest.MonkeyPatch) -> None:
    """One document gets a wrong vector, and gets it again from every check on the same device."""
    honest = HashingEncoder.embed

    def embed(self: HashingEncoder, tokens: Any) -> Any:
        vectors = honest(self, tokens)
        (right,) = honest(self, self.tokenize(["wing 7 flutter heat"], "document"))
        hit = (vectors == right).all(axis=1)
        vectors[hit] = vectors[hit, ::-1]
        return vectors

    patch.setattr(HashingEncoder, "embed", embed)


def grown(here: Path) -> tuple[str, str]:
    """(rebuild, catch-up): the second serves, and shares files of the first, which once was verified."""
    first = serving(here)
    late(here, "one more")
    paste(here, "reembed catch-up live")
    live = str(says("status")["live"]["release"])
    assert live != first
    return first, live


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)


def verified_as_printed(here: Path, release: str) -> None:
    """`verify` finds a difference; the command that it prints makes a release without one."""
    result = CliRunner().invoke(reembed_cli, ["verify", "--release", release])
    assert result.exit_code == 1, result.output
    said = re.search(r"^ *(?:Next|fix): (reembed .*)$", result.output, re.MULTILINE)
    assert said, result.output
    repaired_by(here, said[1])


def repaired_by(here: Path, printed: str) -> None:
    """The command that was printed makes a release in which nothing is wrong, at the first try."""
    before = set(all_releases(here))
    write_settings(here, encoder={"model": "hashing:24"})  # another release's by now
    paste(here, printed)
    (made,) = set(all_releases(here)) - before
    record = json.loads((here / f"root/releases/docs/{made}.json").read_text())
    assert record["space"]["model"] == "hashing:16"
    assert says("verify", "--release", made)["passed"]


def all_releases(here: Path) -> list[str]:
    return [file.stem for file in (here / "root/releases/docs").glob("*.json")]


@pytest.mark.parametrize("role", ["rebuild", "catch-up"])
def test_wrong_vectors_are_not_copied_from_another_release_by_the_repair_that_is_printed(
    inline, role
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        of_a_faulty_device(patch)
        first, live = grown(inline)
    verified_as_printed(inline, {"rebuild": first, "catch-up": live}[role])


@pytest.mark.parametrize("role", ["rebuild", "catch-up"])
def test_a_flipped_bit_in_a_shared_file_is_repaired_by_what_verify_prints(inline, role) -> None:
    old = grown(inline)
    table = lance.dataset(next(str(t) for t in (inline / "root/tables").iterdir()), version=2)
    for fragment in table.get_fragments():
        for file in fragment.data_files():
            flip(Path(table.uri) / "data" / file.path)
    verified_as_printed(inline, dict(zip(("rebuild", "catch-up"), old, strict=True))[role])


def test_wrong_vectors_that_a_run_copied_are_not_copied_again_by_what_it_prints(inline) -> None:
    with pytest.MonkeyPatch.context() as patch:
        of_a_faulty_device(patch)
        grown(inline)
    repaired_by(inline, fails("run", "--set", "table.carry=[year]"))


def test_wrong_vectors_that_a_catch_up_shares_are_found_by_verify_and_not_copied(inline) -> None:
    """A catch-up embeds a sample of new rows again; of shared ones, `verify` does."""
    with pytest.MonkeyPatch.context() as patch:
        of_a_faulty_device(patch)
        grown(inline)
    late(inline, "two more")
    verified_as_printed(inline, says("catch-up", "live")["to"])


RECORDS = {
    "index": "indexes/*/*.faiss",
    "ids of the index": "indexes/*/*.arrow",
    "manifest of the index": "indexes/*/*.json",
    "version of the table": "tables/*/_versions/*.manifest",
    "record of files": "runs/*/sealed.json",
}


@pytest.mark.parametrize("hurt", ["flipped", "gone"])
@pytest.mark.parametrize("what", RECORDS)
def test_a_release_that_verify_cannot_look_into_is_built_again_by_what_it_prints(
    inline, what, hurt
) -> None:
    release = serving(inline)
    for file in (inline / "root").glob(RECORDS[what]):
        flip(file) if hurt == "flipped" else file.unlink()
    verified_as_printed(inline, release)


@pytest.mark.parametrize("verb", ["catch-up", "dead-letters", "verify"])
def test_a_release_whose_record_of_files_is_gone_is_built_again_by_what_each_verb_prints(
    inline, verb
) -> None:
    release = serving(inline)
    late(inline, "one more")
    (inline / f"root/runs/{release}/sealed.json").unlink()
    words = {"verify": ["verify", "--release", release]}.get(verb, [verb, release])
    repaired_by(inline, fails(*words))


def test_a_flipped_bit_in_a_fragment_that_loses_a_row_is_found_by_verify_and_repaired(
    inline,
) -> None:
    """A catch-up looks at the size of a file that it shares; `verify` hashes it."""
    release = serving(inline)
    lance.dataset(str(inline / "s.lance")).delete("doc_id = 'd3'")
    for file in data_files(inline):
        flip(file)
    verified_as_printed(inline, says("catch-up", release)["to"])


@pytest.mark.parametrize("lost", ["sealed.json", "manifest", "data"])
def test_a_run_that_would_copy_from_what_is_damaged_prints_one_that_copies_nothing(
    inline, lost
) -> None:
    settle(inline, alias="another")
    other = built()
    (table,) = (inline / "root/tables").iterdir()
    for file in {
        "sealed.json": [inline / f"root/runs/{other}/sealed.json"],
        "manifest": list((table / "_versions").glob("*.manifest")),
        "data": list(data_files(inline)),
    }[lost]:
        flip(file)
    write_settings(inline)
    repaired_by(inline, fails("run"))
    assert newest_candidate().startswith("docs-")


@pytest.mark.parametrize("words", [("run",), ("catch-up", "live")])
def test_a_unit_that_was_begun_too_often_is_done_by_what_is_printed(inline, words) -> None:
    if words[0] == "run":
        settle(inline)
    else:
        serving(inline)
        late(inline, "one more")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "MAX_ATTEMPTS", 0)
        patch.setattr(attempts, "_CARELESS_DEATHS", 0)
        fix = fails(*words)
    for command in fix.split("     # then: "):
        paste(inline, command)
    found = says("status")
    if words[0] == "run":
        assert len(found["candidates"]) == 1
    else:
        assert (found["live"]["lag"]["documents"], found["candidates"]) == (0, [])


def test_a_catch_up_whose_index_finds_too_little_is_built_again_by_its_line_s_settings(
    inline,
) -> None:
    release = serving(inline)
    late(inline, "one more")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complete, "recall_bound", lambda _, of: 1.0 if of.id == release else 0.0)
        fix = fails("catch-up", "live")
    forced, again = fix.split("     # or: ")
    assert forced.startswith("reembed promote ")
    repaired_by(inline, again)


def judged_queries(here: Path) -> Path:
    """A BEIR folder of judged queries, each with one relevant document."""
    folder = here / "it's judged"
    (folder / "qrels").mkdir(parents=True)
    texts = [{"_id": f"q{n}", "text": f"wing {n} flutter heat"} for n in range(30)]
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(t)}\n" for t in texts))
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(30))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.mark.parametrize("judged", [False, True])
def test_a_candidate_without_judged_queries_is_compared_with_named_ones_or_promoted_without(
    judged, inline
) -> None:
    serving(inline)
    write_settings(inline, encoder={"model": "hashing:64"})
    after_run = next_of(CliRunner().invoke(reembed_cli, ["run"]).output)
    release = newest_candidate()
    compare, without = after_run.split("     # ")
    assert {fails("promote", release), fails("compare")} == {after_run}
    promote = without[without.index("reembed promote") :]
    if judged:
        paste(inline, compare.replace("FOLDER", shlex.quote(str(judged_queries(inline)))))
        assert fails(*shlex.split(promote)[1:]) == f"reembed compare --candidate {release}"
        return
    paste(inline, promote)
    found = says("status")
    assert (found["live"]["release"], found["without_evidence"]) == (release, True)
    said = CliRunner().invoke(reembed_cli, ["status"]).output
    assert "the live release was promoted with --without-evidence" in said
    assert "not known: how good its results are: it has no judged queries" in said
    assert "without evidence: WHY" in CliRunner().invoke(reembed_cli, ["history"]).output


def test_a_candidate_is_compared_with_queries_that_the_config_names_by_now(inline) -> None:
    serving(inline)
    changed = {"encoder": {"model": "hashing:64"}}
    write_settings(inline, **changed)
    says("run")
    write_settings(inline, **changed, gate={"queries": str(judged_queries(inline))})
    compare = f"reembed compare --candidate {newest_candidate()}"
    assert next_of(CliRunner().invoke(reembed_cli, ["run"]).output) == compare
    assert fails("promote", newest_candidate()) == compare
    paste(inline, compare)


# --- what the command line was given goes into the command, and not into what it quotes ---

QUERIES = [
    "reembed run",
    "how do I `reembed run` it",
    "it's about reembed run     # or: reembed status",
    "Next: reembed search",
]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_that_looks_like_a_command_is_pasted_as_it_is(inline, query) -> None:
    serving(inline)
    file = str((inline / "reembed.yaml").rename(inline / "another.yaml"))
    fix = fails("search", query, "--show", "doc_id", "-c", file)
    words = shlex.split(fix, comments=True)
    assert words.count("-c") == 1
    assert words[-1] == query
    result = CliRunner().invoke(reembed_cli, words[1:])
    assert result.exit_code == 0
    assert query in result.output.splitlines()


@pytest.mark.parametrize(
    ("fix", "completed"),
    [
        ("reembed run", "reembed run -c a.yaml"),
        ("reembed search -- reembed run", "reembed search -c a.yaml -- reembed run"),
        (
            "reembed gc --yes     # it's so; then: reembed run",
            "reembed gc -c a.yaml --yes     # it's so; then: reembed run -c a.yaml",
        ),
        (
            "reembed promote r     # or: reembed run --fresh -c /x/runs/r/config.yaml",
            "reembed promote -c a.yaml r     # or: reembed run --fresh -c /x/runs/r/config.yaml",
        ),
        (
            "reembed run -c '/it is/runs/r/config.yaml'     # then: reembed status",
            "reembed run -c '/it is/runs/r/config.yaml'     # then: reembed status -c a.yaml",
        ),
        ("write it again", "write it again"),
    ],
)
def test_settings_that_were_given_go_into_each_command_that_has_none(fix, completed) -> None:
    given = ["-c a.yaml"]
    problem = errors.ReembedError("what", "`reembed status` says more", fix)
    assert error_record(problem, given)["fix"] == completed
    said = error(problem, given)
    assert said.endswith(f"  `reembed status -c a.yaml` says more\n  fix: {completed}")


def test_every_verb_that_takes_a_config_gets_it_in_a_printed_command() -> None:
    configured = {
        name
        for name, verb in reembed_cli.commands.items()
        if "overrides" in {p.name for p in verb.params}
    }
    assert set(_CONFIGURED) == configured


@pytest.mark.parametrize(
    ("fix", "completed"),
    [
        ("reembed run", "reembed run -c a.yaml --set encoder.model=foo:bar"),
        ("reembed run --set encoder.model=x", "reembed run -c a.yaml --set encoder.model=x"),
        (
            "reembed run --set 'encoder.model=x y'",
            "reembed run -c a.yaml --set 'encoder.model=x y'",
        ),
        (
            "reembed search -- '--set encoder.model=x'",
            "reembed search -c a.yaml --set encoder.model=foo:bar -- '--set encoder.model=x'",
        ),
        (
            "reembed run --set encoder.dim=8",
            "reembed run -c a.yaml --set encoder.model=foo:bar --set encoder.dim=8",
        ),
        (
            "reembed gc --yes     # then: reembed status",
            "reembed gc -c a.yaml --set encoder.model=foo:bar --set storage.keep=1 --yes"
            "     # then: reembed status -c a.yaml --set encoder.model=foo:bar",
        ),
    ],
)
def test_a_setting_that_the_command_sets_anew_or_does_not_read_is_not_given_again(
    fix, completed
) -> None:
    given = ["-c a.yaml", "--set encoder.model=foo:bar", "--set storage.keep=1"]
    assert error_record(errors.ReembedError("what", None, fix), given)["fix"] == completed


def test_a_model_that_is_given_and_refused_is_replaced_by_the_one_that_is_printed(inline) -> None:
    settle(inline)
    fix = ends("run", "--set", "encoder.model=foo:bar")
    assert fix.count("--set encoder.model=") == 1
    paste(inline, fix)
