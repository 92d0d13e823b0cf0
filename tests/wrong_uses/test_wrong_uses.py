"""What goes wrong when functions are used in the wrong way: errors that name the argument or leaf.

A wrong kind of argument is a TypeError, a wrong value of the right kind a ValueError.
"""

from pathlib import Path

import pytest

import jaxprune as jp
from tests.wrong_uses import compression, links, networks, patterns, penalties, trees

FILES = (trees, penalties, patterns, networks, links, compression)
ROWS = {name: row for file in FILES for name, row in file.ROWS.items()}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_error_names_argument_leaf_and_remedy(row):
    with pytest.raises(row.error) as caught:
        row.use()
    missing = [word for word in row.words if word not in str(caught.value)]
    assert not missing, str(caught.value)


def test_all_public_functions_are_in_the_table():
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    functions = {name for name in jp.__all__ if not isinstance(getattr(jp, name), type)}
    assert {name for name in functions if f"jp.{name}(" not in source} == set()
