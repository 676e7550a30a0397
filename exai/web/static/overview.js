// How the daemon is: ready or not, what it does now, what it did, and what that cost.

import { useState } from "./vendor.js";
import { html } from "./dom.js";
import { Chart } from "./chart.js";
import { count, milliseconds, plural, usd } from "./format.js";
import { callTool, request, send } from "./mcp.js";
import { readHistory, seriesOf, useNumbers } from "./numbers.js";
import { addressOf } from "./route.js";
import { complain, notify } from "./state.js";
import { Failure, Time, useLoaded } from "./ui.js";

const DAY_S = 86_400;
const RANGES = {
  hour: { span: 3_600, step: 60 },
  day: { span: DAY_S, step: 900 },
  week: { span: 7 * DAY_S, step: 10_800 },
};
const isError = ({ labels }) => !["ok", "cancelled"].includes(labels.outcome);
const ms = (seconds) => (seconds === null ? null : seconds * 1000);

/** What can be drawn: a metric, the label by which it is read, its lines, and how a value is written. */
const CHARTS = {
  Calls: {
    metric: "tool_call", by: "outcome", format: count, least: 5,
    lines: [["calls", (point) => point.count, 0], ["errors", (point) => (isError(point) ? point.count : 0), 0]],
  },
  Duration: {
    metric: "tool_call", by: "", format: milliseconds, least: 10,
    lines: [["median", (point) => ms(point.p50)], ["99 of 100", (point) => ms(point.p99)]],
  },
  Cost: { metric: "turn_cost_usd", by: "", format: usd, least: 0.001, lines: [["US dollars", (point) => point.sum, 0]] },
  Tokens: {
    metric: "turn_tokens", by: "kind", format: count, least: 10,
    lines: ["input", "output", "cached"].map((kind) => [kind, (point) => (point.labels.kind === kind ? point.sum : 0), 0]),
  },
  Cache: {
    metric: "cache_read", by: "result", format: count, least: 5,
    lines: ["hit", "miss"].map((result) => [result, (point) => (point.labels.result === result ? point.count : 0), 0]),
  },
};

export function Overview() {
  const numbers = useNumbers();
  return html`<main class="page" id="main">
    <h1>Overview</h1>
    <${Health} health=${numbers?.health} problems=${numbers?.problems ?? []} />
    <${Costs} />
    ${numbers && html`<${Now} numbers=${numbers} />`}
    ${numbers?.running > 0 && html`<${Running} key=${numbers.running} />`}
    <${Past} />
    ${numbers && html`<${Tools} tools=${numbers.tools} />`}
    <${Events} />
  </main>`;
}

const HEALTH = {
  ok: "Ready. All parts work.",
  warn: "Ready, with limits.",
  bad: "Not ready: clients should not send work here.",
};

/** The first thing to see: everything works, or what does not, why, and the cure in the words of `exai doctor`. */
function Health({ health, problems }) {
  if (!health) return html`<p class="health" role="status">Asking the daemon…</p>`;
  const kind = health.ready ? (problems.length ? "warn" : "ok") : "bad";
  return html`<div class="health ${kind}" role="status">
    <p><strong>${HEALTH[kind]}</strong></p>
    ${problems.map(({ part, detail, cure, since }) => html`<p key="${part} ${detail}">
      <strong>${part}</strong>${since && html` since <${Time} at=${since} />`}: ${detail}${cure && html`<span class="cure">${cure}</span>`}
    </p>`)}
  </div>`;
}

function Tile({ name, value, children }) {
  return html`<div class="tile">
    <dt>${name}</dt>
    <dd><span class="value">${value}</span><span class="meta">${children}</span></dd>
  </div>`;
}

function Now({ numbers }) {
  const { requests, requests_per_s: rate, errors, errors_recent: recent, cache, pool, running, sessions, providers } = numbers;
  const usable = providers.filter((each) => each.configured);
  const hits = cache.hit_rate === null ? "–" : `${Math.round(cache.hit_rate * 100)} %`;
  return html`<dl class="tiles" aria-label="Now">
    <${Tile} name="Calls" value="${rate.toFixed(1)}/s">${count(requests)} since the start<//>
    <${Tile} name="Errors" value=${count(recent)}>in 5 minutes, ${count(errors)} since the start<//>
    <${Tile} name="Cache hits" value=${hits}>${plural(cache.hits + cache.misses, "read")}<//>
    <${Tile} name="Database pool" value="${pool.in_use} of ${pool.size}">connections in use<//>
    <${Tile} name="Answers awaited" value=${count(running)}>in ${plural(sessions, "session")}<//>
    <${Tile} name="Providers" value=${usable.length ? "" : "none"}>
      ${usable.map((each) => html`<${Provider} key=${each.name} provider=${each} />`)}
    <//>
  </dl>`;
}

function Provider({ provider: { name, state, breaker, detail } }) {
  const isOk = state === "ok";
  return html`<span class="chip ${isOk ? "pass" : "high"}" title=${detail}>${name}${isOk ? "" : ` ${breaker.replace("_", " ")}`}</span>`;
}

