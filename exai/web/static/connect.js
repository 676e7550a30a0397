// How clients connect, with lines to copy.

import { useEffect, useState } from "./vendor.js";
import { html } from "./dom.js";
import { CopyButton } from "./copy.js";
import { facts } from "./state.js";

/** The snippets that the daemon made for the name under which it was asked. */
export function Snippets() {
  return html`<div class="snippets">
    ${facts.snippets.map(
      ({ title, words, code }) => html`<section class="card">
        <h2>${title}</h2>
        <p>${words}</p>
        <div class="code">
          <div class="code-bar"><span>${code.startsWith("{") ? "json" : "bash"}</span><${CopyButton} text=${code} /></div>
          <pre tabindex="0"><code>${code}</code></pre>
        </div>
      </section>`,
    )}
  </div>`;
}

/** Return whether a WebSocket of this page is refused. With tokens it would need one in its address, so none is tried. */
function useRefusedSocket() {
  const [isRefused, setRefused] = useState(false);
  useEffect(() => {
    if (facts.guarded) return undefined;
    const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/ws`, "mcp");
    socket.onopen = () => socket.close();
    socket.onerror = () => setRefused(true);
    return () => socket.readyState < 2 && socket.close();
  }, []);
  return isRefused;
}

export function Connect() {
  const isRefused = useRefusedSocket();
  return html`<main class="page" id="main">
    <h1>Connect a client</h1>
    <p class="lead">
      EXAI is a Model Context Protocol server. Every client that connects to it shares these conversations.
      ${facts.guarded && html` Put your token in place of <code>TOKEN</code>.`}
    </p>
    ${isRefused && html`<p class="failure" role="alert">
      A WebSocket cannot be opened here. Let the proxy before EXAI pass the headers Upgrade and Connection, or connect over HTTP.
    </p>`}
    <${Snippets} />
  </main>`;
}
