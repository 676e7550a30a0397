"""Parsing the cache's address: used in full or refused, and never shown with its password."""

from __future__ import annotations

import ssl

import pytest

from exai.cache.redis.address import RedisAddress, RedisServer, parse_address
from exai.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("redis://host", RedisServer("host", 6379)),
        ("redis://host:7000/3", RedisServer("host", 7000, greeting=(("SELECT", 3),))),
        ("redis://host?db=4", RedisServer("host", 6379, greeting=(("SELECT", 4),))),
        ("redis://:p%40ss@host/0", RedisServer("host", 6379, greeting=(("AUTH", "p@ss"),))),
        ("redis://me:pass@host", RedisServer("host", 6379, greeting=(("AUTH", "me", "pass"),))),
        ("redis://[::1]:7000/", RedisServer("::1", 7000)),
        ("REDIS://host", RedisServer("host", 6379)),
        (
            "unix:///run/my%20dir/valkey.sock?db=2",
            RedisServer(path="/run/my dir/valkey.sock", greeting=(("SELECT", 2),)),
        ),
        ("unix://:secret@/run/v.sock", RedisServer(path="/run/v.sock", greeting=(("AUTH", "secret"),))),
    ],
)
def test_one_server(url: str, server: RedisServer) -> None:
    """The forms that redis-py accepts."""
    assert parse_address(url) == RedisAddress("standalone", (server,), server)


def test_sentinels_have_a_greeting_of_their_own() -> None:
    """They usually have other passwords than the servers they watch."""
    address = parse_address(
        "redis+sentinel://me:pass@one,two:7000,[::1]/main?db=1&sentinel_username=watch&sentinel_password=dog"
    )
    greeting = (("AUTH", "watch", "dog"),)
    assert address.servers == (
        RedisServer("one", 26379, greeting=greeting),
        RedisServer("two", 7000, greeting=greeting),
        RedisServer("::1", 26379, greeting=greeting),
    )
    assert (address.mode, address.service) == ("sentinel", "main")
    assert address.primary.greeting == (("AUTH", "me", "pass"), ("SELECT", 1))


def test_cluster_names_any_of_its_servers() -> None:
    """The rest is learned."""
    address = parse_address("redis+cluster://:pass@one:7000,two")
    assert address.mode == "cluster"
    assert [(each.host, each.port, each.greeting) for each in address.servers] == [
        ("one", 7000, (("AUTH", "pass"),)),
        ("two", 6379, (("AUTH", "pass"),)),
    ]


@pytest.mark.parametrize("url", ["rediss://host", "rediss+cluster://host", "rediss+sentinel://host/main"])
def test_tls_checks_certificate_and_name_by_default(url: str) -> None:
    """For all servers of the address."""
    for server in (*parse_address(url).servers, parse_address(url).primary):
        assert server.tls is not None
        assert (server.tls.verify_mode, server.tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    relaxed = parse_address(f"{url}?ssl_cert_reqs=none").primary.tls
    assert relaxed is not None
    assert (relaxed.verify_mode, relaxed.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://host", "unknown scheme"),
        ("redis+what://host", "unknown scheme"),
        ("redis://host:port", "cannot be read"),
        ("redis://host/0?socket_timeout=5", "unknown option socket_timeout"),
        ("redis+cluster://a,,b", "names no server"),
        ("redis+cluster://" + ",".join("abcdefghijklmnopq"), "names no server, or too many"),
        ("redis+cluster://a/1", "has only number 0"),
        ("redis+sentinel://a:26379", "names no service"),
        ("redis://me:se:cret@host:port", "cannot be read"),
        ("rediss://:secret@host?ssl_cert_reqs=perhaps", "cannot be read"),
        ("rediss://:secret@host?ssl_min_version=1.2", "cannot be read"),
        ("rediss://:secret@host?ssl_ciphers=none-such", "certificate or key"),
        ("redis://:secret@host/first", "cannot be read"),
        ("rediss://:secret@host?ssl_ca_certs=/no/such/file", "certificate or key"),
        ("unix://", "names no socket"),
    ],
)
def test_what_cannot_be_used_is_refused_without_showing_a_secret(url: str, problem: str) -> None:
    """At start, naming the variable; the text is logged."""
    with pytest.raises(ConfigError, match=problem) as refused:
        parse_address(url)
    assert str(refused.value).startswith("EXAI_CACHE__URL: ")
    assert "cret" not in str(refused.value)
    assert refused.value.__cause__ is None
