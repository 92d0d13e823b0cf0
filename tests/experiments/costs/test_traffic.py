"""The count of bytes that a program moves, by hand; tests/test_steps_tpu.py has TPU programs."""

from experiments.costs.hlo import Program
from experiments.costs.traffic import traffic

SMALL = """\
HloModule jit_step, is_scheduled=true

%sliced (table: f32[100,256], row: s32[]) -> f32[1,256] {
  %table = f32[100,256]{1,0:T(8,128)} parameter(0)
  %row = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice.1 = f32[1,256]{1,0:T(8,128)} dynamic-slice(%table, %row, %zero), sizes={1,256}
}

%updated (whole: f32[100,256], part: f32[100,256], place: s32[]) -> f32[100,256] {
  %whole = f32[100,256]{1,0:T(8,128)} parameter(0)
  %part = f32[100,256]{1,0:T(8,128)} parameter(1)
  %place = s32[]{:T(128)} parameter(2)
  %nought = s32[]{:T(128)} constant(0)
  %fusion.1 = f32[1,256]{1,0:T(8,128)} fusion(%part, %place), kind=kLoop, calls=%sliced
  ROOT %update = f32[100,256]{1,0} dynamic-update-slice(%whole, %fusion.1, %place, %nought)
}

%body (turn: (s32[], f32[100,256])) -> (s32[], f32[100,256]) {
  %turn = (s32[]{:T(128)}, f32[100,256]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%turn), index=0
  %x = f32[100,256]{1,0:T(8,128)} get-tuple-element(%turn), index=1
  %fusion.2 = f32[100,256]{1,0:T(8,128)} fusion(%x, %x, %i), kind=kLoop, calls=%updated
  ROOT %next = (s32[]{:T(128)}, f32[100,256]{1,0:T(8,128)}) tuple(%i, %fusion.2)
}

%condition (turn.1: (s32[], f32[100,256])) -> pred[] {
  %turn.1 = (s32[]{:T(128)}, f32[100,256]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%turn.1), index=0
  %limit = s32[]{:T(128)} constant(10)
  ROOT %less = pred[]{:T(512)S(6)} compare(%i.1, %limit), direction=LT
}

%wait (m: pred[100,256]) -> pred[100,256] {
  ROOT %m = pred[100,256]{1,0:T(32,128)(4,1)} parameter(0)
}

%choose (m.1: pred[100,256]) -> pred[100,256] {
  %m.1 = pred[100,256]{1,0:T(32,128)(4,1)} parameter(0)
  ROOT %not = pred[100,256]{1,0:T(32,128)(4,1)} not(%m.1)
}

ENTRY %main (p: f32[100,256], mask: pred[100,256], now: pred[]) -> bf16[100,256] {
  %p = f32[100,256]{1,0:T(8,128)} parameter(0)
  %mask = pred[100,256]{1,0:T(32,128)(4,1)} parameter(1)
  %now = pred[]{:T(512)S(6)} parameter(2)
  %if = pred[100,256]{1,0:T(32,128)(4,1)} conditional(%now, %mask, %mask), \
true_computation=%choose, false_computation=%wait
  %start = s32[]{:T(128)S(6)} constant(0)
  %state = (s32[]{:T(128)}, f32[100,256]{1,0:T(8,128)}) tuple(%start, %p)
  %while = (s32[]{:T(128)}, f32[100,256]{1,0}) while(%state), condition=%condition, body=%body
  %y = f32[100,256]{1,0:T(8,128)} get-tuple-element(%while), index=1
  %copy-start = (f32[100,256]{1,0:T(8,128)S(1)}, f32[100,256]{1,0}, u32[]{:S(2)}) copy-start(%y)
  %copy-done = f32[100,256]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %cosine = f32[100,256]{1,0:T(8,128)S(1)} cosine(%copy-done)
  ROOT %select = bf16[100,256]{1,0:T(8,128)(2,1)} select(%if, %cosine, %cosine)
}
"""


# Of one row a turn is read and written, and the loop's limit is read; then y is read once, the mask
# once, and the result written.
def test_counts_a_program_by_hand():
    row, entries = 256 * 4, 100 * 256
    expected = 10 * (2 * row + 4) + entries * (4 + 1 + 2)
    assert traffic(Program(SMALL)) == expected


def test_a_choosing_step_runs_the_other_branch():
    waits, chooses = (traffic(Program(SMALL), which) for which in (min, max))
    assert chooses - waits == 2 * 100 * 256  # a mask is read and written


def test_a_loop_that_ends_by_what_it_computes_runs_as_often_as_asked():
    text = SMALL.replace("direction=LT", "direction=NE")
    once, thrice = (traffic(Program(text, turns)) for turns in (1, 3))
    assert thrice - once == 2 * (2 * 256 * 4 + 4)
