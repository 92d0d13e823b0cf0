"""Of patterns and learned patterns."""

import jax.numpy as jnp

import jaxprune as jp
from tests.wrong_uses.rows import KERNEL, KEY, MATRIX, PARAMS, PATTERNS, kind, value

ROWS = {
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
        lambda: jp.pack_24(jnp.zeros((8, 32), jnp.bfloat16), layout="cutlass"),
        "divide by 32", "8 rows"),
    "unpack_24 of a matrix": kind(lambda: jp.unpack_24(KERNEL), "`pack_24`", "shape (8, 4)"),
    "unpack_24, unknown layout": value(
        lambda: jp.unpack_24(jp.pack_24(jnp.zeros((2, 16))), layout="?"), "layout", "'?'"),
}  # fmt: skip
