"""Links of the table after every optimizer of optax."""

import functools
import inspect

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

import jaxprune as jp
from tests.methods.link_table import (
    BY_NAME,
    distance,
    half_mask,
    mask_links,
    pruned_are_zero,
    sgd_then,
    weights,
)

RATE_IS_ENOUGH = """
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars
    lbfgs lion nadam nadamw novograd optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam
    rmsprop rprop sgd sign_sgd signum sm3 yogi
    contrib.acprop contrib.ademamix contrib.adopt contrib.cocob contrib.dadapt_adamw contrib.dog
    contrib.dowg contrib.galore contrib.madgrad contrib.momo contrib.momo_adam contrib.muon
    contrib.prodigy contrib.schedule_free_adamw contrib.schedule_free_sgd
    contrib.simplified_ademamix contrib.sophia
"""

OTHER_ARGUMENTS = {
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=0),
    "contrib.mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "contrib.sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
    "contrib.schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "contrib.reduce_on_plateau": lambda: optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau()
    ),
}

EXTRA_ARGS = {
    "lbfgs": ["value", "grad", "value_fn"],
    "polyak_sgd": ["value"],
    "contrib.momo": ["value"],
    "contrib.momo_adam": ["value"],
    "contrib.reduce_on_plateau": ["value"],
    "contrib.sophia": ["obj_fn"],
}

NOT_BEFORE_A_LINK = {
    "optimistic_adam": "deprecated by optax, which warns and names optimistic_adam_v2",
    "lookahead": "its updates are a pair of trees (fast, slow): a link stands inside, tested below",
    "contrib.dpsgd": "its gradients have an axis of examples that the parameters lack, so the "
    "gradients of chain's first link differ in shape from all others; tested below",
}


def optimizer(name):
    return getattr(optax_module(name), short(name))(0.1)


def optax_module(name):
    return optax.contrib if name.startswith("contrib.") else optax


def short(name):
    return name.removeprefix("contrib.")


# What optax 0.2.6, the oldest that is allowed, lacks.
NEWER = {"signum", "contrib.galore", "contrib.madgrad"}

OPTIMIZERS = {
    name: functools.partial(optimizer, name)
    for name in RATE_IS_ENOUGH.split()
    if name not in NEWER or hasattr(optax_module(name), short(name))
} | OTHER_ARGUMENTS


def test_no_optimizer_of_optax_is_forgotten():
    for prefix, module in [("", optax), ("contrib.", optax.contrib)]:
        for name, member in inspect.getmembers(module, inspect.isfunction):
            arguments = inspect.signature(member).parameters
            private = name.startswith(("_", "scale_by_"))
            if "learning_rate" in arguments and not private:
                assert prefix + name in OPTIMIZERS | NOT_BEFORE_A_LINK


LONG = ("lbfgs", "contrib.sophia")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(
            name,
            BY_NAME[row],
            id=f"{name}-{row}",
            marks=[pytest.mark.slow] * (name in LONG or (row == "top_k" and name != "adam")),
        )
        for name in OPTIMIZERS
        for row in ("keep_mask", "top_k")
    ],
)
def test_every_optimizer_of_optax(name, row, relaxed):
    """Not jitted as a whole, which would compile each of them anew."""
    params = row.params()
    tx = optax.chain(relaxed(OPTIMIZERS[name]()), row.make())
    state = tx.init(params)
    for count in range(1, 4):
        value, grads = jax.value_and_grad(distance)(params)
        asked = {"value": value, "grad": grads, "value_fn": distance, "obj_fn": distance}
        extra_args = {argument: asked[argument] for argument in EXTRA_ARGS.get(name, [])}
        updates, state = tx.update(grads, state, params, **extra_args)
        params = optax.apply_updates(params, updates)
        row.holds(params, count)


def test_keep_mask_inside_lookahead(relaxed):
    tx = relaxed(optax.lookahead(sgd_then(jp.keep_mask(half_mask())), 3, 0.5))
    pruned = jp.apply_mask(weights(), half_mask())
    params = optax.LookaheadParams.init_synced(pruned)
    state = tx.init(params)
    for _ in range(7):
        updates, state = tx.update(jax.grad(distance)(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    pruned_are_zero(params.fast, 7)
    pruned_are_zero(params.slow, 7)


@pytest.mark.filterwarnings("ignore:.seed. is deprecated")  # dpsgd itself passes it on
@mask_links
def test_links_after_dpsgd(row, relaxed):
    params = row.params()
    tx = optax.chain(relaxed(optax.contrib.dpsgd(0.1, 1.0, 0.1, seed=0)), row.make())
    of_two_examples = jax.tree.map(lambda g: jnp.stack([g, g]), jax.grad(distance)(params))
    updates, _ = tx.update(of_two_examples, tx.init(params), params)
    row.holds(optax.apply_updates(params, updates), 1)
