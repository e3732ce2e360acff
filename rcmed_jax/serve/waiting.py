"""Waiting for what another thread makes, as long as the client does."""

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from rcmed_jax.serve import errors


async def first(
  request: Request, *waiting: "asyncio.Future[Any]", most_s: float
) -> None:
  """Returns once one of them is done.

  Raises:
    HTTPException: the client left; nobody reads this.
    TimeoutError: none of them was in time.
  """
  gone = asyncio.create_task(_left(request))
  try:
    await asyncio.wait(
      (*waiting, gone), timeout=most_s, return_when=asyncio.FIRST_COMPLETED
    )
    if any(one.done() for one in waiting):
      return
    if gone.done():
      raise HTTPException(errors.CLIENT_LEFT, "the client left")
    raise TimeoutError
  finally:
    gone.cancel()


async def _left(request: Request) -> None:
  """Returns when the client has closed the connection."""
  while (await request.receive())["type"] != "http.disconnect":
    pass
