"""The parts that an experiment is made of: dense or regularised training, ProbMask search, pruning.

A phase takes a `Network` and gives a `Network`. The runner asks it, in this order, for what is
trained (`begin`), the optimizer, gradients in every step, the network as it stands (`current`), and
the outcome (`end`). Everything is composed of public links and functions of jaxprune and optax.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments import structure

Tree: TypeAlias = Any
# Mean loss of one batch: (weights, rest) -> (loss, rest).
Task = Callable[[Tree, Tree], tuple[jax.Array, Tree]]


class Network(NamedTuple):
    """Trainable weights, everything else of the model (BatchNorm statistics), and a mask."""

    weights: Tree
    rest: Tree
    mask: Tree

    def masked_weights(self) -> Tree:
        """The weights with exact zeros where the mask prunes."""
        return jp.apply_mask(self.weights, self.mask)


_sgd = functools.partial(optax.sgd, momentum=0.9)
_OPTIMIZERS = {"sgd": _sgd, "adam": optax.adam}
_INPUTS_AND_OUTPUTS = ("inputs", "outputs")
_PENALTIES = {
    "hoyer_square": jp.hoyer_square,
    "hoyer_ratio": jp.hoyer_ratio,
    "l1": jp.l1,
    "transformed_l1": jp.transformed_l1,
    "group_hoyer_square": functools.partial(jp.group_hoyer_square, axis=_INPUTS_AND_OUTPUTS),
    "group_lasso": functools.partial(jp.group_lasso, axis=_INPUTS_AND_OUTPUTS),
}


def _rate(peak: float, decay: str | tuple[float, ...], steps: int) -> optax.Schedule:
    """The learning rate over a phase."""
    if decay == "cosine":
        return optax.cosine_decay_schedule(peak, steps)
    falls = () if isinstance(decay, str) else decay
    return optax.piecewise_constant_schedule(peak, {round(at * steps): 0.1 for at in falls})


@dataclasses.dataclass(frozen=True)
class Dense:
    """Training of all weights, by default with SGD with momentum under a cosine.

    `optimizer` is "sgd" (momentum 0.9) or "adam"; weight decay is an L2 term in the gradient of
    either. `decay` of the learning rate is "cosine", "constant", or the fractions of the phase at
    which it is divided by 10.
    """

    epochs: int
    batch: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    decay: str | tuple[float, ...] = "cosine"
    name: str = "dense"
    needs_heldout = False

    def __post_init__(self):
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {[*_OPTIMIZERS]}, got {self.optimizer!r}")
        if isinstance(self.decay, str) and self.decay not in ("cosine", "constant"):
            raise ValueError(
                f"decay must be 'cosine', 'constant' or a tuple of fractions, got {self.decay!r}"
            )

    def begin(self, network: Network, density: float) -> Tree:
        """What is trained."""
        return network.weights

    def links(self, network: Network, density: float, steps: int):
        """An optax transformation of what `begin` gave."""
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            _OPTIMIZERS[self.optimizer](_rate(self.learning_rate, self.decay, steps)),
        )

    def gradients(self, weights: Tree, rest: Tree, task: Task, key, progress):
        """(loss, new rest, gradients) of one batch; `progress` rises from 0 to 1."""
        (loss, rest), grads = jax.value_and_grad(task, has_aux=True)(weights, rest)
        return loss, rest, grads

    def current(self, weights: Tree, mask: Tree, key) -> tuple[Tree, Tree]:
        """The weights to evaluate now, and their mask."""
        return weights, mask

    def end(self, weights: Tree, network: Network, density: float, key, accuracy) -> Network:
        """The trained network; `accuracy` measures weights on held-out training records."""
        return network._replace(weights=weights)


@dataclasses.dataclass(frozen=True)
class FineTune(Dense):
    """Training of the kept weights alone, by default at a constant learning rate."""

    batch: int = 128
    learning_rate: float = 1e-3
    decay: str | tuple[float, ...] = "constant"
    name: str = "fine-tune"

    def begin(self, network, density):
        """The weights with zeros where the mask prunes."""
        return network.masked_weights()

    def links(self, network, density, steps):
        """As for dense training, with what is pruned kept at zero."""
        return optax.chain(super().links(network, density, steps), jp.keep_mask(network.mask))


@dataclasses.dataclass(frozen=True)
class Regularize(Dense):
    """Training under a penalty, added to the gradient before the optimizer (DeepHoyer's way).

    `penalty` is one of hoyer_square, hoyer_ratio, l1, transformed_l1 for single weights, of
    group_hoyer_square, group_lasso for input channels plus filters (rows plus columns).
    """

    penalty: str = "hoyer_square"
    strength: float = 1e-4
    name: str = "regularize"

    def __post_init__(self):
        super().__post_init__()
        if self.penalty not in _PENALTIES:
            raise ValueError(f"penalty must be one of {[*_PENALTIES]}, got {self.penalty!r}")

    def links(self, network, density, steps):
        """As for dense training, with the penalty in front."""
        penalty = jp.add_penalty(_PENALTIES[self.penalty], self.strength)
        return optax.chain(penalty, super().links(network, density, steps))


@dataclasses.dataclass(frozen=True)
class PruneMagnitudes:
    """One-shot pruning: the largest magnitudes of the whole network stay. Trains nothing."""

    name: str = "magnitude"
    epochs: int = 0

    def end(self, network: Network, density: float, room) -> Network:
        """The network with the mask of its largest weights."""
        size = sum(leaf.size for leaf in jax.tree.leaves(network.mask))
        magnitudes = jax.tree.map(
            lambda weight, keep: None if keep is None else jnp.abs(weight),
            network.weights,
            network.mask,
        )
        return network._replace(mask=jp.top_k_mask(magnitudes, round(density * size)))


@dataclasses.dataclass(frozen=True)
class Threshold:
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
    epochs: int = 0

    def __post_init__(self):
        if self.rule not in ("std", "trimming_point", "absolute"):
            raise ValueError(
                f"rule must be 'std', 'trimming_point' or 'absolute', got {self.rule!r}"
            )

    def end(self, network: Network, density: float, room) -> Network:
        """The network with the mask of what reaches the threshold."""
        of_leaf = {
            "std": _root_mean_square if self.groups else jnp.std,
            "trimming_point": jp.trimming_point,
            "absolute": lambda x: 1.0,
        }[self.rule]
        axis = _INPUTS_AND_OUTPUTS if self.groups else None
        mask = jp.threshold_mask(network.weights, lambda x: self.value * of_leaf(x), axis=axis)
        return network._replace(mask=structure.without_dead_units(mask) if self.chain else mask)


def _root_mean_square(x):
    return jnp.sqrt(jnp.mean(x * x))


@dataclasses.dataclass(frozen=True)
class Search:
    """ProbMask: keep probabilities trained beside the weights under one global budget.

    Fractions are of the phase's steps. With `train_weights=False` the weights stay as they were
    initialised, and the outcome is a supermask: then start below probability 1.
    """

    epochs: int
    batch: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    probability_learning_rate: float = 6e-3
    start: float = 1.0
    densify_until: float = 0.16
    reach_density_at: float = 0.60
    final_temperature: float = 0.03
    draws: int = 2
    clip: float = 3.0
    clip_jointly: bool = True
    train_weights: bool = True
    estimator: str = "pathwise"
    choose: str = "top_k"
    name: str = "search"

    def __post_init__(self):
        if self.estimator not in ("pathwise", "vrpge"):
            raise ValueError(f"estimator must be 'pathwise' or 'vrpge', got {self.estimator!r}")
        if self.choose not in ("top_k", "best_sampled"):
            raise ValueError(f"choose must be 'top_k' or 'best_sampled', got {self.choose!r}")

    @property
    def needs_heldout(self) -> bool:
        """Whether `end` measures masks on held-out training records."""
        return self.choose == "best_sampled"

    def begin(self, network, density):
        """Weights and, for each that the mask can prune, a keep probability."""
        probs = jax.tree.map(
            lambda keep: jnp.full_like(keep, self.start, dtype=jnp.float32), network.mask
        )
        return {"weights": network.weights, "probs": probs}

    def links(self, network, density, steps):
        """SGD for weights, projected Adam for probabilities, gradients clipped before both."""
        first, last = round(self.densify_until * steps), round(self.reach_density_at * steps)
        schedule = jp.cubic_sparsity(1 - density, first, last)
        clip = optax.clip_by_global_norm(self.clip)
        apart = optax.identity() if self.clip_jointly else clip
        weights = optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            _sgd(_rate(self.learning_rate, "cosine", steps)),
        )
        links: dict[Hashable, optax.GradientTransformation] = {
            "weights": optax.chain(apart, weights if self.train_weights else optax.set_to_zero()),
            "probs": optax.chain(
                apart,
                optax.adam(_rate(self.probability_learning_rate, "cosine", steps)),
                jp.project_probabilities(schedule),
            ),
        }
        together = clip if self.clip_jointly else optax.identity()
        return optax.chain(
            together, optax.partition(links, {"weights": "weights", "probs": "probs"})
        )

    def gradients(self, params, rest, task, key, progress):
        """(loss, new rest, gradients), each a mean over independent draws of the mask."""
        keys = jax.random.split(key, self.draws)
        if self.estimator == "vrpge":
            return _vrpge(params, rest, task, keys)

        temperature = jp.annealed_temperature(1, final=self.final_temperature)(progress)

        def mean_loss(params, rest):
            losses = []
            for draw in keys:
                mask = jp.relaxed_bernoulli(draw, params["probs"], temperature)
                loss, rest = task(jp.apply_mask(params["weights"], mask), rest)
                losses.append(loss)
            return sum(losses) / len(losses), rest

        (loss, rest), grads = jax.value_and_grad(mean_loss, has_aux=True)(params, rest)
        return loss, rest, grads

    def current(self, params, mask, key):
        """The weights under one sampled mask."""
        mask = jp.bernoulli_mask(key, params["probs"])
        return jp.apply_mask(params["weights"], mask), mask

    def end(self, params, network, density, key, accuracy):
        """The weights with the mask that `choose` finds."""
        weights, probs = params["weights"], params["probs"]
        if self.choose == "top_k":
            size = sum(leaf.size for leaf in jax.tree.leaves(probs))
            mask = jp.top_k_mask(probs, round(density * size))
        else:
            score = lambda mask: accuracy(jp.apply_mask(weights, mask))
            mask, _ = jp.best_sampled_mask(key, probs, score)
        return network._replace(weights=weights, mask=mask)


def _vrpge(params, rest, task, keys):
    losses, gradients, masks = [], [], []
    for draw in keys:
        mask = jp.bernoulli_mask(draw, params["probs"])
        masked = lambda weights, rest, mask=mask: task(jp.apply_mask(weights, mask), rest)
        (loss, rest), grads = jax.value_and_grad(masked, has_aux=True)(params["weights"], rest)
        losses.append(loss)
        gradients.append(grads)
        masks.append(mask)
    losses = jnp.stack(losses)
    grads = {
        "weights": jax.tree.map(lambda *each: sum(each) / len(each), *gradients),
        "probs": jp.vrpge_gradient(params["probs"], masks, losses),
    }
    return jnp.mean(losses), rest, grads
