"""Modules of the page that need no browser, run by Node."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from rcmed_jax.data import prompts
from rcmed_jax.eval import overlays
from rcmed_jax.serve import page

SOURCES = page.DIST.parent


def node(module, body, values=None):
  """What a function of `given`, with all of a module in scope, returns."""
  command = shutil.which("node")
  if command is None:
    pytest.skip("Node is not installed")
  code = f"""
    import * as it from {json.dumps((SOURCES / module).as_uri())};
    import {{ readFileSync }} from "node:fs";
    const given = JSON.parse(readFileSync(0, "utf8"));
    const made = await (async () => {{ {body} }})();
    process.stdout.write(JSON.stringify(made));
  """
  done = subprocess.run(
    [command, "--input-type=module", "--eval", code],
    input=json.dumps(values),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def texts(count):
  rng = np.random.default_rng(0)
  words = [
    *("<p>", "</p>", "<p> liver </p>", "[SEG]", " [SEG]", "no ", "no", " "),
    *("a < b", "This is a ", "</s>", "spleen", "<p> left lung </p> [SEG]", "."),
  ]
  for _ in range(count):
    yield "".join(rng.choice(words, int(rng.integers(1, 12))))


def test_phrases_are_those_that_python_finds():
  given = [
    prompts.answer("MR", ("liver", "left kidney"), ("heart",), "It is <p> x"),
    *texts(2000),
  ]
  made = node("words.js", "return given.map((text) => it.pieces(text))", given)
  for text, pieces in zip(given, made, strict=True):
    parsed = prompts.parse_answer(text.replace("</s>", ""))
    shown = [one for one in pieces if one["kind"] == "shown"]
    assert [one["target"] for one in shown] == [*range(len(parsed.present))]
    names = ["" if one["text"] == "here" else one["text"] for one in shown]
    assert names == list(parsed.present), text
    absent = [one["text"] for one in pieces if one["kind"] == "absent"]
    assert absent == [name for name in parsed.absent if name]


def test_a_text_that_is_being_written_shows_no_half_of_a_marker():
  text = prompts.answer("MR", ("liver",), ("heart",)).removesuffix("</s>")
  given = [text[:end] for end in range(len(text) + 1)]
  made = node(
    "words.js",
    "return given.map((text) => it.pieces(text, { streaming: true })"
    '.map((piece) => piece.text).join(""))',
    given,
  )
  whole = "This is a MR image. The image contains liver. The image contains no "
  assert made[-1] == whole + "heart."
  for shown in made:
    assert not set(shown) & set("<>[]")
    assert made[-1].startswith(shown.rstrip())


def test_colours_are_those_of_the_reports():
  made = node("colours.js", "return it.COLOURS")
  assert made == [list(rgb) for rgb in overlays.COLORS]


def test_a_border_runs_along_every_edge_of_a_mask_and_no_other():
  mask_IJ = np.random.default_rng(0).random((13, 17)) > 0.5
  given = {"width": 17, "height": 13, "inside": mask_IJ.astype(int).ravel()}
  given["inside"] = given["inside"].tolist()
  lines = node("masks.js", "return it.border(given)", given)
  padded = np.pad(mask_IJ, 1)
  across, down = np.zeros((14, 17), bool), np.zeros((13, 18), bool)
  for x0, y0, x1, y1 in lines:
    if y0 == y1:
      assert not across[y0, x0:x1].any()
      across[y0, x0:x1] = True
    else:
      assert not down[y0:y1, x0].any()
      down[y0:y1, x0] = True
  differs = padded[1:] != padded[:-1]
  np.testing.assert_array_equal(across, differs[:, 1:-1])
  differs = padded[:, 1:] != padded[:, :-1]
  np.testing.assert_array_equal(down, differs[1:-1])


def test_a_stream_is_read_however_it_is_cut():
  raw = [{"text": "Grüße, 肝臓"}, {"done": 2}]
  lines = [json.dumps(one, ensure_ascii=False) for one in raw]
  text = ": hello\n\n" + "".join(f"data: {line}\n\n" for line in lines)
  text += 'data: [DONE]\n\ndata: {"late": 1}\n\n'
  made = node(
    "sse.js",
    """
    const bytes = new TextEncoder().encode(given);
    const all = [];
    for (const size of [1, 2, 3, 7, bytes.length]) {
      const body = new ReadableStream({
        start(to) {
          for (let at = 0; at < bytes.length; at += size) {
            to.enqueue(bytes.slice(at, at + size));
          }
          to.close();
        },
      });
      const found = [];
      for await (const event of it.events(body)) found.push(event);
      all.push(found);
    }
    return all;
    """,
    text,
  )
  assert made == [raw] * 5


def test_suggestions_fit_the_last_word():
  classes = ["liver", "left lung", "Right lung", "spleen"]
  made = node(
    "suggestions.js",
    f"return given.map((typed) => it.fitting({json.dumps(classes)}, typed))",
    ["", "Where is the l", "show lu?", "xyz", "  "],
  )
  assert made == [
    classes,
    ["liver", "left lung", "Right lung"],
    ["left lung", "Right lung"],
    classes,
    classes,
  ]
