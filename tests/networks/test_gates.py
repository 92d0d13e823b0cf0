"""Channel gates: against numpy, in training, and cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

X = jnp.float32(np.random.default_rng(1).normal(size=(64, 5)))


def params():
    draw = np.random.default_rng(0).normal
    matrix = lambda *shape: {"kernel": jnp.float32(draw(size=shape))}
    norm = lambda: {"scale": jnp.float32(1 + draw(size=4) / 10), "bias": jnp.float32(draw(size=4))}
    return {
        "first": {**matrix(5, 4), "norm": norm()},
        "second": {**matrix(4, 4), "norm": norm()},  # its outputs are added to its inputs
        "third": matrix(4, 6),  # no norm
        "last": matrix(6, 2),
    }


def normalised(layer, x):
    mean, var = jnp.mean(x, 0, keepdims=True), jnp.var(x, 0, keepdims=True)
    scale, bias = (layer["norm"][name][None] for name in ("scale", "bias"))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def apply(params, x):
    layer = lambda name, x: normalised(params[name], x @ params[name]["kernel"])
    x = jax.nn.relu(layer("first", x))
    x = jax.nn.relu(x + layer("second", x))
    return jax.nn.relu(x @ params["third"]["kernel"]) @ params["last"]["kernel"]


@functools.cache
def channels():
    return jp.channel_groups(apply, params(), X)


def gates(values):
    """For the family that goes through norms; the other one has None."""
    return tuple(None if own is None else values for own in jp.init_gates(params(), channels()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scales_and_shifts_are_multiplied_and_nothing_else(dtype):
    tree = jax.tree.map(lambda leaf: leaf.astype(dtype), params())
    scores, delta = np.array([0.3, -0.2, 0.0, 2.0]), 7.0
    gate = 1 / (1 + np.exp(-delta * scores))
    found = jp.apply_gates(tree, channels(), gates(jnp.float32(scores)), delta)

    def check(path, leaf, dense):
        name = jax.tree_util.keystr(path)
        factor = gate if "norm" in name else 1.0
        expected = np.asarray(dense, np.float64) * factor
        np.testing.assert_allclose(np.asarray(leaf, np.float64), expected, rtol=8e-3)
        assert leaf.dtype == dtype

    jax.tree_util.tree_map_with_path(check, found, tree)


def test_a_gate_multiplies_what_the_norms_give():
    """Both norms of the stream at once, so its channel is scaled by the gate itself."""
    gate = jax.nn.sigmoid(jnp.array([0.5, -1.0, 3.0, 0.0]))
    scores = gates(jax.scipy.special.logit(gate))
    p, gated = params(), jp.apply_gates(params(), channels(), scores)
    for name in ("first", "second"):
        x = X if name == "first" else X[:, :4]
        dense = normalised(p[name], x @ p[name]["kernel"])
        found = normalised(gated[name], x @ p[name]["kernel"])
        np.testing.assert_allclose(found, dense * gate[None], rtol=1e-4, atol=1e-6)


def test_families_without_a_norm_have_no_gate():
    found = jp.init_gates(params(), channels(), value=0.5)
    sizes = {family.size: own for family, own in zip(channels().groups, found, strict=True)}
    assert sizes[6] is None
    np.testing.assert_array_equal(sizes[4], np.full(4, 0.5, np.float32))
    chosen = jp.init_gates(params(), channels(), where="last")
    assert [own is None for own in chosen] == [own is not None for own in found]


def pressed(tree, gates, sharpness):
    gated = jp.apply_gates(tree, channels(), gates, sharpness)
    error = jnp.mean((apply(gated, X) - apply(tree, X)) ** 2)
    return error + 0.05 * sum(jnp.sum(jax.nn.sigmoid(s)) for s in jax.tree.leaves(gates))


@pytest.mark.usefixtures("relaxed_promotion")
def test_training_shuts_what_the_loss_does_not_need_and_the_rest_shrinks_exactly():
    tree = params()
    useless = tree["third"]["kernel"].at[1].set(0.0)
    tree["third"]["kernel"] = useless
    tree["second"]["kernel"] = tree["second"]["kernel"].at[1].set(0.0)
    steps = 150
    sharpness = optax.exponential_decay(1.0, steps, 1e4)
    tx = optax.adam(optax.exponential_decay(0.2, steps, 1e-4))
    found = jp.init_gates(tree, channels(), value=1.0)
    state = tx.init(found)

    @jax.jit
    def step(found, state, count):
        grads = jax.grad(lambda s: pressed(tree, s, sharpness(count)))(found)
        updates, state = tx.update(grads, state, found)
        return optax.apply_updates(found, updates), state

    for count in range(steps):
        found, state = step(found, state, count)
    assert step._cache_size() == 1
    keep = jax.tree.map(lambda s: jax.nn.sigmoid(1e4 * s) > 0.9, found)
    stays = next(own for own in keep if own is not None)
    assert not stays[1] and jnp.sum(stays) >= 2
    mask = jp.channel_mask(tree, channels(), keep)
    small = jp.shrink(apply, tree, mask, X)
    assert small.params["first"]["kernel"].shape == (5, int(jnp.sum(stays)))
    np.testing.assert_allclose(
        apply(jp.apply_mask(tree, mask), X), small.apply(small.params, X), rtol=1e-4, atol=1e-4
    )


def test_gates_of_traced_values_and_their_gradient():
    scores = jnp.array([0.1, -0.2, 0.3, 0.0])
    tree, of = params(), channels()
    total = lambda s: jnp.sum(jp.apply_gates(tree, of, gates(s), 2.0)["first"]["norm"]["scale"])
    gate = 1 / (1 + np.exp(-2 * np.asarray(scores)))
    expected = 2 * gate * (1 - gate) * tree["first"]["norm"]["scale"]
    np.testing.assert_allclose(jax.jit(jax.grad(total))(scores), expected, rtol=1e-5)


def test_a_network_without_norms_has_no_gates():
    tree = {"a": jnp.ones((5, 3)), "b": jnp.ones((3, 2))}
    of = jp.channel_groups(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], tree, X)
    with pytest.raises(ValueError, match=r"`where`.*a\[:, i\]"):
        jp.init_gates(tree, of)
    assert jp.init_gates(tree, of, where="a")[0].shape == (3,)
