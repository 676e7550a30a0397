// The metadata of a message: the facts that the page shows of it.

const TEXTS = ["by", "file", "model", "workflow", "finish_reason"];
/** Facts that name a style, so that others would choose any. */
const CHOICES = { severity: ["critical", "high", "medium", "low", "info"], verdict: ["pass", "fix first", "unsure"] };
const LISTS = ["file_ids", "read", "notes"];
const isText = (value) => typeof value === "string";

/** Return a message with the facts that are shown of it. Any client stores metadata, so each is of any kind. */
export function readable(message) {
  const given = Object(message.metadata);
  const metadata = Object.fromEntries(TEXTS.filter((name) => isText(given[name])).map((name) => [name, given[name]]));
  for (const [name, known] of Object.entries(CHOICES)) if (known.includes(given[name])) metadata[name] = given[name];
  for (const name of LISTS) metadata[name] = Array.isArray(given[name]) ? given[name].filter(isText) : [];
  if (isText(given.line) || Number.isInteger(given.line)) metadata.line = given.line;
  if (isText(given.reasoning?.text)) metadata.reasoning = { text: given.reasoning.text };
  return { ...message, metadata };
}
