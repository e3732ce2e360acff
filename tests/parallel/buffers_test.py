"""Peaks of small programs, worked out by hand."""

import pytest

from rcmed_jax.parallel import buffers, hlo

KIB = 1024

# a and b live together at the fusion; c is written over a.
TEXT = """HloModule m, is_scheduled=true

FileNames
1 "/somewhere/rcmed_jax/model/one.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%write (p0: f32[256,1], p1: f32[1,1]) -> f32[256,1] {
  %p0 = f32[256,1]{1,0} parameter(0)
  %p1 = f32[1,1]{1,0} parameter(1)
  %zero = s32[] constant(0)
  ROOT %dus = f32[256,1]{1,0} dynamic-update-slice(%p0, %p1, %zero, %zero)
}

%body (s: (s32[], f32[256,1])) -> (s32[], f32[256,1]) {
  %s = (s32[], f32[256,1]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[256,1]{1,0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  %inner = f32[512,1]{1,0} concatenate(%x, %x), dimensions={0}, BACKWARD
  %near = f32[512,1]{1,0:S(1)} exponential(%inner)
  %cut = f32[256,1]{1,0} slice(%near), slice={[0:256], [0:1]}
  ROOT %out = (s32[], f32[256,1]{1,0}) tuple(%next, %cut)
}

%condition (s: (s32[], f32[256,1])) -> pred[] {
  %s = (s32[], f32[256,1]{1,0}) parameter(0)
  %n = s32[] constant(5)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[256,1]) -> f32[256,1] {
  %p = f32[256,1]{1,0} parameter(0)
  %a = f32[256,1]{1,0} negate(%p), FORWARD
  %b = f32[128,1]{1,0} slice(%p), slice={[0:128], [0:1]}
  %small = f32[1,1]{1,0:S(1)} slice(%b), slice={[0:1], [0:1]}
  %c = f32[256,1]{1,0} fusion(%a, %small), kind=kLoop, calls=%write
  %zero = s32[]{:S(6)} constant(0)
  %t = (s32[], f32[256,1]{1,0}) tuple(%zero, %c)
  %w = (s32[], f32[256,1]{1,0}) while(%t), condition=%condition, body=%body
  %last = f32[256,1]{1,0} get-tuple-element(%w), index=1
  ROOT %r = f32[256,1]{1,0} add(%last, %p)
}
"""
TEXT = TEXT.replace(
  "FORWARD", 'metadata={op_name="jit(f)/jvp()/neg" stack_frame_id=1}'
).replace(
  "BACKWARD", 'metadata={op_name="jit(f)/transpose(jvp())/concatenate"}'
)


@pytest.fixture(scope="module")
def program():
  return hlo.parse(TEXT)


def test_the_peak_is_where_most_lives_together(program):
  """In the loop: a, under its third name, and what a turn makes.

  b is gone by then; c and the loop's state are a; the turn's result lies in
  the state, and the argument and the program's result are not counted.
  """
  found = buffers.peak(program)
  assert [one.size for one in found] == [2 * KIB, KIB]
  assert [one.shape for one in found] == [(512, 1), (256, 1)]


def test_arrays_know_the_line_that_made_them(program):
  inner, state = buffers.peak(program)
  assert state.source == "model/one.py:7"
  assert state.kept  # by a forward pass
  assert not inner.kept  # of a backward pass
  assert inner.source == ""


def test_loops_are_counted(program):
  times, unknown = program.times()
  assert times["main"] == 1
  assert times["body"] == 5
  assert unknown == ()


def test_a_kernel_s_text_over_several_lines_ends_nothing():
  kernel = 'custom-call(%x), config={"body": {\n}}, made={op_name="k"}, x='
  text = TEXT.replace("concatenate(%x, %x)", kernel)
  lines = {one.name: one for one in hlo.parse(text).computations["body"]}
  assert "near" in lines
  assert lines["inner"].op_name == "k"


def test_a_loop_of_unknown_length_counts_once_and_is_told():
  text = TEXT.replace("%n = s32[] constant(5)", "%n = s32[] negate(%i)")
  times, unknown = hlo.parse(text).times()
  assert times["body"] == 1
  assert unknown == ("w",)
  times, _ = hlo.parse(text).times(turns=7)
  assert times["body"] == 7


@pytest.mark.parametrize(
  ("result", "size", "main"),
  [
    ("f32[3,5]{1,0}", 60, True),
    ("f32[3,5]{1,0:T(8,128)}", 4 * 8 * 128, True),
    ("bf16[9,130]{0,1:T(8,128)(2,1)}", 2 * 136 * 128, True),
    ("bf16[4,100]{1,0:T(8,128)(2,1)S(1)}", 2 * 8 * 128, False),
    ("pred[]", 1, True),
    ("u32[]{:S(2)}", 4, False),
  ],
)
def test_results_have_the_size_of_their_tiles(result, size, main):
  instruction = hlo.Instruction("x", result, "add", (), "", False)
  (leaf,) = instruction.leaves
  assert (leaf.size, leaf.main) == (size, main)


def test_tuples_in_tuples_are_counted_apart():
  instruction = hlo.Instruction(
    "x",
    "((f32[2]{0}, s32[]), /*index=1*/u8[3]{0:T(4,128)})",
    "tuple",
    (),
    "",
    0,
  )
  assert instruction.elements == (2, 1)
  assert [leaf.payload for leaf in instruction.leaves] == [8, 4, 3]
