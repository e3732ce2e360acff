"""The language model against transformers' LLaMA."""

import jax
import jax.numpy as jnp
import numpy as np
import parts
import pytest

from rcmed_jax.model.language import Language

LENGTHS = (6, 9)
NEW = 5


@pytest.fixture(scope="module")
def tokens_BT():
  return np.random.default_rng(0).integers(1, 71, (2, max(LENGTHS)))


def test_hidden_states_and_logits_are_llama_s(pair, torch, tokens_BT):

  @jax.jit
  def run(language: Language, tokens_BT):
    hidden_BTD = language(language.embed(tokens_BT))
    return hidden_BTD, language.logits(hidden_BTD)

  hidden_BTD, logits_BTV = run(pair.ours.language, tokens_BT)
  with torch.inference_mode():
    theirs = pair.llama(torch.from_numpy(tokens_BT), output_hidden_states=True)
  assert parts.relative_error(hidden_BTD, theirs.hidden_states[-1].numpy()) < (
    1e-4
  )
  assert parts.relative_error(logits_BTV, theirs.logits.numpy()) < 1e-4


def test_a_ragged_batch_says_what_llama_says_row_by_row(pair, torch, tokens_BT):
  """Greedy, ours with one cache for both rows, theirs one row at a time."""
  language = pair.ours.language
  length_B = np.array(LENGTHS)
  prompt_BT = np.where(np.arange(9)[None] < length_B[:, None], tokens_BT, 0)
  hidden_BTD, cache = language.prefill(language.embed(prompt_BT), slots=9 + NEW)
  hidden_BD = hidden_BTD[np.arange(2), length_B - 1]
  decode = jax.jit(Language.decode)
  said = []
  for step in range(NEW):
    said.append(jnp.argmax(language.logits(hidden_BD), axis=-1))
    hidden_BD, cache = decode(
      language, language.embed(said[-1]), jnp.asarray(length_B + step), cache
    )
  for row, length in enumerate(LENGTHS):
    given = torch.from_numpy(tokens_BT[row : row + 1, :length])
    with torch.inference_mode():
      theirs = pair.llama.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
      )
    assert theirs[0, length:].tolist() == [int(ids_B[row]) for ids_B in said]
