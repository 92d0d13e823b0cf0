"""What models are trained for: a file a task, and what the runner asks of it.

Runner, training loop, log and phases know records (a tree of arrays whose first axis counts them)
and a `Task`, nothing of images, logits or accuracy. A data set says which task it is for.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
from flax import nnx

Tree: TypeAlias = Any


class Metric(NamedTuple):
    """How good a model is: a mean over records. A fraction is shown in percent."""

    name: str
    higher_is_better: bool
    fraction: bool = False

    def text(self, value: float) -> str:
        """The value for people."""
        return f"{value:.2%}" if self.fraction else f"{value:.4f}"


class Task(Protocol):
    """What the records of a data set are, and what a model makes of them.

    All but `build` and `findings` run inside `jax.jit`, on records that lie on the device.
    """

    @property
    def records_at_once(self) -> int:
        """How many records are evaluated together, on all devices."""
        ...

    @property
    def metric(self) -> Metric:
        """What is measured on test records."""
        ...

    def build(self, model: str, rngs: nnx.Rngs) -> nnx.Module:
        """The model of that name at its random initialisation."""
        ...

    def batch(self, records: Tree, key: jax.Array) -> Tree:
        """A training batch of these records; the key is for augmentation."""
        ...

    def loss(self, model: nnx.Module, batch: Tree) -> jax.Array:
        """The mean loss of a batch, the model called as in training."""
        ...

    def inputs(self, records: Tree) -> Tree:
        """What the model is called with to evaluate or to calibrate it; no labels."""
        ...

    def outputs(self, model: nnx.Module, inputs: Tree, *, train: bool) -> jax.Array:
        """How the model is called."""
        ...

    def scores(self, model: nnx.Module, records: Tree) -> jax.Array:
        """One number a record, the model called as in evaluation; the metric is their mean."""
        ...

    def findings(self, model: str, mask: Tree) -> dict[str, Any]:
        """What else a mask tells about the model of that name, for result.json."""
        ...
