"""Norms, masks and costs of groups of channels, against entries counted one by one."""

import functools
import math

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import jaxprune as jp
from experiments.costs import hlo
from experiments.costs.flops import flops
from jaxprune.networks import removal
from jaxprune.trees import masks
from tests.networks import nets

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


@functools.cache
def network(net):
    apply, params, inputs = net()
    return apply, params, inputs, jp.channel_groups(apply, params, inputs)


def named(params):
    return {masks.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}


def entries(params, family, number):
    """Of each leaf, which entries belong to a group."""
    own = {name: np.zeros(leaf.shape, bool) for name, leaf in named(params).items()}
    for place in family.places:
        np.moveaxis(own[place.leaf], place.axis, 0)[place.indices[number]] = True
    return own


def entries_of_all(params, channels):
    for number, family in enumerate(channels.groups):
        for group in range(family.size):
            yield number, group, entries(params, family, group)


def random_numbers(channels, seed=0):
    random = np.random.default_rng(seed)
    return tuple(np.float32(random.uniform(0.1, 1, f.size)) for f in channels.groups)


def shapes(sizes):
    return {name: jnp.zeros(size) for name, size in sizes.items()}


def recurrent():
    """A kernel that has a group by two axes, in a loop, with two more places in one leaf."""

    def apply(params, x):
        step = lambda h, y: (jnp.tanh(h @ params["w"] + y), None)
        h, _ = jax.lax.scan(step, jnp.zeros((2, 4), x.dtype), x @ params["a"])
        return h @ params["b"]

    params = nets.shaken(shapes({"a": (3, 4), "w": (4, 4), "b": (4, 2)}))
    return apply, params, nets.normal(5, 2, 3)


KINDS = [recurrent, nets.lenet, nets.grouped, nets.dense_net, nets.fused_qkv, nets.decoder]


def by_name(*networks):
    return pytest.mark.parametrize("net", networks, ids=lambda net: net.__name__)


# channel_norms ------------------------------------------------------------------------------------


@by_name(recurrent, nets.residual)
def test_norms(net):
    _, params, _, channels = network(net)
    norms = jax.jit(lambda params: jp.channel_norms(params, channels))(params)
    leaves = {name: np.float64(leaf) for name, leaf in named(params).items()}
    for number, group, own in entries_of_all(params, channels):
        square = sum(np.sum(leaves[name][own[name]] ** 2) for name in own)
        assert norms[number][group] == pytest.approx(square**0.5, rel=1e-6)
    assert [x.shape for x in norms] == [(family.size,) for family in channels.groups]


def test_gradient_of_hoyer_square_over_groups():
    """Against finite differences in float64."""
    _, params, _, channels = network(recurrent)
    penalty = lambda params: jp.hoyer_square(jp.channel_norms(params, channels))
    gradient = jax.jit(jax.grad(penalty))(params)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.float64(leaf)), params)
        step = optax.tree.random_like(jax.random.key(1), wide)
        value = jax.jit(lambda t: penalty(jax.tree.map(lambda p, s: p + t * s, wide, step)))
        difference = float(value(1e-5) - value(-1e-5)) / 2e-5
        slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(step)))
    assert slope == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 0.0])
def test_norms_at_extreme_scales(scale):
    _, params, _, channels = network(recurrent)
    scaled = jax.tree.map(lambda leaf: scale * leaf, params)
    expected = [scale * x for x in jp.channel_norms(params, channels)]
    np.testing.assert_allclose(jp.channel_norms(scaled, channels), expected, rtol=1e-6)
    gradient = jax.grad(lambda params: jp.channel_norms(params, channels)[0].sum())(scaled)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert bool(gradient["w"].any()) == (scale > 0)


def test_norms_in_half_precision():
    _, params, _, channels = network(recurrent)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    norms = jp.channel_norms(half, channels)
    assert {x.dtype for x in norms} == {jnp.dtype(jnp.float32)}
    back = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    jax.tree.map(np.testing.assert_array_equal, norms, jp.channel_norms(back, channels))


