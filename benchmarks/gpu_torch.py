"""Their side of `gpu.py`: transformers' SAM and LLaMA on one device, bfloat16.

Weights are made on the device in bfloat16, those that train with float32 copies
for the optimizer. Attention is PyTorch's own (`scaled_dot_product_attention`),
and nothing is compiled.
"""

from collections.abc import Callable
import gc
from typing import Any

import batches
import gpu_cases
from gpu_cases import Row
import torch
import torch_model
import torch_train
import transformers

from rcmed_jax.train import losses, optimizer

# Which layers are made again. The training code on which the release's is built
# (GLaMM's train.py) does so in the language model alone.
CHECKPOINTED = ("language", "none")


class Theirs:
  """Measures one part after another, all with the same weights.

  Args:
    given: sizes.
    emit: takes each row.
    clock: tells when to stop.
  """

  def __init__(
    self,
    given: gpu_cases.Sizes,
    emit: gpu_cases.Emit,
    clock: gpu_cases.Clock,
  ):
    self.given, self.emit, self.clock = given, emit, clock
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    if self.device == "cpu":
      torch.set_num_threads(1)  # a toy gains nothing from more
    self.ceiling = self._ceiling()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
      with torch.device(self.device):
        self.model = torch_model.RCMed(given.model)
    finally:
      torch.set_default_dtype(before)
    torch_train.release_trains(self.model)

  def facts(self) -> Row:
    """What the numbers hold for."""
    name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
    return {
      "device": name,
      "torch": torch.__version__,
      "transformers": transformers.__version__,
      "ceiling_tflops": self.ceiling,
    }

  def train(self) -> None:
    """Forward, backward and update, by batch."""
    held: dict[str, Any] = {}

    def measure(again: str, rows: int, text: int = self.given.text[0]) -> Row:
      llama = self.model.llama
      if again == "language":
        llama.gradient_checkpointing_enable(
          gradient_checkpointing_kwargs={"use_reentrant": False}
        )
      else:
        llama.gradient_checkpointing_disable()

      def run() -> Any:
        if "trainer" not in held:
          held["trainer"] = torch_train.Trainer(
            self.model, losses.LossConfig(), optimizer.OptimizerConfig()
          )
        return held["trainer"].step(batch)["loss"]

      batch = self._batch(rows, text)
      row = self._timed("train", rows, text, run)
      self.model.zero_grad(set_to_none=True)
      return row | {"remat": again}

    rows = sorted({rows for _, rows in self.given.train})
    cases = [(again, n) for again in CHECKPOINTED for n in rows]
    best = gpu_cases.sweep(cases, measure, self.emit, self.clock)
    if best is not None:
      for text in self.clock.cases(self.given.text[1:]):
        self.emit(measure(*best, text))

  def evaluate(self) -> None:
    """Image and whole answer to masks."""

    def measure(_: None, rows: int) -> Row:
      text = self.given.text[0]
      batch = self._batch(rows, text)
      return self._timed(
        "evaluate", rows, text, lambda: self.model(batch).masks[-1]
      )

    self._answers(measure)

  def prefill(self) -> None:
    """Image and question to the first token and a filled cache."""

    def measure(_: None, rows: int) -> Row:
      text = self.given.text[0]
      batch = self._batch(rows, text)

      def run() -> Any:
        visual, _ = self.model.encode_image(
          batch["pixels_BIJC"], batch["extent_B2"]
        )
        states = self.model.embed(
          batch["tokens_BT"], visual, [batches.IMAGE_AT] * rows
        )
        return self._next(states, transformers.DynamicCache())

      return self._timed("prefill", rows, text, run)

    self._answers(measure)

  def decode(self) -> None:
    """More tokens, each looking back on the cache."""
    config = self.given.model
    text = self.given.text[0]
    start = gpu_cases.slots(self.given, text) - self.given.new

    def measure(_: None, rows: int) -> Row:
      cache = transformers.DynamicCache()

      def run() -> Any:
        if cache.get_seq_length():
          cache.crop(-self.given.new)
        else:
          states = torch.zeros(
            (rows, start, config.language.width),
            device=self.device,
            dtype=torch.bfloat16,
          )
          self._next(states, cache)
        token = torch.ones((rows, 1), device=self.device, dtype=torch.long)
        for _ in range(self.given.new):
          embed = self.model.llama.model.embed_tokens
          token = self._next(embed(token), cache).argmax(-1)
        return token

      return self._timed("decode", rows, text, run) | {"share": None}

    self._answers(measure)

  def _answers(self, measure: Callable[[None, int], Row]) -> None:
    self.model.eval()
    cases = [(None, rows) for rows in self.given.answer]
    with torch.inference_mode():
      gpu_cases.sweep(cases, measure, self.emit, self.clock)

  def _next(self, states: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits [B, 1, V] after the last state; the cache grows."""
    hidden = self.model.llama.model(
      inputs_embeds=states, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return self.model.llama.lm_head(hidden[:, -1:])

  def _timed(
    self, part: str, rows: int, text: int, run: Callable[[], Any]
  ) -> Row:
    if self.device == "cuda":
      torch.cuda.reset_peak_memory_stats()
    try:
      took = gpu_cases.seconds(run, self._wait)
    except Exception as error:  # one case must not cost the others
      failed = gpu_cases.reason(error)
      del error  # and with it what the case held
      self._forget()
      return {"rows": rows, "text": text, "failed": failed}
    peak = None
    if self.device == "cuda":
      peak = torch.cuda.max_memory_allocated() / 1e9
    self._forget()
    return gpu_cases.speed(part, took, rows, text, self.given, self.ceiling) | {
      "peak_gb": peak
    }

  def _wait(self, _: Any) -> None:
    if self.device == "cuda":
      torch.cuda.synchronize()

  def _forget(self) -> None:
    gc.collect()
    if self.device == "cuda":
      torch.cuda.empty_cache()

  def _batch(self, rows: int, text: int) -> torch_model.Batch:
    made = batches.make(
      self.given.model,
      rows,
      text,
      targets=self.given.targets,
      mask_size=self.given.mask_size,
    )
    return torch_train.tensors(made, self.device)

  def _ceiling(self) -> float:
    """TFLOP/s of a product of random bfloat16 matrices."""
    side = self.given.product
    matrix = torch.randn(side, side, device=self.device)
    matrix = (matrix / side**0.5).bfloat16()
    took = gpu_cases.seconds(lambda: matrix @ matrix, self._wait)
    return 2 * side**3 / took / 1e12
