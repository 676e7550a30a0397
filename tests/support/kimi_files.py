"""Kimi's files as its documentation describes them: upload, state, content, deletion, limits and refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.provider_server import Received, Reply, failure, hang_before_headers, kimi_error

MAX_FILES = 1_000
KNOWN = (b".pdf", b".doc", b".docx", b".xlsx", b".pptx")
TEXT = "The text of a scan."


@dataclass
class KimiFiles:
    """The files of one key. `refuse` makes a reply for a request, or None for the ordinary one."""

    text: str = TEXT
    stored: dict[str, bytes] = field(default_factory=dict)
    uploads: list[bytes] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    polls: int = 0
    """How often the state of a file is still underway."""
    max_files: int = MAX_FILES
    refuse: Callable[[Received], Reply | None] = lambda _: None

    def __call__(self, request: Received) -> Reply:
        """Answer a request below /v1/files."""
        if request.headers.get("authorization") != "Bearer sk-test":
            return kimi_error(401, "invalid_authentication_error")
        if (refusal := self.refuse(request)) is not None:
            return refusal
        file_id = request.path.removeprefix("/v1/files").strip("/").partition("/")[0]
        if request.method == "POST":
            return self._upload(request.raw)
        if file_id not in self.stored:
            return kimi_error(404, "resource_not_found_error", "file not found")
        if request.method == "DELETE":
            del self.stored[file_id]
            self.deleted.append(file_id)
            return failure(200, {"id": file_id, "object": "file", "deleted": True})
        if request.path.endswith("/content"):
            return failure(200, {"content": self.text, "file_type": "application/pdf", "type": "file"})
        self.polls -= 1
        return failure(200, {"id": file_id, "status": "processing" if self.polls >= 0 else "ok"})

    def _upload(self, body: bytes) -> Reply:
        name = re.search(rb'name="file"; filename="([^"]*)"', body)
        if b"file-extract" not in body or name is None:
            return kimi_error(400, "invalid_request_error", "purpose or file is missing")
        if not name[1].endswith(KNOWN):
            return kimi_error(400, "invalid_request_error", "the file type is not supported")
        if len(self.stored) >= self.max_files:
            return kimi_error(400, "invalid_request_error", "the number of files exceeds the limit")
        self.uploads.append(body)
        file_id = f"file-{len(self.uploads)}"
        self.stored[file_id] = body
        return failure(200, {"id": file_id, "object": "file", "purpose": "file-extract", "status": "ok"})


def hang(method: str, ending: str = "") -> Callable[[Received], Reply | None]:
    """Answer requests of a method never."""
    return lambda request: hang_before_headers() if request.method == method and request.path.endswith(ending) else None


def refusing(method: str, reply: Reply) -> Callable[[Received], Reply | None]:
    """Answer requests of a method with one reply."""
    return lambda request: reply if request.method == method else None
