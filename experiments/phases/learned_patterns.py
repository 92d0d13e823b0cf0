"""Learned N:M patterns of trained, frozen weights."""

import dataclasses

import jax
import optax

import jaxprune as jp
from experiments.phases.base import (
    BatchLoss,
    Network,
    Training,
    Tree,
    check_not_negative,
    check_positive,
    partition,
)
from experiments.phases.nm import Pattern


@dataclasses.dataclass(frozen=True)
class LearnPattern(Pattern, Training):
    """Chooses an N:M pattern for each group of trained, frozen weights (MaskLLM's way).

    The temperature falls linearly from 1 to `final_temperature`; `prior` is how much the patterns
    of larger magnitudes are preferred at first.
    """

    epochs: int = 5
    batch: int = 128
    learning_rate: float = 0.05
    prior: float = 2.0
    final_temperature: float = 0.3
    name: str = "learn"

    def __post_init__(self):
        check_positive(self, "final_temperature")
        check_not_negative(self, "learning_rate", "prior")

    def begin(self, network: Network, sparsity: float) -> Tree:
        """Frozen weights and logits of patterns."""
        logits = jp.init_pattern_logits(
            network.weights,
            self.n,
            self.m,
            transposable=self.transposable,
            prior=self.prior,
            where=self.where,
        )
        return {"weights": network.weights, "logits": logits}

    def links(self, network: Network, sparsity: float, steps: int, room):
        """Adam for the logits."""
        return partition(
            logits=optax.adam(optax.cosine_decay_schedule(self.learning_rate, steps)),
            weights=optax.set_to_zero(),
        )

    def gradients(self, params: Tree, rest: Tree, loss_of: BatchLoss, key, progress):
        """(loss, new rest, gradients) of one batch under one draw."""
        weights = params["weights"]
        temperature = 1 + (self.final_temperature - 1) * progress

        def loss(logits, rest):
            mask = jp.gumbel_pattern_mask(
                key,
                weights,
                logits,
                self.n,
                self.m,
                transposable=self.transposable,
                temperature=temperature,
            )
            return loss_of(jp.apply_mask(weights, mask), rest)

        (loss, rest), grads = jax.value_and_grad(loss, has_aux=True)(params["logits"], rest)
        return loss, rest, {"weights": optax.tree.zeros_like(weights), "logits": grads}

    def current(self, params: Tree, mask: Tree, key) -> tuple[Tree, Tree]:
        """The weights under the patterns of the largest logits."""
        found = self._found(params, mask)
        return jp.apply_mask(params["weights"], found), found

    def end(self, params: Tree, network: Network, sparsity: float, key, score) -> Network:
        """The network with these patterns."""
        return network._replace(mask=self._found(params, network.mask))

    def _found(self, params, mask):
        weights = params["weights"]
        found = jp.pattern_mask(
            weights, params["logits"], self.n, self.m, transposable=self.transposable
        )
        return jax.tree.map(
            lambda _, keep, pattern: keep if pattern is None else pattern, weights, mask, found
        )
