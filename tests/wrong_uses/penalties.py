"""Of penalties, norms and thresholds."""

import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from tests.wrong_uses.rows import MASK, MATRIX, NAN, PARAMS, first_update, kind, pressed, value

ROWS = {
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
