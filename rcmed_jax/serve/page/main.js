// The page: an image is opened, asked about, and shown with what was found.

import * as api from "./api.js";
import { filesOf, saveMask, take } from "./answers.js";
import { dataUrl, dropped, save, sorted } from "./files.js";
import { listen as listenForKeys } from "./keys.js";
import { Scene } from "./scene.js";
import { suggest } from "./suggestions.js";
import { Turn } from "./talk.js";
import { fill } from "./targets.js";

const by = (id) => document.getElementById(id);
const scene = new Scene();

// What the server can do; null until it is known.
let able = null;
// What is open: {files, session}; session is null of pictures.
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
  const mine = (working = new AbortController());
  try {
    const found = await sorted(given);
    check(found);
    state("opening");
    scene.wait(`Opening ${found.name}`);
    image = { files: found.files, session: null };
    await show(found, mine.signal);
    if (working !== mine) return;
    state("open");
    by("question").focus({ preventScroll: true });
  } catch (error) {
    if (working !== mine) return; // another image is being opened
    close();
    state("empty");
    alarm(error);
    by("choose").focus();
  } finally {
    if (working === mine || !working) {
      scene.wait(null);
      working = null;
      busy(false);
    }
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
  const picture = kind === "picture";
  const { body_bytes: json, upload_bytes: form } = able?.limits ?? {};
  const most = picture ? json : form;
  const size = files.reduce((sum, { file }) => sum + file.size, 0);
  // A picture is sent as base64 in JSON.
  if (most && size * (picture ? 4 / 3 : 1) + 10000 > most) {
    const mb = (bytes) => `${Math.ceil(bytes / 1e6)} MB`;
    const flag = picture ? "--most-mb" : "--most-upload-mb";
    throw new Error(`This is ${mb(size)}; the server takes ${mb(most)} at once (${flag}).`);
  }
  if (files.length > 2000) throw new Error("A series of more than 2000 files is not taken.");
}

function close() {
  working?.abort();
  working = null;
  if (image?.session) api.closeSession(image.session);
  image = null;
  targets = [];
  messages = [];
  scene.clear();
  by("turns").replaceChildren();
  by("question").value = "";
  list();
}

async function ask(text, describe = false) {
  if (!image || working) return;
  alarm(null);
  const turn = new Turn(by("turns"), text);
  const mine = (working = new AbortController());
  by("question").value = "";
  busy(true);
  try {
    const answer = image.session
      ? await askVolume(text, describe, turn, mine.signal)
      : await askPicture(text, describe, turn, mine.signal);
    const { made, targets: all } = await take(answer, targets);
    if (working !== mine) return;
    targets = all;
    await draw();
    turn.finish(answer, made, filesOf(answer), goTo);
  } catch (error) {
    if (working !== mine) return; // the image is gone
    const stopped = error.name === "AbortError";
    by("question").value ||= describe ? "" : text;
    turn.fail(stopped ? "Stopped." : error.message);
    if (!stopped && !(error instanceof api.Refused)) throw error;
  } finally {
    if (working === mine) working = null;
    busy(Boolean(working));
  }
}

async function askPicture(text, describe, turn, signal) {
  image.url ??= await dataUrl(image.files[0].file);
  const once = async () => {
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
  };
  try {
    return await once();
  } catch (error) {
    if (error.status !== 422 || !messages.length) throw error;
    // The conversation may be longer than the model reads: it begins anew.
    messages = [];
    return { ...(await once()), note: "earlier questions were left out" };
  }
}

async function askVolume(text, describe, turn, signal) {
  const fields = {
    prompt: text, describe: String(describe),
    axis: by("axis").value, largest: String(by("largest").checked),
  };
  if (by("modality").value) fields.modality = by("modality").value;
  const once = () => api.askVolume({ ...fields, session: image.session }, (done, all) => {
    turn.slices(done, all);
  }, signal);
  try {
    return await once();
  } catch (error) {
    if (error.status !== 404) throw error;
    // The session was left alone for too long: the image is sent again.
    image.session = await api.openSession(image.files, signal);
    return once();
  }
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
    save: saveMask,
  });
}

function goTo(target) {
  scene.goTo(target);
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
