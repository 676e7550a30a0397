// Markdown of models and people as elements. What they wrote is data: nothing of it is loaded, run, or trusted.

import { DOMPurify, hljs, Marked, useEffect, useRef } from "./vendor.js";
import { html } from "./dom.js";
import { copyButtonFor } from "./copy.js";

/** Beyond this a text is shown as it is: no browser lays it out without a pause. */
const MAX_MARKDOWN_CHARS = 200_000;
const MAX_HIGHLIGHTED_CHARS = 40_000;

const TAGS = [
  "a", "b", "blockquote", "br", "code", "dd", "del", "details", "dl", "dt", "em", "h1", "h2", "h3", "h4", "h5", "h6",
  "hr", "i", "input", "kbd", "li", "mark", "ol", "p", "pre", "s", "strong", "sub", "summary", "sup", "table", "tbody",
  "td", "tfoot", "th", "thead", "tr", "ul",
];
const SANITIZED = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["align", "checked", "class", "colspan", "disabled", "href", "open", "rowspan", "start", "type"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const COLOURED = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };

/** HTML that models write in Markdown for what Markdown lacks; any other tag is shown as the text that it is. */
const PLAIN_TAG = /^<\/?(?:b|br|del|details|i|kbd|mark|s|sub|summary|sup)\s*\/?>$/i;

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => text.replace(/<[^>]*>?|&/g, (tag) => (PLAIN_TAG.test(tag) ? tag : escaped(tag))),
    // The address of an image would tell another site what is read here.
    image({ href, text }) {
      return `<em>image${text ? `: ${escaped(text)}` : ""}</em> <code>${escaped(href)}</code>`;
    },
  },
});

function escaped(text) {
  return text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
}

/** A text in Markdown. */
export function Markdown({ text, isGrowing = false }) {
  const place = useRef(null);
  useEffect(() => {
    place.current.replaceChildren(rendered(text, isGrowing));
  }, [text, isGrowing]);
  return html`<div class="markdown" ref=${place}></div>`;
}

function rendered(text, isGrowing) {
  if (text.length > MAX_MARKDOWN_CHARS) {
    const plain = document.createElement("pre");
    plain.textContent = text;
    return plain;
  }
  const fragment = DOMPurify.sanitize(marked.parse(text), SANITIZED);
  fragment.querySelectorAll("[class]").forEach(keepLanguage);
  fragment.querySelectorAll("a").forEach(guardLink);
  fragment.querySelectorAll("input").forEach(keepCheckbox);
  fragment.querySelectorAll("pre > code").forEach((code) => frameCode(code, isGrowing));
  fragment.querySelectorAll("table").forEach(frameTable);
  return fragment;
}

/** A link says where it leads, and the site there does not learn from where. */
function guardLink(link) {
  if (!link.hasAttribute("href")) return;
  link.rel = "noopener noreferrer nofollow";
  link.target = "_blank";
  const { host, protocol } = link;
  if (protocol === "mailto:" || link.textContent.includes(host)) return;
  const place = document.createElement("span");
  place.className = "link-place";
  place.textContent = ` (${host})`;
  link.append(place);
}

function keepCheckbox(input) {
  if (input.type === "checkbox") input.disabled = true;
  else input.remove();
}

/** Classes of the page itself are not for the text to use. */
function keepLanguage(element) {
  const language = element.tagName === "CODE" ? /^language-[\w+#.-]+$/.exec(element.className) : null;
  element.className = language ? language[0] : "";
}

function frameCode(code, isGrowing) {
  const language = code.className.replace("language-", "");
  const text = code.textContent;
  if (!isGrowing && hljs.getLanguage(language) && text.length <= MAX_HIGHLIGHTED_CHARS) {
    const { value } = hljs.highlight(text, { language, ignoreIllegals: true });
    code.replaceChildren(DOMPurify.sanitize(value, COLOURED));
  }
  const frame = document.createElement("div");
  frame.className = "code";
  const bar = document.createElement("div");
  bar.className = "code-bar";
  const name = document.createElement("span");
  name.textContent = language || "text";
  bar.append(name, copyButtonFor(text));
  const block = code.parentElement;
  block.tabIndex = 0;
  block.replaceWith(frame);
  frame.append(bar, block);
}

function frameTable(table) {
  const frame = document.createElement("div");
  frame.className = "wide";
  frame.tabIndex = 0;
  table.replaceWith(frame);
  frame.append(table);
}
