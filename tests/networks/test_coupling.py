"""What primitives couple, and what they fix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.networks.coupling import Terms

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

W, V, X = jnp.ones((3, 4)), jnp.ones((4, 2)), jnp.ones((5, 3))


def families(apply, *params):
    channels = jp.channel_groups(apply, list(params), X)
    return {family.name: family.size for family in channels.groups}


def reasons(apply, *params):
    channels = jp.channel_groups(apply, list(params), X)
    return {axis.name: axis.reason for axis in channels.fixed}


def through(function, width=4):
    """The hidden axis of two layers with a function between them."""
    apply = lambda p, x: function(x @ p[0]) @ p[1]
    return lambda of: of(apply, W, jnp.ones((width, 2)))


def twice(x):
    return jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] * 2), (0, x))[1]


@jax.custom_vjp
def straight(x):
    return jnp.round(x)


straight.defvjp(lambda x: (straight(x), None), lambda _, g: (g,))

PASSES = {
    "entries": jnp.tanh,
    "a constant": lambda x: x * jnp.arange(4.0)[None],
    "a scalar": lambda x: 2 * x / 3,
    "a sum over it": lambda x: x * x.sum(-1, keepdims=True),
    "a root mean square": lambda x: x / (1 + jnp.mean(x**2, -1, keepdims=True)),
    "rows": lambda x: x[::2] + jnp.flip(x[:3], 0) + x[1:4],
    "a running sum": lambda x: jnp.cumsum(x, 0),
    "two that are stacked": lambda x: jnp.stack([x, 2 * x], 1).sum(1),
    "turned twice": lambda x: x.T.T,
    "two shapes": lambda x: x.reshape(5, 1, 4).squeeze(1),
    "a choice": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "jit and remat": jax.jit(jax.checkpoint(jnp.sin)),
    "a derivative of its own": jax.nn.relu,
    "padded rows": lambda x: jnp.pad(x, ((1, 1), (0, 0))),
    "rows by index": lambda x: jax.lax.dynamic_slice_in_dim(x, jnp.int32(1), 2),
    "a loop over rows": lambda x: jax.lax.scan(lambda c, r: (c + r, c * r), jnp.zeros(4), x)[1],
    "a print": lambda x: jax.debug.print("{}", x.sum()) or x,
    "a map over rows": lambda x: jax.lax.map(jnp.sin, x),
}


@pytest.mark.parametrize("name", PASSES)
def test_passes(name):
    assert through(PASSES[name])(families) == {"0[:, i]": 4}


FIXES = {
    "softmax": (jax.nn.softmax, "`reduce_max` is taken over it"),
    "sum of exponentials": (
        lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
        "it changes `reduce_sum` of float32[5,4] even when its parameters are zero",
    ),
    "a two-pass variance": (
        lambda x: x * jnp.var(x, -1, keepdims=True),
        "it changes `reduce_sum` of float32[5,4] even when its parameters are zero",
    ),
    "a running sum along it": (lambda x: jnp.cumsum(x, 1), "`cumsum` runs along it"),
    "sorting": (lambda x: jnp.sort(x, 0), "`sort` is not looked into"),
    "reversal": (lambda x: jnp.flip(x, 1) + x, "`rev` runs along it"),
    "while": (twice, "`while` is not looked into"),
    "cond": (lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), "`cond` is not looked into"),
    "custom_vjp": (straight, "`custom_vjp_call` is not looked into"),
}


@pytest.mark.parametrize("name", FIXES)
def test_fixes(name):
    function, reason = FIXES[name]
    assert through(function)(families) == {}
    assert through(function)(reasons)["0[:, i]"] == reason


def test_padding_fixes():
    padded = through(lambda x: jnp.pad(x, ((0, 0), (0, 2))), 6)
    assert padded(families) == {}
    assert padded(reasons)["0[:, i]"] == "it is padded"


def groups(function, width=4):
    apply = lambda p, x: function(x @ p[0]) @ p[1]
    channels = jp.channel_groups(apply, [W, jnp.ones((width, 2))], X)
    return sorted(family.places[0].indices.tolist() for family in channels.groups)


def test_reshapes():
    blocks, columns = [[0, 1], [2, 3]], [[0, 2], [1, 3]]
    assert groups(lambda x: x.reshape(5, 2, 2).sum(1), 2) == [blocks, columns]
    assert groups(lambda x: x.reshape(5, 2, 2).transpose(0, 2, 1).reshape(5, 4)) == [
        blocks,
        columns,
    ]
    assert groups(lambda x: jnp.repeat(x.reshape(5, 2, 2).sum(2), 2, 1))[:2] == [blocks, columns]
    assert groups(lambda x: x.reshape(5, 2, 2)[:, 0], 2) == [columns, [[2, 3]]]
    assert groups(lambda x: x + x.reshape(5, 2, 2)[:, ::-1].reshape(5, 4)) == [columns]
    assert groups(lambda x: x.reshape(2, 10)[:, :4]) == []


def test_copies_leave_alone():
    """Of what is repeated, each copy can be left out by what receives it."""
    channels = jp.channel_groups(lambda p, x: jnp.repeat(x, 2, 1) @ p, jnp.ones((6, 2)), X)
    (family,) = channels.groups
    np.testing.assert_array_equal(family.places[0].indices, [[0, 2, 4], [1, 3, 5]])


def test_all_there_is_is_fixed():
    """A single channel, and channels of which none could leave alone."""
    assert families(lambda p, x: x @ p[0] @ p[1], jnp.ones((3, 1)), jnp.ones((1, 2))) == {}
    both = lambda p, x: (lambda y: y + y[:, ::-1])(x @ p[0]) @ p[1]
    swapped = lambda p, x: (lambda y: y + jnp.concatenate([y[:, 1:], y[:, :1]], 1))(x @ p[0]) @ p[1]
    for apply in both, swapped:
        channels = jp.channel_groups(apply, [jnp.ones((3, 2)), jnp.ones((2, 2))], X)
        assert channels.groups == ()
    assert channels.fixed[1].reason == "it is all there is"


def test_copies_that_a_sum_counts():
    """The channels can leave, all copies of them, but not one of two copies of each."""
    function = lambda x: jnp.repeat(x, 2, 1)
    normalized = lambda x: x / (1 + jnp.mean(x**2, 1, keepdims=True))
    assert groups(lambda x: normalized(function(x)), 8) == [[[0], [1], [2], [3]]]


def test_strides_fix():
    strided = through(lambda x: jax.lax.slice_in_dim(x, 0, 4, 2, 1), 2)
    assert strided(families) == {}
    assert strided(reasons)["0[:, i]"] == "a slice takes every n-th index"


def test_halves():
    assert groups(lambda x: x[:, :2] * x[:, 2:], 2) == [[[0, 2], [1, 3]]]
    assert groups(lambda x: jnp.concatenate([x[:, 1:], x[:, :1]], 1)) == [[[0], [1], [2], [3]]]


def test_unify_tuples():
    terms = Terms()
    flat, (heads, width) = terms.fresh(6), (terms.fresh(2), terms.fresh(3))
    terms.unify(flat, terms.tuples([heads, width]))
    assert terms.variables(flat[4]) == {heads[1], width[1]}
    gone = terms.leaving([int(heads[1])])
    np.testing.assert_array_equal(gone[flat], [False] * 3 + [True] * 3)
    other = terms.fresh(2), terms.fresh(3)
    terms.unify(flat, terms.tuples(other))
    assert terms.root(heads[1]) == terms.root(other[0][1])


def test_unify_tuples_that_do_not_fit():
    terms = Terms()
    flat, two, three = terms.fresh(8), terms.fresh(2), terms.fresh(4)
    terms.unify(flat, terms.tuples([two, three]))
    terms.unify(flat, terms.tuples([terms.fresh(2), terms.fresh(2), terms.fresh(2)]))
    assert not terms.can_leave(flat).any()
    assert not terms.can_leave(two).any()
    assert terms.reason(three[0]) == "it is split in two ways"


def test_unify_a_term_with_a_tuple_of_it():
    terms = Terms()
    a, b = terms.fresh(2), terms.fresh(2)
    terms.unify(terms.tuples([a, b])[:2], a)
    assert not terms.can_leave(a).all()


def test_fixing_a_part_leaves_the_others():
    terms = Terms()
    a, b = terms.fresh(2), terms.fresh(2)
    both = terms.tuples([a, b])
    terms.fix(int(a[0]), "why")
    assert terms.variables(both[0]) == {b[0]}
    terms.fix(int(both[0]), "whole")
    assert terms.reason(b[0]) == "whole"
    assert terms.variables(both[3]) == {a[1], b[1]}
    assert terms.variables(both[2]) == {a[1]}
