"""The user's own Equinox module at smaller sizes computes what the smaller function computes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equinox import nn

import jaxprune as jp
from tests.networks import nets
from tests.networks.modules import every_other

KEYS = jax.random.split(jax.random.key(0), 8)
IMAGES = nets.IMAGES.transpose(0, 3, 1, 2)
TOKENS = nets.normal(2, 5, 4)


class Layers(eqx.Module):
    """Layers with ReLU, each for the axes that it knows."""

    layers: list

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x


class OfTokens(eqx.Module):
    """Attention between a layer before and one behind, both for each token."""

    before: nn.Linear
    attention: nn.MultiheadAttention
    behind: nn.Linear

    def __call__(self, x):
        x = jax.nn.relu(jax.vmap(self.before)(x))
        return jax.vmap(self.behind)(self.attention(x, x, x))


class Cells(eqx.Module):
    """Two cells, two steps of each, for a vector."""

    gru: nn.GRUCell
    lstm: nn.LSTMCell
    head: nn.Linear

    def __call__(self, x):
        hidden = self.gru(x, self.gru(x, jnp.zeros(self.gru.hidden_size)))
        carry = self.lstm(hidden, (jnp.zeros(self.lstm.hidden_size),) * 2)
        return self.head(self.lstm(hidden, carry)[0])


def convolutions(width, groups, outputs, last):
    """Grouped, and transposed."""
    return Layers(
        [
            nn.Conv2d(3, width, 3, key=KEYS[0]),
            nn.Conv2d(width, outputs, 3, groups=groups, key=KEYS[1]),
            nn.ConvTranspose2d(outputs, last, 3, key=KEYS[2]),
            nn.Conv2d(last, 2, 1, key=KEYS[3]),
        ]
    )


def group_norm(width, groups):
    layers = [nn.Conv2d(3, width, 3, key=KEYS[0]), nn.GroupNorm(groups, width)]
    return Layers([*layers, nn.Conv2d(width, 2, 1, key=KEYS[1])])


def normalised(width, inner):
    layers = [nn.Linear(4, width, key=KEYS[0]), nn.LayerNorm(width)]
    layers += [nn.Linear(width, inner, key=KEYS[1]), nn.RMSNorm(inner, use_bias=False)]
    return Layers([*layers, nn.Linear(inner, 2, use_bias=False, key=KEYS[2])])


def perceptron(width):
    return nn.MLP(4, 2, width, 3, key=KEYS[0])


def scanned(width):
    return nn.MLP(4, 2, width, 3, scan=True, key=KEYS[0])


def attention(width, heads, size, outputs):
    layer = nn.MultiheadAttention(
        heads, width, qk_size=size, vo_size=size, output_size=outputs, key=KEYS[0]
    )
    return OfTokens(nn.Linear(4, width, key=KEYS[1]), layer, nn.Linear(outputs, 2, key=KEYS[2]))


def cells(width, inner):
    return Cells(
        nn.GRUCell(4, width, key=KEYS[0]),
        nn.LSTMCell(width, inner, key=KEYS[1]),
        nn.Linear(inner, 2, key=KEYS[2]),
    )


def shrunk(model, inputs, approximate=False, numbers=every_other):
    """The module with values that are nowhere zero, and its smaller network."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params = nets.shaken(params)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    channels = jp.channel_groups(apply, params, inputs, approximate=approximate)
    keep = tuple(~np.isin(np.arange(family.size), numbers(family)) for family in channels.groups)
    mask = jp.channel_mask(params, channels, keep)
    small = jp.shrink(apply, params, mask, inputs, approximate=approximate)
    return eqx.combine(params, static), small


def sizes(model):
    """All that is static, and shapes."""
    arrays, rest = eqx.partition(model, eqx.is_array)
    return jax.tree.structure(rest), jax.tree.map(jnp.shape, arrays)


NETS = [  # the network, its sizes, what is left of them, inputs, whether it computes the same
    (convolutions, (4, 4, 8, 6), (2, 2, 2, 3), IMAGES, True),
    (group_norm, (6, 3), (2, 2), IMAGES, False),
    (normalised, (8, 6), (4, 3), nets.normal(5, 4), False),
    (perceptron, (6,), (3,), nets.normal(5, 4), True),
    (scanned, (6,), (3,), nets.normal(5, 4), True),
    (attention, (4, 4, 3, 6), (2, 2, 2, 3), TOKENS, False),
    (cells, (6, 4), (3, 2), nets.normal(5, 4), True),
]


@pytest.mark.parametrize(
    ("net", "old", "new", "inputs", "same"), NETS, ids=lambda x: getattr(x, "__name__", "")
)
def test_as_if_built_with_the_smaller_sizes(net, old, new, inputs, same):
    model, small = shrunk(net(*old), inputs, not same)
    before = sizes(model)
    smaller = jp.shrink_module(model, small, inputs, approximate=not same)
    assert sizes(smaller) == sizes(net(*new)) != before == sizes(model)


def test_whole_heads_leave_exactly():
    heads = lambda family: every_other(family) if family.name.endswith("[:, i] x3") else []
    model, small = shrunk(attention(4, 4, 3, 6), TOKENS, numbers=heads)
    smaller = jp.shrink_module(model, small, TOKENS)
    assert sizes(smaller) == sizes(attention(4, 2, 3, 6))


def test_hidden_layers_of_different_widths_keep_their_one_number():
    x = nets.normal(5, 4)
    first = lambda family: [0] if family.name == "layers/1/weight[:, i]" else []
    model, small = shrunk(perceptron(6), x, numbers=first)
    smaller = jp.shrink_module(model, small, x)
    assert [layer.out_features for layer in smaller.layers] == [5, 6, 6, 2]
    assert smaller.width_size == 6


def test_parameters_of_another_module():
    x = nets.normal(5, 4)
    _, small = shrunk(perceptron(6), x)
    with pytest.raises(ValueError, match=r"aren't the module's: .*`eqx.partition"):
        jp.shrink_module(nn.MLP(4, 2, 7, 3, key=KEYS[0]), small, x)
