// What an answer's targets are drawn and saved as.

import { colour } from "./colours.js";
import { fromBase64, save } from "./files.js";
import { decode } from "./masks.js";

/**
 * Targets after one more answer: what is named again replaces what was, in the
 * colour that it had.
 *
 * @param {object} answer of the server
 * @param {object[]} held targets so far
 * @returns {Promise<{made: object[], targets: object[]}>} those of the answer,
 *   in its order, and all
 */
export async function take(answer, held) {
  const made = [];
  let targets = held;
  for (const [place, told] of answer.targets.entries()) {
    const target = {
      ...told,
      id: `${Date.now()}-${place}`,
      name: told.class.replaceAll("_", " ") || "unnamed",
      said: told.class,
      visible: true,
    };
    await unpack(target, answer.files);
    const same = targets.filter(({ name }) => name === target.name);
    target.colour = same.find((one) => one.colour)?.colour ?? free(targets);
    targets = targets.filter((one) => !same.includes(one) || made.includes(one));
    targets = [...targets, target];
    made.push(target);
  }
  return { made, targets };
}

/** The first colour that no target on the image has. */
function free(targets) {
  const used = targets.filter((one) => one.present).map((one) => one.colour);
  let place = 0;
  while (used.includes(colour(place)) && place < used.length) place++;
  return colour(place);
}

/** Gives a target the mask that it is drawn and saved with. */
async function unpack(target, files) {
  if (!target.present) return;
  if (files) {
    const name = target.nifti ?? target.mask;
    if (target.png) target.png = fromBase64(files[target.png]);
    target.nifti = fromBase64(files[name]);
  } else {
    target.png = fromBase64(target.mask.data);
  }
  if (target.png) {
    target.mask = await decode(target.png);
    target.box ??= around(target.mask);
  }
  target.saved = target.nifti ? "NIfTI" : "PNG";
}

/** x0, y0, x1, y1 of a mask; x1 and y1 are outside. */
function around({ width, height, inside }) {
  let [x0, y0, x1, y1] = [width, height, 0, 0];
  inside.forEach((set, at) => {
    if (!set) return;
    const [x, y] = [at % width, Math.floor(at / width)];
    [x0, y0] = [Math.min(x0, x), Math.min(y0, y)];
    [x1, y1] = [Math.max(x1, x + 1), Math.max(y1, y + 1)];
  });
  return [x0, y0, x1, y1];
}

/** Saves a target's mask. */
export function saveMask({ name, nifti, png }) {
  const file = name.replace(/[^\p{L}\p{N}-]+/gu, "_") || "mask";
  if (nifti) save(new Blob([nifti], { type: "application/gzip" }), `${file}.nii.gz`);
  else save(new Blob([png], { type: "image/png" }), `${file}.png`);
}

/** What an answer may be saved as, besides its masks. */
export function filesOf(answer) {
  const said = { ...answer, files: undefined, note: undefined };
  const json = new Blob([JSON.stringify(said, null, 2)], { type: "application/json" });
  const found = [{ name: "answer.json", save: () => save(json, "answer.json") }];
  const wanted = { "labels.nii.gz": "application/gzip", "segmentation.dcm": "application/dicom" };
  for (const [name, type] of Object.entries(wanted)) {
    const text = answer.files?.[name];
    if (!text) continue;
    found.push({ name, save: () => save(new Blob([fromBase64(text)], { type }), name) });
  }
  return found;
}
