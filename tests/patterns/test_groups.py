"""Names of groups on the kernels of real Flax layers, and the norms of groups."""

import math
import re

import chex
import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.patterns import groups


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def numpy_norms(x, inside):
    return np.sqrt(np.sum(np.square(np.asarray(x, float)), axis=inside, keepdims=True))


# What a name means: without the group, the input or output has no effect -------------------------

OPTIONS = {"use_bias": False, "kernel_init": nnx.initializers.ones, "rngs": nnx.Rngs(0)}
NAMES = ("inputs", "outputs")
LAYERS = {
    "dense": lambda: nnx.Linear(3, 4, **OPTIONS),
    "convolution of 1 dimension": lambda: nnx.Conv(3, 4, (3,), **OPTIONS),
    "convolution of 2 dimensions": lambda: nnx.Conv(3, 4, (3, 2), **OPTIONS),
    "convolution of 3 dimensions": lambda: nnx.Conv(3, 4, (2, 2, 2), **OPTIONS),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_output_and_an_input_live_by_their_groups(name):
    graphdef, params, rest = nnx.split(LAYERS[name](), nnx.Param, ...)
    (kernel,) = jax.tree.leaves(params)
    spatial = kernel.ndim - 2

    @jax.jit
    def run(kernel, x):
        inputs, outputs = (jp.group_norms({"w": kernel}, name)["w"] for name in NAMES)
        assert [norm.shape[spatial:] for norm in (inputs, outputs)] == [(3, 1), (1, 4)]
        second = lambda norm: jnp.arange(norm.size).reshape(norm.shape) == 1
        pruned = jnp.where(second(inputs) | second(outputs), 0.0, kernel)
        layer = nnx.merge(graphdef, jax.tree.map(lambda _: pruned, params), rest)
        y, back = jax.vjp(layer, x)
        return y, *back(jnp.ones_like(y))

    outputs, effect = run(kernel, jnp.ones((1, *(4,) * spatial, 3)))
    lives = lambda array: np.any(np.asarray(array).reshape(-1, array.shape[-1]) != 0, axis=0)
    assert lives(outputs).tolist() == [True, False, True, True]
    assert lives(effect).tolist() == [True, False, True]


def filled(shapes):
    return jax.tree.map(lambda leaf: gaussian(*leaf.shape), shapes)


def nnx_attention():
    sizes = {"num_heads": 3, "in_features": 6, "qkv_features": 12, "out_features": 5}
    make = lambda: nnx.MultiHeadAttention(**sizes, decode=False, rngs=nnx.Rngs(0))
    model = nnx.eval_shape(lambda: nnx.List([make()]))
    return filled(nnx.state(model, nnx.Param))


def pure_nnx_attention():
    return nnx.to_pure_dict(nnx_attention())


def linen_attention():
    layer = nn.MultiHeadDotProductAttention(num_heads=3, qkv_features=12, out_features=5)
    return filled(jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((2, 4, 6))))


ATTENTION = {"nnx": nnx_attention, "nnx dict": pure_nnx_attention, "linen": linen_attention}
INSIDE = {
    "inputs": {"query": (1, 2), "key": (1, 2), "value": (1, 2), "out": (2,)},
    "heads": {"query": (0, 2), "key": (0, 2), "value": (0, 2), "out": (1, 2)},
    "outputs": {"query": (0,), "key": (0,), "value": (0,), "out": (0, 1)},
}
every_attention = pytest.mark.parametrize("make", ATTENTION.values(), ids=ATTENTION)


def kernels_of(params):
    keep = lambda path, leaf: leaf if "kernel" in jax.tree_util.keystr(path) else None
    return jax.tree_util.tree_map_with_path(keep, params)


@every_attention
@pytest.mark.parametrize("name", INSIDE)
def test_groups_of_attention(make, name):
    kernels = kernels_of(make())
    norms = jp.group_norms(kernels, name)
    assert jax.tree.structure(norms) == jax.tree.structure(kernels)
    leaves = jax.tree_util.tree_leaves_with_path(kernels)
    assert len(leaves) == 4
    for (path, kernel), norm in zip(leaves, jax.tree.leaves(norms), strict=True):
        part = next(part for part in INSIDE[name] if f"'{part}'" in jax.tree_util.keystr(path))
        assert kernel.shape == ((3, 4, 5) if part == "out" else (6, 3, 4))
        np.testing.assert_allclose(norm, numpy_norms(kernel, INSIDE[name][part]), rtol=1e-6)


