"""The client's half of SCRAM-SHA-256, for test programs that open Postgres sessions of their own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import struct

MECHANISM = b"SCRAM-SHA-256"

SASL, SASL_CONTINUE, SASL_FINAL = 10, 11, 12
"""What an authentication request of the server may ask for."""


class Scram:
    """One authentication; `answer` is asked with each request of the server until it lets us in."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._nonce = base64.b64encode(os.urandom(18)).decode()
        self._bare = f"n=,r={self._nonce}"

    def answer(self, request: bytes) -> bytes | None:
        """Return the body of the next `p` packet, None if there is none."""
        (kind,) = struct.unpack("!I", request[:4])
        if kind == SASL:
            assert MECHANISM in request[4:].split(b"\0")
            first = b"n,," + self._bare.encode()
            return MECHANISM + b"\0" + struct.pack("!I", len(first)) + first
        if kind == SASL_CONTINUE:
            return self._proof(request[4:].decode())
        assert kind == SASL_FINAL, request
        return None

    def _proof(self, server_first: str) -> bytes:
        values = dict(part.split("=", 1) for part in server_first.split(","))
        assert values["r"].startswith(self._nonce)
        salted = hashlib.pbkdf2_hmac("sha256", self._password, base64.b64decode(values["s"]), int(values["i"]))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        final = f"c=biws,r={values['r']}"
        signed = f"{self._bare},{server_first},{final}".encode()
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = bytes(left ^ right for left, right in zip(client_key, signature, strict=True))
        return f"{final},p={base64.b64encode(proof).decode()}".encode()
