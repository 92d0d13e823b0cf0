"""Groups of channels have readable names, true sizes and true costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.networks import nets

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def places(family):
    return {place.name for place in family.places}


def test_a_convolutional_network_by_names():
    apply, params, images = nets.lenet()
    channels = jp.channel_groups(apply, params, images)
    assert [(family.name, family.size) for family in channels.groups] == [
        ("params/Conv_0/kernel[:, :, :, i]", 4),
        ("params/Conv_1/kernel[:, :, :, i]", 6),
        ("params/Dense_1/kernel[:, i]", 8),
    ]
    assert places(channels.groups[1]) == {
        "params/Conv_1/bias[i]",
        "params/Conv_1/kernel[:, :, :, i]",
        "params/Dense_1/kernel[i, :] x4",
    }
    (flat,) = (
        place for place in channels.groups[1].places if place.leaf == "params/Dense_1/kernel"
    )
    np.testing.assert_array_equal(flat.indices, np.arange(24).reshape(4, 6).T)


def test_what_one_group_saves():
    apply, params, images = nets.lenet()
    channels = jp.channel_groups(apply, params, images)
    for number, family in enumerate(channels.groups):
        keep = [None] * len(channels.groups)
        keep[number] = jnp.arange(family.size) > 0
        small = jp.shrink(apply, params, jp.channel_mask(params, channels, keep), images)
        sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, small.params)]
        assert sizes[0] - sizes[1] == family.parameters
    assert channels.groups[2].flops == 2 * 2 * (24 + 3)
    assert channels.groups[1].flops == 2 * 2 * (4 * 4 * 9 * 4 + 4 * 8)


def test_a_residual_stream_is_one_family():
    apply, params, words = nets.nnx_attention()
    channels = jp.channel_groups(apply, params, words)
    stream = next(f for f in channels.groups if "embed/embedding/value[:, i]" in places(f))
    assert stream.size == 8
    assert len(stream.places) == 14
    assert {(axis.name, axis.reason) for axis in channels.fixed} == {
        ("embed/embedding/value[i, :]", "it is looked up by index"),
        ("head/bias/value[i]", "it is the output's"),
        ("head/kernel/value[:, i]", "it is the output's"),
    }


def test_heads_and_their_widths():
    """Of a fused matrix of queries, keys and values, and of query heads that share keys."""
    apply, params, x = nets.fused_qkv()
    _, heads, widths = jp.channel_groups(apply, params, x).groups
    assert places(heads) >= {"params/Dense_1/kernel[:, i] x12", "params/Dense_3/kernel[i, :] x4"}
    assert places(widths) >= {"params/Dense_1/kernel[:, i] x6", "params/Dense_3/kernel[i, :] x2"}
    apply, params, words = nets.decoder()
    shared = next(
        family
        for family in jp.channel_groups(apply, params, words).groups
        if "params/Dense_0/kernel[:, i] x8" in places(family)
    )
    assert "params/Dense_1/kernel[:, i] x4" in places(shared)


def test_families_that_cross():
    """Two heads of two: heads and widths take as many indices, but of different families."""
    turned = lambda x: x.reshape(-1, 2, 2).transpose(0, 2, 1).reshape(-1, 4)
    apply = lambda params, x: turned(x @ params[0]) @ params[1]
    params = [jnp.ones((3, 4)), jnp.ones((4, 2))]
    first, second = jp.channel_groups(apply, params, jnp.ones((1, 3))).groups
    np.testing.assert_array_equal(first.places[0].indices, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(second.places[0].indices, [[0, 2], [1, 3]])


def test_shapes_suffice():
    apply, params, images = nets.vgg()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, images))
    found, of_shapes = (jp.channel_groups(apply, *x) for x in ((params, images), shapes))
    assert str(found) == str(of_shapes)


def test_table():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 4))}
    apply = lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["b"]
    assert str(jp.channel_groups(apply, params, jnp.ones((1, 2)))).splitlines() == [
        "groups  number  parameters  flops  with them",
        "fixed, as it is the inputs': a[i, :]",
        "fixed, as `reduce_max` is taken over it: a[:, i], b[i, :]",
        "fixed, as it is the output's: b[:, i]",
    ]


def test_wrong_arguments():
    with pytest.raises(TypeError, match="`apply` must be a function"):
        jp.channel_groups({}, {}, jnp.ones(2))
    with pytest.raises(TypeError, match="the parameters must be a tree of arrays"):
        jp.channel_groups(lambda p, x: x, None, jnp.ones(2))
