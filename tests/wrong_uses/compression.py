"""Of knapsacks, grids and compression."""

import jax.numpy as jnp

import jaxprune as jp
from tests.wrong_uses.rows import MASK, MATRIX, NAN, PARAMS, first_update, kind, value

NO_GRID = {"dense": {"kernel": None, "bias": None}}
ROWS = {
    "knapsack_mask, a cost of 0": value(
        lambda: jp.knapsack_mask(MATRIX, {"w": 0}, 8), "the cost of leaf 'w'", "at least 1", "0"),
    "knapsack_mask, a cost of 2.5": kind(
        lambda: jp.knapsack_mask(MATRIX, {"w": 2.5}, 8), "the cost of leaf 'w'", "whole", "2.5"),
    "knapsack_mask, the costs first": kind(
        lambda: jp.knapsack_mask(3, MATRIX, 8), "`knapsack_mask`", "tree of arrays", "3"),
    "knapsack_mask, no costs": value(
        lambda: jp.knapsack_mask(MATRIX, {"v": 1}, 8), "`costs`", "structure"),
    "knapsack_mask, a leaf without a cost": kind(
        lambda: jp.knapsack_mask(MATRIX, {"w": None}, 8), "the cost of leaf 'w'", "whole", "None"),
    "knapsack_mask, a budget below 0": value(
        lambda: jp.knapsack_mask(MATRIX, {"w": 1}, -1), "the budget", "at least 0", "-1"),
    "knapsack_mask, a budget of 0.5": kind(
        lambda: jp.knapsack_mask(MATRIX, {"w": 1}, 0.5), "the budget", "whole", "0.5"),
    "knapsack_mask of NaN": value(
        lambda: jp.knapsack_mask(NAN, {"w": 1}, 8), "'w'", "NaN"),
    "multiple_choice, other shapes": value(
        lambda: jp.multiple_choice([[1.0, 0.0]], [[1, 2, 3]], 3), "(1, 2)", "(1, 3)"),
    "multiple_choice of text": kind(
        lambda: jp.multiple_choice("errors", [[1, 2]], 3), "`errors`", "numbers", "'errors'"),
    "multiple_choice, a budget for nothing": value(
        lambda: jp.multiple_choice([[1.0, 0.0]], [[4, 5]], 3), "budget is 3", "take 4"),
    "multiple_choice, a budget of text": kind(
        lambda: jp.multiple_choice([[1.0]], [[4]], "3"), "the budget", "'3'"),
    "multiple_choice, NaN": value(
        lambda: jp.multiple_choice([[float("nan")]], [[4]], 5), "NaN"),
    "quantize_to, 9 bits": value(
        lambda: jp.quantize_to(PARAMS, MASK, 9), "'dense/kernel'", "at most 8", "9"),
    "quantize_to, 1.5 bits": kind(
        lambda: jp.quantize_to(PARAMS, MASK, 1.5), "'dense/kernel'", "whole", "1.5"),
    "quantize_to, a mask of floats": kind(
        lambda: jp.quantize_to(PARAMS, PARAMS, 2), "boolean", "'dense/bias'"),
    "quantize_to, bits of another tree": value(
        lambda: jp.quantize_to(PARAMS, MASK, {"w": 2}), "`bits`", "structure"),
    "pack_quantized without a grid": value(
        lambda: jp.pack_quantized(PARAMS, MASK, NO_GRID),
        "'dense/kernel'", "no grid", "quantize_to"),
    "unpack_quantized, no codes": value(
        lambda: jp.unpack_quantized(PARAMS, MASK, jp.quantize_to(PARAMS, MASK, 2)[1], NO_GRID),
        "'dense/kernel'", "4 bytes", "2 bits"),
    "compress_to, a budget below 0": value(
        lambda: jp.compress_to(PARAMS, -1), "the budget", "at least 0", "-1"),
    "compress_to, half a byte": kind(
        lambda: jp.compress_to(PARAMS, 0.5), "the budget", "whole", "0.5"),
    "compress_to, 16 bits": value(
        lambda: jp.compress_to(PARAMS, 9, most_bits=16), "`most_bits`", "at most 8", "16"),
    "compress_to, nothing to prune": value(
        lambda: jp.compress_to({"bias": jnp.ones(3)}, 9), "no leaf", "['bias']", "`where`"),
    "compress_to of NaN": value(lambda: jp.compress_to(NAN, 9), "'w'", "NaN"),
    "add_admm of a tree": kind(
        lambda: jp.add_admm(PARAMS, 0.1, every=9), "`projection`", "a function", "a dict"),
    "add_admm, every 0": value(
        lambda: jp.add_admm(jnp.abs, 0.1, every=0), "`every`", "at least 1", "0"),
    "add_admm, a strength of text": kind(
        lambda: jp.add_admm(jnp.abs, "0.1", every=9), "strength", "'0.1'"),
    "add_admm, missing params": value(
        lambda: first_update(jp.add_admm(lambda w: w, 0.1, every=9), PARAMS),
        "tx.update(grads, opt_state, params)"),
    "keep_quantized without a grid": value(
        lambda: jp.keep_quantized(MASK, NO_GRID).init(PARAMS),
        "'dense/kernel'", "no grid", "compress_to"),
    "keep_quantized, a mask for the grids": value(
        lambda: jp.keep_quantized(MASK, MASK).init(PARAMS), "'dense/kernel'", "no grid"),
}  # fmt: skip
