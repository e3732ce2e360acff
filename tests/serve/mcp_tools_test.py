"""The tools, called by the protocol's own client over standard input."""

import base64
import io
import json
import os
import pathlib
import sys

import anyio
import fake_assistant
import numpy as np
import PIL.Image
import pytest
import served

mcp = pytest.importorskip("mcp", reason="mcp is not installed")
stdio = pytest.importorskip("mcp.client.stdio")

# A server as `rcmed serve --mcp` runs it, with an assistant for tests.
_PROGRAM = """
import pathlib, sys, time, fake_assistant, served
from rcmed_jax.eval import overlays
from rcmed_jax.serve import asking, engine, limits, mcp_tools

def load():
  print("this must not reach the client")
  time.sleep(0.3)
  fake = fake_assistant.Fake()
  made = asking.Service(
    engine=engine.Engine(served.Assistant(answer=fake.answer)),
    limits=limits.Limits(pixels=10_000),
    keys=limits.Keys(),
    name=served.NAME,
  )
  made.engine.start()
  return made

folder = pathlib.Path(sys.argv[1])
mcp_tools.make(load, folder=folder, paint=overlays.painted).run()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp("mcp")
  (made / "scans").mkdir()
  picture = served.png(fake_assistant.picture())
  (made / "scans" / "one.png").write_bytes(picture)
  (made / "secret.png").write_bytes(picture)
  (made / "scans" / "link.png").symlink_to(made / "secret.png")
  large = served.png(np.zeros((200, 200, 3), np.uint8))
  (made / "scans" / "large.png").write_bytes(large)
  return made


@pytest.fixture(scope="module")
def told(folder):
  """Answers of one session: name -> result of a call, and all tools."""
  return anyio.run(_session, folder)


async def _session(folder):
  here = pathlib.Path(served.__file__).parents[1]
  held = os.environ.get("PYTHONPATH", "")
  paths = [str(here), str(here / "tests"), *filter(None, [held])]
  server = stdio.StdioServerParameters(
    command=sys.executable,
    args=["-c", _PROGRAM, str(folder / "scans")],
    env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)},
  )
  with (folder / "log").open("w+") as log:
    async with (
      stdio.stdio_client(server, errlog=log) as (read, write),
      mcp.ClientSession(read, write) as session,
    ):
      await session.initialize()
      found = {"tools": await session.list_tools()}
      for name, (tool, arguments) in _calls(folder).items():
        found[name] = await session.call_tool(tool, arguments)
    log.seek(0)
    found["log"] = log.read()
  return found


def _calls(folder):
  image = base64.b64encode(served.png(fake_assistant.picture())).decode()
  liver = {"classes": ["spleen", "liver"]}
  return {
    "by path": ("segment", {**liver, "path": "one.png"}),
    "by bytes": ("segment", {**liver, "image": image, "masks": "png"}),
    "by question": (
      "segment",
      {
        "prompt": "Where is it?",
        "image": f"data:image/png;base64,{image}",
        "show": False,
      },
    ),
    "description": ("describe", {"path": str(folder / "scans" / "one.png")}),
    "outside": ("segment", {**liver, "path": "../secret.png"}),
    "absolute": ("segment", {**liver, "path": "/etc/passwd"}),
    "linked": ("segment", {**liver, "path": "link.png"}),
    "missing": ("segment", {**liver, "path": "none.png"}),
    "no text": ("segment", {**liver, "path": "a\0b"}),
    "nothing": ("segment", {"path": "one.png"}),
    "both": ("segment", {**liver, "path": "one.png", "image": image}),
    "no base64": ("segment", {**liver, "image": "!!!"}),
    "no image": ("segment", {**liver, "image": "aGVsbG8="}),
    "large": ("segment", {**liver, "path": "large.png"}),
    "marker": ("segment", {"prompt": "<p> a", "image": image}),
    "bad kind": ("segment", {"classes": "liver", "image": image}),
    "unknown": ("paint", {}),
  }


def test_the_tools_say_what_they_take_and_give(told):
  tools = {tool.name: tool for tool in told["tools"].tools}
  assert tools.keys() == {"segment", "describe"}
  taken = tools["segment"].input_schema["properties"]
  assert taken.keys() == {"classes", "prompt", "path", "image", "masks", "show"}
  given = tools["segment"].output_schema["properties"]
  assert given.keys() >= {"text", "targets", "unanswered", "rows"}
  assert all(tool.annotations.read_only_hint for tool in tools.values())


def test_an_answer_is_structured_and_seen(told):
  result = told["by path"]
  assert not result.is_error
  said = result.structured_content
  spleen, heart = said["targets"]
  assert spleen["class"] == "spleen" and spleen["present"]
  assert spleen["box"] == [10, 8, 20, 16]
  assert spleen["share"] == pytest.approx(80 / 32**2, abs=1e-6)
  assert spleen["confidence"] == 0.5 and spleen["mask"] is None
  assert heart["class"] == "heart" and not heart["present"]
  assert said["unanswered"] == ["liver"]
  assert (said["rows"], said["columns"]) == (32, 32)
  assert json.loads(result.content[0].text)["targets"][0]["class"] == "spleen"
  picture = PIL.Image.open(io.BytesIO(base64.b64decode(result.content[1].data)))
  drawn = np.asarray(picture.convert("RGB")).astype(int)
  plain = fake_assistant.picture().astype(int)
  changed = np.abs(drawn - plain).max(2) > 20
  assert changed[8:16, 10:20].all() and not changed[:6].any()


def test_bytes_and_masks_go_as_base64(told):
  said = told["by bytes"].structured_content
  mask = PIL.Image.open(
    io.BytesIO(base64.b64decode(said["targets"][0]["mask"]))
  )
  wanted = fake_assistant.picture()[..., 0] >= 200
  np.testing.assert_array_equal(np.asarray(mask) == 255, wanted)
  assert "iVBOR" not in told["by bytes"].content[0].text
  # The same answer, whichever way the image came.
  said["targets"][0]["mask"] = None
  assert said == told["by path"].structured_content
  result = told["by question"]
  assert result.structured_content["unanswered"] == []
  assert len(result.content) == 1


def test_a_description_needs_no_question(told):
  result = told["description"]
  assert not result.is_error
  assert result.structured_content["text"] == "spleen"
  assert result.content[1].mime_type == "image/png"


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("outside", "no such file"),
    ("absolute", "no such file"),
    ("linked", "no such file"),
    ("missing", "no such file"),
    ("no text", "no such file"),
    ("nothing", "prompt or classes"),
    ("both", "one of the two"),
    ("no base64", "no base64"),
    ("no image", "PNG, JPEG, TIFF"),
    ("large", "million pixels"),
    ("marker", "without any of"),
    ("bad kind", "list"),
    ("unknown", "paint"),
  ],
)
def test_what_is_wrong_comes_back_as_text(told, folder, name, words):
  result = told[name]
  assert result.is_error
  (text,) = [part.text for part in result.content]
  assert words in text
  assert str(folder) not in text


def test_standard_output_is_the_protocols_and_the_log_names_no_file(told):
  assert "one.png" not in told["log"] and "Where is it" not in told["log"]
  # What libraries print goes there, and not between the protocol's lines.
  assert "this must not reach the client" in told["log"]
  lines = [line for line in told["log"].splitlines() if '"event"' in line]
  events = [json.loads(line) for line in lines]
  assert {one["tool"] for one in events} == {"segment", "describe"}
  assert not any("fault" in one for one in events)
