"""Postgres and the way to it fail: nothing acknowledged is lost, nothing is written twice, and every error is true."""

from __future__ import annotations

import pytest

from exai.errors import OutcomeUnknown
from tests.fault.service import Servers


async def test_write_in_doubt_stays_in_doubt_when_its_repetition_finds_no_server(rig: Servers) -> None:
    """An append that was carried out before the network failed must never be reported as not written."""
    service = await rig.open()
    name = (await service.append(None, "one")).continuation_id
    lost = service.database.drop_reply_to(b"append_v1")
    lost.add_done_callback(lambda _: setattr(service.database, "mode", "reset"))
    with pytest.raises(OutcomeUnknown):
        await service.append(name, "two", key="key")
    service.database.mode = "pass"
    again = await service.append(name, "two", key="key")
    assert (again.duplicate, again.first_seq) == (True, 2)
    assert await service.contents(name) == ["one", "two"]
