"""Schedules of sparsity and temperature: optax schedules, from a step to a value."""

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
    for name, step in (("`begin`", begin), ("`end`", end)):
        checks.number(name, step, "a number of steps")
    if not 0 <= begin < end:
        raise ValueError(f"steps must satisfy 0 <= begin < end, got begin={begin}, end={end}")
    return optax.polynomial_schedule(0.0, final, 3, end - begin, begin)


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
