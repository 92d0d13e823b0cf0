"""How many masks a pattern has, and which pattern suits a sparsity."""

import collections
import math

from jaxprune.patterns import tiles
from jaxprune.trees import checks

_DIGIT = 6  # bits of a number of columns, at most 32


def mask_count(n: int, m: int, pattern: str) -> int:
    """The number of masks of an m-by-m tile that keep n m of its entries: the mask diversity.

    Args:
      n: how many are kept of m, 0 <= n <= m.
      m: the side of the tile, 1 to 32 (for "transposable" above 16 it takes long).
      pattern: "unstructured", "n:m" (along one side) or "transposable" (along both).

    Returns:
      The exact number; its logarithm to base 2 over m^2 is the diversity in bits a weight.

    Raises:
      TypeError: for n or m that isn't whole.
      ValueError: for n or m out of range, or an unknown pattern.

    Source: the question is that of Hubara et al. (NeurIPS 2021), section 3, who estimate the last
    as (m! (m-1)! ... (m-n+1)!), 144 for 2:4.

    >>> import jaxprune as jp
    >>> [jp.mask_count(2, 4, pattern) for pattern in ("unstructured", "n:m", "transposable")]
    [12870, 1296, 90]
    """
    tiles.check_pattern(n, m)
    if pattern == "unstructured":
        return math.comb(m * m, n * m)
    if pattern == "n:m":
        return math.comb(m, n) ** m
    if pattern != "transposable":
        raise ValueError(f'patterns are "unstructured", "n:m" and "transposable", got {pattern!r}')
    upper, lower = (_ways(rows, n, m) for rows in (m // 2, m - m // 2))
    # Halves fit where the columns' sums add up to n; `upper` counts all orders of the columns, of
    # which each fits in one order of `lower`.
    total = 0
    for columns, ways in upper.items():
        counts = [columns >> _DIGIT * s & (1 << _DIGIT) - 1 for s in range(n + 1)]
        fitting = sum(count << _DIGIT * (n - s) for s, count in enumerate(counts))
        orders = math.factorial(m) // math.prod(map(math.factorial, counts))
        total += ways * lower.get(fitting, 0) // orders
    return total


def _ways(rows: int, n: int, m: int) -> dict[int, int]:
    """In how many ways rows with n of m entries leave c_s columns with sum s.

    The keys are (c_0, ..., c_n) as digits of one integer, c_0 the lowest.
    """
    ways = {m: 1}
    for _ in range(rows):
        # A row takes entries from columns of sum 0, then 1, ...; those that it took move up by one.
        partial = {(0, n, columns): number for columns, number in ways.items()}
        for s in range(n + 1):
            following = collections.defaultdict(int)
            for (moved_up, left, columns), number in partial.items():
                here = columns >> _DIGIT * s & (1 << _DIGIT) - 1
                for k in range(min(left, here if s < n else 0) + 1):
                    after = columns + (moved_up - k << _DIGIT * s)
                    following[k, left - k, after] += number * math.comb(here, k)
            partial = following
        ways = {columns: number for (_, left, columns), number in partial.items() if left == 0}
    return ways


def smallest_n(sparsity: float, m: int, *, probability: float = 0.95) -> int:
    """The smallest n for which groups of m weights likely have no more than n non-zeros.

    For the conversion of an unstructured sparse network to N:M.

    Args:
      sparsity: fraction of zeros, which are taken to lie anywhere, in [0, 1].
      m: the size of a group, 1 to 32.
      probability: that a group fits, must be exceeded; in [0, 1).

    Returns:
      n, 0 to m.

    Raises:
      TypeError: for what is no number.
      ValueError: for a sparsity, m or probability out of range.

    Source: Hubara et al. (NeurIPS 2021), section 5.

    >>> import jaxprune as jp
    >>> [jp.smallest_n(sparsity, 8) for sparsity in (0.5, 0.7, 0.8, 0.9)]
    [6, 5, 4, 2]
    """
    checks.fraction("sparsity", sparsity)
    tiles.check_pattern(0, m)
    checks.number("probability", probability, "a number in [0, 1)")
    if not 0 <= probability < 1:
        raise ValueError(f"probability must lie in [0, 1), got {probability}")
    below = 0.0
    for n in range(m):
        below += math.comb(m, n) * (1 - sparsity) ** n * sparsity ** (m - n)
        if below > probability:
            return n
    return m
