"""Constants that pruned channels still send, taken up by a bias of what receives them.

A channel whose kernel is pruned sends what its bias makes of zero: one number, whatever the inputs
are (`silence`). A product with it, or a convolution without padding, adds the same to all positions
of an output. If a leaf of the parameters is added to this result later, or subtracted from it as a
running mean is, and is used for nothing else, then that leaf can hold the constant instead.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks import program as programs
from jaxprune.networks import silence
from jaxprune.networks.coupling import Coupled
from jaxprune.networks.program import Body, Program, Step, all_steps, bind
from jaxprune.networks.rules import Axes
from jaxprune.networks.silence import Sum
from jaxprune.trees import masks

# What only moves entries, and what else can stand between a sum and its bias.
_MOVES = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze", "transpose")
_CARRIERS = (*_MOVES, "copy_p", "neg", "reduce_precision", "sharding_constraint")

_VARIES = "it isn't the same for all inputs"
_INSIDE = "it is used in a loop"
_PADDED = "padding makes it different at the borders"
_GROUPED = "a grouped convolution uses it"
_MULTIPLIED = "it is multiplied by what depends on the inputs"
_NO_BIAS = "nothing after it holds a bias"
_SHARED = "the bias after it has no entry for each output"
_PRUNED = "the mask prunes the bias after it"


class Receiver(NamedTuple):
    """A step that sums constants, and the leaf that can hold the result.

    `sender` is the operand that has the constants. `path` are the steps from the result to the
    leaf, with the operands that come from here; `moves` are those from the leaf to the last one.
    """

    step: Step
    sender: int
    path: list[tuple[Step, int]]
    leaf: int
    moves: list[Step]


class Folding(NamedTuple):
    """What leaves take up; and where other groups are heard, and why they can't be folded."""

    added: dict[int, jax.Array]
    obstacles: dict[int, str]


class _Listener(NamedTuple):
    """The sums of one step, the groups that it hears, and what can hold it, or why nothing can."""

    sums: list[Sum]
    groups: set[int]
    receiver: Any  # a Receiver or a string


def folding(
    found: Coupled, heard: dict[int, list[Sum]], leaves: Sequence[Any], keeps: Sequence[Any]
) -> Folding:
    """Folds what groups send to the sums that hear them.

    Args:
      found: the terms of a network.
      heard: the groups that are to leave, and the sums in which they are heard.
      leaves: the leaves of the masked parameters.
      keeps: their masks; a leaf takes up nothing where it is pruned.
    """
    network = _Network(found.program, len(leaves))
    listeners = _listeners(network, heard)
    obstacles: dict[int, str] = {}
    for listener in listeners:
        obstacles = _unfit(found, listener) | obstacles
    while left := [variable for variable in heard if variable not in obstacles]:
        gone = found.terms.leaving(left)
        able = [listener for listener in listeners if not listener.groups.isdisjoint(left)]
        amounts = network.amounts(able, [_sent(listener, gone) for listener in able], leaves)
        blocked = _blocked(able, amounts, keeps)
        if not blocked:
            return Folding(_totals(able, amounts), obstacles)
        obstacles = blocked | obstacles
    return Folding({}, obstacles)


def _listeners(network: "_Network", heard: dict[int, list[Sum]]) -> list[_Listener]:
    sums: dict[int, dict[int, Sum]] = {}  # by steps and axes
    groups: dict[int, set[int]] = {}
    for variable, own in heard.items():
        for one in own:
            sums.setdefault(id(one.step), {})[one.place] = one
            groups.setdefault(id(one.step), set()).add(variable)
    return [
        _Listener([*own.values()], groups[key], network.receiver(next(iter(own.values())).step))
        for key, own in sums.items()
    ]


def _unfit(found: Coupled, listener: _Listener) -> dict[int, str]:
    """The groups that send what varies, or to where nothing can hold it."""
    reasons: dict[int, str] = {}
    receiver = listener.receiver
    nowhere = isinstance(receiver, str)
    for one in listener.sums:
        senders = [*one.numbers] if nowhere else [receiver.sender]
        varies = np.all([np.isnan(one.numbers[sender]) for sender in senders], axis=0)
        for which, reason in ((~varies, receiver), (varies, _VARIES))[0 if nowhere else 1 :]:
            for term in one.terms[one.loud & which].tolist():
                reasons |= dict.fromkeys(found.terms.variables(term), f"{one}: {reason}")
    return {variable: reasons[variable] for variable in listener.groups & reasons.keys()}


def _blocked(listeners: Sequence[_Listener], amounts, keeps: Sequence[Any]) -> dict[int, str]:
    """The groups whose constants the leaves after them can't take up."""
    reasons: dict[int, str] = {}
    for listener, (amount, exact) in zip(listeners, amounts, strict=True):
        keep = keeps[listener.receiver.leaf]
        pruned = keep is not None and bool(jnp.any((amount != 0) & ~keep))
        if pruned or not exact:
            reason = f"{listener.sums[0]}: {_PRUNED if exact else _SHARED}"
            reasons |= dict.fromkeys(listener.groups, reason)
    return reasons


