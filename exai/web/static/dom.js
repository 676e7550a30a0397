// Templates for elements: html`<p>${text}</p>`. Text is always text; nothing here parses HTML.

import { h, htm } from "./vendor.js";

export const html = htm.bind(h);
