"""How a command line is read, and how it fails: in one line that says what to change.

What a user can have got wrong (a flag, a setting, a folder, a config file) is a `UsageError`,
raised before anything is trained. Every other exception is a bug and keeps its traceback.
"""

import argparse
import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Never


class UsageError(ValueError):
    """What was asked for can't be run; the message says what to change."""


def exit_with_one_line(main: Callable[[Sequence[str] | None], Any], arguments=None) -> None:
    """Runs a command; a `UsageError` becomes one line on stderr and exit code 2."""
    try:
        main(arguments)
    except UsageError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean ...?` if one of the choices is much like the word, else nothing."""
    found = difflib.get_close_matches(word, [*choices], n=1)
    return f"; did you mean {found[0]}?" if found else ""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UsageError`s. Flags can't be shortened."""

    def __init__(self, description: str | None):
        self.flags: list[str] = []
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As in argparse, and remembers the names."""
        self.flags += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **options)

    def error(self, message: str) -> Never:
        """Raises a UsageError."""
        raise UsageError(message)

    def check_known(self, unknown: Sequence[str], more_flags: Sequence[str] = ()) -> None:
        """Raises a UsageError for arguments that nobody reads, with the nearest flag."""
        for argument in unknown:
            flag = argument.partition("=")[0]
            hint = nearest(flag, [*self.flags, *more_flags])
            raise UsageError(f"unknown argument {argument}{hint or '; --help lists all'}")


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a UsageError for a name that isn't known."""
    known = [*known]
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise UsageError(f"{what}: unknown {name!r}: choose of {', '.join(known)}{hint}")


def check_found(words: Iterable[str], texts: Iterable[str]) -> None:
    """Raises a UsageError for a word that is in none of the texts."""
    texts = [*texts]
    for word in words:
        if not any(word in text for text in texts):
            raise UsageError(f"{word!r} is in none of: {'; '.join(texts)}")


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raises a UsageError unless the value is of the annotated type."""
    if not fits(value, kind):
        shown = kind.__name__ if isinstance(kind, type) else kind
        raise UsageError(f"{name} must be of type {shown}, got {value!r}")


def check_pattern(name: str, text: Any) -> None:
    """Raises a UsageError unless the text is a regular expression."""
    check_type(name, text, str)
    try:
        re.compile(text)
    except re.error as error:
        raise UsageError(f"{name}: {text!r} is no regular expression: {error}") from error


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type: a class, a union, or `tuple[class, ...]`."""
    parts = typing.get_args(kind)
    if kind is Any:
        return True
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(fits(each, parts[0]) for each in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)
