"""What the GPUs that are spoken of can do, by their datasheets (SXM boards, without sparsity)."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Rates are a second's; ``clock`` is the one that a chip keeps under load."""

    target: str  # of its programs
    multiprocessors: int
    clock: float
    bandwidth: float
    float64: float
    tf32: float

    @property
    def clocks(self) -> float:
        """Clocks of all multiprocessors."""
        return self.multiprocessors * self.clock


CHIPS = {
    "A100 80GB": Chip("sm_80", 108, 1.41e9, 2.039e12, 9.7e12, 156e12),
    "H100": Chip("sm_90", 132, 1.755e9, 3.35e12, 33.5e12, 494.7e12),
    "H200": Chip("sm_90", 132, 1.83e9, 4.8e12, 33.5e12, 494.7e12),
    "B200": Chip("sm_100", 148, 1.85e9, 8.0e12, 37e12, 1100e12),
}
