"""What is said while records are read: how far, how fast, how long it takes yet."""

import sys
import time
from collections.abc import Iterable, Iterator

_SECONDS_BETWEEN_REPORTS = 5.0


def reported(title: str, chunks: Iterable[range], count: int) -> Iterator[range]:
    """Hands out the chunks of `range(count)`; when they take long, says how far they are."""
    started = reported = time.monotonic()
    for chunk in chunks:
        yield chunk
        now = time.monotonic()
        if now - reported >= _SECONDS_BETWEEN_REPORTS:
            reported = now
            rate = chunk.stop / (now - started)
            print(
                f"{title}: {chunk.stop:,} of {count:,} records, {rate:,.1f} a second, "
                f"{(count - chunk.stop) / rate:,.0f} s left",
                file=sys.stderr,
            )


def chunks(count: int, size: int) -> list[range]:
    """Cuts `range(count)` into pieces of a size, the last one maybe smaller."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
