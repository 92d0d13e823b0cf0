"""Penalties against their formulas in float64, at every scale, and where they are 0/0."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.methods import penalties

float64 = jax.enable_x64
SHAPE = (2, 3, 4)  # a one-dimensional convolution of 3 inputs and 4 outputs


def hoyer_square(w):
    return jnp.sum(jnp.abs(w)) ** 2 / jnp.sum(w * w)


def norms(w, inside):
    return jnp.sqrt(jnp.sum(w * w, axis=inside))


def on_groups(axis, **options):
    return functools.partial(jp.group_hoyer_square, axis=axis, **options)


# Each penalty beside the formula it stands for.
PENALTIES = {
    "hoyer_square": (jp.hoyer_square, hoyer_square),
    "hoyer_square normalized": (
        functools.partial(jp.hoyer_square, normalized=True),
        lambda w: hoyer_square(w) / 24,
    ),
    "hoyer_ratio": (jp.hoyer_ratio, lambda w: jnp.sqrt(hoyer_square(w))),
    "inputs": (on_groups("inputs"), lambda w: hoyer_square(norms(w, (0, 2)))),
    "outputs": (on_groups("outputs"), lambda w: hoyer_square(norms(w, (0, 1)))),
    "inputs, outputs": (
        on_groups(("inputs", "outputs")),
        lambda w: hoyer_square(norms(w, (0, 2))) + hoyer_square(norms(w, (0, 1))),
    ),
    "integers": (on_groups((0, -1)), lambda w: hoyer_square(norms(w, (0, 2)))),
    "all in one group": (on_groups((0, 1, 2)), lambda w: 0 * jnp.sum(w) + 1),
    "groups normalized": (
        on_groups(("inputs", "outputs"), normalized=True),
        lambda w: hoyer_square(norms(w, (0, 2))) / 3 + hoyer_square(norms(w, (0, 1))) / 4,
    ),
    "l1": (jp.l1, lambda w: jnp.sum(jnp.abs(w))),
    "transformed_l1": (
        jp.transformed_l1,
        lambda w: jnp.sum(2 * jnp.abs(w) / (1 + jnp.abs(w))),
    ),
    "group_lasso": (
        functools.partial(jp.group_lasso, axis=("inputs", "outputs")),
        lambda w: jnp.sum(norms(w, (0, 2))) + jnp.sum(norms(w, (0, 1))),
    ),
}
KINDS = ("hoyer_square", "hoyer_ratio", "inputs, outputs", "l1", "transformed_l1", "group_lasso")
SCALE_FREE = [name for name in PENALTIES if "l1" not in name and "lasso" not in name]
HOYER = {name: PENALTIES[name][0] for name in SCALE_FREE if "normalized" not in name}
every_penalty = pytest.mark.parametrize("name", PENALTIES)
every_kind = pytest.mark.parametrize("name", KINDS)
every_scale_free_penalty = pytest.mark.parametrize("name", SCALE_FREE)


@functools.cache
def closed(name):
    return jax.jit(jax.value_and_grad(PENALTIES[name][0]))


@functools.cache
def naive(name):
    return jax.jit(jax.value_and_grad(PENALTIES[name][1]))


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


magnitude = st.floats(0.01, 8.0)
signed = st.tuples(magnitude, st.sampled_from([-1.0, 1.0])).map(lambda pair: pair[0] * pair[1])
kernels = st.lists(signed, min_size=24, max_size=24).map(lambda w: np.reshape(w, SHAPE))


# Gradients in closed form, in float64 -----------------------------------------------------------


@every_penalty
@hypothesis.settings(max_examples=20)
@hypothesis.given(kernels)
def test_value_and_gradient_equal_autodiff_of_the_formula(name, w):
    with float64(True):
        value, gradient = closed(name)(w)
        expected, expected_gradient = naive(name)(w)
        assert gradient.dtype == value.dtype == jnp.float64
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        largest = 1 + np.abs(expected_gradient).max()
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-12 * largest)


@every_scale_free_penalty
@hypothesis.settings(max_examples=20)
@hypothesis.given(kernels)
def test_gradient_is_orthogonal_and_the_value_blind_to_scale_and_sign(name, w):
    with float64(True):
        value, gradient = closed(name)(w)
        length = np.linalg.norm(w) * max(np.linalg.norm(gradient), 1.0)
        assert abs(np.vdot(w, gradient)) <= 1e-12 * length
        turned, steeper = closed(name)(-7.0 * w)
        np.testing.assert_allclose(turned, value, rtol=1e-13)
        np.testing.assert_allclose(-7.0 * steeper, gradient, rtol=0, atol=1e-12 * (1 + value))


@pytest.mark.parametrize("name", ["hoyer_square", "hoyer_ratio", "inputs, outputs"])
def test_hessian_equals_that_of_the_formula(name):
    penalty, formula = PENALTIES[name]
    with float64(True):
        w = jnp.asarray(gaussian(*SHAPE))
        hessian, expected = jax.jit(lambda w: (jax.hessian(penalty)(w), jax.hessian(formula)(w)))(w)
        np.testing.assert_allclose(hessian, expected, rtol=1e-9, atol=1e-10)


@every_kind
def test_derivatives_equal_finite_differences(name):
    penalty, step = PENALTIES[name][0], 1e-5

    @jax.jit
    def forward(w, v):
        value, along = jax.jvp(penalty, (w,), (v,))
        gradient, curvature = jax.jvp(jax.grad(penalty), (w,), (v,))
        return value, along, gradient, curvature

    with float64(True):
        w, v = jnp.asarray(gaussian(*SHAPE, seed=1)), jnp.asarray(gaussian(*SHAPE, seed=2))
        value, along, gradient, curvature = forward(w, v)
        np.testing.assert_allclose(value, closed(name)(w)[0], rtol=1e-14)
        np.testing.assert_allclose(along, jnp.vdot(gradient, v), rtol=1e-11, atol=1e-12)
        (above, steep_above), (below, steep_below) = (
            closed(name)(w + sign * step * v) for sign in (1, -1)
        )
        np.testing.assert_allclose(along, (above - below) / (2 * step), rtol=1e-6, atol=1e-8)
        by_difference = (steep_above - steep_below) / (2 * step)
        np.testing.assert_allclose(curvature, by_difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["hoyer_square", "inputs, outputs"])
def test_inside_vmap(name):
    batch = jnp.asarray(gaussian(5, *SHAPE), jnp.float32)
    values, gradients = jax.vmap(closed(name))(batch)
    for i in range(5):
        value, gradient = closed(name)(batch[i])
        np.testing.assert_allclose(values[i], value, rtol=1e-6)
        np.testing.assert_allclose(gradients[i], gradient, rtol=1e-5, atol=1e-6)


# Scales, in float32 -----------------------------------------------------------------------------

DECADES = [-30, -23, -10, -3, 0, 5, 20, 30]


@every_scale_free_penalty
def test_scale_invariant_in_float32(name):
    """The gradient is as much larger as the weights are smaller."""
    w = jnp.asarray(gaussian(*SHAPE, seed=3), jnp.float32)
    value, gradient = closed(name)(w)
    for decade in DECADES:
        scale = np.float32(f"1e{decade}")
        scaled_value, scaled_gradient = closed(name)(scale * w)
        np.testing.assert_allclose(scaled_value, value, rtol=1e-6)
        np.testing.assert_allclose(scaled_gradient * scale, gradient, rtol=0, atol=2e-6)


MILLION = 1_000_000
hoyer_of_a_million = jax.jit(jp.hoyer_square)


@every_scale_free_penalty
@pytest.mark.parametrize("value", [2e-38, 2e-23, 1e19, 3e38])
def test_one_extreme_weight_among_others(name, value):
    """Its square, or those of all others, are not in float32's range."""
    w = gaussian(*SHAPE, seed=4) * 1e-20
    w.flat[5] = value
    got, gradient = closed(name)(jnp.asarray(w, jnp.float32))
    with float64(True):
        expected, steepness = naive(name)(jnp.asarray(w))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    terms = 2.0 / abs(w).max()  # the size of the two that cancel at the largest weight
    tolerance = 1e-5 * abs(np.asarray(steepness)).max() + 1e-6 * terms + 2e-38
    np.testing.assert_allclose(gradient, steepness, rtol=0, atol=tolerance)


