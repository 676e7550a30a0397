"""Supabase Storage on loopback: answers as the real server (storage-api 1.9x) was seen to, or fails as a script says.

Errors of the object and bucket routes are HTTP 400 with the meant status as `statusCode` in the body; those of the
resumable protocol are the status itself with a plain text. `Location` names a host of the server's own choosing.
Invariant: an object is in `objects` only when all of its bytes have arrived, and every request is recorded.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

import h11

KEY = "sb_secret_0123456789abcdef"
PIECE_BYTES = 6 * 1_048_576
PREFIX = "/storage/v1"
VALID_KEY = re.compile(r"[\w/!.*'() &$@=;:+,?-]+", re.ASCII)

Fault = Literal[
    "reset", "reset after", "busy", "limited", "html", "forget", "conflict", "short", "whole", "error 500", "redirect"
]
"""`reset`: the connection ends before the request is carried out; `reset after`: after it, so that its answer is lost.
`forget`: an upload is gone; `conflict`: another request holds it; `short`: half of a piece arrives before the end.
`whole`: the range is ignored."""


@dataclass
class Asked:
    """One request that arrived, whole or not."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Upload:
    """A resumable upload that is not finished."""

    bucket: str
    key: str
    size_bytes: int
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Object:
    """A stored object."""

    data: bytes
    created_at: str


