"""Settings: where they come from, and what is said of every way to get them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, StrictStr, model_validator

from reembed.config.files import load_sections
from reembed.config.settings import Config, load
from reembed.errors import ConfigError

GOOD = """\
alias: passages
source:
  uri: docs.lance
encoder: {model: "hashing:8"}
storage: {root: data}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def without_fix(refused: pytest.ExceptionInfo[ConfigError]) -> str:
    """What a refusal says, up to the command that checks the config again."""
    return str(refused.value).partition("\n  fix: ")[0]


def mistakes(text: str, *overrides: str) -> str:
    """What is said of a file holding `text`."""
    with pytest.raises(ConfigError) as refused:
        load([write("bad.yaml", text)], list(overrides))
    assert refused.value.exit_code == 2
    return without_fix(refused)


# Right


def test_defaults_fill_what_is_left_out() -> None:
    config, origins = load([write("a.yaml", GOOD)], [])
    assert config.embed.actors == 1
    assert config.source.uri == "docs.lance"
    assert origins["embed.actors"] == "default"
    assert origins["storage.options"] == "default"


def test_later_files_win_and_sections_merge() -> None:
    first = write("a.yaml", GOOD + "embed:\n  actors: 2\n  batch_tokens: 64\n")
    second = write("b.yaml", "embed:\n  actors: 3\n")
    config, origins = load([first, second], [])
    assert (config.embed.actors, config.embed.batch_tokens) == (3, 64)
    assert origins["embed.actors"] == "b.yaml:2"
    assert origins["embed.batch_tokens"] == "a.yaml:8"


def test_lists_are_replaced_whole() -> None:
    first = write("a.yaml", GOOD + "table: {carry: [title, url]}\n")
    config, origins = load([first, write("b.yaml", "table:\n  carry: [lang]\n")], [])
    assert config.table.carry == ("lang",)
    assert origins["table.carry"] == "b.yaml:2"


def test_set_wins_over_files_and_the_last_set_wins() -> None:
    file = write("a.yaml", GOOD + "embed: {actors: 2}\n")
    config, origins = load([file], ["embed.actors=3", "embed.actors=4"])
    assert config.embed.actors == 4
    assert origins["embed.actors"] == "--set embed.actors"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("table.carry=[title, url]", ("title", "url")),
        ("source.text={title} {text}", "{title} {text}"),
        ("encoder.prompts.query=query: ", "query: "),
        ("source.filter=lang = 'en'", "lang = 'en'"),
        ('encoder.revision="0123456"', "0123456"),
        ("encoder.normalize=false", False),
        ("source.version=", None),
        ("source.filter=!!python/object/apply:os.abort []", "!!python/object/apply:os.abort []"),
        ("source.filter=*x", "*x"),
    ],
)
def test_set_reads_scalars_and_lists_and_keeps_the_rest_as_text(
    override: str, value: object
) -> None:
    config, _ = load([write("a.yaml", GOOD)], [override])
    found: object = config
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value


def test_options_have_an_origin_each() -> None:
    text = GOOD.replace("{root: data}", "{root: s3://b/p, options: {aws_region: eu-west-1}}")
    config, origins = load([write("a.yaml", text)], ["storage.options.allow_http=yes please"])
    assert config.storage.options == {"aws_region": "eu-west-1", "allow_http": "yes please"}
    assert origins["storage.options.aws_region"] == "a.yaml:5"
    assert origins["storage.options.allow_http"] == "--set storage.options.allow_http"


def test_a_section_with_everything_commented_out_keeps_its_defaults() -> None:
    config, _ = load([write("a.yaml", GOOD + "embed:\n#  actors: 2\nindex:\n")], [])
    assert config == load([write("b.yaml", GOOD)], [])[0]


def test_settings_come_from_set_alone_where_they_can() -> None:
    config, _ = load(
        [], ["alias=a", "source.uri=x", "encoder.model=hashing:8", "storage.root=data"]
    )
    assert config.alias == "a"


# Wrong


