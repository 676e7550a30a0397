// Asking a model: a new question, its answer while it grows, and what to do when there is none.

import { useEffect, useRef, useState } from "./vendor.js";
import { html } from "./dom.js";
import { storeFile } from "./files.js";
import { Markdown } from "./markdown.js";
import { callTool } from "./mcp.js";
import { Reasoning } from "./message.js";
import { models, readModels } from "./models.js";
import { addressOf, go } from "./route.js";
import { complain, notify, useStore } from "./state.js";

/** A longer answer is shown as plain text until it is complete. */
const MAX_GROWING_MARKDOWN = 30_000;
const MAX_ROWS_PX = 320;
/** What has become of a file that was read from the daemon's disk. */
const ON_DISK = {
  changed: "has changed on disk since (“Reread files” reads it again)",
  gone: "is no longer on disk",
  outside: "may not be read any more",
  unknown: "could not be compared with the disk",
};

/** The field for a question, below it nothing, above it the answer that is being given. */
export function Composer({ conversation = "", hasFiles = false, onChange }) {
  const [text, setText] = useState("");
  const [model, setModel] = useState("");
  const [files, setFiles] = useState([]);
  const [reread, setReread] = useState(false);
  const [asked, setAsked] = useState(null);
  const isShown = useRef(true);
  const known = useStore(models);
  useEffect(() => {
    readModels().catch(complain);
    return () => (isShown.current = false);
  }, []);

  const ask = async (question) => {
    const control = new AbortController();
    const show = (change) => setAsked((now) => ({ ...now, ...change }));
    setAsked({ ...question, control, content: "", reasoning: "", progress: "", error: null });
    try {
      const answer = await askModel(question, conversation, control.signal, show);
      for (const { path, state } of answer.changed_files ?? []) notify(`${path} ${ON_DISK[state]}; the model was shown what is stored.`);
      await onChange?.();
      setAsked(answer.complete === false ? { ...question, control, note: answer.content } : null);
      // A reader who has left this view meanwhile finds the answer in the list.
      if (!conversation && isShown.current) go(addressOf(answer.continuation_id));
    } catch (error) {
      if (error.kind === "aborted") setAsked(null);
      else show({ error, control: null });
      onChange?.();
    }
  };
  const attach = (added) => setFiles((now) => [...now, ...added]);
  const onSubmit = (event) => {
    event?.preventDefault();
    if (!text.trim() || asked?.control) return;
    setText("");
    setFiles([]);
    setReread(false);
    // The key makes a repetition of this question, after a lost answer too, one turn.
    ask({ prompt: text, files, reread, model: model || undefined, key: crypto.randomUUID?.() ?? `page-${Date.now()}-${Math.random()}` });
  };

  return html`<div class="composer-place">
    ${asked && html`<${Answering} asked=${asked} onRetry=${() => ask(asked)} />`}
    ${known && !known.configured.length
      ? html`<div class="failure"><p>${known.notes[0] ?? "No model is configured."}
          Then start EXAI again, as in <code>KIMI_API_KEY=… make run</code></p></div>`
      : html`<form class="composer" onSubmit=${onSubmit}>
          <${Question} text=${text} onInput=${setText} onSubmit=${onSubmit} onFiles=${attach} isNew=${!conversation} />
          ${files.length > 0 && html`<div class="files">${files.map((file, index) => html`<button type="button" class="chip" key=${index}
            aria-label="Remove ${file.name}" title="Remove" onClick=${() => setFiles(files.filter((each) => each !== file))}>${file.name} ×</button>`)}</div>`}
          <div class="composer-bar">
            <label class="off-screen" for="model">Model</label>
            <select id="model" value=${model} onChange=${(event) => setModel(event.currentTarget.value)}>
              <option value="">${known ? `${known.byDefault} (default)` : "Default model"}</option>
              ${known?.configured.filter((each) => !each.default).map((each) => html`<option key=${each.name} value=${each.name}>${each.name}</option>`)}
            </select>
            ${hasFiles && html`<label class="check" title="Read the files of this conversation that have changed on disk again">
              <input type="checkbox" checked=${reread} onChange=${(event) => setReread(event.currentTarget.checked)} />Reread files</label>`}
            <${AttachButton} onFiles=${attach} />
            ${asked?.control
              ? html`<button type="button" onClick=${() => asked.control.abort()}>Stop</button>`
              : html`<button type="submit" class="primary" disabled=${!text.trim()}>Send</button>`}
          </div>
        </form>`}
  </div>`;
}

