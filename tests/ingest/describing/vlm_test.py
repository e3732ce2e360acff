import asyncio
import datetime
import email.utils
import json
import logging
import time

from ingest.describing import vlm_server
import pytest

from rcmed_jax.ingest.describing import vlm
from rcmed_jax.ingest.describing.endpoint import Server

KEY = "sk-hidden-0123456789"
QUESTION = [{"role": "user", "content": "What is it?"}]


# All that another try may mend.
PASSING = (
  "-status 500",
  "-status 502",
  "-status 503",
  "-status 408",
  "-status 429",
  "-busy 0.01",
  "-busy nonsense",
  "-busy_until -60",
  "-silent 6",
  "-slow 6",
  "-cut",
  "-reset",
  "-garbage",
  "-page",
  "-body",
  "-body {",
  "-body [1, 2]",
  "-body null",
  '-body {"choices": []}',
  '-body {"choices": [7]}',
  '-body {"choices": [{"message": null}]}',
  '-body {"choices": [{"message": {"content": null}}]}',
  '-body {"choices": [{"message": {"content": "  "}}]}',
  '-body {"error": {"message": "overloaded"}}',
  "-body " + "[" * 100_000,
)


def settings(url, **more):
  quick = {"first_wait_s": 0.01, "longest_wait_s": 0.05, "timeout_s": 2.0}
  return Server(
    **{"base_url": url, "model": "eye", "key": KEY, **quick, **more}
  )


def ask(running, times=1, **more):
  """Replies, or errors, of so many questions at once; and the client."""

  async def run():
    async with vlm.Client(settings(running.url, **more)) as client:
      asked = (client.ask(QUESTION, 100) for _ in range(times))
      return await asyncio.gather(*asked, return_exceptions=True), client

  return asyncio.run(run())


def once_then_well(*ways):
  """A script: these ways in turn, then a good answer."""
  return lambda number, _: (
    ways[number] if number < len(ways) else "It is round."
  )


def test_what_passes_by_itself_is_tried_again():
  """All ways at once; each question says how it is answered, twice."""
  times = dict.fromkeys(PASSING, 0)

  def script(_, asked):
    way = vlm_server.words(asked["messages"][0])
    times[way] += 1
    return way if times[way] <= 2 else "It is round."

  async def run(url):
    async with vlm.Client(settings(url, tries=12)) as client:
      asked = (
        client.ask([{"role": "user", "content": way}], 100) for way in PASSING
      )
      return await asyncio.gather(*asked, return_exceptions=True), client

  with vlm_server.serve(script) as running:
    replies, client = asyncio.run(run(running.url))
  good = vlm.Reply("It is round.", 1000, 50, is_cut=False)
  for way, reply in zip(PASSING, replies, strict=True):
    assert reply == good, way
  # More on a machine that is too busy for these deadlines.
  assert min(times.values()) == 3
  assert client.requests >= len(running.requests) >= 3 * len(PASSING)


def test_a_slow_answer_ends_at_the_deadline():
  with vlm_server.serve(lambda *_: "-slow 9") as running:
    since_s = time.monotonic()
    ((error,), _) = ask(running, tries=2, timeout_s=1.0)
  assert isinstance(error, vlm.UnansweredError)
  assert str(error) == "no whole answer came within 1 s, 2 tries"
  assert time.monotonic() - since_s < 6


def test_nobody_there():
  with vlm_server.serve() as running:
    pass
  ((error,), client) = ask(running, tries=3)
  assert isinstance(error, vlm.UnansweredError)
  assert "the connection failed" in str(error)
  assert client.requests == 3


def test_after_twenty_failures_in_a_row_the_run_ends():
  with vlm_server.serve(lambda *_: "-status 400 bad picture") as running:
    errors, _ = ask(running, vlm.MOST_IN_A_ROW)
  refused = [e for e in errors if isinstance(e, vlm.RefusedError)]
  assert len(refused) == 1
  assert "20 requests in a row failed" in str(refused[0])
  assert "bad picture" in str(refused[0])


@pytest.mark.parametrize(
  ("way", "words"),
  [
    ("-status 401", "key was refused (401); set OPENAI_API_KEY"),
    ("-status 403", "key was refused (403)"),
    ("-status 404", "no model 'eye'"),
    ("-status 402", "account is empty"),
    ("-status 429 insufficient_quota", "account is empty"),
    ("-elsewhere http://127.0.0.1:9/v1", "sends us elsewhere (307)"),
  ],
)
def test_what_never_passes_ends_the_run_at_once(way, words):
  with vlm_server.serve(lambda *_: way) as running:
    ((error,), _) = ask(running)
  assert isinstance(error, vlm.RefusedError)
  assert words in str(error) and running.url in str(error)
  assert len(running.requests) == 1


