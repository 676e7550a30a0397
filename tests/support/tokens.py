"""Signed tokens and published keys as an issuer makes them."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://ref.supabase.test/auth/v1"
SECRET = "a-secret-that-is-long-enough-for-hs256-and-then-some"

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def claims(subject: str = "alice", **changes: Any) -> dict[str, Any]:
    """The claims of a good token; a change to None leaves one out."""
    given = {"iss": ISSUER, "aud": "authenticated", "exp": int(time.time()) + 3_600, "sub": subject, **changes}
    return {name: value for name, value in given.items() if value is not None}


def signed(subject: str = "alice", **changes: Any) -> str:
    """A token signed with the shared secret."""
    return jwt.encode(claims(subject, **changes), SECRET, "HS256")


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def rsa_key(bits: int = 2_048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, bits)


def signed_by(key: Key, kid: str | None, subject: str = "alice", **changes: Any) -> str:
    """A token signed with a private key."""
    algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    return jwt.encode(claims(subject, **changes), key, algorithm, headers={"kid": kid} if kid else None)


def confused(secret: bytes, kid: str) -> str:
    """A token signed by HS256 with a public key as the secret; libraries refuse to make one."""
    head = _part(json.dumps({"alg": "HS256", "typ": "JWT", "kid": kid}).encode())
    body = f"{head}.{_part(json.dumps(claims()).encode())}"
    return f"{body}.{_part(hmac.digest(secret, body.encode(), 'sha256'))}"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def published(**keys: Key) -> bytes:
    """The JWKS document with the public halves of these keys."""
    listed = []
    for kid, key in keys.items():
        algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
        listed.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"})
    return json.dumps({"keys": listed}).encode()
