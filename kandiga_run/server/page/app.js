// The page: a conversation with the model, and how the server is.

import { AnswerMessage, userMessage } from "./message.js";
import * as server from "./server.js";

const STATUS_MILLISECONDS = 3000;
const THEME = "kandiga-theme";

const byId = (id) => document.getElementById(id);
let history = [];
let stopper = null;

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
byId("prompt").addEventListener("input", fitPrompt);
byId("stop").addEventListener("click", () => stopper?.abort());
byId("new").addEventListener("click", startAgain);
byId("theme").addEventListener("click", changeTheme);
byId("panel-toggle").addEventListener("click", () => showPanel(byId("panel").hidden));
byId("key-form").addEventListener("submit", () => {
  server.setKey(byId("key").value);
  byId("key").value = "";
  refresh();
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());

showTheme(localStorage.getItem(THEME));
showPanel(!matchMedia("(max-width: 48rem)").matches);
refresh();
setInterval(() => document.hidden || byId("key-dialog").open || refresh(), STATUS_MILLISECONDS);

async function send() {
  const text = byId("prompt").value.trim();
  if (!text || stopper) return;
  byId("welcome")?.remove();
  byId("prompt").value = "";
  fitPrompt();
  const answer = new AnswerMessage();
  byId("messages").append(userMessage(text), answer.element);
  history.push({ role: "user", content: text });
  await receive(answer, text);
}

async function receive(answer, text) {
  const conversation = history;
  const started = performance.now();
  const figures = { first: null, usage: null, reason: "" };
  stopper = new AbortController();
  showAnswering(true);
  scroll(true);
  try {
    for await (const chunk of server.answer(request(), stopper.signal)) {
      const choice = chunk.choices[0];
      if (chunk.usage) figures.usage = chunk.usage;
      if (!choice) continue;
      if (choice.delta.content || choice.delta.reasoning_content) figures.first ??= performance.now();
      figures.reason = choice.finish_reason ?? figures.reason;
      answer.add(choice.delta);
      scroll(false);
    }
    answer.finish(describe(figures, started));
  } catch (error) {
    if (error.name === "AbortError") answer.finish("stopped");
    else answer.fail(error.message);
    if (error instanceof server.KeyNeeded) askForKey(error.message);
  } finally {
    if (conversation === history) keep(answer, text);
    stopper = null;
    showAnswering(false);
    refresh();
  }
}

/** Take the answer into the history; without one the question goes back to where it was typed. */
function keep(answer, text) {
  if (answer.content || answer.reasoning) {
    history.push({ role: "assistant", content: answer.content, reasoning_content: answer.reasoning });
    return;
  }
  history.pop();
  if (!byId("prompt").value) byId("prompt").value = text;
  fitPrompt();
}

function request() {
  const system = byId("system").value.trim();
  const body = { messages: [...(system ? [{ role: "system", content: system }] : []), ...history] };
  const temperature = byId("temperature").valueAsNumber;
  const maxTokens = byId("max-tokens").valueAsNumber;
  const thinking = byId("thinking").value;
  if (!Number.isNaN(temperature)) body.temperature = temperature;
  if (!Number.isNaN(maxTokens)) body.max_tokens = maxTokens;
  if (thinking) body.chat_template_kwargs = { enable_thinking: thinking === "on" };
  return body;
}

function describe({ first, usage, reason }, started) {
  if (!usage) return "";
  const now = performance.now();
  const steps = usage.completion_tokens - 1;
  const parts = [`${usage.completion_tokens} tokens`];
  if (first && steps > 0) parts.push(`${(steps / ((now - first) / 1000)).toFixed(1)} tokens/s`);
  if (first) parts.push(`first after ${((first - started) / 1000).toFixed(1)} s`);
  const cached = usage.prompt_tokens_details.cached_tokens;
  parts.push(`prompt ${usage.prompt_tokens}${cached ? `, ${cached} of them kept` : ""}`);
  if (reason === "length") parts.push("cut at the limit");
  return parts.join(" · ");
}

async function refresh() {
  try {
    showStatus(await server.status());
    byId("notice").textContent = "";
  } catch (error) {
    if (error instanceof server.KeyNeeded) askForKey(error.message);
    else byId("notice").textContent = `The server does not answer: ${error.message}`;
  }
}

function askForKey(message) {
  const wasAsked = byId("key-dialog").dataset.asked;
  byId("key-error").textContent = wasAsked ? message : "";
  byId("key-dialog").dataset.asked = "yes";
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

function showStatus({ model, context_tokens, engine, queue, memory }) {
  byId("model").textContent = model;
  document.title = model;
  const speed = queue.decode_tokens_per_second;
  const used = engine.experts_per_token;
  const held = Object.keys(engine.answers_by_kv).join(", ");
  const rows = {
    engine: `${engine.name}, ${engine.residency ?? "in memory"}`,
    arithmetic: engine.arithmetic,
    "KV cache": held ? `${engine.kv} (${held})` : (engine.kv ?? "—"),
    "experts a token": engine.is_lossy
      ? `${used} of the model's ${engine.native_experts_per_token} (lossy)`
      : `${used}, as the model was made`,
    context: `${context_tokens} tokens`,
    memory: size(memory.resident_bytes),
    "of it private": size(memory.anonymous_bytes),
    "of it files": size(memory.file_bytes),
    "running states": size(memory.state_bytes),
    "kept prompts": size(memory.prefix_cache_bytes),
    running: `${queue.running} of ${queue.max_running}`,
    waiting: `${queue.waiting} of ${queue.max_waiting}`,
    decode: speed ? `${speed.toFixed(1)} tokens/s` : "—",
  };
  byId("status").replaceChildren(
    ...Object.entries(rows).flatMap(([name, value]) => [item("dt", name), item("dd", value)]),
  );
  const busy = queue.running ? `${queue.running} running` : "idle";
  byId("summary").textContent = `${busy} · ${size(memory.resident_bytes)}`;
}

function item(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

function size(bytes) {
  if (bytes === null) return "—";
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(0)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

function showAnswering(isAnswering) {
  byId("send").hidden = isAnswering;
  byId("stop").hidden = !isAnswering;
  if (!isAnswering) byId("prompt").focus();
}

function startAgain() {
  stopper?.abort();
  history = [];
  byId("messages").replaceChildren();
  byId("prompt").focus();
}

function scroll(always) {
  const messages = byId("messages");
  const left = messages.scrollHeight - messages.scrollTop - messages.clientHeight;
  // Who has scrolled up to read is left there.
  if (always || left < 120) requestAnimationFrame(() => messages.scrollTo(0, messages.scrollHeight));
}

function fitPrompt() {
  const prompt = byId("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function showPanel(isShown) {
  byId("panel").hidden = !isShown;
  byId("panel-toggle").setAttribute("aria-expanded", String(isShown));
}

function showTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

function changeTheme() {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (isDark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  localStorage.setItem(THEME, next);
  showTheme(next);
}
