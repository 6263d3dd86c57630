// What the page asks the server, with the key where there is one.

import { events } from "./events.js";

const KEY = "kandiga-api-key";

export class KeyNeeded extends Error {}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Return the server's status object. */
export async function status() {
  return (await ask("/status")).json();
}

/** Yield the chunks of a streamed answer. */
export async function* answer(body, signal) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const message = await response.json().then((body) => body.error.message, () => response.statusText);
  throw response.status === 401 ? new KeyNeeded(message) : new Error(message);
}
