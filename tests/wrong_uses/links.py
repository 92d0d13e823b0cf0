"""Of links, and of choosing by magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxprune as jp
from tests.wrong_uses.rows import (
    KERNEL,
    MASK,
    MATRIX,
    NAN,
    PARAMS,
    SCHEDULE,
    first_update,
    kind,
    value,
)

LAYER = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
STATE = nnx.state(LAYER, nnx.Param)
MASK_OF_STATE = jp.prunable(STATE)
TWO_WORDS = ("module of Flax NNX", "`nnx.state(model, nnx.Param)`")

ROWS = {
    "keep_mask of parameters": kind(
        lambda: jp.keep_mask(PARAMS).init(PARAMS), "'dense/bias'", "boolean", "float32"),
    "keep_mask of another tree": value(
        lambda: jp.keep_mask({"w": None}).init(PARAMS), "the mask", "structure"),
    "keep_mask of None": kind(lambda: jp.keep_mask(None).init(PARAMS), "the mask", "None"),
    "keep_mask, missing params": value(
        lambda: first_update(jp.keep_mask(MASK), PARAMS), "tx.update(grads, opt_state, params)"),
    "keep_sparse of 90": value(lambda: jp.keep_sparse(90), "sparsity", "[0, 1]", "90"),
    "keep_sparse of 1.2": value(lambda: jp.keep_sparse(1.2), "sparsity", "[0, 1]", "1.2"),
    "keep_sparse of NaN": value(lambda: jp.keep_sparse(np.nan), "sparsity", "nan"),
    "keep_sparse of text": value(lambda: jp.keep_sparse("0.9"), "sparsity", "'0.9'"),
    "keep_sparse of a mask": kind(
        lambda: jp.keep_sparse(MASK).init(PARAMS), "sparsity", "an array"),
    "keep_sparse, every 0": value(
        lambda: jp.keep_sparse(0.9, every=0), "`every`", "at least 1", "0"),
    "keep_sparse, every 2.5": kind(
        lambda: jp.keep_sparse(0.9, every=2.5), "`every`", "whole", "2.5"),
    "keep_sparse, missing params": value(
        lambda: first_update(jp.keep_sparse(0.9), PARAMS), "tx.update(grads, opt_state, params)"),
    "keep_sparse, nothing to prune": value(
        lambda: jp.keep_sparse(0.9).init({"bias": jnp.ones(3)}), "no leaf", "['bias']", "`where`"),
    "keep_sparse 4:2": value(lambda: jp.keep_sparse("4:2"), "n <= m", "n = 4", "m = 2"),
    "NM, a float": kind(lambda: jp.NM(2.0, 4), "whole number", "2.0"),
    "NM, text": kind(lambda: jp.NM("2", "4"), "whole number", "'2'"),
    "NM, an unknown name": value(
        lambda: jp.NM(2, 4, axis="rows"), "inputs, outputs, heads", "'rows'"),
    "keep_sparse 2:4, sides": value(
        lambda: jp.keep_sparse("2:4").init({"w": jnp.ones((6, 4))}),
        "['w']", "divide by 4", "`where`"),
    "keep_sparse 2:4, a vector": value(
        lambda: jp.keep_sparse("2:4", where="dense").init(PARAMS),
        "'dense/bias'", "(4,)", "no inputs"),
    "keep_sparse 2:4, missing params": value(
        lambda: first_update(jp.keep_sparse("2:4"), PARAMS), "tx.update(grads, opt_state, params)"),
    "NM, a schedule for m": kind(lambda: jp.NM(2, SCHEDULE), "m", "function"),
    "NM, an axis and transposable": value(
        lambda: jp.NM(2, 4, axis="outputs", transposable=True), "'outputs'", "leave it out"),
    "Blocks, a side of 0": value(lambda: jp.Blocks(0.5, (0, 4)), "side", "at least 1", "0"),
    "Blocks, three sides": kind(lambda: jp.Blocks(0.5, (4, 4, 4)), "(4, 4, 4)", "tile"),
    "Blocks, an unknown name": value(
        lambda: jp.Blocks(0.5, "columns"), "inputs, outputs, heads", "'columns'"),
    "Blocks, a vector": value(
        lambda: jp.keep_sparse(jp.Blocks(0.5, (2, 2)), where="dense").init(PARAMS),
        "'dense/bias'", "(4,)", "no inputs"),
    "keep_sparse, an unknown score": value(
        lambda: jp.keep_sparse(0.5, score="size"), "'size'", "magnitude"),
    "keep_sparse, an unknown scope": value(
        lambda: jp.keep_sparse(0.5, scope="erk"), "'erk'", "global"),
    "keep_sparse, missing gradients": value(
        lambda: jp.keep_sparse(0.5, score="saliency").update(
            PARAMS, jp.keep_sparse(0.5, score="saliency").init(PARAMS), PARAMS),
        "grad=grads"),
    "keep_sparse, scores of another shape": value(
        lambda: jp.prune_to(PARAMS, 0.5, score=jax.tree.map(lambda _: jnp.ones(2), PARAMS)),
        "the score", "shape", "'dense/kernel'"),
    "keep_sparse, a tree and where": value(
        lambda: jp.keep_sparse(MASK, where="kernel").init(PARAMS), "leave out `where`"),
    "keep_sparse, None everywhere": value(
        lambda: jp.keep_sparse(jax.tree.map(lambda _: None, PARAMS)).init(PARAMS), "None"),
    "grasp_scores, parameters first": kind(
        lambda: jp.grasp_scores(PARAMS, lambda params: 0.0), "`loss`", "function", "dict"),
    "prune_to by movement": value(
        lambda: jp.prune_to(PARAMS, 0.5, score="movement"), "'movement'", "keep_sparse"),
    "prune_to of a schedule": kind(lambda: jp.prune_to(PARAMS, SCHEDULE), "sparsity", "function"),
    "prune_to, NaN": value(
        lambda: jp.prune_to({"w": jnp.full((2, 2), jnp.nan)}, 0.5), "'w'", "NaN"),
    "Above, text": kind(lambda: jp.Above("0.1"), "threshold", "'0.1'"),
    "Above, below 0": value(lambda: jp.Above(-1.0), "threshold", "-1.0"),
    "keep_sparse of another tree": value(
        lambda: jp.keep_sparse({"w": 0.5}).init(PARAMS), "the sparsity", "structure"),
    "regrow, swapped": kind(lambda: jp.regrow(MASK, optax.sgd(0.1)), "`inner`", "dict"),
    "regrow, fraction 30": value(
        lambda: jp.regrow(optax.sgd(0.1), MASK, fraction=30), "fraction", "[0, 1]", "30"),
    "regrow, every 0": value(
        lambda: jp.regrow(optax.sgd(0.1), MASK, every=0), "`every`", "at least 1"),
    "regrow by an unknown word": value(
        lambda: jp.regrow(optax.sgd(0.1), MASK, by="rigl"), "gradient", "random", "'rigl'"),
    "regrow by a number": kind(
        lambda: jp.regrow(optax.sgd(0.1), MASK, by=1.0), "`by`", "function", "1.0"),
    "regrow at random without a key": kind(
        lambda: jp.regrow(optax.sgd(0.1), MASK, by="random"), "key=jax.random.key(0)"),
    "regrow, a mask of floats": kind(
        lambda: jp.regrow(optax.sgd(0.1), PARAMS).init(PARAMS), "'dense/bias'", "boolean"),
    "regrow, missing params": value(
        lambda: first_update(jp.regrow(optax.sgd(0.1), MASK), PARAMS),
        "tx.update(grads, opt_state, params)"),
    "regrow by scores of another shape": value(
        lambda: first_update(
            jp.regrow(optax.sgd(0.1), MASK, by=lambda w, g: w[0]), PARAMS, PARAMS, PARAMS),
        "(8, 4)", "(4,)"),
    "an NNX module, keep_mask": kind(
        lambda: jp.keep_mask(MASK_OF_STATE).init(LAYER), *TWO_WORDS),
    "an NNX module, its mask of a state": kind(
        lambda: jp.keep_mask(jp.prunable(LAYER)).init(STATE), *TWO_WORDS),
    "an NNX module inside a tree": kind(
        lambda: jp.apply_mask({"net": LAYER}, {"net": MASK_OF_STATE}), *TWO_WORDS),
    "an NNX module, apply_mask": kind(lambda: jp.apply_mask(LAYER, MASK_OF_STATE), *TWO_WORDS),
    "an NNX module, current_mask": kind(
        lambda: jp.current_mask(LAYER, jp.keep_sparse(0.5).init(STATE)), *TWO_WORDS),
    "an NNX module in an update": kind(
        lambda: first_update(jp.keep_sparse(0.5), STATE, STATE, LAYER), *TWO_WORDS),
    "an NNX module in an init": kind(
        lambda: first_update(jp.keep_sparse(0.5), LAYER, STATE, STATE), *TWO_WORDS),
    "an NNX module in an update of probabilities": kind(
        lambda: first_update(jp.project_probabilities(0.5), STATE, STATE, LAYER), *TWO_WORDS),
    "problems of None": kind(lambda: jp.problems(None), "optimizer state", "None"),
    "problems of a link": kind(
        lambda: jp.problems(jp.keep_sparse), "optimizer state", "keep_sparse"),
    "straight_through, swapped": value(
        lambda: jp.straight_through(jp.keep_sparse("2:4"), optax.sgd(0.1)).init(MATRIX),
        "`projection`", "optimizer first"),
    "straight_through, a mask": kind(
        lambda: jp.straight_through(optax.sgd(0.1), MASK),
        "`projection`", "transformation", "dict"),
    "straight_through, a decay schedule": kind(
        lambda: jp.straight_through(optax.sgd(0.1), jp.keep_sparse("2:4"), decay=SCHEDULE),
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
