// Changes as they happen: the daemon says what has changed, and the parts of the page that show it read it again.

import { conversationUri, request, send } from "./mcp.js";
import { connection, session, setConnection } from "./state.js";

const FIRST_WAIT_MS = 1_000;
const MAX_WAIT_MS = 15_000;
/** The daemon sends something at least every few seconds; a stream that stays silent is held back by a proxy. */
const SILENCE_MS = 12_000;
/** A proxy that drops some events must not leave the page as it is for good. */
const POLL_MS = 30_000;

/** What was read before the first sign of a stream is read again if that sign came this late. */
const LATE_MS = 1_000;

const watchers = new Set();
const streams = new Set();
let shown = null;

/** Call `onChange` when the list of conversations, or the conversation `id`, has changed. Returns how to stop. */
export function watchChanges({ id = "", onChange }) {
  const watcher = { id, onChange };
  watchers.add(watcher);
  if (id || shown === null) listenTo(id);
  return () => {
    watchers.delete(watcher);
    if (id && shown === id) listenTo("");
  };
}

/** Listen to the list and to one conversation. The stream before ends when this one has begun, so nothing is missed. */
function listenTo(id) {
  if (id === shown) return;
  shown = id;
  const own = new AbortController();
  const began = Date.now();
  let signs = 0;
  const onBegun = () => {
    for (const other of streams) if (other !== own) other.abort();
    signs += 1;
    if (signs > 1 || Date.now() - began > LATE_MS) announce("");
  };
  streams.add(own);
  own.signal.addEventListener("abort", () => streams.delete(own));
  keepOpen((signal, onSign) => listenOnce(id, signal, onSign, onBegun), own.signal);
}

/** Open a stream again whenever it ends, while the page is looked at; `open` holds it until it ends. */
export async function keepOpen(open, signal) {
  let wait = FIRST_WAIT_MS;
  while (!signal.aborted) {
    if (document.hidden || session.get().isWanted) {
      await woken(signal);
      continue;
    }
    const began = Date.now();
    const live = await openOnce(open, signal);
    if (signal.aborted) return;
    setConnection({ live });
    wait = Date.now() - began > MAX_WAIT_MS ? FIRST_WAIT_MS : Math.min(wait * 2, MAX_WAIT_MS);
    await pause(connection.get().state === "offline" ? FIRST_WAIT_MS : wait, signal);
  }
}

/** Hold one stream until it ends; returns "blocked" if nothing came through it, else "off". */
async function openOnce(open, outer) {
  const own = new AbortController();
  const stop = () => (outer.aborted || document.hidden) && own.abort();
  let isSilent = false;
  const silence = setTimeout(() => {
    isSilent = true;
    own.abort();
  }, SILENCE_MS);
  const onSign = () => {
    clearTimeout(silence);
    setConnection({ live: "on" });
  };
  outer.addEventListener("abort", stop, { once: true });
  document.addEventListener("visibilitychange", stop);
  try {
    await open(own.signal, onSign);
  } catch {
    // The state of the connection, which `send` sets, says what is wrong.
  } finally {
    clearTimeout(silence);
    outer.removeEventListener("abort", stop);
    document.removeEventListener("visibilitychange", stop);
  }
  return isSilent ? "blocked" : "off";
}

function listenOnce(id, signal, onSign, onBegun) {
  const notifications = { resourcesListChanged: true, resourceSubscriptions: id ? [conversationUri(id)] : [] };
  const onNotice = ({ method }) => {
    onSign();
    if (method === "notifications/subscriptions/acknowledged") onBegun();
    else announce(method === "notifications/resources/updated" ? id : "");
  };
  return request("subscriptions/listen", { notifications }, { signal, onNotice });
}

/** Tell the watchers of a conversation, or those of the list and of everything that is shown. */
function announce(id) {
  for (const watcher of [...watchers]) if (!id || !watcher.id || watcher.id === id) watcher.onChange();
}

/** A stream belongs to the owner who opened it. */
session.watch(() => {
  for (const stream of streams) stream.abort();
  shown = null;
});

let isProbing = false;

/** Once a request has failed, find out when the daemon answers again, and then read again what is shown. */
async function probe({ state }) {
  if (state !== "offline" || isProbing) return;
  isProbing = true;
  while (connection.get().state === "offline") {
    await new Promise((resolve) => setTimeout(resolve, FIRST_WAIT_MS));
    if (!document.hidden) await send("/health/live", {}).catch(() => {});
  }
  isProbing = false;
  announce("");
}

connection.watch(probe);

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

function woken(signal) {
  return new Promise((resolve) => {
    const check = () => {
      if (!signal.aborted && (document.hidden || session.get().isWanted)) return;
      document.removeEventListener("visibilitychange", check);
      unwatch();
      resolve();
    };
    const unwatch = session.watch(check);
    document.addEventListener("visibilitychange", check);
    signal.addEventListener("abort", check, { once: true });
  });
}

setInterval(() => {
  if (!document.hidden && connection.get().live !== "on" && !session.get().isWanted) announce("");
}, POLL_MS);
