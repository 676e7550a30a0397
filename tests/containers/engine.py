"""A Docker engine for the tests: the one that answers, or a private one from the distribution's packages.

Invariant: a private engine has its socket, data and configuration in one temporary directory, and ends with the
program that started it, also when that is interrupted or killed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.backend import DOCKER_HOST, docker_problem

START_LIMIT_S = 60
STOP_LIMIT_S = 60
NETWORK = "172.31.250.1/24"
POOLS = "172.31.240.0/21"
SUITE = "trixie"
"""The release of Debian of which images and plugins are made where none can be pulled."""

PLUGINS = ("docker-buildx", "docker-compose")
OURS = re.compile(r"DOCKER|docker0|br-[0-9a-f]{12}|172\.31\.2(4\d|50)\.")


class NoEngine(Exception):
    """Containers cannot be run here; the text is the reason."""


@dataclass(frozen=True)
class Engine:
    """An engine that answers. `variables` are the environment of programs that use it."""

    description: str
    is_private: bool
    variables: dict[str, str]

    def run(self, *command: str, limit_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Run `docker ...`; any exit status is returned."""
        return subprocess.run(
            ["docker", *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=limit_s,
            env={**os.environ, **self.variables},
        )

    def must(self, *command: str, limit_s: float = 900) -> str:
        """Run `docker ...`, which must succeed; returns what it printed."""
        done = self.run(*command, limit_s=limit_s)
        if done.returncode != 0:
            raise AssertionError(f"docker {' '.join(command)}: {done.stderr[-4000:] or done.stdout[-4000:]}")
        return done.stdout.strip()


@contextmanager
def open_engine(kept: Path) -> Iterator[Engine]:
    """Yield the running engine or a private one; `kept` holds what may be used again. Raises NoEngine."""
    if docker_problem(os.environ) is None and shutil.which("docker"):
        address = os.environ.get("DOCKER_HOST") or DOCKER_HOST
        engine = Engine(f"the engine at {address}", is_private=False, variables={})
        require_plugins(engine)
        yield engine
        return
    install()
    with tempfile.TemporaryDirectory(prefix="exai-docker-", ignore_cleanup_errors=True) as directory:
        with private_engine(Path(directory)) as engine:
            place_plugins(Path(directory) / "client", kept)
            require_plugins(engine)
            yield engine


def require_plugins(engine: Engine) -> None:
    """Raise NoEngine unless the client has compose and BuildKit."""
    for plugin in ("compose", "buildx"):
        if engine.run(plugin, "version").returncode != 0:
            raise NoEngine(f"`docker {plugin}` is not installed")


def install() -> None:
    """Install engine and image builder by apt, as root. Raises NoEngine."""
    needed = {"docker.io": "dockerd", "iptables": "iptables", "mmdebstrap": "mmdebstrap"}
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    missing = [package for package, program in needed.items() if not shutil.which(program, path=path)]
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NoEngine("no Docker engine answers, and only root on Linux can start a private one")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise NoEngine("no Docker engine answers, and there is no apt to install one")
    quiet = {"DEBIAN_FRONTEND": "noninteractive", **os.environ}
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", *command], check=False, capture_output=True, text=True, timeout=600, env=quiet
        )
        if done.returncode != 0:
            raise NoEngine(f"apt-get {command[0]}: {done.stderr.strip()[-300:]}")


@contextmanager
def private_engine(directory: Path) -> Iterator[Engine]:
    """Run dockerd with everything below `directory`."""
    client = directory / "client"
    client.mkdir()
    address = f"unix://{directory}/docker.sock"
    options = (
        *("--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec", "--pidfile", f"{directory}/pid"),
        *("--host", address, "--bip", NETWORK, "--default-address-pool", f"base={POOLS},size=24"),
        # Inside another container the limit cannot be raised beyond its own.
        *("--default-ulimit", "nofile=20000:20000", "--config-file", f"{directory}/none.json"),
    )
    (directory / "none.json").write_text("{}")
    variables = {
        "DOCKER_HOST": address,
        "DOCKER_CONFIG": str(client),
        "DOCKER_BUILDKIT": "1",
        "TESTCONTAINERS_RYUK_DISABLED": "true",
        "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1",
    }
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(
            # The kernel ends it when this program is killed.
            ["setpriv", "--pdeathsig", "TERM", "dockerd", *options],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            # Not interrupted together with the tests: they still need it to remove their containers.
            start_new_session=True,
        )
    try:
        engine = Engine("a private engine", is_private=True, variables=variables)
        deadline = time.monotonic() + START_LIMIT_S
        while docker_problem(variables) is not None:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise NoEngine(f"dockerd did not start: {(directory / 'log').read_text(errors='replace')[-600:]}")
            time.sleep(0.1)
        yield engine
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        remove_traces(directory)


def remove_traces(directory: Path) -> None:
    """Unmount what the engine left, and remove its bridge and its rules of the firewall."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    if shutil.which("ip"):
        subprocess.run(["ip", "link", "delete", "docker0"], check=False, capture_output=True)
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    save, restore = shutil.which("iptables-save", path=path), shutil.which("iptables-restore", path=path)
    if save and restore:
        rules = subprocess.run([save], check=False, capture_output=True, text=True).stdout
        kept = "".join(line for line in rules.splitlines(keepends=True) if not OURS.search(line))
        subprocess.run([restore], check=False, input=kept, text=True, capture_output=True)


def place_plugins(client: Path, kept: Path) -> None:
    """Give the client compose and BuildKit, of Debian's packages where the system has none."""
    probe = {**os.environ, "DOCKER_CONFIG": str(client)}
    missing = [
        name
        for name in PLUGINS
        if subprocess.run(
            ["docker", name.partition("-")[2], "version"], check=False, capture_output=True, env=probe
        ).returncode
    ]
    if not missing:
        return
    archive = kept / "plugins.tar"
    if not archive.exists():
        bootstrap(archive, "--variant=extract", f"--include={','.join(PLUGINS)}")
    target = client / "cli-plugins"
    target.mkdir(exist_ok=True)
    members = [f"./usr/libexec/docker/cli-plugins/{name}" for name in PLUGINS]
    subprocess.run(["tar", "xf", archive, "-C", target, "--strip-components=5", *members], check=True)


def bootstrap(target: Path, *options: str) -> None:
    """Make an archive of packages of Debian, from the mirror that this system uses. Raises NoEngine."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"unfinished-{target.name}")
    done = subprocess.run(
        ["mmdebstrap", *options, SUITE, str(unfinished), *mirrors()],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise NoEngine(f"mmdebstrap: {done.stderr.strip()[-500:]}")
    unfinished.rename(target)


def mirrors() -> list[str]:
    """Return the mirror of Debian that apt uses, or nothing, which means mmdebstrap's own."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    found = (line.split()[0] for line in listed.splitlines() if line.endswith(" Debian Debian"))
    return list(dict.fromkeys(found))[:1]
