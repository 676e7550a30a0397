// The page: sign in, list, read, ask, and show an answer while it grows. Nothing of a model becomes HTML.

import { Exai } from "./exai.js";
import { KEY, URL } from "./config.js";

const supabase = globalThis.supabase.createClient(URL, KEY);
const $ = (id) => document.getElementById(id);
let exai = null;
let current = null;
let first = null;
const growing = new Map();

const show = (text) => ($("state").textContent = text);

function article(role, text, state) {
  const made = document.createElement("article");
  made.dataset.role = role;
  if (state) made.dataset.state = state;
  made.textContent = text;
  return made;
}

async function list() {
  const buttons = (await exai.conversations()).map((each) => {
    const button = document.createElement("button");
    button.textContent = each.title || each.continuation_id.slice(0, 8);
    button.setAttribute("aria-current", String(each.continuation_id === current));
    button.onclick = () => open(each.continuation_id);
    return button;
  });
  $("conversations").replaceChildren(...buttons);
}

async function open(continuationId) {
  current = continuationId;
  await read();
}

async function read() {
  await list();
  const page = current ? await exai.messages(current) : [];
  first = page[0]?.seq ?? null;
  const shown = page.map((each) => article(each.role, each.content));
  if (first > 1) {
    const earlier = document.createElement("button");
    earlier.textContent = "Earlier messages";
    earlier.onclick = async () => {
      const before = await exai.messages(current, first);
      first = before[0]?.seq ?? 1;
      earlier.after(...before.map((each) => article(each.role, each.content)));
      if (first <= 1) earlier.remove();
    };
    shown.unshift(earlier);
  }
  $("messages").replaceChildren(...shown);
  for (const request of await exai.openRequests()) follow(request.id, request.arguments.continuation_id ?? null);
  const waiting = (await exai.outbox.entries()).length;
  show(waiting ? `${waiting} not sent yet` : "");
}

/** Show a request of the open conversation while it is answered; again after the messages were drawn anew. */
async function follow(id, continuationId) {
  if (continuationId !== current) return;
  const isNew = !growing.has(id);
  if (isNew) growing.set(id, article("assistant", "waiting", "queued"));
  const shown = growing.get(id);
  $("messages").append(shown);
  if (!isNew) return;
  const end = await exai.watch(id, (row) => {
    shown.dataset.state = row.state;
    shown.textContent = row.partial || row.progress || row.error?.message || row.state;
  });
  growing.delete(id);
  if (end?.state === "done") {
    if (continuationId === current) current ??= end.continuation_id;
    await exai.markRead(id);
    await read();
  }
}

$("ask").onsubmit = async (event) => {
  event.preventDefault();
  const field = event.target.elements.prompt;
  const prompt = field.value.trim();
  if (!prompt) return;
  field.value = "";
  $("messages").append(article("user", prompt));
  const asked = current;
  follow(await exai.chat(prompt, asked), asked);
};
$("new").onclick = () => open(null);
$("sign-out").onclick = () => supabase.auth.signOut();
$("sign-in").onsubmit = async (event) => {
  event.preventDefault();
  const { email, password } = event.target.elements;
  const { error } = await supabase.auth.signInWithPassword({ email: email.value, password: password.value });
  event.target.querySelector("[role=alert]").textContent = error?.message ?? "";
};

supabase.auth.onAuthStateChange((_, session) => {
  const user = session?.user.id ?? null;
  if (user === (exai?.user ?? null)) return;
  exai?.close();
  exai = null;
  current = null;
  $("sign-in").hidden = user !== null;
  $("app").hidden = user === null;
  if (user === null) return;
  const failed = (error) => show(error.message);
  exai = new Exai(supabase, user, { onChange: (news) => (news?.refused ? failed(news.error) : read().catch(failed)) });
  // Not inside the callback: supabase-js holds a lock of the session while it runs.
  setTimeout(() => (exai.subscribe(), exai.refresh()), 0);
});
$("sign-in").hidden = false;
