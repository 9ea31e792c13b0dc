"""The reverse steps of sharded logits: plain PyTorch, whatever the device."""

from .. import reference
from ..chains.structures import RANK_ONE
from .p_sample import fake_p_sample
from .posterior import fake_p_posterior
from .register import Operation

sharded_posterior = Operation("sharded_posterior", fake_p_posterior)
sharded_p_sample = Operation("sharded_p_sample", fake_p_sample)

sharded_posterior.serve("reference", reference.sharded_posterior, [RANK_ONE])
sharded_p_sample.serve("reference", reference.sharded_p_sample, [RANK_ONE])