/** Chooses files of this device, which are sent with the question. */
function AttachButton({ onFiles }) {
  const place = useRef(null);
  const onChoice = (event) => {
    onFiles([...event.currentTarget.files]);
    event.currentTarget.value = "";
  };
  return html`<span class="attach">
    <button type="button" onClick=${() => place.current.click()}>Attach…</button>
    <input ref=${place} type="file" multiple hidden aria-label="Files to attach" onChange=${onChoice} />
  </span>`;
}

function Question({ text, onInput, onSubmit, onFiles, isNew }) {
  const place = useRef(null);
  useEffect(() => {
    place.current.style.height = "auto";
    place.current.style.height = `${Math.min(place.current.scrollHeight, MAX_ROWS_PX)}px`;
  }, [text]);
  const onKey = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && matchMedia("(pointer: fine)").matches) onSubmit(event);
  };
  const onPaste = (event) => {
    const { files } = event.clipboardData;
    if (!files.length) return;
    event.preventDefault();
    onFiles([...files]);
  };
  const label = isNew ? "Ask a model" : "Continue this conversation";
  return html`<textarea ref=${place} rows="1" value=${text} aria-label=${label} placeholder="${label}…"
    onInput=${(event) => onInput(event.currentTarget.value)} onKeyDown=${onKey} onPaste=${onPaste}></textarea>`;
}

/** The question that was asked, and its answer as far as it has come. */
function Answering({ asked, onRetry }) {
  const { prompt, files, content, reasoning, progress, error, note, control } = asked;
  const place = useRef(null);
  useEffect(() => {
    place.current?.scrollIntoView({ block: "nearest" });
  }, [content, reasoning, error]);
  return html`<div class="answering" ref=${place} aria-busy=${Boolean(control && !note)}>
    <article class="message user"><header><span class="who">You</span></header><div class="plain-text">${prompt}</div>
      ${files?.length > 0 && html`<div class="files">${files.map((file) => html`<span class="chip" key=${file.name}>${file.name}</span>`)}</div>`}
    </article>
    ${(reasoning || content) && html`<article class="message assistant">
      ${reasoning && html`<${Reasoning} text=${reasoning} isOpen=${!content} />`}
      ${content && (content.length > MAX_GROWING_MARKDOWN
        ? html`<div class="plain-text">${content}</div>`
        : html`<${Markdown} text=${content} isGrowing />`)}
    </article>`}
    ${control && !note && html`<p class="progress" role="status">${progress || "Sending…"}</p>`}
    ${note && html`<p class="note" role="status">${note}</p>`}
    ${error && html`<div class="failure" role="alert">
      <p>${error.message}</p>
      <button type="button" onClick=${onRetry}>Try again</button>
    </div>`}
  </div>`;
}

async function askModel({ prompt, files, reread, model, key }, conversation, signal, show) {
  let content = "";
  let reasoning = "";
  const onNotice = ({ params }) => {
    const part = params?._meta?.["exai/part"];
    if (part) {
      content += part.content ?? "";
      reasoning += part.reasoning ?? "";
    }
    show({ content, reasoning, progress: params?.message ?? "" });
  };
  const stored = [];
  for (const file of files ?? []) {
    show({ progress: `Storing ${file.name}…` });
    stored.push(await storeFile(file, signal));
  }
  const more = { files: stored.length ? stored : undefined, reread: reread || undefined };
  const given = { prompt, model, ...more, continuation_id: conversation || undefined, idempotency_key: key };
  const meta = { progressToken: key, "exai/parts": true };
  return callTool("chat", given, { signal, onNotice, meta });
}
