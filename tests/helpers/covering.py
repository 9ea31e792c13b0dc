"""A part of a grid of test cases in which every two values of different parameters meet."""

from collections import defaultdict
from itertools import combinations


def part(items):
    """Return the items to run, in order.

    Two parameters at a time find most of what three would (Kuhn et al. 2004): of a test with
    three parameters or more, an item runs if two of its values have not met in one before it.
    """
    met, numbers = defaultdict(set), defaultdict(dict)
    chosen = []
    for item in items:
        test = item.nodeid.partition("[")[0]
        parameters = getattr(item, "callspec", None)
        values = {} if parameters is None else parameters.params
        # Values may not be hashable; those of a grid are the same objects in all items.
        marks = []
        for name, value in sorted(values.items()):
            seen = numbers[test, name]
            marks.append((name, seen.setdefault(id(value), len(seen))))
        pairs = set(combinations(marks, 2))
        is_new = len(marks) < 3 or not pairs <= met[test]
        met[test] |= pairs
        if is_new:
            chosen.append(item)
    return chosen
