"""The user's own Linen module at smaller sizes computes what the smaller function computes."""

import dataclasses
import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.networks import fields
from jaxprune.networks.removal import Kept
from tests.networks import nets
from tests.networks.modules import close, every_other, pruned

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


class Widths(nn.Module):
    """Widths in a tuple of its own."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.features:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(2)(x)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a transformer."""

    heads: int
    width: int
    inner: int


class Transformer(nn.Module):
    """Widths in a config, submodules in `setup`, queries, keys and values in one matrix."""

    config: Config

    def setup(self):
        heads, width = self.config.heads, self.config.width
        self.qkv = nn.Dense(3 * heads * width)
        self.out = nn.Dense(4, use_bias=False)
        self.up, self.down = nn.Dense(self.config.inner), nn.Dense(4)

    def __call__(self, x):
        heads, width = self.config.heads, self.config.width
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, heads, width)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        y = jnp.einsum("bhqk,bkhd->bqhd", scores, v)
        x = x + self.out(y.reshape(*x.shape[:2], heads * width))
        return x + self.down(nn.gelu(self.up(x)))


class Twice(nn.Module):
    """A module that is used at two places, and others in a dict."""

    shared: nn.Module
    others: dict

    def __call__(self, x):
        return self.others["out"](self.shared(x) + self.others["in"](x))


def flatten(x):
    return x.reshape(x.shape[0], -1)


def linen_convolutions(width, groups, outputs, last):
    layers = [nn.Conv(width, (3, 3)), nn.BatchNorm(use_running_average=True), nn.relu]
    layers += [nn.Conv(outputs, (3, 3), feature_group_count=groups), nn.BatchNorm(True), nn.relu]
    return nn.Sequential([*layers, nn.Conv(last, (3, 3)), flatten, nn.Dense(2)])


def linen_group_norm(width, groups):
    return nn.Sequential(
        [nn.Conv(width, (3, 3)), nn.GroupNorm(groups), nn.relu, nn.Conv(2, (1, 1))]
    )


def linen_attention(heads, qkv):
    attention = nn.MultiHeadDotProductAttention(heads, qkv_features=qkv, out_features=5)
    return nn.Sequential([attention, nn.Dense(2)])


def shared(width, inner):
    layer = nn.Sequential([nn.Dense(inner), nn.tanh, nn.Dense(width)])
    return Twice(layer, {"in": nn.Sequential([layer]), "out": nn.Dense(2)})


def linen_cells(first, second):
    last = lambda x: x[:, -1]
    return nn.Sequential(
        [nn.RNN(nn.GRUCell(first)), nn.RNN(nn.SimpleCell(second)), last, nn.Dense(2)]
    )


def transformer(heads, width, inner):
    return Transformer(Config(heads, width, inner))


HEADS = lambda family: every_other(family) if family.size == 4 else []
LINEN = [  # the network, its sizes, what is left of them, inputs, which groups leave
    (lambda *widths: Widths(widths), (8, 8, 8), (4, 4, 4), nets.ROWS, every_other),
    (linen_convolutions, (4, 4, 8, 6), (2, 2, 2, 3), nets.IMAGES, every_other),
    (linen_convolutions, (6, 6, 6, 6), (3, 3, 3, 3), nets.IMAGES, every_other),
    (linen_group_norm, (12, 4), (6, 2), nets.IMAGES, HEADS),
    (linen_attention, (4, None), (2, 2), nets.normal(2, 5, 4), HEADS),
    (transformer, (4, 2, 6), (2, 1, 3), nets.normal(2, 5, 4), every_other),
    (shared, (6, 8), (3, 4), nets.ROWS, every_other),
    pytest.param(
        *(linen_cells, (6, 4), (3, 2), nets.normal(2, 5, 3), every_other), marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("net", "old", "new", "inputs", "numbers"), LINEN)
def test_linen_is_as_if_built_with_the_smaller_sizes(net, old, new, inputs, numbers):
    model = net(*old)
    apply, params, inputs = nets.linen(model, inputs)
    small = pruned(apply, params, inputs, numbers)
    smaller = jp.shrink_module(model, small, inputs)
    assert fields.sizes_in(smaller) == fields.sizes_in(net(*new))
    made = jax.eval_shape(smaller.init, jax.random.key(0), inputs)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, small.params)