@pytest.mark.parametrize("way", [penalties._moments_by_branch, penalties._moments_by_sums])
@pytest.mark.parametrize("value", [0.0, 2e-38, 2e-23, 1e19, 3e38])
@pytest.mark.parametrize("scale", [0.0, 1e-31, 1.0, 1e37])
def test_either_way_moments_are_right_at_any_scale(way, value, scale):
    """On a CPU one of them runs, on an accelerator the other."""
    w = np.float32(gaussian(*SHAPE, seed=4) * scale)
    w.flat[5] = value
    inverse, s1, s2 = map(np.float64, jax.jit(way)(jnp.asarray(w)))
    np.testing.assert_allclose(s1 / inverse, np.abs(np.float64(w)).sum(), rtol=1e-6)
    np.testing.assert_allclose(s2 / inverse**2, (np.float64(w) ** 2).sum(), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 7, 1_000, 333_333, MILLION])
def test_equal_magnitudes_are_counted(k):
    places = np.random.default_rng(k).permutation(MILLION)[:k]
    ones = np.zeros(MILLION, np.float32)
    ones[places] = np.where(places % 2, 1, -1)
    for decade in (-30, 0, 30):
        value = hoyer_of_a_million(jnp.asarray(ones * np.float32(f"1e{decade}")))
        np.testing.assert_allclose(value, k, rtol=1e-6)


