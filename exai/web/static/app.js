// The page: its frame, and which view stands in it.

import { render, useEffect } from "./vendor.js";
import { html } from "./dom.js";
import { Composer } from "./composer.js";
import { Connect, Snippets } from "./connect.js";
import { List } from "./list.js";
import { Overview } from "./overview.js";
import { route } from "./route.js";
import { Settings } from "./settings.js";
import { SignIn } from "./signin.js";
import { connection, facts, isStoreEmpty, session, signOut, useStore } from "./state.js";
import { Transcript } from "./transcript.js";
import { Notices } from "./ui.js";

const VIEWS = [
  ["list", "#/", "Conversations"],
  ["overview", "#/overview", "Overview"],
  ["connect", "#/connect", "Connect"],
  ["settings", "#/settings", "Settings"],
];

function App() {
  const { isWanted } = useStore(session);
  const { view, id, seq } = useStore(route);
  useEffect(() => {
    const name = VIEWS.find(([each]) => each === view && each !== "list")?.[2];
    if (view !== "conversation") document.title = name ? `${name} · EXAI` : "EXAI";
  }, [view]);
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <${Top} view=${view} />
    ${isWanted ? html`<${SignIn} />` : html`<${View} view=${view} id=${id} seq=${seq} />`}
    <${Notices} />
  `;
}

/** The address names a view, so the link moves the focus itself. */
function skip(event) {
  event.preventDefault();
  const main = document.getElementById("main");
  main.tabIndex = -1;
  main.focus();
}

function View({ view, id, seq }) {
  if (view === "overview") return html`<${Overview} />`;
  if (view === "settings") return html`<${Settings} />`;
  if (view === "connect") return html`<${Connect} />`;
  return html`<div class="talks show-${view}">
    <${List} open=${id} />
    <main id="main">${view === "conversation" ? html`<${Transcript} key=${id} id=${id} seq=${seq} />` : html`<${Start} />`}</main>
  </div>`;
}

/** What stands beside the list while no conversation is open. */
function Start() {
  const isEmpty = useStore(isStoreEmpty);
  return html`<section class="talk start">
    <div class="scroller">
      <div class="welcome">
        <h1>${isEmpty ? "Welcome to EXAI" : "What would you like to know?"}</h1>
        <p class="lead">Every question and answer is stored in your own Postgres. Any client can continue it later.</p>
        ${isEmpty && html`<h2>Connect a client</h2><${Snippets} />`}
      </div>
      <${Composer} />
    </div>
  </section>`;
}

function Top({ view }) {
  const { token, isWanted } = useStore(session);
  const current = view === "conversation" ? "list" : view;
  return html`<header class="top">
    <a class="brand" href="#/">EXAI</a>
    ${!isWanted && html`<nav aria-label="Views">
      ${VIEWS.map(([name, address, words]) => html`<a key=${name} href=${address} aria-current=${name === current ? "page" : undefined}>${words}</a>`)}
    </nav>`}
    ${!isWanted && html`<${Connection} />`}
    ${token && html`<button type="button" class="quiet small" onClick=${() => signOut()}>Sign out</button>`}
  </header>`;
}

const BLOCKED =
  "Something between this page and the daemon holds back event streams. The page reads again every 30 s. " +
  "Let the proxy pass text/event-stream without buffering.";

/** A class, a word, and what it means. */
const STATES = {
  starting: ["", "Connecting", ""],
  online: ["", "Connected", `EXAI ${facts.version}`],
  on: ["ok", "Live", `EXAI ${facts.version}; changes appear by themselves`],
  blocked: ["warn", "Not live", BLOCKED],
  offline: ["bad", "Offline", "The daemon does not answer. The page tries again by itself."],
};

/** Whether the daemon answers, and whether its changes arrive by themselves. */
function Connection() {
  const { state, live } = useStore(connection);
  const [kind, words, title] = STATES[state === "offline" ? state : live === "off" ? state : live];
  return html`<span class="connection ${kind}" role="status" title=${title}><span class="dot"></span>${words}</span>`;
}

document.getElementById("page").replaceChildren();
render(html`<${App} />`, document.getElementById("page"));
