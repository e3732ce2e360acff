// The page: an image is opened, asked about, and shown with what was found.

import * as api from "./api.js";
import { colour } from "./colours.js";
import { dataUrl, dropped, fromBase64, save, sorted } from "./files.js";
import { listen as listenForKeys } from "./keys.js";
import { decode } from "./masks.js";
import { Scene } from "./scene.js";
import { suggest } from "./suggestions.js";
import { Turn } from "./talk.js";
import { fill } from "./targets.js";

const by = (id) => document.getElementById(id);
const scene = new Scene();

// What the server can do; null until it is known.
let able = null;
// What is open: {kind, name, file, session}; session is null of pictures.
let image = null;
// What was found on it, newest last, and all messages about it.
let targets = [];
let messages = [];
let working = null; // aborts what is under way

async function connect() {
  try {
    able = await api.capabilities();
    by("server").textContent = able.model;
    by("server").classList.add("ready");
    const list = by("modality");
    list.length = 1;
    const known = able.modalities?.length ? able.modalities : ["computed tomography", "magnetic resonance"];
    list.append(...known.map((name) => new Option(name)));
    offer();
  } catch (error) {
    by("server").textContent = "Not connected";
    by("server").classList.remove("ready");
    alarm(error);
  }
}

/** Says what went wrong; nothing where a reader stopped it. */
function alarm(error) {
  if (error?.name === "AbortError") return;
  if (error && !(error instanceof Error)) throw error;
  by("alert").hidden = !error;
  by("alert").textContent = error ? error.message : "";
}

function state(name) {
  document.body.dataset.state = name;
  const open = name !== "empty";
  by("drop").hidden = open;
  by("screen").hidden = by("tools").hidden = !open;
  by("other").hidden = !open;
}

async function open(given) {
  if (!given.length) return;
  alarm(null);
  close();
  working = new AbortController();
  const { signal } = working;
  try {
    const found = await sorted(given);
    check(found);
    state("opening");
    scene.wait(`Opening ${found.name}`);
    image = { kind: found.kind, name: found.name, file: found.files[0].file, session: null };
    await show(found, signal);
    state("open");
    by("question").focus({ preventScroll: true });
  } catch (error) {
    close();
    state("empty");
    alarm(error);
    by("choose").focus();
  } finally {
    scene.wait(null);
    working = null;
    offer();
  }
}

async function show({ kind, name, files }, signal) {
  if (kind === "picture") {
    await scene.showPicture(await api.picture(files[0].file, signal));
    return;
  }
  image.session = await api.openSession(files, signal);
  const told = await api.volume(image.session, signal);
  if (told.slices === 1 && kind === "dicom") {
    await scene.showPicture(await api.volumePart(image.session, "picture", signal));
    return;
  }
  const blob = kind === "nifti" ? files[0].file
    : await api.volumePart(image.session, "image", signal);
  const shown = kind === "nifti" ? name : "series.nii.gz";
  await scene.showVolume(await blob.arrayBuffer(), shown);
}

/** Before anything is sent: whether the server would take it. */
function check({ kind, files }) {
  const most = able?.limits?.body_bytes;
  const size = files.reduce((sum, { file }) => sum + file.size, 0);
  // A picture is sent as base64 in JSON.
  if (most && size * (kind === "picture" ? 4 / 3 : 1) + 10000 > most) {
    const mb = (bytes) => `${Math.ceil(bytes / 1e6)} MB`;
    throw new Error(`This is ${mb(size)}; the server takes ${mb(most)} at once (--most-mb).`);
  }
  if (files.length > 2000) throw new Error("A series of more than 2000 files is not taken.");
}

function close() {
  working?.abort();
  if (image?.session) api.closeSession(image.session);
  image = null;
  targets = [];
  messages = [];
  by("turns").replaceChildren();
  by("question").value = "";
  list();
}

async function ask(text, describe = false) {
  if (!image || working) return;
  alarm(null);
  const turn = new Turn(by("turns"), text);
  working = new AbortController();
  by("question").value = "";
  busy(true);
  try {
    const answer = image.session
      ? await askVolume(text, describe, turn, working.signal)
      : await askPicture(text, describe, turn, working.signal);
    const found = await take(answer);
    turn.finish(answer, found, filesOf(answer), goTo);
  } catch (error) {
    const stopped = error.name === "AbortError";
    by("question").value ||= describe ? "" : text;
    turn.fail(stopped ? "Stopped." : error.message);
    if (!stopped && !(error instanceof api.Refused)) throw error;
  } finally {
    working = null;
    busy(false);
  }
}

