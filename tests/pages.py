"""The Python code of README.md and of the pages in docs/."""

import re
from pathlib import Path

_ROOT = Path(__file__).parent.parent


def text(page: str) -> str:
    """What a page says, such as `docs/channels.md`."""
    return (_ROOT / page).read_text()


def blocks(page: str) -> list[str]:
    """Its blocks of Python code."""
    return re.findall(r"```python\n(.*?)```", text(page), re.S)
