"""What goes wrong when functions are used in the wrong way: errors that name the argument or leaf.

A wrong kind of argument is a TypeError, a wrong value of the right kind a ValueError.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

KEY = jax.random.key(0)
KERNEL = jnp.linspace(-1.0, 1.0, 32).reshape(8, 4)
PARAMS = {"dense": {"kernel": KERNEL, "bias": jnp.ones(4)}}
MASK = {"dense": {"kernel": KERNEL > 0, "bias": None}}
PROBS = {"w": jnp.linspace(0.1, 0.9, 8)}
LOGITS = {"w": jnp.linspace(-1.0, 1.0, 8)}
DRAWN = {"w": PROBS["w"] > 0.5}
MATRIX = {"w": KERNEL}
PATTERNS = {"w": jnp.zeros((6, 2, 4))}
NAN = {"w": KERNEL.at[0, 0].set(jnp.nan)}
SCHEDULE = optax.constant_schedule(0.5)


def first_update(link, params, updates=None, *given):
    return link.update(params if updates is None else updates, link.init(params), *given)


def pressed(link, params=PARAMS):
    return link.update(params, link.init(params), params)


class Row(NamedTuple):
    use: Callable
    error: type[Exception]
    words: tuple[str, ...]


def kind(use, *words):
    return Row(use, TypeError, words)


def value(use, *words):
    return Row(use, ValueError, words)


MASKS = {
    "prunable of None": kind(lambda: jp.prunable(None), "prunable", "tree of arrays", "None"),
    "prunable of a function": kind(lambda: jp.prunable(jnp.sum), "prunable", "function sum"),
    "prunable of a name": kind(lambda: jp.prunable("kernel"), "prunable", "'kernel'"),
    "prunable, nothing to prune": value(
        lambda: jp.prunable({"bias": jnp.ones((2, 2))}), "no bias or scale", "['bias']", "`where`"),
    "prunable, unknown name": value(
        lambda: jp.prunable(PARAMS, "kernels"), "'kernels'", "dense/kernel", "`where`"),
    "prunable, integers": value(
        lambda: jp.prunable({"w": jnp.ones((2, 2), int)}), "floating-point", "['w']"),
    "where is a list": kind(lambda: jp.prunable(PARAMS, ["kernel"]), "`where`", "regular", "list"),
    "where is a mask": kind(
        lambda: jp.prunable(PARAMS, MASK), "`where`", "function of (path, leaf)"),
    "where is no expression": value(lambda: jp.prunable(PARAMS, "(["), "`where`", "'(['"),
    "apply_mask, swapped": value(
        lambda: jp.apply_mask(MASK, PARAMS), "which come first", "the mask"),
    "apply_mask, swapped, all leaves": kind(
        lambda: jp.apply_mask(DRAWN, PROBS), "'w'", "parameters come first"),
    "apply_mask, None": kind(lambda: jp.apply_mask(PARAMS, None), "the mask", "None"),
    "apply_mask, other tree": value(
        lambda: jp.apply_mask(PARAMS, {"other": None}), "the mask", "structure", "prunable"),
    "apply_mask, other shape": value(
        lambda: jp.apply_mask(MATRIX, {"w": KERNEL.T > 0}), "'w'", "(8, 4)", "(4, 8)"),
    "apply_mask, a number for a leaf": value(
        lambda: jp.apply_mask(MATRIX, {"w": 0.5}), "'w'", "(8, 4)", "0.5"),
    "apply_mask, integers": kind(
        lambda: jp.apply_mask(MATRIX, {"w": jnp.ones((8, 4), int)}), "'w'", "boolean", "int32"),
    "apply_mask, a function": kind(
        lambda: jp.apply_mask(PARAMS, jp.prunable), "the mask", "prunable"),
    "apply_mask to a number": kind(lambda: jp.apply_mask(3.0, True), "parameters", "3.0"),
    "count of parameters": kind(lambda: jp.count(PARAMS), "'dense/bias'", "float32", "`sparsity`"),
    "count of None": kind(lambda: jp.count(None), "the mask", "None"),
    "count of a number": kind(lambda: jp.count(3), "the mask", "3"),
    "sparsity of None": kind(lambda: jp.sparsity(None), "tree of arrays", "None"),
    "sparsity of an empty tree": value(lambda: jp.sparsity({}), "no leaf can be pruned", "[]"),
    "sparsity of integers": value(lambda: jp.sparsity({"w": jnp.ones((2, 2), int)}), "['w']"),
    "layers of parameters": kind(lambda: jp.layers(PARAMS), "'dense/bias'", "float32"),
    "layers of None": kind(lambda: jp.layers(None), "the mask", "None"),
    "table of parameters": kind(lambda: jp.table(PARAMS), "'dense/bias'", "float32"),
}  # fmt: skip

SAMPLING = {
    "relaxed_bernoulli, key last": kind(
        lambda: jp.relaxed_bernoulli(PROBS, KEY, 1.0), "key such as `jax.random.key(0)`", "dict"),
    "relaxed_bernoulli, a seed": kind(
        lambda: jp.relaxed_bernoulli(0, PROBS, 1.0), "`jax.random.key(0)`", "got 0"),
    "relaxed_bernoulli, None for a key": kind(
        lambda: jp.relaxed_bernoulli(None, PROBS, 1.0), "`jax.random.key(0)`", "None"),
    "relaxed_bernoulli, keys": value(
        lambda: jp.relaxed_bernoulli(jax.random.split(KEY), PROBS, 1.0), "one key", "(2,)", "vmap"),
    "relaxed_bernoulli, temperature 0": value(
        lambda: jp.relaxed_bernoulli(KEY, PROBS, 0.0), "temperature", "positive", "0.0"),
    "relaxed_bernoulli, temperature NaN": value(
        lambda: jp.relaxed_bernoulli(KEY, PROBS, np.nan), "temperature", "positive", "nan"),
    "relaxed_bernoulli, a schedule": kind(
        lambda: jp.relaxed_bernoulli(KEY, PROBS, jp.annealed_temperature(9)),
        "temperature", "number", "function schedule"),
    "relaxed_bernoulli, text": kind(
        lambda: jp.relaxed_bernoulli(KEY, PROBS, "0.5"), "temperature", "'0.5'"),
    "relaxed_bernoulli, a mask": kind(
        lambda: jp.relaxed_bernoulli(KEY, DRAWN, 1.0), "'w'", "bool", "floating-point"),
    "relaxed_bernoulli, an empty tree": value(
        lambda: jp.relaxed_bernoulli(KEY, {"w": None}, 1.0), "no leaves"),
    "gumbel_mask, no tree": kind(lambda: jp.gumbel_mask(KEY, None), "tree of arrays", "None"),
    "gumbel_mask, swapped": kind(lambda: jp.gumbel_mask(LOGITS, KEY), "`jax.random.key(0)`"),
    "gumbel_mask, negative temperature": value(
        lambda: jp.gumbel_mask(KEY, LOGITS, -np.float32(1)), "temperature", "-1.0"),
    "gumbel_mask, a tree for the temperature": kind(
        lambda: jp.gumbel_mask(KEY, LOGITS, LOGITS), "temperature", "dict"),
    "gumbel_mask, temperatures": kind(
        lambda: jp.gumbel_mask(KEY, LOGITS, jnp.ones(2)), "temperature", "shape (2,)"),
    "bernoulli_mask, swapped": kind(lambda: jp.bernoulli_mask(PROBS, KEY), "`jax.random.key(0)`"),
    "bernoulli_mask, integers": kind(
        lambda: jp.bernoulli_mask(KEY, {"w": jnp.ones(2, int)}), "'w'", "int32"),
    "bernoulli_mask, lists of numbers": kind(
        lambda: jp.bernoulli_mask(KEY, {"w": [0.5]}), "'w/0'", "float"),
    "surrogate_gradient, swapped": kind(
        lambda: jp.surrogate_gradient(PROBS, DRAWN), "'w'", "boolean", "float32"),
    "surrogate_gradient, two masks": kind(
        lambda: jp.surrogate_gradient(DRAWN, DRAWN), "'w'", "floating-point", "bool"),
    "surrogate_gradient, other shapes": value(
        lambda: jp.surrogate_gradient({"w": jnp.ones(3, bool)}, PROBS), "'w'", "(8,)", "(3,)"),
    "counter_bits, a seed": kind(lambda: jp.counter_bits(0, (2,)), "`jax.random.key(0)`"),
    "counter_bits, floats": value(
        lambda: jp.counter_bits(KEY, (2,), jnp.float32), "uint32", "float32"),
    "counter_bits, a float shape": kind(lambda: jp.counter_bits(KEY, (2.5,)), "shape", "2.5"),
    "counter_bits, a negative shape": value(lambda: jp.counter_bits(KEY, (-2,)), "shape", "-2"),
    "best_sampled_mask, no key": kind(
        lambda: jp.best_sampled_mask(PROBS, KEY, jp.count), "`jax.random.key(0)`"),
    "best_sampled_mask, no function": kind(
        lambda: jp.best_sampled_mask(KEY, PROBS, 3), "`score`", "function", "3"),
    "best_sampled_mask, no draws": value(
        lambda: jp.best_sampled_mask(KEY, PROBS, jp.count, draws=0), "`draws`", "at least 1", "0"),
    "best_sampled_mask, negative draws": value(
        lambda: jp.best_sampled_mask(KEY, PROBS, jp.count, draws=-3), "`draws`", "-3"),
    "best_sampled_mask, half a draw": kind(
        lambda: jp.best_sampled_mask(KEY, PROBS, jp.count, draws=2.5), "`draws`", "whole", "2.5"),
    "vrpge_gradient, losses first": kind(
        lambda: jp.vrpge_gradient(jnp.ones(2), [DRAWN] * 2, PROBS), "`losses`", "dict"),
    "vrpge_gradient, one mask": kind(
        lambda: jp.vrpge_gradient(PROBS, DRAWN, jnp.ones(2)), "`masks`", "sequence", "dict"),
    "vrpge_gradient, too few losses": value(
        lambda: jp.vrpge_gradient(PROBS, [DRAWN] * 3, jnp.ones(2)), "3 masks", "(2,)"),
    "vrpge_gradient, soft masks": kind(
        lambda: jp.vrpge_gradient(PROBS, [PROBS] * 2, jnp.ones(2)), "'w'", "boolean", "float32"),
    "vrpge_gradient, masks of another tree": value(
        lambda: jp.vrpge_gradient(PROBS, [MASK] * 2, jnp.ones(2)), "the mask", "structure"),
}  # fmt: skip

BUDGETS = {
    "init_probabilities of 1.5": value(
        lambda: jp.init_probabilities(PARAMS, value=1.5), "initial probability", "[0, 1]", "1.5"),
    "init_probabilities, text": kind(
        lambda: jp.init_probabilities(PARAMS, value="0.5"), "initial probability", "'0.5'"),
    "init_probabilities by position": kind(
        lambda: jp.init_probabilities(PARAMS, 0.5), "positional"),
    "project_probabilities, a percentage": value(
        lambda: jp.project_probabilities(90), "sparsity", "[0, 1]", "90", "percentage"),
    "project_probabilities, 1.2": value(lambda: jp.project_probabilities(1.2), "sparsity", "1.2"),
    "project_probabilities, NaN": value(
        lambda: jp.project_probabilities(np.nan), "sparsity", "nan"),
    "project_probabilities, text": kind(
        lambda: jp.project_probabilities("0.9"), "sparsity", "schedule", "'0.9'"),
    "project_probabilities, None": kind(lambda: jp.project_probabilities(None), "sparsity", "None"),
    "project_probabilities, a tree": kind(
        lambda: jp.project_probabilities(PROBS), "sparsity", "dict"),
    "project_probabilities, missing params": value(
        lambda: first_update(jp.project_probabilities(0.5), PROBS),
        "tx.update(grads, opt_state, params)"),
    "project_probabilities, costs of another tree": value(
        lambda: pressed(jp.project_probabilities(0.5, costs={"v": 1.0}), PROBS),
        "the costs", "structure"),
    "project_probabilities, costs of another shape": value(
        lambda: pressed(jp.project_probabilities(0.5, costs={"w": jnp.ones(3)}), PROBS),
        "the costs", "'w'", "(8,)", "(3,)"),
    "project_probabilities, costs of 0": value(
        lambda: pressed(jp.project_probabilities(0.5, costs={"w": 0.0}), PROBS), "'w'", "positive"),
    "project_probabilities with weights": kind(
        lambda: pressed(jp.project_probabilities(0.5), {"w": jnp.ones(3, int)}), "'w'", "int32"),
    "project_logits, 1.2": value(lambda: jp.project_logits(1.2), "sparsity", "[0, 1]", "1.2"),
    "project_logits, -0.1": value(lambda: jp.project_logits(-0.1), "sparsity", "-0.1"),
    "project_logits, missing params": value(
        lambda: first_update(jp.project_logits(0.5), LOGITS),
        "tx.update(grads, opt_state, params)"),
    "projection, swapped": kind(
        lambda: jp.projection_capped_simplex(1.0, PROBS), "projection", "tree of arrays", "1.0"),
    "projection, a negative budget": value(
        lambda: jp.projection_capped_simplex(PROBS, -1.0), "budget", "negative", "-1.0"),
    "projection, a budget of NaN": value(
        lambda: jp.projection_capped_simplex(PROBS, np.nan), "budget", "finite", "nan"),
    "projection, text": kind(
        lambda: jp.projection_capped_simplex(PROBS, "4"), "budget", "number", "'4'"),
    "projection, a schedule": kind(
        lambda: jp.projection_capped_simplex(PROBS, SCHEDULE), "budget", "number", "function"),
    "projection of NaN": value(lambda: jp.projection_capped_simplex(NAN, 4.0), "'w'", "NaN"),
    "projection of a mask": kind(lambda: jp.projection_capped_simplex(DRAWN, 4.0), "'w'", "bool"),
    "projection, costs without a leaf": value(
        lambda: jp.projection_capped_simplex(PROBS, 4.0, costs={"w": None}), "'w'", "missing"),
    "projection, costs as text": kind(
        lambda: jp.projection_capped_simplex(PROBS, 4.0, costs={"w": "1"}), "costs", "'w'", "'1'"),
    "cubic_sparsity of 90": value(lambda: jp.cubic_sparsity(90, 0, 9), "sparsity", "[0, 1]", "90"),
    "cubic_sparsity of text": kind(lambda: jp.cubic_sparsity("0.9", 0, 9), "sparsity", "'0.9'"),
    "cubic_sparsity, steps swapped": value(
        lambda: jp.cubic_sparsity(0.9, 9, 0), "begin < end", "begin=9", "end=0"),
    "cubic_sparsity, steps first": value(lambda: jp.cubic_sparsity(10, 20, 0.9), "sparsity", "10"),
    "annealed_temperature, no steps": value(lambda: jp.annealed_temperature(0), "steps", "0"),
    "annealed_temperature, text": kind(lambda: jp.annealed_temperature("9"), "steps", "'9'"),
    "annealed_temperature by position": kind(lambda: jp.annealed_temperature(9, 0.1), "positional"),
}  # fmt: skip

PENALTIES = {
    "hoyer_square of integers": kind(
        lambda: jp.hoyer_square({"w": jnp.ones(3, int)}), "a penalty", "'w'", "int32", "None"),
    "hoyer_square of nothing": value(lambda: jp.hoyer_square({}), "a penalty", "no leaves"),
    "hoyer_square of None": kind(lambda: jp.hoyer_square(None), "a penalty", "None"),
    "hoyer_square of a number": kind(lambda: jp.hoyer_square(3.0), "a penalty", "3.0"),
    "hoyer_ratio of a mask": kind(lambda: jp.hoyer_ratio(MASK), "'dense/kernel'", "bool"),
    "l1 of a function": kind(lambda: jp.l1(jnp.sum), "a penalty", "function sum"),
    "transformed_l1 of text": kind(lambda: jp.transformed_l1("w"), "a penalty", "'w'"),
    "group_hoyer_square of no such axis": value(
        lambda: jp.group_hoyer_square(PARAMS, 1), "`axis`", "'dense/bias'", "(4,)", "`where`"),
    "group_hoyer_square, swapped": kind(
        lambda: jp.group_hoyer_square("outputs", PARAMS), "a penalty", "'outputs'"),
    "group_lasso, an unknown name": value(
        lambda: jp.group_lasso(MATRIX, "rows"), "inputs, outputs, heads", "'rows'"),
    "group_lasso, a float": kind(lambda: jp.group_lasso(MATRIX, 1.0), "`axis`", "1.0"),
    "group_norms without heads": value(
        lambda: jp.group_norms(MATRIX, "heads"), "'w'", "(8, 4)", "no heads", "integers"),
    "group_norms, None": kind(lambda: jp.group_norms(MATRIX, None), "`axis`", "None"),
    "group_norms, one axis twice": value(
        lambda: jp.group_norms(MATRIX, (0, -2)), "`axis`", "different", "'w'"),
    "group_norms of a mask": kind(lambda: jp.group_norms(MASK, 0), "'dense/kernel'", "bool"),
    "trimming_point of a tree": kind(lambda: jp.trimming_point(PARAMS), "trimming point", "dict"),
    "trimming_point of integers": kind(
        lambda: jp.trimming_point(jnp.ones(3, int)), "trimming point", "int32"),
    "add_penalty, swapped": kind(
        lambda: jp.add_penalty(0.1, jp.l1), "`penalty`", "function", "0.1"),
    "add_penalty, missing params": value(
        lambda: first_update(jp.add_penalty(jp.l1, 0.1), PARAMS),
        "tx.update(grads, opt_state, params)"),
    "add_penalty, text": kind(lambda: jp.add_penalty(jp.l1, "0.1"), "strength", "'0.1'"),
    "add_penalty, a vector": kind(
        lambda: pressed(jp.add_penalty(lambda tree: tree["dense"]["kernel"], 0.1)),
        "scalar-output", "(8, 4)"),
    "add_hoyer_square of parameters": kind(
        lambda: jp.add_hoyer_square(PARAMS), "strength", "number or a schedule", "dict"),
    "add_hoyer_square, NaN": value(
        lambda: jp.add_hoyer_square(np.nan), "strength", "finite", "nan"),
    "add_hoyer_square, None": kind(lambda: jp.add_hoyer_square(None), "strength", "None"),
    "add_hoyer_square, nothing to press": value(
        lambda: pressed(jp.add_hoyer_square(0.1), {"bias": jnp.ones(3)}), "no leaf", "['bias']"),
    "add_group_hoyer_square, axis by position": kind(
        lambda: jp.add_group_hoyer_square(0.1, "outputs"), "positional"),
    "add_group_hoyer_square, a float": kind(
        lambda: jp.add_group_hoyer_square(0.1, axis=0.5), "`axis`", "0.5"),
    "add_group_hoyer_square, an unknown name": value(
        lambda: jp.add_group_hoyer_square(0.1, axis="rows"), "inputs, outputs, heads", "'rows'"),
    "threshold_mask, swapped": kind(
        lambda: jp.threshold_mask(0.1, PARAMS), "prunable", "tree of arrays", "0.1"),
    "threshold_mask, text": kind(
        lambda: jp.threshold_mask(PARAMS, "0.1"), "threshold", "function of", "'0.1'"),
    "threshold_mask, NaN": value(lambda: jp.threshold_mask(PARAMS, np.nan), "threshold", "nan"),
    "threshold_mask of NaN": value(lambda: jp.threshold_mask(NAN, 0.1), "'w'", "NaN"),
    "threshold_mask, one for each weight": value(
        lambda: jp.threshold_mask(MATRIX, lambda w: w), "threshold", "'w'", "scalar", "(8, 4)"),
    "threshold_mask, no such axis": value(
        lambda: jp.threshold_mask(MATRIX, 0.1, axis=2), "`axis`", "'w'", "(8, 4)"),
    "signed_constant, swapped": value(
        lambda: jp.signed_constant(MASK, PARAMS), "the mask", "structure"),
    "signed_constant, no mask": kind(lambda: jp.signed_constant(PARAMS, None), "the mask", "None"),
    "rescale, scales of another tree": value(
        lambda: jp.rescale(PARAMS, {"w": 1.0}), "the scales", "structure"),
    "rescale, a number": kind(lambda: jp.rescale(PARAMS, 2.0), "the scales", "2.0"),
    "rescale by arrays": value(
        lambda: jp.rescale(MATRIX, {"w": jnp.ones(4)}), "the scale", "'w'", "scalar", "(4,)"),
    "inverse_density of None": kind(lambda: jp.inverse_density(None), "the mask", "None"),
    "inverse_density of a number": kind(lambda: jp.inverse_density(0.5), "the mask", "0.5"),
}  # fmt: skip

PATTERN = {
    "init_pattern_logits, n above m": value(
        lambda: jp.init_pattern_logits(MATRIX, 4, 2), "n <= m", "n = 4", "m = 2"),
    "init_pattern_logits, a float": kind(
        lambda: jp.init_pattern_logits(MATRIX, 2.0, 4), "whole number", "2.0"),
    "init_pattern_logits, sides": value(
        lambda: jp.init_pattern_logits({"w": jnp.ones((6, 4))}, 2, 4),
        "'w'", "divide by 4", "`where`"),
    "init_pattern_logits, too many": value(
        lambda: jp.init_pattern_logits({"w": jnp.ones((16, 4))}, 8, 16), "12,870", "smaller m"),
    "init_pattern_logits, numbers first": kind(
        lambda: jp.init_pattern_logits(2, 4, MATRIX), "whole number", "dict"),
    "init_pattern_logits, text": kind(
        lambda: jp.init_pattern_logits(MATRIX, 2, 4, prior="1"), "prior", "'1'"),
    "pattern_mask, swapped": value(
        lambda: jp.pattern_mask(PATTERNS, MATRIX, 2, 4), "'w'", "divide by 4"),
    "pattern_mask, another pattern": value(
        lambda: jp.pattern_mask(MATRIX, PATTERNS, 1, 4), "'w'", "(4, 2, 4)", "(6, 2, 4)"),
    "pattern_mask, other tree": value(
        lambda: jp.pattern_mask(PARAMS, PATTERNS, 2, 4), "the logits", "structure"),
    "pattern_mask, no logits": kind(
        lambda: jp.pattern_mask(MATRIX, None, 2, 4), "the logits", "None"),
    "gumbel_pattern_mask, no key": kind(
        lambda: jp.gumbel_pattern_mask(MATRIX, PATTERNS, KEY, 2, 4), "`jax.random.key(0)`"),
    "gumbel_pattern_mask, swapped": value(
        lambda: jp.gumbel_pattern_mask(KEY, PATTERNS, MATRIX, 2, 4), "'w'", "divide by 4"),
    "gumbel_pattern_mask, temperature": value(
        lambda: jp.gumbel_pattern_mask(KEY, MATRIX, PATTERNS, 2, 4, temperature=-1.0),
        "temperature"),
    "mask_count, n above m": value(
        lambda: jp.mask_count(5, 4, "n:m"), "n <= m", "n = 5", "m = 4"),
    "mask_count, a float": kind(lambda: jp.mask_count(2.5, 4, "n:m"), "whole number", "2.5"),
    "mask_count, text": kind(lambda: jp.mask_count("2", "4", "n:m"), "whole number", "'2'"),
    "mask_count, unknown": value(
        lambda: jp.mask_count(2, 4, "2:4"), "unstructured", "transposable", "'2:4'"),
    "smallest_n of 90": value(lambda: jp.smallest_n(90, 8), "sparsity", "[0, 1]", "90"),
    "smallest_n of text": kind(lambda: jp.smallest_n("0.9", 8), "sparsity", "'0.9'"),
    "smallest_n, swapped": value(lambda: jp.smallest_n(8, 0.5), "sparsity", "[0, 1]", "8"),
    "smallest_n, probability 1": value(
        lambda: jp.smallest_n(0.5, 8, probability=1.0), "probability", "[0, 1)", "1.0"),
    "pack_24 of a tree": kind(lambda: jp.pack_24(PARAMS), "one kernel at a time", "dict"),
    "pack_24 of a vector": value(lambda: jp.pack_24(jnp.ones(16)), "(..., rows, columns)", "(16,)"),
    "pack_24, columns": value(
        lambda: jp.pack_24(jnp.zeros((2, 6))), "divide by 16", "(2, 6)", "pad"),
    "pack_24 of a dense matrix": value(
        lambda: jp.pack_24(jnp.ones((2, 16))), "two of four", "nm_mask"),
    "pack_24, unknown layout": value(
        lambda: jp.pack_24(jnp.zeros((2, 16)), layout="column"), "layout", "row_major", "'column'"),
    "pack_24, CUTLASS's rows": value(
        lambda: jp.pack_24(jnp.zeros((8, 32)), layout="cutlass"), "divide by 32", "8 rows"),
    "unpack_24 of a matrix": kind(lambda: jp.unpack_24(KERNEL), "`pack_24`", "shape (8, 4)"),
    "unpack_24, unknown layout": value(
        lambda: jp.unpack_24(jp.pack_24(jnp.zeros((2, 16))), layout="?"), "layout", "'?'"),
}  # fmt: skip

apply = lambda params, x: x @ params["w"]
X = jnp.ones((16, 8))
NETWORKS = {
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

LINKS = {
    "keep_mask of parameters": kind(
        lambda: jp.keep_mask(PARAMS).init(PARAMS), "'dense/bias'", "boolean", "float32"),
    "keep_mask of another tree": value(
        lambda: jp.keep_mask({"w": None}).init(PARAMS), "the mask", "structure"),
    "keep_mask of None": kind(lambda: jp.keep_mask(None).init(PARAMS), "the mask", "None"),
    "keep_mask, missing params": value(
        lambda: first_update(jp.keep_mask(MASK), PARAMS), "tx.update(grads, opt_state, params)"),
    "keep_top_k of 90": value(lambda: jp.keep_top_k(90), "sparsity", "[0, 1]", "90"),
    "keep_top_k of 1.2": value(lambda: jp.keep_top_k(1.2), "sparsity", "[0, 1]", "1.2"),
    "keep_top_k of NaN": value(lambda: jp.keep_top_k(np.nan), "sparsity", "nan"),
    "keep_top_k of text": kind(lambda: jp.keep_top_k("0.9"), "sparsity", "'0.9'"),
    "keep_top_k of a mask": kind(lambda: jp.keep_top_k(MASK), "sparsity", "dict"),
    "keep_top_k, every 0": value(lambda: jp.keep_top_k(0.9, every=0), "`every`", "at least 1", "0"),
    "keep_top_k, every 2.5": kind(lambda: jp.keep_top_k(0.9, every=2.5), "`every`", "whole", "2.5"),
    "keep_top_k, missing params": value(
        lambda: first_update(jp.keep_top_k(0.9), PARAMS), "tx.update(grads, opt_state, params)"),
    "keep_top_k, nothing to prune": value(
        lambda: jp.keep_top_k(0.9).init({"bias": jnp.ones(3)}), "no leaf", "['bias']", "`where`"),
    "keep_nm, n above m": value(lambda: jp.keep_nm(4, 2), "n <= m", "n = 4", "m = 2"),
    "keep_nm, a float": kind(lambda: jp.keep_nm(2.0, 4), "whole number", "2.0"),
    "keep_nm, text": kind(lambda: jp.keep_nm("2", "4"), "whole number", "'2'"),
    "keep_nm, an unknown name": value(
        lambda: jp.keep_nm(2, 4, axis="rows").init(MATRIX), "inputs, outputs, heads", "'rows'"),
    "keep_nm, sides": value(
        lambda: jp.keep_nm(2, 4).init({"w": jnp.ones((6, 4))}), "['w']", "divide by 4", "`where`"),
    "keep_nm, a vector": value(
        lambda: jp.keep_nm(2, 4, where="dense").init(PARAMS), "'dense/bias'", "(4,)", "no inputs"),
    "keep_nm, missing params": value(
        lambda: first_update(jp.keep_nm(2, 4), PARAMS), "tx.update(grads, opt_state, params)"),
    "keep_transposable_nm, a schedule for m": kind(
        lambda: jp.keep_transposable_nm(2, SCHEDULE), "m", "function"),
    "problems of None": kind(lambda: jp.problems(None), "optimizer state", "None"),
    "problems of a link": kind(lambda: jp.problems(jp.keep_nm), "optimizer state", "keep_nm"),
    "straight_through, swapped": value(
        lambda: jp.straight_through(jp.keep_nm(2, 4), optax.sgd(0.1)).init(MATRIX),
        "`projection`", "optimizer first"),
    "straight_through, a mask": kind(
        lambda: jp.straight_through(optax.sgd(0.1), MASK),
        "`projection`", "transformation", "dict"),
    "straight_through, a decay schedule": kind(
        lambda: jp.straight_through(optax.sgd(0.1), jp.keep_nm(2, 4), decay=SCHEDULE),
        "`decay`", "function"),
    "top_k_mask, swapped": kind(lambda: jp.top_k_mask(3, MATRIX), "tree of arrays", "3"),
    "top_k_mask, a float": kind(lambda: jp.top_k_mask(MATRIX, 2.0), "k", "whole number", "2.0"),
    "top_k_mask, a fraction": kind(lambda: jp.top_k_mask(MATRIX, 0.1), "k", "whole number", "0.1"),
    "top_k_mask, too many": value(lambda: jp.top_k_mask(MATRIX, 33), "k", "32", "33"),
    "top_k_mask, negative": value(lambda: jp.top_k_mask(MATRIX, -1), "k", "-1"),
    "top_k_mask, text": kind(lambda: jp.top_k_mask(MATRIX, "3"), "k", "'3'"),
    "top_k_mask of nothing": value(lambda: jp.top_k_mask({}, 1), "no leaves"),
    "top_k_mask of NaN": value(lambda: jp.top_k_mask(NAN, 1), "'w'", "NaN"),
    "top_k_mask of a mask": kind(lambda: jp.top_k_mask(MASK, 1), "'dense/kernel'", "bool"),
    "nm_mask, n above m": value(lambda: jp.nm_mask(MATRIX, 4, 2), "n <= m", "n = 4"),
    "nm_mask, a float": kind(lambda: jp.nm_mask(MATRIX, 2.0, 4), "whole number", "2.0"),
    "nm_mask, numbers first": kind(lambda: jp.nm_mask(2, 4, MATRIX), "whole number", "dict"),
    "nm_mask of NaN": value(lambda: jp.nm_mask(NAN, 2, 4), "'w'", "NaN"),
    "nm_mask of a mask": kind(lambda: jp.nm_mask(MASK, 2, 4), "'dense/kernel'", "bool"),
    "nm_mask of a vector": value(
        lambda: jp.nm_mask({"b": jnp.ones(8)}, 2, 4), "'b'", "(8,)", "no inputs"),
    "nm_mask, an axis as a float": kind(
        lambda: jp.nm_mask(MATRIX, 2, 4, axis=1.0), "`axis`", "1.0"),
    "transposable_nm_mask, unknown method": value(
        lambda: jp.transposable_nm_mask(MATRIX, 2, 4, method="best"), "method", "'best'"),
    "transposable_nm_mask of integers": kind(
        lambda: jp.transposable_nm_mask({"w": jnp.ones((4, 4), int)}, 2, 4), "'w'", "int32"),
    "transposable_nm_mask, m too large": value(
        lambda: jp.transposable_nm_mask(MATRIX, 2, 64), "m <= 32", "m = 64"),
    "transposable_potentials, a mask of floats": kind(
        lambda: jp.transposable_potentials(MATRIX, MATRIX, 4), "'w'", "boolean", "float32"),
    "transposable_potentials, another shape": value(
        lambda: jp.transposable_potentials(MATRIX, {"w": KERNEL.T > 0}, 4), "'w'", "(8, 4)"),
}  # fmt: skip

ROWS = MASKS | SAMPLING | BUDGETS | PENALTIES | PATTERN | NETWORKS | LINKS


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_error_names_argument_leaf_and_remedy(row):
    with pytest.raises(row.error) as caught:
        row.use()
    missing = [word for word in row.words if word not in str(caught.value)]
    assert not missing, str(caught.value)


def test_all_public_functions_are_in_the_table():
    source = Path(__file__).read_text()
    functions = {name for name in jp.__all__ if not isinstance(getattr(jp, name), type)}
    assert {name for name in functions if f"jp.{name}(" not in source} == set()