def test_deep_hoyer_over_groups_is_a_link():
    """Biases are hidden from the penalty; the groups' norms go without them."""
    params = nets.shaken(shapes({"a": (3, 4), "bias": (4,), "b": (4, 2)}))
    apply = lambda p, x: jnp.tanh(x @ p["a"] + p["bias"][None]) @ p["b"]
    channels = jp.channel_groups(apply, params, jnp.ones((1, 3)))
    penalty = lambda params: jp.hoyer_square(jp.channel_norms(params, channels))
    tx = jp.add_penalty(penalty, 2.0)
    updates, _ = jax.jit(tx.update)(optax.tree.zeros_like(params), tx.init(params), params)
    expected = jax.grad(lambda kernels: 2 * penalty(params | {"bias": None} | kernels))
    kernels = {"a": params["a"], "b": params["b"]}
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, updates, expected(kernels) | {"bias": jnp.zeros(4)})


def test_norms_of_nothing():
    _, params, _, channels = network(recurrent)
    with pytest.raises(ValueError, match=r"nothing of a\[:, i\] is among .*'a', 'b', 'w'"):
        jp.channel_norms(dict.fromkeys(params), channels)


# channel_mask -------------------------------------------------------------------------------------


@by_name(*KINDS)
def test_masks(net):
    """Soft masks are products over the groups of an entry, each of them once."""
    _, params, _, channels = network(net)
    numbers = random_numbers(channels)
    expected = {name: np.ones(leaf.shape) for name, leaf in named(params).items()}
    for number, group, own in entries_of_all(params, channels):
        for name in own:
            expected[name][own[name]] *= numbers[number][group]
    soft = jp.channel_mask(params, channels, numbers)
    for name, mask in named(soft).items():
        np.testing.assert_allclose(mask, expected[name], rtol=1e-5)
    ones = jp.channel_mask(params, channels, [np.float32(x > 0.5) for x in numbers])
    hard = jp.channel_mask(params, channels, [x > 0.5 for x in numbers])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y == 1), hard, ones)


@by_name(recurrent, nets.decoder)
def test_masks_of_what_is_traced(net):
    _, params, _, channels = network(net)
    numbers = random_numbers(channels)
    keeps = numbers, tuple(x > 0.5 for x in numbers)
    traced = jax.jit(lambda *keeps: [jp.channel_mask(params, channels, keep) for keep in keeps])
    for mask, keep in zip(traced(*keeps), keeps, strict=True):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
        jax.tree.map(close, mask, jp.channel_mask(params, channels, keep))


def test_mask_of_some_families():
    """None keeps a family; leaves that aren't floating-point have no mask."""
    params = {
        "a": jnp.ones((2, 3)),
        "b": jnp.ones((3, 4)),
        "c": jnp.ones((4, 1)),
        "n": jnp.arange(2),
    }
    apply = lambda p, x: x @ p["a"] @ p["b"] @ p["c"]
    channels = jp.channel_groups(apply, params, jnp.ones((1, 2)))
    mask = jp.channel_mask(params, channels, (np.array([False, True, False]), None))
    np.testing.assert_array_equal(mask["a"], [[False, True, False]] * 2)
    np.testing.assert_array_equal(mask["b"], mask["a"][:1].T.repeat(4, 1))
    assert mask["c"].all()
    assert mask["n"] is None


