// What can be done with a whole conversation: rename, tag, fork, export, delete and restore.

import { useState } from "./vendor.js";
import { html } from "./dom.js";
import { callTool } from "./mcp.js";
import { addressOf, go } from "./route.js";
import { complain, notify } from "./state.js";
import { exportConversation } from "./transfer.js";
import { FormDialog, Menu } from "./ui.js";

const UNDO_MS = 20_000;

export function ConversationActions({ conversation, onChange }) {
  const [dialog, setDialog] = useState("");
  const { continuation_id: id, title, tags } = conversation;
  const close = () => setDialog("");
  const change = async (changed) => {
    await callTool("conversation_update", { continuation_id: id, ...changed });
    await onChange();
  };
  const actions = [
    ["Rename…", () => setDialog("rename")],
    ["Tags…", () => setDialog("tags")],
    ["Fork", () => fork(id)],
    ["Export as Markdown", () => exportConversation(id, "markdown").catch(complain)],
    ["Export as JSON Lines", () => exportConversation(id, "jsonl").catch(complain)],
    ["Delete", () => remove(id, title)],
  ];
  return html`
    <${Menu} label="⋯" title="Actions" actions=${actions} />
    ${dialog === "rename" && html`<${FormDialog} title="Rename" verb="Rename" onClose=${close}
      onDone=${(values) => change({ title: values.get("title").trim() || null })}>
      <label for="title">Title</label>
      <input id="title" name="title" value=${title ?? ""} maxlength="200" required autofocus />
    <//>`}
    ${dialog === "tags" && html`<${FormDialog} title="Tags" verb="Save" onClose=${close}
      onDone=${(values) => change({ tags: tagsIn(values.get("tags")) })}>
      <label for="tags">Tags, separated by commas</label>
      <input id="tags" name="tags" value=${tags.join(", ")} autofocus />
    <//>`}
  `;
}

export function tagsIn(text) {
  return [...new Set(text.split(",").map((tag) => tag.trim()))].filter(Boolean);
}

/** Start another conversation with the messages up to `seq`, or with all. */
export async function fork(id, seq) {
  try {
    const made = await callTool("conversation_fork", { continuation_id: id, at_seq: seq });
    notify("This is the fork; the conversation it began from is unchanged.");
    go(addressOf(made.continuation_id));
  } catch (error) {
    complain(error);
  }
}

async function remove(id, title) {
  try {
    await callTool("conversation_delete", { continuation_id: id });
    go("#/");
    const undo = { label: "Undo", act: () => restore(id) };
    notify(`“${title || "Without a title"}” is deleted.`, { action: undo, lasts: UNDO_MS });
  } catch (error) {
    complain(error);
  }
}

/** Bring a deleted conversation back, and show it. */
export async function restore(id) {
  try {
    await callTool("conversation_delete", { continuation_id: id, restore: true });
    go(addressOf(id));
  } catch (error) {
    complain(error);
  }
}
