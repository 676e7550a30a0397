"""The choice of servers for the test suite, and its report."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest

from tests.support.backend import Backend, Choice, NoBackend, choose, own_database

ADDRESSES = {"EXAI_TEST_DATABASE_URL": "postgresql://x/y", "EXAI_TEST_REDIS_URL": "redis://x"}
NO_DOCKER = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


@pytest.fixture
def docker_host(tmp_path: Path) -> Iterator[str]:
    """A server that answers one request as Docker."""
    path = tmp_path / "docker.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nOK")

        thread = Thread(target=answer)
        thread.start()
        yield f"unix://{path}"
        thread.join()


def test_addresses_come_first_when_given() -> None:
    """Who names servers means them."""
    assert choose(ADDRESSES).kind == "url"


def test_docker_is_taken_when_it_answers(docker_host: str) -> None:
    """Developers have containers by default."""
    assert choose({"DOCKER_HOST": docker_host}) == Choice("docker", "Docker answers", named=False)


def test_embedded_is_taken_without_docker_and_says_why() -> None:
    """The suite is never skipped for lack of Docker."""
    choice = choose(NO_DOCKER)
    assert choice.kind == "embedded"
    assert str(choice).startswith("embedded (no Docker: ")


def test_docker_that_never_answers_is_no_docker(tmp_path: Path) -> None:
    """A hanging daemon would block the client for a minute."""
    path = tmp_path / "docker.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        assert choose({"DOCKER_HOST": f"unix://{path}"}).kind == "embedded"


@pytest.mark.parametrize(
    "environ",
    [
        {"EXAI_TEST_BACKEND": "url"},
        {"EXAI_TEST_DATABASE_URL": "postgresql://x/y"},
        {"EXAI_TEST_BACKEND": "docker", **NO_DOCKER},
        {"EXAI_TEST_BACKEND": "podman"},
    ],
    ids=["no addresses", "half the addresses", "no docker", "misspelled"],
)
def test_backend_that_was_named_and_cannot_be_had_is_an_error(environ: dict[str, str]) -> None:
    """The tested backend is never replaced silently."""
    with pytest.raises(NoBackend):
        choose(environ)


def test_docker_without_images_gives_way_only_when_it_was_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker without the image and without a network shows itself when the container is made."""
    monkeypatch.setenv("DOCKER_HOST", NO_DOCKER["DOCKER_HOST"])
    with closing(Backend(Choice("docker", "as asked", named=True), None)) as backend, pytest.raises(NoBackend):
        backend.start()
    with closing(Backend(Choice("docker", "Docker answers", named=False), None)) as backend:
        backend.start()
        assert backend.choice.kind == "embedded"
        assert "Docker cannot run the images" in backend.choice.reason


@pytest.mark.parametrize(
    ("url", "worker", "own"),
    [
        ("redis://h:1/0", None, "redis://h:1/0"),
        ("unix:///s.sock", "gw0", "unix:///s.sock"),
        ("redis://h:1", "gw1", "redis://h:1/1"),
        ("rediss://u:p@h:1/4", "gw2", "rediss://u:p@h:1/6"),
    ],
)
def test_processes_of_one_suite_empty_databases_of_their_own(url: str, worker: str | None, own: str) -> None:
    """They share the server that was given to them all."""
    assert own_database(url, worker) == own


def test_address_that_cannot_be_shared_is_refused_with_the_way_to_use_it() -> None:
    """A socket's address names no database in its path."""
    with pytest.raises(NoBackend, match="ARGS=-n0"):
        own_database("unix:///s.sock", "gw1")
