"""The limit of open files of this process, which bounds its connections regardless of the settings.

Invariant: a daemon refuses connections at its own limit, with an answer and a log line, before the
kernel refuses them without either.
"""

from __future__ import annotations

import structlog

try:
    import resource
except ImportError:  # Windows, which has no such limit
    _HAS_LIMITS = False
else:
    _HAS_LIMITS = True

RESERVED = 128
"""Descriptors reserved for everything but clients: database pool, Redis, providers, files, listening sockets."""

log = structlog.get_logger(__name__)


def connections_possible(wanted: int) -> int:
    """Raise the limit of open files as far as allowed; return how many of the `wanted` connections that permits."""
    if not _HAS_LIMITS:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = _raised(soft, hard, needed)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    possible = max(1, soft - RESERVED, soft // 2)
    log.warning(
        "the limit of open files is below EXAI_SERVER__MAX_CONNECTIONS; raise it (ulimit -n, LimitNOFILE)",
        open_files=soft,
        max_connections=wanted,
        connections=possible,
    )
    return possible


def _raised(soft: int, hard: int, needed: int) -> int:
    """Raise the soft limit to the needed number: some systems allow that although they refuse an unlimited number."""
    target = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError):
        return soft
    return target
