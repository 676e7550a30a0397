"""The section of the settings about requests that clients store in the database."""

from __future__ import annotations

from pydantic import Field

from exai.settings.sections import DatabaseUrl, Section


class RequestSettings(Section):
    """Stored requests, for clients that cannot reach this daemon; no daemon answers them unless `enabled`.

    `listen_url` is a direct or session-mode address of the same database, at which the daemon is notified of new ones.
    """

    enabled: bool = False
    max_running: int = Field(default=8, ge=1, le=100)
    keep_days: float = Field(default=30.0, gt=0, le=3_650)
    listen_url: DatabaseUrl | None = None
