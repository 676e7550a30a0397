"""A scripted model for third-party clients: it implements four APIs and has one conversation with the tool `chat`.

It calls the tool, reads the `continuation_id` from the result as its client passes it on, calls the tool again with it,
and ends. Invariant: it uses only the requests that it receives.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTINUATION = re.compile(r"continuation_id\W{1,6}([0-9a-f]{8}-[0-9a-f-]{27})")
QUESTIONS = ("Two and two?", "And three?")
DONE = "All is asked."


class ModelServer(ThreadingHTTPServer):
    """The model on loopback.

    `calls` are the tools that it calls one after the other, each with its arguments. `seen` are the results in the
    latest request, `asked` the path and body of every request, and `said` the texts that it has ended with.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[str] = []
        self.asked: list[tuple[str, Any]] = []
        self.said: list[str] = []
        self.calls: list[tuple[str, dict[str, Any]]] = [("chat", {"prompt": question}) for question in QUESTIONS]

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.server_port}"

    def next(self, shown: list[str], tool: str | None) -> tuple[str, dict[str, Any]] | str:
        """Return the next call, or the final text; `tool` is the name under which the client offers `chat`."""
        self.seen = shown or self.seen
        if tool is None or len(shown) >= len(self.calls):
            self.said.append(DONE)
            return DONE
        name, given = self.calls[len(shown)]
        arguments = dict(given)
        if shown:
            found = CONTINUATION.search(shown[-1])
            if found is None:
                self.said.append("the result has no continuation_id")
                return self.said[-1]
            arguments["continuation_id"] = found[1]
        return re.sub(r"chat\b", name, tool), arguments


@contextmanager
def model_server() -> Iterator[ModelServer]:
    server = ModelServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ModelServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._send(b"", "text/plain")

    def do_GET(self) -> None:
        self._json({"data": [], "models": [], "object": "list"})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(data or b"{}")
        except ValueError:
            body = {}
        self.server.asked.append((self.path, body))
        path = self.path.partition("?")[0]
        if path.endswith("/chat/completions"):
            self._completions(body)
        elif path.endswith("/responses"):
            self._responses(body)
        elif path.endswith("/messages"):
            self._messages(body)
        elif ":streamGenerateContent" in path or ":generateContent" in path:
            self._gemini(body, stream=":stream" in path)
        else:
            self._json({})

    def _completions(self, body: Any) -> None:
        shown = [text_of(each["content"]) for each in body["messages"] if each["role"] == "tool"]
        names = [each["function"]["name"] for each in body.get("tools") or ()]
        step = self.server.next(shown, chat_of(names))
        message: dict[str, Any] = {"role": "assistant", "content": step if isinstance(step, str) else None}
        if not isinstance(step, str):
            function = {"name": step[0], "arguments": json.dumps(step[1])}
            message["tool_calls"] = [{"id": f"call_{len(shown)}", "type": "function", "function": function}]
        finish = "stop" if isinstance(step, str) else "tool_calls"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        known = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
        self._json({**known, "choices": [choice], "usage": usage})

    def _responses(self, body: Any) -> None:
        items = [each for each in body["input"] if isinstance(each, dict)]
        shown = [text_of(each["output"]) for each in items if str(each.get("type")).endswith("call_output")]
        step = self.server.next(shown, _response_tool(body.get("tools") or ()))
        item: dict[str, Any] = {"type": "message", "role": "assistant", "id": "m", "status": "completed"}
        if isinstance(step, str):
            item["content"] = [{"type": "output_text", "text": step, "annotations": []}]
        else:
            name, _, namespace = step[0].partition("@")
            item = {"type": "function_call", "id": f"f{len(shown)}", "call_id": f"call_{len(shown)}", "name": name}
            item |= {"namespace": namespace} if namespace else {}
            item |= {"arguments": json.dumps(step[1]), "status": "completed"}
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        response = {"id": "r", "object": "response", "status": "completed", "output": [item], "usage": usage}
        response |= {"created_at": 1, "model": "m", "parallel_tool_calls": False, "tool_choice": "auto", "tools": []}
        if not body.get("stream"):
            self._json(response)
            return
        events = [
            {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": response},
        ]
        self._events([(each["type"], each) for each in events])

    def _messages(self, body: Any) -> None:
        parts = [part for each in body["messages"] if isinstance(each["content"], list) for part in each["content"]]
        shown = [text_of(part["content"]) for part in parts if part.get("type") == "tool_result"]
        step = self.server.next(shown, chat_of([str(each.get("name")) for each in body.get("tools") or ()]))
        if isinstance(step, str):
            block: dict[str, Any] = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": step}
        else:
            block = {"type": "tool_use", "id": f"toolu_{len(shown)}", "name": step[0], "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(step[1])}
        stop = "end_turn" if isinstance(step, str) else "tool_use"
        usage = {"input_tokens": 1, "output_tokens": 1}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body.get("model", "m")}
        message |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        if not body.get("stream"):
            whole = {"type": "text", "text": step} if isinstance(step, str) else {**block, "input": step[1]}
            self._json({**message, "content": [whole], "stop_reason": stop})
            return
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"},
        ]
        self._events([(str(each["type"]), each) for each in events])

    def _gemini(self, body: Any, *, stream: bool) -> None:
        parts = [part for each in body.get("contents", ()) for part in each.get("parts", ())]
        shown = [text_of(part["functionResponse"]["response"]) for part in parts if "functionResponse" in part]
        declared = [each["name"] for tool in body.get("tools") or () for each in tool.get("functionDeclarations", ())]
        step = self.server.next(shown, chat_of(declared))
        part = {"text": step} if isinstance(step, str) else {"functionCall": {"name": step[0], "args": step[1]}}
        candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
        usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
        answer = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}
        if stream:
            self._events([("", answer)])
        else:
            self._json(answer)

    def _events(self, events: list[tuple[str, Any]]) -> None:
        lines = [f"event: {name}\ndata: {json.dumps(data)}\n\n" if name else f"data: {json.dumps(data)}\n\n"
                 for name, data in events]  # fmt: skip
        self._send("".join(lines).encode(), "text/event-stream")

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), "application/json")

    def _send(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def chat_of(names: list[str]) -> str | None:
    """Return the name under which a client offers the tool `chat`."""
    return next((name for name in names if re.fullmatch(r"(mcp_{1,2})?(exai_{1,2})?chat", name)), None)


def _response_tool(tools: Any) -> str | None:
    """Return the tool of the Responses API; one within a namespace as `name@namespace`."""
    found = chat_of([str(each.get("name")) for each in tools])
    for each in tools:
        inner = [str(tool.get("name")) for tool in each.get("tools") or ()]
        if found is None and "exai" in str(each.get("name")) and (name := chat_of(inner)) is not None:
            found = f"{name}@{each['name']}"
    return found


def text_of(shown: Any) -> str:
    """Return the text of a tool's result, in any of the forms in which clients pass it on."""
    if isinstance(shown, str):
        return shown
    if isinstance(shown, list):
        return "\n".join(text_of(each.get("text", each) if isinstance(each, dict) else each) for each in shown)
    return json.dumps(shown, ensure_ascii=False)