/** Cost of today and this month in the viewer's time zone, and the budgets; one statement. */
function Costs() {
  const { value, error, reload } = useLoaded(readCosts, []);
  if (error) return html`<${Failure} error=${error} onRetry=${reload} />`;
  if (!value) return null;
  return html`<dl class="tiles" aria-label="Cost">
    <${Tile} name="Today" value=${usd(value.today)}>your calls<//>
    <${Tile} name="This month" value=${usd(value.month)}>
      ${plural(value.turns, "answer")}${value.unpriced > 0 && `, ${value.unpriced} without a known price`}
    <//>
    ${value.budgets.filter((each) => each.spent_usd !== null).map((each) => html`<${Budget} key=${each.budget} budget=${each} />`)}
  </dl>`;
}

function Budget({ budget: { budget: name, spent_usd: spent, reserved_usd: reserved, limit_usd: limit } }) {
  return html`<${Tile} name="Budget of the ${name}" value="${usd(spent)} of ${usd(limit)}">
    <progress max=${limit} value=${spent + reserved} aria-label="Spent and reserved"></progress>
  <//>`;
}

async function readCosts(signal) {
  const now = new Date();
  const since = new Date(now.getFullYear(), now.getMonth()).toISOString();
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const report = await callTool("usage", { by: "day", since, time_zone: zone }, { signal });
  const day = [now.getFullYear(), now.getMonth() + 1, now.getDate()].map((part) => String(part).padStart(2, "0")).join("-");
  const today = report.rows.find((row) => row.key === day)?.cost_usd ?? 0;
  const { cost_usd: month, turns, failed, unpriced } = report.total;
  return { today, month, turns: turns - failed, unpriced, budgets: report.budgets };
}

/** The caller's own calls that wait for a model, whichever client made them. */
function Running() {
  const { value, reload } = useLoaded(readRunning, []);
  if (!value?.length) return null;
  const cancel = async (id) => {
    const meta = { "io.modelcontextprotocol/clientCapabilities": { extensions: { "io.modelcontextprotocol/tasks": {} } } };
    try {
      await request("tasks/cancel", { taskId: id }, { meta });
      notify("The call is cancelled.");
      reload();
    } catch (error) {
      complain(error);
    }
  };
  return html`<section class="card"><h2>Running calls</h2><ul class="running">
    ${value.map(({ key, title, continuation_id: id }) => html`<li key=${key}>
      <a href=${addressOf(id)}>${title || "Without a title"}</a><button type="button" onClick=${() => cancel(key)}>Cancel</button>
    </li>`)}
  </ul></section>`;
}

async function readRunning(signal) {
  const since = new Date(Date.now() - DAY_S * 1000).toISOString();
  const report = await callTool("usage", { by: "turn", since }, { signal });
  return report.rows.filter((row) => row.pending);
}

function Past() {
  const [name, setName] = useState("Calls");
  const [range, setRange] = useState("day");
  const { value, error, reload } = useLoaded((signal) => readChart(name, range, signal), [name, range]);
  const choice = (names, chosen, choose) => names.map((each) => html`<button type="button" class="quiet" key=${each}
    aria-pressed=${each === chosen} onClick=${() => choose(each)}>${each}</button>`);
  return html`<section class="card" aria-label="History">
    <div class="choices">
      <div role="group" aria-label="What is shown">${choice(Object.keys(CHARTS), name, setName)}</div>
      <div role="group" aria-label="Time">${choice(Object.keys(RANGES), range, setRange)}</div>
    </div>
    ${error ? html`<${Failure} error=${error} onRetry=${reload} />` : value && html`<${Chart} ...${value} />`}
  </section>`;
}

async function readChart(name, range, signal) {
  const { metric, by, lines, format, least } = CHARTS[name];
  const history = await readHistory(metric, by, RANGES[range], signal);
  const series = lines.map(([label, pick, none]) => ({ label, values: seriesOf(history, pick, none) }));
  return { title: name, steps: history.steps, series, format, least };
}

function Tools({ tools }) {
  if (!tools.length) return null;
  const time = (value) => (value === null ? "–" : milliseconds(value));
  return html`<section class="card"><h2>Tools since the start</h2><div class="wide" tabindex="0"><table>
    <thead><tr>${["Tool", "Calls", "Errors", "Median", "99 of 100"].map((each) => html`<th scope="col" key=${each}>${each}</th>`)}</tr></thead>
    <tbody>${tools.map((each) => html`<tr key=${each.tool}>
      <th scope="row">${each.tool}</th><td>${count(each.calls)}</td><td>${count(each.errors)}</td>
      <td>${time(each.p50_ms)}</td><td>${time(each.p99_ms)}</td></tr>`)}</tbody>
  </table></div></section>`;
}

/** What happened beside the calls; read when it is opened. */
function Events() {
  const [isOpen, setOpen] = useState(false);
  return html`<details class="card events" onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>Events of the last week</summary>
    ${isOpen && html`<${EventList} />`}
  </details>`;
}

function EventList() {
  const { value, error, reload } = useLoaded(readEvents, []);
  if (error) return html`<${Failure} error=${error} onRetry=${reload} />`;
  if (!value?.length) return html`<p class="note">${value ? "Nothing has changed." : "Reading…"}</p>`;
  return html`<ul>${value.map(({ at, text }) => html`<li key="${at} ${text}"><${Time} at=${at} /> ${text}</li>`)}</ul>`;
}

async function readEvents(signal) {
  const { events, error } = await (await send("/events", { signal })).json();
  if (error) throw new Error(error.message);
  return events;
}