def test_published_failures_of_a_naive_port():
    """9054 at 1e-23 and NaN at 1e20 without a division by the largest weight."""
    w = jnp.asarray(gaussian(1_000), jnp.float32)
    value = float(jp.hoyer_square(w))
    for scale in (1e-23, 1e20):
        assert float(jp.hoyer_square(w * jnp.float32(scale))) == pytest.approx(value, rel=1e-6)


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.lists(st.sampled_from([0.0, 1.0, -2.5, 1e-3, 40.0]), min_size=24, max_size=24))
def test_value_lies_between_one_and_the_number_of_nonzeros(values):
    w = np.asarray(values, np.float32).reshape(SHAPE)
    value = float(closed("hoyer_square")(w)[0])
    assert min(1, np.count_nonzero(w)) * (1 - 1e-6) <= value <= np.count_nonzero(w) * (1 + 1e-6)
    assert float(closed("hoyer_ratio")(w)[0]) == pytest.approx(np.sqrt(value), rel=1e-6)


# Zeros ------------------------------------------------------------------------------------------


@every_penalty
def test_zero_leaf_has_value_and_gradient_zero(name):
    value, gradient = closed(name)(jnp.zeros(SHAPE))
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, np.zeros(SHAPE))


@pytest.mark.parametrize("name", ["hoyer_square", "hoyer_ratio", "inputs"])
def test_no_nan_on_the_way_at_zero(name):
    with jax.debug_nans(True):
        jax.value_and_grad(PENALTIES[name][0])(jnp.zeros(SHAPE))


@pytest.mark.parametrize("name", ["hoyer_square", "hoyer_ratio", "l1", "transformed_l1"])
def test_zero_weights_among_others_have_gradient_zero(name):
    w = jnp.asarray(np.where(gaussian(*SHAPE) > 0, gaussian(*SHAPE), 0), jnp.float32)
    gradient = np.asarray(closed(name)(w)[1])
    np.testing.assert_array_equal(gradient[w == 0], 0)
    assert np.all(gradient[w != 0] != 0)


@every_kind
def test_second_derivative_is_symmetric_and_finite_at_zeros(name):
    hessian = jax.jit(jax.hessian(PENALTIES[name][0]))
    assert np.all(np.isfinite(hessian(jnp.zeros(SHAPE))))
    sparse = np.where(gaussian(*SHAPE) > 0, gaussian(*SHAPE), 0)
    sparse[:, 1] = 0
    second = np.asarray(hessian(jnp.asarray(sparse, jnp.float32))).reshape(24, 24)
    np.testing.assert_allclose(second, second.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["inputs", "outputs", "inputs, outputs", "group_lasso"])
def test_zero_groups_change_nothing_and_have_gradient_zero(name):
    w = jnp.asarray(gaussian(*SHAPE), jnp.float32)
    padded = jnp.zeros((2, 5, 4)).at[:, jnp.array([0, 2, 3])].set(w)
    expected, expected_gradient = closed(name)(w)
    value, gradient = closed(name)(padded)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, [0, 2, 3]], expected_gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, [1, 4]], 0)


def test_no_nan_on_the_way_with_a_zero_group():
    w = jnp.asarray(gaussian(*SHAPE), jnp.float32).at[:, 1].set(0)
    with jax.debug_nans(True):
        jax.grad(on_groups("inputs"))(w)
        jax.grad(lambda w: jp.group_lasso(w, "inputs"))(w)


@pytest.mark.parametrize("name", HOYER)
def test_one_nonzero_gives_one(name):
    kinds = 2 if name == "inputs, outputs" else 1
    for value in (3.5, -1e-30, 1e30):
        w = jnp.zeros(SHAPE).at[1, 2, 3].set(value)
        np.testing.assert_allclose(closed(name)(w)[0], kinds, rtol=1e-6)
        np.testing.assert_allclose(closed(name)(w)[1] * abs(value), 0, atol=1e-6)


EQUAL = {"hoyer_square": 24, "hoyer_ratio": 24**0.5, "inputs": 3, "outputs": 4,
         "inputs, outputs": 7, "integers": 3, "all in one group": 1}  # fmt: skip


