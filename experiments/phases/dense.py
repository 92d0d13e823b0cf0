"""Training of all weights, and fine-tuning of those that a mask keeps."""

import dataclasses

import jax
import optax

import jaxprune as jp
from experiments.phases.base import BatchLoss, Network, Tree
from experiments.phases.descent import Descent


@dataclasses.dataclass(frozen=True)
class Dense(Descent):
    """Training of all weights."""

    name: str = "dense"

    def begin(self, network: Network, sparsity: float) -> Tree:
        """What is trained."""
        return network.weights

    def links(self, network: Network, sparsity: float, steps: int, room):
        """An optax transformation of what `begin` gave."""
        return optax.chain(self.clipping(), self.descent(steps))

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
