"""Parse a Postgres address as libpq does: an address that works in psql works here, any other is refused.

Invariant: no error message or representation contains a password.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes, urlencode

from exai.errors import ConfigError

DEFAULT_PORT: Final = 5432
SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SCHEMES: Final = ("postgresql", "postgres")

TLS_PARAMETERS: Final = frozenset({
    "sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version",
})  # fmt: skip
SERVER_PARAMETERS: Final = frozenset({"application_name", "options"})
DRIVER_PARAMETERS: Final = frozenset({"target_session_attrs", "passfile", "service", "krbsrvname", "gsslib"})
IDENTITY_PARAMETERS: Final = frozenset({"host", "port", "user", "password", "dbname", "connect_timeout"})
WITHOUT_EFFECT: Final = frozenset({
    "client_encoding", "fallback_application_name", "gssdelegation", "gssencmode", "keepalives", "keepalives_count",
    "keepalives_idle", "keepalives_interval", "load_balance_hosts", "replication", "requirepeer", "require_auth",
    "sslcertmode", "sslcompression", "sslsni", "tcp_user_timeout", "channel_binding",
})  # fmt: skip
"""Parameters of libpq that this driver does not support; they are accepted only with a value without effect."""

ASKS_FOR_NOTHING: Final = {
    "channel_binding": {"disable", "prefer"},
    "client_encoding": {"UTF8", "utf8", "UTF-8", "utf-8", "auto"},
    "gssencmode": {"disable", "prefer"},
    "load_balance_hosts": {"disable"},
    "replication": {"false", "off", "no", "0"},
    "sslcertmode": {"allow", "disable"},
    "sslcompression": {"0"},
    "sslsni": {"1"},
}
HARMLESS: Final = frozenset({
    "fallback_application_name", "gssdelegation", "keepalives", "keepalives_count", "keepalives_idle",
    "keepalives_interval", "tcp_user_timeout",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is and how to get in. `hosts` are tried in order; a host that begins with `/` is a directory."""

    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None = field(repr=False)
    database: str | None
    tls: dict[str, str] = field(default_factory=dict, repr=False)
    server_settings: dict[str, str] = field(default_factory=dict)
    driver: dict[str, str] = field(default_factory=dict)
    connect_timeout_s: float | None = None

    @property
    def shown(self) -> str:
        """For people: host, port and database, without user or password."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts) or "the local socket"
        return f"{hosts}/{self.database or ''}"

    def connect_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `asyncpg.connect`."""
        arguments: dict[str, Any] = {
            "user": self.user,
            "password": self.password,
            "database": self.database,
            "server_settings": {"application_name": "exai", **self.server_settings},
        }
        if self.hosts:
            arguments["host"] = [host for host, _ in self.hosts]
            arguments["port"] = [port for _, port in self.hosts]
        tls = dict(self.tls)
        if tls.get("sslrootcert") == "system":
            # The system's certificate authorities; libpq then checks the host name in every mode.
            arguments["ssl"] = ssl.create_default_context()
            tls = {}
        query = {**tls, **self.driver}
        if query:
            # Only the driver's own reader of addresses takes certificate paths, so they travel in one.
            arguments["dsn"] = f"postgresql://?{urlencode(query, quote_via=quote)}"
        return arguments


def parse_address(url: str, setting: str = "EXAI_DATABASE__URL") -> Address:
    """Read a `postgresql://` address.

    Raises:
        ConfigError: about `setting`, without repeating the address.

    """
    return _Reader(setting).read(url.strip())


