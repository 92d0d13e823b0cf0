"""The room in which phases work: the model, the records and the devices, the same for all."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding

import jaxprune as jp
from experiments import data
from experiments.phases.base import Network
from experiments.tasks import Tree
from experiments.usage import UsageError


class Room:
    """Calls the model for a task; records lie on all devices, which share each batch."""

    def __init__(self, graph: nnx.GraphDef, dataset: data.Dataset, holdout: int = 0):
        dataset, heldout = data.holdout(dataset, holdout)
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        self.split_by_record = NamedSharding(mesh, jax.P("data"))
        self.on_all = NamedSharding(mesh, jax.P())
        self.graph, self.task = graph, dataset.task
        self.train, self.test = self.replicated((dataset.train, dataset.test))
        self.heldout = self.replicated(heldout)
        self._scores = jax.jit(self._scores_of)

    def check(self, phase: Any) -> None:
        """Raises a UsageError if the phase can't train on these records and devices."""
        count, devices = data.count(self.train), self.on_all.mesh.size
        if phase.batch < 1 or phase.batch % devices or phase.batch > count:
            raise UsageError(
                f"{phase.name}: the batch of {phase.batch} must be positive, divide by the "
                f"{devices} devices and be at most the {count} training records"
            )
        if phase.needs_heldout and not data.count(self.heldout):
            raise UsageError(
                f"{phase.name}: choosing among sampled masks needs held-out records: set --holdout"
            )

    def replicated(self, tree: Tree) -> Tree:
        """The tree on every device."""
        return jax.device_put(tree, self.on_all)

    def test_scores(self, weights: Tree, rest: Tree) -> jax.Array:
        """The scores of the test records; the task's metric is their mean."""
        return self._scores(weights, rest, self.test)

    def test_metric(self, weights: Tree, rest: Tree) -> jax.Array:
        """The task's metric on the test records."""
        return self.test_scores(weights, rest).mean()

    def heldout_metric(self, weights: Tree, rest: Tree) -> jax.Array:
        """The task's metric on the held-out training records."""
        return self._scores(weights, rest, self.heldout).mean()

    def calibration(self, count: int, batch: int) -> list[Tree]:
        """Inputs of the model from the first training records, in whole batches."""
        inputs = self.task.inputs(jax.tree.map(lambda array: array[:count], self.train))
        return [
            jax.tree.map(lambda array, end=end: array[end - batch : end], inputs)
            for end in range(batch, data.count(inputs) + 1, batch)
        ]

    def example(self) -> Tree:
        """Inputs of the model from one training record."""
        return self.task.inputs(jax.tree.map(lambda array: array[:1], self.train))

    def outputs(self, params: Tree, inputs: Tree) -> jax.Array:
        """Outputs of the model as a function of a network's `parameters`."""
        return self.run(params["weights"], params["rest"], inputs, train=False)[0]

    def channels(self, network: Network) -> jp.Channels:
        """The groups of channels that can leave the model."""
        with jax.ensure_compile_time_eval():
            shapes = jax.eval_shape(lambda: (network.parameters(), self.example()))
            return jp.channel_groups(self.outputs, *shapes)

    def run(self, weights: Tree, rest: Tree, inputs: Tree, train: bool) -> tuple[jax.Array, Tree]:
        """Outputs of the model, and its rest after seeing the inputs."""
        model = self._model(weights, rest)
        outputs = self.task.outputs(model, inputs, train=train)
        return outputs, nnx.split(model, nnx.Param, ...)[2]

    def batch(self, records: Tree, indices: jax.Array, key: jax.Array) -> Tree:
        """A training batch, each device with its part."""
        return self.task.batch(self._gathered(records, indices), key)

    def loss(self, weights: Tree, rest: Tree, batch: Tree) -> tuple[jax.Array, Tree]:
        """The mean loss, and the rest of the model after seeing the batch."""
        model = self._model(weights, rest)
        loss = self.task.loss(model, batch)
        return loss, nnx.split(model, nnx.Param, ...)[2]

    def _model(self, weights, rest):
        return nnx.merge(self.graph, weights, rest, copy=True)

    def _gathered(self, records, indices):
        of_array = lambda array: jax.lax.with_sharding_constraint(
            array[indices], self.split_by_record
        )
        return jax.tree.map(of_array, records)

    def _scores_of(self, weights, rest, records):
        model = self._model(weights, rest)
        count, devices = data.count(records), self.on_all.mesh.size
        size = devices * -(-min(self.task.records_at_once, count) // devices)
        batches = jnp.arange(-(-count // size) * size).reshape(-1, size)
        # Indices past the last record clamp to it, and don't count.
        of_batch = lambda indices: self.task.scores(model, self._gathered(records, indices))
        return jax.lax.map(of_batch, batches).ravel()[:count].astype(jnp.float32)
