// What the libraries for pages and for React Native expect to find: a document, and an XMLHttpRequest that
// shows what has arrived so far, both of jsdom. PAGE_URL is where the page comes from.
import { register } from "node:module";

import { JSDOM } from "jsdom";

const { window } = new JSDOM("", { url: process.env.PAGE_URL });
window.fetch = globalThis.fetch;
globalThis.window = window;
globalThis.document = window.document;
globalThis.XMLHttpRequest = window.XMLHttpRequest;

// React Native's bundler reads the package's source, whose default export Node.js would not find.
const source = new URL("node_modules/react-native-sse/src/EventSource.js", import.meta.url);
const hook = `export function resolve(specifier, context, next) {
  return specifier === "react-native-sse"
    ? { url: "${source}", format: "module", shortCircuit: true }
    : next(specifier, context);
}`;
register(`data:text/javascript,${encodeURIComponent(hook)}`);
