// The models that can be asked, read once: the daemon answers without a statement, but it is not worth a call per view.

import { callTool } from "./mcp.js";
import { createStore } from "./state.js";

/** `names` of the configured models, the `byDefault` one, and what the daemon says about them; null until read. */
export const models = createStore(null);

export async function readModels() {
  const found = [];
  let answer;
  do {
    answer = await callTool("listmodels", { after: answer?.next_after });
    found.push(...answer.models);
  } while (answer.next_after);
  const configured = found.filter((each) => each.configured);
  models.set({
    configured,
    byDefault: configured.find((each) => each.default)?.name ?? configured[0]?.name ?? "",
    notes: answer.notes,
  });
}
