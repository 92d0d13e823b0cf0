"""Of what looks into networks."""

import jax.numpy as jnp

import jaxprune as jp
from tests.wrong_uses.rows import KERNEL, MATRIX, kind, value

X = jnp.ones((16, 8))
TWO = {"a": KERNEL, "b": KERNEL.T}


def apply(params, x):
    return x @ params["w"]


def two_layers(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


ROWS = {
    "channel_groups, parameters first": kind(
        lambda: jp.channel_groups(TWO, two_layers, X), "`apply`", "function", "dict"),
    "channel_groups of None": kind(
        lambda: jp.channel_groups(two_layers, None, X), "the parameters", "None"),
    "channel_mask, a group that isn't there": value(
        lambda: jp.channel_mask(
            TWO, [(jp.channel_groups(two_layers, TWO, X).groups[0], [4])]), "a[:, i]", "4", "[4]"),
    "channel_mask of other parameters": value(
        lambda: jp.channel_mask(
            MATRIX, [(jp.channel_groups(two_layers, TWO, X).groups[0], [0])]), "'a'"),
    "shrink, parameters first": kind(
        lambda: jp.shrink(TWO, two_layers, TWO, X), "`apply`", "function", "dict"),
    "shrink, weights for a mask": kind(
        lambda: jp.shrink(two_layers, TWO, TWO, X), "'a'", "boolean", "float32"),
    "shrink, a mask of another shape": value(
        lambda: jp.shrink(two_layers, TWO, {"a": KERNEL.T > 0, "b": None}, X), "'a'", "(8, 4)"),
    "shrink, unknown partial": value(
        lambda: jp.shrink(two_layers, TWO, {"a": None, "b": None}, X, partial="some"), "'some'"),
    "shrink, nothing would stay": value(
        lambda: jp.shrink(two_layers, TWO, {"a": KERNEL > 2, "b": KERNEL.T > 2}, X),
        "a[:, i]", "Keep at least one"),
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
}  # fmt: skip
