// The conversations: newest first, or by what is searched for in them.

import { useEffect, useRef, useState } from "./vendor.js";
import { html } from "./dom.js";
import { plural } from "./format.js";
import { watchChanges } from "./live.js";
import { restore, tagsIn } from "./manage.js";
import { callTool } from "./mcp.js";
import { models } from "./models.js";
import { addressOf, replaceSearch, route } from "./route.js";
import { complain, isStoreEmpty, useStore } from "./state.js";
import { exportAll, importFiles, importing } from "./transfer.js";
import { Dialog, Failure, Menu, Time, useLoaded } from "./ui.js";

const PAGE = 40;
const MAX_PAGE = 200;
const TYPING_MS = 180;
const SETTLING_MS = 400;
const FILTERS = ["tool", "model", "tags", "since", "until"];
const TOOLS = [
  "chat", "codereview", "precommit", "debug", "thinkdeep", "planner", "secaudit", "analyze", "refactor", "tracer",
  "testgen", "docgen", "challenge", "consensus",
];

export function List({ open }) {
  const { search } = useStore(route);
  const query = Object.fromEntries(["q", "deleted", ...FILTERS].map((name) => [name, search.get(name) ?? ""]));
  const isFiltered = FILTERS.some((name) => query[name]);
  const [isFiltering, setFiltering] = useState(isFiltered);
  useEffect(() => {
    if (isFiltered) setFiltering(true);
  }, [isFiltered]);
  const change = (name, value) => {
    const next = new URLSearchParams(search);
    if (value) next.set(name, value);
    else next.delete(name);
    replaceSearch(next);
  };
  return html`<aside class="list" aria-label="Conversations">
    <div class="list-head">
      <div class="list-search">
        <${SearchField} value=${query.q} onChange=${(words) => change("q", words)} />
        <button type="button" class="quiet" aria-expanded=${isFiltering} aria-controls="filters" onClick=${() => setFiltering(!isFiltering)}>Filter</button>
        <${Menu} label="⋯" title="More" actions=${listActions(query, change)} />
      </div>
      ${isFiltering && html`<${Filters} query=${query} onChange=${change} />`}
      <a class="button new" href="#/">New conversation</a>
      <${Importing} />
    </div>
    ${query.q.trim() ? html`<${Hits} query=${query} open=${open} />` : html`<${Conversations} query=${query} open=${open} />`}
  </aside>`;
}

function listActions(query, change) {
  return [
    ["Import…", chooseFiles],
    ["Export all", () => exportAll().catch(complain)],
    query.deleted ? ["Show conversations", () => change("deleted", "")] : ["Show deleted ones", () => change("deleted", "yes")],
  ];
}

function chooseFiles() {
  const field = document.createElement("input");
  Object.assign(field, { type: "file", multiple: true });
  field.addEventListener("change", () =>
    importFiles(field.files).catch((error) => {
      importing.set(null);
      complain(error);
    }),
  );
  field.click();
}

/** How an import goes, and then what it left out. */
function Importing() {
  const state = useStore(importing);
  if (!state) return null;
  if (!state.lines) return html`<p class="importing" role="status">${state.text} <progress max="1" value=${state.share} /></p>`;
  return html`<${Dialog} title="Imported" onClose=${() => importing.set(null)}>
    <p>${state.text}</p>
    <ul>${state.lines.map((line) => html`<li>${line}</li>`)}</ul>
  <//>`;
}

