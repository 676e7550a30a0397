// Small parts that several views use.

import { useEffect, useRef, useState } from "./vendor.js";
import { html } from "./dom.js";
import { fullTime, when } from "./format.js";
import { dismiss, notices, useStore } from "./state.js";

/** A time, relative to now, with the exact one as a title. */
export function Time({ at }) {
  return html`<time datetime=${at} title=${fullTime(at)}>${when(at)}</time>`;
}

/** What went wrong, with a way to try again. */
export function Failure({ error, onRetry }) {
  return html`<div class="failure" role="alert">
    <p>${error.message}</p>
    ${onRetry && html`<button type="button" onClick=${onRetry}>Try again</button>`}
  </div>`;
}

/** A dialog over the page. The browser keeps the focus inside and closes it with Escape. */
export function Dialog({ title, onClose, children }) {
  const place = useRef(null);
  useEffect(() => {
    place.current.showModal();
  }, []);
  const onClick = (event) => event.target === place.current && place.current.close();
  return html`<dialog ref=${place} aria-label=${title} onClose=${onClose} onClick=${onClick}>
    <div class="dialog-body"><h2>${title}</h2>${children}</div>
  </dialog>`;
}

/** A dialog with a form: `onDone` may be asynchronous, and its error is shown in the dialog. */
export function FormDialog({ title, verb, onDone, onClose, isDangerous = false, children }) {
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const onSubmit = async (event) => {
    event.preventDefault();
    const values = new FormData(event.currentTarget);
    setBusy(true);
    setError(null);
    try {
      await onDone(values);
      onClose();
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form onSubmit=${onSubmit}>
      ${children}
      ${error && html`<p class="bad" role="alert">${error.message}</p>`}
      <div class="buttons">
        <button type="button" class="quiet" onClick=${onClose}>Cancel</button>
        <button type="submit" class=${isDangerous ? "danger" : "primary"} disabled=${isBusy}>${verb}</button>
      </div>
    </form>
  <//>`;
}

/** A button that opens a list of actions: `[label, what it does]`. */
export function Menu({ label, title, actions }) {
  const place = useRef(null);
  useEffect(() => {
    const onPress = (event) => {
      if (place.current && !place.current.contains(event.target)) place.current.open = false;
    };
    addEventListener("click", onPress);
    return () => removeEventListener("click", onPress);
  }, []);
  const onKey = (event) => {
    if (event.key !== "Escape" || !place.current.open) return;
    event.stopPropagation();
    place.current.open = false;
    place.current.querySelector("summary").focus();
  };
  const choose = (act) => () => {
    place.current.open = false;
    act();
  };
  return html`<details class="menu" ref=${place} onKeyDown=${onKey}>
    <summary class="button quiet" aria-label=${title} title=${title}>${label}</summary>
    <ul>
      ${actions.map(([words, act]) => html`<li><button type="button" onClick=${choose(act)}>${words}</button></li>`)}
    </ul>
  </details>`;
}

/** The notices at the edge of the page. */
export function Notices() {
  const shown = useStore(notices);
  return html`<div class="notices" role="status" aria-live="polite">
    ${shown.map(
      (each) => html`<div class="notice ${each.kind}" key=${each.key}>
        <span>${each.text}</span>
        ${each.action && html`<button type="button" onClick=${() => (dismiss(each.key), each.action.act())}>${each.action.label}</button>`}
        <button type="button" class="quiet" aria-label="Dismiss" onClick=${() => dismiss(each.key)}>×</button>
      </div>`,
    )}
  </div>`;
}

/** Run `load` when `keys` change, and again by `reload`. A result that comes too late is dropped. */
export function useLoaded(load, keys) {
  const [state, setState] = useState({ value: null, error: null, isLoading: true });
  const running = useRef(null);
  const reload = async () => {
    running.current?.abort();
    const own = (running.current = new AbortController());
    setState((now) => ({ ...now, isLoading: true }));
    try {
      const value = await load(own.signal);
      if (!own.signal.aborted) setState({ value, error: null, isLoading: false });
    } catch (error) {
      if (!own.signal.aborted) setState((now) => ({ ...now, error, isLoading: false }));
    }
  };
  useEffect(() => {
    reload();
    return () => running.current?.abort();
  }, keys);
  return { ...state, reload, setValue: (value) => setState((now) => ({ ...now, value })) };
}
