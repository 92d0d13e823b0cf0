"""Constants that pruned channels send move into biases; where they can't, the reason is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.trees import masks
from tests.networks import nets

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def kernels_only(params, channels, outputs_first=False):
    """Prunes every other group, but only in the kernels that write it."""
    outputs = {1: (), 2: (1,), 3: (1, 2), 4: (3,)}  # those of attention are (inputs, heads, widths)
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keeps = {masks.path_name(path): np.ones(leaf.shape, bool) for path, leaf in paths_and_leaves}
    for place in (place for family in channels.groups for place in family.places):
        keep = keeps[place.leaf]
        axes = (0,) if outputs_first else outputs[keep.ndim]
        if "bias" not in place.leaf and place.axis in axes:
            np.moveaxis(keep, place.axis, 0)[place.indices[1::2].ravel()] = False
    return structure.unflatten(map(jnp.asarray, keeps.values()))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(a))))


# Parameters, those that are left, and the leaves that hold constants.
SENT = {
    "mlp": (116, 47, {"layers_2/bias", "layers_4/bias"}),
    "lenet": (561, 290, {"Dense_0/bias", "Dense_1/bias"}),
    "vgg": (903, 516, {"Dense_0/bias"}),
    "residual": (1101, 760, {"Dense_0/bias"}),
    "depthwise": (399, 155, {"Conv_2/bias", "Dense_0/bias"}),
    "grouped": (491, 203, {"Conv_2/bias"}),
    "dense_net": (856, 608, {"Conv_3/bias", "Dense_0/bias"}),
    "squeeze_excite": (247, 113, {"Dense_0/bias", "Dense_1/bias", "Dense_2/bias"}),
    "group_norm": (201, 201, set()),
    "vit": (999, 829, {"Dense_1/bias"}),
    "fused_qkv": (347, 187, {"Dense_1/bias", "Dense_2/bias"}),
    "split_qkv": (147, 147, set()),
    "decoder": (768, 168, set()),
    "recurrent": (240, 240, set()),
    "nnx_residual": (740, 740, set()),
    "nnx_attention": (640, 470, {"down/bias/value"}),
    "equinox": (349, 122, {"layers/4/bias", "layers/6/bias"}),
}
CHEAP = ("mlp", "residual", "equinox")


@pytest.mark.parametrize(
    "net",
    [n if n.__name__ in CHEAP else pytest.param(n, marks=pytest.mark.slow) for n in nets.NETS],
    ids=lambda net: net.__name__,
)
def test_masks_over_kernels_alone(net):
    apply, params, inputs = net()
    channels = jp.channel_groups(apply, params, inputs)
    mask = kernels_only(params, channels, outputs_first=net is nets.equinox)
    small = jp.shrink(apply, params, mask, inputs, partial="keep")
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, small.params)]
    folded = {name.removeprefix("params/") for name in small.folded}
    assert (*sizes, folded) == SENT[net.__name__]
    assert small.difference < 1e-5
    if inputs.dtype != jnp.int32:
        masked = jax.jit(apply)(jp.apply_mask(params, mask), -2 * inputs)
        close(masked, jax.jit(small.apply)(small.params, -2 * inputs))


def half_dead(params, name="a"):
    """Prunes every other output of one kernel."""
    keep = np.ones(params[name].shape, bool)
    keep[..., 1::2] = False
    return jax.tree.map(lambda _: None, params) | {name: jnp.asarray(keep)}


def two_layers(**more):
    shapes = {"a": (3, 4), "b": (4, 2)}
    return {name: nets.normal(*shape) for name, shape in shapes.items()} | {"m": M} | more


M, N = nets.normal(1, 4, seed=1) + 2, jnp.array([[1.0, -2.0]])
X = nets.normal(5, 3, seed=2)
hidden = lambda p, x: jax.nn.relu(x @ p["a"] + p["m"])
plain = lambda p, x: hidden(p, x) @ p["b"] + p["n"]

# What can hold the constant, after x = relu(x @ a + m).
HELD = {
    "a bias": ({"n": N}, lambda p, x: x @ p["b"] + p["n"]),
    "a bias of one axis": ({"n": N[0]}, lambda p, x: x @ p["b"] + p["n"][None]),
    "a bias on the left": ({"n": N}, lambda p, x: p["n"] + (p["b"].T @ x.T).T),
    "a running mean": ({"n": N}, lambda p, x: jnp.tanh(x @ p["b"] - p["n"])),
    "what it is taken from": ({"n": N}, lambda p, x: p["n"] - x @ p["b"]),
    "a shift after a scale": (
        {"n": N, "scale": 2 * N},
        lambda p, x: (x @ p["b"] - jnp.array([[3.0, 4.0]])) / (p["scale"] ** 2 + 1) + p["n"],
    ),
    "a bias after a sum": ({"n": N}, lambda p, x: x @ p["b"] + x @ p["b"] + p["n"]),
    "a bias of heads": (
        {"n": N[:, :, None]},
        lambda p, x: jnp.einsum("bi,ihd->bhd", x, p["b"][:, :, None]) + p["n"],
    ),
    "a bias in half precision": (
        {"n": N.astype(jnp.bfloat16)},
        lambda p, x: x @ p["b"] + p["n"].astype(jnp.float32),
    ),
    "a kernel that is calculated": (
        {"n": N, "gain": N},
        lambda p, x: x @ (p["b"] * jnp.exp(p["gain"])) + p["n"],
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_what_holds_a_constant(name):
    more, after = HELD[name]
    params = two_layers(**more)
    apply = lambda p, x: after(p, hidden(p, x))
    mask = half_dead(params)
    small = jp.shrink(apply, params, mask, X)
    assert small.folded == ("n",)
    assert small.params["b"].shape == (2, 2)
    masked, shrunk = apply(jp.apply_mask(params, mask), -X), small.apply(small.params, -X)
    tolerance = 1e-2 if params["n"].dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(masked, shrunk, rtol=tolerance, atol=tolerance)


def test_the_constant_in_float64():
    params = two_layers(n=N)
    small = jp.shrink(plain, params, half_dead(params), X)
    m, b, n = (np.asarray(params[name], np.float64) for name in "mbn")
    np.testing.assert_allclose(small.params["n"], n + m[:, 1::2] @ b[1::2], rtol=1e-6)
    np.testing.assert_array_equal(small.params["b"], params["b"][::2])


def gated(x, raw):
    return x * jax.nn.sigmoid(raw.sum(1, keepdims=True))


# After x = relu(raw @ a + m), and why the constant can't be folded.
NO_BIAS = "nothing after it holds a bias"
REFUSED = {
    "no bias": (NO_BIAS, N, lambda p, x, raw: x @ p["b"]),
    "too late": (NO_BIAS, N, lambda p, x, raw: jnp.tanh(x @ p["b"]) + p["n"]),
    "used twice": (NO_BIAS, N, lambda p, x, raw: x @ p["b"] + p["n"] + p["n"]),
    "heard before": (
        NO_BIAS,
        N,
        lambda p, x, raw: (lambda y: (y + p["n"]) * jax.nn.sigmoid(y))(x @ p["b"]),
    ),
    "rounded before": (
        NO_BIAS,
        N,
        lambda p, x, raw: (x @ p["b"]).astype(jnp.int32).astype(jnp.float32) + p["n"],
    ),
    "a sum": (NO_BIAS, N, lambda p, x, raw: x.sum(1, keepdims=True) + p["n"]),
    "a gain": (NO_BIAS, N, lambda p, x, raw: gated(x @ p["b"], raw) + p["n"]),
    "a gate": (
        "it isn't the same for all inputs",
        N,
        lambda p, x, raw: gated(x, raw) @ p["b"] + p["n"],
    ),
    "a kernel of inputs": (
        "it is multiplied by what depends on the inputs",
        N,
        lambda p, x, raw: x @ (p["b"] * raw.sum()) + p["n"],
    ),
    "one for all": (
        "the bias after it has no entry for each output",
        N[:, :1],
        lambda p, x, raw: x @ p["b"] + p["n"],
    ),
    "a loop": (
        "it is used in a loop",
        N,
        lambda p, x, raw: jax.lax.map(lambda n: x @ p["b"] + n[None], p["n"]),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_why_a_constant_is_not_folded(name):
    reason, n, after = REFUSED[name]
    params = two_layers(n=n)
    apply = lambda p, x: after(p, hidden(p, x), x)
    with pytest.raises(ValueError, match="a part of 2 groups") as error:
        jp.shrink(apply, params, half_dead(params), X)
    assert f": {reason}. Prune all of it" in str(error.value)


def convolution(stride, padding, size=3):
    def apply(p, x):
        x, kernel = jax.nn.relu(x @ p["a"] + p["m"][None]), jnp.stack([p["b"]] * size)
        numbers = ("NWC", "WIO", "NWC")
        y = jax.lax.conv_general_dilated(x, kernel, (stride,), padding, dimension_numbers=numbers)
        return y + p["n"][None]

    return apply


def test_padding():
    params, rows = two_layers(n=N), nets.normal(2, 6, 3)
    small = jp.shrink(convolution(1, "VALID"), params, half_dead(params), rows)
    assert small.folded == ("n",)
    with pytest.raises(ValueError, match="padding makes it different at the borders"):
        jp.shrink(convolution(1, "SAME"), params, half_dead(params), rows)
    params["m"] = -jnp.abs(params["m"])  # relu makes zero of it
    small = jp.shrink(convolution(1, "SAME"), params, half_dead(params), rows)
    assert small.folded == ()
    assert small.params["b"].shape == (2, 2)


def test_kernels_that_are_inputs():
    """Images that are parameters, under a kernel that depends on the inputs."""

    def apply(p, x):
        kernel = hidden(p, x).T[None]  # (width 1, inputs, outputs)
        images, numbers = p["b"][None], ("NCW", "WIO", "NCW")
        y = jax.lax.conv_general_dilated(images, kernel, (1,), "VALID", dimension_numbers=numbers)
        return y + p["n"][None]

    params = two_layers(n=N)
    with pytest.raises(ValueError, match=r"a part of 2 groups"):
        jp.shrink(apply, params, half_dead(params), X)


def test_padding_for_other_shapes():
    """Windows of two with a stride of two: an odd number of rows is padded."""
    params = two_layers(n=N)
    small = jp.shrink(convolution(2, "SAME", 2), params, half_dead(params), nets.normal(2, 6, 3))
    assert jax.jit(small.apply)(small.params, nets.normal(3, 4, 3)).shape == (3, 2, 2)
    with pytest.raises(ValueError, match="pruned channels send other constants than for"):
        jax.jit(small.apply)(small.params, nets.normal(2, 5, 3))


def test_sums_and_means_over_other_lengths():
    params, rows = two_layers(n=N), lambda length: nets.normal(2, length, 3)

    def shrunk(pool):
        convolved = lambda p, x: jax.nn.relu(x @ p["a"] + p["m"][None])
        apply = lambda p, x: pool(convolved(p, x), 1) @ p["b"] + p["n"]
        return apply, jp.shrink(apply, params, half_dead(params), rows(4))

    apply, mean = shrunk(jnp.mean)
    close(apply(jp.apply_mask(params, mean.mask), rows(7)), mean.apply(mean.params, rows(7)))
    _, total = shrunk(jnp.sum)
    with pytest.raises(ValueError, match="pruned channels send other constants than for"):
        total.apply(total.params, rows(7))


def test_a_bias_that_is_pruned_holds_nothing():
    params = two_layers(n=N)
    mask = half_dead(params) | {"n": jnp.array([[True, False]])}
    with pytest.raises(ValueError, match="the mask prunes the bias after it"):
        jp.shrink(plain, params, mask, X)
    small = jp.shrink(plain, params, mask, X, partial="complete")
    assert small.folded == ()
    assert small.params["b"].shape == (2, 2)
    assert jp.count(small.mask["m"]) == 2


def test_what_cannot_be_folded_does_not_stop_the_rest():
    """One channel is also heard where no bias is."""
    params = two_layers(n=N, c=nets.normal(1, 2))
    apply = lambda p, x: (plain(p, x), jnp.tanh(hidden(p, x)[:, 1:2] @ p["c"]))
    small = jp.shrink(apply, params, half_dead(params), X, partial="keep")
    np.testing.assert_array_equal(small.params["b"], params["b"][:3])
    assert small.folded == ("n",)


def test_training_goes_on():
    params, tx = two_layers(n=N), optax.sgd(0.1, momentum=0.9)
    small = jp.shrink(plain, params, half_dead(params), X)
    state = small.like(tx.init(params))
    grads = jax.jit(jax.grad(lambda p: jnp.sum(small.apply(p, X) ** 2)))(small.params)
    updates, _ = tx.update(grads, state, small.params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, small.params)


def test_sharded_parameters():
    mesh = jax.make_mesh((2,), ("m",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"a": (None, "m"), "m": (None, "m"), "b": ("m", None), "n": (None, "m")}
    lying = {name: jax.sharding.NamedSharding(mesh, jax.P(*spec)) for name, spec in specs.items()}
    params = two_layers(n=N)
    sharded = jax.device_put(params, lying)
    small, expected = (jp.shrink(plain, p, half_dead(p), X) for p in (sharded, params))
    jax.tree.map(close, expected.params, small.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, small.params) == lying


def test_half_precision():
    half = lambda x: x.astype(jnp.bfloat16)
    params = jax.tree.map(half, two_layers(n=N))
    small = jp.shrink(plain, params, half_dead(params), half(X))
    assert small.folded == ("n",)
    assert small.params["n"].dtype == jnp.bfloat16
