"""The room in which phases work: the model, the records and the devices, the same for all."""

from typing import Any

import jax
from flax import nnx

import jaxprune as jp
from experiments import data
from experiments.devices import Devices
from experiments.phases.base import KERNELS, Network
from experiments.tasks import Task, Tree
from experiments.usage import UsageError


def initial_network(model: str, task: Task, key: jax.Array) -> tuple[Network, nnx.GraphDef]:
    """A model at its random initialisation, with a mask that keeps all of its kernels."""
    graph, weights, rest = nnx.split(task.build(model, nnx.Rngs(key)), nnx.Param, ...)
    return Network(weights, rest, jp.prunable(weights, KERNELS)), graph


class Room:
    """Calls the model for a task on the records of a data set."""

    def __init__(
        self,
        graph: nnx.GraphDef,
        dataset: data.Dataset,
        holdout: int = 0,
        devices: Devices | None = None,
    ):
        dataset, heldout = data.holdout(dataset, holdout)
        self.graph, self.task = graph, dataset.task
        self.devices = devices = devices or Devices.all()
        self.train = data.source(dataset.train, devices)
        self.test = data.source(dataset.test, devices)
        self.heldout = data.source(heldout, devices)
        at_once = self.task.records_at_once
        self.test_scores = self.test.scorer(self._scores, at_once)
        self._heldout_scores = self.heldout.scorer(self._scores, at_once)

    def check(self, phase: Any) -> None:
        """Raises a UsageError if the phase can't work on these records and devices."""
        count, devices = self.train.count, self.devices.sharing
        if not phase.epochs:
            if hasattr(phase, "batch"):
                self._check_calibration(phase)
            return
        if phase.batch < 1 or phase.batch % devices or phase.batch > count:
            raise UsageError(
                f"{phase.name}: the batch of {phase.batch} must be positive, divide by the "
                f"{devices} devices along data and be at most the {count} training records"
            )
        if phase.needs_heldout and not self.heldout.count:
            raise UsageError(
                f"{phase.name}: choosing among sampled masks needs held-out records: set --holdout"
            )

    def _check_calibration(self, phase):
        records = min(phase.records, self.train.count)
        if phase.batch > records:
            raise UsageError(
                f"{phase.name}: the batch of {phase.batch} must be at most the {records} training "
                "records that it looks at"
            )

    def test_metric(self, weights: Tree, rest: Tree) -> jax.Array:
        """The task's metric on the test records."""
        return self.test_scores(weights, rest).mean()

    def heldout_metric(self, weights: Tree, rest: Tree) -> jax.Array:
        """The task's metric on the held-out training records."""
        return self._heldout_scores(weights, rest).mean()

    def calibration(self, count: int, batch: int) -> list[Tree]:
        """Inputs of the model from the first training records, in whole batches."""
        inputs = self.task.inputs(self.train.first(count))
        return [
            jax.tree.map(lambda array, end=end: array[end - batch : end], inputs)
            for end in range(batch, data.count(inputs) + 1, batch)
        ]

    def example(self) -> Tree:
        """Inputs of the model from one training record."""
        return self.task.inputs(self.train.first(1))

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

    def loss(self, weights: Tree, rest: Tree, batch: Tree) -> tuple[jax.Array, Tree]:
        """The mean loss, and the rest of the model after seeing the batch."""
        model = self._model(weights, rest)
        with self.devices.in_model():
            loss = self.task.loss(model, batch)
        return loss, nnx.split(model, nnx.Param, ...)[2]

    def frozen_loss(self, weights: Tree, rest: Tree, batch: Tree) -> tuple[jax.Array, Tree]:
        """As `loss`, with the model called as in evaluation: norms keep their statistics."""
        model: Any = lambda inputs, train: self.run(weights, rest, inputs, train=False)[0]
        with self.devices.in_model():
            return self.task.loss(model, batch), rest

    def _model(self, weights, rest):
        return nnx.merge(self.graph, weights, rest, copy=True)

    def _scores(self, weights, rest, records):
        """A number a record, which the task's metric is the mean of."""
        with self.devices.in_model():
            return self.task.scores(self._model(weights, rest), records)
