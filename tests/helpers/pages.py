"""The code of the documentation's pages."""

import doctest
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python(?: no-run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page):
    """Run a page's code from top to bottom: return its names, and how many examples failed.

    A block in ``python no-run`` is only shown; one with prompts is compared.
    """
    text, names = page.read_text(), {"__name__": page.stem}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for block in RUN.finditer(text):
        line = text.count("\n", 0, block.start(1))
        if block[1].startswith(">>>"):
            case = doctest.DocTestParser().get_doctest(block[1], {}, page.name, str(page), line)
            case.globs = names  # not a copy: later blocks see what this one names
            runner.run(case, clear_globs=False)
        else:
            exec(compile("\n" * line + block[1], str(page), "exec"), names)
    return names, runner.summarize(verbose=False).failed


def code_of(page, section):
    """Return the blocks of a page's section, those that are only shown too."""
    text = (DOCS / page).read_text()
    _, _, rest = text.partition(f"\n## {section}\n")
    blocks = BLOCK.findall(rest.partition("\n## ")[0])
    assert blocks, f"{page} has no code under {section!r}"
    return blocks
