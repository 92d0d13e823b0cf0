"""One-shot pruning of whole models, of stacks of layers, and over devices."""

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.networks import admm, moments, reconstruction, sparsegpt, targets
from tests.networks.test_reconstruction import correlated, layer, normal, two_layers

TRANSPOSABLE = jp.NM(2, 4, transposable=True)


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
