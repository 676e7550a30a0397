"""The image that docker/Dockerfile makes, on a real engine."""

from __future__ import annotations

import json

import pytest

from tests.containers.engine import Engine
from tests.containers.images import size_bytes

pytestmark = pytest.mark.heavy

MOST_BYTES = 250_000_000
BOUND = ("--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")

IMPORT_ALL = """
import importlib, pkgutil, exai
names = [m.name for m in pkgutil.walk_packages(exai.__path__, 'exai.') if not m.name.startswith('exai.db.alembic')]
for name in names:
    if not name.endswith('__main__'):
        importlib.import_module(name)
import obstore, opentelemetry.exporter.otlp.proto.http, opentelemetry.sdk, pypdf, uvloop
print(len(names))
"""

PRIVILEGED = """
import os
found = []
for top, _, names in os.walk('/'):
    if top.startswith(('/proc', '/sys')):
        continue
    for name in names:
        path = os.path.join(top, name)
        if os.path.isfile(path) and not os.path.islink(path) and os.stat(path).st_mode & 0o6000:
            found.append(path)
print(found)
"""


def test_image_is_small(engine: Engine, image: str) -> None:
    """It is pulled to small machines."""
    assert size_bytes(engine, image) < MOST_BYTES


def test_every_module_is_imported_in_a_container_without_rights(engine: Engine, image: str) -> None:
    """Without a network, on a read-only root, as a user that is not root."""
    printed = engine.must("run", *BOUND, "--entrypoint", "python", image, "-c", IMPORT_ALL)
    assert int(printed) > 300


def test_image_has_no_installer_and_no_privileged_program(engine: Engine, image: str) -> None:
    """Code that runs in it cannot become root by a program of the image."""
    assert engine.must("run", *BOUND, "--user", "0", "--entrypoint", "python", image, "-c", PRIVILEGED) == "[]"
    found = engine.run("run", *BOUND, "--entrypoint", "python", image, "-c", "import pip")
    assert "No module named 'pip'" in found.stderr


def test_image_says_how_it_runs(engine: Engine, image: str) -> None:
    """What orchestrators read: a numeric user, the health check, the signal to stop."""
    described = json.loads(engine.must("image", "inspect", image))[0]["Config"]
    assert described["User"] == "10001:10001"
    assert described["Healthcheck"]["Test"][0] == "CMD"
    assert "/health/live" in described["Healthcheck"]["Test"][-1]
    assert described["StopSignal"] == "SIGTERM"
    assert list(described["Volumes"]) == ["/data"]
    assert not [each for each in described["Env"] if "TOKEN" in each or "PASSWORD" in each or "KEY" in each]


def test_without_a_database_the_image_names_the_cure(engine: Engine, image: str) -> None:
    """It has no servers of its own."""
    done = engine.run("run", "--rm", image)
    assert done.returncode == 3
    assert "EXAI_DATABASE__URL" in done.stderr
