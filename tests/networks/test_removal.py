"""A network without its pruned channels computes what the masked one computes."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from experiments.costs.flops import flops
from tests.networks import nets

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def half(channels):
    """Every other group of each family stays."""
    return tuple(jnp.arange(family.size) % 2 == 0 for family in channels.groups)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(a))))


# Groups, parameters, and parameters when half of the groups are gone.
SIZES = {
    "mlp": (14, 116, 47),
    "lenet": (18, 561, 180),
    "vgg": (20, 903, 282),
    "residual": (20, 1101, 339),
    "depthwise": (12, 399, 155),
    "grouped": (9, 491, 111),
    "dense_net": (16, 856, 384),
    "squeeze_excite": (10, 247, 113),
    "group_norm": (5, 201, 69),
    "vit": (30, 999, 351),
    "fused_qkv": (14, 347, 73),
    "split_qkv": (10, 147, 39),
    "decoder": (30, 768, 152),
    "recurrent": (10, 240, 84),
    "nnx_residual": (10, 740, 263),
    "nnx_attention": (30, 640, 172),
    "equinox": (10, 349, 122),
}


@pytest.mark.parametrize("net", nets.NETS, ids=lambda net: net.__name__)
def test_equals_the_masked_network(net):
    apply, params, inputs = net()
    channels = jp.channel_groups(apply, params, inputs)
    keep = half(channels)
    mask = jp.channel_mask(params, channels, keep)
    small = jp.shrink(apply, params, mask, inputs)
    found = sum(family.size for family in channels.groups), size(params), size(small.params)
    assert found == SIZES[net.__name__]
    assert small.difference < 1e-5
    jax.tree.map(np.testing.assert_array_equal, keep, small.keep)
    assert jp.channel_cost(channels, keep, of="parameters") == size(small.params)
    assert jp.channel_cost(channels, keep) == flops(small.apply, small.params, inputs)
    more = jnp.concatenate([inputs, inputs[::-1][:1]])
    masked = jax.jit(apply)(jp.apply_mask(params, mask), more)
    close(masked, jax.jit(small.apply)(small.params, more))


def plain():
    """Two layers and a skip connection."""
    shapes = {"a": (3, 4), "bias": (4,), "b": (4, 4), "c": (4, 2)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def apply(params, x):
        x = jax.nn.relu(x @ params["a"] + params["bias"][None])
        return (x + x @ params["b"]) @ params["c"]

    return apply, params, nets.normal(5, 3)


def mask_of(params, **pruned):
    """Prunes indices of the last axes (of the first axes, with names in capitals)."""
    mask = {name: None for name in params}
    for name, indices in pruned.items():
        leaf = name.lower()
        keep = np.ones(params[leaf].shape, bool)
        np.moveaxis(keep, 0 if name.isupper() else -1, 0)[indices] = False
        mask[leaf] = jnp.asarray(keep) if mask[leaf] is None else mask[leaf] & keep
    return mask


def stacked():
    """Layers in a scan, on a residual stream."""
    shapes = {"in": (3, 6), "w": (4, 6, 8), "b": (4, 1, 8), "v": (4, 8, 6), "out": (6, 2)}
    params = nets.shaken({name: jnp.zeros(shape) for name, shape in shapes.items()})

    def layer(x, params):
        h = jax.nn.relu(x @ params["w"] + params["b"])
        return x + h @ params["v"], h.sum(-1)

    def apply(params, x):
        layers = {name: params[name] for name in "wbv"}
        x, sums = jax.lax.scan(layer, x @ params["in"], layers)
        return x @ params["out"] + sums.sum(0)[:, None]

    return apply, params, nets.normal(5, 3)


def test_layers_in_a_scan():
    apply, params, x = stacked()
    channels = jp.channel_groups(apply, params, x)
    assert [(f.name, f.size) for f in channels.groups] == [("b[:, :, i]", 8), ("v[:, :, i]", 6)]
    assert channels.groups[0].flops == 4 * 2 * 2 * 5 * 6
    small = jp.shrink(apply, params, jp.channel_mask(params, channels, half(channels)), x)
    assert small.params["w"].shape == (4, 3, 4)
    masked = jp.apply_mask(params, small.mask)
    close(apply(masked, x[:2]), small.apply(small.params, x[:2]))
    grads = [
        jax.grad(lambda params, apply=apply: jnp.sum(apply(params, x) ** 2))(params)
        for apply, params in ((apply, masked), (small.apply, small.params))
    ]
    jax.tree.map(close, small.like(grads[0]), grads[1])


def test_derivatives_of_their_own():
    """That of `jax.nn.relu` is 0 at 0, that of the maximum it is made of 1/2."""
    apply, params, x = plain()
    params["bias"] = jnp.zeros(4)
    small = jp.shrink(apply, params, mask_of(params, B=[2, 3], C=[2, 3]), x)
    grad = jax.grad(lambda params: jnp.sum(small.apply(params, jnp.zeros((5, 3)))))(small.params)
    np.testing.assert_array_equal(grad["bias"], 0)


def test_zero_senders_suffice():
    apply, params, x = plain()
    small = jp.shrink(apply, params, mask_of(params, a=[1], bias=[1], b=[1]), x)
    assert small.params["c"].shape == (3, 2)
    assert small.params["b"].shape == (3, 3)
    np.testing.assert_array_equal(small.keep[0], [True, False, True, True])


def test_zero_receivers_suffice():
    apply, params, x = plain()
    small = jp.shrink(apply, params, mask_of(params, B=[2, 3], C=[2, 3]), x)
    assert size(small.params) == 6 + 2 + 4 + 4
    assert small.difference < 1e-6


def test_a_value_of_zero_counts_as_pruned():
    apply, params, x = plain()
    params["bias"] = jnp.zeros(4)
    assert jp.shrink(apply, params, mask_of(params, a=[0], b=[0]), x).params["bias"].shape == (3,)


def test_half_a_group_is_refused_by_name():
    apply, params, x = plain()
    with pytest.raises(ValueError) as error:
        jp.shrink(apply, params, mask_of(params, a=[1], bias=[1]), x)
    text = str(error.value)
    assert "prunes a part of 1 groups" in text
    assert "a[:, i] with i = 1; bias[i] with i = 1; but not b[i, :] with i = 1" in text
    assert "c[i, :] with i = 1" in text and "`dot_general` of float32[5,4]" in text
    assert 'partial="complete"' in text


def test_what_other_groups_take_along_is_not_half_a_group():
    """The first of two copies of a channel is all that the second layer has of it."""
    apply = lambda p, x: (lambda y: y[:, 1:-1] @ p["b"] + y @ p["c"])(jnp.repeat(x @ p["a"], 2, 1))
    params = {"a": nets.normal(3, 3), "b": nets.normal(4, 2), "c": nets.normal(6, 2)}
    mask = mask_of(params, B=[0, 2], C=[1, 3, 5])
    small = jp.shrink(apply, params, mask, nets.normal(5, 3))
    assert {name: leaf.shape for name, leaf in small.params.items()} == {
        "a": (3, 3),
        "b": (2, 2),
        "c": (3, 2),
    }


def test_half_a_group_is_completed():
    apply, params, x = plain()
    mask = mask_of(params, a=[1], bias=[1])
    small = jp.shrink(apply, params, mask, x, partial="complete")
    assert small.params["c"].shape == (3, 2)
    close(apply(jp.apply_mask(params, small.mask), x), small.apply(small.params, x))
    assert jp.count(small.mask) == 9 + 3 + 9 + 6


def test_half_a_group_is_kept():
    apply, params, x = plain()
    mask = mask_of(params, a=[0, 1], bias=[0, 1], b=[0])
    small = jp.shrink(apply, params, mask, x, partial="keep")
    assert small.params["c"].shape == (3, 2)
    np.testing.assert_array_equal(small.keep[0], [False, True, True, True])


def test_a_constant_that_is_sent_is_heard():
    apply = lambda p, x: jax.nn.sigmoid(x @ p["a"]) @ p["b"]
    params = {"a": nets.normal(3, 4), "b": nets.normal(4, 2)}
    mask = mask_of(params, a=[1])
    with pytest.raises(ValueError, match="not b"):
        jp.shrink(apply, params, mask, nets.normal(5, 3))
    mask = mask_of(params, a=[1], B=[1])
    assert jp.shrink(apply, params, mask, nets.normal(5, 3)).params["b"].shape == (3, 2)


def test_what_the_mask_leaves_alone_is_unchanged():
    apply, params, x = plain()
    small = jp.shrink(apply, params, jp.prunable(params), x)
    assert all(keep.all() for keep in small.keep)
    assert small.difference == 0
    jax.tree.map(np.testing.assert_array_equal, small.params, params)


def test_training_goes_on_with_the_state_of_the_optimizer():
    apply, params, x = plain()
    mask = mask_of(params, a=[1], bias=[1], b=[1], B=[1], C=[1])
    y = nets.normal(5, 2, seed=3)
    loss = lambda apply: lambda params: jnp.mean((apply(params, x) - y) ** 2)
    tx = optax.adam(0.1)
    params = jp.apply_mask(params, mask)
    state = tx.init(params)

    @functools.partial(jax.jit, static_argnums=0)
    def step(apply, params, state):
        updates, state = tx.update(jax.grad(loss(apply))(params), state, params)
        return optax.apply_updates(params, updates), state

    _, state = step(apply, params, state)
    small = jp.shrink(apply, params, mask, x)
    small_state = small.like(state)
    assert small_state[0].mu["b"].shape == (3, 3)
    assert small_state[0].count == 1
    assert jp.count(small.like(mask)) == 9 + 3 + 9 + 6
    big, _ = step(apply, params, state)
    new, _ = step(small.apply, small.params, small_state)
    jax.tree.map(close, small.like(jp.apply_mask(big, mask)), new)


def _labels(params):
    return {name: "o" if name == "bias" else "k" for name in params}


@pytest.mark.parametrize(
    "tx",
    [
        optax.partition({"k": optax.adam(0.1), "o": optax.sgd(0.1, 0.9)}, _labels),
        optax.masked(optax.adam(0.1), lambda tree: {name: name != "bias" for name in tree}),
        optax.MultiSteps(optax.adamw(0.1), 2),
        optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.1),
        optax.lbfgs(),
    ],
    ids=["partition", "masked", "multi_steps", "inject_hyperparams", "lbfgs"],
)
def test_any_state_is_that_of_the_smaller_network(tx):
    apply, params, x = plain()
    small = jp.shrink(apply, params, mask_of(params, a=[1], bias=[1], b=[1], B=[1], C=[1]), x)
    of_shapes = lambda state: jax.tree.map(jnp.shape, state)
    assert of_shapes(small.like(tx.init(params))) == of_shapes(tx.init(small.params))


def test_a_state_that_does_not_mirror_what_was_cut():
    apply, params, x = plain()
    small = jp.shrink(apply, params, mask_of(params, a=[1], bias=[1], b=[1], B=[1], C=[1]), x)
    state = optax.adafactor(0.1, min_dim_size_to_factor=2).init(params)
    with pytest.raises(ValueError, match=r"'0/v_row/a' of shape .* begin anew, with `tx.init"):
        small.like(state)


def test_export():
    apply, params, x = plain()
    small = jp.shrink(apply, params, mask_of(params, B=[2, 3], C=[2, 3]), x)
    exported = jax.export.export(jax.jit(small.apply))(small.params, x)
    close(small.apply(small.params, x), exported.call(small.params, x))


def test_integers_and_half_precision():
    apply, params, x = plain()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params) | {"count": jnp.arange(3)}
    mask = mask_of(params, B=[2, 3], C=[2, 3])
    small = jp.shrink(apply, params, mask, x.astype(jnp.bfloat16))
    assert small.params["a"].dtype == jnp.bfloat16
    assert small.params["count"].shape == (3,)


def test_sharded_parameters_stay_sharded():
    apply, params, x = plain()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("m",))
    columns = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "m"))
    params["b"] = jax.device_put(params["b"], columns)
    params["a"] = jax.device_put(params["a"], columns)
    small = jp.shrink(apply, params, mask_of(params, B=[2, 3], C=[2, 3]), x)
    assert small.params["b"].sharding == small.params["a"].sharding == columns
    assert small.params["b"].shape == (2, 2)
    small = jp.shrink(apply, params, mask_of(params, B=[3], C=[3]), x)
    assert small.params["b"].shape == (3, 3)


def test_prints_and_keys():
    def apply(params, x, key):
        hidden = jax.nn.relu(x @ params["a"])
        jax.debug.print("{}", x.sum())
        noise = jax.random.normal(key, (5, 1))
        return (hidden + noise) @ params["b"]

    params, key = {"a": nets.normal(3, 4), "b": nets.normal(4, 2)}, jax.random.key(1)
    small = jp.shrink(apply, params, mask_of(params, B=[1]), nets.normal(5, 3), key)
    assert small.params["a"].shape == (3, 3)


def test_leaves_that_are_no_arrays_of_numbers():
    apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"] * params["scale"]
    params = {
        "a": nets.normal(3, 4),
        "b": nets.normal(4, 2),
        "scale": 0.5,
        "key": jax.random.key(0),
    }
    small = jp.shrink(apply, params, mask_of(params, a=[1]), nets.normal(5, 3))
    assert small.params["scale"] == 0.5
    assert small.params["key"] == params["key"]


def test_other_groups_for_other_shapes():
    def apply(params, x):
        x = x @ params["a"]
        return (x if len(x) > 1 else jax.nn.softmax(x)) @ params["b"]

    params = {"a": nets.normal(3, 4), "b": nets.normal(4, 2)}
    small = jp.shrink(apply, params, mask_of(params, a=[1]), nets.normal(5, 3))
    with pytest.raises(ValueError, match="other groups of channels than for the example inputs"):
        small.apply(small.params, nets.normal(1, 3))


def test_nothing_would_stay():
    apply, params, x = plain()
    with pytest.raises(ValueError, match=r"nothing of a\[:, i\] would stay.*all of its 4"):
        jp.shrink(apply, params, mask_of(params, a=range(4), bias=range(4), b=range(4)), x)


def test_wrong_arguments():
    apply, params, x = plain()
    mask = mask_of(params, B=[2, 3], C=[2, 3])
    with pytest.raises(ValueError, match="`partial` must be one of"):
        jp.shrink(apply, params, mask, x, partial="yes")
    with pytest.raises(TypeError, match="`apply` must be a function"):
        jp.shrink(params, apply, mask, x)
    with pytest.raises(TypeError, match="a mask has boolean leaves"):
        jp.shrink(apply, params, params, x)
    with pytest.raises(ValueError, match="must have the leaf's shape"):
        jp.shrink(apply, params, mask | {"c": jnp.ones((2, 2), bool)}, x)
    small = jp.shrink(apply, params, mask, x)
    with pytest.raises(ValueError, match=r"leaf 'a' of the smaller network has .*\(3, 2\)"):
        small.apply(params, x)


def test_not_finite():
    apply = lambda p, x: x @ p["a"] @ p["b"] / 0
    params = {"a": nets.normal(3, 4), "b": nets.normal(4, 2)}
    with pytest.raises(ValueError, match="finite"):
        jp.shrink(apply, params, mask_of(params, a=[1]), nets.normal(5, 3))
