"""The user's own module at the smaller sizes, for what a function can't do.

`Shrunk.apply` repeats the old function. A module can also be trained with batch statistics and
dropout, be initialised anew, and its sizes be saved. Flax NNX has sizes in attributes of layers
(`attributes`), Equinox in static fields of layers (`statics`), Flax Linen in fields of modules
(`fields`). A module is compared with `Shrunk.apply` before it is returned.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.networks.removal import Shrunk
from jaxprune.trees import checks, masks


def shrink_module(
    module: Any, small: Shrunk, *inputs: Any, approximate: bool = False, **kwargs: Any
) -> Any:
    """The module of a network that `shrink` made smaller, at the smaller sizes.

    Of Flax NNX, a copy with the smaller values, in which the sizes of Flax's layers
    (`in_features`, `feature_group_count`, `num_heads`) are true again; attributes of other classes
    stay. Of Equinox the same, with static fields of Equinox's layers (of an MLP whose hidden layers
    became different, `width_size` stays). Of Flax Linen, a clone with other integers in its fields,
    and in those of modules, tuples, dicts and dataclasses in them, such that `init` makes the
    smaller shapes. It is found by trying, a call of `jax.eval_shape(module.init)` each time.

    Args:
      module: the `nnx.Module`, `eqx.Module` or Linen's `nn.Module` whose parameters were shrunk. It
        isn't changed.
      small: what `shrink` returned. Its parameters are a state of the NNX module, of
        `(nnx.Param, nnx.BatchStat)` if it has batch statistics; or what `eqx.partition` or
        `eqx.filter` gives of the Equinox module; or all variables of the Linen module, or its
        collection "params" if there is no other. Trained further:
        `small._replace(params=...)`.
      *inputs: trees of arrays, with which both `small.apply(small.params, *inputs)` and the module
        are called; that of Equinox for each example, by `jax.vmap` over their first axes. They are
        called once more with random numbers in the place of floating ones: zeros tell little.
      approximate: whether a module may be returned that computes something else. A LayerNorm takes
        the mean over the features that are left, `small.apply`, as the masked network, divides
        by their old number; attention is scaled by the width of its heads.
      **kwargs: other arguments of the module's call, such as `deterministic=True`.

    Returns:
      A module. That of Linen computes with `small.params`.

    Raises:
      TypeError: for a module of another kind, or what `shrink` didn't return.
      ValueError: if the parameters aren't the module's, if Linen's fields don't allow the smaller
        shapes (with the name of the first leaf that doesn't fit), if the smaller module can't be
        called, or if it computes something else.

    >>> import jax, jax.numpy as jnp
    >>> import flax.linen as nn
    >>> import jaxprune as jp
    >>> model = nn.Sequential([nn.Dense(300), nn.relu, nn.Dense(10)])
    >>> images = jnp.ones((1, 64))
    >>> params = model.init(jax.random.key(0), images)
    >>> channels = jp.channel_groups(model.apply, params, images)
    >>> mask = jp.channel_mask(params, channels, (jnp.arange(300) < 100,))
    >>> small = jp.shrink(model.apply, params, mask, images)
    >>> jp.shrink_module(model, small, images).layers[0].features
    100
    """
    if not isinstance(small, Shrunk):
        raise TypeError(f"`small` must be what `shrink` returned, got {checks.described(small)}")
    resized, called = _framework(module)(small, inputs, kwargs)
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(small.apply)
        expected = [(own, apply(small.params, *own)) for own in (inputs, _random_like(inputs))]
        if not all(map(_is_finite, jax.tree.leaves(expected[1]))):
            expected.pop()  # the network doesn't take all numbers

        def off(module):
            call = called(module)
            return max(_difference(wanted, call(*own)) for own, wanted in expected)

        smaller = resized(module, off)
        difference = _callable(off, smaller)
    if difference > 0 and not approximate:
        raise ValueError(
            f"the smaller module differs from `small.apply` by {difference:.1e} of the largest "
            "output. A norm over features (LayerNorm), or attention that is scaled by the width of "
            "its heads, counts those that are left, where `small.apply` counts all. Keep these "
            "widths, take the module with `approximate=True` and fine-tune it, or go on with "
            "`small.apply`. Dropout must be off in the call"
        )
    return smaller


def _framework(module: Any) -> Callable[..., tuple[Callable, Callable]]:
    """How modules of its framework are resized and called, which is loaded only here."""
    import flax.linen as nn
    from flax import nnx

    if isinstance(module, nnx.Module):
        return _nnx
    if isinstance(module, nn.Module):
        return _linen
    if "equinox" in sys.modules and isinstance(module, sys.modules["equinox"].Module):
        return _equinox
    raise TypeError(
        "`module` must be a module of Flax NNX, Flax Linen or Equinox, got "
        f"{checks.described(module)}"
    )


def _nnx(small: Shrunk, inputs: tuple, kwargs: dict):
    from flax import nnx

    from jaxprune.networks import attributes

    def called(module):
        graph, state = nnx.split(module)
        call = lambda state, *inputs: nnx.merge(graph, state, copy=True)(*inputs, **kwargs)
        return functools.partial(jax.jit(call), state)

    return lambda module, off: attributes.with_values(module, small), called


def _equinox(small: Shrunk, inputs: tuple, kwargs: dict):
    import equinox as eqx

    from jaxprune.networks import statics

    def called(module):
        arrays, rest = eqx.partition(module, eqx.is_array)
        one = lambda *inputs: eqx.combine(arrays, rest)(*inputs, **kwargs)
        return jax.jit(jax.vmap(one))

    return lambda module, off: statics.with_values(module, small), called


def _linen(small: Shrunk, inputs: tuple, kwargs: dict):
    from jaxprune.networks import fields

    variables, kept = map(_variables, (small.params, small.indices))

    def shapes(module):
        init = functools.partial(module.init, **kwargs)
        made = jax.eval_shape(init, jax.random.key(0), *inputs)
        return {name: leaf.shape for name, leaf in fields.named(made).items()}

    def called(module):
        return functools.partial(jax.jit(functools.partial(module.apply, **kwargs)), variables)

    return lambda module, off: fields.with_shapes(module, fields.named(kept), shapes, off), called


def _variables(params):
    return params if "params" in params else {"params": params}


def _random_like(inputs: Any) -> Any:
    """Normal numbers in the place of all floating ones."""
    leaves, structure = jax.tree.flatten(inputs)
    keys = jax.random.split(jax.random.key(0), len(leaves) or 1)

    def of_leaf(leaf, key):
        leaf = jnp.asarray(leaf)
        if not masks.is_floating(leaf):
            return leaf
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    return structure.unflatten(map(of_leaf, leaves, keys))


def _is_finite(x: jax.Array) -> bool:
    return not masks.is_floating(x) or bool(jnp.all(jnp.isfinite(x)))


def _callable(off: Callable[[Any], float], smaller: Any) -> float:
    """How far the module is off; an error if it can't be called."""
    try:
        return off(smaller)
    except Exception as error:
        raise ValueError(
            f"the smaller module can't be called: {error}. An attribute of a class of your own may "
            "hold an old size, or variables that belong to what left, such as batch statistics, "
            "aren't among the parameters. `small.apply` computes with these parameters"
        ) from error


def _difference(expected: Any, got: Any) -> float:
    """The largest difference relative to the largest output; 0 for rounding, infinite for NaN."""
    if jax.tree.map(jnp.shape, expected) != jax.tree.map(jnp.shape, got):
        return float("inf")
    return max(map(_relative, *map(jax.tree.leaves, (expected, got))), default=0.0)


def _relative(expected: jax.Array, got: jax.Array) -> float:
    if not masks.is_floating(expected):
        return 0.0
    wide = masks.at_least_float32(expected)
    a, b = expected.astype(wide), got.astype(wide)
    difference = jnp.max(jnp.abs(a - b), initial=0) / (jnp.max(jnp.abs(a), initial=0) or 1.0)
    if difference <= jnp.finfo(expected.dtype).eps ** 0.5:
        return 0.0
    return float("inf") if jnp.isnan(difference) else float(difference)