@every_attention
def test_penalties_resolve_names_as_norms_do(make):
    kernels = kernels_of(make())
    for name in INSIDE:
        norms = jp.group_norms(kernels, name)
        lasso = sum(float(jnp.sum(norm)) for norm in jax.tree.leaves(norms))
        assert float(jp.group_lasso(kernels, name)) == pytest.approx(lasso, rel=1e-6)
        square = float(jp.hoyer_square(norms))
        assert float(jp.group_hoyer_square(kernels, name)) == pytest.approx(square, rel=1e-6)
    by_name = jp.group_hoyer_square(kernels, ("inputs", "heads", "outputs"))
    each = sum(float(jp.group_hoyer_square(kernels, name)) for name in INSIDE)
    assert float(by_name) == pytest.approx(each, rel=1e-6)


def stack_of(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


ON_KERNELS = {
    **{name: lambda tree, name=name: jp.group_norms(tree, name) for name in INSIDE},
    "N:M": lambda tree: jp.nm_mask(tree, 1, 4),
    "N:M of outputs": lambda tree: jp.nm_mask(tree, 1, 4, axis="outputs"),
    "transposable": lambda tree: jp.transposable_nm_mask(tree, 1, 2),
}


@pytest.mark.parametrize("function", ON_KERNELS.values(), ids=ON_KERNELS)
def test_attention_in_one_stack_is_as_layer_by_layer(function):
    """As under `flax.linen.scan` and `nnx.vmap`, whose axes come first."""
    kernels = kernels_of(linen_attention())
    layers = [jax.tree.map(lambda leaf, i=i: jnp.roll(leaf, i), kernels) for i in range(2)]
    expected = stack_of([function(layer) for layer in layers])
    chex.assert_trees_all_close(function(stack_of(layers)), expected)
    chex.assert_trees_all_close(function(stack_of([stack_of(layers)])), stack_of([expected]))


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_a_convolution_may_have_the_name_of_a_part_of_attention(name):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    norms = jp.group_norms({"out": {"kernel": kernel}, "conv": {"kernel": kernel}}, name)
    assert norms["out"]["kernel"].size == kernel.shape[2 if name == "inputs" else 3]
    np.testing.assert_array_equal(norms["out"]["kernel"], norms["conv"]["kernel"])


@pytest.mark.parametrize("name", INSIDE)
def test_blocks_and_penalties_of_attention_in_one_stack(name):
    kernels = kernels_of(linen_attention())
    stack = stack_of([kernels, kernels])
    norms = jp.group_norms(stack, name)
    square = float(jp.hoyer_square(norms))
    assert float(jp.group_hoyer_square(stack, name)) == pytest.approx(square, rel=1e-6)
    mask = jp.prune_to(stack, jp.Blocks(0.5, name))[1]
    floats = lambda tree: jax.tree.map(jnp.float32, tree)
    kept = jax.tree.map(lambda norm: norm > 0, jp.group_norms(floats(mask), name))
    whole = jax.tree.map(lambda keep, leaf: jnp.broadcast_to(keep, leaf.shape), kept, mask)
    chex.assert_trees_all_equal(whole, mask)


@every_attention
def test_heads_need_kernels_of_attention(make):
    """A bias of (heads, size) isn't one."""
    with pytest.raises(ValueError, match=r"bias.* has no heads.*`where`"):
        jp.group_norms(make(), "heads")


def test_a_name_that_only_ends_like_attention_is_an_ordinary_kernel():
    kernel = gaussian(3, 4, 6)
    for path in ("monkey", "readout"):
        norm = jp.group_norms({path: {"kernel": kernel}}, "inputs")[path]["kernel"]
        np.testing.assert_allclose(norm, numpy_norms(kernel, (0, 2)), rtol=1e-6)


def test_a_dense_layer_named_out_is_an_ordinary_kernel():
    norm = jp.group_norms({"out": {"kernel": gaussian(3, 4)}}, "inputs")["out"]["kernel"]
    assert norm.shape == (3, 1)


# Errors -----------------------------------------------------------------------------------------

matrix = {"layer": {"kernel": jnp.ones((3, 4))}}
WRONG = {
    "unknown name": (matrix, "rows", "named inputs, outputs, heads, got 'rows'"),
    "unknown among names": (matrix, ("inputs", "rows"), "got 'rows'"),
    "heads of a Dense kernel": (
        matrix, "heads", r"'layer/kernel' of shape \(3, 4\) has no heads.*`where`.*integers"
    ),
    "heads of a Dense kernel of attention": (
        {"query": matrix["layer"]}, ("heads",), "'query/kernel'.*has no heads"
    ),
    "inputs of a vector": (
        {"bias": jnp.ones(3)}, "inputs", r"'bias' of shape \(3,\) has no inputs.*`where`.*integers"
    ),
    "outputs of a scalar": ({"s": jnp.ones(())}, "outputs", r"'s' of shape \(\) has no outputs"),
    "axis of a vector": ({"bias": jnp.ones(3)}, (1,), r"`axis` \(1,\).*'bias' of shape \(3,\)"),
    "axis too large": (
        matrix, (0, 2), r"`axis` \(0, 2\).*'layer/kernel' of shape \(3, 4\).*where"
    ),
    "axis too small": (matrix, (-3,), r"`axis` \(-3,\) must be .* axes of leaf 'layer/kernel'"),
    "repeated": (matrix, (1, 1), r"`axis` \(1, 1\) must be different axes of leaf 'layer/kernel'"),
    "repeated from the end": (matrix, (1, -1), r"`axis` \(1, -1\) must be different axes"),
}  # fmt: skip
NO_AXES = {
    "empty": (),
    "names, then integers": ("inputs", 0),
    "integers, then names": (0, "inputs"),
    "a fraction": 0.5,
    "fractions": (0.5,),
    "a boolean": True,
    "a set": {0},
}
FUNCTIONS = {
    "group_norms": jp.group_norms,
    "group_hoyer_square": jp.group_hoyer_square,
    "group_lasso": jp.group_lasso,
    "threshold_mask": lambda tree, axis: jp.threshold_mask(
        tree, 0.5, axis=axis, where=lambda path, leaf: True
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_errors_name_leaf_and_remedy(function, case):
    tree, axis, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        function(tree, axis)


@pytest.mark.parametrize("axis", NO_AXES.values(), ids=NO_AXES)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_errors_of_what_is_no_axis(function, axis):
    message = "`axis` must be an integer, a tuple of integers, a name or a tuple of names.*got "
    with pytest.raises(TypeError, match=message + re.escape(repr(axis))):
        function(matrix, axis)


@pytest.mark.parametrize("axis", [1, -1, (1,), [1], np.int64(1), (np.int32(-1),), "inputs"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_axis_is_given_as_numpy_does(function, axis):
    weights = {"w": jnp.array([[3.0, 4.0], [0.1, 0.2]])}
    chex.assert_trees_all_equal(function(weights, axis), function(weights, (1,)))
    other = jax.tree.leaves(function(weights, 0))[0]
    assert not np.array_equal(other, jax.tree.leaves(function(weights, 1))[0])


def test_norms_are_of_one_kind_of_group():
    with pytest.raises(ValueError, match=r"one kind of group.*call once for each"):
        jp.group_norms(matrix, ("inputs", "outputs"))
    assert jp.group_norms(matrix, ("inputs",))["layer"]["kernel"].shape == (3, 1)


@pytest.mark.parametrize("tree", [{}, {"a": None}])
def test_norms_need_leaves(tree):
    with pytest.raises(ValueError, match="a group norm needs arrays, but the tree has no leaves"):
        jp.group_norms(tree, "inputs")


def test_norms_need_floating_point_leaves():
    with pytest.raises(TypeError, match=r"a group norm needs floating-point.*'a' is int8"):
        jp.group_norms({"a": jnp.ones((2, 2), jnp.int8)}, "inputs")


# Norms ------------------------------------------------------------------------------------------

norms_of = jax.jit(lambda w, axis: jp.group_norms(w, axis), static_argnames="axis")
AXES = [(0,), (1,), (-1,), (0, 1), (2, 0), (0, 1, 2), "inputs", "outputs"]
entries = st.floats(-8, 8, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1e-3, -100.0])


@hypothesis.settings(max_examples=80)
@hypothesis.given(st.lists(entries, min_size=24, max_size=24), st.sampled_from(AXES))
def test_norms_equal_numpy(values, axis):
    w = np.asarray(values, np.float32).reshape(2, 3, 4)
    inside = {"inputs": (0, 2), "outputs": (0, 1)}.get(axis, axis)
    norm = norms_of(w, axis)
    assert norm.shape == numpy_norms(w, inside).shape
    assert norm.dtype == jnp.float32
    tiny = 1e-12 * np.abs(w).max()
    np.testing.assert_allclose(norm, numpy_norms(w, inside), rtol=1e-6, atol=tiny)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_norms_of_tiny_and_huge_weights(scale):
    w = gaussian(2, 3, 4) * jnp.float32(scale)
    norm = norms_of(w, "outputs")
    np.testing.assert_allclose(norm, numpy_norms(w, (0, 1)), rtol=1e-6)
    gradient = jax.grad(lambda w: jnp.sum(jp.group_norms(w, "outputs")))(w)
    np.testing.assert_allclose(gradient, w / norm, rtol=1e-5)


def test_norms_of_tiny_beside_huge_groups():
    """Each group is as exact as it would be alone."""
    scales = jnp.float32([1e-30, 1e-10, 1.0, 1e30])
    w = gaussian(2, 3, 4) * scales.reshape(1, 1, 4)
    np.testing.assert_allclose(norms_of(w, "outputs"), numpy_norms(w, (0, 1)), rtol=1e-6)


@pytest.mark.parametrize("way", [groups._squares_by_branch, groups.squares_by_sums])
@pytest.mark.parametrize("outlier", [None, 0.0, 2e-38, 2e-23, 1e19, 3e38])
@pytest.mark.parametrize("scale", [0.0, 1e-31, 1e-20, 1.0, 1e20, 1e37])
def test_either_way_squares_are_right_at_any_scale(way, outlier, scale):
    """On a CPU one of them runs, on an accelerator the other."""
    w = np.array(gaussian(50, 4), np.float32) * np.float32(scale)
    if outlier is not None:
        w[7, 2] = outlier
    inverse, squares = map(np.float64, jax.jit(way, static_argnums=1)(jnp.asarray(w), (0,)))
    norms = np.sqrt(squares) / inverse
    np.testing.assert_allclose(norms, numpy_norms(np.float64(w), (0,)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_norms_of_narrow_weights_are_float32(dtype):
    w = (gaussian(2, 3, 4) * 1e4).astype(dtype)
    norm = norms_of(w, "inputs")
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, numpy_norms(w.astype(jnp.float32), (0, 2)), rtol=1e-6)


def test_norms_broadcast_against_their_leaves():
    tree = {"a": gaussian(3, 4), "b": None, "c": [gaussian(2, 2, 3, 4, seed=1)]}
    norms = jp.group_norms(tree, "outputs")
    assert jax.tree.structure(norms) == jax.tree.structure(tree)
    unit = jax.tree.map(lambda w, n: w / n, tree, norms)
    for leaf in jax.tree.leaves(jp.group_norms(unit, "outputs")):
        np.testing.assert_allclose(leaf, 1, rtol=1e-6)
    assert norms["c"][0].shape == (1, 1, 1, 4)
    assert math.isclose(float(jp.group_lasso(unit, "outputs")), 8, rel_tol=1e-6)


def test_top_k_of_norms_chooses_groups():
    params = {"kernel": jnp.array([[1.0, 5.0, 0.0], [2.0, 0.5, 0.0]])}
    chosen = jp.top_k_mask(jp.group_norms(params, "outputs"), 1)
    assert chosen["kernel"].tolist() == [[False, True, False]]
