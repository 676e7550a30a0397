// EXAI for a client that cannot reach the daemon: it stores requests in Supabase, and reads the answers there.
//
// Needs a client of supabase-js whose user is signed in, and IndexedDB for what is asked without a network. Every request
// has an id made here, so that it can be sent again after a lost reply. Realtime events are hints: what is shown is
// always read from the tables.

const OUTBOX = "outbox";
const OPEN = ["queued", "running"];
const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 15_000;
const COLUMNS =
  "id, tool, arguments, state, progress, partial, answer, result, error, continuation_id, created_at, updated_at";

/** A value of an IndexedDB request. */
const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** What was asked and is not stored yet, oldest first; it survives a reload. One for each user. */
export class Outbox {
  constructor(user, factory = globalThis.indexedDB) {
    const opening = factory.open(`exai-${user}`, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(OUTBOX, { keyPath: "number", autoIncrement: true });
    this.database = settled(opening);
  }

  async store(mode) {
    return (await this.database).transaction(OUTBOX, mode).objectStore(OUTBOX);
  }

  async add(entry) {
    await settled((await this.store("readwrite")).add(entry));
  }

  async entries() {
    return settled((await this.store("readonly")).getAll());
  }

  async remove(number) {
    await settled((await this.store("readwrite")).delete(number));
  }
}

/** An error of the API. `isFinal`: the same request would be refused again. */
export class ApiError extends Error {
  constructor(error, status) {
    super(error.message || `the request failed with status ${status}`);
    this.code = error.code;
    this.status = status;
    // 401: the token has expired, and is renewed. 408, 429 and 5xx pass. 0: no network.
    this.isFinal = status >= 400 && status < 500 && ![401, 408, 429].includes(status);
  }
}

const rows = ({ data, error, status }) => {
  if (error) throw new ApiError(error, status);
  return data;
};

export class Exai {
  /** `onChange` is called when something that is shown may have changed. */
  constructor(supabase, user, { onChange = () => {}, indexedDB, target = globalThis.document } = {}) {
    this.supabase = supabase;
    this.user = user;
    this.onChange = onChange;
    this.outbox = new Outbox(user, indexedDB);
    this.watched = new Map();
    this.ending = [];
    this.flushing = null;
    this.listen(target);
  }

  listen(target) {
    const again = () => {
      // After standby a channel may be dead without a word, and events that were sent meanwhile are lost.
      if (target?.visibilityState !== "hidden") this.refresh();
    };
    target?.addEventListener("visibilitychange", again);
    globalThis.addEventListener?.("online", again);
    this.ending.push(() => target?.removeEventListener("visibilitychange", again));
    this.ending.push(() => globalThis.removeEventListener?.("online", again));
  }

  /** Receive changes by Realtime: of conversations by broadcast, of requests by their table. */
  subscribe() {
    const hint = () => this.refresh();
    const filter = `owner=eq.${this.user}`;
    const channel = this.supabase
      .channel(`exai:${this.user}`, { config: { private: true } })
      .on("broadcast", { event: "changed" }, hint)
      .on("postgres_changes", { event: "*", schema: "public", table: "requests", filter }, hint)
      .subscribe((status) => status === "SUBSCRIBED" && hint());
    this.ending.push(() => this.supabase.removeChannel(channel));
  }

  close() {
    for (const end of this.ending.splice(0)) end();
    for (const watch of this.watched.values()) watch.stop();
  }

  /** Send what waits, read every watched request again, and let the page do so, too. */
  refresh() {
    this.flush().catch(() => {});
    for (const watch of this.watched.values()) watch.wake();
    this.onChange();
  }

  // Conversations.

  async conversations(limit = 50) {
    const query = this.supabase.from("conversations").select("continuation_id, title, revision, updated_at");
    return rows(await query.order("updated_at", { ascending: false }).limit(limit));
  }

  /** A page, oldest message first; of a fork with the messages that it shares. `before` is the lowest seq shown. */
  async messages(continuationId, before = null, limit = 50) {
    const asked = { p_continuation_id: continuationId, p_before_seq: before, p_limit: limit };
    return rows(await this.supabase.rpc("exai_page", asked)).reverse();
  }

  // Requests.

  /** Ask a tool; returns the id at once. It is sent now, or when there is a network again. */
  async ask(tool, args, { id = crypto.randomUUID(), deadline } = {}) {
    await this.outbox.add({ id, tool, arguments: args, ...(deadline && { deadline_at: deadline.toISOString() }) });
    await this.flush().catch(() => {});
    return id;
  }

  chat(prompt, continuationId, options) {
    return this.ask("chat", { prompt, ...(continuationId && { continuation_id: continuationId }) }, options);
  }

  /** Store what waits, in its order. Stops at the first failure that may pass; what is refused for good is dropped. */
  flush() {
    this.flushing ??= this.sendAll().finally(() => (this.flushing = null));
    return this.flushing;
  }

  async sendAll() {
    for (const { number, ...request } of await this.outbox.entries()) {
      try {
        // The same id twice is one row, so a lost reply does no harm.
        rows(await this.supabase.from("requests").upsert(request, { ignoreDuplicates: true }));
      } catch (error) {
        if (!error.isFinal) throw error;
        this.onChange({ refused: request, error });
      }
      await this.outbox.remove(number);
    }
  }

  async request(id) {
    return rows(await this.supabase.from("requests").select(COLUMNS).eq("id", id).maybeSingle());
  }

  async openRequests() {
    const query = this.supabase.from("requests").select(COLUMNS).in("state", OPEN);
    return rows(await query.order("created_at", { ascending: false }).limit(50));
  }

  async cancel(id) {
    return rows(await this.supabase.from("requests").update({ state: "cancelled" }).eq("id", id).in("state", OPEN).select("id"));
  }

  /** Let the row be removed a day from now. */
  async markRead(id) {
    await this.supabase.from("requests").update({ read_at: new Date().toISOString() }).eq("id", id);
  }

  /** Call `onRow` with each new state of a request; resolves with the last one. Polls, and looks at once when woken. */
  async watch(id, onRow = () => {}) {
    let wake = () => {};
    let isStopped = false;
    const watch = { wake: () => wake(), stop: () => ((isStopped = true), wake()) };
    this.watched.set(id, watch);
    let pause = FIRST_PAUSE_MS;
    let seen = "";
    try {
      while (!isStopped) {
        const row = await this.request(id).catch((error) => {
          if (error.isFinal) throw error;
          return null;
        });
        const state = JSON.stringify([row?.state, row?.progress, row?.partial?.length]);
        if (row && state !== seen) onRow(row);
        if (row && !OPEN.includes(row.state)) return row;
        pause = state === seen ? Math.min(pause * 1.5, LONGEST_PAUSE_MS) : FIRST_PAUSE_MS;
        seen = state;
        await new Promise((resolve) => {
          const timer = setTimeout(resolve, pause);
          wake = () => (clearTimeout(timer), resolve());
        });
      }
      return null;
    } finally {
      this.watched.delete(id);
    }
  }
}