def test_gradient_of_a_soft_mask():
    _, params, _, channels = network(recurrent)
    total = lambda keep: sum(map(jnp.sum, jax.tree.leaves(jp.channel_mask(params, channels, keep))))
    keep = (jnp.array([0.5, 1.0, 0.0, 0.25]),)
    (gradient,) = jax.grad(total)(keep)
    # Of `a` three entries, of `b` two; of `w` the diagonal once, and others with another group.
    np.testing.assert_allclose(gradient, 5 + 1 + 2 * (1.75 - keep[0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [(AxisType.Auto, (None, "m")), (AxisType.Explicit, ("m", None))],
    ids=["auto, columns", "explicit, rows"],
)
def test_on_a_mesh(kind, spec):
    """Norms and masks are those of one device, and no device sees more than it has of a leaf."""
    params = nets.shaken(shapes({"a": (8, 64), "w": (64, 64), "b": (64, 8)}))
    params["bias"] = jnp.ones(64)
    apply = lambda p, x: jnp.tanh((x @ p["a"] + p["bias"][None]) @ p["w"]) @ p["b"]
    channels = jp.channel_groups(apply, params, jnp.ones((1, 8)))
    mesh = jax.make_mesh((8,), ("m",), axis_types=(kind,))
    sharding = NamedSharding(mesh, jax.P(*spec))
    spread = jax.device_put(
        params, dict.fromkeys(params, sharding) | {"bias": NamedSharding(mesh, jax.P())}
    )

    def norms_and_mask(params):
        norms = jp.channel_norms(params, channels)
        return norms, jp.channel_mask(params, channels, jax.tree.map(lambda x: x > x.mean(), norms))

    function = jax.jit(norms_and_mask)
    norms, mask = function(spread)
    expected_norms, expected_mask = norms_and_mask(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), norms, expected_norms)
    jax.tree.map(np.testing.assert_array_equal, mask, expected_mask)
    assert mask["w"].sharding.is_equivalent_to(sharding, 2)
    eager = jp.channel_mask(spread, channels, jax.tree.map(lambda x: x > x.mean(), norms))
    jax.tree.map(np.testing.assert_array_equal, eager, expected_mask)
    assert eager["w"].sharding.is_equivalent_to(sharding, 2)
    moved = hlo.summary(function.lower(spread).compile()).moved
    assert moved.bytes <= 4 * 2 * 64
    cost = jax.jit(lambda keep: jp.channel_cost(channels, keep))
    assert cost(tuple(x > x.mean() for x in norms)) == cost(
        tuple(x > x.mean() for x in expected_norms)
    )


# channel_cost -------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.sampled_from(KINDS), st.integers(0, 1000))
def test_costs_of_what_is_left(net, seed):
    """Entries and operations of the smaller network, traced anew."""
    apply, params, inputs, channels = network(net)
    keep = tuple(x > 0.6 for x in random_numbers(channels, seed))
    keep = tuple(x | (np.arange(x.size) == x.size - 1) for x in keep)
    small_apply, small = removal.cut(apply, params, jp.channel_mask(params, channels, keep))
    size = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(small))
    assert jp.channel_cost(channels, keep, of="parameters") == size
    assert jp.channel_cost(channels, keep) == flops(small_apply, small, inputs)


def lenet5(widths=(20, 50, 500)):
    """The network of the paper, on images of 28 x 28 without padding."""
    *convolutions, hidden = widths
    layers = []
    for width in convolutions:
        pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
        layers += [nn.Conv(width, (5, 5), padding="VALID"), nn.relu, pool]
    flat = lambda x: x.reshape(len(x), -1)
    model = nn.Sequential([*layers, flat, nn.Dense(hidden), nn.relu, nn.Dense(10)])
    image = jnp.zeros((1, 28, 28, 1))
    return model.apply, jax.eval_shape(model.init, jax.random.key(0), image), image


def test_the_formula_of_lenet5():
    _, _, _, channels = network(lenet5)
    for kept in [(20, 50, 500), (3, 7, 55), (8, 1, 20)]:
        c1, c2, f2 = kept
        macs = 24**2 * 25 * c1 + 8**2 * 25 * c1 * c2 + 4**2 * c2 * f2 + 10 * f2
        keep = [np.arange(f.size) < n for f, n in zip(channels.groups, kept, strict=True)]
        assert jp.channel_cost(channels, keep) == 2 * macs


def test_a_pruned_entry_of_a_flat_axis_alone():
    """A family may hold its groups in any order and leave others the rest of an axis."""
    apply = lambda p, x: jnp.concatenate([x @ p["a"], x @ p["b"], x], -1) @ p["c"]
    params = shapes({"a": (5, 2), "b": (5, 3), "c": (10, 4)})
    channels = jp.channel_groups(apply, params, jnp.ones((7, 5)))
    keep = (np.array([True, False]), np.array([False, True, True]))
    assert jp.channel_cost(channels, keep, of="parameters") == 5 * 1 + 5 * 2 + (1 + 2 + 5) * 4
    assert jp.channel_cost(channels, keep) == 2 * 7 * (5 * 1 + 5 * 2 + 8 * 4)
    probs = (jnp.array([0.5, 0.25]), jnp.zeros(3))
    assert jp.channel_cost(channels, probs) == 2 * 7 * (5 * 0.75 + 5.75 * 4)


