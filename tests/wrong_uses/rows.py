"""What a row of the table is, and arguments that rows share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

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
