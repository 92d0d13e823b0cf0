"""ProbMask: every weight has a probability of being kept, trained under one budget."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.phases.base import (
    check_choice,
    check_counts,
    check_fractions,
    check_fractions_above_0,
    check_not_negative,
    kept,
    partition,
    rising,
)
from experiments.phases.descent import Descent, decayed


@dataclasses.dataclass(frozen=True)
class Search(Descent):
    """ProbMask: keep probabilities trained beside the weights under one global budget.

    Weights are trained as in dense training. Fractions are of the phase's steps. With
    `train_weights=False` the weights stay as they were initialised, and the outcome is a supermask:
    then start below probability 1.
    """

    clip: float | None = 3.0
    probability_learning_rate: float = 6e-3
    start: float = 1.0
    dense_until: float = 0.16
    reach_sparsity_at: float = 0.60
    final_temperature: float = 0.03
    draws: int = 2
    clip_jointly: bool = True
    train_weights: bool = True
    estimator: str = "pathwise"
    choose: str = "top_k"
    name: str = "search"

    def __post_init__(self):
        super().__post_init__()
        check_choice("estimator", self.estimator, ("pathwise", "vrpge"))
        check_choice("choose", self.choose, ("top_k", "best_sampled"))
        check_counts(self, "draws")
        check_not_negative(self, "probability_learning_rate")
        check_fractions(self, "dense_until", "reach_sparsity_at")
        check_fractions_above_0(self, "start", "final_temperature")

    @property
    def needs_heldout(self) -> bool:
        """Whether `end` measures masks on held-out training records."""
        return self.choose == "best_sampled"

    def in_room(self, network, room):
        """The phase, if its estimator has draws enough."""
        if self.estimator == "vrpge" and self.draws < 2:
            raise ValueError(f"draws must be at least 2 for vrpge, got {self.draws}")
        return self

    def begin(self, network, sparsity):
        """Weights and, for each that the mask can prune, a keep probability."""
        probs = jax.tree.map(
            lambda keep: jnp.full_like(keep, self.start, dtype=jnp.float32), network.mask
        )
        return {"weights": network.weights, "probs": probs}

    def links(self, network, sparsity, steps, room):
        """As for dense training of weights, projected Adam for probabilities, both clipped."""
        schedule = rising(sparsity, self.dense_until, self.reach_sparsity_at, steps)
        jointly, apart = self.clipping(), optax.identity()
        if not self.clip_jointly:
            jointly, apart = apart, jointly
        weights = self.descent(steps) if self.train_weights else optax.set_to_zero()
        links = partition(
            weights=optax.chain(apart, weights),
            probs=optax.chain(
                apart,
                optax.adam(decayed(self.probability_learning_rate, "cosine", steps)),
                jp.project_probabilities(schedule),
            ),
        )
        return optax.chain(jointly, links)

    def gradients(self, params, rest, loss_of, key, progress):
        """(loss, new rest, gradients), each a mean over independent draws of the mask."""
        keys = jax.random.split(key, self.draws)
        if self.estimator == "vrpge":
            return _vrpge(params, rest, loss_of, keys)

        temperature = jp.annealed_temperature(1, final=self.final_temperature)(progress)

        def loss_of_draw(params, rest, draw):
            mask = jp.relaxed_bernoulli(draw, params["probs"], temperature)
            return loss_of(jp.apply_mask(params["weights"], mask), rest)

        found = []
        for draw in keys:
            (loss, rest), grads = jax.value_and_grad(loss_of_draw, has_aux=True)(params, rest, draw)
            # A draw begins when the one before is through: memory holds activations of but one.
            params, rest, loss, grads = jax.lax.optimization_barrier((params, rest, loss, grads))
            found.append((loss, grads))
        loss, grads = jax.tree.map(lambda *each: sum(each) / len(each), *found)
        return loss, rest, grads

    def current(self, params, mask, key):
        """The weights under one sampled mask."""
        mask = jp.bernoulli_mask(key, params["probs"])
        return jp.apply_mask(params["weights"], mask), mask

    def end(self, params, network, sparsity, key, score):
        """The weights with the mask that `choose` finds."""
        weights, probs = params["weights"], params["probs"]
        if self.choose == "top_k":
            mask = jp.top_k_mask(probs, kept(probs, sparsity))
        else:
            masked_score = lambda mask: score(jp.apply_mask(weights, mask))
            mask, _ = jp.best_sampled_mask(key, probs, masked_score)
        return network._replace(weights=weights, mask=mask)


def _vrpge(params, rest, loss_of, keys):
    losses, gradients, masks = [], [], []
    for draw in keys:
        mask = jp.bernoulli_mask(draw, params["probs"])
        masked = lambda weights, rest, mask=mask: loss_of(jp.apply_mask(weights, mask), rest)
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
