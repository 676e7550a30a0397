// What a phone does, with supabase-js, the real PostgREST and the example's own code. Prints a line for each thing seen.

import assert from "node:assert/strict";
import { createInterface } from "node:readline";

import { createClient } from "@supabase/supabase-js";
import { IDBFactory } from "fake-indexeddb";
import ws from "ws";

import { Exai } from "./exai.js";

const { API, KEY, A, B, TOKEN_A, TOKEN_B, TOKEN_ANONYMOUS, TOKEN_EXPIRED } = process.env;
const network = { isUp: true, requests: 0, loseReplies: 0 };

// The platform's gateway: it cuts the prefix, and does not pass on a publishable key as a token.
async function gateway(address, options = {}) {
  if (!network.isUp) throw new TypeError("fetch failed");
  network.requests += 1;
  const headers = new Headers(options.headers);
  if (headers.get("authorization") === `Bearer ${KEY}`) headers.delete("authorization");
  const reply = await fetch(String(address).replace("/rest/v1", ""), { ...options, headers });
  if (network.loseReplies > 0) {
    network.loseReplies -= 1;
    throw new TypeError("fetch failed");
  }
  return reply;
}

const options = { global: { fetch: gateway }, realtime: { transport: ws }, auth: { persistSession: false } };
const client = (token) => createClient(API, KEY, { ...options, ...(token && { accessToken: async () => token }) });
const seen = (name) => console.log(`ok ${name}`);
const refused = async (query, status, code) => {
  const reply = await query;
  assert.equal(reply.status, status, JSON.stringify(reply));
  if (code) assert.equal(reply.error.code, code);
};

const page = new EventTarget();
page.visibilityState = "visible";
const device = new IDBFactory();
const open = (token, user, factory = device) => new Exai(client(token), user, { indexedDB: factory, target: page });
const anna = open(TOKEN_A, A);
const bert = open(TOKEN_B, B);

// Ask, see the answer grow, read.
const states = [];
const first = await anna.chat("Hello, model");
const watching = anna.watch(first, (row) => states.push(row));
await new Promise((resolve) => {
  const timer = setInterval(() => states.some((row) => row.partial) && (clearInterval(timer), resolve()), 20);
});
console.log("gate");
const answered = await watching;
assert.equal(answered.state, "done", JSON.stringify(answered));
assert.match(answered.answer, /first half, the rest/);
assert.ok(states.some((row) => row.partial === "The first half"));
seen("an answer grows");
const [conversation] = await anna.conversations();
assert.equal(conversation.continuation_id, answered.continuation_id);
const read = await anna.messages(answered.continuation_id);
assert.deepEqual(read.map((each) => each.role), ["user", "assistant"]);
assert.equal(read[0].content, "Hello, model");
seen("the conversation is read");
await anna.markRead(first);

// The same id again is the same request.
await anna.ask("chat", { prompt: "Hello, model" }, { id: first });
network.loseReplies = 1;
const lost = await anna.chat("Did you get this?", answered.continuation_id);
assert.equal((await anna.outbox.entries()).length, 1);
await anna.flush();
assert.equal((await anna.watch(lost)).state, "done");
assert.equal((await anna.messages(answered.continuation_id)).length, 4);
seen("a repeated request is one");

// Without a network, a reload, and a network again.
network.isUp = false;
const later = [await anna.chat("One", answered.continuation_id), await anna.ask("conversation_list", {})];
assert.equal((await anna.outbox.entries()).length, 2);
anna.close();
const again = open(TOKEN_A, A);
assert.equal((await again.outbox.entries()).length, 2);
network.isUp = true;
page.dispatchEvent(new Event("visibilitychange"));
for (const id of later) {
  assert.equal((await again.watch(id)).state, "done");
}
assert.equal((await again.outbox.entries()).length, 0);
seen("what was asked offline is sent later");

// A page that becomes visible reads again, also if Realtime sent nothing.
const pending = await again.ask("no_such_tool", {});
const end = await again.watch(pending);
assert.equal(end.state, "failed");
assert.match(end.error.message, /Unknown tool/);
let changes = 0;
again.onChange = () => (changes += 1);
page.dispatchEvent(new Event("visibilitychange"));
page.visibilityState = "hidden";
page.dispatchEvent(new Event("visibilitychange"));
page.visibilityState = "visible";
assert.equal(changes, 1);
seen("it reads again when it becomes visible");

// Cancel.
const unwanted = await again.chat("Never mind");
await new Promise((resolve) => {
  const timer = setInterval(async () => (await again.request(unwanted))?.state === "running" && (clearInterval(timer), resolve()), 50);
});
assert.deepEqual(await bert.cancel(unwanted), []);
assert.equal((await again.cancel(unwanted)).length, 1);
assert.equal((await again.watch(unwanted)).state, "cancelled");
seen("a request is cancelled by its owner only");

// Of another user nothing is seen or changed.
assert.deepEqual(await bert.conversations(), []);
assert.equal(await bert.request(first), null);
assert.deepEqual(await bert.messages(answered.continuation_id), []);
const theirs = client(TOKEN_B);
for (const table of ["conversations", "messages", "turns", "files", "conversation_files", "requests"]) {
  assert.deepEqual((await theirs.from(table).select("*")).data, [], table);
}
const stolen = await bert.ask("conversation_get", { continuation_id: answered.continuation_id });
assert.equal((await bert.watch(stolen)).error.code, "not_found");
seen("users are apart");

const mine = client(TOKEN_A);
await refused(theirs.from("requests").insert({ tool: "version", owner: A }), 403, "42501");
await refused(mine.from("requests").insert({ tool: "version", answer: "x" }), 403, "42501");
await refused(mine.from("requests").update({ answer: "x" }).eq("id", first), 403, "42501");
await refused(mine.from("requests").update({ state: "running" }).eq("id", first), 403, "42501");
await refused(mine.from("requests").delete().eq("id", first), 403, "42501");
await refused(mine.from("messages").insert({ role: "user", content: "x" }), 403, "42501");
await refused(mine.from("conversations").update({ title: "x" }).eq("continuation_id", answered.continuation_id), 403, "42501");
await refused(mine.rpc("cleanup_orphaned_files"), 403, "42501");
await refused(mine.schema("monitoring").from("metrics_raw").select("*"), 406, "PGRST106");
for (const table of ["conversations", "messages", "requests"]) await refused(client().from(table).select("*"), 401, "42501");
await refused(client(TOKEN_EXPIRED).from("requests").select("*"), 401);
seen("what is not granted is refused");

assert.deepEqual((await client(TOKEN_ANONYMOUS).from("conversations").select("*")).data, []);
await refused(client(TOKEN_ANONYMOUS).from("requests").insert({ tool: "version" }), 403, "42501");
seen("anonymous users are refused");

// Refused for good: not asked again and again.
let told = null;
const anonymous = open(TOKEN_ANONYMOUS, "anonymous", new IDBFactory());
anonymous.onChange = (news) => (told = news ?? told);
await anonymous.chat("Let me in");
assert.equal(told.error.code, "42501");
assert.equal((await anonymous.outbox.entries()).length, 0);
seen("a refused request leaves the queue");

console.log("done");
createInterface({ input: process.stdin }).close();
process.exit(0);
