"""Server-sent events: how answers are told while they grow."""

from collections.abc import AsyncIterator
import json
from typing import Any

from starlette.responses import StreamingResponse

# Neither a browser nor a proxy is to keep them back.
_UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

# The last event of a stream, as OpenAI's API ends one.
END = "data: [DONE]\n\n"


def event(values: dict[str, Any]) -> str:
  """One event, of JSON."""
  return f"data: {json.dumps(values)}\n\n"


def response(told: AsyncIterator[str]) -> StreamingResponse:
  """A response that sends each event as it comes."""
  return StreamingResponse(
    told, media_type="text/event-stream", headers=_UNBUFFERED
  )