async function askPicture(text, describe, turn, signal) {
  image.url ??= await dataUrl(image.file);
  const question = { role: "user", content: text };
  if (!messages.length) {
    question.content = [
      { type: "text", text },
      { type: "image_url", image_url: { url: image.url } },
    ];
  }
  const body = { model: able.model, messages: [...messages, question], describe };
  const answer = await api.chat(body, (said) => turn.say(said), signal);
  messages.push(question, { role: "assistant", content: answer.text });
  return answer;
}

function askVolume(text, describe, turn, signal) {
  const fields = {
    session: image.session, prompt: text, describe: String(describe),
    axis: by("axis").value, largest: String(by("largest").checked),
  };
  if (by("modality").value) fields.modality = by("modality").value;
  return api.askVolume(fields, (done, all) => turn.slices(done, all), signal);
}

/** Takes in an answer's targets: what is named again replaces what was. */
async function take(answer) {
  const made = [];
  for (const [place, told] of answer.targets.entries()) {
    const name = told.class.replaceAll("_", " ") || "unnamed";
    const id = `${Date.now()}-${place}`;
    const target = { ...told, id, name, said: told.class, visible: true };
    await masked(target, answer.files);
    const before = targets.find((one) => one.name === name && one.colour);
    target.colour = before?.colour ?? colour(used());
    targets = targets.filter((one) => one.name !== name || made.includes(one));
    targets.push(target);
    made.push(target);
  }
  await draw();
  return made;
}

function used() {
  return new Set(targets.filter((one) => one.present).map((one) => one.colour)).size;
}

/** Gives a target the mask that it is drawn and saved with. */
async function masked(target, files) {
  if (!target.present) return;
  if (!files) {
    target.png = fromBase64(target.mask.data);
  } else {
    const name = target.nifti ?? target.mask;
    if (target.png) target.png = fromBase64(files[target.png]);
    target.nifti = fromBase64(files[name]);
  }
  if (target.png) {
    target.mask = await decode(target.png);
    if (!target.box) target.box = around(target.mask);
  }
  target.saved = target.nifti ? "NIfTI" : "PNG";
}

function around({ width, height, inside }) {
  let [x0, y0, x1, y1] = [width, height, 0, 0];
  inside.forEach((set, at) => {
    if (!set) return;
    const [x, y] = [at % width, Math.floor(at / width)];
    [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x + 1), Math.max(y1, y + 1)];
  });
  return [x0, y0, x1, y1];
}

async function draw() {
  list();
  await scene.setTargets(targets.filter((one) => one.present));
}

function list() {
  by("findings").hidden = !targets.length;
  const there = targets.filter((one) => one.present);
  const absent = targets.filter((one) => !one.present);
  fill(by("targets"), [...there, ...absent], {
    toggle: (target, visible) => {
      target.visible = visible;
      draw();
    },
    goTo,
    save: (target) => {
      const name = target.name.replace(/[^\p{L}\p{N}-]+/gu, "_") || "mask";
      if (target.nifti) save(new Blob([target.nifti]), `${name}.nii.gz`);
      else save(new Blob([target.png], { type: "image/png" }), `${name}.png`);
    },
  });
}

function goTo(target) {
  scene.goTo(target);
}

/** What an answer may be saved as, besides its masks. */
function filesOf(answer) {
  const said = { ...answer, files: undefined };
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

function busy(is) {
  grow();
  offer();
  by("send").hidden = is;
  by("stop").hidden = !is;
  document.body.classList.toggle("busy", is);
}

/** Offers questions that fit what is being typed. */
function offer() {
  suggest(by("suggestions"), able?.classes ?? [], by("question").value, ask, Boolean(working));
}

function grow() {
  const box = by("question");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, 160)}px`;
}

function listen() {
  by("choose").addEventListener("click", () => by("file").click());
  by("choose-folder").addEventListener("click", () => by("folder").click());
  for (const id of ["file", "folder"]) {
    by(id).addEventListener("change", () => {
      const files = [...by(id).files];
      by(id).value = "";
      open(files);
    });
  }
  by("other").addEventListener("click", () => {
    close();
    state("empty");
    by("choose").focus();
  });
  by("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = by("question").value.trim();
    if (text) ask(text);
    else by("question").focus();
  });
  by("question").addEventListener("input", () => {
    grow();
    offer();
  });
  by("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    by("ask").requestSubmit();
  });
  by("stop").addEventListener("click", () => {
    working?.abort();
    by("question").focus();
  });
  by("snapshot").addEventListener("click", async () => save(await scene.snapshot(), "view.png"));
  addEventListener("pagehide", () => {
    if (image?.session) api.closeSession(image.session);
  });
  listenForDrops();
  listenForKeys(connect);
}

function listenForDrops() {
  const over = (is) => document.body.classList.toggle("over", is);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) over(false);
  });
  addEventListener("drop", async (event) => {
    event.preventDefault();
    over(false);
    open(await dropped(event.dataTransfer));
  });
}

listen();
connect();
