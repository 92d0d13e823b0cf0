"""Trains one phase on all devices, in a way that can be stopped at any moment.

Everything a step depends on is in `State` or follows from the step's number: the order of the
records, their augmentation and the draws of masks. A restored state therefore goes on to the same
bits. The host hands out steps, one or a few at a time, while those before them run.
"""

import functools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from orbax.checkpoint import v1 as ocp

import jaxprune as jp
from experiments import data
from experiments.phases import Network, Tree

_SECONDS_BETWEEN_REPORTS = 10.0
_EVALUATION_BATCH = 1000


class State(NamedTuple):
    """All that a phase's training changes, and the key of its draws."""

    params: Tree
    rest: Tree
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array
    loss: jax.Array  # summed since the last evaluation


class Room:
    """The model, the records and the devices: what stays the same for all phases."""

    def __init__(self, graph: nnx.GraphDef, dataset: data.Dataset, holdout: int = 0):
        heldout = (dataset.train_images[:0], dataset.train_labels[:0])
        if holdout:
            dataset, heldout = data.holdout(dataset, holdout)
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        self.split_by_record = NamedSharding(mesh, jax.P("data"))
        self.on_all = NamedSharding(mesh, jax.P())
        self.graph, self.dataset = graph, dataset
        self.train = self.replicated((dataset.train_images, dataset.train_labels))
        self.test = self.replicated((dataset.test_images, dataset.test_labels))
        self.heldout = self.replicated(heldout)
        self._accuracy = jax.jit(self._accuracy_of)

    def check(self, phase: Any) -> None:
        """Raises a ValueError if the phase can't run on these records and devices."""
        if not phase.epochs:
            return
        count, devices = len(self.train[1]), self.on_all.mesh.size
        if phase.batch % devices or phase.batch > count:
            raise ValueError(
                f"the batch of {phase.batch} must divide by the {devices} devices and be at most "
                f"the {count} training records"
            )
        if phase.needs_heldout and not len(self.heldout[1]):
            raise ValueError("choosing among sampled masks needs held-out records: set --holdout")

    def replicated(self, tree: Tree) -> Tree:
        """The tree on every device."""
        return jax.device_put(tree, self.on_all)

    def test_accuracy(self, weights: Tree, rest: Tree) -> jax.Array:
        """The fraction of test records classified correctly."""
        return self._accuracy(weights, rest, *self.test)

    def heldout_accuracy(self, weights: Tree, rest: Tree) -> jax.Array:
        """The fraction of held-out training records classified correctly."""
        return self._accuracy(weights, rest, *self.heldout)

    def calibration(self, count: int, batch: int) -> list[jax.Array]:
        """The first training images, normalised, in whole batches."""
        images = self.train[0][:count]
        images = data.normalize(images, self.dataset.mean, self.dataset.std)
        return [images[end - batch : end] for end in range(batch, len(images) + 1, batch)]

    def run(self, weights: Tree, rest: Tree, images, train: bool) -> tuple[jax.Array, Tree]:
        """Logits, and the rest of the model after seeing the images."""
        model = nnx.merge(self.graph, weights, rest, copy=True)
        logits = model(images, train=train)
        return logits, nnx.split(model, nnx.Param, ...)[2]

    def batch(self, records, indices: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images, augmented and normalised, and labels, each device with its part."""
        images, labels = (
            jax.lax.with_sharding_constraint(array[indices], self.split_by_record)
            for array in records
        )
        if self.dataset.augment:
            images = data.random_crop_flip(key, images)
        return data.normalize(images, self.dataset.mean, self.dataset.std), labels

    def loss(self, weights: Tree, rest: Tree, images, labels) -> tuple[jax.Array, Tree]:
        """Mean cross-entropy, and the rest of the model after seeing the images."""
        logits, rest = self.run(weights, rest, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), rest

    def _accuracy_of(self, weights, rest, images, labels):
        model = nnx.merge(self.graph, weights, rest, copy=True)
        devices = self.on_all.mesh.size
        size = devices * -(-min(_EVALUATION_BATCH, len(labels)) // devices)
        batches = jnp.arange(-(-len(labels) // size) * size).reshape(-1, size)

        def correct(indices):
            indices = jax.lax.with_sharding_constraint(indices, self.split_by_record)
            inputs = data.normalize(images[indices], self.dataset.mean, self.dataset.std)
            right = model(inputs, train=False).argmax(-1) == labels[indices]
            return jnp.sum(right & (indices < len(labels)), dtype=jnp.int32)

        return jnp.sum(jax.lax.map(correct, batches)) / len(labels)


def train(
    phase: Any,
    network: Network,
    density: float,
    room: Room,
    key: jax.Array,
    log: "PhaseLog",
    checkpoints: Path,
    checkpoint_seconds: float,
    evaluations: int,
    steps_per_call: int = 1,
) -> Network:
    """Trains the phase from its last checkpoint, or from `network`, to its end."""
    count = len(room.train[1])
    per_epoch = count // phase.batch
    steps = phase.epochs * per_epoch
    optimizer = phase.links(network, density, steps)
    initial_params = phase.begin(network, density)
    marks = evaluation_marks(steps, evaluations)
    next_mark = lambda step: min(mark for mark in marks if mark > step)
    order_key, draw_key, end_key = jax.random.split(key, 3)

    def one_step(state: State, records, order: jax.Array) -> State:
        augment_key, mask_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        images, labels = room.batch(records, order[state.step % per_epoch], augment_key)
        loss, rest, grads = phase.gradients(
            state.params,
            state.rest,
            lambda weights, rest: room.loss(weights, rest, images, labels),
            mask_key,
            state.step / steps,
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, rest, opt_state, state.key, state.step + 1, state.loss + loss)

    @functools.partial(jax.jit, donate_argnums=0)
    def run_until(state: State, records, order: jax.Array, last) -> tuple[State, jax.Array]:
        if steps_per_call == 1:  # XLA's CPU compiler is slow at convolutions inside loops
            state = one_step(state, records, order)
        else:
            state = jax.lax.while_loop(
                lambda state: state.step < last, lambda s: one_step(s, records, order), state
            )
        return state, jnp.copy(state.loss)

    @jax.jit
    def order_of(epoch):
        return data.epoch_batches(jax.random.fold_in(order_key, epoch), count, phase.batch)

    @jax.jit
    def current(state: State, mask: Tree):
        key = jax.random.fold_in(state.key, steps + state.step)
        weights, mask = phase.current(state.params, mask, key)
        return weights, jp.sparsity(mask)

    state = room.replicated(
        State(
            params=jax.tree.map(jnp.copy, initial_params),
            rest=jax.tree.map(jnp.copy, network.rest),
            opt_state=optimizer.init(initial_params),
            key=draw_key,
            step=jnp.int32(0),
            loss=jnp.float32(0),
        )
    )
    with ocp.training.Checkpointer(
        str(checkpoints),
        # orbax annotates its own policies as if they didn't fit this argument
        # pyrefly: ignore[bad-argument-type]
        preservation_policy=ocp.training.preservation_policies.LatestN(1),
    ) as checkpointer:
        if checkpointer.latest is not None:
            state = checkpointer.load(checkpointer.latest.step, abstract(state))
        step = log.resume(int(state.step), steps)
        order, running, saved = None, None, time.monotonic()
        while step < steps:
            if order is None or step % per_epoch == 0:
                order = order_of(step // per_epoch)
            stops = (step + steps_per_call, (step // per_epoch + 1) * per_epoch, next_mark(step))
            step = min(stops)
            before = running
            state, running = run_until(state, room.train, order, step)
            jax.block_until_ready(before)  # the host stays one call ahead, no more
            if log.report_is_due():
                log.report(int(state.step))
            if step in marks:
                weights, sparsity = current(state, network.mask)
                accuracy = room.test_accuracy(weights, state.rest)
                log.evaluation(step, step / per_epoch, state.loss / marks[step], accuracy, sparsity)
                state = state._replace(loss=jnp.zeros_like(state.loss))
            if time.monotonic() - saved > checkpoint_seconds:
                checkpointer.save(step, state)
                saved = time.monotonic()

    network = network._replace(rest=state.rest)
    heldout = lambda weights: room.heldout_accuracy(weights, state.rest)
    return phase.end(state.params, network, density, end_key, heldout)


def evaluation_marks(steps: int, evaluations: int) -> dict[int, int]:
    """The steps after which to evaluate, the last one among them, each with its distance."""
    marks = sorted({-(-steps * i // evaluations) for i in range(1, evaluations + 1)})
    return {mark: mark - before for before, mark in zip([0, *marks], marks, strict=False)}


def abstract(tree: Tree) -> Tree:
    """Shapes, dtypes and shardings, as orbax wants them for loading."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class Log:
    """The evaluations of a run, as rows in memory and lines of a file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("}")]

    def of_phase(self, number: int, name: str) -> "PhaseLog":
        """The part of the log that phase `number` writes."""
        return PhaseLog(self, number, name)

    def keep(self, rows: list[dict]) -> None:
        """Replaces all rows, at one stroke."""
        self.rows = rows
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.path)

    def append(self, row: dict) -> None:
        """Adds a row."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class PhaseLog:
    """Progress and evaluations of one phase."""

    def __init__(self, log: Log, number: int, name: str):
        self.log, self.number, self.name = log, number, name

    def resume(self, step: int, steps: int) -> int:
        """Forgets rows after `step`, from where training goes on."""
        here = (self.number, step)
        self.log.keep([row for row in self.log.rows if (row["number"], row["step"]) <= here])
        if step:
            print(f"{self.name}: goes on at step {step:,} of {steps:,}", flush=True)
        self.steps = steps
        self.evaluated = self.reported = time.monotonic()
        self.reported_step = step
        return step

    def report_is_due(self) -> bool:
        """Whether the last report was some time ago."""
        return time.monotonic() - self.reported > _SECONDS_BETWEEN_REPORTS

    def report(self, step: int) -> None:
        """Says how fast steps went since the last report, and how long the rest will take."""
        now = time.monotonic()
        rate = (step - self.reported_step) / (now - self.reported)
        print(
            f"{self.name}: step {step:,} of {self.steps:,}, {rate:.3g} steps/s, "
            f"{(self.steps - step) / rate:,.0f} s left",
            flush=True,
        )
        self.reported, self.reported_step = now, step

    def evaluation(self, step, epoch, loss, accuracy, sparsity) -> None:
        """Logs and prints one evaluation."""
        row = {
            "number": self.number,
            "phase": self.name,
            "step": step,
            "epoch": epoch,
            "loss": float(loss),
            "accuracy": float(accuracy),
            "sparsity": float(sparsity),
            "seconds": time.monotonic() - self.evaluated,
        }
        self.evaluated = time.monotonic()
        self.log.append(row)
        print(
            f"{self.name}: epoch {epoch:.1f}, loss {row['loss']:.4f}, "
            f"test accuracy {row['accuracy']:.2%}, sparsity {row['sparsity']:.2%}",
            flush=True,
        )
