"""One-shot pruning against the papers' algorithms in NumPy and float64, and on whole models."""

import equinox as eqx
import flax.linen
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.networks import admm, moments, reconstruction, sparsegpt, targets
from tests.networks.test_reconstruction import correlated, layer, linear, normal, two_layers

TRANSPOSABLE = jp.NM(2, 4, transposable=True)
METHODS = ("magnitude", "wanda", "sparsegpt", "admm")


def product(params, x):
    return x @ params["kernel"]


def kernel_alone(inputs, outputs, seed=0):
    return {"kernel": normal(inputs, outputs, seed=seed)}


def error(new, params, x, apply=product):
    return float(jnp.sum((apply(new, x) - apply(params, x)) ** 2))


def largest(scores, kept):
    """A mask of so many of the largest scores of each column."""
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, np.argsort(-scores, axis=0)[:kept], True, axis=0)
    return mask


def by_sparsegpt(x, kernel, sparsity, damping=0.01, block=128):
    """Algorithm 1 of the paper, weights (outputs, inputs), with explicit inverses.

    Each input's row of the inverse comes from the inverse of what is left of the Hessian.
    """
    x, weights = np.asarray(x, np.float64), np.asarray(kernel, np.float64).T.copy()
    hessian = x.T @ x
    hessian += damping * np.mean(np.diagonal(hessian)) * np.eye(len(hessian))
    inputs = weights.shape[1]
    inverses = [np.linalg.inv(hessian[i:, i:]) for i in range(inputs)]
    mask = np.ones(weights.shape, bool)
    n, m = map(int, sparsity.split(":")) if isinstance(sparsity, str) else (0, min(block, inputs))
    for i in range(inputs):
        if i % m == 0:
            cost = [weights[:, j] ** 2 / inverses[j][0, 0] for j in range(i, min(i + m, inputs))]
            cost = np.stack(cost, 1)
            if isinstance(sparsity, str):
                kept = largest(cost.T, n).T
            else:
                size = weights.shape[0] * np.array([i, i + cost.shape[1]])
                number = np.diff(size - [round(sparsity * int(each)) for each in size])[0]
                kept = np.zeros(cost.size, bool)
                kept[np.argsort(-cost.ravel())[:number]] = True
            mask[:, i : i + cost.shape[1]] = kept.reshape(cost.shape)
        wrong = np.where(mask[:, i], 0, weights[:, i] / inverses[i][0, 0])
        weights[:, i:] -= np.outer(wrong, inverses[i][0])
    return np.where(mask, weights, 0).T, mask.T


