"""Of masks, selections, projections and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from tests.wrong_uses.rows import (
    DRAWN,
    KERNEL,
    KEY,
    LOGITS,
    MASK,
    MATRIX,
    NAN,
    PARAMS,
    PROBS,
    SCHEDULE,
    first_update,
    kind,
    pressed,
    value,
)

KEPT = jp.keep_mask(MASK)
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
    "table, bytes of other parameters": value(
        lambda: jp.table(MASK, params=MATRIX), "`params`", "'dense/kernel'", "['w']"),
    "table, a number of parameters": kind(
        lambda: jp.table(MASK, params=36), "`params`", "tree of arrays", "36"),
    "table of a state without a mask": value(
        lambda: jp.table(jp.project_probabilities(0.5).init(PROBS)), "keeps to a mask"),
    "table, operations by position": kind(lambda: jp.table(MASK, PARAMS), "positional"),
    "table, one number of operations": value(
        lambda: jp.table(MASK, flops=640), "`flops`", "'dense/kernel'"),
    "current_mask, swapped": value(
        lambda: jp.current_mask(KEPT.init(PARAMS), PARAMS), "the parameters first", "`keep_mask("),
    "current_mask of a state without one": value(
        lambda: jp.current_mask(PARAMS, optax.adam(0.1).init(PARAMS)), "keeps to a mask", "chain"),
    "current_mask of None": kind(
        lambda: jp.current_mask(PARAMS, None), "the optimizer state", "None"),
    "current_mask of other parameters": value(
        lambda: jp.current_mask(MATRIX, KEPT.init(PARAMS)), "'dense/kernel'", "(8, 4)", "none"),
    "current_mask of smaller parameters": value(
        lambda: jp.current_mask({"dense": {"kernel": KERNEL[:2]}}, KEPT.init(PARAMS)),
        "'dense/kernel'", "(8, 4)", "(2, 4)"),
    "overlaps with parameters": kind(
        lambda: jp.overlaps(MASK, PARAMS), "'dense/bias'", "float32"),
    "overlaps of other trees": value(lambda: jp.overlaps(MASK, DRAWN), "one tree", "dense", "'w'"),
    "overlaps of other shapes": value(
        lambda: jp.overlaps(DRAWN, {"w": KERNEL > 0}), "'w'", "(8,)", "(8, 4)"),
    "pack_mask of parameters": kind(lambda: jp.pack_mask(PARAMS), "'dense/bias'", "float32"),
    "pack_mask of None": kind(lambda: jp.pack_mask(None), "the mask", "None"),
    "unpack_mask, swapped": value(
        lambda: jp.unpack_mask(jp.pack_mask(MASK), PARAMS), "which come first", "`pack_mask("),
    "unpack_mask, a mask": kind(
        lambda: jp.unpack_mask(PARAMS, MASK), "'dense/kernel'", "uint8", "bool"),
    "unpack_mask of other parameters": value(
        lambda: jp.unpack_mask({"w": KERNEL.T}, jp.pack_mask({"w": KERNEL > 0})),
        "'w'", "(4, 1)", "(4, 8)", "(1, 4)"),
    "unpack_mask of another tree": value(
        lambda: jp.unpack_mask(PARAMS, jp.pack_mask(DRAWN)), "the packed mask", "structure"),
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
    "project_probabilities, costs that aren't reached": value(
        lambda: jp.project_probabilities(0.9, costs=lambda s: 1.0 + s["w"].sum()).init(PROBS),
        "sparsity of 0.9", "costs 1:", "at most"),
    "project_probabilities, costs of each weight": kind(
        lambda: jp.project_probabilities(0.9, costs=lambda s: s).init(PROBS), "`costs`", "dict"),
    "budget_mask, the budget first": kind(
        lambda: jp.budget_mask(3, PROBS, jp.count), "`budget_mask`", "tree of arrays", "3"),
    "budget_mask, text": kind(
        lambda: jp.budget_mask(PROBS, "3", jp.count), "the budget", "'3'"),
    "budget_mask, costs of each": kind(
        lambda: jp.budget_mask(PROBS, 3, PROBS), "`cost`", "function", "dict"),
    "budget_mask, a cost for each": kind(
        lambda: jp.budget_mask(PROBS, 3, lambda mask: mask["w"]), "`cost` returns", "(8,)"),
    "budget_mask, too low": value(
        lambda: jp.budget_mask(PROBS, 1, lambda mask: 2 + jp.count(mask)), "1", "costs 2"),
    "budget_mask, too low for the least": value(
        lambda: jp.budget_mask(PROBS, 1, jp.count, least=2), "2 largest", "cost 2"),
    "budget_mask, least as a fraction": kind(
        lambda: jp.budget_mask(PROBS, 3, jp.count, least=0.5), "`least`", "whole", "0.5"),
    "budget_mask, no multiple": value(
        lambda: jp.budget_mask(PROBS, 3, jp.count, multiple_of=0), "`multiple_of`", "at least 1"),
    "budget_mask of NaN": value(lambda: jp.budget_mask(NAN, 3, jp.count), "'w'", "NaN"),
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
    "alternating_sparsity of 90": value(
        lambda: jp.alternating_sparsity(90, 0, 9, every=2), "sparsity", "[0, 1]", "90"),
    "alternating_sparsity, steps swapped": value(
        lambda: jp.alternating_sparsity(0.9, 9, 0, every=2), "begin < end", "begin=9", "end=0"),
    "alternating_sparsity, every 0": value(
        lambda: jp.alternating_sparsity(0.9, 0, 9, every=0), "`every`", "at least 1"),
    "ramped_threshold, steps swapped": value(
        lambda: jp.ramped_threshold(0.1, 0, 9, 5), "begin < turn < end", "turn=9", "end=5"),
    "ramped_threshold below 0": value(
        lambda: jp.ramped_threshold(-0.1, 0, 5, 9), "threshold", "-0.1"),
    "erk_sparsities of 90": value(
        lambda: jp.erk_sparsities(PARAMS, 90), "sparsity", "[0, 1]", "90"),
    "erk_sparsities of a schedule": kind(
        lambda: jp.erk_sparsities(PARAMS, SCHEDULE), "sparsity", "function"),
    "erk_sparsities of a traced one": kind(
        lambda: jax.jit(lambda s: jp.erk_sparsities(PARAMS, s))(0.5), "sparsity", "traced", "jit"),
    "random_mask of a traced one": kind(
        lambda: jax.jit(lambda s: jp.random_mask(KEY, PARAMS, s))(0.5), "sparsity", "traced"),
    "random_mask of a leaf's traced one": kind(
        lambda: jax.jit(lambda s: jp.random_mask(KEY, MATRIX, {"w": s}))(0.5), "'w'", "traced"),
    "random_mask without a key": kind(lambda: jp.random_mask(PARAMS, PARAMS, 0.5), "key", "dict"),
    "random_mask of 90": value(lambda: jp.random_mask(KEY, PARAMS, 90), "[0, 1]", "90"),
    "random_mask of a wrong leaf": value(
        lambda: jp.random_mask(KEY, MATRIX, {"w": 1.5}), "leaf 'w'", "1.5"),
    "random_mask of another tree": value(
        lambda: jp.random_mask(KEY, PARAMS, {"w": 0.5}), "sparsities", "erk_sparsities"),
    "random_mask of a tree and where": value(
        lambda: jp.random_mask(KEY, MATRIX, {"w": 0.5}, where="w"), "`where`", "None"),
    "init_thresholds, a vector": value(
        lambda: jp.init_thresholds(PARAMS, where="bias"), "'dense/bias'", "outputs"),
    "above_thresholds of another shape": value(
        lambda: jp.above_thresholds(MATRIX, {"w": KERNEL.T}), "'w'", "(4, 8)", "(8, 4)"),
    "above_thresholds of a mask": kind(
        lambda: jp.above_thresholds(PARAMS, MASK), "'dense/kernel'", "bool"),
    "reset_thresholds, least 1 percent": value(
        lambda: jp.reset_thresholds(MATRIX, jp.init_thresholds(MATRIX), least=1.5), "1.5"),
    "annealed_temperature, no steps": value(lambda: jp.annealed_temperature(0), "steps", "0"),
    "annealed_temperature, text": kind(lambda: jp.annealed_temperature("9"), "steps", "'9'"),
    "annealed_temperature by position": kind(lambda: jp.annealed_temperature(9, 0.1), "positional"),
}  # fmt: skip

ROWS = MASKS | SAMPLING | BUDGETS
