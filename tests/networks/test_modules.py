"""The user's own module at smaller sizes computes what the smaller function computes."""

import dataclasses
import functools

import equinox as eqx
import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.networks import fields
from jaxprune.networks.removal import Kept
from tests.networks import nets

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

TRAINED = (nnx.Param, nnx.BatchStat)


def every_other(family):
    return list(range(family.size)[1::2])


def pruned(apply, params, inputs, numbers=every_other):
    """The network without the groups whose numbers a function chooses from each family."""
    channels = jp.channel_groups(apply, params, inputs)
    removed = ([*numbers(family)] for family in channels.groups)
    keep = tuple(
        ~np.isin(np.arange(family.size), numbers)
        for family, numbers in zip(channels.groups, removed, strict=True)
    )
    return jp.shrink(apply, params, jp.channel_mask(params, channels, keep), inputs)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(a))))


def filled(leaf):
    """Values in the place of a shape: zeros of integers, a key of keys."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(leaf.shape, leaf.dtype)


def abstract(net, *sizes):
    """A network of shapes, which costs no initialisation."""
    return nnx.eval_shape(lambda: net(*sizes))


def of_shapes(model):
    """The module with values that are nowhere zero, and `(apply, params)`."""
    graph, params, rest = nnx.split(model, TRAINED, ...)
    params, rest = nets.shaken(params), jax.tree.map(filled, rest)
    apply = lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)
    return nnx.merge(graph, params, rest, copy=True), (apply, params)


def shrunk_nnx(model, inputs, numbers=every_other):
    """The module and its smaller network."""
    model, (apply, params) = of_shapes(model)
    return model, pruned(apply, params, inputs, numbers)


class Layers(nnx.Module):
    """Layers, and a function of them and the input."""

    def __init__(self, layers, call):
        self.layers = nnx.List(layers)
        self.call = call

    def __call__(self, x):
        return self.call(self.layers, x)


def in_turn(layers, x):
    for layer in layers:
        x = nnx.relu(layer(x))
    return x


def two_steps(layers, x):
    for cell in layers:
        carry, _ = cell(cell.initialize_carry(x.shape, rngs=nnx.Rngs(0)), x)
        _, x = cell(carry, x)
    return x


def looked_up(layers, words):
    embed, *others = layers
    return in_turn(others, embed(words))


def convolutions(width, groups, outputs, last):
    """Grouped, and transposed."""
    rngs = nnx.Rngs(0)
    return Layers(
        [
            nnx.Conv(3, width, (3, 3), rngs=rngs),
            nnx.Conv(width, outputs, (3, 3), feature_group_count=groups, rngs=rngs),
            nnx.BatchNorm(outputs, use_running_average=True, rngs=rngs),
            nnx.ConvTranspose(outputs, last, (3, 3), transpose_kernel=True, rngs=rngs),
            nnx.ConvTranspose(last, 2, (3, 3), rngs=rngs),
        ],
        in_turn,
    )


def group_norm(width, groups):
    rngs = nnx.Rngs(0)
    layers = [
        nnx.Conv(3, width, (3, 3), rngs=rngs),
        nnx.GroupNorm(width, groups, rngs=rngs),
        nnx.Conv(width, 2, (1, 1), rngs=rngs),
    ]
    return Layers(layers, in_turn)


def batch_norm(width):
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)
    return Layers([nnx.Linear(3, width, rngs=rngs), norm, nnx.Linear(width, 2, rngs=rngs)], in_turn)


def general(heads, width, inner):
    rngs = nnx.Rngs(0)
    layers = [
        nnx.LinearGeneral(5, (heads, width), rngs=rngs),
        nnx.LinearGeneral((heads, width), inner, axis=(-2, -1), rngs=rngs),
        nnx.Einsum("bi,io->bo", (inner, 3), (3,), rngs=rngs),
    ]
    return Layers(layers, in_turn)


def normalised(width, inner):
    rngs = nnx.Rngs(0)
    layers = [
        nnx.Embed(9, width, rngs=rngs),
        nnx.LayerNorm(width, rngs=rngs),
        nnx.Linear(width, inner, rngs=rngs),
        nnx.RMSNorm(inner, rngs=rngs),
        nnx.Linear(inner, 2, rngs=rngs),
    ]
    return Layers(layers, looked_up)


def attention(heads, width, features=5):
    rngs = nnx.Rngs(0)
    layer = nnx.MultiHeadAttention(
        heads, 4, heads * width, features, decode=False, rngs=rngs, dropout_rate=0.0
    )
    return Layers([layer, nnx.Linear(features, 2, rngs=rngs)], in_turn)


def cells(*widths):
    rngs = nnx.Rngs(0)
    kinds = [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell]
    pairs = zip(kinds, (5, *widths), widths, strict=False)
    return Layers([kind(*pair, rngs=rngs) for kind, *pair in pairs], two_steps)


NNX = [  # the network, its sizes, what is left of them, inputs, whether it computes the same
    (convolutions, (4, 4, 8, 6), (2, 2, 2, 3), nets.IMAGES, True),
    (convolutions, (8, 2, 4, 6), (2, 1, 1, 3), nets.IMAGES, True),
    (group_norm, (6, 3), (2, 2), nets.IMAGES, False),
    (general, (4, 3, 6), (2, 2, 3), nets.ROWS, True),
    (normalised, (8, 6), (4, 3), nets.WORDS, False),
    (attention, (4, 3), (2, 2, 3), nets.normal(2, 5, 4), False),
    pytest.param(
        *(cells, (6, 4, 3, 2), (3, 2, 2, 2), nets.ROWS, True), marks=pytest.mark.slow, id="cells"
    ),
]


@pytest.mark.parametrize(
    ("net", "old", "new", "inputs", "same"), NNX, ids=lambda x: getattr(x, "__name__", "")
)
def test_nnx_is_as_if_built_with_the_smaller_sizes(net, old, new, inputs, same):
    model, small = shrunk_nnx(abstract(net, *old), inputs)
    before = nnx.graphdef(model)
    smaller = jp.shrink_module(model, small, inputs, approximate=not same)
    assert nnx.graphdef(smaller) == nnx.graphdef(abstract(net, *new))
    assert nnx.graphdef(model) == before
    jax.tree.map(np.testing.assert_array_equal, nnx.state(smaller, TRAINED), small.params)


def only(text):
    """Prunes in families with such names alone."""
    return lambda family: every_other(family) if text in family.name else []


def test_whole_heads_leave_exactly():
    heads = only("kernel/value[:, i, :]")
    model, small = shrunk_nnx(abstract(attention, 4, 3), nets.normal(2, 5, 4), heads)
    smaller = jp.shrink_module(model, small, nets.normal(2, 5, 4))
    assert nnx.graphdef(smaller) == nnx.graphdef(abstract(attention, 2, 3))


def test_whole_groups_of_a_norm_leave_exactly():
    leaving = lambda family: every_other(family) if family.size == 4 else []
    model, small = shrunk_nnx(abstract(group_norm, 12, 4), nets.IMAGES, leaving)
    smaller = jp.shrink_module(model, small, nets.IMAGES)
    assert nnx.graphdef(smaller) == nnx.graphdef(abstract(group_norm, 6, 2))


def test_nnx_trains_with_batch_statistics():
    x = nets.normal(5, 3)
    model, small = shrunk_nnx(abstract(batch_norm, 6), x)
    smaller = jp.shrink_module(model, small, x)
    nnx.update(model, jp.apply_mask(nnx.state(model, TRAINED), small.mask))
    for module in (model, smaller):
        module.train()
        nnx.jit(lambda module, x: module(x))(module, x)
    old, new = (nnx.state(module, TRAINED) for module in (model, smaller))
    mean = lambda state: state["layers"][1]["mean"][...]
    assert not np.array_equal(mean(new), mean(small.params))
    jax.tree.map(close, small.like(old), new)


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


def test_norms_of_fewer_features_differ():
    """The mean over 4 of 8 features isn't their sum over 8: by how much, nobody can know before."""
    model, small = shrunk_nnx(abstract(normalised, 8, 6), nets.WORDS)
    with pytest.raises(ValueError, match=r"differs from `small.apply` by .*LayerNorm"):
        jp.shrink_module(model, small, nets.WORDS)
    smaller = jp.shrink_module(model, small, nets.WORDS, approximate=True)
    masked = small.apply(small.params, nets.WORDS)
    assert float(jnp.max(jnp.abs(smaller(nets.WORDS) - masked))) > 0.01


