"""A release of uvicorn or websockets that lacks what EXAI extends is refused when the server is imported."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.unit.packaging.imports import MODULES, imported

PROMISED = re.compile(r"websockets\.(asyncio|exceptions|typing|protocol\.State|protocol$)")
"""What the documentation of websockets describes and `exai connect` uses."""

SOCKETS = "uvicorn.protocols.websockets.websockets_sansio_impl"
HTTP = "uvicorn.protocols.http.httptools_impl"


def test_only_one_module_imports_parts_that_are_not_promised() -> None:
    """Beside it a missing part would be a traceback."""
    found = {
        (name, each)
        for name, path in MODULES.items()
        if not name.startswith("exai.bench") and name != "exai.mcp.transport.library_parts"
        for each in imported(path)
        if each.partition(".")[0] in ("uvicorn", "websockets") and not PROMISED.match(each)
    }
    assert found == set()


@pytest.mark.parametrize(
    ("package", "change", "part"),
    [
        ("uvicorn", f"sys.modules[{SOCKETS!r}] = None", SOCKETS),
        ("uvicorn", f"import {HTTP} as m; del m.STATUS_LINE", "STATUS_LINE"),
        (
            "uvicorn",
            f"import {HTTP} as m; del m.HttpToolsProtocol._start_asgi_task",
            "HttpToolsProtocol._start_asgi_task",
        ),
        (
            "uvicorn",
            f"import {SOCKETS} as m; old = m.WebSocketsSansIOProtocol.__init__; "
            "m.WebSocketsSansIOProtocol.__init__ = lambda self, *a: (old(self, *a), delattr(self, 'close_timer'))[0]",
            "WebSocketsSansIOProtocol.close_timer",
        ),
        (
            "uvicorn",
            f"import {SOCKETS} as m; m.WebSocketsSansIOProtocol.__init__ = lambda self, config: None",
            "takes 2 positional arguments",
        ),
        (
            "uvicorn",
            f"import {HTTP} as m; m.RequestResponseCycle.__init__ = lambda self, scope: None",
            "RequestResponseCycle(transport=)",
        ),
        ("websockets", "import websockets.streams as m; del m.StreamReader.at_eof", "StreamReader.at_eof"),
        (
            "websockets",
            "import websockets.protocol as m; old = m.Protocol.__init__; "
            "m.Protocol.__init__ = lambda self, *a, **k: (old(self, *a, **k), self.__dict__.pop('current_size', None), "
            "self.__dict__.pop('cur_size', None))[0]",
            "ServerProtocol.current_size",
        ),
    ],
)
def test_a_release_without_a_part_is_refused_by_name(package: str, change: str, part: str) -> None:
    """The start ends with the release, the part and the cure, not later in a connection."""
    code = f"import sys\n{change}\nfrom exai.cli.main import main\nsys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    lacks = rf"lacks a part that EXAI extends \([^\n]*{re.escape(part)}[^\n]*\)"
    message = rf"exai: {package} [0-9.]+: {lacks}\. Install [^\n]*\n"
    assert re.fullmatch(message, done.stderr), done.stderr
