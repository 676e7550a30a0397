// What the page's own modules import from other people's packages; `make page` bundles it as exai/web/static/vendor.js.

import hljs from "highlight.js/lib/core";
import diff from "highlight.js/lib/languages/diff";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";

const languages = { diff, javascript, json, python };
for (const [name, language] of Object.entries(languages)) hljs.registerLanguage(name, language);
hljs.registerAliases(["ts", "tsx", "typescript"], { languageName: "javascript" });

export { hljs };
export { h, render } from "preact";
export { useEffect, useRef, useState } from "preact/hooks";
export { default as htm } from "htm";
export { default as uPlot } from "uplot";
export { Marked } from "marked";
export { default as DOMPurify } from "dompurify";
