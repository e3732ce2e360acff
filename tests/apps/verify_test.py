"""`rcmed convert verify` on the released vectors, whole and spoilt."""

import dataclasses
import re

import numpy as np
import parts
import pytest
import released

from rcmed_jax import cli
from rcmed_jax.convert import verify


@pytest.fixture(scope="module")
def vectors(shared):
  return shared / "vectors/a"


def _verify(*argv):
  return cli.main(["convert", "verify", *map(str, argv)])


def _rows(text):
  """name -> (error, whether it passed) of a printed table."""
  found = re.findall(r"^(\S+) +(\S+) +\S+?(  too large)?$", text, re.M)
  return {name: (float(e), not bad) for name, e, bad in found[1:]}


def _spoilt(case, path, **changes):
  np.savez(path, **{**case, **changes})
  return path


def test_the_vectors_pass_before_and_after_import(
  vectors, shared, tmp_path, capsys
):
  imported = ("import", "--from=syre", vectors, tmp_path / "ours")
  assert cli.main(["convert", *map(str, imported)]) == 0
  dump = tmp_path / "dump.npz"
  case, recorded = vectors / "case.npz", released.case(shared)
  for checkpoint in (vectors, tmp_path / "ours"):
    assert _verify(checkpoint, case, "--dump", dump) == 0
    said = capsys.readouterr().out
    rows = _rows(said)
    assert len(rows) == 21
    assert all(passed for _, passed in rows.values())
    assert "verify: 21 of 21 tensors within bounds" in said
  with np.load(dump) as computed:
    for name in rows:
      assert parts.relative_error(computed[name], recorded[name]) < 1e-4


def test_a_tensor_past_its_bound_fails(vectors, shared, tmp_path, capsys):
  case = released.case(shared)
  path = _spoilt(
    case, tmp_path / "case.npz", hidden=case["hidden"] * np.float32(1.001)
  )
  assert _verify(vectors, path) == 1
  rows = _rows(capsys.readouterr().out)
  assert [name for name, (_, passed) in rows.items() if not passed] == [
    "hidden"
  ]
  assert rows["hidden"][0] == pytest.approx(0.001 / 1.001, rel=0.1)


def test_a_case_may_hold_the_forward_pass_alone(
  vectors, shared, tmp_path, capsys
):
  case = {k: v for k, v in released.case(shared).items() if "grad/" not in k}
  np.savez(tmp_path / "case.npz", **case)
  assert _verify(vectors, tmp_path / "case.npz") == 0
  assert "verify: 14 of 14 tensors" in capsys.readouterr().out


@pytest.mark.heavy  # compiles the model once more
def test_8_bits_cost_little_and_are_reported(vectors, capsys):
  assert _verify(vectors, vectors / "case.npz", "--int8") == 0
  said = capsys.readouterr().out
  assert "none of them judged" in said
  errors = {name: error for name, (error, _) in _rows(said).items()}
  assert errors["image_embeddings"] < 1e-5  # not of the language model
  assert 1e-4 < errors["hidden"] < 3e-2


@pytest.mark.heavy  # compiles the model once more
def test_the_vectors_pass_in_bfloat16(vectors, capsys):
  assert _verify(vectors, vectors / "case.npz", "--dtype", "bfloat16") == 0
  rows = _rows(capsys.readouterr().out)
  assert 1e-4 < rows["hidden"][0] < 3e-2


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"input_ids": 107}, "input_ids go up to 107, the checkpoint has 107"),
    ({"gt_masks": np.zeros((2, 1, 75, 100))}, "row 0 of input_ids has 3 [SEG]"),
    ({"gt_masks": np.zeros((2, 3, 75, 99))}, "gt_masks float64[2, 3, 75, 99]"),
    ({"labels": np.zeros((1, 32), int)}, "labels int64[1, 32], gt_masks"),
    (
      {"input_ids": np.zeros((2, 32), int)},
      "row 0 of input_ids must hold -200",
    ),
  ],
)
def test_inputs_of_another_model_are_refused(
  vectors, shared, tmp_path, capsys, changes, said
):
  case = released.case(shared)
  if isinstance(changes.get("input_ids"), int):
    ids = case["input_ids"].copy()
    ids[0, 1] = changes["input_ids"]
    changes = {"input_ids": ids}
  assert _verify(vectors, _spoilt(case, tmp_path / "c.npz", **changes)) == 2
  assert said in capsys.readouterr().err


def test_a_case_that_is_none_is_named(vectors, tmp_path, capsys):
  assert _verify(vectors, tmp_path / "gone.npz") == 2
  assert "gone.npz is missing" in capsys.readouterr().err
  np.savez(tmp_path / "half.npz", labels=np.zeros(1))
  assert _verify(vectors, tmp_path / "half.npz") == 2
  assert "lacks images_bgr_u8, input_ids, gt_masks" in capsys.readouterr().err
  whole = (tmp_path / "half.npz").read_bytes()
  (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
  assert _verify(vectors, tmp_path / "half.npz") == 2
  assert "is no .npz file, or damaged" in capsys.readouterr().err


def test_gradients_of_unknown_tensors_are_named(vectors, shared):
  model = released.model(shared)
  case = verify.read(vectors / "case.npz", model.config)
  case = dataclasses.replace(case, references={"grad/model.other": np.zeros(1)})
  with pytest.raises(ValueError, match=r"gradients of model\.other, which"):
    verify.outputs(model, case, lambda *_: (None, {}))