def test_all_mistakes_are_named_at_once() -> None:
    text = GOOD + (
        "embed:\n  actors: 0\n  acters: 2\n  dtype: half\n  batch_tokens: yes\n"
        "gate:\n  margin: 95\n  ann_recall: high\n  margn: 1\n"
    )
    assert mistakes(text, "embed.gpus=1", "index.metric=flat", "foo", "actors=3") == (
        "bad.yaml: 11 settings are wrong\n"
        "  line 7: embed.actors = 0: should be 1 or more\n"
        "  line 8: embed.acters: unknown setting; did you mean actors?\n"
        "  line 9: embed.dtype = 'half': should be 'auto', 'float32', 'float16' or 'bfloat16'\n"
        "  line 10: embed.batch_tokens = yes: should be a whole number\n"
        "  line 12: gate.margin = 95: should be less than 1\n"
        "  line 13: gate.ann_recall = 'high': should be a number\n"
        "  line 14: gate.margn: unknown setting; did you mean margin?\n"
        "  --set foo: write it as --set section.name=value\n"
        "  --set embed.gpus: unknown setting; did you mean gpus_per_actor?\n"
        "  --set index.metric: unknown setting; known: kind, factory, device, ann_recall, shard_rows\n"
        "  --set actors: unknown setting here; actors goes under embed"
    )


def test_missing_settings_are_named_one_by_one() -> None:
    assert mistakes("storage:\n  keep: 2\n") == (
        "bad.yaml: 4 settings are wrong\n"
        "  line 1: storage.root: required, but not set\n"
        "  alias: required, but not set\n"
        "  source.uri: required, but not set\n"
        "  encoder.model: required, but not set"
    )


def test_an_empty_file_misses_everything() -> None:
    assert mistakes("# nothing\n").startswith("bad.yaml: 4 settings are wrong\n  alias: required")


def test_a_typo_is_not_also_called_missing() -> None:
    text = GOOD.replace("uri:", "ur:").replace("encoder:", "encodr:")
    assert mistakes(text) == (
        "bad.yaml: 2 settings are wrong\n"
        "  line 3: source.ur: unknown setting; did you mean uri?\n"
        "  line 4: encodr: unknown setting; did you mean encoder?"
    )


@pytest.mark.parametrize(
    ("raw", "reading"),
    [
        ("0123456", "the number 42798"),
        ("12:30:00", "the number 45000"),
        ("no", "false"),
        ("2026-11-22", "a date"),
    ],
)
def test_text_that_yaml_reads_otherwise_must_be_quoted(raw: str, reading: str) -> None:
    text = GOOD.replace('{model: "hashing:8"}', f"{{model: x/y, revision: {raw}}}")
    said = f"encoder.revision = {raw}: should be text, but YAML reads {raw} as {reading}; quote it:"
    assert mistakes(text) == f'bad.yaml: 1 setting is wrong\n  line 4: {said} "{raw}"'
    assert mistakes(GOOD, f"encoder.revision={raw}") == (
        f"bad.yaml: 1 setting is wrong\n  --set {said} --set 'encoder.revision=\"{raw}\"'"
    )


def test_wrong_shapes_are_explained() -> None:
    text = GOOD + (
        "embed: 5\n"
        "table:\n  carry: title\n  dtype: [float32]\n"
        "gate: {ann_recall: , queries: {a: b}}\n"
        "ray: {num_cpus: 2.5}\n"
    )
    assert mistakes(text) == (
        "bad.yaml: 6 settings are wrong\n"
        "  line 6: embed: should be a section of settings\n"
        "  line 8: table.carry = 'title': should be a list, such as [a, b]\n"
        "  line 9: table.dtype: should be 'float32' or 'float16'\n"
        "  line 10: gate.queries: should be a list, such as [a, b]\n"
        "  line 10: gate.ann_recall is empty: should be a number\n"
        "  line 11: ray.num_cpus = 2.5: should be a whole number"
    )


def test_an_item_of_a_list_is_named() -> None:
    assert mistakes(GOOD + "table:\n  carry:\n  - title\n  - no\n") == (
        "bad.yaml: 1 setting is wrong\n"
        "  line 9: table.carry[1] = no: should be text, but YAML reads no as false; "
        'quote it: "no"'
    )


