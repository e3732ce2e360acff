// Questions and their answers, one below the other.

import { dot, element } from "./targets.js";
import { pieces } from "./words.js";

/**
 * The target that a phrase shows: the next of its name, or, where it has none,
 * the one at its place.
 */
function meant({ text, target }, all, left) {
  const at = left.findIndex(({ said }) => said.toLowerCase() === text.toLowerCase());
  return at < 0 ? all[target] : left.splice(at, 1)[0];
}

/** One question and what becomes of it. */
export class Turn {
  /** @param {HTMLOListElement} list */
  constructor(list, question) {
    this.question = question;
    this._began = performance.now();
    this._words = element("p", { class: "words" });
    this._state = element("p", { class: "state" });
    this._progress = element("progress", { max: 1, hidden: true, "aria-label": "Slices" });
    this._files = element("p", { class: "files" });
    this._item = element("li", { "aria-busy": "true" },
      element("p", { class: "asked" }, element("span", { class: "hidden" }, "You asked: "), question),
      this._words, this._progress, this._state, this._files);
    list.append(this._item);
    this._clock = setInterval(() => this._tick(), 1000);
    this._told = "Looking at the image";
    this._tick();
    this._see();
  }

  /** The words so far. */
  say(text) {
    this._write(text, [], { streaming: true });
  }

  slices(done, all) {
    this._progress.hidden = all < 2;
    this._progress.value = done / all;
    this._told = `Slice ${done} of ${all}`;
    this._tick();
  }

  /**
   * The whole answer.
   *
   * @param {object[]} targets in the answer's order
   * @param {{name: string, save: Function}[]} files that it may be saved as
   * @param {(target: object) => void} goTo
   */
  finish(answer, targets, files, goTo) {
    this._end();
    this._write(answer.text, targets, { goTo });
    const seconds = (performance.now() - this._began) / 1000;
    const took = `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
    const parts = [answer.modality, took, answer.note];
    this._state.textContent = parts.filter(Boolean).join(" · ");
    this._files.append(...files.map(({ name, save }) => element("button", {
      type: "button", class: "quiet", "aria-label": `Save ${name}`, onclick: save,
    }, name)));
    this._see();
  }

  fail(message) {
    this._end();
    this._state.textContent = message;
    this._state.classList.add("failed");
    this._state.setAttribute("role", "alert");
    this._see();
  }

  _end() {
    clearInterval(this._clock);
    this._progress.hidden = true;
    this._item.removeAttribute("aria-busy");
  }

  _tick() {
    const seconds = Math.floor((performance.now() - this._began) / 1000);
    this._state.textContent = `${this._told}${seconds ? ` · ${seconds} s` : "…"}`;
  }

  _write(text, targets, { streaming = false, goTo = null } = {}) {
    const left = [...targets];
    const made = pieces(text, { streaming }).flatMap((piece) => {
      if (piece.kind === "text") return piece.text;
      const target = piece.target === null ? null : meant(piece, targets, left);
      if (target?.present) {
        return element("button", {
          type: "button", class: "goes", title: `Go to ${target.name}`,
          onclick: () => goTo(target),
        }, dot(target.colour), piece.text);
      }
      const phrase = element("strong", { class: piece.kind }, piece.text);
      // The words and the mask may contradict each other.
      const note = target && element("small", {}, " (said, but not found)");
      return note ? [phrase, note] : phrase;
    });
    this._words.replaceChildren(...made);
  }

  /** Keeps the newest in sight. */
  _see() {
    this._item.scrollIntoView({ block: "nearest" });
  }
}
