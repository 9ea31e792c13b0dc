"""The code of the documentation's pages."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python(?: no-run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of(page, section):
    """Return the blocks of a page's section, those that are only shown too."""
    text = (DOCS / page).read_text()
    _, _, rest = text.partition(f"\n## {section}\n")
    blocks = BLOCK.findall(rest.partition("\n## ")[0])
    assert blocks, f"{page} has no code under {section!r}"
    return blocks
