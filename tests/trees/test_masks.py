"""Which leaves can be pruned, and what applying, counting and checking a mask gives."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.trees import masks


def chosen(mask):
    """The paths of a mask's boolean leaves, each of which must keep everything."""
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    assert all(leaf.dtype == bool and leaf.all() for _, leaf in leaves)
    return [masks.path_name(path) for path, _ in leaves]


class NnxModel(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 4, rngs=rngs)


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(5)(x))
        return nn.Embed(7, 2)(jnp.argmax(x, axis=-1))


def nnx_state():
    return nnx.state(NnxModel(), nnx.Param)


def linen_params():
    return LinenModel().init(jax.random.key(0), jnp.ones((2, 3)))["params"]


def equinox_model():
    """Unfiltered: the activations are leaves too, as functions."""
    return eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(0))


def lists_and_tuples():
    return [jnp.ones((2, 2)), (None, jnp.ones(3), [jnp.ones((1, 2, 3))]), {"x": None}]


MODELS = {
    "NNX": (nnx_state, ["conv/kernel/value", "head/kernel/value"]),
    "Linen": (linen_params, ["Dense_0/kernel", "Embed_0/embedding"]),
    "Equinox": (equinox_model, ["layers/0/weight", "layers/1/weight", "layers/2/weight"]),
    "lists and tuples": (lists_and_tuples, ["0", "1/2/0"]),
}


@pytest.mark.parametrize("model", MODELS)
def test_prunable_by_default(model):
    make, paths = MODELS[model]
    params = make()
    mask = jp.prunable(params)
    assert chosen(mask) == paths
    applied = jp.apply_mask(params, mask)
    assert jax.tree.structure(applied) == jax.tree.structure(params)
    kept = zip(jax.tree.leaves(applied), jax.tree.leaves(params), strict=True)
    assert all(a is p if callable(p) else (a == p).all() for a, p in kept)


@pytest.mark.parametrize("model", MODELS)
def test_pruning_everything(model):
    params = MODELS[model][0]()
    nothing = jax.tree.map(jnp.zeros_like, jp.prunable(params))
    pruned = jp.apply_mask(params, nothing)
    assert jp.sparsity(pruned) == 1
    assert jp.sparsity(params) < 1
    assert jp.count(nothing) == 0


def test_a_masked_equinox_model_still_runs():
    model = equinox_model()
    mask = jax.tree.map(jnp.zeros_like, jp.prunable(model))
    output = jp.apply_mask(model, mask)(jnp.ones(2))
    np.testing.assert_array_equal(output, model.layers[-1].bias)


def test_a_masked_nnx_model_still_runs():
    graph, params, rest = nnx.split(NnxModel(), nnx.Param, ...)
    pruned = jp.apply_mask(params, jp.top_k_mask(magnitudes(params), 10))
    model = nnx.merge(graph, pruned, rest, copy=True)
    assert model.head(jnp.ones((1, 3))).shape == (1, 4)
    assert sum(int((p != 0).sum()) for p in (model.conv.kernel[...], model.head.kernel[...])) == 10


def magnitudes(params):
    """Scores of the prunable leaves."""
    mask = jp.prunable(params)
    return jax.tree.map(lambda p, m: None if m is None else jnp.abs(p), params, mask)


PARAMS = {
    "encoder": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "head": [jnp.ones((2, 3), jnp.bfloat16), None],
    "steps": jnp.ones((2, 2), jnp.int32),
    "table": jnp.ones((4, 2), jnp.float16),
}

WHERE = {
    "default": (None, ["encoder/kernel", "head/0", "table"]),
    "a regular expression is searched for": ("kern", ["encoder/kernel"]),
    "an anchored expression": ("^(encoder|table)", ["encoder/bias", "encoder/kernel", "table"]),
    "integers are never chosen": ("encoder/bias|steps", ["encoder/bias"]),
    "predicate on the path": (lambda path, leaf: path.endswith("bias"), ["encoder/bias"]),
    "predicate on the leaf": (lambda path, leaf: leaf.dtype == jnp.float16, ["table"]),
    "everything": (lambda path, leaf: True, ["encoder/bias", "encoder/kernel", "head/0", "table"]),
}


