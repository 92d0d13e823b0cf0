"""Schedules against the values of the ProbMask paper's formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

sparsity = jp.cubic_sparsity(0.9, begin=48, end=180)
temperature = jp.annealed_temperature(300)
temperature_to = lambda steps, final: jp.annealed_temperature(steps, final=final)

VALUES = [
    (sparsity, [(0, 0), (48, 0), (49, 0.020300), (60, 0.223817), (114, 0.7875), (179, 0.9)]),
    (sparsity, [(180, 0.9), (181, 0.9), (300, 0.9), (2**31 - 1, 0.9)]),
    (jp.cubic_sparsity(1.0, begin=0, end=1), [(0, 0), (1, 1), (2, 1)]),
    (jp.cubic_sparsity(0.0, begin=0, end=10), [(0, 0), (5, 0), (99, 0)]),
    (temperature, [(0, 1), (48, 1 / 1.18371), (150, 1 / 1.94175), (180, 1 / 2.39234)]),
    (temperature, [(299, 0.97 / 300 + 0.03), (300, 0.03), (10_000, 0.03)]),
    (jp.annealed_temperature(10, final=0.5), [(0, 1), (5, 0.75), (10, 0.5), (11, 0.5)]),
    (jp.annealed_temperature(10, final=1.0), [(0, 1), (5, 1), (11, 1)]),
]


@pytest.mark.parametrize(("schedule", "values"), VALUES)
def test_values(schedule, values):
    """For a Python step and, in one program for all steps, for a traced one."""
    traced = jax.jit(schedule)
    for step, value in values:
        np.testing.assert_allclose(schedule(step), value, rtol=0, atol=2e-6)
        np.testing.assert_allclose(traced(jnp.int32(step)), value, rtol=0, atol=2e-6)
    assert traced._cache_size() == 1


def test_formulas_at_every_step():
    for step in range(320):
        t = min(max((step - 48) / (180 - 48), 0), 1)
        assert float(sparsity(step)) == pytest.approx(0.9 * (1 - (1 - t) ** 3), abs=1e-6)
        falling = 0.97 * (1 - min(step / 300, 1)) + 0.03
        assert float(temperature(step)) == pytest.approx(falling, abs=1e-6)


@pytest.mark.parametrize("step", [0, 47, 48])
def test_dense_phase_is_exactly_dense(step):
    assert sparsity(jnp.int32(step)) == 0


WRONG = {
    "sparsity above 1": (jp.cubic_sparsity, (1.5, 0, 1), r"sparsity must lie in \[0, 1\], got 1.5"),
    "sparsity below 0": (jp.cubic_sparsity, (-0.1, 0, 1), "final sparsity must lie in .*got -0.1"),
    "sparsity NaN": (jp.cubic_sparsity, (np.nan, 0, 1), "final sparsity must lie in"),
    "begin < 0": (jp.cubic_sparsity, (0.1, -1, 1), "0 <= begin < end, got begin=-1, end=1"),
    "begin = end": (jp.cubic_sparsity, (0.1, 5, 5), "0 <= begin < end, got begin=5, end=5"),
    "begin > end": (jp.cubic_sparsity, (0.1, 6, 5), "0 <= begin < end, got begin=6, end=5"),
    "no steps": (jp.annealed_temperature, (0,), "steps > 0 and .*got 0 and 0.03"),
    "final 0": (temperature_to, (10, 0.0), "0 < final <= 1, got 10 and 0.0"),
    "final above 1": (temperature_to, (10, 1.1), "0 < final <= 1, got 10 and 1.1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_errors(case):
    factory, arguments, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        factory(*arguments)