def test_gradient_of_a_cost():
    """Also where something is zero, so that a product without it is asked for."""
    _, _, _, channels = network(nets.fused_qkv)
    keep = tuple(jnp.asarray(x).at[0].set(0.0) for x in random_numbers(channels))
    polynomial = channels.costs["flops"]
    row = np.concatenate([np.float64(x) for x in keep])
    unit = np.eye(len(row))
    slopes = [polynomial.total(row + e) - polynomial.total(row) for e in unit]  # linear in each
    gradient = jnp.concatenate(jax.grad(lambda k: jp.channel_cost(channels, k))(keep))
    second = np.array([polynomial.total(row + 2 * e) for e in unit]) - polynomial.total(row)
    linear = np.isclose(second, 2 * np.array(slopes), rtol=1e-9)
    assert linear.sum() >= 4
    np.testing.assert_allclose(gradient[linear], np.array(slopes)[linear], rtol=1e-5)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(12)(nn.LayerNorm()(x))
        return x + nn.Dense(768)(nn.gelu(nn.Dense(3072)(nn.LayerNorm()(x))))


def vit_b16():
    """Three of the twelve layers, for a batch of 256."""

    def function(x):
        x = nn.Conv(768, (16, 16), (16, 16))(x).reshape(len(x), -1, 768)
        for _ in range(3):
            x = Block()(x)
        return nn.Dense(1000)(nn.LayerNorm()(x).mean(1))

    model, images = nets.Small(function), jax.ShapeDtypeStruct((256, 224, 224, 3), jnp.float32)
    return model.apply, jax.eval_shape(model.init, jax.random.key(0), images), images


def test_costs_beyond_float32():
    """Of booleans exact, of numbers to 1e-6; traced booleans are never told too low."""
    _, _, _, channels = network(vit_b16)
    numbers = random_numbers(channels)
    polynomial, cost = channels.costs["flops"], functools.partial(jp.channel_cost, channels)
    exact = polynomial.total(np.concatenate([np.float64(x) for x in numbers]))
    assert exact > 5e11
    assert jax.jit(cost)(numbers) == pytest.approx(exact, rel=1e-6)
    for threshold in (0.3, 0.5, 0.7):
        keep = tuple(x > threshold for x in numbers)
        whole = sum(polynomial.factors.tolist()[i] * _product(polynomial, keep, i)
                    for i in range(len(polynomial.factors)))  # fmt: skip
        assert cost(keep) == whole
        told = np.float32(jax.jit(cost)(keep))
        assert float(np.nextafter(told, np.float32(0))) < whole <= float(told)


def _product(polynomial, keep, product):
    """In Python's integers."""
    stays = [*np.concatenate(keep).tolist(), True]
    count = lambda axis: sum(
        times * all(stays[g] for g in groups)
        for times, groups in zip(
            polynomial.times[axis].tolist(), polynomial.groups[axis].tolist(), strict=True
        )
    )
    return math.prod(map(count, polynomial.axes[product].tolist()))


# What is refused ----------------------------------------------------------------------------------


def test_wrong_trees_of_groups():
    _, params, _, channels = network(recurrent)
    four = jnp.ones(4, bool)
    for function in (functools.partial(jp.channel_mask, params), jp.channel_cost):
        with pytest.raises(ValueError, match=r"each of the 1 families .*, got 2"):
            function(channels, (four, four))
        with pytest.raises(ValueError, match=r"`keep` of a\[:, i\] must have the shape \(4,\)"):
            function(channels, (four[:3],))
        with pytest.raises(TypeError, match=r"must be boolean, or floating-point .* int32"):
            function(channels, (jnp.arange(4),))
        with pytest.raises(TypeError, match="`keep` must be a tuple of arrays, got an array"):
            function(channels, four)
        with pytest.raises(TypeError, match="`channels` must be what `channel_groups` returns"):
            function(channels.groups, (four,))
    with pytest.raises(ValueError, match=r"one of \['flops', 'parameters'\], got 'bytes'"):
        jp.channel_cost(channels, (four,), of="bytes")
    with pytest.raises(ValueError, match="'a' is no floating-point leaf"):
        jp.channel_mask({"w": params["w"]}, channels, (four,))
    with pytest.raises(ValueError, match=r"'a' has the shape \(3, 2\), .* at least 4 .* axis 1"):
        jp.channel_norms(params | {"a": jnp.ones((3, 2))}, channels)
    _, _, _, two = network(nets.mlp)
    with pytest.raises(TypeError, match="boolean for all families, or floating-point for all"):
        jp.channel_cost(two, (jnp.ones(8, bool), jnp.ones(6)))
