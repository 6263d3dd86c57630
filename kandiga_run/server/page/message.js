// One message on the page.

import { render } from "./markdown.js";

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Return the element of what the user said. */
export function userMessage(text) {
  return element("article", "message user", text);
}

/** An answer that grows: reasoning in a part that folds, then text, then figures. */
export class AnswerMessage {
  constructor() {
    this.element = element("article", "message assistant");
    this.reasoning = "";
    this.content = "";
    this.waiting = element("p", "waiting", "reading");
    this.element.append(this.waiting);
    this.isDrawing = false;
  }

  add(delta) {
    this.reasoning += delta.reasoning_content ?? "";
    this.content += delta.content ?? "";
    if (!this.reasoning && !this.content) return;
    this.waiting.remove();
    // Tokens may come faster than frames: draw once a frame.
    if (this.isDrawing) return;
    this.isDrawing = true;
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.isDrawing = false;
    if (this.reasoning) this.drawReasoning();
    if (this.content) {
      this.text ??= this.append(element("div", "text"));
      this.text.replaceChildren(render(this.content));
    }
  }

  drawReasoning() {
    if (!this.details) {
      this.details = element("details", "reasoning");
      this.details.open = true;
      this.details.append(element("summary", "", "Reasoning"), element("div", "text"));
      this.append(this.details);
    }
    this.details.lastChild.replaceChildren(render(this.reasoning));
    if (this.content && !this.wasFolded) {
      // Once: who opens it again wants it open.
      this.wasFolded = true;
      this.details.open = false;
    }
  }

  finish(figures) {
    this.waiting.remove();
    this.draw();
    if (figures) this.append(element("p", "figures", figures));
  }

  fail(text) {
    this.finish();
    this.append(element("p", "failure", text));
  }

  append(child) {
    this.element.append(child);
    return child;
  }
}
