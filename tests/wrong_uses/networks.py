"""Of what looks into networks."""

import jax.numpy as jnp
from flax import nnx

import jaxprune as jp
from tests.wrong_uses.rows import KERNEL, MATRIX, first_update, kind, value

X = jnp.ones((16, 8))
TWO = {"a": KERNEL, "b": KERNEL.T}


def apply(params, x):
    return x @ params["w"]


def two_layers(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def channels():
    return jp.channel_groups(two_layers, TWO, X)


def shrunk():
    return jp.shrink(two_layers, TWO, {"a": None, "b": None}, X)


FOUR = (jnp.ones(4, bool),)
ROWS = {
    "channel_groups, parameters first": kind(
        lambda: jp.channel_groups(TWO, two_layers, X), "`apply`", "function", "dict"),
    "channel_groups of None": kind(
        lambda: jp.channel_groups(two_layers, None, X), "the parameters", "None"),
    "channel_norms, channels first": kind(
        lambda: jp.channel_norms(channels(), TWO), "`channels`", "`channel_groups`", "dict"),
    "channel_norms of other parameters": value(
        lambda: jp.channel_norms(MATRIX, channels()), "a[:, i]", "['a', 'b']", "`where`"),
    "channel_norms of smaller parameters": value(
        lambda: jp.channel_norms({"a": KERNEL[:, :2], "b": None}, channels()), "'a'", "(8, 2)"),
    "channel_mask, parameters alone": kind(
        lambda: jp.channel_mask(TWO, TWO, FOUR), "`channels`", "`channel_groups`", "dict"),
    "channel_mask of other parameters": value(
        lambda: jp.channel_mask(MATRIX, channels(), FOUR), "'a'"),
    "channel_mask, an array": kind(
        lambda: jp.channel_mask(TWO, channels(), FOUR[0]), "`keep`", "tuple", "(4,)"),
    "channel_mask, numbers of groups": kind(
        lambda: jp.channel_mask(TWO, channels(), (jnp.array([0, 2]),)), "a[:, i]", "int32"),
    "channel_mask, too many groups": value(
        lambda: jp.channel_mask(TWO, channels(), (jnp.ones(5, bool),)), "a[:, i]", "(4,)", "(5,)"),
    "channel_mask, too many families": value(
        lambda: jp.channel_mask(TWO, channels(), FOUR * 2), "1 families", "got 2"),
    "channel_cost of something else": value(
        lambda: jp.channel_cost(channels(), FOUR, of="bytes"), "flops", "parameters", "'bytes'"),
    "channel_cost, keep first": kind(
        lambda: jp.channel_cost(FOUR, channels()), "`channels`", "`channel_groups`", "tuple"),
    "inner_layers, parameters first": kind(
        lambda: jp.inner_layers(TWO, two_layers, X), "`apply`", "function", "dict"),
    "inner_layers of two": value(
        lambda: jp.inner_layers(two_layers, TWO, X), "2 products", "leave out `inner_layers`"),
    "leaf_flops, parameters first": kind(
        lambda: jp.leaf_flops(TWO, two_layers, X), "`apply`", "function", "dict"),
    "leaf_flops of None": kind(lambda: jp.leaf_flops(apply, None, X), "the parameters", "None"),
    "channel_times, parameters first": kind(
        lambda: jp.channel_times(TWO, two_layers, channels(), X), "`apply`", "function", "dict"),
    "channel_times, no repeats": value(
        lambda: jp.channel_times(two_layers, TWO, channels(), X, repeats=0), "`repeats`", "0"),
    "shrink, parameters first": kind(
        lambda: jp.shrink(TWO, two_layers, TWO, X), "`apply`", "function", "dict"),
    "shrink, weights for a mask": kind(
        lambda: jp.shrink(two_layers, TWO, TWO, X), "'a'", "boolean", "float32"),
    "shrink, a mask of another shape": value(
        lambda: jp.shrink(two_layers, TWO, {"a": KERNEL.T > 0, "b": None}, X), "'a'", "(8, 4)"),
    "shrink, unknown partial": value(
        lambda: jp.shrink(two_layers, TWO, {"a": None, "b": None}, X, partial="some"), "'some'"),
    "shrink_module, the parameters alone": kind(
        lambda: jp.shrink_module(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), TWO, X), "`small`", "dict"),
    "shrink_module, a function": kind(
        lambda: jp.shrink_module(two_layers, shrunk(), X), "`module`", "Flax", "function"),
    "shrink, nothing would stay": value(
        lambda: jp.shrink(two_layers, TWO, {"a": KERNEL > 2, "b": KERNEL.T > 2}, X),
        "a[:, i]", "Keep at least one", "`least=1`"),
    "reconstruct, parameters first": kind(
        lambda: jp.reconstruct(MATRIX, apply, {"w": KERNEL > 0}, [X]),
        "`apply`", "function", "dict"),
    "reconstruct, mask first": kind(
        lambda: jp.reconstruct(apply, {"w": KERNEL > 0}, MATRIX, [X]), "'w'", "boolean", "float32"),
    "reconstruct without data": value(
        lambda: jp.reconstruct(apply, MATRIX, {"w": KERNEL > 0}, []), "`batches` is empty"),
    "reconstruct, one array": kind(
        lambda: jp.reconstruct(apply, MATRIX, {"w": KERNEL > 0}, X),
        "`batches`", "list", "(16, 8)"),
    "reconstruct, another shape": value(
        lambda: jp.reconstruct(apply, MATRIX, {"w": KERNEL.T > 0}, [X]), "'w'", "(8, 4)", "(4, 8)"),
    "reconstruct, unknown method": value(
        lambda: jp.reconstruct(apply, MATRIX, {"w": KERNEL > 0}, [X], method="exact"), "'exact'"),
    "reconstruct, negative damping": value(
        lambda: jp.reconstruct(apply, MATRIX, {"w": KERNEL > 0}, [X], damping=-1.0),
        "damping", "-1.0"),
    "reconstruct, an unused leaf": value(
        lambda: jp.reconstruct(lambda p, x: x, MATRIX, {"w": KERNEL > 0}, [X]), "['w']", "None"),
    "prune_layers, parameters first": kind(
        lambda: jp.prune_layers(MATRIX, apply, 0.5, [X]), "`apply`", "function", "dict"),
    "prune_layers, one array": kind(
        lambda: jp.prune_layers(apply, MATRIX, 0.5, X), "`batches`", "list", "(16, 8)"),
    "prune_layers, data first": kind(
        lambda: jp.prune_layers(apply, MATRIX, [X], 0.5), "`batches`", "list", "0.5"),
    "prune_layers, a percentage": value(
        lambda: jp.prune_layers(apply, MATRIX, 50, [X]), "[0, 1]", "50", "fraction"),
    "prune_layers, no pattern": value(
        lambda: jp.prune_layers(apply, MATRIX, "2-4", [X]), "'2:4'", "'2-4'"),
    "prune_layers, more than there are": value(
        lambda: jp.prune_layers(apply, MATRIX, "5:4", [X]), "n = 5, m = 4"),
    "prune_layers, a mask": kind(
        lambda: jp.prune_layers(apply, MATRIX, {"w": KERNEL > 0}, [X]),
        "sparsity", "(8, 4)", "bool"),
    "prune_layers, a sparsity for another leaf": value(
        lambda: jp.prune_layers(apply, MATRIX, {"v": 0.5}, [X]), "structure", "'v'"),
    "prune_layers, nothing to prune": value(
        lambda: jp.prune_layers(apply, MATRIX, {"w": None}, [X]), "None everywhere"),
    "prune_layers, a tree and where": value(
        lambda: jp.prune_layers(apply, MATRIX, {"w": 0.5}, [X], where="w"), "`where`", "None"),
    "prune_layers, unknown method": value(
        lambda: jp.prune_layers(apply, MATRIX, 0.5, [X], method="obs"), "sparsegpt", "'obs'"),
    "prune_layers, unknown scope": value(
        lambda: jp.prune_layers(apply, MATRIX, 0.5, [X], scope="global"), "outputs", "'global'"),
    "prune_layers, other axes": value(
        lambda: jp.prune_layers(apply, MATRIX, jp.NM(2, 4, axis="outputs"), [X]), "'outputs'"),
    "prune_layers, an unused leaf": value(
        lambda: jp.prune_layers(lambda p, x: x, MATRIX, 0.5, [X]), "['w']", "`where`"),
    "count_dying, text": kind(lambda: jp.count_dying("1e-3"), "`below`", "'1e-3'"),
    "count_dying, zero": value(lambda: jp.count_dying(0.0), "`below`", "0.0"),
    "count_dying, nothing there": value(
        lambda: jp.count_dying(where="gamma").init(MATRIX), "'gamma'", "['w']"),
    "count_dying without parameters": value(
        lambda: first_update(jp.count_dying(), MATRIX), "`tx.update(grads, opt_state, params)`"),
    "init_gates, channels first": kind(
        lambda: jp.init_gates(channels(), TWO), "`channels`", "`channel_groups`", "dict"),
    "init_gates without norms": value(
        lambda: jp.init_gates(TWO, channels()), "norm", "`where`", "a[:, i]"),
    "apply_gates, no gates": value(
        lambda: jp.apply_gates(TWO, channels(), ()), "`gates`", "1 families", "got 0"),
    "apply_gates, a mask": kind(
        lambda: jp.apply_gates(TWO, channels(), FOUR), "`gates`", "a[:, i]", "`channel_mask`"),
    "apply_gates, too many": value(
        lambda: jp.apply_gates(TWO, channels(), (jnp.ones(5),)), "`gates`", "(4,)", "(5,)"),
    "apply_gates, an optimizer's schedule": kind(
        lambda: jp.apply_gates(TWO, channels(), (jnp.ones(4),), lambda step: 1.0),
        "`sharpness`", "function"),
    "channel_sensitivities, parameters first": kind(
        lambda: jp.channel_sensitivities(TWO, two_layers, channels(), [X]),
        "`apply`", "function", "dict"),
    "channel_sensitivities, one array": kind(
        lambda: jp.channel_sensitivities(two_layers, TWO, channels(), X),
        "`batches`", "list", "(16, 8)"),
    "channel_sensitivities without data": value(
        lambda: jp.channel_sensitivities(two_layers, TWO, channels(), []), "`batches` is empty"),
    "prune_channels, data before the budget": kind(
        lambda: jp.prune_channels(two_layers, TWO, channels(), [X], 100), "budget", "list"),
    "prune_channels, groups of nothing": kind(
        lambda: jp.prune_channels(two_layers, TWO, FOUR, 100, [X]),
        "`channels`", "`channel_groups`", "tuple"),
    "prune_channels, a fraction": value(
        lambda: jp.prune_channels(two_layers, TWO, channels(), 0.5, [X]),
        "0.5", "one channel of each family costs 512"),
    "prune_channels of something else": value(
        lambda: jp.prune_channels(two_layers, TWO, channels(), 100, [X], of="bytes"), "'bytes'"),
    "prune_channels, a number for a key": kind(
        lambda: jp.prune_channels(two_layers, TWO, channels(), 100, [X], key=0), "key", "0"),
}  # fmt: skip