def test_a_pattern_is_shown() -> None:
    assert mistakes(GOOD, "alias=My Docs") == (
        "bad.yaml: 1 setting is wrong\n"
        "  --set alias = 'My Docs': should be at most 32 lowercase letters, digits and hyphens,"
        " with a letter or digit first"
    )


def test_a_name_set_twice_is_refused() -> None:
    assert mistakes(GOOD + "embed:\n  actors: 1\n  actors: 2\n") == (
        "bad.yaml: 1 setting is wrong\n  line 8: embed.actors: set twice, first in line 7"
    )


def test_a_dotted_name_in_a_file_is_sent_to_its_section() -> None:
    assert mistakes(GOOD + "embed.actors: 2\n") == (
        "bad.yaml: 1 setting is wrong\n"
        "  line 6: embed.actors: unknown setting here; actors goes under embed"
    )


def test_with_several_files_each_place_names_its_file() -> None:
    with pytest.raises(ConfigError) as refused:
        load([write("a.yaml", GOOD + "indx: {}\n"), write("b.yaml", "embed:\n  actors: 0\n")], [])
    assert without_fix(refused) == (
        "a.yaml, b.yaml: 2 settings are wrong\n"
        "  a.yaml:6: indx: unknown setting; did you mean index?\n"
        "  b.yaml:2: embed.actors = 0: should be 1 or more"
    )


def test_checks_over_several_settings_come_in_their_own_words() -> None:
    assert mistakes(GOOD + "table:\n  carry: [doc_id]\n") == (
        "bad.yaml: 1 setting is wrong\n"
        "  line 7: table.carry: doc_id is a column reembed writes itself"
    )


def test_a_section_check_has_the_line_of_its_section() -> None:
    class Range(BaseModel):
        model_config = ConfigDict(extra="forbid")
        low: int
        high: int

        @model_validator(mode="after")
        def _ordered(self) -> Range:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid")
        name: StrictStr = "x"
        range: Range

    with pytest.raises(ConfigError) as refused:
        load_sections(Settings, [write("a.yaml", "name: y\nrange: {low: 2, high: 1}\n")], [])
    assert without_fix(refused) == (
        "a.yaml: 1 setting is wrong\n  line 2: range: low is above high"
    )


def test_secrets_are_refused_and_never_repeated() -> None:
    options = "options: {aws_secret_access_key: hunter2}"
    said = mistakes(GOOD.replace("root: data", f"root: data, {options}"))
    assert said == (
        "bad.yaml: 1 setting is wrong\n"
        "  line 5: storage.options: aws_secret_access_key is a secret; "
        "export it, for example as AWS_SECRET_ACCESS_KEY, "
        "and write aws_secret_access_key: env:AWS_SECRET_ACCESS_KEY"
    )
    number = mistakes(GOOD, "storage.options.aws_secret_access_key=31337")
    assert "should be text" in number
    assert "31337" not in number


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: b: c\n", "bad.yaml:1: not valid here: mapping values are not allowed here"),
        ("- a\n", "bad.yaml:1: not a set of named settings"),
        ("\n5\n", "bad.yaml:2: not a set of named settings"),
        ("a: &x [1]\nb: *x\n", "bad.yaml:2: not valid here: aliases (*name) are not allowed"),
        (
            "a: !!python/object/apply:os.abort []\n",
            "bad.yaml:1: not valid here: "
            "tags ('tag:yaml.org,2002:python/object/apply:os.abort') are not allowed",
        ),
        ("a: 1\n---\nb: 2\n", "bad.yaml:2: not valid here: but found another document"),
        ("a: " + "[" * 5000, "bad.yaml:1: not valid here: nested too deeply"),
        ("a: \x01\n", "bad.yaml: not YAML: special characters are not allowed"),
        ("#" * 1_000_001, "bad.yaml: larger than 1,000,000 bytes: not a settings file"),
    ],
)
def test_what_is_no_settings_file_is_refused(text: str, said: str) -> None:
    assert mistakes(text).splitlines()[0] == said


