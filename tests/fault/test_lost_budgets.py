"""A budget whose money a killed daemon had reserved."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fault.caller import Lost, Refused
from tests.fault.cluster import open_cluster
from tests.support.backend import FaultServer
from tests.support.provider_server import chunk, event, stream

LIMITED = {"EXAI_BUDGETS__OWNER_DAY_USD": "0.012", "EXAI_BUDGETS__ANSWER_TOKENS": "1000"}


async def test_another_daemon_spends_what_a_killed_one_had_reserved_once_its_lease_has_ended(
    postgres_server: FaultServer, valkey_server: FaultServer, tmp_path: Path
) -> None:
    """The lease is ended by hand instead of waiting for it."""
    async with open_cluster(postgres_server, valkey_server, tmp_path, daemons=2, settings=LIMITED) as cluster:
        first, second = cluster.members
        cluster.provider.script(stream("gate", chunk({"content": "never read"}, finish="stop"), event("[DONE]")))
        lost = asyncio.create_task(first.call("chat", prompt="One?"))
        await cluster.provider.arrived(1)
        await first.kill()
        with pytest.raises(Lost):
            await lost
        with pytest.raises(Refused, match="EXAI_BUDGETS__OWNER_DAY_USD"):
            await second.call("chat", prompt="Two?")
        async with cluster.admin() as connection:
            await connection.execute("update turns set lease_until = now() - interval '1 second'")
        await second.call("chat", prompt="Two?")
        usage = await second.call("usage")
        assert (usage["total"]["turns"], usage["total"]["failed"], usage["total"]["estimated"]) == (2, 1, 1)
        (day,) = usage["budgets"]
        assert (day["budget"], day["limit_usd"], day["reserved_usd"]) == ("day", 0.012, 0)
        assert 0 < day["spent_usd"] < 0.001
        assert day["setting"] == "EXAI_BUDGETS__OWNER_DAY_USD"
        assert (await second.call("status"))["budgets"] == [day]
