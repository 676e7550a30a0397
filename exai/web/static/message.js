// One message of a transcript: who said it, with which model, at what cost, and what can be done with it.

import { useState } from "./vendor.js";
import { html } from "./dom.js";
import { CopyButton } from "./copy.js";
import { count, usd } from "./format.js";
import { Markdown } from "./markdown.js";
import { MessageFiles } from "./files.js";
import { callTool } from "./mcp.js";
import { addressOf } from "./route.js";
import { complain } from "./state.js";
import { Time } from "./ui.js";

const FOLDED_CHARS = 4_000;
const SHOWN_OF_FOLDED = 1_500;
const REST_CHARS = 400_000;
/** What stands in place of large content, which is a file of the message. */
const TAKEN_OUT = /<content name="([^"<>]*)" type="[^"<>]*" size="\d+" sha256="[0-9a-f]{64}" id="[0-9a-f-]{36}"\/>/g;

/** Without a prototype, since any client chooses the kind of a message: "toString" is none of these. */
const NAMES = { __proto__: null, user: "You", assistant: "Model", system: "System", tool: "Tool" };
const STEPS = { __proto__: null, finding: "Finding", verdict: "Verdict", plan: "Plan step", hypothesis: "Hypothesis", step: "Step" };
/** Kinds that say that something is missing. */
const INCOMPLETE = { __proto__: null, partial: "incomplete", failed: "no answer" };

/** Return the messages with neighbouring findings, verdicts and plan steps of one turn as one group. */
export function grouped(messages) {
  const groups = [];
  for (const message of messages) {
    const last = groups.at(-1);
    if (STEPS[message.kind] && message.kind !== "step" && last?.isSteps) last.messages.push(message);
    else groups.push({ isSteps: message.kind in STEPS && message.kind !== "step", messages: [message] });
  }
  return groups;
}

/** Findings, verdicts and plan steps, one line each. */
export function Steps({ messages, conversation, target }) {
  return html`<ol class="steps">
    ${messages.map(
      (message) => html`<li key=${message.seq} id="m${message.seq}" class=${message.seq === target ? "target" : ""}>
        <${StepLabel} message=${message} />
        <span class="step-text">${stepText(message)}</span>
        ${message.metadata.file && html`<code class="place">${placeOf(message.metadata)}</code>`}
        <a class="permalink" href=${addressOf(conversation, message.seq)} aria-label="Link to message ${message.seq}">#${message.seq}</a>
      </li>`,
    )}
  </ol>`;
}

function StepLabel({ message }) {
  const { severity, verdict, by } = message.metadata;
  const word = severity ?? verdict ?? STEPS[message.kind];
  const title = by === "caller" ? "found by the caller" : undefined;
  return html`<span class="chip ${(severity ?? verdict ?? message.kind).replace(" ", "-")}" title=${title}>${word}</span>`;
}

/** The chip and the place say what the text repeats in words. */
function stepText({ kind, content, metadata }) {
  if (kind === "verdict") return "Verdict of the model";
  let text = content.replace(/^(Finding|Hypothesis): /, "");
  if (metadata.severity) text = text.replace(`${metadata.severity}: `, "");
  return metadata.file ? text.replace(` (${placeOf(metadata)})`, "") : text;
}

const placeOf = ({ file, line }) => (line ? `${file}:${line}` : file);

/** A question, an answer, or what a tool stored. */
export function Message({ message, conversation, usage, target, onFork }) {
  const { seq, role, kind, created_at: at } = message;
  const { metadata } = message;
  const reasoning = metadata.reasoning?.text;
  const classes = ["message", role, kind in INCOMPLETE && kind, seq === target && "target"].filter(Boolean).join(" ");
  return html`<article id="m${seq}" class=${classes} aria-label="${nameOf(message)}, message ${seq}">
    <header>
      <span class="who">${nameOf(message)}</span>
      ${kind in INCOMPLETE && html`<span class="chip warn">${INCOMPLETE[kind]}</span>`}
      ${kind === "step" && html`<span class="chip">${metadata.workflow ?? "step"}</span>`}
      <span class="meta"><${Time} at=${at} /></span>
      <span class="actions">
        <${CopyButton} text=${message.content} title="Copy this message" />
        <button type="button" class="quiet small" onClick=${() => onFork(seq)} title="Start another conversation with the messages up to here">Fork</button>
      </span>
      <a class="permalink" href=${addressOf(conversation, seq)} aria-label="Link to message ${seq}">#${seq}</a>
    </header>
    ${reasoning && html`<${Reasoning} text=${reasoning} />`}
    <${Content} message=${message} conversation=${conversation} />
    <${MessageFiles} ids=${metadata.file_ids} names=${metadata.read} />
    ${metadata.notes.map((note) => html`<p class="note" key=${note}>${note}</p>`)}
    <${Cost} usage=${usage} metadata=${metadata} />
  </article>`;
}

function nameOf({ role, metadata }) {
  return role === "assistant" && metadata.model ? metadata.model : (NAMES[role] ?? role);
}

export function Reasoning({ text, isOpen = false }) {
  return html`<details class="reasoning" open=${isOpen}>
    <summary>Reasoning</summary>
    <div class="plain-text">${text}</div>
  </details>`;
}

/** The text: Markdown of models, and what people and tools wrote as they wrote it. A part of a long one is completed on request. */
function Content({ message, conversation }) {
  const [more, setMore] = useState({ text: "", next: message.next_offset });
  const [isFolded, setFolded] = useState(true);
  const text = (message.content + more.text).replace(TAKEN_OUT, "[$1]");
  const readRest = async () => {
    try {
      const given = { continuation_id: conversation, seq: message.seq, char_offset: more.next, max_chars: REST_CHARS };
      const [part] = (await callTool("conversation_get", given)).messages;
      setMore({ text: more.text + part.content, next: part.next_offset });
    } catch (error) {
      complain(error);
    }
  };
  const isPlain = message.role !== "assistant";
  const canFold = isPlain && text.length > FOLDED_CHARS;
  return html`
    ${isPlain
      ? html`<div class="plain-text">${canFold && isFolded ? `${text.slice(0, SHOWN_OF_FOLDED)}…` : text}</div>`
      : html`<${Markdown} text=${text} />`}
    ${canFold && html`<button type="button" class="quiet small" aria-expanded=${!isFolded} onClick=${() => setFolded(!isFolded)}>
      ${isFolded ? `Show all ${count(text.length)} characters` : "Show less"}
    </button>`}
    ${more.next !== null && html`<button type="button" class="quiet small" onClick=${readRest}>Read the rest</button>`}
  `;
}

function Cost({ usage, metadata }) {
  const isCut = metadata.finish_reason === "length";
  if (!usage) return isCut && html`<footer class="cost">cut by the output limit</footer>`;
  const { input_tokens: sent, cached_tokens: cached, output_tokens: got, reasoning_tokens: thought } = usage;
  const parts = [`${count(sent)} in${cached ? ` (${count(cached)} cached)` : ""}`, `${count(got)} out${thought ? ` (${count(thought)} reasoning)` : ""}`];
  if (!usage.unpriced) parts.push(usd(usage.cost_usd));
  if (isCut) parts.push("cut by the output limit");
  const title = usage.estimated ? "Estimated: the provider reported no tokens" : "Tokens of this turn";
  return html`<footer class="cost" title=${title}>${parts.join(" · ")}</footer>`;
}
