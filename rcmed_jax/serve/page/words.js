// An answer's text, whose phrases are marked: <p> liver </p> [SEG].

const PHRASE = String.raw`<p>\s*((?:(?!<\/?p>|\[SEG\]).)*?)\s*<\/p>`;
const PARTS = new RegExp(
  String.raw`(\bno\s+)${PHRASE}|${PHRASE}(\s*\[SEG\])?|\[SEG\]`, "g",
);
// What is being written when a stream pauses must not be seen half.
const UNFINISHED = /(<\/?p?|<\/?s?|<p>((?!<\/p>).)*|\s*\[(S(E(G)?)?)?)$/s;

/**
 * A text in pieces: words as they are, and phrases.
 *
 * The `target` of a phrase that is shown is its place among those that are; of
 * others it is null.
 *
 * @param {string} text
 * @returns {{kind: "text" | "shown" | "absent" | "phrase", text: string,
 *   target: number | null}[]}
 */
export function pieces(text, { streaming = false } = {}) {
  if (streaming) text = text.replace(UNFINISHED, "");
  text = text.replace(/<\/?s>/g, "");
  const found = [];
  const add = (kind, words, target = null) => {
    if (words) found.push({ kind, text: words, target });
  };
  let end = 0;
  let shown = 0;
  for (const part of text.matchAll(PARTS)) {
    const [all, no, absent, phrase, seg] = part;
    add("text", text.slice(end, part.index) + (no ?? ""));
    end = part.index + all.length;
    if (no) add("absent", absent);
    else if (phrase !== undefined && !seg) add("phrase", phrase);
    else add("shown", phrase || "here", shown++);
  }
  add("text", text.slice(end));
  return found;
}

/** The text alone, as one would read it out. */
export function plain(text) {
  return pieces(text).map((piece) => piece.text).join("").trim();
}
