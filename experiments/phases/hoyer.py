"""DeepHoyer: training under a penalty, then a threshold."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments import structure
from experiments.phases.base import (
    KERNELS,
    Network,
    OneShot,
    Tree,
    check_choice,
    check_not_negative,
)
from experiments.phases.dense import Dense

_INPUTS_AND_OUTPUTS = ("inputs", "outputs")
_OF_CHANNELS = "channel_hoyer_square"
_PENALTIES = {
    "hoyer_square": jp.hoyer_square,
    "hoyer_ratio": jp.hoyer_ratio,
    "l1": jp.l1,
    "transformed_l1": jp.transformed_l1,
    "group_hoyer_square": functools.partial(jp.group_hoyer_square, axis=_INPUTS_AND_OUTPUTS),
    "group_lasso": functools.partial(jp.group_lasso, axis=_INPUTS_AND_OUTPUTS),
}


@dataclasses.dataclass(frozen=True)
class Regularize(Dense):
    """Training under a penalty, added to the gradient before the optimizer (DeepHoyer's way).

    `penalty` is one of hoyer_square, hoyer_ratio, l1, transformed_l1 for single weights, of
    group_hoyer_square, group_lasso for input channels plus filters (rows plus columns), or
    channel_hoyer_square for all that leaves the network with a channel.
    """

    penalty: str = "hoyer_square"
    strength: float = 1e-4
    name: str = "regularize"

    def __post_init__(self):
        super().__post_init__()
        check_choice("penalty", self.penalty, [*_PENALTIES, _OF_CHANNELS])
        check_not_negative(self, "strength")

    def links(self, network, sparsity, steps, room):
        """As for dense training, with the penalty in front."""
        by_channels = self.penalty == _OF_CHANNELS
        of = _channel_hoyer_square(network, room) if by_channels else _PENALTIES[self.penalty]
        penalty = jp.add_penalty(of, self.strength, where=None if by_channels else KERNELS)
        return optax.chain(penalty, super().links(network, sparsity, steps, room))


def _channel_hoyer_square(network: Network, room) -> Callable[[Tree], jax.Array]:
    """Hoyer-Square of the channels of each layer, from the weights."""
    channels, rest = room.channels(network), network.parameters_mask()["rest"]

    def penalty(weights):
        return jp.hoyer_square(jp.channel_norms({"weights": weights, "rest": rest}, channels))

    return penalty


@dataclasses.dataclass(frozen=True)
class Threshold(OneShot):
    """One-shot pruning of what is small. Trains nothing.

    `value` is in units of each leaf's standard deviation (rule "std"), of its trimming point
    ("trimming_point"), or of the weights ("absolute"). With `groups`, the norms of input channels
    and filters (rows and columns) are compared, "std" meaning their root mean square. In a `chain`
    of layers weights from and to units that carry nothing are pruned as well.
    """

    value: float
    rule: str = "std"
    groups: bool = False
    chain: bool = False
    name: str = "threshold"

    def __post_init__(self):
        check_choice("rule", self.rule, ("std", "trimming_point", "absolute"))
        check_not_negative(self, "value")

    def check(self, network: Network, sparsity: float, room) -> None:
        """Raises an error for a chain that is none."""
        if self.chain:
            structure.check_chain(network.mask)

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with the mask of what reaches the threshold."""
        of_leaf = {
            "std": _root_mean_square if self.groups else jnp.std,
            "trimming_point": jp.trimming_point,
            "absolute": lambda x: 1.0,
        }[self.rule]
        axis = _INPUTS_AND_OUTPUTS if self.groups else None
        mask = jp.threshold_mask(
            network.weights, lambda x: self.value * of_leaf(x), axis=axis, where=KERNELS
        )
        return network._replace(mask=structure.without_dead_units(mask) if self.chain else mask)


def _root_mean_square(x):
    return jnp.sqrt(jnp.mean(x * x))
