// Export and import. An export is read in parts, so that its size is limited by the browser only.

import { callTool } from "./mcp.js";
import { createStore, notify, session } from "./state.js";
import { plural } from "./format.js";

const PART_CHARS = 400_000;
const LIST_PAGE = 100;
const SUFFIXES = { markdown: "md", jsonl: "jsonl" };

/** Save one conversation as a file. */
export async function exportConversation(id, format) {
  save(await textOf(id, format), `${id}.${SUFFIXES[format]}`);
}

/** Save all conversations as one file of JSON Lines: each begins with its own header. */
export async function exportAll() {
  const texts = [];
  let page;
  do {
    page = await callTool("conversation_list", { limit: LIST_PAGE, cursor: page?.next_cursor });
    for (const { continuation_id: id } of page.conversations) texts.push(...(await textOf(id, "jsonl")));
  } while (page.next_cursor);
  save(texts, `exai-${new Date().toISOString().slice(0, 10)}.jsonl`);
}

async function textOf(id, format) {
  const parts = [];
  let part;
  do {
    const place = part ? { after_seq: part.next_after_seq, char_offset: part.next_char_offset } : {};
    part = await callTool("conversation_export", { continuation_id: id, format, max_chars: PART_CHARS, ...place });
    parts.push(part.text);
  } while (part.next_after_seq !== null);
  if (!parts.at(-1).endsWith("\n")) parts.push("\n");
  return parts;
}

function save(parts, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 0);
}

/** How an import of files goes: `{ text, share, lines }`, null without one. */
export const importing = createStore(null);

/** Import the chosen files, also of other programs; a repeated import stores only what is new. */
export async function importFiles(files) {
  const reports = [];
  for (const file of files) {
    const report = await upload(file, (text, share) => importing.set({ text: `${file.name}: ${text}`, share }));
    reports.push(report);
  }
  const sum = (name) => reports.reduce((total, report) => total + report[name], 0);
  const lines = reports.flatMap((report) => [
    ...report.problems,
    ...(report.damaged > report.problems.length ? [`and ${report.damaged - report.problems.length} more`] : []),
    ...Object.entries(report.left_out).map(([reason, number]) => `left out: ${number} ${reason}`),
    ...report.notes,
  ]);
  const text = `${plural(sum("conversations"), "conversation")} imported, ${plural(sum("stored"), "message")} new.`;
  importing.set(lines.length ? { text, lines } : null);
  notify(text);
}

/** Send a file, and follow the events of its import until the last one, which has the report. */
function upload(file, onProgress) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    const fail = () => {
      importing.set(null);
      reject(new Error(call.status >= 400 ? call.responseText : "The connection ended; import the file again to go on."));
    };
    call.open("POST", `/import?name=${encodeURIComponent(file.name)}`);
    call.setRequestHeader("content-type", "application/octet-stream");
    if (session.get().token) call.setRequestHeader("authorization", `Bearer ${session.get().token}`);
    call.upload.onprogress = ({ loaded, total }) => onProgress("sending", loaded / total);
    call.onprogress = () => {
      const event = lastEvent(call.responseText);
      if (event?.share !== undefined) onProgress(`${plural(event.messages, "message")} read`, event.share);
    };
    call.onerror = fail;
    call.onload = () => {
      const event = call.status === 200 ? lastEvent(call.responseText) : null;
      if (event?.report) resolve(event.report);
      else if (event?.error) reject(new Error(event.error));
      else fail();
    };
    call.send(file);
  });
}

function lastEvent(text) {
  const data = text.split("\n\n").slice(0, -1).at(-1)?.split("\ndata: ")[1];
  return data ? JSON.parse(data) : null;
}