@pytest.mark.parametrize(
    "sparsity, inputs",
    [
        ("1:3", 25),
        *(pytest.param(each, 150, marks=pytest.mark.slow) for each in (0.6, "2:4")),
    ],
)
def test_sparsegpt_is_the_papers_algorithm(sparsity, inputs):
    params, x = kernel_alone(inputs, 10), correlated(400, inputs) / inputs**0.5
    new, mask = jp.prune_layers(product, params, sparsity, [x[:150], x[150:]])
    kernel, keep = by_sparsegpt(x, params["kernel"], sparsity)
    np.testing.assert_array_equal(mask["kernel"], keep)
    np.testing.assert_allclose(new["kernel"], kernel, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("scope", [None, "layer"])
def test_wanda_is_the_papers_algorithm(scope):
    params, x = layer(12, 6), correlated(100, 12)
    new, mask = jp.prune_layers(linear, params, 0.5, [x], method="wanda", scope=scope)
    scores = np.abs(params["kernel"]) * np.linalg.norm(x, axis=0)[:, None]
    keep = scores > np.median(scores) if scope else largest(scores, 6)
    np.testing.assert_array_equal(mask["kernel"], keep)
    np.testing.assert_array_equal(new["kernel"], np.where(keep, params["kernel"], 0))
    np.testing.assert_array_equal(new["bias"], params["bias"])


@pytest.mark.parametrize("transposable", [False, True])
def test_magnitude_is_the_mask_of_magnitudes(transposable):
    params, x = layer(12, 8), correlated(100, 12)
    pattern = jp.NM(2, 4, transposable=transposable)
    new, mask = jp.prune_layers(linear, params, pattern, [x], method="magnitude")
    best = jp.transposable_nm_mask if transposable else jp.nm_mask
    np.testing.assert_array_equal(mask["kernel"], best(abs(params["kernel"]), 2, 4))
    np.testing.assert_array_equal(new["kernel"], jp.apply_mask(params, mask)["kernel"])
    assert mask["bias"] is None


@pytest.mark.parametrize("sparsity", [0.6, "2:4", TRANSPOSABLE])
def test_each_method_is_better_than_the_one_before(sparsity):
    """ADMM's masks leave less error than SparseGPT's, whose weights are fitted as well."""
    params, x = kernel_alone(64, 32), correlated(500, 64)
    found = {}
    for method in METHODS:
        new, mask = jp.prune_layers(product, params, sparsity, [x], method=method)
        found[method] = error(new, params, x)
        found[method, "fitted"] = error(jp.reconstruct(product, params, mask, [x]), params, x)
    assert found["admm", "fitted"] < 0.8 * found["sparsegpt", "fitted"]
    assert found["sparsegpt", "fitted"] < found["sparsegpt"] < found["wanda"]
    assert found["admm"] == pytest.approx(found["admm", "fitted"], rel=1e-3)
    assert found["admm"] < found["magnitude", "fitted"] < found["magnitude"]


def test_a_bias_takes_up_the_means():
    """With one, the inputs' means cost nothing, and each output keeps its own."""
    params, x = layer(32, 8), correlated(300, 32) + 5.0
    for method in ("sparsegpt", "admm"):
        new, _ = jp.prune_layers(linear, params, 0.5, [x], method=method)
        off = linear(new, x) - linear(params, x)
        np.testing.assert_allclose(off.mean(0), 0, atol=1e-3)
        centred, _ = jp.prune_layers(product, params, 0.5, [x - x.mean(0)[None]], method=method,
                                     where="kernel")  # fmt: skip
        np.testing.assert_allclose(new["kernel"], centred["kernel"], rtol=1e-2, atol=1e-3)


patterns = st.sampled_from([(1, 2), (2, 4), (3, 4), (4, 8), (1, 3), (0, 4), (4, 4)])


@hypothesis.settings(max_examples=3)
@hypothesis.given(
    method=st.sampled_from(METHODS),
    pattern=patterns,
    transposable=st.booleans(),
    sizes=st.sampled_from([(8, 8), (7, 5), (12, 3)]),
    seed=st.integers(0, 9),
)
def test_patterns_hold_in_every_group(method, pattern, transposable, sizes, seed):
    """Of what is left over where a side doesn't divide, at most n stay."""
    (n, m), params, x = pattern, kernel_alone(*sizes, seed=seed), correlated(40, sizes[0])
    target = jp.NM(n, m, transposable=transposable)
    new, mask = jp.prune_layers(product, params, target, [x], method=method)
    keep = np.asarray(mask["kernel"])
    for side in (keep, keep.T)[: 1 + transposable]:
        groups = [side[i : i + m].sum(0) for i in range(0, len(side), m)]
        whole = [group for i, group in enumerate(groups) if (i + 1) * m <= len(side)]
        assert np.max(groups) <= n
        if not transposable:
            assert all((group == n).all() for group in whole)
            assert all((group == min(n, len(side) % m)).all() for group in groups[len(whole) :])
    if transposable:
        whole = keep[: sizes[0] // m * m, : sizes[1] // m * m]
        assert whole.sum() == whole.size * n // m
    np.testing.assert_array_equal(np.asarray(new["kernel"])[~keep], 0)


@hypothesis.settings(max_examples=4)
@hypothesis.given(
    method=st.sampled_from(METHODS),
    sparsity=st.sampled_from([0, 0.1, 0.37, 0.5, 0.93, 1]),
    scope=st.sampled_from([None, "layer", "outputs"]),
    sizes=st.sampled_from([(8, 8), (7, 5), (140, 3)]),
    always_zero=st.booleans(),
)
def test_counts_are_exact(method, sparsity, scope, sizes, always_zero):
    params, x = kernel_alone(*sizes), correlated(60, sizes[0])
    x = x.at[:, ::2].set(0) if always_zero else x
    new, mask = jp.prune_layers(product, params, sparsity, [x], method=method, scope=scope)
    keep = np.asarray(mask["kernel"])
    if scope == "outputs" or (method == "wanda" and scope is None):
        assert (keep.sum(0) == sizes[0] - round(sparsity * sizes[0])).all()
    assert keep.sum() == pytest.approx(keep.size - round(sparsity * keep.size), abs=sizes[1])
    if scope == "layer" or (method != "wanda" and scope is None):
        assert keep.sum() == keep.size - round(sparsity * keep.size)
    np.testing.assert_array_equal(np.asarray(new["kernel"])[~keep], 0)
    assert np.isfinite(new["kernel"]).all()


@hypothesis.settings(max_examples=3)
@hypothesis.given(
    method=st.sampled_from(["closed_form", "sparsegpt", "admm"]), seed=st.integers(0, 99)
)
def test_what_is_fitted_is_no_worse_than_plain_masking(method, seed):
    params, x = kernel_alone(16, 8, seed=seed), correlated(64, 16, seed=seed)
    if method == "closed_form":
        mask = {"kernel": jp.top_k_mask(abs(params["kernel"]), 64)}
        new = jp.reconstruct(product, params, mask, [x], damping=1e-4)
    else:
        new, mask = jp.prune_layers(product, params, 0.5, [x], method=method, damping=1e-4)
    assert error(new, params, x) <= 1.01 * error(jp.apply_mask(params, mask), params, x)


@pytest.mark.parametrize("method", ["sparsegpt", "admm"])
def test_inputs_that_are_always_zero_are_pruned_first(method):
    params, x = kernel_alone(16, 8), correlated(200, 16).at[:, :4].set(0)
    new, mask = jp.prune_layers(product, params, 0.25, [x], method=method)
    np.testing.assert_array_equal(mask["kernel"], jnp.arange(16)[:, None].repeat(8, 1) >= 4)
    np.testing.assert_allclose(new["kernel"][4:], params["kernel"][4:], rtol=1e-3, atol=1e-3)


def test_in_sequence_a_layer_aims_at_the_dense_output():
    """The second layer makes up for the first, and so it is better than on its own."""
    params = {"first": layer(12, 16), "second": layer(16, 5)}
    x = correlated(300, 12)
    errors = [
        error(jp.prune_layers(two_layers, params, 0.5, [x], sequential=sequential)[0],
              params, x, two_layers)
        for sequential in (False, True)
    ]  # fmt: skip
    assert errors[1] < 0.9 * errors[0]


def test_a_tree_of_sparsities():
    params = {"first": layer(12, 16), "second": layer(16, 8), "third": layer(8, 4)}
    none = {"kernel": None, "bias": None}
    wanted = {"first": {**none, "kernel": 0.75}, "second": {**none, "kernel": "1:4"}, "third": none}
    apply = lambda p, x: linear(p["third"], two_layers(p, x))
    new, mask = jp.prune_layers(apply, params, wanted, [correlated(50, 12)])
    assert jp.count(mask["first"]) == 48
    assert jp.count(mask["second"]["kernel"][:8]) == jp.count(mask["second"]["kernel"][8:]) == 16
    assert mask["third"] == none
    np.testing.assert_array_equal(new["third"]["kernel"], params["third"]["kernel"])


class Net(nnx.Module):
    def __init__(self, dtype):
        options = {"rngs": nnx.Rngs(0), "param_dtype": dtype, "dtype": dtype}
        self.conv = nnx.Conv(8, 8, (3, 3), **options)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, **options)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.attention(x.reshape(len(x), -1, 8)).mean(1)


def nnx_net(dtype=jnp.float32):
    graph, params, rest = nnx.split(Net(dtype), nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest, copy=True)(x), params


def linen_net():
    model = flax.linen.Sequential(
        [flax.linen.Conv(8, (3, 3)), flax.linen.relu, flax.linen.Dense(8)]
    )
    params = model.init(jax.random.key(0), normal(1, 4, 4, 8))
    return model.apply, params


def equinox_net():
    """Its weights are (outputs, inputs, ...), its images (channels, height, width)."""
    keys = jax.random.split(jax.random.key(0))
    layers = (
        eqx.nn.Conv2d(8, 8, 3, key=keys[0]),
        jax.nn.relu,
        lambda x: x.mean((1, 2)),
        eqx.nn.Linear(8, 4, key=keys[1]),
    )
    model = eqx.nn.Sequential([each if isinstance(each, eqx.Module) else eqx.nn.Lambda(each)
                               for each in layers])  # fmt: skip
    params, static = eqx.partition(model, eqx.is_inexact_array)
    call = lambda params, x: jax.vmap(eqx.combine(params, static))(jnp.moveaxis(x, -1, 1))
    return call, params


NETS = {
    "NNX": (nnx_net, "inputs"),
    "Linen": (linen_net, "inputs"),
    "Equinox": (equinox_net, 1),
}


@pytest.mark.parametrize("name", NETS)
def test_patterns_run_along_what_is_summed_over(name, relaxed_promotion):
    """Whatever the layout of the leaves; and of convolutions along the channels."""
    (make, axis), x = NETS[name], normal(2, 4, 4, 8)
    apply, params = make()
    new, mask = jp.prune_layers(apply, params, "2:4", [x], method="magnitude", sequential=False)
    scores = jax.tree.map(lambda w, keep: None if keep is None else abs(w), params, mask)
    best = jp.nm_mask(scores, 2, 4, axis=axis)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, mask, best))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, new, jp.apply_mask(params, mask)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_whole_model(dtype, relaxed_promotion):
    apply, params = nnx_net(dtype)
    x = (normal(20, 4, 4, 2) @ normal(2, 8)).astype(dtype)
    new, mask = jp.prune_layers(apply, params, TRANSPOSABLE, [x], where="conv/kernel")
    off = lambda new: float(jnp.mean((apply(new, x) - apply(params, x)).astype(jnp.float32) ** 2))
    assert off(new) < 0.7 * off(jp.apply_mask(params, mask))
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(dtype)}
    kernel = mask["conv"]["kernel"][...]
    groups = kernel.reshape(9, 2, 4, 2, 4)
    assert (groups.sum(2) == 2).all()
    assert (groups.sum(4) == 2).all()


