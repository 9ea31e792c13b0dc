"""What ``make wheels`` tries with an installed wheel: the CPU kernels beside the reference."""

import platform
import sys
from pathlib import Path

import numpy
import torch

import d3pm_fast as d3
from d3pm_fast import functional

assert Path(d3.__file__).is_relative_to(sys.prefix), d3.__file__

betas = d3.schedules.jsd(10)
chains = {
    "uniform": d3.transitions.uniform(27, betas),
    "absorbing": d3.transitions.absorbing(27, betas, mask_id=26),
    "discretized_gaussian": d3.transitions.discretized_gaussian(27, d3.schedules.linear(10)),
}


def results(chain, impl):
    """Draws of both directions, the loss, and its gradient."""
    torch.manual_seed(0)
    t, seeds = torch.tensor([1, 2, 5, 10]), torch.arange(4)
    x0, logits = torch.randint(26, (4, 64)), torch.randn(4, 64, 27, requires_grad=True)
    x_t = functional.q_sample(chain, x0, t, seeds=seeds, impl=impl)
    x_s = functional.p_sample(chain, logits.detach(), x_t, t, seeds=seeds, impl=impl)
    loss = functional.loss(chain, logits, x0, x_t, t, impl=impl)
    loss.backward()
    return x_t, x_s, loss.detach(), logits.grad


for chain in chains.values():
    for found, expected in zip(results(chain, "cpu"), results(chain, "reference"), strict=True):
        torch.testing.assert_close(found, expected)
name = d3.implementation("auto", "cpu").name
assert name == "cpu", name
maps = Path("/proc/self/maps").read_text().split()
(openmp,) = {path for path in maps if "libgomp" in path}  # PyTorch's, for both
print(
    f"d3pm_fast {d3.__version__} works with Python {platform.python_version()}, "
    f"PyTorch {torch.__version__}, NumPy {numpy.__version__}; {openmp}"
)