def test_widths_in_the_code_of_a_module():
    apply, params, inputs = nets.lenet()
    small = pruned(apply, params, inputs)
    with pytest.raises(ValueError) as error:
        jp.shrink_module(apply.__self__, small, inputs)
    text = str(error.value)
    assert "in the fields of Small make leaf 'params/Conv_0/bias' of shape (2,)" in text
    assert "`small.apply`, which computes with these parameters" in text


def test_attributes_of_other_classes():
    class Heads(nnx.Module):
        def __init__(self, heads):
            self.heads = heads
            self.wide = nnx.Linear(4, heads * 2, rngs=nnx.Rngs(0))
            self.narrow = nnx.Linear(heads * 2, 2, rngs=nnx.Rngs(1))

        def __call__(self, x):
            x = nnx.relu(self.wide(x)).reshape(len(x), self.heads, 2)
            return self.narrow(x.reshape(len(x), -1))

    model, small = shrunk_nnx(Heads(3), nets.normal(5, 4), only("x2"))
    with pytest.raises(
        ValueError, match=r"can't be called.*class of your own may hold an old size"
    ):
        jp.shrink_module(model, small, nets.normal(5, 4))


def test_batch_statistics_must_be_among_the_parameters():
    model, _ = of_shapes(abstract(batch_norm, 4))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    small = pruned(lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), params, nets.IMAGES)
    with pytest.raises(ValueError, match="batch statistics, aren't among the parameters"):
        jp.shrink_module(model, small, nets.IMAGES)

    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(True), nn.relu, nn.Dense(2)])
    _, variables, x = nets.linen(model, nets.ROWS)
    apply = lambda params, x: model.apply({**variables, "params": params}, x)
    with pytest.raises(ValueError, match=r"'batch_stats/.*they had no such leaf. Shrink all"):
        jp.shrink_module(model, pruned(apply, variables["params"], x), x)


def test_wrong_arguments():
    apply, params, inputs = nets.mlp()
    small = pruned(apply, params, inputs)
    with pytest.raises(TypeError, match="`small` must be what `shrink` returned, got a dict"):
        jp.shrink_module(apply.__self__, small.params, inputs)
    with pytest.raises(TypeError, match="must be a module of Flax NNX or Linen, got"):
        jp.shrink_module(eqx.nn.Linear(2, 2, key=jax.random.key(0)), small, inputs)
    with pytest.raises(ValueError, match=r"leaf 'params/layers_0/bias', `module.init` makes .*7"):
        jp.shrink_module(nn.Sequential([nn.Dense(7)]), small, inputs)
    with pytest.raises(ValueError, match=r"differs from `small.apply` by inf"):
        jp.shrink_module(apply.__self__, small, jnp.nan * inputs)
