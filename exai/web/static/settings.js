// The settings in effect, and where each comes from. Secrets are hidden by the daemon itself.

import { useState } from "./vendor.js";
import { html } from "./dom.js";
import { request } from "./mcp.js";
import { Failure, useLoaded } from "./ui.js";

const ADDRESS = "exai://settings";

export function Settings() {
  const [words, setWords] = useState("");
  const { value, error, reload } = useLoaded(readSettings, []);
  const fits = ({ variable, origin }) => `${variable} ${origin}`.toLowerCase().includes(words.toLowerCase());
  return html`<main class="page" id="main">
    <h1>Settings</h1>
    <p class="lead">As they are in effect, read when EXAI was started. They are changed in the environment or in a file .env.</p>
    ${error && html`<${Failure} error=${error} onRetry=${reload} />`}
    ${value === "hidden" && html`<p>
      This daemon serves several owners, so the page does not show its settings. On its machine, <code>exai config</code> does.
    </p>`}
    ${Array.isArray(value) && html`
      <input type="search" aria-label="Filter the settings" placeholder="Filter" value=${words}
        onInput=${(event) => setWords(event.currentTarget.value)} />
      <div class="wide" tabindex="0"><table class="settings">
        <thead><tr><th scope="col">Variable</th><th scope="col">Value</th><th scope="col">From</th></tr></thead>
        <tbody>${value.filter(fits).map(({ variable, value: shown, origin }) => html`<tr key=${variable}>
          <th scope="row"><code>${variable}</code></th><td>${shown}</td><td>${origin}</td>
        </tr>`)}</tbody>
      </table></div>`}
  </main>`;
}

async function readSettings(signal) {
  try {
    const { contents } = await request("resources/read", { uri: ADDRESS }, { signal });
    return JSON.parse(contents[0].text).settings;
  } catch (error) {
    if (error.kind === "protocol") return "hidden";
    throw error;
  }
}