def test_sequential():
    apply, params, inputs = nets.mlp()
    smaller = jp.shrink_module(apply.__self__, pruned(apply, params, inputs), inputs)
    assert [layer.features for layer in smaller.layers[::2]] == [4, 3, 2]


def test_what_is_shared_stays_shared():
    apply, params, inputs = nets.linen(model := shared(6, 8), nets.ROWS)
    smaller = jp.shrink_module(model, pruned(apply, params, inputs), inputs)
    assert smaller.others["in"].layers[0] is smaller.shared


def test_linen_trains_with_batch_statistics():
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(self.width, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2))))

    model, x = Net(8), nets.IMAGES
    init = functools.partial(model.init, train=False)
    params = nets.shaken(jax.eval_shape(init, jax.random.key(0), x))
    small = pruned(lambda params, x: model.apply(params, x, train=False), params, x)
    smaller = jp.shrink_module(model, small, x, train=False)
    assert smaller.width == 4
    options = dict(train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})
    trained = lambda model: jax.jit(functools.partial(model.apply, **options))
    _, old = trained(model)(jp.apply_mask(params, small.mask), x)
    _, new = trained(smaller)(small.params, x)
    kept = small._replace(indices={"batch_stats": small.indices["batch_stats"]})
    jax.tree.map(close, kept.like(old), new)


def test_parameters_alone():
    """`{"params": ...}` isn't needed around the only collection."""
    model = Widths((8, 6))
    _, variables, x = nets.linen(model, nets.ROWS)
    small = pruned(lambda params, x: model.apply({"params": params}, x), variables["params"], x)
    assert jp.shrink_module(model, small, x).features == (4, 3)


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.data())
def test_finds_any_widths(widths, data):
    """By shapes alone: widths that are equal, or equal what others become."""
    new = [data.draw(st.integers(1, width)) for width in widths]
    shapes = lambda net: {
        name: leaf.shape
        for name, leaf in fields.named(
            jax.eval_shape(net.init, jax.random.key(0), nets.ROWS)
        ).items()
    }
    old, small = (shapes(nn.Sequential([*map(nn.Dense, sizes)])) for sizes in (widths, new))
    keep = lambda old, new: np.arange(old) < new
    kept = {name: Kept(old[name], tuple(map(keep, old[name], small[name]))) for name in old}
    found = fields.with_shapes(
        nn.Sequential([*map(nn.Dense, widths)]), kept, shapes, difference=lambda net: 0.0
    )
    assert [layer.features for layer in found.layers] == new


def test_widths_in_the_code_of_a_module():
    apply, params, inputs = nets.lenet()
    small = pruned(apply, params, inputs)
    with pytest.raises(ValueError) as error:
        jp.shrink_module(apply.__self__, small, inputs)
    text = str(error.value)
    assert "in the fields of Small make leaf 'params/Conv_0/bias' of shape (2,)" in text
    assert "`small.apply`, which computes with these parameters" in text


def test_wrong_arguments():
    apply, params, inputs = nets.mlp()
    small = pruned(apply, params, inputs)
    with pytest.raises(TypeError, match="`small` must be what `shrink` returned, got a dict"):
        jp.shrink_module(apply.__self__, small.params, inputs)
    with pytest.raises(TypeError, match="a module of Flax NNX, Flax Linen or Equinox, got a dict"):
        jp.shrink_module({}, small, inputs)
    with pytest.raises(ValueError, match=r"leaf 'params/layers_0/bias', `module.init` makes .*7"):
        jp.shrink_module(nn.Sequential([nn.Dense(7)]), small, inputs)
    with pytest.raises(ValueError, match=r"differs from `small.apply` by inf"):
        jp.shrink_module(apply.__self__, small, jnp.nan * inputs)
