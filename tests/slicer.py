"""What 3D Slicer sends and reads: MONAI Label's protocol, by its contract."""

import email.parser
import email.policy
import json

import requests
import served

INFER = f"/infer/{served.NAME}"


def parts(kind, body):
  """name -> (file name, content) of a multipart body, as a parser sees it."""
  whole = b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body
  policy = email.policy.HTTP
  message = email.parser.BytesParser(policy=policy).parsebytes(whole)
  return {
    part.get_param("name", header="content-disposition"): (
      part.get_filename(),
      part.get_payload(decode=True),
    )
    for part in message.iter_parts()
  }


def infer(at, query="", params=None, name="a.png", data=None):
  files = {"params": (None, json.dumps(params or {"prompt": "light"}))}
  if name:
    files["file"] = (name, served.png() if data is None else data)
  return requests.post(at.url + INFER + query, files=files, timeout=60)


def answered(reply):
  """What is said, and the label map's name and content."""
  assert reply.status_code == 200, reply.text
  found = parts(reply.headers["content-type"], reply.content)
  return json.loads(found["params"][1]), *found["image"]
