// Changes as they happen: the daemon says what has changed, and the parts of the page that show it read it again.

import { CallError, conversationUri, request, send } from "./mcp.js";
import { connection, session, setConnection } from "./state.js";

const FIRST_WAIT_MS = 1_000;
const MAX_WAIT_MS = 15_000;
/** The daemon sends something at least every few seconds; a stream that stays silent is held back by a proxy. */
const SILENCE_MS = 12_000;
/** A proxy that drops some events must not leave the page as it is for good. */
const POLL_MS = 30_000;

const watchers = new Set();
let shown = "";
let running = null;

/** Call `onChange` when the list of conversations, or the conversation `id`, has changed. Returns how to stop. */
export function watchChanges({ id = "", onChange }) {
  const watcher = { id, onChange };
  watchers.add(watcher);
  listenTo(id || shown);
  return () => {
    watchers.delete(watcher);
    if (id && shown === id) listenTo("");
  };
}

function listenTo(id) {
  if (running && id === shown) return;
  shown = id;
  running?.abort();
  running = new AbortController();
  listen(running.signal);
}

async function listen(signal) {
  let wait = FIRST_WAIT_MS;
  while (!signal.aborted) {
    if (document.hidden || session.get().isWanted) {
      await woken(signal);
      continue;
    }
    const began = Date.now();
    try {
      await listenOnce(signal);
    } catch (error) {
      if (signal.aborted || error.kind === "unauthorized") continue;
      setConnection({ live: error.kind === "silent" ? "blocked" : "off" });
    }
    if (signal.aborted) return;
    wait = Date.now() - began > MAX_WAIT_MS ? FIRST_WAIT_MS : Math.min(wait * 2, MAX_WAIT_MS);
    await pause(connection.get().state === "offline" ? FIRST_WAIT_MS : wait, signal);
    if (connection.get().state === "offline") await probe();
  }
}

/** Hold one stream until it ends. After a gap everything is read again. */
async function listenOnce(outer) {
  const own = new AbortController();
  const stop = () => own.abort();
  outer.addEventListener("abort", stop, { once: true });
  const onHidden = () => document.hidden && own.abort();
  document.addEventListener("visibilitychange", onHidden);
  let silent = false;
  const silence = setTimeout(() => {
    silent = true;
    own.abort();
  }, SILENCE_MS);
  const notifications = { resourcesListChanged: true, resourceSubscriptions: shown ? [conversationUri(shown)] : [] };
  try {
    const onNotice = (message) => {
      clearTimeout(silence);
      if (message.method === "notifications/subscriptions/acknowledged") {
        const { live, restarts } = connection.get();
        setConnection({ live: "on", restarts: live === "on" ? restarts : restarts + 1 });
        announce("");
      } else if (message.method === "notifications/resources/updated") {
        announce(shown);
      } else {
        announce("");
      }
    };
    await request("subscriptions/listen", { notifications }, { signal: own.signal, onNotice });
  } catch (error) {
    if (silent) throw new CallError("silent", "no event came through");
    throw error;
  } finally {
    clearTimeout(silence);
    outer.removeEventListener("abort", stop);
    document.removeEventListener("visibilitychange", onHidden);
    if (!outer.aborted && !document.hidden) setConnection({ live: "off" });
  }
}

/** Tell the watchers of a conversation, or those of the list and of everything that is shown. */
function announce(id) {
  for (const watcher of [...watchers]) if (!id || !watcher.id || watcher.id === id) watcher.onChange();
}

/** Find out whether the daemon answers again. */
async function probe() {
  try {
    await send("/health/live", {});
  } catch {
    // Still away; the state says so.
  }
}

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
