"""A Ray of our own: its session is closed to others, and a start that is late is tried once more."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from reembed.config.settings import Config
from reembed.engine import cluster, ray_auth
from reembed.errors import Conflict, RunFailed, UsageError


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty temporary folder with a short path, under the most open umask."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    short = Path(tempfile.mkdtemp(dir="/tmp", prefix="r"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    before = os.umask(0)
    yield short
    os.umask(before)


def closed(folder: str) -> bool:
    return stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_nobody_else_can_enter_the_session_and_nothing_is_left_of_it(temp: Path):
    with ray_auth.session_folder() as folder:
        assert Path(folder).parent == temp
        assert closed(folder)
        (Path(folder) / "1").mkdir(mode=0o777)
    assert list(temp.iterdir()) == []


def test_a_session_that_failed_is_kept_for_its_logs_and_still_closed(temp: Path):
    with pytest.raises(RunFailed), ray_auth.session_folder() as folder:
        raise RunFailed("the job stopped")
    assert closed(folder)
    with pytest.raises(Conflict), ray_auth.session_folder() as other:
        raise Conflict("of another kind")
    assert not Path(other).exists()


def test_the_folder_that_was_named_is_used_kept_and_closed_as_well(
    temp: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_TMPDIR", str(temp))
    with ray_auth.session_folder() as folder:
        assert closed(folder)
    assert closed(folder)


def test_a_temporary_folder_that_cannot_be_used_is_said_with_its_path(
    temp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere")
    with pytest.raises(UsageError, match="/nowhere") as missing, ray_auth.session_folder():
        pass
    assert "No such file or directory" in str(missing.value)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "a-name-that-is-far-too-long"))
    with pytest.raises(UsageError, match="too long"), ray_auth.session_folder():
        pass
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a-name-that-is-far-too-long"))
    with ray_auth.session_folder() as folder:  # sockets would not fit there
        assert Path(folder).parent == Path("/tmp")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """late(n) -> where Ray was started: its first n starts end as on a machine that is too busy."""

    def make(times: int) -> list[str]:
        started: list[str] = []

        def init(**options: Any) -> None:
            started.append(options["_temp_dir"])
            assert closed(str(Path(options["_temp_dir"]).parent))
            if len(started) <= times:
                raise Exception("The current node timed out during startup.")

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
        return started

    return make


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config("docs.lance")


def test_a_ray_that_is_late_once_is_started_again_and_that_is_said(
    config: Config, late: Callable[[int], list[str]], temp: Path
):
    started = late(1)
    with cluster.connected(config) as where:
        pass
    assert len(set(started)) == 2
    assert "at the second try; the first: Exception: The current node timed out" in where


def test_a_ray_that_is_late_twice_ends_in_words_and_not_in_a_traceback(
    config: Config, late: Callable[[int], list[str]], temp: Path
):
    started = late(2)
    with pytest.raises(RunFailed) as failed, cluster.connected(config):
        pass
    assert len(started) == 2
    assert failed.value.why is not None
    assert failed.value.why.startswith("Exception: The current node timed out during startup.")
    assert str(failed.value.fix).startswith("reembed run ")
    assert started[1] in str(failed.value.fix)
