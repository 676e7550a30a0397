// Export and import. An export is read in parts, so that its size is limited by the browser only.

import { callTool } from "./mcp.js";
import { notify } from "./state.js";
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

/** Store the conversations of the chosen files; a repeated import stores only what is missing. */
export async function importFiles(files) {
  let conversations = 0;
  let stored = 0;
  for (const file of files) {
    const text = await file.text();
    const isLines = text.trimStart().startsWith("{");
    for (const part of isLines ? conversationsIn(text) : [text]) {
      const imported = await callTool("conversation_import", { text: part, format: isLines ? "jsonl" : "markdown" });
      conversations += 1;
      stored += imported.stored;
    }
  }
  notify(`${plural(conversations, "conversation")} imported, ${plural(stored, "message")} new.`);
}

/** Divide JSON Lines at the headers of conversations. */
function conversationsIn(text) {
  const found = [];
  for (const line of text.split("\n")) {
    if (isHeader(line)) found.push([]);
    if (found.length) found.at(-1).push(line);
  }
  return found.length ? found.map((lines) => lines.join("\n")) : [text];
}

function isHeader(line) {
  return line.startsWith('{"format":"exai-conversation"');
}
