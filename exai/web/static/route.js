// The place in the page, kept behind # in the address, so that every view and message has an address of its own.

import { createStore } from "./state.js";

/** `view` is list, conversation, overview, settings or connect; `id` and `seq` name a conversation and a message. */
export const route = createStore(read());

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [head, id, seq] = path.split("/").map(decoded);
  const search = new URLSearchParams(query);
  if (head === "c" && id) return { view: "conversation", id, seq: Number(seq) || 0, search };
  if (["overview", "settings", "connect"].includes(head)) return { view: head, id: "", seq: 0, search };
  return { view: "list", id: "", seq: 0, search };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Return the address of a conversation, or of one message in it. */
export function addressOf(id, seq = 0) {
  return `#/c/${encodeURIComponent(id)}${seq ? `/${seq}` : ""}`;
}

export function go(address) {
  location.hash = address;
}

/** Keep the search in the address without an entry in the history for each letter. */
export function replaceSearch(search) {
  const { view, id, seq } = route.get();
  const path = view === "conversation" ? addressOf(id, seq) : "#/";
  const query = search.toString();
  history.replaceState(null, "", query ? `${path}?${query}` : path);
  route.set(read());
}

addEventListener("hashchange", () => route.set(read()));