def _totals(listeners: Sequence[_Listener], amounts) -> dict[int, jax.Array]:
    totals: dict[int, jax.Array] = {}
    for listener, (amount, _) in zip(listeners, amounts, strict=True):
        leaf = listener.receiver.leaf
        totals[leaf] = totals[leaf] + amount if leaf in totals else amount
    return totals


def with_added(leaf: Any, amount: jax.Array | None) -> Any:
    """The leaf with what it takes up, in its dtype and sharded as it was."""
    if amount is None:
        return leaf
    wide = masks.at_least_float32(leaf)
    total = (jnp.asarray(leaf, wide) + amount.astype(wide)).astype(leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    on_a_mesh = isinstance(sharding, jax.sharding.NamedSharding)
    return jax.device_put(total, sharding) if on_a_mesh else total


def constants(found: Coupled, numbers: Sequence[Axes], gone: np.ndarray) -> list[np.ndarray]:
    """What leaves and is heard, sum by sum: numbers, or NaN where nothing could hold them."""
    network = _Network(found.program, len(numbers))
    sent = []
    for one in silence.sums(found, numbers):
        lost = gone[one.terms] & one.loud
        if lost.any():
            receiver = network.receiver(one.step)
            known = isinstance(receiver, Receiver)
            sent.append(one.numbers[receiver.sender][lost] if known else np.array([np.nan]))
    return sent


def same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    """Whether such constants are the same, to rounding."""
    close = lambda x, y: x.shape == y.shape and np.allclose(x, y, rtol=1e-5, equal_nan=True)
    return len(a) == len(b) and all(map(close, a, b))


class _Network:
    """Which steps make and use what is in the slots, and what doesn't depend on inputs."""

    def __init__(self, program: Program, number_of_leaves: int):
        self.program = program
        self.leaves = {slot: i for i, slot in enumerate(program.body.inputs[:number_of_leaves])}
        self.outer = {id(step) for step in program.body.steps}
        self.makers = {slot: step for step in program.body.steps for slot in step.outputs}
        self.uses: dict[int, list[tuple[Step, int]]] = {}
        for step, _ in all_steps(program.body):
            for place, slot in enumerate(step.inputs):
                self.uses.setdefault(slot, []).append((step, place))
        self.shown = {slot for body in _bodies(program.body) for slot in body.outputs}
        self.given = {*self.leaves, *(i for i, constant in enumerate(program.constant) if constant)}
        for step in program.body.steps:
            if not step.bodies and self.given.issuperset(step.inputs):
                self.given.update(step.outputs)

    def receiver(self, step: Step) -> Receiver | str:
        """What can hold the constants of a sum, or why nothing can."""
        if id(step) not in self.outer:
            return _INSIDE
        if step.name not in _SUMMED:
            return _NO_BIAS
        given = [slot in self.given for slot in step.inputs]
        if step.name == "conv_general_dilated":
            params = step.equation.params
            if params["feature_group_count"] > 1:
                return _GROUPED
            if np.any(params["padding"]) or np.any(np.array(params["lhs_dilation"]) > 1):
                return _PADDED
            given[0] = False  # images, which aren't summed over as a whole
        if not any(given):
            return _MULTIPLIED
        return self._to_a_leaf(step, 0 if given[1] else 1) or _NO_BIAS

    def _to_a_leaf(self, step: Step, sender: int) -> Receiver | None:
        """Follows the result as long as it is the only thing that hears of the constants."""
        path: list[tuple[Step, int]] = []
        slot = step.outputs[0]
        while use := self._only_use(slot):
            path.append(use)
            user, place = use
            others = [x for i, x in enumerate(user.inputs) if i != place]
            if user.name in ("add", "sub"):
                if held := self._moved_leaf(others[0]):
                    return Receiver(step, sender, path, *held)
            elif user.name == "mul" or (user.name == "div" and place == 0):
                if others[0] not in self.given:
                    return None
            elif user.name not in _CARRIERS:
                return None
            slot = user.outputs[0]
            if not self._is_floating(slot):
                return None  # it is rounded to an integer
        return None

    def _is_floating(self, slot: int) -> bool:
        return jnp.issubdtype(self.program.avals[slot].dtype, jnp.floating)

    def _only_use(self, slot: int) -> tuple[Step, int] | None:
        uses = self.uses.get(slot, [])
        alone = len(uses) == 1 and slot not in self.shown
        return uses[0] if alone and id(uses[0][0]) in self.outer else None

    def _moved_leaf(self, slot: int) -> tuple[int, list[Step]] | None:
        """A leaf that nothing else uses, and the steps that bring it here."""
        moves: list[Step] = []
        while self._only_use(slot):
            if slot in self.leaves:
                return (self.leaves[slot], moves[::-1]) if self._is_floating(slot) else None
            maker = self.makers.get(slot)
            if maker is None or maker.name not in _MOVES:
                return None
            moves.append(maker)
            slot = maker.inputs[0]
        return None

    def amounts(self, listeners: Sequence[_Listener], sent: list[np.ndarray], leaves):
        """What each leaf takes up, and whether this is what the sum gains in all positions."""

        @jax.jit
        def calculated(leaves, sent):
            value = _values(self, leaves)
            pairs = zip(listeners, sent, strict=True)
            return [self._amount(listener.receiver, numbers, value) for listener, numbers in pairs]

        return calculated(leaves, sent)

    def _amount(self, receiver: Receiver, sent, value: Callable[[int], Any]):
        step, sender = receiver.step, receiver.sender
        gained = _gained(step, sender, sent, value(step.inputs[1 - sender]))
        for user, place in receiver.path[:-1]:
            (gained,) = bind(user, self._operands(user, place, gained, value))
        user, _ = receiver.path[-1]
        shape = self.program.avals[user.outputs[0]].shape
        gained = jnp.broadcast_to(-gained if user.name == "sub" else gained, shape)
        leaf = self.program.avals[self.program.body.inputs[receiver.leaf]]
        entries = jnp.arange(leaf.size).reshape(leaf.shape)
        for move in receiver.moves:
            if move.name != "convert_element_type":
                (entries,) = bind(move, [entries])
        entries = jnp.broadcast_to(entries, shape)
        amount = jnp.zeros(leaf.size, gained.dtype).at[entries].set(gained)
        return amount.reshape(leaf.shape), jnp.all(amount[entries] == gained)

    def _operands(self, step: Step, place: int, gained, value: Callable[[int], Any]) -> list[Any]:
        """What a step that is linear in one operand makes the gain's: nothing is added to it."""
        nothing = lambda slot: jnp.zeros(self.program.avals[slot].shape, gained.dtype)
        other = nothing if step.name in ("add", "sub") else value
        return [gained if i == place else other(slot) for i, slot in enumerate(step.inputs)]


def _bodies(body: Body) -> Iterator[Body]:
    yield body
    for step, _ in all_steps(body):
        yield from step.bodies


def _values(network: _Network, leaves: Sequence[Any]) -> Callable[[int], Any]:
    """What is in slots that don't depend on inputs."""
    known = programs.constants(network.program) | {i: leaves[n] for i, n in network.leaves.items()}

    def value(slot: int):
        if slot not in known:
            maker = network.makers[slot]
            known.update(zip(maker.outputs, bind(maker, [*map(value, maker.inputs)]), strict=True))
        return known[slot]

    return value


def _of_matrix_product(step: Step):
    contracted, batched = step.equation.params["dimension_numbers"]
    places: list[dict[int, int]] = []
    start = batches = len(batched[0])
    for number, operand in enumerate(step.equation.invars):
        ended = {*contracted[number], *batched[number]}
        free = [axis for axis in range(len(operand.aval.shape)) if axis not in ended]
        results = [*range(batches), *range(start, start + len(free))]
        places.append(dict(zip([*batched[number], *free], results, strict=True)))
        start += len(free)
    return contracted, places


def _of_convolution(step: Step):
    (_, channels, *_), (outputs, inputs, *_), result = step.equation.params["dimension_numbers"]
    return ((channels,), (inputs,)), ({}, {outputs: result[1]})


# Of each operand the axes that are summed over, and where its other axes go.
_SUMMED = {"dot_general": _of_matrix_product, "conv_general_dilated": _of_convolution}


def _sent(listener: _Listener, gone: np.ndarray) -> np.ndarray:
    """The constants along the axes that are summed over, zero for all that stays."""
    step, sender = listener.receiver.step, listener.receiver.sender
    contracted, _ = _SUMMED[step.name](step)
    shape = step.equation.invars[sender].aval.shape
    sent = np.zeros([shape[i] for i in contracted[sender]])
    for one in listener.sums:
        numbers = np.moveaxis(sent, contracted[0].index(one.place), -1)  # a view
        lost = gone[one.terms] & ~np.isnan(one.numbers[sender])
        numbers[..., lost] = one.numbers[sender][lost]
    return sent


def _gained(step: Step, sender: int, sent, other) -> jax.Array:
    """The result of a product or convolution with what is sent at all positions."""
    contracted, places = _SUMMED[step.name](step)
    wide = masks.at_least_float32(other)
    axes = (tuple(range(sent.ndim)), contracted[1 - sender])
    other_axes = [i for i in range(other.ndim) if i not in contracted[1 - sender]]
    product = jnp.tensordot(
        jnp.asarray(sent, wide), other.astype(wide), axes, precision=jax.lax.Precision.HIGHEST
    )
    moved = [places[1 - sender].get(axis) for axis in other_axes]
    product = product.sum([i for i, place in enumerate(moved) if place is None])  # the window
    moved = [place for place in moved if place is not None]
    product = product.transpose(np.argsort(moved))
    aval = step.equation.outvars[0].aval
    return jax.lax.broadcast_in_dim(product.astype(aval.dtype), aval.shape, sorted(moved))
