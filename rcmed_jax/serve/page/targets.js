// The list of what answers speak of: where it is, how sure, or that it is not.

import { css } from "./colours.js";

/** One element, with attributes, properties and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A dot in a target's colour; ring-shaped where it is not on the image. */
export function dot(rgb) {
  const made = element("span", { class: rgb ? "dot" : "dot none", "aria-hidden": "true" });
  if (rgb) made.style.backgroundColor = css(rgb);
  return made;
}

function percent(value) {
  return `${Math.round(100 * value)} %`;
}

/** A volume with three digits that count. */
function millilitres(ml) {
  return `${ml < 100 ? Number(ml.toPrecision(3)) : Math.round(ml)} ml`;
}

/** Where a target is, in words. */
export function place({ box, box_voxels: voxels, ml }) {
  if (box) {
    const [x0, y0, x1, y1] = box;
    return `${x1 - x0} × ${y1 - y0} px at ${x0}, ${y0}`;
  }
  if (!voxels) return "";
  const [first, last] = voxels;
  const sides = last.map((end, axis) => end - first[axis]).join(" × ");
  const size = ml === null || ml === undefined ? "" : `${millilitres(ml)}, `;
  return `${size}${sides} voxels`;
}

/**
 * Fills a list.
 *
 * @param {HTMLUListElement} list
 * @param {object[]} targets
 * @param {{toggle: Function, goTo: Function, save: Function}} does what follows
 *   a click, each told of its target
 */
export function fill(list, targets, does) {
  const held = document.activeElement?.dataset?.key;
  list.replaceChildren(...targets.map((target) => {
    return target.present ? shown(target, does) : absent(target);
  }));
  // Who works with the keyboard stays where they were.
  if (held) list.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus();
}

function shown(target, does) {
  const { id, name, colour, visible, confidence } = target;
  const box = element("input", {
    type: "checkbox", checked: visible, "data-key": `see-${id}`,
    onchange: (event) => does.toggle(target, event.target.checked),
  });
  const bar = element("span", { class: "bar", "aria-hidden": "true" });
  const level = element("span", {});
  level.style.width = `${100 * confidence}%`;
  bar.append(level);
  return element("li", { class: visible ? "" : "off" },
    element("label", { class: "name" }, box, dot(colour), element("span", {}, name)),
    element("span", { class: "sure" }, bar,
      element("span", { class: "hidden" }, "confidence "), percent(confidence)),
    element("span", { class: "where" }, place(target)),
    element("span", { class: "acts" },
      element("button", {
        type: "button", class: "quiet", "data-key": `go-${id}`,
        "aria-label": `Go to ${name}`, onclick: () => does.goTo(target),
      }, "Go to"),
      element("button", {
        type: "button", class: "quiet", "data-key": `save-${id}`,
        "aria-label": `Save the mask of ${name} as ${target.saved}`,
        onclick: () => does.save(target),
      }, `↓ ${target.saved}`)));
}

function absent({ name }) {
  return element("li", { class: "absent" },
    element("span", { class: "name" }, dot(null), element("span", {}, name)),
    element("span", { class: "where" }, "not found on this image"));
}
