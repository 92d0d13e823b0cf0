"""Training of all weights, and fine-tuning of those that a mask keeps."""

import dataclasses

import jax
import optax

import jaxprune as jp
from experiments.phases.base import (
    OPTIMIZERS,
    BatchLoss,
    Network,
    Tree,
    check_choice,
    clipped,
    decayed,
    descent,
)


@dataclasses.dataclass(frozen=True)
class Dense:
    """Training of all weights, by default with SGD with momentum under a cosine.

    `optimizer` is "sgd" (momentum 0.9) or "adam", whose weight decay is an L2 term in the gradient,
    or "adamw" (b2 0.95), whose weights decay by themselves. The learning rate rises during the
    fraction `warmup` of the phase; `decay` is then "cosine", "constant", or the fractions at which
    it is divided by 10. Gradients have a global norm of at most `clip`.
    """

    epochs: int
    batch: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    decay: str | tuple[float, ...] = "cosine"
    warmup: float = 0.0
    clip: float | None = None
    name: str = "dense"
    needs_heldout = False

    def __post_init__(self):
        check_choice("optimizer", self.optimizer, [*OPTIMIZERS])
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a fraction in [0, 1), got {self.warmup}")
        if isinstance(self.decay, str) and self.decay not in ("cosine", "constant"):
            raise ValueError(
                f"decay must be 'cosine', 'constant' or a tuple of fractions, got {self.decay!r}"
            )

    def begin(self, network: Network, sparsity: float) -> Tree:
        """What is trained."""
        return network.weights

    def links(self, network: Network, sparsity: float, steps: int, room):
        """An optax transformation of what `begin` gave."""
        return optax.chain(clipped(self.clip), self.descent(steps))

    def descent(self, steps: int) -> optax.GradientTransformation:
        """The optimizer with its learning rate over the phase."""
        rate = decayed(self.learning_rate, self.decay, steps, self.warmup)
        return descent(self.optimizer, rate, self.weight_decay)

    def gradients(self, weights: Tree, rest: Tree, loss_of: BatchLoss, key, progress):
        """(loss, new rest, gradients) of one batch; `progress` rises from 0 to 1."""
        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(weights, rest)
        return loss, rest, grads

    def current(self, weights: Tree, mask: Tree, key) -> tuple[Tree, Tree]:
        """The weights to evaluate now, and their mask."""
        return weights, mask

    def end(self, weights: Tree, network: Network, sparsity: float, key, score) -> Network:
        """The trained network; `score` of weights is high if they suit held-out records."""
        return network._replace(weights=weights)


@dataclasses.dataclass(frozen=True)
class FineTune(Dense):
    """Training of the kept weights alone, by default at a constant learning rate."""

    batch: int = 128
    learning_rate: float = 1e-3
    decay: str | tuple[float, ...] = "constant"
    name: str = "fine-tune"

    def begin(self, network, sparsity):
        """The weights with zeros where the mask prunes."""
        return network.masked_weights()

    def links(self, network, sparsity, steps, room):
        """As for dense training, with what is pruned kept at zero."""
        links = super().links(network, sparsity, steps, room)
        return optax.chain(links, jp.keep_mask(network.mask))
