"""Timings and peak memory of d3pm_fast beside other ways to compute the same.

``python -m benchmarks`` prints everything; ``pytest benchmarks --benchmark-only`` times the same
cases and providers under pytest-benchmark.
"""