/** The field searches while one types; / puts the cursor into it. */
function SearchField({ value, onChange }) {
  const [text, setText] = useState(value);
  const place = useRef(null);
  const timer = useRef(0);
  useEffect(() => setText(value), [value]);
  useEffect(() => {
    const onKey = (event) => {
      if (event.key !== "/" || event.target.closest("input, textarea, select, dialog")) return;
      event.preventDefault();
      place.current.focus();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  const onInput = (event) => {
    const words = event.currentTarget.value;
    setText(words);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => onChange(words), TYPING_MS);
  };
  return html`<input ref=${place} type="search" value=${text} onInput=${onInput} placeholder="Search" aria-label="Search conversations" />`;
}

function Filters({ query, onChange }) {
  const known = useStore(models);
  const field = (name, label, element) => {
    const set = (event) => onChange(name, event.currentTarget.value);
    return html`<label>${label}${element({ name, value: query[name], onChange: set })}</label>`;
  };
  const choice = (names) => (props) => html`<select ...${props}>
    <option value="">any</option>
    ${names.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
  </select>`;
  const input = (type) => (props) => html`<input type=${type} ...${props} />`;
  return html`<div class="filters" id="filters">
    ${field("tool", "Tool", choice(TOOLS))}
    ${field("model", "Model", choice(known?.configured.map((each) => each.name) ?? []))}
    ${field("tags", "Tags", input("text"))}
    ${field("since", "From", input("date"))}
    ${field("until", "To", input("date"))}
  </div>`;
}

/** A day of the viewer's calendar as a moment; the last day is included. */
function moment(day, { isEnd = false } = {}) {
  if (!day) return undefined;
  const at = new Date(`${day}T00:00`);
  if (isEnd) at.setDate(at.getDate() + 1);
  return at.toISOString();
}

function filtersOf({ tool, model, tags, since, until }) {
  const wanted = tagsIn(tags);
  return { tool, model, tags: wanted.length ? wanted : undefined, since: moment(since), until: moment(until, { isEnd: true }) };
}

function Conversations({ query, open }) {
  const key = JSON.stringify(query);
  const [limit, setLimit] = useState(PAGE);
  const { value, error, reload } = useLoaded((signal) => readList(query, limit, signal), [key, limit]);
  useEffect(() => setLimit(PAGE), [key]);
  useSettled(reload, [key, limit]);
  if (error && !value) return html`<${Failure} error=${error} onRetry=${reload} />`;
  if (!value) return html`<p class="starting">Reading…</p>`;
  const { conversations, next_cursor: next } = value;
  if (!conversations.length) return html`<p class="note">${whyNone(query)}</p>`;
  return html`<nav aria-label="Conversations, newest first"><ul class="rows">
    ${conversations.map((each) => html`<${Row} key=${each.continuation_id} conversation=${each} isOpen=${each.continuation_id === open} />`)}
  </ul>
  ${next && html`<button type="button" class="quiet more" onClick=${() => setLimit(limit + PAGE)}>More</button>`}</nav>`;
}

function whyNone(query) {
  if (FILTERS.some((name) => query[name])) return "No conversation fits.";
  return query.deleted ? "Nothing was deleted in the last 7 days." : "There are no conversations yet.";
}

/** Read as many pages as are shown; each is one statement. */
async function readList(query, limit, signal) {
  const found = [];
  let page;
  do {
    const given = { ...filtersOf(query), deleted: query.deleted ? true : undefined, limit: Math.min(limit, MAX_PAGE), cursor: page?.next_cursor };
    page = await callTool("conversation_list", given, { signal });
    found.push(...page.conversations);
  } while (page.next_cursor && found.length < limit);
  if (Object.values(query).every((value) => !value)) isStoreEmpty.set(found.length === 0);
  return { conversations: found, next_cursor: page.next_cursor };
}

/** Read again after changes, once for all that come close together. */
function useSettled(reload, keys) {
  useEffect(() => {
    let timer = 0;
    const stop = watchChanges({
      onChange: () => {
        clearTimeout(timer);
        timer = setTimeout(reload, SETTLING_MS);
      },
    });
    return () => (clearTimeout(timer), stop());
  }, keys);
}

function Row({ conversation, isOpen }) {
  const { continuation_id: id, title, messages, tags, updated_at: at, newest_kind: kind, deleted_at: deleted } = conversation;
  const words = html`
    <span class="row-title">${title || "Without a title"}</span>
    <span class="meta"><${Time} at=${at} /> · ${plural(messages, "message")}${kind === "failed" ? " · no answer" : ""}
      ${tags.map((tag) => html`<span class="tag" key=${tag}>${tag}</span>`)}
    </span>`;
  if (deleted) return html`<li class="row"><span>${words}</span><button type="button" class="quiet small" onClick=${() => restore(id)}>Restore</button></li>`;
  return html`<li><a class="row" href=${addressOf(id)} aria-current=${isOpen ? "page" : undefined}>${words}</a></li>`;
}

const SOME_WORDS = "Nothing has all of these words; the following have most of them.";

function Hits({ query, open }) {
  const [limit, setLimit] = useState(PAGE);
  const { value, error, reload } = useLoaded((signal) => readHits(query, limit, signal), [JSON.stringify(query), limit]);
  if (error) return html`<${Failure} error=${error} onRetry=${reload} />`;
  if (!value) return html`<p class="starting">Searching…</p>`;
  if (!value.hits.length) return html`<p class="note" role="status">Nothing was found.</p>`;
  const matched = plural(value.hits.length, "result") + (value.next_cursor ? " and more" : "");
  return html`<nav aria-label="Search results, best first">
    <p class="note" role="status">${value.matched === "some" ? SOME_WORDS : matched}</p>
    <ul class="rows">
    ${value.hits.map(
      (hit) => html`<li key="${hit.continuation_id}/${hit.seq}">
        <a class="row" href=${addressOf(hit.continuation_id, hit.seq)} aria-current=${hit.continuation_id === open ? "page" : undefined}>
          <span class="row-title">${hit.title || "Without a title"}</span>
          <span class="snippet"><${Marked} text=${hit.snippet} /></span>
          <span class="meta">${hit.seq ? `#${hit.seq} ${hit.model ?? hit.role}` : "title"} · <${Time} at=${hit.created_at} /></span>
        </a>
      </li>`,
    )}
  </ul>
  ${value.next_cursor && limit < MAX_PAGE && html`<button type="button" class="quiet more" onClick=${() => setLimit(MAX_PAGE)}>More</button>`}
  </nav>`;
}

function readHits(query, limit, signal) {
  return callTool("conversation_search", { query: whileTyping(query.q.trim()), ...filtersOf(query), limit }, { signal });
}

/** The last word may be unfinished, unless it stands in a phrase. */
function whileTyping(words) {
  const isInPhrase = (words.match(/"/g) ?? []).length % 2 === 1;
  return !isInPhrase && /[\p{L}\p{N}]$/u.test(words) ? `${words}*` : words;
}

/** A text whose matches stand between asterisks. */
function Marked({ text }) {
  return text.split("**").map((part, index) => (index % 2 ? html`<mark>${part}</mark>` : part));
}