@pytest.mark.parametrize("case", WHERE)
def test_where(case):
    where, paths = WHERE[case]
    assert chosen(jp.prunable(PARAMS, where)) == paths


def test_prunable_of_shapes_and_under_jit():
    shapes = jax.eval_shape(lambda: PARAMS)
    for mask in (jax.eval_shape(jp.prunable, shapes), jax.jit(jp.prunable)(PARAMS)):
        assert jax.tree.structure(mask) == jax.tree.structure(jp.prunable(PARAMS))


def test_prunable_lies_like_the_parameters():
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    sharding = jax.NamedSharding(mesh, jax.P("a", "b"))
    assert jp.prunable(jax.device_put(jnp.ones((8, 4)), sharding)).sharding == sharding


@pytest.mark.parametrize(
    ("params", "where", "message"),
    [
        ({"a": {"bias": jnp.ones(3)}}, None, "two or more dimensions.*'a/bias'.*Pass `where`"),
        ({"a": jnp.ones((3, 3))}, "kernel", r"`where`='kernel' chooses.*\['a'\]"),
        ({"a": jnp.ones((3, 3), jnp.int32)}, None, r"floating-point.*\['a'\]"),
        ({}, None, "no leaf can be pruned"),
        ({"a": None}, "a", "no leaf can be pruned"),
    ],
)
def test_nothing_prunable_is_an_error_that_lists_the_paths(params, where, message):
    with pytest.raises(ValueError, match=message):
        jp.prunable(params, where)


DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8, jnp.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_boolean_mask(dtype):
    params = {"w": jnp.array([1, 2, 3, 4]).astype(dtype), "b": jnp.ones(2, dtype)}
    applied = jp.apply_mask(params, {"w": jnp.array([True, False, False, True]), "b": None})
    assert applied["w"].dtype == dtype
    np.testing.assert_array_equal(applied["w"].astype(jnp.float32), [1, 0, 0, 4])
    assert applied["b"] is params["b"]


