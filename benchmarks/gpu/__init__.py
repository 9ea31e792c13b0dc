"""The kernels on a GPU: ``python -m benchmarks.gpu --out DIR`` installs, checks, times and tests.

It needs Linux, torch, triton, setuptools and pybind11, for the CUDA kernels nvcc and ninja too, and
no network. It takes ``--seconds`` at most, does what matters most first, and writes every row as
soon as it is known: a run that is cut off leaves what it found, and goes on with the same command.

- ``machine.txt``: what the numbers depend on;
- ``checks.csv``: the kernels' results beside those of the reference on the CPU, in float64;
- ``times.csv``, ``errors.csv``: the times, and what could not be timed;
- ``counted.csv``: the time of each kernel beside what its issue slots, the bytes that it moves and
  the reads that it has in flight allow, and which of the three that is; ``rates.csv``: the rates
  that this assumes, beside the device's; ``issue_slots.csv``: the count of this Triton's programs;
- ``faster.csv``: which of Triton and CUDA C++ is the faster one; with matplotlib ``roofline.png``;
- ``gpu_tests.txt``, ``tests.txt``, and ``sanitizer.txt`` where compute-sanitizer is there.

``--dry-run`` needs no GPU: it builds the CUDA module, compiles every Triton program that a run
would start (``programs.csv``), and does all of the above with tiny tensors on a CPU.
"""