def test_a_file_in_another_encoding_is_refused() -> None:
    Path("bad.yaml").write_bytes("alias: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"^bad\.yaml: not UTF-8 text \(byte 10\)$"):
        load(["bad.yaml"], [])


def test_a_value_that_looks_like_a_date_but_is_none_is_explained() -> None:
    assert mistakes(GOOD + "gate: {split: 2026-13-01}\n") == (
        "bad.yaml: 1 setting is wrong\n"
        "  line 6: gate.split = 2026-13-01: month must be in 1..12; quote it if text"
    )


def test_a_missing_file_is_named_with_its_neighbour() -> None:
    write("local.yaml", GOOD)
    with pytest.raises(ConfigError) as refused:
        load(["locl.yaml"], [])
    assert str(refused.value) == (
        "locl.yaml: no such file\n  did you mean local.yaml?\n"
        "  fix: reembed config -c local.yaml --check"
    )


def test_a_folder_is_no_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load([str(folder)], [])


def test_names_from_a_file_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in mistakes(GOOD + '"\\e[31mred": 1\n')


# Anything


@example("? [a]\n: 1")
@example("a: 0b_")
@example("=: =")
@example("<<: {a: 1}")
@example('"\\ud800": "\\udfff"')
@example(GOOD + "embed: {gpus_per_actor: " + "9" * 5000 + "}")
@example(GOOD + "embed: {gpus_per_actor: 0x" + "f" * 5000 + "}")
@example(GOOD + "gate: {split: 0x" + "f" * 5000 + ", margin: .nan}")
@example(GOOD + "gate: {margin: " + "1:" * 300 + "1.0}")
@given(st.text(alphabet=" \n:-[]{},\"'#&*!?|>%@`ab01.=~<_\t", max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
def test_no_text_ends_in_anything_but_settings_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load([write("any.yaml", text)], [text[:20]])
    str(refused.value).encode()


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[*HealthCheck])
def test_a_dumped_config_loads_as_itself(data: st.DataObject) -> None:
    draw = data.draw
    texts = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
    config = Config.model_validate(
        {
            "alias": draw(st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,31}\Z")),
            "source": {"uri": draw(texts), "filter": draw(st.none() | texts)},
            "encoder": {"model": draw(texts), "normalize": draw(st.none() | st.booleans())},
            "storage": {"root": draw(texts), "options": draw(st.just({}) | st.just({"a": "1"}))},
            "embed": {
                "gpus_per_actor": draw(st.floats(0, 8)),
                "actors": draw(st.integers(1, 2**63 - 1)),
            },
            "table": {"carry": draw(st.lists(st.sampled_from(["no", "1", "a", "~"]), unique=True))},
        }
    )
    written = yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True)
    again, _ = load([write("again.yaml", written)], [])
    assert again == config
    assert again.result_key("uri") == config.result_key("uri")


@pytest.mark.parametrize(
    "setting",
    [r'source.uri="a\0b"', r'encoder.model="a\0"', r'storage.root="\0"', r'gate.queries="q\0"',
     r'table.carry=["a", "b\0"]', r'storage.options.region="\0"', r'encoder.prompts.query="\0"'],
)  # fmt: skip
def test_a_zero_byte_is_refused_in_every_setting(setting: str) -> None:
    with pytest.raises(ConfigError, match="holds a zero byte"):
        load([write("zero.yaml", GOOD)], [setting])


@pytest.mark.parametrize("setting", ["source.version", "embed.unit_documents", "storage.keep"])
def test_a_number_beyond_64_bits_is_refused_in_every_setting(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting}.*is beyond"):
        load([write("big.yaml", GOOD)], [f"{setting}={2**64}"])
    load([write("big.yaml", GOOD)], [f"{setting}={2**31}"])


@pytest.mark.parametrize("text", ["encoder: {modle: m}", "a: [", "- a", "!!set {a}"])
def test_every_wrong_file_is_answered_with_its_check(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load([str(file)], [])
    assert str(refused.value.fix).startswith("reembed config --check     # ")
