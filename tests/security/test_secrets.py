"""Who reaches the cluster (S1), what is never printed or stored (S9), who may read what is written (S15)."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from inline import Inline

from reembed.cli.verbs import cli as reembed_cli
from reembed.config.options import secrets_in
from reembed.config.settings import Config, load
from reembed.engine import cluster, nodes, ray_auth
from reembed.errors import ConfigError, ReembedError, UsageError
from reembed.redact import credentials_in, redacted
from reembed.source.dataset import Source
from reembed.source.importer import import_documents
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild

# S1: a Ray cluster without a token

ELSEWHERE = [
    "10.1.2.3:6379",
    "ray://10.1.2.3:10001",
    "ray://head.example.org:10001",
    "head:6379",
    "192.168.0.7",
    "[2001:db8::1]:6379",
    "127.0.0.1.example.org:6379",
    "localhost.example.org:6379",
    "ray://user@10.1.2.3:10001",
    "0.0.0.0:6379",
    "::",
]
HERE = [
    "auto",
    "127.0.0.1:6379",
    "localhost:6379",
    "ray://127.0.0.1:10001",
    "[::1]:6379",
    "127.8.9.1:1",
]


class Ray:
    """Stands in for the module; keeps how `init` was called."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error = error

    def init(self, **options: Any) -> None:
        self.calls.append(options)
        if self.error:
            raise self.error

    def is_initialized(self) -> bool:
        return False

    def shutdown(self) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ray:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    double = Ray()
    for module in (cluster, nodes):
        monkeypatch.setattr(module, "ray", double)
    return double


def config(*overrides: str) -> Config:
    settings = ["alias=a", "source.uri=s", "encoder.model=hashing:8", "storage.root=r"]
    return load([], [*settings, *overrides])[0]


def connect(*overrides: str) -> str:
    with cluster.connected(config(*overrides)) as where:
        return where


@pytest.mark.parametrize("by", ["setting", "RAY_ADDRESS", "auto and RAY_ADDRESS"])
@pytest.mark.parametrize("address", ELSEWHERE)
def test_s1_a_cluster_elsewhere_is_refused_without_a_token(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, address: str, by: str
) -> None:
    settings = [f"ray.address='{address}'"] if by == "setting" else []
    if "RAY_ADDRESS" in by:
        monkeypatch.setenv("RAY_ADDRESS", address)
        settings = ["ray.address=auto"] if by != "RAY_ADDRESS" else []
    if "user@" in address and by == "setting":
        with pytest.raises(ConfigError, match="user name"):
            connect(*settings)
        return
    with pytest.raises(UsageError, match="RAY_AUTH_MODE") as refused:
        connect(*settings)
    assert "export RAY_AUTH_MODE=token" in str(refused.value.fix)
    assert ray.calls == []
    monkeypatch.setenv("RAY_AUTH_MODE", "Token")  # in whatever case, as Ray reads it
    connect(*settings)
    assert len(ray.calls) == 1


