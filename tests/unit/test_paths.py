"""Reading local files: only below the roots, and never EXAI's own files, for any root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exai.errors import ConfigError, InvalidArgument
from exai.files.paths import Roots

LIMIT = 1_000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A root above the data directory, as a user's home directory would be."""
    (tmp_path / "data" / "postgres-18" / "base").mkdir(parents=True)
    (tmp_path / "data" / "postgres-18" / "base" / "16439").write_text("everybody's messages")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.txt").write_text("allowed")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / ".env").write_text("KEY=secret")
    return tmp_path


def roots(home: Path, *more: Path) -> Roots:
    return Roots([home, *more], [home / "data", home / "project" / ".env"])


def test_file_below_a_root_is_named_by_its_path_there(home: Path) -> None:
    """Two files of one name in two directories are distinguished."""
    found = roots(home).read("path", str(home / "work" / "a.txt"), LIMIT)
    assert (found.name, found.data) == ("work/a.txt", b"allowed")
    assert roots(home, home / "work").read("path", str(home / "work" / "a.txt"), LIMIT).name == "a.txt"


@pytest.mark.parametrize(
    "path",
    [
        "data/postgres-18/base/16439",
        "data",
        "data/nothing",
        "work/../data/postgres-18/base/16439",
        "work/link",
        "work/directory/base/16439",
        "work/hard",
        "project/.env",
        "work/env-link",
        "work/env-hard",
    ],
)
def test_store_and_its_settings_are_outside_every_root(home: Path, path: str) -> None:
    """By any name, also symbolic and hard links; the error is that for paths outside, existing or not."""
    secret = home / "data" / "postgres-18" / "base" / "16439"
    (home / "work" / "link").symlink_to(secret)
    (home / "work" / "directory").symlink_to(home / "data" / "postgres-18")
    (home / "work" / "env-link").symlink_to(home / "project" / ".env")
    os.link(home / "project" / ".env", home / "work" / "env-hard")
    os.link(secret, home / "work" / "hard")
    with pytest.raises(InvalidArgument, match="is not below an allowed root"):
        roots(home).read("path", str(home / path), LIMIT)


def test_data_directory_reached_under_a_second_name_is_closed_too(home: Path) -> None:
    """As through a bind mount or a file system that folds case; here the data directory itself is named by a link."""
    (home / "alias").symlink_to(home / "data")
    closed = Roots([home], [home / "alias"])
    with pytest.raises(InvalidArgument, match="is not below an allowed root"):
        closed.read("path", str(home / "data" / "postgres-18" / "base" / "16439"), LIMIT)


@pytest.mark.parametrize(
    "path", ["/proc/self/environ", "/proc/self/status", "/sys/kernel/notes", "/dev/null", "/proc/1/root/etc/passwd"]
)
def test_processes_and_devices_are_outside_even_a_root_of_everything(path: str) -> None:
    """The environment of the daemon has the operator's keys."""
    with pytest.raises(InvalidArgument, match="is not below an allowed root"):
        Roots([Path("/")]).read("path", path, LIMIT)


def test_descriptor_of_an_open_file_leads_where_the_file_is(home: Path) -> None:
    """/proc/self/fd does not circumvent the check: it is a link, and its target is checked."""
    with (
        (home / "project" / ".env").open() as secret,
        pytest.raises(InvalidArgument, match="not below an allowed root"),
    ):
        roots(home).read("path", f"/proc/self/fd/{secret.fileno()}", LIMIT)


@pytest.mark.parametrize("inside", ["data", "data/postgres-18", "work/link", "/proc", "/proc/self", "/dev/shm"])
def test_root_of_which_nothing_may_be_read_is_a_setting_to_correct(home: Path, inside: str) -> None:
    """At start, where an operator sees it."""
    (home / "work" / "link").symlink_to(home / "data")
    with pytest.raises(ConfigError) as caught:
        Roots([home / inside], [home / "data"]).check()
    assert caught.value.setting == "EXAI_FILES__ROOTS"
    roots(home).check()


def test_large_file_is_refused_before_it_is_read(home: Path) -> None:
    """By its size; a sparse one of a terabyte takes no memory."""
    with (home / "work" / "huge").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(InvalidArgument, match=r"is 1,099,511,627,776 bytes; the limit is 1,000"):
        roots(home).read("files[3]", str(home / "work" / "huge"), LIMIT)


def test_relative_path_is_refused_with_the_form_that_works(home: Path) -> None:
    """The client's directory is unknown, and a shortened file_id looks like a relative path."""
    with pytest.raises(InvalidArgument) as caught:
        roots(home).read("files[0]", "work/a.txt", LIMIT)
    assert str(caught.value).startswith("files[0]: 'work/a.txt' is not an absolute path. Give an absolute path below /")
    assert str(caught.value).endswith("or a file_id")


@pytest.mark.parametrize("kind", ["directory", "fifo", "missing", "relative", "nul", "long", "circle"])
def test_what_is_no_file_is_refused_at_once(home: Path, kind: str) -> None:
    """A named pipe without a writer would keep the thread for ever."""
    os.mkfifo(home / "work" / "fifo")
    (home / "work" / "circle").symlink_to(home / "work" / "circle")
    paths = {
        "directory": str(home / "work"),
        "fifo": str(home / "work" / "fifo"),
        "missing": str(home / "work" / "nothing"),
        "relative": "work/a.txt",
        "nul": f"{home}/work/a\0",
        "long": f"{home}/{'x' * 600_000}",
        "circle": str(home / "work" / "circle"),
    }
    with pytest.raises(InvalidArgument) as caught:
        roots(home).read("files[0]", paths[kind], LIMIT)
    assert caught.value.field == "files[0]"
    assert len(str(caught.value)) < 1_000
