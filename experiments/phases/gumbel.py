"""Subnetworks of random weights: by Gumbel-softmax, as a supermask, by edge-popup."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.phases.base import (
    BatchLoss,
    Network,
    Training,
    Tree,
    check_choice,
    check_not_negative,
    check_positive,
    kept,
    partition,
)

_SCORES_KEY = 0


@dataclasses.dataclass(frozen=True)
class Extract(Training):
    """Finds a subnetwork of the weights as they were initialised.

    `estimator` is "gumbel", "supermask" (Bernoulli, straight-through) or "edge_popup" (the largest
    scores of the network, or of each layer with `per_layer`). `rescale` is "smart" (a learned scale
    a layer), "dynamic" (by the inverse density of each draw) or "none". `budget` is how a sparsity
    is chosen: "free" (an outcome: the logits of at least 0 are kept), "penalty" (of `strength`,
    likewise), "top_k" (exactly the largest logits at the end), or "projection" (the same, of logits
    that are projected in every step); edge-popup always has one.
    """

    epochs: int
    batch: int = 256
    learning_rate: float = 50.0
    scale_learning_rate: float = 1e-3
    temperature: float = 1.0
    estimator: str = "gumbel"
    rescale: str = "smart"
    budget: str = "free"
    strength: float = 0.0
    per_layer: bool = False
    signed_constant: bool = True
    name: str = "extract"

    def __post_init__(self):
        check_choice("estimator", self.estimator, ("gumbel", "supermask", "edge_popup"))
        check_choice("rescale", self.rescale, ("smart", "dynamic", "none"))
        check_choice("budget", self.budget, ("free", "projection", "penalty", "top_k"))
        check_positive(self, "temperature")
        check_not_negative(self, "learning_rate", "scale_learning_rate", "strength")

    def begin(self, network: Network, sparsity: float) -> Tree:
        """Frozen weights, logits (or scores), and scales."""
        weights, mask = network.weights, network.mask
        if self.signed_constant:
            weights = jp.signed_constant(weights, mask)
        logits = jax.tree.map(lambda keep: jnp.zeros(keep.shape), mask)
        if self.estimator == "edge_popup":
            logits = _kaiming_uniform(logits)
        scales = jax.tree.map(lambda _: jnp.float32(1.0), mask)
        of_leaf = lambda keep: jnp.int32(kept(keep, sparsity))
        largest = jax.tree.map(of_leaf, mask) if self.per_layer else of_leaf(mask)
        frozen = {"weights": weights, "largest": largest}
        return {"logits": logits, "scales": scales, "frozen": frozen}

    def links(self, network: Network, sparsity: float, steps: int, room):
        """SGD with momentum for logits and for scales."""
        rate = self.learning_rate
        if self.estimator == "edge_popup":
            rate = optax.cosine_decay_schedule(rate, steps)
        of_logits = optax.sgd(rate, momentum=0.9)
        return partition(
            logits=optax.chain(self._penalty(network), of_logits, self._budget(sparsity, steps)),
            scales=optax.sgd(self.scale_learning_rate, momentum=0.9),
            frozen=optax.set_to_zero(),
        )

    def _penalty(self, network):
        """Pressure on the expected density."""
        if self.budget != "penalty":
            return optax.identity()
        size = sum(leaf.size for leaf in jax.tree.leaves(network.mask))
        expected = lambda logits: sum(
            jnp.sum(jax.nn.sigmoid(leaf)) / size for leaf in jax.tree.leaves(logits)
        )
        return jp.add_penalty(expected, self.strength)

    def _budget(self, sparsity, steps):
        if self.budget != "projection":
            return optax.identity()
        first, last = round(0.16 * steps), round(0.6 * steps)
        return jp.project_logits(jp.cubic_sparsity(sparsity, first, last))

    def gradients(self, params: Tree, rest: Tree, loss_of: BatchLoss, key, progress):
        """(loss, new rest, gradients) of one batch under one draw."""

        def loss(trained, rest):
            return loss_of(self._network_weights(params | trained, key), rest)

        trained = {name: params[name] for name in ("logits", "scales")}
        (loss, rest), grads = jax.value_and_grad(loss, has_aux=True)(trained, rest)
        return loss, rest, grads | {"frozen": optax.tree.zeros_like(params["frozen"])}

    def current(self, params: Tree, mask: Tree, key) -> tuple[Tree, Tree]:
        """The weights under one draw, as in training."""
        drawn = self._draw(params, key)
        return self._network_weights(params, key), jax.tree.map(lambda keep: keep > 0, drawn)

    def end(self, params: Tree, network: Network, sparsity: float, key, score) -> Network:
        """The extracted network, its scales folded into the weights."""
        logits = params["logits"]
        if self.estimator == "edge_popup":
            mask = jax.tree.map(lambda keep: keep > 0, self._draw(params, key))
        elif self.budget in ("projection", "top_k"):
            mask = jp.top_k_mask(logits, kept(logits, sparsity))
        else:
            mask = jax.tree.map(lambda logit: logit >= 0, logits)
        weights = self._rescaled(params, mask)
        return network._replace(weights=weights, mask=mask)

    def _network_weights(self, params, key):
        return self._rescaled(params, self._draw(params, key))

    def _rescaled(self, params, mask):
        weights = jp.apply_mask(params["frozen"]["weights"], mask)
        if self.rescale == "none":
            return weights
        dynamic = self.rescale == "dynamic"
        return jp.rescale(weights, jp.inverse_density(mask) if dynamic else params["scales"])

    def _draw(self, params, key):
        """A mask of 0 and 1 with a gradient."""
        logits = params["logits"]
        if self.estimator == "gumbel":
            return jp.gumbel_mask(key, logits, self.temperature)
        if self.estimator == "supermask":
            probs = jax.tree.map(jax.nn.sigmoid, logits)
            return jp.surrogate_gradient(jp.bernoulli_mask(key, probs), probs)
        scores = jax.tree.map(jnp.abs, logits)
        largest = params["frozen"]["largest"]
        if self.per_layer:
            return jp.surrogate_gradient(jax.tree.map(jp.top_k_mask, scores, largest), scores)
        return jp.surrogate_gradient(jp.top_k_mask(scores, largest), scores)


def _kaiming_uniform(tree: Tree) -> Tree:
    """Edge-popup's first scores: uniform in +-1 / sqrt(inputs)."""
    leaves, structure = jax.tree.flatten(tree)
    init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    keys = jax.random.split(jax.random.key(_SCORES_KEY), len(leaves))
    return structure.unflatten(
        init(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    )
