"""A part of a grid of test cases in which every two values of different parameters meet."""

import heapq
from collections import defaultdict
from itertools import combinations


def part(items):
    """Return the items to run, in order.

    Two parameters at a time find most of what three would (Kuhn et al. 2004): of a test with
    three parameters or more, those items run that a greedy search for such a part takes.
    """
    grids, chosen = defaultdict(list), set()
    for item in items:
        grids[item.nodeid.partition("[")[0]].append(item)
    for grid in grids.values():
        chosen.update(cover(grid))
    return [item for item in items if item in chosen]


def cover(grid):
    """Return items of one test: each next one is that with the most pairs that have not met."""
    marks = marks_of(grid)
    if len(marks[0]) < 3:
        return grid
    pairs = [set(combinations(each, 2)) for each in marks]
    met, chosen = set(), []
    # How many are new can only fall: an item whose old number is the largest is counted again.
    queue = [(-len(new), position) for position, new in enumerate(pairs)]
    heapq.heapify(queue)
    while queue:
        old, position = heapq.heappop(queue)
        new = len(pairs[position] - met)
        if new == -old:
            met |= pairs[position]
            chosen.append(grid[position])
        elif new:
            heapq.heappush(queue, (-new, position))
    return chosen


def marks_of(grid):
    """Return each item's parameters by name, with what tells their values apart."""
    # Values may not be hashable; those of a grid are the same objects in all items.
    parameters = [getattr(item, "callspec", None) for item in grid]
    values = [{} if each is None else each.params for each in parameters]
    return [sorted((name, id(value)) for name, value in each.items()) for each in values]
