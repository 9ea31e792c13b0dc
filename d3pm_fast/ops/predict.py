"""``torch.ops.d3pm_fast.predict``: see :class:`d3pm_fast.functional.PredictedTokens`."""

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from .._no_law import check_drawn
from ..records import Shaping, TokenRandom
from ..reference.draws import NONE
from ..reference.logspace import compute_dtype
from .host import shaping_record
from .kernel import triton_kernel
from .register import Operation


def _fake_predict(
    logits: Tensor, known: Tensor, random: TokenRandom, samples: bool, shaping: Shaping
) -> tuple[Tensor, Tensor]:
    """Return two classes and six numbers of each token, without their values."""
    tokens = known.new_empty(*known.shape, 2)
    return tokens, logits.new_empty(*known.shape, 6, dtype=compute_dtype(logits.dtype))


predict = Operation("predict", _fake_predict)


def _on_cpu(
    logits: Tensor, known: Tensor, random: TokenRandom, samples: bool, shaping: Shaping
) -> tuple[Tensor, Tensor]:
    tokens, numbers = _fake_predict(logits, known, random, samples, shaping)
    seeds, positions, step = random
    rows = logits.data_ptr(), known.data_ptr(), seeds.data_ptr(), positions.data_ptr()
    call = known.numel(), logits.shape[-1], *rows, step, samples, shaping_record(shaping)
    results = tokens.data_ptr(), numbers.data_ptr()
    if cpu.predict(str(logits.dtype), (*call, *results), torch.get_num_threads()):
        read = tokens[..., 0].where(known == NONE, 0)
        check_drawn(read, known, lambda token: reference.shaped_row(token, logits, shaping))
    return tokens, numbers


predict.serve("reference", reference.predict)
predict.serve("cpu", _on_cpu)
predict.serve("triton", triton_kernel("predictions.predict.predict"))
# No kernel yet: samplers ask for it whatever else serves the chain.
predict.serve("cuda", reference.predict, is_registered=False)
