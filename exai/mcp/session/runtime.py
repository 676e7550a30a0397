"""The shared state of all sessions of one server: settings, limits and reports.

Invariant: nothing here refers to a server, a session or a feature, so sessions depend on it and it on none of them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from exai.mcp.core.protocol import ClientInfo, Terms
from exai.mcp.session.accounting import Accounting
from exai.mcp.session.quota import Quotas
from exai.mcp.session.timeouts import Timeouts
from exai.models import Recorder
from exai.settings.load import ServerSettings


@dataclass(slots=True)
class Runtime:
    """One per server. `activity` is set when a call or a session has ended, for those that wait until none is left."""

    settings: ServerSettings
    recorder: Recorder
    default_timeout_s: float
    quotas: Quotas = field(init=False)
    accounting: Accounting = field(init=False)
    timeouts: Timeouts = field(default_factory=Timeouts)
    activity: asyncio.Event = field(default_factory=asyncio.Event)
    is_draining: bool = False
    _shortest_deadline_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.quotas = Quotas(self.settings, self.recorder)
        self.accounting = Accounting(self.recorder)
        self._shortest_deadline_s = self.settings.shortest_call_deadline_s

    def timeout_s(self, terms: Terms, client: ClientInfo) -> float:
        """Return the timeout of a call: the shortest of the limits of the server, of its terms and of its client."""
        own = terms.timeout_s
        timeout_s = self.default_timeout_s if own is None or own > self.default_timeout_s else own
        # Most calls have a shorter limit than any client, and need no search for theirs.
        if terms.may_go_on or timeout_s <= self._shortest_deadline_s:
            return timeout_s
        return min(timeout_s, self.settings.call_deadline_s(client.name))
