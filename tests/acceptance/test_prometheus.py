"""The dashboard and the alert rules ask for metrics that a daemon really has, in expressions that Prometheus takes."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.client import call, connect
from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer
from tests.support.waiting import wait_until

MONITORING = Path(__file__).resolve().parents[2] / "docker" / "monitoring"
DASHBOARD = MONITORING / "grafana-dashboard.json"
ALERTS = MONITORING / "alerts.yml"
NAME = re.compile(r"\b(?:exai|process)_\w+")
WINDOW = "10s"
NEEDS_AN_OUTAGE = ("exai_db_errors_total", 'outcome!~"ok|cancelled"', "exai_stale_reads_total")
"""Expressions about errors are empty without any."""

TOKEN = "a-token-for-metrics-alone"


@pytest.fixture
def daemon(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[Daemon]:
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_SERVER__METRICS_TOKEN": TOKEN,
        "EXAI_REQUESTS__ENABLED": "true",
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }
    with start_daemon(settings) as started:
        yield started


async def use(daemon: Daemon) -> None:
    """Make every kind of event that the dashboard shows, except errors."""
    async with connect(daemon.url) as client:
        answer = await call(client, "chat", prompt="a question")
        for _ in range(3):
            await call(client, "conversation_get", continuation_id=answer["continuation_id"])
        await call(client, "chat", prompt="another", continuation_id=answer["continuation_id"])
        await call(client, "conversation_search", query="another")


def scraped(daemon: Daemon, token: str | None = TOKEN) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=5)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def samples_of(daemon: Daemon) -> dict[str, float]:
    """Every sample by its text before the value."""
    lines = (line.rpartition(" ") for line in scraped(daemon)[1].splitlines() if line[0] != "#")
    return {name: float(value) for name, _, value in lines}


def dashboard_expressions() -> list[str]:
    """The expressions with values in place of Grafana's variables."""
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [each.replace("$__rate_interval", WINDOW).replace("$instance", ".+") for each in found]


def program(name: str) -> str:
    found = shutil.which(name, path="/usr/bin:/usr/local/bin:/bin")
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install prometheus): nothing was checked by it")
    return found


async def test_what_is_shown_and_watched_exists(daemon: Daemon) -> None:
    """A metric that was renamed would leave a panel empty and an alert silent."""
    await use(daemon)
    status, text = scraped(daemon)
    assert status == 200
    families = list(text_string_to_metric_families(text))
    existing = {sample.name for family in families for sample in family.samples}
    for source in (*dashboard_expressions(), ALERTS.read_text()):
        named = set(NAME.findall(re.sub(r"#.*", "", source)))
        missing = {name for name in named - existing if not any(part in source for part in NEEDS_AN_OUTAGE)}
        assert missing - {"exai_metrics_expired_rows", "exai_stale_reads_total"} == set(), source


async def test_round_trips_are_counted_for_each_call(daemon: Daemon) -> None:
    """A turn is two statements, and a read of what is in the cache none; a WebSocket counts while it is open."""
    async with connect(daemon.url) as client:
        answer = await call(client, "chat", prompt="a question")
        await call(client, "chat", prompt="another", continuation_id=answer["continuation_id"])
        await call(client, "conversation_get", continuation_id=answer["continuation_id"])
        await call(client, "conversation_search", query="another")
        open_now = samples_of(daemon)
    assert open_now["exai_ws_connections"] == 1
    assert open_now["exai_ws_send_queue_bytes"] == 0
    expected = {"chat": (2, 4.0), "conversation_get": (1, 0.0), "conversation_search": (1, 1.0)}
    for tool, (calls, statements) in expected.items():
        assert open_now[f'exai_request_statements_count{{tool="{tool}"}}'] == calls
        assert open_now[f'exai_request_statements_sum{{tool="{tool}"}}'] == statements
    assert open_now['exai_request_statements_bucket{le="1.0",tool="chat"}'] == 0
    assert open_now['exai_request_statements_bucket{le="0.0",tool="conversation_get"}'] == 1
    assert open_now["exai_search_scan_rows_count"] == 1
    assert open_now["exai_search_scan_rows_sum"] > 0
    assert open_now['exai_owner_limited_total{limit="requests_per_s"}'] == 0
    await wait_until(lambda: samples_of(daemon)["exai_ws_connections"] == 0)


async def test_metrics_are_for_holders_of_the_token(daemon: Daemon) -> None:
    """Also on this machine."""
    assert [scraped(daemon, token)[0] for token in (None, "another token", TOKEN)] == [401, 401, 200]


async def test_promtool_accepts_the_metrics(daemon: Daemon) -> None:
    """Names, units and help texts."""
    promtool = program("promtool")
    await use(daemon)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=scraped(daemon)[1], text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_promtool_accepts_every_expression(tmp_path: Path) -> None:
    """Each of the dashboard as a recording rule, the alerts, and the configuration that names them."""
    promtool = program("promtool")
    rules = [{"record": f"exai:panel_{n}", "expr": expr} for n, expr in enumerate(dashboard_expressions())]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    for arguments in (["rules", str(file)], ["rules", str(ALERTS)], ["config", str(MONITORING / "prometheus.yml")]):
        checked = subprocess.run([promtool, "check", *arguments], text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.heavy
async def test_no_panel_is_empty(daemon: Daemon, tmp_path: Path) -> None:
    """A real Prometheus has scraped the daemon and answers every expression."""
    prometheus = program("prometheus")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{ALERTS}]\n"
        "scrape_configs:\n"
        f"  - {{job_name: exai, authorization: {{credentials: {TOKEN}}},"
        f" static_configs: [{{targets: ['127.0.0.1:{daemon.port}']}}]}}\n"
    )
    port = 19_090
    command = [prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            ask = Prometheus(f"http://127.0.0.1:{port}")
            await wait_until(lambda: bool(ask("up == 1")), limit_s=60)
            for _ in range(4):
                await use(daemon)
            for expression in dashboard_expressions():
                if any(part in expression for part in NEEDS_AN_OUTAGE):
                    continue
                await wait_until(lambda: bool(ask(expression)), lambda: f"empty: {expression}", limit_s=30)  # noqa: B023
            assert ask.alerts() == []
        finally:
            process.terminate()


class Prometheus:
    """The HTTP API of a Prometheus server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, expression: str) -> list[Any]:
        try:
            return self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")["result"]
        except OSError:
            return []

    def alerts(self) -> list[Any]:
        return [each for each in self._get("/api/v1/alerts")["alerts"] if each["state"] == "firing"]

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self._url + path, timeout=5) as reply:
            return json.load(reply)["data"]
