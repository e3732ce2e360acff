"""The OpenAPI page is true: any request, fit or unfit, is answered as it says.

Requests are made up from the page itself.
"""

import contextlib
import importlib

import hypothesis
import pytest
import served

from rcmed_jax.apps import serve_volumes

schemathesis = pytest.importorskip(
  "schemathesis", reason="makes requests up from the OpenAPI page"
)

CHECKS = (
  "not_a_server_error",
  "status_code_conformance",
  "content_type_conformance",
  "response_schema_conformance",
)
MODES = ("POSITIVE", "NEGATIVE")  # requests that fit the page, and others


@pytest.fixture(scope="module")
def at():
  with served.running(write_answer=serve_volumes.write_answer) as found:
    yield found


def _ask(operation, mode, count):
  """Asks an operation in `count` ways, and holds each answer to the page."""
  statuses = []
  held = importlib.import_module("schemathesis.checks")
  checks = [getattr(held, name) for name in CHECKS]
  generated = getattr(schemathesis.GenerationMode, mode)

  @hypothesis.settings(
    max_examples=count,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(case=operation.as_strategy(generation_mode=generated))
  def ask(case):
    reply = case.call(timeout=20)
    case.validate_response(reply, checks=checks)
    statuses.append(reply.status_code)

  with contextlib.suppress(hypothesis.errors.Unsatisfiable):
    ask()  # of some there is no request that does not fit
  return statuses


@pytest.mark.heavy
def test_requests_of_every_kind(at):
  schema = schemathesis.openapi.from_url(at.url + "/openapi.json")
  operations = [one.ok() for one in schema.get_all_operations()]
  assert len(operations) > 15
  before = sorted(path for path in at.app.folder.iterdir())
  statuses = [
    status
    for operation in operations
    for mode in MODES
    for status in _ask(operation, mode, 30)
  ]
  assert 200 in statuses and 422 in statuses
  assert not [line for line in at.log if "fault" in line]
  assert sorted(path for path in at.app.folder.iterdir()) == before