class _Reader:
    def __init__(self, setting: str) -> None:
        self._setting = setting

    def refuse(self, problem: str, cure: str) -> ConfigError:
        return ConfigError(self._setting, problem, cure)

    def read(self, url: str) -> Address:
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.partition("+")[0] not in SCHEMES:
            raise self.refuse(
                "is not a Postgres address", "Write it as postgresql://user:password@host:5432/database?sslmode=require"
            )
        authority, slash, tail = self._split_authority(rest)
        user, password, hostspec = authority
        hosts = self._hosts(hostspec)
        path, _, query = tail.partition("?")
        parameters = self._parameters(query)
        database = self._decode(path, "the database name") if slash and path else None
        return self._address(hosts, user, password, database, parameters)

    def _split_authority(self, rest: str) -> tuple[tuple[str | None, str | None, str], bool, str]:
        # Like libpq: user information ends at the first @, unless a / comes before it.
        end = next((i for i, char in enumerate(rest) if char in "@/"), len(rest))
        user: str | None = None
        password: str | None = None
        if rest[end : end + 1] == "@":
            info, rest = rest[:end], rest[end + 1 :]
            name, colon, secret = info.partition(":")
            user = self._decode(name, "the user name") or None
            password = (self._decode(secret, "the password") or None) if colon else None
        if password == "[YOUR-PASSWORD]":  # noqa: S105 (the placeholder of Supabase's pages, not a password)
            raise self.refuse("still holds the placeholder [YOUR-PASSWORD]", "Put the database's password in its place")
        cut = next((i for i, char in enumerate(rest) if char in "/?"), len(rest))
        hostspec = rest[:cut]
        if "@" in hostspec:
            raise self.refuse("holds more than one @ before the host", "Write an @ in the password as %40")
        slash = rest[cut : cut + 1] == "/"
        tail = rest[cut + 1 :] if slash else rest[cut:]
        return (user, password, hostspec), slash, tail

    def _hosts(self, hostspec: str) -> list[tuple[str, int]]:
        hosts = []
        for part in hostspec.split(",") if hostspec else []:
            if part.startswith("["):
                host, bracket, after = part[1:].partition("]")
                if not bracket or not host or (after and not after.startswith(":")):
                    raise self.refuse("holds a broken IPv6 host", "Write it as [2001:db8::1]:5432")
                hosts.append((host, self._port(after[1:])))
            else:
                host, _, port = part.partition(":")
                hosts.append((self._decode(host, "the host"), self._port(port)))
        return hosts

    def _port(self, text: str) -> int:
        if not text:
            return DEFAULT_PORT
        if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
            # An unescaped / or : in a password ends up here, and must not be shown.
            raise self.refuse(
                "holds a port that is not a number from 1 to 65535",
                "Characters like / : @ # ? in the password are written as %2F %3A %40 %23 %3F",
            )
        return int(text)

    def _parameters(self, query: str) -> dict[str, str]:
        parameters = {}
        for part in query.split("&") if query else []:
            name, equals, value = part.partition("=")
            if not equals or "=" in value:
                raise self.refuse("holds a parameter that is not name=value", "Separate parameters by & after one ?")
            key = self._decode(name, "a parameter name")
            parameters[key] = self._decode(value, f"the parameter {key}")
        if parameters.get("ssl") == "true":
            del parameters["ssl"]
            parameters["sslmode"] = "require"
        return parameters

    def _address(
        self,
        hosts: list[tuple[str, int]],
        user: str | None,
        password: str | None,
        database: str | None,
        parameters: dict[str, str],
    ) -> Address:
        for name, value in parameters.items():
            self._check_parameter(name, value)
        if parameters.get("host"):
            ports = parameters.get("port", "").split(",")
            names = parameters["host"].split(",")
            ports = ports * len(names) if len(ports) == 1 else ports
            if len(ports) != len(names):
                raise self.refuse("names as many ports as it has not hosts", "Give one port, or one for each host")
            hosts = [(name, self._port(port)) for name, port in zip(names, ports, strict=True)]
        elif parameters.get("port"):
            hosts = [(host, self._port(parameters["port"])) for host, _ in hosts]
        timeout = parameters.get("connect_timeout")
        return Address(
            hosts=tuple((host, port) for host, port in hosts if host),
            user=parameters.get("user") or user,
            password=parameters.get("password") or password,
            database=parameters.get("dbname") or database,
            tls={name: value for name, value in parameters.items() if name in TLS_PARAMETERS and value},
            server_settings={name: value for name, value in parameters.items() if name in SERVER_PARAMETERS and value},
            driver={name: value for name, value in parameters.items() if name in DRIVER_PARAMETERS and value},
            connect_timeout_s=float(timeout) if timeout and float(timeout) > 0 else None,
        )

    def _check_parameter(self, name: str, value: str) -> None:
        if name in TLS_PARAMETERS:
            if name == "sslmode" and value not in SSL_MODES:
                raise self.refuse(f"has sslmode={value!r}", f"Use one of {', '.join(SSL_MODES)}")
        elif name in WITHOUT_EFFECT:
            if value and name not in HARMLESS and value not in ASKS_FOR_NOTHING.get(name, ()):
                raise self.refuse(f"asks for {name}={value}, which the driver cannot give", f"Remove {name}")
        elif name == "connect_timeout":
            if value and not value.isdecimal():
                raise self.refuse("has a connect_timeout that is not whole seconds", "Write connect_timeout=5")
        elif name not in IDENTITY_PARAMETERS | SERVER_PARAMETERS | DRIVER_PARAMETERS:
            raise self.refuse(f"has the parameter {name!r}, which Postgres does not know", f"Remove {name}")

    def _decode(self, text: str, what: str) -> str:
        for i, char in enumerate(text):
            if char == "%" and not _is_hex(text[i + 1 : i + 3]):
                raise self.refuse(f"has a broken %-escape in {what}", "Write a plain % as %25")
        try:
            decoded = unquote_to_bytes(text).decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"has %-escapes in {what} that are not UTF-8", "Escape the UTF-8 bytes") from None
        if "\0" in decoded:
            raise self.refuse(f"has %00 in {what}", "Remove it")
        return decoded


def _is_hex(text: str) -> bool:
    return len(text) == 2 and all(char in "0123456789abcdefABCDEF" for char in text)
