// What all parts of the page share: who is signed in, whether the daemon answers, and short notices.

import { useEffect, useState } from "./vendor.js";

const TOKEN = "exai.token";

/** What the daemon wrote into the page: its version, whether it wants a token, how clients connect. */
export const facts = JSON.parse(document.getElementById("facts").textContent);

/** Return a value that components can watch. */
export function createStore(value) {
  const watchers = new Set();
  return {
    get: () => value,
    set(next) {
      if (next === value) return;
      value = next;
      for (const watcher of [...watchers]) watcher(value);
    },
    watch(watcher) {
      watchers.add(watcher);
      return () => watchers.delete(watcher);
    },
  };
}

/** Return the value of a store, and render again when it changes. */
export function useStore(store) {
  const [value, setValue] = useState(store.get());
  useEffect(() => {
    setValue(store.get());
    return store.watch(setValue);
  }, [store]);
  return value;
}

function readToken() {
  try {
    return sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    return ""; // Storage is switched off: the token lives as long as the page.
  }
}

function keepToken(token) {
  try {
    if (token) sessionStorage.setItem(TOKEN, token);
    else sessionStorage.removeItem(TOKEN);
  } catch {
    // As above.
  }
}

const kept = readToken();

/** The token of this tab, and why one is wanted. */
export const session = createStore({ token: kept, isWanted: facts.guarded && !kept, reason: "" });

export function signIn(token) {
  keepToken(token);
  session.set({ token, isWanted: false, reason: "" });
}

export function signOut(reason = "") {
  keepToken("");
  session.set({ token: "", isWanted: true, reason });
}

/** "starting", "online", or "offline"; live is "on", "off", or "blocked" by something between page and daemon. */
export const connection = createStore({ state: "starting", live: "off" });

export function setConnection(change) {
  const now = connection.get();
  if (Object.entries(change).some(([name, value]) => now[name] !== value)) connection.set({ ...now, ...change });
}

/** Whether nothing has been stored yet: the page then shows the first steps. */
export const isStoreEmpty = createStore(false);

/** Notices at the edge of the page; each may offer one action, such as to undo. */
export const notices = createStore([]);

const NOTICE_MS = 8_000;
let noticeCount = 0;

export function notify(text, { action, kind = "info", lasts = NOTICE_MS } = {}) {
  const notice = { key: (noticeCount += 1), text, action, kind };
  notices.set([...notices.get(), notice].slice(-3));
  setTimeout(() => dismiss(notice.key), lasts);
}

export function dismiss(key) {
  notices.set(notices.get().filter((each) => each.key !== key));
}

/** Show an error that nothing else on the page shows. */
export function complain(error) {
  if (error.kind !== "aborted" && error.kind !== "unauthorized") notify(error.message, { kind: "bad" });
}