@dataclass
class Answer:
    """What is sent back."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class SupabaseStorage:
    """The server; `faults` is taken from the front by requests that `faulty` selects."""

    def __init__(self) -> None:
        self.buckets: dict[str, bool] = {}
        self.objects: dict[str, dict[str, Object]] = {}
        self.uploads: dict[str, Upload] = {}
        self.asked: list[Asked] = []
        self.faults: deque[Fault | Answer] = deque()
        self.faulty: Callable[[Asked], bool] = lambda asked: True
        self.location = "http://inner.example:5000/upload/resumable"
        self.size_limit = 52_428_800
        self.hold: asyncio.Event | None = None
        self.held = asyncio.Event()
        self.stop_at: tuple[int, bool] | None = None
        self._server: asyncio.Server | None = None
        self._signed: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The project's address."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    def fail(self, *faults: Fault | Answer, when: Callable[[Asked], bool] = lambda asked: True) -> None:
        """Let the next requests that `when` selects fail, or receive a given answer."""
        self.faults.extend(faults)
        self.faulty = when

    def uploads_of(self) -> int:
        """How many requests brought bytes."""
        return sum(len(each.body) > 0 and self._brings(each) for each in self.asked)

    def _brings(self, asked: Asked) -> bool:
        place = asked.path.removeprefix(PREFIX)
        is_put = asked.method == "POST" and place.startswith("/object/") and place.split("/")[2] not in ("list", "sign")
        return asked.method == "PATCH" or is_put

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while await self._exchange(connection, reader, writer):
                connection.start_next_cycle()
        except (ConnectionError, h11.RemoteProtocolError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        asked: Asked | None = None
        fault: Fault | Answer | None = None
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if asked is not None and fault == "short" and len(body) > PIECE_BYTES // 2:
                    return self._cut(asked, bytes(body[: PIECE_BYTES // 2]), writer)
                connection.receive_data(await reader.read(65_536))
            elif isinstance(event, h11.Request):
                headers = {name.decode().lower(): text.decode() for name, text in event.headers}
                asked = Asked(event.method.decode(), event.target.decode(), headers)
                self.asked.append(asked)
                fault = self.faults.popleft() if self.faults and self.faulty(asked) else None
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert asked is not None
        asked.body = bytes(body)
        if self.hold is not None and self._brings(asked):
            self.held.set()
            await self.hold.wait()
        if fault == "reset":
            writer.transport.abort()
            return False
        await self._stop(reader, is_done=False)
        answer = self._failed(asked, fault) or self._answer(asked, is_whole=fault == "whole")
        await self._stop(reader, is_done=True)
        if fault == "reset after":
            writer.transport.abort()
            return False
        headers = [(name, text) for name, text in answer.headers.items()]
        headers.append(("Content-Length", str(len(answer.body))))
        writer.write(connection.send(h11.Response(status_code=answer.status, headers=headers)) or b"")
        if asked.method != "HEAD":
            writer.write(connection.send(h11.Data(data=answer.body)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        return connection.our_state is h11.DONE

    async def _stop(self, reader: asyncio.StreamReader, *, is_done: bool) -> None:
        """Wait for the end of the client, at the request that `stop_at` counts, before or after it is carried out."""
        if (len(self.asked), is_done) == self.stop_at:
            self.held.set()
            await reader.read()
            raise ConnectionResetError

    def _cut(self, asked: Asked, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Half of a piece arrived, and the connection broke."""
        upload = self.uploads.get(asked.path.rsplit("/", 1)[-1])
        if upload is not None and asked.method == "PATCH":
            upload.data += body
        writer.transport.abort()
        return False

    def _failed(self, asked: Asked, fault: Fault | Answer | None) -> Answer | None:
        if isinstance(fault, Answer):
            return fault
        if fault == "busy":
            return problem(500, "InternalError", "Internal Server Error", status=500)
        if fault == "error 500":
            return problem(500, "DatabaseTimeout", "The connection to the database timed out", status=400)
        if fault == "limited":
            answer = problem(429, "SlowDown", "Too many connections issued to the database", status=429)
            answer.headers["Retry-After"] = "0"
            return answer
        if fault == "redirect":
            return Answer(302, headers={"Location": "http://evil.example/storage/v1/bucket/exai"})
        if fault == "html":
            return Answer(200, b"<html>a parked domain</html>", {"Content-Type": "text/html"})
        if fault == "forget":
            self.uploads.clear()
            return Answer(410, b"The file for this url no longer exists\n")
        if fault == "conflict":
            return Answer(409, b"Upload-Offset conflict\n")
        return None

    def _answer(self, asked: Asked, *, is_whole: bool) -> Answer:
        parts = urlsplit(asked.path)
        place = unquote(parts.path)
        if not place.startswith(PREFIX):
            return Answer(404, b'{"message":"no Route matched with those values"}')
        place = place.removeprefix(PREFIX)
        if place.startswith("/object/sign/") and asked.method == "GET":
            return self._download_signed(place.removeprefix("/object/sign/"), parse_qs(parts.query))
        if asked.headers.get("authorization") != f"Bearer {KEY}" or asked.headers.get("apikey") != KEY:
            return problem(403, "InvalidJWT", "Invalid Compact JWS", error="Unauthorized")
        if place.startswith("/upload/resumable"):
            return self._resumable(asked, place)
        if place.startswith("/bucket"):
            return self._bucket(asked, place.removeprefix("/bucket").strip("/"))
        return self._object(asked, place.removeprefix("/object/"), is_whole=is_whole)

    def _bucket(self, asked: Asked, name: str) -> Answer:
        if asked.method == "POST":
            body = json.loads(asked.body)
            if body["id"] in self.buckets:
                return problem(409, "ResourceAlreadyExists", "The resource already exists", error="Duplicate")
            self.buckets[body["id"]] = bool(body.get("public"))
            self.objects.setdefault(body["id"], {})
            return reply({"name": body["id"]})
        if name not in self.buckets:
            return no_bucket()
        return reply({"id": name, "name": name, "public": self.buckets[name], "file_size_limit": None})

    def _object(self, asked: Asked, place: str, *, is_whole: bool) -> Answer:
        verb, _, rest = place.partition("/")
        if verb == "list":
            return self._list(rest, json.loads(asked.body))
        if verb == "sign":
            return self._sign(rest)
        if verb == "info":
            return self._info(rest.removeprefix("authenticated/"))
        if verb == "authenticated":
            return self._download(rest, asked.headers.get("range", ""), is_whole=is_whole)
        if asked.method == "DELETE":
            found = self.objects.get(verb, {})
            gone = [key for key in json.loads(asked.body)["prefixes"] if found.pop(key, None) is not None]
            return reply([{"name": key} for key in gone])
        if verb not in self.buckets:
            return no_bucket()
        if not VALID_KEY.fullmatch(rest):
            return problem(400, "InvalidKey", f"Invalid key: {rest}")
        if len(asked.body) > self.size_limit:
            text = "The object exceeded the maximum allowed size"
            return problem(413, "EntityTooLarge", text, error="Payload too large")
        if rest in self.objects[verb] and asked.headers.get("x-upsert") != "true":
            return problem(409, "ResourceAlreadyExists", "The resource already exists", error="Duplicate")
        self.objects[verb][rest] = Object(asked.body, now())
        return reply({"Key": f"{verb}/{rest}", "Id": str(uuid.uuid4())})

    def _find(self, place: str) -> Object | None:
        bucket, _, key = place.partition("/")
        return self.objects.get(bucket, {}).get(key)

    def _info(self, place: str) -> Answer:
        found = self._find(place)
        if found is None:
            return no_object()
        return reply({"id": str(uuid.uuid4()), "name": place, "size": len(found.data), "created_at": found.created_at})

    def _download(self, place: str, wanted: str, *, is_whole: bool = False) -> Answer:
        found = self._find(place)
        if found is None:
            return no_object()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if match is None or is_whole:
            return Answer(200, found.data)
        begin, end = int(match[1]), int(match[2]) + 1
        if begin >= len(found.data):
            return problem(400, "InvalidRange", "invalid range provided", error="invalid_range")
        end = min(end, len(found.data))
        return Answer(206, found.data[begin:end], {"Content-Range": f"bytes {begin}-{end - 1}/{len(found.data)}"})

    def _sign(self, place: str) -> Answer:
        if self._find(place) is None:
            return no_object()
        token = uuid.uuid4().hex
        self._signed[token] = place
        return reply({"signedURL": f"/object/sign/{place}?token={token}"})

    def _download_signed(self, place: str, query: dict[str, list[str]]) -> Answer:
        if self._signed.get(query.get("token", [""])[0]) != place:
            return problem(400, "InvalidJWT", "Invalid JWT", error="InvalidJWT")
        return self._download(place, "")

    def _list(self, bucket: str, body: dict[str, Any]) -> Answer:
        if bucket not in self.buckets:
            return reply([])
        prefix = f"{body['prefix']}/" if body["prefix"] else ""
        rows: dict[str, dict[str, Any]] = {}
        for key, found in sorted(self.objects[bucket].items()):
            if key.startswith(prefix):
                name, _, below = key.removeprefix(prefix).partition("/")
                metadata = {"size": len(found.data), "mimetype": "application/octet-stream"}
                row = {"id": str(uuid.uuid4()), "created_at": found.created_at, "metadata": metadata}
                rows[name] = {"name": name, **(dict.fromkeys(row) if below else row)}
        return reply(list(rows.values())[body["offset"] : body["offset"] + body["limit"]])

    def _resumable(self, asked: Asked, place: str) -> Answer:
        if asked.method == "POST":
            return self._create(asked)
        upload_id = place.rsplit("/", 1)[-1]
        upload = self.uploads.get(upload_id)
        if upload is None:
            return Answer(404, b"The file for this url was not found\n")
        if asked.method == "HEAD":
            sizes = {"Upload-Offset": str(len(upload.data)), "Upload-Length": str(upload.size_bytes)}
            return Answer(200, headers=sizes)
        if int(asked.headers["upload-offset"]) != len(upload.data):
            return Answer(409, b"Upload-Offset conflict\n")
        is_last = len(upload.data) + len(asked.body) == upload.size_bytes
        if len(asked.body) > PIECE_BYTES or not (is_last or asked.body):
            return Answer(400, b"Chunk must be 6MB\n")
        upload.data += asked.body
        if is_last:
            del self.uploads[upload_id]
            self.objects[upload.bucket][upload.key] = Object(bytes(upload.data), now())
        return Answer(204, headers={"Upload-Offset": str(len(upload.data)), "Tus-Resumable": "1.0.0"})

    def _create(self, asked: Asked) -> Answer:
        if asked.headers.get("tus-resumable") != "1.0.0":
            return Answer(412, b"Tus-Resumable Required\n")
        pairs = (each.split(" ") for each in asked.headers["upload-metadata"].split(","))
        metadata = {name: base64.b64decode(text).decode() for name, text in pairs}
        size = int(asked.headers["upload-length"])
        if metadata["bucketName"] not in self.buckets:
            return Answer(404, b"Bucket not found")
        if size > self.size_limit:
            return Answer(413, b"Maximum size exceeded\n")
        if metadata["objectName"] in self.objects[metadata["bucketName"]] and asked.headers.get("x-upsert") != "true":
            return Answer(409, b"The resource already exists")
        upload_id = base64.urlsafe_b64encode(f"{metadata['objectName']}/{uuid.uuid4()}".encode()).decode().rstrip("=")
        self.uploads[upload_id] = Upload(metadata["bucketName"], metadata["objectName"], size)
        return Answer(201, headers={"Location": f"{self.location}/{upload_id}", "Tus-Resumable": "1.0.0"})


def now() -> str:
    return datetime.now(UTC).isoformat()


def reply(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})


def problem(meant: int, code: str, message: str, *, error: str | None = None, status: int = 400) -> Answer:
    body = {"statusCode": str(meant), "code": code, "error": error or code, "message": message}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json; charset=utf-8"})


def no_bucket() -> Answer:
    return problem(404, "NoSuchBucket", "Bucket not found", error="Bucket not found")


def no_object() -> Answer:
    return problem(404, "NoSuchKey", "Object not found", error="not_found")
