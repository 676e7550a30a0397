// Signing in through Supabase Auth where the daemon accepts its tokens: plain requests, loaded only there.

import { useEffect, useState } from "./vendor.js";
import { html } from "./dom.js";
import { facts, session, signIn, signOut } from "./state.js";

const REFRESH = "exai.refresh";
const VERIFIER = "exai.verifier";
/** A token is replaced so long before it expires. */
const EARLY_MS = 60_000;
const { url, key, providers } = facts.auth;

async function ask(path, body) {
  const headers = { apikey: key, "content-type": "application/json" };
  const response = await fetch(`${url}${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.msg ?? answer.error_description ?? `Supabase Auth answered ${response.status}.`);
  return answer;
}

/** Use the tokens of an answer, and replace them before they expire. */
function begin({ access_token: token, refresh_token: refresh, expires_in: seconds }) {
  sessionStorage.setItem(REFRESH, refresh);
  signIn(token);
  setTimeout(renew, Math.max(seconds * 1000 - EARLY_MS, EARLY_MS));
}

async function renew() {
  const refresh = sessionStorage.getItem(REFRESH);
  if (!refresh) return;
  // The answer is ignored if the user has signed out, or in again, before it came.
  const isSame = () => sessionStorage.getItem(REFRESH) === refresh;
  try {
    const answer = await ask("/token?grant_type=refresh_token", { refresh_token: refresh });
    if (isSame()) begin(answer);
  } catch {
    if (isSame()) signOut("Your session has ended. Sign in again.");
  }
}

session.watch(({ token }) => {
  if (!token) sessionStorage.removeItem(REFRESH);
});

/** Finish what `leave` began: the address holds a code, which is of no use without the verifier in this tab. */
async function arrive() {
  const code = new URLSearchParams(location.search).get("code");
  const verifier = sessionStorage.getItem(VERIFIER);
  if (!code || !verifier) return;
  sessionStorage.removeItem(VERIFIER);
  history.replaceState(null, "", `/${location.hash}`);
  begin(await ask("/token?grant_type=pkce", { auth_code: code, code_verifier: verifier }));
}

async function leave(provider) {
  const verifier = base64(crypto.getRandomValues(new Uint8Array(32)));
  sessionStorage.setItem(VERIFIER, verifier);
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  const challenge = base64(new Uint8Array(digest));
  const query = { provider, redirect_to: `${location.origin}/`, code_challenge: challenge, code_challenge_method: "s256" };
  location.assign(`${url}/authorize?${new URLSearchParams(query)}`);
}

const base64 = (bytes) => btoa(String.fromCharCode(...bytes)).replace(/[+/=]/g, (mark) => ({ "+": "-", "/": "_" })[mark] ?? "");

/** By password, by a code sent to an address, or through another provider. */
export function SupabaseSignIn() {
  const [problem, setProblem] = useState("");
  const [hasCode, setCode] = useState(false);
  const attempt = async (work) => {
    setProblem("");
    await work().catch((error) => setProblem(error.message));
  };
  useEffect(() => {
    attempt(sessionStorage.getItem(REFRESH) ? renew : arrive);
  }, []);
  const onSubmit = (event) => {
    event.preventDefault();
    const { email, password, code } = Object.fromEntries(new FormData(event.currentTarget));
    attempt(async () => {
      if (code) begin(await ask("/verify", { type: "email", email, token: code.trim() }));
      else if (password) begin(await ask("/token?grant_type=password", { email, password }));
      else setCode(Boolean(await ask("/otp", { email })));
    });
  };
  return html`<form class="card" onSubmit=${onSubmit}>
    <h2>With your account</h2>
    <label for="email">E-mail address</label><input id="email" name="email" type="email" autocomplete="username" required />
    ${hasCode
      ? html`<label for="code">Code from the message</label>
          <input id="code" name="code" inputmode="numeric" autocomplete="one-time-code" required />`
      : html`<label for="password">Password, or empty for a code by e-mail</label>
          <input id="password" name="password" type="password" autocomplete="current-password" />`}
    ${problem && html`<p class="bad" role="alert">${problem}</p>`}
    <button type="submit" class="primary">Continue</button>
    ${providers.map((each) => html`<button type="button" key=${each} onClick=${() => attempt(() => leave(each))}>Continue with ${each}</button>`)}
  </form>`;
}
