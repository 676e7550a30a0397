// Copying, also where a page without TLS has no clipboard of its own.

import { useState } from "./vendor.js";
import { html } from "./dom.js";

const CONFIRMED_MS = 1_500;

/** Put a text into the clipboard; returns whether that worked. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const place = document.createElement("textarea");
  place.value = text;
  place.className = "off-screen";
  document.body.append(place);
  place.select();
  const worked = document.execCommand("copy");
  place.remove();
  return worked;
}

/** A button that copies a text. */
export function CopyButton({ text, label = "Copy", title }) {
  const [said, setSaid] = useState("");
  const onClick = async () => {
    setSaid((await copy(text)) ? "Copied" : "Not copied");
    setTimeout(() => setSaid(""), CONFIRMED_MS);
  };
  return html`<button type="button" class="quiet small" title=${title} onClick=${onClick}>${said || label}</button>`;
}

/** The same as an element, for content that is not rendered by components. */
export function copyButtonFor(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet small";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text)) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), CONFIRMED_MS);
  });
  return button;
}
