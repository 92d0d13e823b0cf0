"""How phases train weights: the optimizer, its learning rate over the phase, clipping."""

import dataclasses
import functools

import optax

from experiments.phases.base import (
    Training,
    check_choice,
    check_not_negative,
    check_positive,
)

_L2 = {"sgd": functools.partial(optax.sgd, momentum=0.9), "adam": optax.adam}


@dataclasses.dataclass(frozen=True)
class Descent(Training):
    """What phases that train weights let one choose, by default SGD with momentum under a cosine.

    `optimizer` is "sgd" (momentum 0.9) or "adam", whose weight decay is an L2 term in the gradient,
    or "adamw" (b2 0.95), whose weights decay by themselves. The learning rate rises during the
    fraction `warmup` of the phase; `decay` is then "cosine", "constant", or the fractions at which
    it is divided by 10. Gradients have a global norm of at most `clip`.
    """

    epochs: int
    batch: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    decay: str | tuple[float, ...] = "cosine"
    warmup: float = 0.0
    clip: float | None = None

    def __post_init__(self):
        check_choice("optimizer", self.optimizer, [*_L2, "adamw"])
        if isinstance(self.decay, str) and self.decay not in ("cosine", "constant"):
            raise ValueError(
                f"decay must be 'cosine', 'constant' or a tuple of fractions, got {self.decay!r}"
            )
        if not isinstance(self.decay, str) and not all(0 <= at <= 1 for at in self.decay):
            raise ValueError(f"decay must be fractions in [0, 1], got {self.decay}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a fraction in [0, 1), got {self.warmup}")
        check_not_negative(self, "learning_rate", "weight_decay")
        check_positive(self, "clip")

    def clipping(self) -> optax.GradientTransformation:
        """Gradients of at most the norm `clip`, or as they are."""
        return optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip)

    def descent(self, steps: int) -> optax.GradientTransformation:
        """The optimizer with its learning rate over so many steps."""
        rate = decayed(self.learning_rate, self.decay, steps, self.warmup)
        if self.optimizer == "adamw":
            return optax.adamw(rate, b2=0.95, weight_decay=self.weight_decay)
        l2 = optax.add_decayed_weights(self.weight_decay)
        return optax.chain(l2, _L2[self.optimizer](rate))


def decayed(
    peak: float, decay: str | tuple[float, ...], steps: int, warmup: float = 0.0
) -> optax.Schedule:
    """The learning rate over a phase: "cosine", "constant", or a tenth at these fractions of it.

    It rises linearly in the first `warmup` of the phase; the rest is for what comes then.
    """
    if warmup:
        first = max(round(warmup * steps), 1)
        after = decayed(peak, decay, steps - first)
        return optax.join_schedules([optax.linear_schedule(0.0, peak, first), after], [first])
    if decay == "cosine":
        return optax.cosine_decay_schedule(peak, steps)
    falls = () if isinstance(decay, str) else decay
    return optax.piecewise_constant_schedule(peak, {round(at * steps): 0.1 for at in falls})
