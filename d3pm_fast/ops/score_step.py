"""The reverse steps of scores: plain PyTorch, whatever the device."""

from .. import reference
from ..chains.structures import RANK_ONE
from .p_sample import fake_p_sample
from .posterior import fake_p_posterior
from .register import Operation

analytic_posterior = Operation("analytic_posterior", fake_p_posterior)
euler_posterior = Operation("euler_posterior", fake_p_posterior)
analytic_p_sample = Operation("analytic_p_sample", fake_p_sample)
euler_p_sample = Operation("euler_p_sample", fake_p_sample)

analytic_posterior.serve("reference", reference.analytic_posterior, [RANK_ONE])
euler_posterior.serve("reference", reference.euler_posterior, [RANK_ONE])
analytic_p_sample.serve("reference", reference.analytic_p_sample, [RANK_ONE])
euler_p_sample.serve("reference", reference.euler_p_sample, [RANK_ONE])