@pytest.mark.parametrize("name", HOYER)
def test_n_equal_weights_give_n(name):
    value, gradient = closed(name)(jnp.full(SHAPE, -0.3))
    np.testing.assert_allclose(value, EQUAL[name], rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [1, 2])
def test_a_billion_weights_are_counted(fraction):
    size = 10**9  # two gigabytes, and the penalty makes no float32 copy of them
    ones = jnp.arange(size, dtype=jnp.uint32) % fraction == 0
    value = jax.jit(jp.hoyer_square)(ones.astype(jnp.bfloat16) * jnp.bfloat16(0.3))
    np.testing.assert_allclose(value, size / fraction, rtol=1e-6)


def test_empty_leaf_counts_for_nothing():
    empty = {"a": jnp.zeros((0, 3)), "b": jnp.array([[3.0, 4.0]])}
    for name in ("hoyer_square normalized", "groups normalized", "l1"):
        value, gradient = closed(name)(empty)
        np.testing.assert_allclose(value, closed(name)(empty["b"])[0], rtol=1e-6)
        assert gradient["a"].shape == (0, 3)
        assert np.all(np.isfinite(gradient["b"]))


# Trees ------------------------------------------------------------------------------------------


@every_kind
def test_leaves_add_up_and_none_stays_none(name):
    a, b = (jnp.asarray(gaussian(*SHAPE, seed=seed), jnp.float32) for seed in (4, 5))
    tree = {"a": {"kernel": a, "bias": None}, "b": [b, (None,)]}
    value, gradient = closed(name)(tree)
    expected = [closed(name)(leaf) for leaf in (a, b)]
    np.testing.assert_allclose(value, expected[0][0] + expected[1][0], rtol=1e-6)
    assert jax.tree.structure(gradient) == jax.tree.structure(tree)
    np.testing.assert_allclose(gradient["a"]["kernel"], expected[0][1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient["b"][0], expected[1][1], rtol=1e-5, atol=1e-6)


WRONG = {
    "empty": ({}, "a penalty needs arrays, but the tree has no leaves"),
    "only None": ({"w": None}, "no leaves"),
    "integers": ({"a": {"b": jnp.ones((3, 3), jnp.int32)}}, "'a/b' is int32.*None in the place"),
    "booleans": ({"a": [jnp.ones((3, 3), bool)]}, "'a/0' is bool.*None in the place"),
    "Python number": ({"a": 1.0}, "'a' is float"),
}


@every_kind
@pytest.mark.parametrize("case", WRONG)
def test_errors_name_leaf_and_remedy(name, case):
    tree, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message):
        PENALTIES[name][0](tree)


# Narrow storage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, jnp.bfloat16) for name in KINDS), ("hoyer_square", jnp.float16)],
)
def test_narrow_weights_give_the_value_of_the_same_numbers_in_float32(name, dtype):
    w = jnp.asarray(gaussian(*SHAPE), dtype)
    value, gradient = closed(name)(w)
    expected, expected_gradient = closed(name)(w.astype(jnp.float32))
    assert (value.dtype, gradient.dtype) == (jnp.float32, dtype)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    once = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        gradient.astype(jnp.float32),
        expected_gradient,
        rtol=once,
        atol=1e-6,
        err_msg="rounded once",
    )


def test_a_million_float16_weights_do_not_overflow():
    w = jnp.full((1_000, 1_000), 0.5, jnp.float16)
    value, gradient = closed("hoyer_square")(w)
    np.testing.assert_allclose(value, MILLION, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-2)
    np.testing.assert_allclose(on_groups(("inputs", "outputs"))(w), 2_000, rtol=1e-5)
    np.testing.assert_allclose(jp.l1(w), MILLION / 2, rtol=1e-6)
    large = jnp.full((1_000, 1_000), 6e4, jnp.float16)
    np.testing.assert_allclose(jp.hoyer_ratio(large), 1_000, rtol=1e-5)
    np.testing.assert_allclose(on_groups("outputs")(large), 1_000, rtol=1e-5)


def test_leaves_of_different_dtype():
    tree = {"a": jnp.array([[3.0, 4.0]], jnp.bfloat16), "b": jnp.array([[3.0, 4.0]])}
    value, gradient = jax.value_and_grad(jp.hoyer_square)(tree)
    assert float(value) == pytest.approx(2 * 1.96, rel=1e-6)
    assert jax.tree.map(lambda g: g.dtype, gradient) == jax.tree.map(lambda w: w.dtype, tree)
