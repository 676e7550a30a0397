// Files of a message. Their bytes are read only when someone looks at them.

import { useEffect, useState } from "./vendor.js";
import { html } from "./dom.js";
import { bytes } from "./format.js";
import { callTool } from "./mcp.js";
import { complain } from "./state.js";
import { Dialog } from "./ui.js";

const PART_CHARS = 200_000;
const MAX_READ_CHARS = 20_000_000;
const MAX_SHOWN_CHARS = 400_000;
/** Image types that cannot hold scripts. */
const IMAGES = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"];

/** Links to the files with these ids; `names` are sources that a workflow read, which are not stored. */
export function MessageFiles({ ids, names }) {
  const [open, setOpen] = useState(null);
  if (!ids?.length && !names?.length) return null;
  return html`<div class="files">
    ${ids?.map((id, index) => html`<button type="button" class="chip" key=${id} onClick=${() => setOpen(id)}>File ${index + 1}</button>`)}
    ${names?.map((name) => html`<span class="chip" key=${name} title="read by the tool">${name}</span>`)}
    ${open && html`<${FileView} id=${open} onClose=${() => setOpen(null)} />`}
  </div>`;
}

/** Store a file of this device, and return its id. A repetition stores nothing again. */
export async function storeFile(file, signal) {
  const given = { name: file.name, media_type: file.type, content_base64: await toBase64(file) };
  return (await callTool("file_put", given, { signal })).file_id;
}

function FileView({ id, onClose }) {
  const [file, setFile] = useState(null);
  useEffect(() => {
    let address = "";
    readFile(id)
      .then((found) => {
        address = URL.createObjectURL(found.blob);
        setFile({ ...found, address });
      })
      .catch((error) => (complain(error), onClose()));
    return () => address && URL.revokeObjectURL(address);
  }, [id]);
  return html`<${Dialog} title=${file ? file.name : "Reading the file"} onClose=${onClose}>
    ${file && html`
      <p class="note">${file.media_type}, ${bytes(file.size_bytes)}${file.isCut ? ", the beginning" : ""}</p>
      ${IMAGES.includes(file.media_type) && html`<img src=${file.address} alt=${file.name} />`}
      ${file.text !== null && html`<pre class="file-text" tabindex="0">${file.text.slice(0, MAX_SHOWN_CHARS)}</pre>`}
      <div class="buttons">
        <a class="button" href=${file.address} download=${file.name}>Save</a>
        <button type="button" class="primary" onClick=${onClose}>Close</button>
      </div>`}
  <//>`;
}

async function readFile(id) {
  const parts = [];
  let part;
  let chars = 0;
  do {
    part = await callTool("file_get", { file_id: id, offset: part?.next_offset ?? 0, limit: PART_CHARS });
    parts.push(part.encoding === "text" ? part.content : fromBase64(part.content));
    chars += part.content.length;
  } while (part.next_offset !== null && chars < MAX_READ_CHARS);
  const isText = part.encoding === "text";
  // An address of a blob is of this page's origin: the type given here decides that nothing in it can run.
  const type = IMAGES.includes(part.media_type) ? part.media_type : "application/octet-stream";
  return { ...part, text: isText ? parts.join("") : null, isCut: part.next_offset !== null, blob: new Blob(parts, { type }) };
}

function toBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (mark) => mark.charCodeAt(0));
}
