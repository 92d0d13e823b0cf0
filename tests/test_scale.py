"""Sizes of 10^12 weights while functions are traced, and the reader of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import scale, scale_cases
from experiments import compiled

CASES = [
    pytest.param(case, marks=[pytest.mark.slow] * ("gradient" in case or "scheduled" in case))
    for case in scale_cases.CASES
]


@pytest.mark.usefixtures("relaxed_promotion")  # for Adam
@pytest.mark.parametrize("case", CASES)
def test_every_function_and_link_is_traced_at_full_size(case):
    """A Python integer of a size that met an array would overflow here."""
    mesh = jax.make_mesh((4, 2), scale_cases.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    setting = scale_cases.Setting(scale_cases.Variant(), mesh)
    assert sum(leaf.size for leaf in jax.tree.leaves(setting.kernels)) > 10**12
    function, arguments = scale_cases.CASES[case](setting)
    jax.eval_shape(function, *arguments)


PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[64,2]{1,0})->f32[64,2]{1,0}}

%fused_computation.1 (param_0: f32[64,2]) -> f32[64,2] {
  %large = f32[64,9000]{1,0} broadcast(%param_0), dimensions={0}
  ROOT %sum = f32[64,2]{1,0} reduce(%large, %zero), to_apply=%add
}

%body (p: (u32[], s8[5,7])) -> (u32[], s8[5,7]) {
  %all-reduce.1 = (u32[]{:T(128)}, u32[15]{0:T(128)S(1)}) all-reduce(%a, %b), channel_id=1
  %ag = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%c), dimensions={0}
  %done = bf16[32,4]{1,0} all-gather-done(%ag)
}

ENTRY %main (x: f32[64,2]) -> f32[64,2] {
  %mask = pred[3,100]{1,0} compare(%x, %x), direction=GT
  ROOT %fusion = f32[64,2]{1,0} fusion(%x), kind=kLoop, calls=%fused_computation.1
}
"""


def test_arrays_of_a_program_are_found():
    assert list(compiled.arrays("(f32[64,2]{1,0}, pred[3], bf16[], s4[3], f8e4m3fn[5])")) == [
        (128, 512), (3, 3), (1, 2), (3, 2), (5, 5)]  # fmt: skip


def test_collectives_of_a_program_are_found():
    found = list(compiled.collectives(PROGRAM))
    assert found == [("all-reduce", 60), ("all-gather", 256)]


def test_what_is_only_inside_fusions_is_not_in_memory():
    sizes = [entries for entries, _ in compiled.arrays(compiled.in_memory(PROGRAM))]
    assert max(sizes) == 300
    assert max(entries for entries, _ in compiled.arrays(PROGRAM)) == 64 * 9000


def test_a_program_that_jax_compiled_is_read():
    leaf = jax.ShapeDtypeStruct((1000, 8), jnp.float32)
    read = compiled.read(jax.jit(lambda x: jnp.sort(x.ravel())[:10]).lower(leaf).compile())
    assert read.largest_array == 8000
    assert read.temporary >= 32_000
    assert read.moved is None


def test_rows_are_judged_against_the_bounds():
    row = {"variant": "base", "share": 100, "array": 1.0, "moved": ["all-reduce", 8]}
    cases = {
        "step, no link": (100, {}),
        "step, a": (105, {}),
        "b": (11, {}),
        "c": (0, {"array": 1.01}),
        "d": (0, {"moved": ["all-gather", 2**17]}),
        "transposable_nm_mask": (99, {}),
    }
    rows = [row | {"case": case, "temporary": t} | more for case, (t, more) in cases.items()]
    verdicts = [row["holds"] for row in scale.judged(rows)]
    assert verdicts == [True, True, False, False, False, True]
