"""The reader of compiled programs."""

import jax
import jax.numpy as jnp

from experiments.costs import hlo

PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[64,2]{1,0})->f32[64,2]{1,0}}

%fused_computation.1 (param_0: f32[64,2]) -> f32[64,2] {
  %param_0 = f32[64,2]{1,0} parameter(0)
  %large = f32[64,9000]{1,0} broadcast(%param_0), dimensions={0}
  ROOT %sum = f32[64,2]{1,0} reduce(%large, %zero), to_apply=%add
}

%condition (q: (u32[], s8[5,7])) -> pred[] {
  %q = (u32[], s8[5,7]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%q), index=0
  %limit = u32[] constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (u32[], s8[5,7])) -> (u32[], s8[5,7]) {
  %p = (u32[], s8[5,7]{1,0}) parameter(0)
  %all-reduce.1 = (u32[]{:T(128)}, u32[15]{0:T(128)S(1)}) all-reduce(%a, %b), channel_id=1
  %ag = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%c), dimensions={0}
  %done = bf16[32,4]{1,0} all-gather-done(%ag)
}

ENTRY %main (x: f32[64,2]) -> f32[64,2] {
  %x = f32[64,2]{1,0} parameter(0)
  %mask = pred[3,100]{1,0} compare(%x, %x), direction=GT
  %turned = (u32[], s8[5,7]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %fusion = f32[64,2]{1,0} fusion(%x), kind=kLoop, calls=%fused_computation.1
}
"""


def test_arrays_of_a_shape_are_found():
    shape = "(f32[64,2]{1,0}, pred[3], bf16[]{:S(1)}, s4[3], f8e4m3fn[5], token[])"
    assert [*hlo.arrays(shape)] == [
        (128, 512, True), (3, 3, True), (1, 2, False), (3, 2, True), (5, 5, True)]  # fmt: skip


def test_collectives_of_a_run_are_found():
    found = [*hlo.Program(PROGRAM).collectives()]
    assert found == [("all-reduce", 60, 3), ("all-gather", 256, 3)]


def test_what_is_only_inside_fusions_is_not_in_memory():
    program = hlo.Program(PROGRAM)
    assert max(array.entries for array in program.in_memory()) == 300
    assert program.all["large"].arrays[0].entries == 64 * 9000


def test_a_program_that_jax_compiled_is_read():
    leaf = jax.ShapeDtypeStruct((1000, 8), jnp.float32)
    read = hlo.summary(jax.jit(lambda x: jnp.sort(x.ravel())[:10]).lower(leaf).compile())
    assert read.largest_array == 8000
    assert read.temporary >= 32_000
    assert read.moved is None