@pytest.mark.parametrize("mode", ["disabled", "", "tokens", "0"])
def test_s1_other_modes_are_no_token(ray: Ray, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(UsageError, match="RAY_AUTH_MODE"):
        connect("ray.address=10.1.2.3:6379")


def test_s1_the_operator_can_allow_it_and_the_output_says_so(ray: Ray) -> None:
    said = connect("ray.address=10.1.2.3:6379", "ray.allow_unauthenticated=true")
    assert "without a token (ray.allow_unauthenticated)" in said
    assert ray.calls[0]["address"] == "10.1.2.3:6379"


@pytest.mark.parametrize("address", HERE)
def test_s1_a_cluster_of_this_machine_is_fine(ray: Ray, address: str) -> None:
    assert "token" not in connect(f"ray.address='{address}'")
    assert ray.calls[0]["address"] == address


@pytest.mark.parametrize("settings", [(), ("ray.address=local",)])
def test_s1_the_private_ray_is_on_the_loopback_without_a_dashboard(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    from ray._private import ray_constants

    name, seen = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, []
    before = (os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER)
    init = ray.init

    def look(**options: Any) -> None:
        seen.append((os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER))
        init(**options)

    monkeypatch.setattr(ray, "init", look)
    connect(*settings)
    assert ray.calls[0]["address"] == "local"
    assert ray.calls[0]["include_dashboard"] is False
    assert seen == [("0", False)]
    assert (os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER) == before


def test_s1_a_refused_token_is_explained(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import AuthenticationError

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for error in (AuthenticationError("the token is invalid"), ConnectionError("nobody answers")):
        ray.error = error
        with pytest.raises(UsageError, match="cannot connect to the Ray cluster at 10"):
            connect("ray.address=10.1.2.3:6379")


@pytest.mark.parametrize(
    ("mode", "said"), [(0o600, False), (0o644, True), (0o640, True), (0o604, True)]
)
def test_s1_a_token_that_others_can_read_is_pointed_out(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, said: bool
) -> None:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("t" * 64)
    file.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for settings in ([], ["ray.address=10.1.2.3:6379"]):
        assert (f"chmod 600 {file}" in connect(*settings)) is said
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 64)  # then the file is not used
    assert "chmod" not in connect()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert "chmod" not in connect()


def test_s1_a_token_that_our_start_made_is_closed(ray: Ray, tmp_path: Path) -> None:
    file = tmp_path / ".ray" / "auth_token"
    with ray_auth.private_token():
        file.parent.mkdir()
        file.write_text("t" * 64)
        file.chmod(0o644)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with ray_auth.private_token():  # one that was there is its owner's business
        pass
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


# S9: secrets

CANARY = "canary/Secret+0123456789"
ADDRESSES = [
    f"s3://KEYID:{CANARY}@bucket/x",
    f"https://user:{CANARY}@host:9000/x",
    f"s3://{CANARY.replace('/', '')}@bucket/x",
    f"az://container/x?sv=2024&sig={CANARY}",
    f"https://b.s3.amazonaws.com/x?X-Amz-Credential=a&X-Amz-Signature={CANARY}",
    f"https://b.s3.amazonaws.com/x?X-Amz-Security-Token={CANARY}",
    f"gs://bucket/x?X-Goog-Signature={CANARY}",
    f"https://host/x?access_token={CANARY}&a=b",
    f"ray://user:{CANARY}@10.1.2.3:10001",
]
HARMLESS = [
    "s3://bucket/some/place.lance",
    "s3://bucket/people@example.org/x",
    "http://127.0.0.1:9000",
    "http://host:9000/a@b",
    "abfss://container@account.dfs.core.windows.net/x",
    "/folder/with@sign",
    "https://host/x?page=2",
    "package:name/folder",
    "{title}: {text}",
]


def leaks(text: str) -> bool:
    return "0123456789" in text or "canary" in text.lower()


@pytest.mark.parametrize("address", ADDRESSES)
def test_s9_credentials_are_found_and_blacked_out(address: str) -> None:
    assert credentials_in(address)
    for text in (address, f"error: cannot open '{address}', see {address}\nand more"):
        assert not leaks(redacted(text))
        assert "***" in redacted(text)


@pytest.mark.parametrize("address", HARMLESS)
def test_s9_addresses_without_credentials_stay_as_they_are(address: str) -> None:
    assert credentials_in(address) is None
    assert redacted(f"cannot open {address}: gone") == f"cannot open {address}: gone"


@pytest.mark.parametrize(
    "setting",
    ["source.uri", "storage.root", "gate.queries", "encoder.model", "ray.address", "storage.options.aws_endpoint"],
)  # fmt: skip
@pytest.mark.parametrize("address", ADDRESSES)
def test_s9_settings_with_credentials_are_refused_without_repeating_them(
    tmp_path: Path, setting: str, address: str
) -> None:
    with pytest.raises(ConfigError, match=r"user name or password|key or signature") as refused:
        config(f"{setting}={address}")
    assert setting.removesuffix(".aws_endpoint") in str(refused.value)
    assert not leaks(str(refused.value))
    file = tmp_path / "c.yaml"
    section, _, name = setting.partition(".")
    name, _, option = name.partition(".")
    file.write_text(json.dumps({section: {name: {option: address} if option else address}}))
    for arguments in (["config"], ["run"], ["status"], ["config", "-v"], ["config", "--json"]):
        said = CliRunner().invoke(reembed_cli, [*arguments, "-c", str(file)])
        assert said.exit_code == 2
        assert not leaks(said.output)


SECRET_OPTIONS = [
    "aws_secret_access_key",
    "AWS_SESSION_TOKEN",
    "aws_access_key_id",
    "aws_sse_customer_key_base64",
    "azure_storage_account_key",
    "azure_storage_sas_token",
    "google_service_account_key",
    "bearer_token",
    "client_secret",
    "password",
]


@pytest.mark.parametrize("key", SECRET_OPTIONS)
def test_s9_options_that_are_secrets_are_refused_wherever_they_are_given(
    tmp_path: Path, key: str
) -> None:
    assert secrets_in({key: CANARY}) == [key]
    with pytest.raises(ConfigError) as refused:
        config(f"storage.options.{key}={CANARY}")
    assert not leaks(str(refused.value))
    (tmp_path / "a.jsonl").write_text('{"doc_id": "a", "text": "x"}\n')
    words = [
        "import",
        str(tmp_path / "a.jsonl"),
        "--to",
        str(tmp_path / "x"),
        "--option",
        f"{key}={CANARY}",
    ]
    said = CliRunner().invoke(reembed_cli, words)
    assert said.exit_code == 2
    assert not leaks(said.output)


@pytest.mark.parametrize("address", ADDRESSES)
def test_s9_the_same_for_addresses_given_to_functions(tmp_path: Path, address: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"doc_id": "a", "text": "x"}\n')
    for use in (Storage.open, lambda uri: import_documents([str(file)], uri)):
        with pytest.raises(UsageError) as refused:
            use(address)
        assert not leaks(str(refused.value))


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN"],
)  # fmt: skip
def test_s9_an_error_never_holds_a_secret_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, CANARY)
    error = ReembedError(f"what {CANARY}", f"why {ADDRESSES[1]}", f"export {name}={CANARY}")
    for seen in (error, pickle.loads(pickle.dumps(error)), error.args, vars(error), repr(error)):
        assert not leaks(str(seen))
    assert error.fix == f"export {name}=***"


