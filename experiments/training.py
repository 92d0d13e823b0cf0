"""Trains one phase on all devices, in a way that can be stopped at any moment.

Everything a step depends on is in `State` or follows from the step's number: the order of the
records, their augmentation and the draws of masks. A restored state therefore goes on to the same
bits. The host hands out steps, one or a few at a time, while those before them run.
"""

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments import data, processes
from experiments.checkpoints import Checkpoints
from experiments.experiment import Experiment
from experiments.log import PhaseLog, announced
from experiments.phases.base import Network, Tree
from experiments.room import Room


class State(NamedTuple):
    """All that a phase's training changes, and the key of its draws."""

    params: Tree
    rest: Tree
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array
    loss: jax.Array  # summed since the last evaluation


def train(
    phase: Any,
    network: Network,
    experiment: Experiment,
    room: Room,
    key: jax.Array,
    log: PhaseLog,
    saved: AbstractContextManager[Checkpoints],
) -> Network:
    """Trains the phase from its last checkpoint, or from `network`, to its end."""
    order_key, draw_key, end_key = jax.random.split(key, 3)
    start = begun(phase, network, experiment, room, order_key)
    state = room.devices.placed(start.first_state(network, draw_key))
    with saved as checkpoints, closing(start.feed):
        state = checkpoints.latest(state)
        state = loop(state, network.mask, room, start, log, checkpoints)

    def score(weights: Tree) -> jax.Array:
        found = room.heldout_metric(weights, state.rest)
        return found if room.task.metric.higher_is_better else -found

    network = network._replace(rest=state.rest)
    network = start.phase.in_force(network, state.params, state.opt_state)
    with announced(f"{phase.name}: choosing the outcome"):
        return start.phase.end(state.params, network, experiment.sparsity, end_key, score)


class Begun(NamedTuple):
    """A phase before its first step; `first_state(network, key)` is what it starts from."""

    phase: Any
    steps: "Steps"
    feed: data.Feed
    programs: "Programs"
    first_state: Callable[[Network, jax.Array], State]


def begun(
    phase: Any, network: Network, experiment: Experiment, room: Room, order_key: jax.Array
) -> Begun:
    """What training the phase takes; of the network the shapes suffice."""
    phase = phase.in_room(network, room)
    steps = Steps.of(phase, room.train.count, experiment)
    links = phase.links(network, experiment.sparsity, steps.total, room)
    optimizer = optax.with_extra_args_support(links)
    feed = room.train.feed(phase.batch, order_key)
    programs = compiled(phase, optimizer, room, feed, steps)

    def first(network: Network, key: jax.Array) -> State:
        params = phase.begin(network, experiment.sparsity)
        return first_state(params, network.rest, optimizer, key)

    return Begun(phase, steps, feed, programs, first)


# When what happens ------------------------------------------------------------------------------


class Steps(NamedTuple):
    """The steps of a phase, and those after which the host does something."""

    in_epoch: int
    total: int
    in_call: int
    marks: dict[int, int]

    @classmethod
    def of(cls, phase: Any, records: int, experiment: Experiment) -> "Steps":
        """The steps of a phase that sees so many records an epoch."""
        in_epoch = records // phase.batch
        total = phase.epochs * in_epoch
        marks = evaluation_marks(total, experiment.evaluations)
        return cls(in_epoch, total, experiment.steps_per_call, marks)

    def next_stop(self, step: int) -> int:
        """How far the device can run by itself."""
        return min(step + self.in_call, *(mark for mark in self.marks if mark > step))


