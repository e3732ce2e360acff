// What the page asks of its server, and nothing else anywhere.

import { events } from "./sse.js";

/** A request that was not answered, in words for the reader. */
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const LOST = "The server cannot be reached. Is it still running?";
const BROKEN = "The answer broke off. Ask again.";

// Kept here and nowhere else.
let key = "";
let asking = null;
let askForKey = async () => null;

/** @param {(wrong: boolean) => Promise<string | null>} ask gives a key, or null */
export function onKeyWanted(ask) {
  askForKey = ask;
}

export function setKey(value) {
  key = value;
}

/** Whether a key was given; several requests at once ask for it once. */
async function gotKey() {
  asking ??= askForKey(key !== "").finally(() => (asking = null));
  const given = await asking;
  if (given !== null) key = given;
  return given !== null;
}

async function call(path, options = {}) {
  for (;;) {
    const used = key;
    const headers = new Headers(options.headers);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    let reply;
    try {
      reply = await fetch(path, {
        ...options, headers, credentials: "omit", cache: "no-store",
        redirect: "error", referrerPolicy: "no-referrer",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(LOST);
    }
    if (reply.ok) return reply;
    if (reply.status === 401 && (key !== used || (await gotKey()))) continue;
    throw await refused(reply);
  }
}

async function refused(reply) {
  const said = await reply.json().catch(() => null);
  const wait = Number(reply.headers.get("Retry-After"));
  let text = said?.error?.message ?? `The server answered ${reply.status}.`;
  if (wait) text += ` Try again in ${wait} s.`;
  return new Refused(capital(text), reply.status);
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export async function capabilities() {
  return (await call("/capabilities")).json();
}

/** A picture as the model sees it, as PNG. */
export async function picture(file, signal) {
  const body = new FormData();
  body.append("image", file, "image");
  return (await call("/v1/picture", { method: "POST", body, signal })).blob();
}

/**
 * A session that holds files.
 *
 * @param {{file: File, name: string}[]} files
 */
export async function openSession(files, signal) {
  const body = new FormData();
  for (const { file, name } of files) body.append("files", file, name);
  const reply = await call("/session/", { method: "PUT", body, signal });
  return (await reply.json()).session_id;
}

/** Lets the server forget a session; works while the page is being left. */
export function closeSession(name) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const path = `/session/${encodeURIComponent(name)}`;
  fetch(path, { method: "DELETE", headers, keepalive: true }).catch(() => {});
}

export async function volume(session, signal) {
  return (await call(`/v1/volumes/${session}`, { signal })).json();
}

export async function volumePart(session, part, signal) {
  return (await call(`/v1/volumes/${session}/${part}`, { signal })).blob();
}

/**
 * An answer about a picture; its words come as the server says them.
 *
 * @param {(text: string) => void} onText told all of the text so far
 */
export async function chat(body, onText, signal) {
  const reply = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const answer = { text: "", modality: null, targets: null };
  for await (const event of whole(reply.body)) {
    const delta = event.choices?.[0]?.delta ?? {};
    if (delta.content) onText((answer.text += delta.content));
    if (delta.targets) {
      answer.targets = delta.targets;
      answer.modality = delta.modality ?? null;
    }
  }
  if (answer.targets === null) throw new Refused(BROKEN);
  return answer;
}

/**
 * An answer about a volume.
 *
 * @param {Record<string, string>} fields
 * @param {(done: number, all: number) => void} onSlice
 */
export async function askVolume(fields, onSlice, signal) {
  const body = new FormData();
  const all = { ...fields, stream: "true" };
  for (const [name, value] of Object.entries(all)) body.append(name, value);
  const reply = await call("/v1/segment_volume", { method: "POST", body, signal });
  for await (const event of whole(reply.body)) {
    if (event.slice) onSlice(event.slice, event.slices);
    if (event.answer) return event.answer;
  }
  throw new Refused(BROKEN);
}

/** Events of a stream; what the server says of an error is raised. */
async function* whole(body) {
  try {
    for await (const event of events(body)) {
      if (event.error) throw new Refused(capital(event.error.message));
      yield event;
    }
  } catch (error) {
    if (error instanceof Refused || error.name === "AbortError") throw error;
    throw new Refused(BROKEN);
  }
}
