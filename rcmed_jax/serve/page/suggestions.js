// Questions to click on: what the server knows by name, and a description.

import { element } from "./targets.js";

const MOST = 6;
const DESCRIBE = "Describe this image.";

/** The question that asks for a class, in the words of training. */
export function questionOf(name) {
  return `Can you segment the ${name.toLowerCase()} in this image?`;
}

/**
 * Classes that fit what is being typed: those that its last word begins; all
 * where none does.
 *
 * @param {string[]} classes
 */
export function fitting(classes, typed) {
  const word = typed.toLowerCase().replace(/[^\p{L}\p{N}]+$/u, "").split(/\s+/).pop();
  const begins = (name) => name.toLowerCase().split(/\s+/).some((part) => part.startsWith(word));
  const found = word ? classes.filter(begins) : [];
  return found.length ? found : classes;
}

/**
 * Fills a group of buttons.
 *
 * @param {(text: string, describe: boolean) => void} ask
 */
export function suggest(group, classes, typed, ask, disabled) {
  const found = fitting(classes, typed).slice(0, MOST);
  const button = (text, question, describe) => element("button", {
    type: "button", class: "chip", disabled, onclick: () => ask(question, describe),
  }, text);
  group.replaceChildren(
    ...found.map((name) => button(name, questionOf(name), false)),
    ...(typed.trim() ? [] : [button("Describe the image", DESCRIBE, true)]),
  );
}
