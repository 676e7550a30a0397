// The numbers of the daemon: those of now from a stream, those of the past as points in time.

import { useEffect, useState } from "./vendor.js";
import { keepOpen } from "./live.js";
import { eventsOf, send } from "./mcp.js";

/** Return the newest snapshot of the daemon, null before the first. */
export function useNumbers() {
  const [numbers, setNumbers] = useState(null);
  useEffect(() => {
    const control = new AbortController();
    const open = async (signal, onSign) => {
      const response = await send("/live", { signal });
      for await (const { data } of eventsOf(response, signal)) {
        onSign();
        setNumbers(JSON.parse(data));
      }
    };
    keepOpen(open, control.signal);
    return () => control.abort();
  }, []);
  return numbers;
}

/** Read a metric from now back, in steps that begin at whole multiples of themselves. */
export async function readHistory(metric, by, { span, step }, signal) {
  const until = Math.ceil(Date.now() / 1000 / step) * step;
  const query = new URLSearchParams({ metric, by, step, since: until - span, until });
  const response = await send(`/history?${query}`, { signal });
  const { points, error } = await response.json();
  if (error) throw new Error(error.message);
  const steps = Array.from({ length: span / step }, (_, index) => until - span + index * step);
  return { points, steps, step };
}

/** Return one value for each step: that of `pick` for its points, or `none` without any. */
export function seriesOf({ points, steps }, pick, none = null) {
  const found = new Map();
  for (const point of points) {
    const value = pick(point);
    if (value !== null) found.set(point.at, (found.get(point.at) ?? 0) + value);
  }
  return steps.map((at) => found.get(at) ?? none);
}
