"""The count of bytes that a program for a TPU moves, against programs whose traffic is known.

As `test_tpu_compile.py` does, this file compiles in a process of its own, as a script that prints a
report: of each program the bytes counted, those expected, and XLA's own count.
"""

import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import steps_tpu
from experiments import hlo
from tests import tpu_process

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
    assert hlo.Program(SMALL).traffic() == expected


def test_a_choosing_step_runs_the_other_branch():
    waits, chooses = (hlo.Program(SMALL, branch=which).traffic() for which in (min, max))
    assert chooses - waits == 2 * 100 * 256  # a mask is read and written


def test_a_loop_that_ends_by_what_it_computes_runs_as_often_as_asked():
    text = SMALL.replace("direction=LT", "direction=NE")
    once, thrice = (hlo.Program(text, turns).traffic() for turns in (1, 3))
    assert thrice - once == 2 * (2 * 256 * 4 + 4)


# The compiler's side.

SIDE = 14336  # 784 MiB in float32: more than the chip's own memory


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


LARGE, MASK, NOW = array(SIDE, SIDE), array(SIDE, SIDE, dtype=jnp.bool_), array(dtype=jnp.bool_)
FLOATS, ENTRIES = 4 * SIDE**2, SIDE**2
ADAM = optax.adam(1e-3)


def adam(params, state, grads):
    updates, state = ADAM.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def rank(x):
    return jnp.argsort(jnp.argsort(jnp.abs(x), axis=0), axis=0)


def now_and_then(x, mask, now):
    mask = jax.lax.cond(now, lambda: rank(x) > SIDE // 2, lambda: mask)
    return jnp.where(mask, x, 0), mask


def made_then_chosen(x, mask, now):
    return now_and_then(jnp.cos(x), mask, now)


def never_chosen(x, mask):
    return made_then_chosen(x, mask, False)


def ten_turns(x):
    return jax.lax.fori_loop(0, 10, lambda _, x: jnp.cos(x), x)


def by_rows(x):
    def turn(i, x):
        rows = jax.lax.dynamic_slice_in_dim(x, i * 1024, 1024)
        return jax.lax.dynamic_update_slice_in_dim(x, jnp.cos(rows), i * 1024, 0)

    return jax.lax.fori_loop(0, SIDE // 1024, turn, x)


def on_chip(x, weight):
    for _ in range(8):
        x = jnp.tanh(x @ weight)
    return x


# Function, arguments, how many are donated, and the bytes that are read and written.
KNOWN = {
    "scale": (lambda x: 2 * x, [LARGE], 0, 2 * FLOATS),
    "scale, donated": (lambda x: 2 * x, [LARGE], 1, 2 * FLOATS),
    "round": (lambda x: x.astype(jnp.bfloat16), [LARGE], 0, 1.5 * FLOATS),
    "sum": (jnp.sum, [LARGE], 0, FLOATS),
    "adam": (adam, [LARGE, jax.eval_shape(ADAM.init, LARGE), LARGE], 2, (4 + 3) * FLOATS),
    "matmul": (jnp.matmul, [array(64, SIDE), LARGE], 0, FLOATS + 2 * 64 * SIDE * 4),
    "now and then": (now_and_then, [LARGE, MASK, NOW], 2, 2 * FLOATS + ENTRIES),
    # The conditional has its operand written to memory; without one nothing is written twice.
    "made, then chosen": (made_then_chosen, [LARGE, MASK, NOW], 2, 4 * FLOATS + ENTRIES),
    "made, never chosen": (never_chosen, [LARGE, MASK], 2, 2 * FLOATS + ENTRIES),
    "ten turns": (ten_turns, [LARGE], 1, 10 * 2 * FLOATS),
    "by rows": (by_rows, [LARGE], 1, 2 * FLOATS),
    "on chip": (on_chip, [array(2048, 2048)] * 2, 0, 3 * 4 * 2048**2),
}
LINKS = [
    "keep_sparse every 100",
    "keep_sparse 2:4 every 40",
    "keep_sparse transposable 2:4 every 40",
]


def known() -> dict[str, list[float]]:
    device, found = steps_tpu.chip(), {}
    for name, (function, arguments, donated, expected) in KNOWN.items():
        program = steps_tpu.compiled(function, arguments, device, tuple(range(donated)))
        counted = hlo.Program(program.as_text()).traffic()
        found[name] = [counted, expected, program.cost_analysis()["bytes accessed"]]
    return found


def links() -> dict[str, float]:
    device, (_, cases) = steps_tpu.chip(), steps_tpu.cases()
    return {name: steps_tpu.row(*cases[name], device)[0] for name in ["keep_mask", *LINKS]}


# The tests' side.

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: run `make test-tpu`",
)


def from_own_process(what):
    process = tpu_process.run(__file__, what)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def known_programs():
    return from_own_process("known")


@pytest.fixture(scope="module")
def moved_by_links():
    return from_own_process("links")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name", KNOWN)
def test_counts_what_a_compiled_program_must_move(known_programs, name):
    counted, expected, _ = known_programs[name]
    assert counted == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
@needs_libtpu
def test_cost_analysis_counts_otherwise(known_programs):
    """Branches that aren't taken, turns, and the chip's own memory: why it isn't used."""
    *_, constant = known_programs["made, never chosen"]
    counted, *_ = known_programs["made, then chosen"]
    assert constant < 0.6 * counted  # with a constant predicate it isn't the same program
    times = {name: cost / expected for name, (_, expected, cost) in known_programs.items()}
    assert times["adam"] == pytest.approx(1, rel=0.02)
    assert times["now and then"] > 1.5
    assert times["ten turns"] == pytest.approx(0.1, rel=0.02)
    assert times["on chip"] > 1.5


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name", LINKS)
def test_a_mask_chosen_now_and_then_moves_what_a_fixed_one_does(moved_by_links, name):
    assert 1 <= moved_by_links[name] / moved_by_links["keep_mask"] <= 1.05


if __name__ == "__main__":
    print(json.dumps({"known": known, "links": links}[sys.argv[1]]()))