def block(params, x):
    return x + jnp.tanh(x @ params["kernel"] + params["bias"][None, None])


def of_stack(params, x):
    """A stack of layers by `jax.lax.scan`; an embedding's table before it is tied to the head."""
    x, _ = jax.lax.scan(lambda x, own: (block(own, x), None), params["embed"][x], params["layers"])
    return x @ params["embed"].T


def as_list(params, x):
    x = params["embed"][x]
    for own in params["layers"]:
        x = block(own, x)
    return x @ params["embed"].T


@pytest.mark.parametrize("method", ["sparsegpt", "closed_form"])
def test_a_stack_is_pruned_like_its_layers(method):
    params = {
        "embed": normal(11, 8, seed=5),
        "layers": {"kernel": normal(3, 8, 8), "bias": normal(3, 8, seed=1)},
    }
    unstacked = {
        "embed": params["embed"],
        "layers": [jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(3)],
    }
    x = jax.random.randint(jax.random.key(2), (6, 20), 0, 11)

    def pruned(apply, params):
        if method == "sparsegpt":
            return jp.prune_layers(apply, params, "2:4", [x], where="kernel")[0]
        chosen = jax.tree.map(
            lambda w, keep: None if keep is None else abs(w), params, jp.prunable(params, "kernel")
        )
        return jp.reconstruct(apply, params, jp.nm_mask(chosen, 2, 4), [x])

    new, expected = pruned(of_stack, params), pruned(as_list, unstacked)
    for i, own in enumerate(expected["layers"]):
        for name in own:
            np.testing.assert_allclose(new["layers"][name][i], own[name], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(new["embed"], params["embed"])


def test_an_embedding_that_is_only_looked_up_is_refused():
    params = {"embed": normal(11, 8), "kernel": normal(8, 4)}
    apply = lambda params, x: params["embed"][x] @ params["kernel"]
    with pytest.raises(ValueError, match=r"is seen of leaves \['embed'\].*`where`"):
        jp.prune_layers(apply, params, 0.5, [jnp.arange(11)])
    _, mask = jp.prune_layers(apply, params, 0.5, [jnp.arange(11)], where="kernel")
    assert mask["embed"] is None


@pytest.mark.parametrize(
    "method, sparsity",
    [
        ("wanda", 0.5),
        ("sparsegpt", 0.5),
        pytest.param("admm", TRANSPOSABLE, marks=pytest.mark.slow),
    ],
)
def test_outputs_over_devices(method, sparsity):
    """The same masks as on one device, and results that lie like the parameters."""
    params = {"first": layer(12, 16), "second": layer(16, 8)}
    x = correlated(64, 12)
    options = {"method": method}
    one = jp.prune_layers(two_layers, params, sparsity, [x], **options)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    over = lambda spec: jax.NamedSharding(mesh, spec)
    specs = {"kernel": jax.P(None, "x"), "bias": jax.P("x")}
    spread = jax.device_put(params, {name: jax.tree.map(over, specs) for name in params})
    rows = jax.device_put(x, over(jax.P("x")))
    many = jp.prune_layers(two_layers, spread, sparsity, [rows], **options)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, one[1], jax.device_get(many[1])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
                 one[0], jax.device_get(many[0]))  # fmt: skip
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim),
                                     many[0], spread))  # fmt: skip


def test_what_lies_over_devices_is_not_gathered():
    """Kernels stay where their outputs are; only counts of a global choice cross devices."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def array(*shape, spec=(), dtype=jnp.float32):
        sharding = jax.NamedSharding(mesh, jax.P(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    square, row = array(32, 32), array(32)
    kernel = array(32, 64, spec=(None, "x"))
    keep = array(32, 64, spec=(None, "x"), dtype=bool)
    seen = moments.Moments(array(), row, row, square, square)
    alive = array(32, dtype=bool)
    half, pattern = targets.Fraction(0.5, "layer"), targets.Pattern(2, 4, True)
    programs = [
        sparsegpt.sparsegpt.lower(square, kernel, alive, target=half, channels=32),
        admm.admm_mask.lower(square, kernel, alive, target=pattern, channels=32),
        reconstruction._solve.lower(seen, kernel, keep, 0.01, 16),
    ]
    for program in programs:
        assert "all-gather" not in program.compile().as_text()
