// A client of the Model Context Protocol over POST /mcp, in its stateless revision: every request says all of it.

import { facts, session, setConnection, signOut } from "./state.js";

const ENDPOINT = "/mcp";
const REVISION = "2026-07-28";
const ENVELOPE = {
  "io.modelcontextprotocol/protocolVersion": REVISION,
  "io.modelcontextprotocol/clientCapabilities": {},
  "io.modelcontextprotocol/clientInfo": { name: "exai-page", version: facts.version },
};
const NAMED = { "tools/call": "name", "resources/read": "uri", "tasks/cancel": "taskId" };

/** Why a call has no result. `kind` is offline, unauthorized, aborted, limited, tool or protocol. */
class CallError extends Error {
  constructor(kind, message, details = {}) {
    super(message);
    this.kind = kind;
    this.details = details;
  }
}

let requestCount = 0;

/** Call a tool and return its structured answer. */
export async function callTool(name, given = {}, options = {}) {
  const args = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined && value !== ""));
  const result = await request("tools/call", { name, arguments: args }, options);
  if (result.isError) {
    const error = result.structuredContent?.error ?? {};
    throw new CallError("tool", error.message ?? result.content?.[0]?.text ?? "the call failed", error);
  }
  return result.structuredContent ?? {};
}

/** Send one request; `onNotice` receives the notifications that come before its answer. */
export async function request(method, params, { signal, onNotice, meta, token } = {}) {
  const id = (requestCount += 1);
  const body = { jsonrpc: "2.0", id, method, params: { ...params, _meta: { ...ENVELOPE, ...meta } } };
  const response = await post(body, signal, token);
  let answer;
  if (response.headers.get("content-type")?.startsWith("text/event-stream")) {
    for await (const { data } of eventsOf(response, signal)) {
      const message = JSON.parse(data);
      if (message.id === id && !message.method) answer = message;
      else onNotice?.(message);
    }
  } else {
    answer = await json(response);
  }
  if (!answer) throw new CallError("offline", "The connection ended before the answer came.");
  if (answer.error) {
    const kind = response.status === 429 ? "limited" : "protocol";
    throw new CallError(kind, answer.error.message, answer.error.data ?? {});
  }
  return answer.result;
}

async function post(body, signal, token) {
  const named = body.params[NAMED[body.method]];
  const headers = {
    "content-type": "application/json",
    accept: "application/json, text/event-stream",
    "mcp-protocol-version": REVISION,
    "mcp-method": body.method,
    ...(named ? { "mcp-name": headerValue(named) } : {}),
  };
  return send(ENDPOINT, { method: "POST", headers, body: JSON.stringify(body), signal, token });
}

/** Send an HTTP request with the token of this tab, or one to try; refusals that any request may meet are handled here. */
export async function send(address, { headers = {}, token: tried, ...options }) {
  const token = tried ?? session.get().token;
  const authorization = token ? { authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(address, { ...options, headers: { ...headers, ...authorization }, cache: "no-store" });
  } catch (error) {
    throw failure(error);
  }
  setConnection({ state: "online" });
  if (response.status === 401) {
    // An answer to a token that has been replaced meanwhile says nothing about the new one.
    if (!tried && session.get().token === token) signOut(token ? "This token is not accepted. It may have expired." : "");
    throw new CallError("unauthorized", "Sign in first.");
  }
  if (!response.ok && !response.headers.get("content-type")?.startsWith("application/json")) {
    const kind = response.status === 429 ? "limited" : "protocol";
    throw new CallError(kind, (await response.text()).trim() || `The daemon answered ${response.status}.`);
  }
  return response;
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    throw failure(error);
  }
}

/** Yield the events of a stream as they arrive. Comments, which keep it alive, are yielded as undefined data. */
export async function* eventsOf(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const event = parsed(part);
        if (event.data) yield event;
      }
    }
  } catch (error) {
    throw failure(error);
  } finally {
    // A stream that is no longer read holds a connection of the daemon.
    if (!signal?.aborted) await reader.cancel().catch(() => {});
  }
}

function parsed(part) {
  const event = { name: "message", data: "", id: "" };
  for (const line of part.split("\n")) {
    if (line.startsWith("data:")) event.data += line.slice(5).trimStart();
    else if (line.startsWith("event:")) event.name = line.slice(6).trim();
    else if (line.startsWith("id:")) event.id = line.slice(3).trim();
  }
  return event;
}

function failure(error) {
  if (error instanceof CallError) return error;
  if (error.name === "AbortError") return new CallError("aborted", "cancelled");
  setConnection({ state: "offline" });
  return new CallError("offline", "The daemon does not answer.");
}

/** Encode a name for a header, which holds ASCII only. */
function headerValue(text) {
  if (/^[\x21-\x7e]+$/.test(text) && !text.startsWith("=?")) return text;
  const bytes = new TextEncoder().encode(text);
  return `=?base64?${btoa(String.fromCharCode(...bytes))}?=`;
}

/** Return the URI of a conversation as a resource. */
export function conversationUri(id) {
  const quoted = encodeURIComponent(id).replace(/[!'()*]/g, (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`);
  return `exai://conversations/${quoted}`;
}
