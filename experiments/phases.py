"""The parts that an experiment is made of: dense training, ProbMask search, pruning, fine-tuning.

A phase takes a `Network` and gives a `Network`. The runner asks it, in this order, for what is
trained (`begin`), the optimizer, gradients in every step, the network as it stands (`current`), and
the outcome (`end`). Everything is composed of public links and functions of jaxprune and optax.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp

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


@dataclasses.dataclass(frozen=True)
class Dense:
    """Training of all weights: SGD with momentum, cosine learning rate, weight decay."""

    epochs: int
    batch: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    name: str = "dense"
    needs_heldout = False

    def begin(self, network: Network, density: float) -> Tree:
        """What is trained."""
        return network.weights

    def optimizer(self, network: Network, density: float, steps: int):
        """An optax transformation of what `begin` gave."""
        return _sgd(optax.cosine_decay_schedule(self.learning_rate, steps), self.weight_decay)

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
    """Training of the kept weights alone, at a constant learning rate."""

    batch: int = 128
    learning_rate: float = 1e-3
    name: str = "fine-tune"

    def begin(self, network, density):
        """The weights with zeros where the mask prunes."""
        return network.masked_weights()

    def optimizer(self, network, density, steps):
        """SGD, with what is pruned kept at zero."""
        return optax.chain(_sgd(self.learning_rate, self.weight_decay), jp.keep_mask(network.mask))


@dataclasses.dataclass(frozen=True)
class PruneMagnitudes:
    """One-shot pruning: the largest magnitudes of the whole network stay. Trains nothing."""

    name: str = "magnitude"
    epochs: int = 0

    def end(self, network: Network, density: float) -> Network:
        """The network with the mask of its largest weights."""
        size = sum(leaf.size for leaf in jax.tree.leaves(network.mask))
        magnitudes = jax.tree.map(
            lambda weight, keep: None if keep is None else jnp.abs(weight),
            network.weights,
            network.mask,
        )
        return network._replace(mask=jp.top_k_mask(magnitudes, round(density * size)))


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

    def optimizer(self, network, density, steps):
        """SGD for weights, projected Adam for probabilities, gradients clipped before both."""
        cosine = lambda peak: optax.cosine_decay_schedule(peak, steps)
        first, last = round(self.densify_until * steps), round(self.reach_density_at * steps)
        schedule = jp.cubic_density(density, first, last)
        clip = optax.clip_by_global_norm(self.clip)
        apart = optax.identity() if self.clip_jointly else clip
        weights = _sgd(cosine(self.learning_rate), self.weight_decay)
        links: dict[Hashable, optax.GradientTransformation] = {
            "weights": optax.chain(apart, weights if self.train_weights else optax.set_to_zero()),
            "probs": optax.chain(
                apart,
                optax.adam(cosine(self.probability_learning_rate)),
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

        temperature = jp.annealed_temperature(1, self.final_temperature)(progress)

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
        "probs": jp.vrpge_gradient(losses, masks, params["probs"]),
    }
    return jnp.mean(losses), rest, grads


def _sgd(learning_rate, weight_decay: float):
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=0.9)
    )
