"""Schedules of sparsity, threshold and temperature: optax schedules, from a step to a value."""

import itertools

import jax.numpy as jnp
import optax

from jaxprune.trees import checks


def cubic_sparsity(final: float, begin: int, end: int) -> optax.Schedule:
    """Sparsity 0 until step `begin`, then rising to `final` at step `end`, fast at first.

    sparsity = final (1 - (1 - t)^3), t = (step - begin) / (end - begin) within [0, 1]
    ("To prune, or not to prune", Zhu and Gupta, 2017, equation 1).

    Args:
      final: in [0, 1].
      begin: first step of the rise, 0 <= begin < end.
      end: step from which the sparsity is `final`.

    Raises:
      TypeError: for what is no number.
      ValueError: for values outside these ranges.

    >>> import jaxprune as jp
    >>> schedule = jp.cubic_sparsity(0.9, begin=10, end=20)
    >>> [round(float(schedule(step)), 4) for step in (10, 15, 20, 30)]
    [0.0, 0.7875, 0.9, 0.9]
    """
    checks.fraction("the final sparsity", final)
    _check_steps(begin=begin, end=end)
    return optax.polynomial_schedule(0.0, final, 3, end - begin, begin)


def alternating_sparsity(final: float, begin: int, end: int, *, every: int) -> optax.Schedule:
    """Sparse and dense phases by turns (AC/DC): 0 or `final`.

    Dense until step `begin`, then `every` steps sparse, as many dense, and so on; sparse from step
    `end` on. With `keep_sparse(alternating_sparsity(...), every=...)`, whose own `every` divides
    the phases, `begin` and `end`, a sparse phase starts with the choice of a global mask and keeps
    it, and a dense phase lets the zeros train again. Two things differ from the paper's training:
    moments of pruned weights go on in sparse phases, by the gradients of the zeros, where it masks
    gradients and sets the momentum to zero with each dense phase; and it keeps the mask, where here
    a weight that becomes exactly zero by itself may change places with a pruned one.

    Args:
      final: in [0, 1].
      begin: first step of the first sparse phase, 0 <= begin < end.
      end: step from which all is sparse.
      every: the steps of a phase, at least 1.

    Raises:
      TypeError: for what is no number.
      ValueError: for values outside these ranges.

    Source: Peste et al., "AC/DC: Alternating compressed/decompressed training of deep neural
    networks" (NeurIPS 2021), algorithm 1.

    >>> import jaxprune as jp
    >>> schedule = jp.alternating_sparsity(0.9, begin=2, end=8, every=2)
    >>> [round(float(schedule(step)), 1) for step in range(10)]
    [0.0, 0.0, 0.9, 0.9, 0.0, 0.0, 0.9, 0.9, 0.9, 0.9]
    """
    checks.fraction("the final sparsity", final)
    _check_steps(begin=begin, end=end)
    checks.integer("`every`", every, least=1)

    def schedule(step):
        step = jnp.asarray(step)
        turn = (step - begin) // every % 2 == 0
        return jnp.where((step >= begin) & (turn | (step >= end)), final, 0.0)

    return schedule


def ramped_threshold(final: float, begin: int, turn: int, end: int) -> optax.Schedule:
    """Threshold 0 until step `begin`, then rising to `final` at step `end`, faster from `turn` on.

    The second slope is one and a half times the first: the ramp of "Exploring sparsity in recurrent
    neural networks" (Narang et al., ICLR 2017, section 3.1), for `Above`.

    Args:
      final: not negative; in the paper the magnitude below which the wanted fraction of the leaf's
        weights lies after dense training.
      begin: first step of the ramp, 0 <= begin < turn.
      turn: step from which it is steeper, < end; in the paper after a quarter of the training.
      end: step from which the threshold is `final`.

    Raises:
      TypeError: for what is no number.
      ValueError: for values outside these ranges.

    >>> import jaxprune as jp
    >>> schedule = jp.ramped_threshold(0.5, begin=10, turn=12, end=14)
    >>> [round(float(schedule(step)), 3) for step in (10, 11, 12, 13, 14, 15)]
    [0.0, 0.1, 0.2, 0.35, 0.5, 0.5]
    """
    checks.number("the final threshold", final, "a number")
    if not 0 <= final < float("inf"):
        raise ValueError(f"the final threshold must be finite and not negative, got {final}")
    _check_steps(begin=begin, turn=turn, end=end)
    gentle, steep = turn - begin, 1.5 * (end - turn)
    middle = final * gentle / (gentle + steep)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, middle, turn - begin, begin),
            optax.linear_schedule(middle, final, end - turn),
        ],
        [turn],
    )


def _check_steps(**steps: int) -> None:
    """Raises an error unless they are numbers that rise from 0 or more."""
    for name, step in steps.items():
        checks.number(f"`{name}`", step, "a number of steps")
    values = list(steps.values())
    if not values[0] >= 0 or any(not a < b for a, b in itertools.pairwise(values)):
        given = ", ".join(f"{name}={step}" for name, step in steps.items())
        raise ValueError(f"steps must satisfy 0 <= {' < '.join(steps)}, got {given}")


def annealed_temperature(steps: int, *, final: float = 0.03) -> optax.Schedule:
    """Temperature falling linearly from 1 to `final` over `steps` steps.

    1 / temperature is the inverse temperature 1 / (0.97 (1 - e/E) + 0.03) of "Effective
    Sparsification of Neural Networks with Global Sparsity Constraint" (CVPR 2021).

    Args:
      steps: positive.
      final: in (0, 1].

    Raises:
      TypeError: for what is no number.
      ValueError: for values outside these ranges.

    >>> import jaxprune as jp
    >>> round(1 / float(jp.annealed_temperature(300)(150)), 5)
    1.94175
    """
    checks.number("`steps`", steps, "a number of steps")
    checks.number("`final`", final, "a temperature")
    if steps <= 0 or not 0 < final <= 1:
        raise ValueError(f"needs steps > 0 and 0 < final <= 1, got {steps} and {final}")
    return optax.linear_schedule(1.0, final, steps)
