"""Build the TLS context of a connection to Redis from the `ssl_` options of its address, which are those of redis-py.

Invariant: without options the server's certificate and its name are verified against the system's authorities.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final

TLS_OPTIONS: Final = frozenset(
    {
        *("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_password"),
        *("ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers"),
    }
)
_VERIFY_MODES: Final[Mapping[str, ssl.VerifyMode]] = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_FALSE: Final = frozenset({"0", "F", "FALSE", "N", "NO"})


def tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """Return the context. Raises `ValueError` for a value out of range, `OSError` for an unusable file."""
    mode = options.get("ssl_cert_reqs", "required")
    if mode not in _VERIFY_MODES:
        raise ValueError(mode)
    verify_mode = _VERIFY_MODES[mode]
    context = ssl.create_default_context()
    # Python refuses the combination of a checked name with a certificate that is not verified.
    context.check_hostname = verify_mode != ssl.CERT_NONE and (
        options.get("ssl_check_hostname", "true").upper() not in _FALSE
    )
    context.verify_mode = verify_mode
    if "ssl_certfile" in options or "ssl_keyfile" in options:
        context.load_cert_chain(
            options.get("ssl_certfile", ""), options.get("ssl_keyfile"), options.get("ssl_password", "")
        )
    authorities = [options.get(name) for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data")]
    if any(authorities):
        context.load_verify_locations(*authorities)
    if "ssl_min_version" in options:
        context.minimum_version = ssl.TLSVersion(int(options["ssl_min_version"]))
    if "ssl_ciphers" in options:
        context.set_ciphers(options["ssl_ciphers"])
    return context
