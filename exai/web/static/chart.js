// A chart over time, in the page's colours, with the same numbers as a table.

import { uPlot, useEffect, useRef, useState } from "./vendor.js";
import { html } from "./dom.js";

const HEIGHT_PX = 220;
const COLOURS = ["--accent", "--bad", "--warn", "--muted", "--text"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const clock = new Intl.DateTimeFormat(undefined, { weekday: "short", hour: "2-digit", minute: "2-digit" });

/**
 * `series` are `{label, values}` for the same `steps`, in seconds since 1970; `format` writes a value, and the scale
 * reaches at least to `least`.
 */
export function Chart({ title, steps, series, format, least }) {
  const place = useRef(null);
  const [scheme, setScheme] = useState(dark.matches);
  useEffect(() => {
    const onChange = () => setScheme(dark.matches);
    dark.addEventListener("change", onChange);
    return () => dark.removeEventListener("change", onChange);
  }, []);
  useEffect(() => {
    const frame = place.current;
    const data = [steps, ...series.map((each) => each.values)];
    const plot = new uPlot(options(frame.clientWidth, series, format, least), data, frame);
    const resizing = new ResizeObserver(() => plot.setSize({ width: frame.clientWidth, height: HEIGHT_PX }));
    resizing.observe(frame);
    return () => (resizing.disconnect(), plot.destroy());
  }, [steps, series, scheme]);
  const rows = steps.flatMap((at, index) => (series.some(({ values }) => values[index]) ? [[at, index]] : []));
  return html`<figure class="chart">
    <div ref=${place} aria-hidden="true"></div>
    <details>
      <summary>${title} as a table</summary>
      <div class="wide" tabindex="0"><table>
        <thead><tr><th scope="col">Time</th>${series.map(({ label }) => html`<th scope="col" key=${label}>${label}</th>`)}</tr></thead>
        <tbody>${rows.map(([at, index]) => html`<tr key=${at}>
          <th scope="row">${clock.format(at * 1000)}</th>
          ${series.map(({ label, values }) => html`<td key=${label}>${values[index] === null ? "–" : format(values[index])}</td>`)}
        </tr>`)}</tbody>
      </table></div>
      ${rows.length === 0 && html`<p class="note">Nothing happened in this time.</p>`}
    </details>
  </figure>`;
}

/** A canvas does not know the style of the page, so it is told the colours. */
function options(width, series, format, least) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const lines = series.map(({ label }, index) => ({
    label,
    stroke: colour(COLOURS[index % COLOURS.length]),
    width: 2,
    spanGaps: true,
    points: { size: 5 },
    value: (_, value) => (value === null ? "–" : format(value)),
  }));
  return {
    width,
    height: HEIGHT_PX,
    series: [{ value: (_, at) => (at ? clock.format(at * 1000) : "–") }, ...lines],
    axes: [axis, { ...axis, size: 64, values: (_, ticks) => ticks.map(format) }],
    scales: { y: { range: (_, low, high) => [0, Math.max(high ?? 0, least)] } },
    cursor: { y: false },
  };
}