def test_no_redirect_is_followed():
  with (
    vlm_server.serve() as other,
    vlm_server.serve(lambda *_: f"-elsewhere {other.url}") as running,
  ):
    ((error,), _) = ask(running)
  assert isinstance(error, vlm.RefusedError)
  assert not other.requests


@pytest.mark.parametrize("way", ["-busy 0.4", "-busy_until 1.6"])
def test_all_wait_as_long_as_the_server_asks(way):
  with vlm_server.serve(once_then_well(way)) as running:
    (replies, _) = ask(running, 1)
    assert isinstance(replies[0], vlm.Reply)
  first, second = (request.at_s for request in running.requests)
  # A date holds whole seconds.
  assert second - first >= (0.4 if way == "-busy 0.4" else 0.55)


def test_retry_after():
  assert vlm.retry_after_s("7") == 7
  assert vlm.retry_after_s("0.5") == 0.5
  assert vlm.retry_after_s("-3") == 0
  assert vlm.retry_after_s("nan") == 0
  assert vlm.retry_after_s("") == vlm.retry_after_s("soon") == 0
  assert vlm.retry_after_s("1e9") == vlm.LONGEST_PAUSE_S
  now = datetime.datetime.now(datetime.UTC)
  later = email.utils.format_datetime(now + datetime.timedelta(seconds=90))
  assert 85 < vlm.retry_after_s(later) <= 90


def test_one_pace_for_all():
  with vlm_server.serve(once_then_well()) as running:
    ask(running, 1)  # imports are not to be waited for below
    since_s = time.monotonic()
    ask(running, 6, per_minute=1200)
  _, *at = sorted(request.at_s for request in running.requests)
  assert len(at) == 6
  # A turn every 50 ms: each may be late, none comes before its own.
  assert all(
    at_s - since_s >= turn * 0.05 - 0.001 for turn, at_s in enumerate(at)
  )


def test_the_key_goes_to_the_server_alone(caplog):
  caplog.set_level(logging.DEBUG)
  for way in ("-echo 401", "-echo 400", "-echo 429"):
    with vlm_server.serve(lambda _, __, way=way: way) as running:
      ((error,), client) = ask(running, tries=2)
    assert running.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{error} {error!r} {error.__cause__!r}"
    assert KEY not in repr(client.__dict__["_server"])
  with vlm_server.serve(lambda *_: "-echo") as running:
    ((reply,), _) = ask(running)
  assert "[key]" in reply.text and KEY not in repr(reply)
  assert KEY not in caplog.text


def test_the_purse_is_never_overdrawn():
  # 1000 in and 50 out: 1.1 each. Before an answer, at most 1000 + 100 are due.
  prices = dict(price_in=1000.0, price_out=2000.0, max_tokens=100)
  with vlm_server.serve(once_then_well()) as running:

    async def run():
      server = settings(running.url, max_cost=5.0, **prices)
      async with vlm.Client(server) as client:
        for _ in range(9):
          try:
            await client.ask(QUESTION, 1000)
          except vlm.SpentError:
            break
        return client.spent

    spent = asyncio.run(run())
  # Four cost 4.4; a fifth could have cost 1.2.
  assert spent == pytest.approx(4.4)
  assert len(running.requests) == 4


def test_broken_requests_are_paid_for():
  with vlm_server.serve(once_then_well("-status 500", "-cut")) as running:
    prices = dict(price_in=1000.0, price_out=1000.0, max_tokens=100)
    (_, client) = ask(running, **prices)
  # An error costs nothing, a lost answer all that it may have, the last 1050.
  assert client.spent == pytest.approx(0 + 0.2 + 1.05)


@pytest.mark.parametrize("count", [-1, 10**400, 1.5, True, "7", None, [1]])
def test_nonsense_of_a_server_is_not_counted(count):
  usage = {"prompt_tokens": count, "completion_tokens": count}
  choices = [{"message": {"content": "Round."}}]
  body = json.dumps({"choices": choices, "usage": usage})
  with vlm_server.serve(lambda *_: f"-body {body}") as running:
    ((reply,), _) = ask(running, price_in=1.0)
  assert reply == vlm.Reply("Round.", 100, 2, is_cut=False)


def test_the_limit_has_another_name_at_some_servers():
  def script(_, asked):
    if "max_tokens" in asked:
      return "-status 400 Use max_completion_tokens instead of max_tokens."
    return "It is round."

  with vlm_server.serve(script) as running:
    replies, _ = ask(running, 3)
  assert [reply.text for reply in replies] == ["It is round."] * 3
  assert running.requests[-1].json["max_completion_tokens"] == 1024


def test_endless_answers_are_cut():
  with vlm_server.serve(lambda *_: "red " * 100_000) as running:
    ((reply,), _) = ask(running)
  assert reply.is_cut and len(reply.text) == vlm.MOST_CHARACTERS


def test_long_answers_are_said_to_be_cut():
  with vlm_server.serve(lambda *_: "-long It is") as running:
    ((reply,), _) = ask(running)
  assert reply.is_cut
