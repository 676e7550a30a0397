"""Connections to providers: bursts of pieces, TLS, and names with several addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from exai.models import Delta
from exai.providers.completion.http_client import HttpClients, open_client, reason_of
from exai.providers.network.turns import READS
from exai.settings.load import ProvidersSettings
from tests.integration.providers.conftest import Asker, Heard, soon
from tests.support.provider_server import ProviderServer, chunk, stream

HOSTS = ("localhost", "127.0.0.1")


async def test_a_burst_of_pieces_leaves_the_event_loop_to_others(server: ProviderServer, ask: Asker) -> None:
    """However many answers go on at the same moment, a few pieces are read in each iteration."""
    parallel = 80
    server.default = lambda _: stream(
        chunk({"content": "a"}), "gate", chunk({"content": "b"}), chunk({}, finish="stop")
    )
    heard = [Heard() for _ in range(parallel)]
    taken, iterations = [0], 0

    def hearing(each: Heard) -> Any:
        async def hear(delta: Delta) -> None:
            taken[-1] += delta.content == "b"
            await each(delta)

        return hear

    calls = [asyncio.create_task(ask("kimi-k3", hearing(each))) for each in heard]
    await soon(asyncio.gather(*(each.first.wait() for each in heard)))
    server.gate.set()
    while not all(call.done() for call in calls):
        await asyncio.sleep(0)
        taken.append(0)
        iterations += 1
    assert [(await call).content for call in calls] == ["ab"] * parallel
    assert sum(taken) == parallel
    assert max(taken) <= READS
    assert iterations >= parallel // READS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of this machine's addresses with its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(HOSTS[0]), x509.IPAddress(ipaddress.ip_address(HOSTS[1]))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "server.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return path


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with its own body, in two parts."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        body = await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + body[:1])
        await writer.drain()
        writer.write(body[1:])


async def test_large_bodies_pass_over_tls_on_one_connection(certificate: Path) -> None:
    """The certificate is verified; both ways are slower than the other side, so that each has to wait."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    body = bytes(range(256)) * 8_192
    async with await asyncio.start_server(echo, HOSTS[1], 0, ssl=serving, limit=2**23) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"https://{HOSTS[0]}:{port}/"
        async with open_client(url, ProvidersSettings(), trusting) as client:
            seen = set()
            for _ in range(2):
                reply = await soon(client.post(url, content=body))
                assert reply.content == body
                seen.add(reply.extensions["network_stream"].get_extra_info("client_addr"))
            assert len(seen) == 1
        async with open_client(url, ProvidersSettings(), ssl.create_default_context()) as client:
            with pytest.raises(httpx.ConnectError) as refused:
                await soon(client.post(url, content=body))
            assert "CERTIFICATE" in reason_of(refused.value)


async def test_certificates_are_read_for_the_first_address_that_needs_them(certificate: Path) -> None:
    """Reading them takes longer than the rest of a provider's opening; a client without them refuses TLS."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate)
    clients = HttpClients(ProvidersSettings())
    async with await asyncio.start_server(echo, HOSTS[1], 0, ssl=serving) as server:
        async with clients.open("http://models.example/v1") as client:
            with pytest.raises(httpx.ConnectError) as refused:
                await soon(client.get(f"https://{HOSTS[0]}:{server.sockets[0].getsockname()[1]}/"))
            assert "CERTIFICATE" in reason_of(refused.value)
    assert clients._verify is None
    async with clients.open("https://models.example/v1"), clients.open("https://other.example/v1"):
        assert clients._verify is not None
        assert clients._verify.get_ca_certs() != []


async def test_the_next_address_of_a_name_is_tried(server: ProviderServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one refuses; if all do, the error is that of the first."""
    loop = asyncio.get_running_loop()
    found = [(socket.AF_INET, 1, 6, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1")]

    async def resolve(*_: Any, **__: Any) -> Any:
        return found

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    async with open_client(server.base_url, ProvidersSettings(), ssl.create_default_context()) as client:
        reply = await soon(client.get(f"http://localhost:{server.port}/v1/models"))
        assert reply.status_code == 200
        await server.stop()
        found.pop()
        with pytest.raises(httpx.ConnectError) as refused:
            await soon(client.get(f"http://localhost:{server.port}/v1/models"))
        assert reason_of(refused.value) == "Connection refused"