def evaluation_marks(steps: int, evaluations: int) -> dict[int, int]:
    """The steps after which to evaluate, the last one among them, each with its distance."""
    marks = sorted({-(-steps * i // evaluations) for i in range(1, evaluations + 1)})
    return {mark: mark - before for before, mark in zip([0, *marks], marks, strict=False)}


# What is compiled -------------------------------------------------------------------------------


class Programs(NamedTuple):
    """What runs on the device, each compiled once for a phase.

    `run_until(state, payload, last)` gives the state at that step, and a copy of its loss to wait
    for; `current(state, mask)` the weights to evaluate, the sparsity of their mask, and of each
    norm's scale how many entries are all but zero: these channels die by themselves.
    """

    run_until: Callable[..., tuple[State, jax.Array]]
    current: Callable[[State, Tree], tuple[Tree, jax.Array, Tree]]


def compiled(
    phase: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    room: Room,
    feed: data.Feed,
    steps: Steps,
) -> Programs:
    """The programs of a phase."""
    one_step = functools.partial(_one_step, phase, optimizer, room, feed, steps)

    @functools.partial(jax.jit, donate_argnums=0)
    def run_until(state: State, payload: Tree, last):
        if steps.in_call == 1:  # XLA's CPU compiler is slow at convolutions inside loops
            state = one_step(payload, state)
        else:
            more = lambda state: state.step < last
            state = jax.lax.while_loop(more, functools.partial(one_step, payload), state)
        return state, jnp.copy(state.loss)

    @jax.jit
    def current(state: State, mask: Tree):
        key = jax.random.fold_in(state.key, steps.total + state.step)
        kept = phase.in_force(Network(None, None, mask), state.params, state.opt_state)
        weights, mask = phase.current(state.params, kept.mask, key)
        dying = optax.tree.get(jp.count_dying().init(state.params), "dying")
        return room.devices.constrained(weights), jp.sparsity(mask), dying

    return Programs(run_until, current)


def _one_step(phase, optimizer, room, feed, steps, payload: Tree, state: State) -> State:
    batch_key, draw_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = room.task.batch(feed.records(payload, state.step), batch_key)
    of_batch = room.frozen_loss if phase.frozen_norms else room.loss
    loss_of = lambda weights, rest: of_batch(weights, rest, batch)
    progress = state.step / steps.total
    loss, rest, grads = phase.gradients(state.params, state.rest, loss_of, draw_key, progress)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, grad=grads)
    params = optax.apply_updates(state.params, updates)
    state = State(params, rest, opt_state, state.key, state.step + 1, state.loss + loss)
    return room.devices.constrained(state)


def first_state(
    params: Tree, rest: Tree, optimizer: optax.GradientTransformation, key: jax.Array
) -> State:
    """The state before the first step; copies, since each step takes its state over."""
    return State(
        params=jax.tree.map(jnp.copy, params),
        rest=jax.tree.map(jnp.copy, rest),
        opt_state=optimizer.init(params),
        key=key,
        step=jnp.int32(0),
        loss=jnp.float32(0),
    )


# The loop of the host ---------------------------------------------------------------------------


def loop(
    state: State,
    mask: Tree,
    room: Room,
    start: Begun,
    log: PhaseLog,
    checkpoints: Checkpoints,
) -> State:
    """Runs the phase from a state to its last step."""
    _, steps, feed, programs, _ = start
    step = log.resume(int(state.step), steps.total)
    running = None
    while step < steps.total:
        payload, before = feed.payload(step), running
        step = min(steps.next_stop(step), feed.serves_until(step))
        with log.dispatch():
            state, running = programs.run_until(state, payload, step)
        jax.block_until_ready(before)  # the host stays one call ahead, no more
        if log.report_is_due():
            log.report(int(state.step))
        if step in steps.marks:
            with announced(f"{log.name}: evaluating"):
                weights, sparsity, dying = programs.current(state, mask)
                value = float(room.test_metric(weights, state.rest))
            log.evaluation(
                step=step,
                epoch=step / steps.in_epoch,
                loss=state.loss / steps.marks[step],
                value=value,
                sparsity=sparsity,
                problems=jp.problems(state.opt_state),
                dying=_by_name(dying),
            )
            state = state._replace(loss=jnp.zeros_like(state.loss))
        if checkpoints.save_if_due(step, state):
            log.stopped(step)
            sys.exit(processes.STOPPED)
    return state


def _by_name(counts: Tree) -> dict[str, int]:
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): int(n) for path, n in jax.tree_util.tree_leaves_with_path(counts)}
