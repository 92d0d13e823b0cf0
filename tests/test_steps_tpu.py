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
from experiments.costs.hlo import Program
from experiments.costs.traffic import traffic
from tests import tpu_process

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
        counted = traffic(Program(program.as_text()))
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