@pytest.mark.parametrize("soft_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_apply_soft_mask(dtype, soft_dtype):
    """Where implicit promotion is forbidden too."""
    soft = {"w": jnp.array([0.0, 0.5, 1.0], soft_dtype)}
    applied = jp.apply_mask({"w": jnp.array([2.0, -3.0, 4.0], dtype)}, soft)
    assert applied["w"].dtype == dtype
    np.testing.assert_array_equal(applied["w"].astype(jnp.float32), [0, -1.5, 4])


def test_soft_mask_isn_t_rounded_before_the_product():
    """0.3 in float32 times 10 in bfloat16: rounding 0.3 first would give 3.015625."""
    applied = jp.apply_mask([jnp.array([10.0], jnp.bfloat16)], [jnp.array([0.3])])
    assert float(applied[0][0]) == 3.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_pruned_is_exactly_zero(value):
    applied = jp.apply_mask([jnp.array([value, value])], [jnp.array([False, True])])[0]
    assert applied[0] == 0
    np.testing.assert_array_equal(applied[1], value)


def test_gradients():
    weights, soft, keep = jnp.array([3.0, 2.0]), jnp.array([0.5, 0.25]), jnp.array([True, False])
    through = lambda w, m: jp.apply_mask({"w": w}, {"w": m})["w"].sum()
    np.testing.assert_array_equal(jax.grad(through)(weights, keep), [1, 0])
    np.testing.assert_array_equal(jax.grad(through)(weights, soft), soft)
    np.testing.assert_array_equal(jax.grad(through, argnums=1)(weights, soft), weights)


def test_masks_may_be_numpy_arrays():
    applied = jp.apply_mask([jnp.array([1.0, 2.0])], [np.array([True, False])])
    assert applied[0].tolist() == [1, 0]


def test_leaves_hidden_by_optax_stay_hidden():
    params = {"a": jnp.ones((2, 2)), "b": optax.MaskedNode()}
    fitted = masks.fit_mask(params, {"a": jnp.ones((2, 2), bool), "b": jnp.ones(3, bool)})
    assert isinstance(fitted["b"], optax.MaskedNode)


UNFIT = {
    "leaf missing": ({"a": [jnp.ones((2, 3), bool)]}, r"structure of the param.*prunable"),
    "other container": ({"a": (None, None), "b": None}, "structure of the parameters"),
    "leaf too many": ({"a": [None], "b": None, "c": None}, "structure of the parameters"),
    "other shape": ({"a": [jnp.ones((3, 2), bool)], "b": None}, r"'a/0'.*\(2, 3\).*\(3, 2\)"),
    "number": ({"a": [True], "b": None}, r"'a/0' must have the leaf's shape \(2, 3\).*True"),
    "scalar": ({"a": [None], "b": jnp.bool_(True)}, r"'b'.*\(3,\) or be None, got \(\)"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_masks_name_leaf_and_remedy(case):
    params = {"a": [jnp.ones((2, 3))], "b": jnp.ones(3)}
    mask, message = UNFIT[case]
    with pytest.raises(ValueError, match=message):
        jp.apply_mask(params, mask)


COUNTS = {
    "one leaf": ({"w": np.array([True, False, True])}, 2),
    "several, with None": ([np.ones((2, 3), bool), None, {"x": np.zeros(4, bool)}], 6),
    "0-d": ([np.True_.reshape(()), np.False_.reshape(())], 1),
    "empty leaf": ([np.ones((0, 3), bool), np.ones(1, bool)], 1),
    "only empty leaves": ([np.ones((0,), bool)], 0),
    "nothing prunable": ({"bias": None}, 0),
    "many": ([np.ones((1_000, 1_000), bool), np.ones(300_001, bool)], 1_300_001),
}


@pytest.mark.parametrize("case", COUNTS)
def test_count(case):
    mask, expected = COUNTS[case]
    counted = jp.count(jax.tree.map(jnp.asarray, mask))
    assert counted == expected
    assert type(counted) is int


def test_count_of_a_sharded_mask():
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    sharding = jax.NamedSharding(mesh, jax.P("a", "b"))
    keep = jnp.arange(64).reshape(8, 8) % 3 == 0
    assert jp.count([jax.device_put(keep, sharding), keep]) == 44


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_count_of_parameters_names_leaf_and_remedy(dtype):
    with pytest.raises(TypeError, match=f"'a/0' is {jnp.dtype(dtype)}.*`sparsity`"):
        jp.count({"a": [jnp.ones((2, 2), dtype)], "m": jnp.ones(3, bool)})


SPARSITIES = {
    "mask": ({"w": jnp.array([True, False, False, False]), "b": None}, 0.75),
    "mask, all kept": ([jnp.ones(3, bool)], 0.0),
    "mask, none kept": ([jnp.zeros(3, bool)], 1.0),
    "parameters: biases don't count": ({"w": jnp.array([[1.0, 0, 0, 2]]), "b": jnp.zeros(9)}, 0.5),
    "bfloat16 parameters": ([jnp.array([[1.0, 0]], jnp.bfloat16)], 0.5),
    "negative zero is zero": ([jnp.array([[-0.0, 1.0]])], 0.5),
    "NaN isn't zero": ([jnp.array([[jnp.nan, 0.0]])], 0.5),
    "beside a boolean leaf": ({"w": jnp.array([[0.0, 1]]), "flag": jnp.ones(2, bool)}, 0.5),
    "functions among the leaves": ([jax.nn.relu, jnp.array([[0.0, 1.0]])], 0.5),
}


@pytest.mark.parametrize("case", SPARSITIES)
def test_sparsity(case):
    tree, expected = SPARSITIES[case]
    measured = jp.sparsity(tree)
    assert measured == expected
    assert measured.dtype == jnp.float32


def test_sparsity_inside_jit():
    assert jax.jit(jp.sparsity)({"w": jnp.array([[0.0, 1.0]]), "b": None}) == 0.5


def test_sparsity_of_nothing_prunable_is_an_error():
    for tree in ({}, {"bias": None}, {"bias": jnp.ones(3)}):
        with pytest.raises(ValueError, match="no leaf can be pruned"):
            jp.sparsity(tree)
