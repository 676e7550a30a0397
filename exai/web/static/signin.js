// Signing in. The token stays in this tab; it is sent in a header only, never in an address.

import { useEffect, useState } from "./vendor.js";
import { html } from "./dom.js";
import { callTool } from "./mcp.js";
import { facts, session, signIn, useStore } from "./state.js";

/** The form for a token; it is kept only after the daemon has accepted it. */
export function SignIn() {
  const { reason } = useStore(session);
  const [problem, setProblem] = useState("");
  const [isBusy, setBusy] = useState(false);

  const [Other, setOther] = useState(null);
  useEffect(() => {
    // A function in a state would be called, so it stands in one that returns it.
    if (facts.auth) import("./supabase.js").then(({ SupabaseSignIn }) => setOther(() => SupabaseSignIn));
  }, []);

  const onSubmit = async (event) => {
    event.preventDefault();
    const token = new FormData(event.currentTarget).get("token").trim();
    if (!token) return;
    setBusy(true);
    setProblem("");
    try {
      await callTool("version", {}, { token });
      signIn(token);
    } catch (error) {
      setProblem(error.kind === "unauthorized" ? "This token is not accepted." : error.message);
      setBusy(false);
    }
  };

  return html`<main class="sign-in" id="main">
    ${Other && html`<${Other} />`}
    <form class="card" onSubmit=${onSubmit}>
      <h1>Sign in to EXAI</h1>
      <p>This server asks for a token. Its operator issues them; MCP clients use the same one.</p>
      <label for="token">Token</label>
      <input id="token" name="token" type="password" autocomplete="current-password" required autofocus
        aria-describedby="token-note" aria-invalid=${reason || problem ? "true" : undefined} />
      ${(problem || reason) && html`<p class="bad" role="alert">${problem || reason}</p>`}
      <p class="note" id="token-note">It is kept in this tab until you close it or sign out.</p>
      <button type="submit" class="primary" disabled=${isBusy}>Sign in</button>
    </form>
  </main>`;
}
