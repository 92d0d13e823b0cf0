"""The user's own NNX module at smaller sizes computes what the smaller function computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp
from tests.networks import nets
from tests.networks.modules import (
    TRAINED,
    Layers,
    abstract,
    batch_norm,
    close,
    every_other,
    in_turn,
    of_shapes,
    pruned,
    shrunk_nnx,
)

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


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


def instance_norm(width):
    rngs = nnx.Rngs(0)
    layers = [
        nnx.Conv(3, width, (3, 3), rngs=rngs),
        nnx.InstanceNorm(width, rngs=rngs),
        nnx.Conv(width, 2, (1, 1), rngs=rngs),
    ]
    return Layers(layers, in_turn)


def low_rank(rank, width):
    rngs = nnx.Rngs(0)
    layers = [nnx.LoRALinear(5, width, lora_rank=rank, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)]
    return Layers(layers, in_turn)


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
    (instance_norm, (6,), (3,), nets.IMAGES, True),
    (low_rank, (4, 6), (2, 3), nets.ROWS, True),
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


def test_the_state_of_an_optimizer_shrinks_too():
    x = nets.normal(5, 3)
    model, small = shrunk_nnx(abstract(batch_norm, 6), x)
    smaller = jp.shrink_module(model, small, x)
    old, new = (
        nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param).opt_state
        for module in (model, smaller)
    )
    assert jax.tree.map(jnp.shape, small.like(old)) == jax.tree.map(jnp.shape, new)


def test_norms_of_fewer_features_differ():
    """The mean over 4 of 8 features isn't their sum over 8: by how much, nobody can know before."""
    model, small = shrunk_nnx(abstract(normalised, 8, 6), nets.WORDS)
    with pytest.raises(ValueError, match=r"differs from `small.apply` by .*LayerNorm"):
        jp.shrink_module(model, small, nets.WORDS)
    smaller = jp.shrink_module(model, small, nets.WORDS, approximate=True)
    masked = small.apply(small.params, nets.WORDS)
    assert float(jnp.max(jnp.abs(smaller(nets.WORDS) - masked))) > 0.01


class Normed(nnx.Module):
    def __init__(self, features, *, rngs):
        self.first = nnx.Linear(4, features, rngs=rngs)
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.last = nnx.Linear(features, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(self.first(x)))


def test_inputs_that_hide_the_difference():
    model, zeros = Normed(8, rngs=nnx.Rngs(0)), jnp.zeros((2, 4))
    graph, params = nnx.split(model)
    small = pruned(lambda params, x: nnx.merge(graph, params)(x), params, zeros)
    with pytest.raises(ValueError, match=r"differs from `small.apply` by"):
        jp.shrink_module(model, small, zeros)


def test_a_network_that_does_not_take_all_numbers():
    def of_logarithms(width):
        rngs = nnx.Rngs(0)
        layers = [nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)]
        return Layers(layers, lambda layers, x: in_turn(layers, jnp.log(x)))

    x = 1 + abs(nets.normal(5, 3))
    model, small = shrunk_nnx(abstract(of_logarithms, 6), x)
    smaller = jp.shrink_module(model, small, x)
    close(smaller(x), small.apply(small.params, x))


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
