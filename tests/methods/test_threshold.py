"""threshold_mask: of weights and of groups, on any tree and mesh; then fine-tuning."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp
from tests.methods.penalty_table import (
    assert_nothing_is_gathered,
    every_kind_of_mesh,
    gaussian,
    kernels,
    sharded,
    train,
    weights,
)

NORMAL = st.floats(-3, 3, width=32, allow_subnormal=False)  # the others are zero to XLA on CPUs
matrices = st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5]) | NORMAL, min_size=12, max_size=12).map(
    lambda values: np.reshape(np.asarray(values, np.float32), (3, 4))
)
of_numbers = jax.jit(lambda w, limit: jp.threshold_mask({"w": w}, limit)["w"])
of_columns = jax.jit(lambda w, limit: jp.threshold_mask({"w": w}, limit, axis="outputs")["w"])


@hypothesis.settings(max_examples=80)
@hypothesis.given(
    matrices,
    st.sampled_from([0.0, 0.5, 1e-3, 10.0]) | st.floats(0, 3, width=32, allow_subnormal=False),
)
def test_mask_of_a_number_equals_numpy(w, limit):
    expected = (np.abs(w) >= limit) & (w != 0)
    np.testing.assert_array_equal(of_numbers(w, np.float32(limit)), expected)


@hypothesis.settings(max_examples=50)
@hypothesis.given(matrices, st.floats(0, 5, width=32, allow_subnormal=False))
def test_mask_of_columns_equals_numpy(w, limit):
    norm = np.linalg.norm(w.astype(float), axis=0)
    kept = np.asarray(of_columns(w, np.float32(limit)))
    assert np.all(kept == kept[0])
    clear = (np.abs(norm - limit) > 1e-5) & ((norm == 0) | (norm > 1e-15))
    np.testing.assert_array_equal(kept[0][clear], ((norm >= limit) & (norm != 0))[clear])


def of_leaves(params, choose):
    return jax.tree.map(lambda w: None if w.ndim < 2 else choose(np.asarray(w)), params)


LIMITS = {
    "multiple of the deviation": (lambda w: 0.5 * jnp.std(w), lambda w: 0.5 * np.std(w)),
    "trimming point": (jp.trimming_point, lambda w: np.sum(w * w) / np.sum(np.abs(w))),
    "number": (0.3, lambda w: 0.3),
    "integer": (1, lambda w: 1),
}


@pytest.mark.parametrize(("limit", "expected"), LIMITS.values(), ids=LIMITS)
def test_each_leaf_has_its_own_threshold(limit, expected):
    params = weights() | {"small": 0.01 * gaussian(5, 5, seed=3)}
    mask = jp.threshold_mask(params, limit)
    jitted = jax.jit(lambda params: jp.threshold_mask(params, limit))(params)
    chex.assert_trees_all_equal(mask, of_leaves(params, lambda w: np.abs(w) >= expected(w)))
    chex.assert_trees_all_equal(jitted, mask)


def test_threshold_of_groups_gets_their_norms():
    seen = []

    def limit(norms):
        seen.append((norms.shape, norms.dtype))
        return jnp.mean(norms)

    params = {"kernel": gaussian(3, 3, 5, 7).astype(jnp.bfloat16)}
    mask = jp.threshold_mask(params, limit, axis=("inputs", "outputs"))["kernel"]
    assert seen == [((1, 1, 5, 1), jnp.float32), ((1, 1, 1, 7), jnp.float32)]
    w = np.asarray(params["kernel"], np.float64)
    channels, filters = (np.sqrt((w * w).sum(axis)) for axis in ((0, 1, 3), (0, 1, 2)))
    alive = np.outer(channels >= channels.mean(), filters >= filters.mean())
    assert 0 < alive.sum() < alive.size
    np.testing.assert_array_equal(mask, np.broadcast_to(alive, w.shape))


@pytest.mark.parametrize("axis", [None, "outputs", (0,), ("inputs", "outputs")], ids=str)
def test_zeros_are_pruned_at_threshold_zero(axis):
    params = {"kernel": jnp.array([[0.0, 3.0], [-0.0, 1e-30]])}
    mask = jp.threshold_mask(params, 0.0, axis=axis)["kernel"]
    assert mask.tolist() == [[False, True], [False, True]]


def test_a_tiny_group_is_not_a_zero_group():
    params = {"kernel": jnp.array([[1e-25, 3.0], [2e-25, 4.0]])}
    assert jnp.all(jp.threshold_mask(params, 0.0, axis="outputs")["kernel"])
    chosen = jp.threshold_mask(params, 1e-25, axis="outputs")["kernel"]
    assert jnp.all(chosen)


def test_where_chooses_the_leaves_of_the_mask():
    mask = jp.threshold_mask(weights(), 0.1, where="head")
    assert jax.tree.map(jnp.shape, mask) == {
        "dense": {"kernel": None, "bias": None},
        "head": [(4, 8)],
    }
    with pytest.raises(ValueError, match="no leaf can be pruned"):
        jp.threshold_mask(weights(), 0.1, where="absent")


def test_narrow_weights_are_compared_in_float32():
    """0.1 in bfloat16 is more than 0.1."""
    params = {"kernel": jnp.array([[0.1, 0.0996]], jnp.bfloat16)}
    assert jp.threshold_mask(params, 0.1)["kernel"].tolist() == [[True, False]]
    assert jp.threshold_mask(params, 0.1002)["kernel"].tolist() == [[False, False]]


def test_nan_is_named():
    params = weights()
    params["head"][0] = params["head"][0].at[1, 2].set(jnp.nan)
    for axis in (None, "outputs"):
        with pytest.raises(ValueError, match="leaf 'head/0' holds NaN"):
            jp.threshold_mask(params, 0.1, axis=axis)


def test_mask_with_nnx_state():
    state = nnx.state(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Param)
    mask = jp.threshold_mask(state, jp.trimming_point)
    pruned = jp.apply_mask(state, mask)
    assert float(jp.sparsity(pruned)) == pytest.approx(1 - jp.count(mask) / 64)


def test_fine_tuning_keeps_zeros_at_zero(relaxed):
    """An old momentum would revive what the threshold prunes."""
    adam = relaxed(optax.adam(0.1))
    trained, _ = train(adam, weights())
    mask = jp.threshold_mask(trained, lambda w: 0.8 * jnp.std(w))
    params = jp.apply_mask(trained, mask)
    assert 0 < jp.count(mask) < 64
    tuned, _ = train(optax.chain(relaxed(optax.adam(0.1)), jp.keep_mask(mask)), params, steps=6)
    chex.assert_trees_all_equal(tuned, jp.apply_mask(tuned, mask))
    nonzero = jax.tree.map(lambda w: w != 0, kernels(tuned))
    chex.assert_trees_all_equal(nonzero, mask)
    assert np.all(np.asarray(tuned["dense"]["bias"] != params["dense"]["bias"]))


@every_kind_of_mesh
@pytest.mark.parametrize("axis", ["outputs", ("inputs", "outputs")], ids=str)
def test_threshold_on_a_mesh_equals_one_device(axis, kind):
    params = sharded(weights(), kind)
    choose = jax.jit(lambda params: jp.threshold_mask(params, jp.trimming_point, axis=axis))
    compiled = choose.lower(params).compile()
    mask = compiled(params)
    chex.assert_trees_all_equal(mask, choose(weights()))
    for keep, leaf in zip(jax.tree.leaves(mask), jax.tree.leaves(kernels(params)), strict=True):
        assert keep.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    assert_nothing_is_gathered(compiled)
