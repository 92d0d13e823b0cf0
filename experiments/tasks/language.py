"""Language modelling by bytes: each byte from those before it, measured in bits a byte."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments import models
from experiments.tasks import Metric, Tree


@dataclasses.dataclass(frozen=True)
class Language:
    """Records are uint8 (records, context + 1): all but the last byte go in, all but the first out.

    The loss is in bits a byte as well.
    """

    records_at_once = 64
    metric = Metric("bits_per_byte", higher_is_better=False)

    def build(self, model: str, rngs: nnx.Rngs) -> nnx.Module:
        """One of the decoders of `experiments.models`."""
        return models.decoder(model, rngs)

    def batch(self, records: Tree, key: jax.Array) -> Tree:
        """The records as they are."""
        return records

    def loss(self, model: nnx.Module, batch: Tree) -> jax.Array:
        """Mean bits a byte."""
        return self._bits(model, batch, train=True).mean()

    def inputs(self, records: Tree) -> jax.Array:
        """The bytes that are looked at."""
        return records[:, :-1].astype(jnp.int32)

    def outputs(self, model: Any, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the byte after each."""
        return model(inputs, train=train)

    def scores(self, model: nnx.Module, records: Tree) -> jax.Array:
        """The mean bits a byte of each record."""
        return self._bits(model, records, train=False).mean(-1)

    def findings(self, model: str, mask: Tree) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def _bits(self, model, records, train):
        logits = self.outputs(model, self.inputs(records), train=train)
        following = records[:, 1:].astype(jnp.int32)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, following)
        return nats / math.log(2)
