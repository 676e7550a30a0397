// Numbers, times and sizes as people read them, in the viewer's language and time zone.

const whole = new Intl.NumberFormat();
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const dayOfYear = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

const HOUR_S = 3_600;

export const count = (number) => whole.format(number);

export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** Return a time relative to now: minutes of this hour, the clock of today, and else the day. */
export function when(iso, now = new Date()) {
  const at = new Date(iso);
  const passed = (now - at) / 1000;
  if (passed < 60) return "just now";
  if (passed < HOUR_S) return `${Math.floor(passed / 60)} min ago`;
  if (at.toDateString() === now.toDateString()) return clock.format(at);
  return at.getFullYear() === now.getFullYear() ? day.format(at) : dayOfYear.format(at);
}

export const fullTime = (iso) => full.format(new Date(iso));

/** Return an amount of US dollars: cents where they matter, and enough digits of less than a cent. */
export function usd(amount) {
  if (amount === 0) return "$0";
  if (amount < 0.0001) return "<$0.0001";
  return amount < 0.1 ? `$${amount.toPrecision(2).replace(/0+$/, "")}` : `$${amount.toFixed(2)}`;
}

export function bytes(size) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${size >= 10 || unit === 0 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

export function milliseconds(value) {
  if (value >= 10_000) return `${Math.round(value / 1000)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 10 ? `${Math.round(value)} ms` : `${value.toFixed(1)} ms`;
}
