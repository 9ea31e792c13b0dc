"""The kernels for lesser processors give what those for this one give."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.chains import FAMILIES, likely_pairs, make_chain
from helpers.compare import assert_close, assert_gradient_close
from helpers.dense_chains import make_dense_chain
from helpers.shaped import make

from d3pm_fast import functional, schedules, transitions
from d3pm_fast.functional import Shaped

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def chains():
    """Chains of all families and of sizes that fill vectors or not, by name."""
    for family in FAMILIES:
        for num_classes in (2, 17, 205, 1000):
            yield f"{family} {num_classes}", make_chain(family, num_classes)
    for family in ("gaussian", "band", "with_mask", "sparse"):
        for num_classes in (5, 17, 100):
            yield f"{family} {num_classes}", make_dense_chain(family, num_classes)


def by_scores(y):
    """Losses by scores, and gradients, of chains with pi and without."""
    k, found = y.shape[-1], []
    alphas, tokens = schedules.continuous.log_linear(), torch.arange(len(y)) % k
    pi = torch.arange(1, k + 1).double() * 2 / (k * (k + 1))
    t = torch.linspace(0.1, 0.9, len(y), dtype=torch.float64)
    for chain in (transitions.uniform(k, alphas), transitions.marginal(k, alphas, pi)):
        leaf = y.clone().requires_grad_()
        args = chain, functional.Score(leaf), tokens, tokens.flip(0), t
        loss = functional.loss(*args, reduction="none", impl="cpu")
        found += [loss.detach().unsqueeze(-1), torch.autograd.grad(loss.sum(), leaf)[0].double()]
    return torch.cat(found, dim=-1)


def results():
    """Values, gradients and draws of all kernels, by name."""
    found = {}
    for title, chain in chains():
        k = chain.num_classes
        x0, x_t, t = likely_pairs(chain, chain.edge_times(), 4)
        normal = torch.randn(len(t), k, generator=torch.Generator().manual_seed(k))
        for dtype in DTYPES:
            leaf = (3 * normal).to(dtype).requires_grad_()
            loss = functional.loss(chain.transition, leaf, x0, x_t, t, reduction="none", impl="cpu")
            loss.sum().backward()
            model = (chain.transition, leaf.detach(), x_t, t)
            pair = (leaf.detach()[:, 0], leaf.detach()[:, 1])
            found[f"{title} {dtype}"] = {
                "loss": loss.detach(),
                "gradient": leaf.grad,
                "log_p": functional.p_posterior(*model, impl="cpu"),
                "drawn": functional.p_sample(*model, seeds=torch.arange(len(t)), impl="cpu"),
                "noised": functional.q_sample(
                    chain.transition, x0, t, seeds=torch.arange(len(t)), impl="cpu"
                ),
                "scores": by_scores(leaf.detach()),
                "logistic": functional.logistic_logits(*pair, k, impl="cpu"),
                "shaped": make("cpu", Shaped(leaf.detach(), -leaf.detach(), 2.0, 0.7, k - 1, 0.9)),
            }
    return found


@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_lesser_instruction_sets_agree(instructions, cpu, tmp_path):
    kept = tmp_path / "results.pt"
    code = f"import torch, test_instruction_sets as t; torch.save(t.results(), {str(kept)!r})"
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"D3PM_FAST_ISA": instructions, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    there, different = torch.load(kept), 0
    for name, expected in results().items():
        found = there[name]
        dtype = expected["gradient"].dtype
        truth = {key: value.double() for key, value in expected.items()}
        assert_close(found["loss"], truth["loss"], dtype, ulps=16, scale=truth["loss"].abs() + 1)
        rounding = 2 if dtype.itemsize == 2 else 1
        assert_gradient_close(
            found["gradient"] / rounding, truth["gradient"] / rounding, dtype, ulps=16, floor=1
        )
        scale = truth["log_p"].abs().nan_to_num(0, 0, 0) + 1
        rounding = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        ulps = 16 + (rounding if dtype.itemsize == 2 else 0)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        assert_close(found["log_p"].double(), truth["log_p"], compute, ulps=ulps, scale=scale)
        scale = truth["scores"].abs().nan_to_num(0, 0, 0) + 1
        assert_close(found["scores"], truth["scores"], compute, ulps=ulps, scale=scale)
        for key in ("logistic", "shaped"):
            scale = truth[key].abs().nan_to_num(0, 0, 0) + 1
            assert_close(found[key].double(), truth[key], compute, ulps=16, scale=scale)
        assert torch.equal(found["noised"], expected["noised"])
        different += int((found["drawn"] != expected["drawn"]).sum())
    assert different <= 1
