"""Classification of images: cross-entropy, and the fraction that is classified correctly."""

import dataclasses
from typing import Any

import jax
import optax
from flax import nnx

from experiments import models, structure
from experiments.tasks import Metric, Tree, images


@dataclasses.dataclass(frozen=True)
class Classification:
    """Records are pairs: uint8 images (records, height, width, channels), int32 labels (records,).

    `mean` and `std` have one entry a channel and are in units where 255 is 1. `augment` says
    whether random crops and flips keep the label.
    """

    classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False

    records_at_once = 1000
    metric = Metric("accuracy", higher_is_better=True, fraction=True)

    def without_standardization(self) -> "Classification":
        """The same with pixels left in [0, 1]."""
        channels = self.image_shape[-1]
        return dataclasses.replace(self, mean=(0.0,) * channels, std=(1.0,) * channels)

    def build(self, model: str, rngs: nnx.Rngs) -> nnx.Module:
        """One of `experiments.models`."""
        return models.build(model, self.classes, self.image_shape, rngs)

    def batch(self, records: Tree, key: jax.Array) -> Tree:
        """Images, augmented and normalised, and labels."""
        pixels, labels = records
        if self.augment:
            pixels = images.random_crop_flip(key, pixels)
        return images.normalize(pixels, self.mean, self.std), labels

    def loss(self, model: nnx.Module, batch: Tree) -> jax.Array:
        """Mean cross-entropy."""
        inputs, labels = batch
        logits = self.outputs(model, inputs, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def inputs(self, records: Tree) -> jax.Array:
        """Images, normalised."""
        return images.normalize(records[0], self.mean, self.std)

    def outputs(self, model: Any, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Logits."""
        return model(inputs, train=train)

    def scores(self, model: nnx.Module, records: Tree) -> jax.Array:
        """Which records are classified correctly."""
        return self.outputs(model, self.inputs(records), train=False).argmax(-1) == records[1]

    def findings(self, model: str, mask: Tree) -> dict[str, Any]:
        """The structure that is left, for models that are chains of layers."""
        left = structure.of(model, self.image_shape, mask)
        return {"structure": left._asdict()} if left else {}
