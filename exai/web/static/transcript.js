// A conversation to read and to continue. One call reads its messages, one what its answers cost.

import { useEffect, useRef } from "./vendor.js";
import { html } from "./dom.js";
import { Composer } from "./composer.js";
import { plural } from "./format.js";
import { watchChanges } from "./live.js";
import { ConversationActions, fork } from "./manage.js";
import { callTool } from "./mcp.js";
import { grouped, Message, Steps } from "./message.js";
import { readable } from "./metadata.js";
import { Failure, Time, useLoaded } from "./ui.js";

const PAGE = 50;
const PAGE_CHARS = 400_000;
/** Messages that are read after one that an address names. */
const AFTER_TARGET = 15;
/** The distance to the end at which the view follows new messages. */
const NEAR_END_PX = 160;

export function Transcript({ id, seq }) {
  const { value, error, reload, setValue } = useLoaded((signal) => readConversation(id, seq, signal), [id, seq]);
  const scroller = useRef(null);
  useEffect(() => watchChanges({ id, onChange: reload }), [id, seq]);
  useFollowing(scroller, value, seq);

  const readEarlier = async () => {
    const older = await readPage(id, value.next_before_seq);
    if (!older.messages.length) return;
    const height = scroller.current.scrollHeight;
    setValue({ ...value, ...older, messages: [...older.messages, ...value.messages], usage: new Map([...older.usage, ...value.usage]) });
    requestAnimationFrame(() => (scroller.current.scrollTop += scroller.current.scrollHeight - height));
  };

  if (error && !value) return html`<section class="talk"><${Failure} error=${error} onRetry=${reload} /></section>`;
  if (!value) return html`<section class="talk" aria-busy="true"><p class="starting">Reading…</p></section>`;
  return html`<section class="talk" aria-label="Conversation">
    <${Head} conversation=${value} onChange=${reload} />
    <div class="scroller" ref=${scroller}>
      <div class="messages">
        ${value.next_before_seq !== null && html`<button type="button" class="quiet" onClick=${readEarlier}>Earlier messages</button>`}
        ${grouped(value.messages).map(({ isSteps, messages }) =>
          isSteps
            ? html`<${Steps} key=${messages[0].seq} messages=${messages} conversation=${id} target=${seq} />`
            : html`<${Message} key=${messages[0].seq} message=${messages[0]} conversation=${id} target=${seq}
                usage=${usageOf(messages[0], value)} onFork=${(at) => fork(id, at)} />`,
        )}
        ${value.isMiddle && html`<a class="button quiet" href="#/c/${encodeURIComponent(id)}">To the newest messages</a>`}
      </div>
      <${Composer} key=${id} conversation=${id} onChange=${reload}
        hasFiles=${value.messages.some(({ metadata }) => metadata.file_ids.length)} />
    </div>
  </section>`;
}

function Head({ conversation, onChange }) {
  const { title, tags, messages } = conversation;
  useEffect(() => {
    document.title = `${title || "Without a title"} · EXAI`;
  }, [title]);
  return html`<header class="talk-head">
    <a class="back" href="#/" aria-label="Back to the list">←</a>
    <div class="talk-title">
      <h1>${title || "Without a title"}</h1>
      <p class="meta">
        ${plural(conversation.last_seq, "message")}
        ${messages.length > 0 && html` · <${Time} at=${messages.at(-1).created_at} />`}
        ${tags.map((tag) => html`<a class="tag" key=${tag} href="#/?tags=${encodeURIComponent(tag)}">${tag}</a>`)}
      </p>
    </div>
    <${ConversationActions} conversation=${conversation} onChange=${onChange} />
  </header>`;
}

async function readConversation(id, seq, signal) {
  const newest = await readPage(id, seq ? seq + AFTER_TARGET : null, signal);
  // Beside a message that an address names there may be newer ones.
  return { ...newest, isMiddle: seq > 0 && newest.messages.at(-1)?.seq === seq + AFTER_TARGET - 1 };
}

async function readPage(id, before, signal) {
  const given = { continuation_id: id, limit: PAGE, max_chars: PAGE_CHARS, before_seq: before ?? undefined };
  const reading = callTool("conversation_get", given, { signal });
  // A report has a limited number of turns, the latest ones; those of an older page are found by its time.
  const until = before ? (await reading).messages.at(-1)?.created_at : undefined;
  const [page, report] = await Promise.all([reading, callTool("usage", { by: "turn", continuation_id: id, until }, { signal })]);
  const messages = page.messages.map(readable);
  return { ...page, messages, last_seq: page.messages.at(-1)?.seq ?? 0, usage: new Map(report.rows.map((row) => [row.key, row])) };
}

/** What a turn cost stands at its last message. */
function usageOf(message, { messages, usage }) {
  if (message.role !== "assistant" || !message.turn_id) return undefined;
  return messages.some((each) => each.turn_id === message.turn_id && each.seq > message.seq) ? undefined : usage.get(message.turn_id);
}

/** Show the end of a conversation, or the message that the address names; later follow only a reader at the end. */
function useFollowing(scroller, value, seq) {
  const seen = useRef({ isPlaced: false, last: 0 });
  const last = value?.messages.at(-1)?.seq ?? 0;
  useEffect(() => {
    seen.current.isPlaced = false;
  }, [seq, value?.continuation_id]);
  useEffect(() => {
    const place = scroller.current;
    if (!place) return;
    const { isPlaced, last: before } = seen.current;
    const isNear = place.scrollHeight - place.scrollTop - place.clientHeight < NEAR_END_PX;
    if (!isPlaced && seq) document.getElementById(`m${seq}`)?.scrollIntoView({ block: "center" });
    else if (!isPlaced || (last > before && isNear)) place.scrollTop = place.scrollHeight;
    seen.current = { isPlaced: true, last };
  }, [value, seq]);
}
