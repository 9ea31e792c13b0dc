"""Samplers: of any chain, and those that only absorbing chains have."""

from ..sampling import ancestral
from .first_hitting import first_hitting
from .unmask import Transcript, confidence, unmask

__all__ = ["Transcript", "ancestral", "confidence", "first_hitting", "unmask"]