def test_s9_paths_and_short_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/somebody/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert redacted("/home/somebody/token is false") == "/home/somebody/token is false"


def test_s9_an_unexpected_error_is_printed_without_secrets(tmp_path: Path) -> None:
    program = f"""
import sys
from reembed.cli import verbs as cli
def fail(*args, **kwargs):
    raise LookupError("told: {CANARY} {ADDRESSES[1]}")
cli._catalog = fail
import reembed.config.settings
reembed.config.settings.load = fail
sys.argv = ["reembed", "status"]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"AWS_SECRET_ACCESS_KEY": CANARY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "LookupError: told: ***" in done.stderr
    assert not leaks(done.stdout + done.stderr.replace(program, ""))


# S15: modes


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_s15_a_root_made_here_is_closed_to_others(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        storage = Storage.open(str(tmp_path / "deep" / "root"))
        storage.write("runs/r/plan.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "root").stat().st_mode) == 0o700


def test_s15_a_root_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o2775)
    Storage.open(str(root))
    assert stat.S_IMODE(root.stat().st_mode) == 0o2775


# S9: store options whose names nobody listed as secrets

UNLISTED = ["proxy_url", "aws_sse_kms_key_id", "some_new_option"]


@pytest.mark.parametrize("key", ["connection_string", "authorization", "azure_client_key"])
def test_s9_further_names_of_secrets_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is a secret") as refused:
        config(f"storage.options.{key}={CANARY}")
    assert not leaks(str(refused.value))


@pytest.mark.parametrize("key", UNLISTED)
def test_s9_only_options_known_to_be_harmless_are_printed_and_kept(
    tmp_path: Path,
    corpus: Callable[..., str],
    config_file: Callable[..., str],
    quiet: Any,
    key: str,
) -> None:
    """In `config`, in the next command to paste, in the run's folder, in errors, in any repr."""
    options = {key: CANARY, "aws_region": "eu-central-1"}
    file = config_file(corpus(30), storage={"options": options})
    for verb in (["config"], ["config", "--json"], ["config", "--check", "--json"]):
        said = CliRunner().invoke(reembed_cli, [*verb, "-c", file])
        assert said.exit_code == 0
        assert not leaks(said.output)
        assert "--check" in verb or "eu-central-1" in said.output
    given = ["status", "-c", file, "--set", f"storage.options.{key}={CANARY}2"]
    assert not leaks(CliRunner().invoke(reembed_cli, given).output)
    loaded = load([file], [])[0]
    full_rebuild(loaded, quiet, executor=Inline())
    kept = [
        p
        for p in (tmp_path / "root").rglob("*")
        if p.is_file() and leaks(p.read_bytes().decode("latin-1"))
    ]
    assert kept == []
    (settings,) = (tmp_path / "root").rglob("config.yaml")
    with pytest.raises(ConfigError, match=f"add --set storage.options.{key}=VALUE"):
        load([str(settings)], [])
    assert load([str(settings)], [f"storage.options.{key}={CANARY}"])[0] == loaded
    storage = Storage("s3://b", tuple(options.items()))
    assert not leaks(repr(storage))
    assert not leaks(repr(Source.open(loaded)))


@pytest.mark.parametrize("override", [f"storage.options={CANARY}", f"storage.options.={CANARY}"])
def test_s9_options_that_are_not_options_are_not_repeated(override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(override)
    assert not leaks(str(refused.value))


def test_s9_a_store_that_cannot_be_opened_does_not_repeat_its_options() -> None:
    with pytest.raises(UsageError, match="cannot open") as refused:
        _ = Storage(
            "s3://b", (("aws_sse_kms_key_id", CANARY), (CANARY, "x"), ("some", CANARY))
        ).store
    assert CANARY not in str(refused.value).replace(f"'{CANARY}'", "")
