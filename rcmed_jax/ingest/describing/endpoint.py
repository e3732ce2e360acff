"""Which model is asked where, how fast, and at what price."""

import dataclasses
import math
import urllib.parse

# Roughly, in English.
CHARACTERS_PER_TOKEN = 4


@dataclasses.dataclass(frozen=True)
class Server:
  """Which model is asked where, and how much of it may be asked."""

  base_url: str  # "https://host/v1"
  model: str
  key: str = dataclasses.field(default="", repr=False)
  key_name: str = "OPENAI_API_KEY"  # the variable it was read from
  per_minute: float = 0.0  # requests, retries included; 0: as many as can be
  concurrency: int = 4  # requests at a time
  timeout_s: float = 120.0  # for a whole answer, however slowly it comes
  tries: int = 6  # of one request
  first_wait_s: float = 1.0  # before the second try; doubles with each
  longest_wait_s: float = 60.0
  max_tokens: int = 1024  # of one answer
  price_in: float = 0.0  # per million tokens
  price_out: float = 0.0
  max_cost: float = 0.0  # 0: no limit

  def __post_init__(self) -> None:
    url = urllib.parse.urlsplit(self.base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
      raise ValueError(
        f"base URL {self.base_url!r}: expected http://HOST/... or https://..., "
        "for example http://127.0.0.1:8000/v1."
      )
    if url.username or url.password:
      raise ValueError(
        "the base URL holds a name or password; give the key by --api-key-env."
      )
    if not self.model:
      raise ValueError("no model named; say --model NAME.")
    for name in ("concurrency", "tries", "timeout_s", "max_tokens"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name}={getattr(self, name)} must be positive.")
    for name in ("per_minute", "price_in", "price_out", "max_cost"):
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
    if self.max_cost and not (self.price_in or self.price_out):
      raise ValueError(
        "--max-cost needs prices; say --price-in and --price-out."
      )

  def cost(self, tokens_in: float, tokens_out: float) -> float:
    """Price of so many tokens."""
    return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


def image_tokens(shape: tuple[int, ...]) -> int:
  """Tokens of a picture, by the dearer of two rules in use.

  85 and 170 for each tile of 512 pixels, as OpenAI bills its models of 2024 in
  high detail; one for each patch of 28 pixels, as Qwen2-VL reads. Not all
  models follow either: what a server reports overrides it.
  """
  scale = min(1.0, 768 / min(shape[:2]))  # OpenAI's: the short side, at most
  tiles = math.prod(math.ceil(side * scale / 512) for side in shape[:2])
  patches = math.prod(math.ceil(side / 28) for side in shape[:2])
  return max(85 + 170 * tiles, patches)


def text_tokens(text: str) -> int:
  """Tokens of a text, estimated."""
  return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
