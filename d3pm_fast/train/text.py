"""What ``d3pm-fast train-text`` learns: the characters of a text file, with a Transformer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import tyro
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._checks import check_count
from . import documents
from .config import Statistics, TrainConfig
from .items import Items
from .transformer import Transformer

HELD_OUT = 0.05
MOST_CONTEXT = 2**16


@dataclass(frozen=True, kw_only=True)
class TextConfig(TrainConfig):
    """Train a denoiser of text. Ctrl-C stops; the same command goes on."""

    UNIT: ClassVar[str] = "character"
    # The paper's for text8.
    AUTO_SCHEDULES: ClassVar[dict[str, str]] = {"absorbing": "jsd"}

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The text, in UTF-8. Its last 5 % of documents are held out."""
    out: Path = Path("runs/text")
    """Folder for all that the run makes. A run in it goes on."""
    alphabet: documents.Alphabet = "letters"
    """Letters: space and a to z, as in text8, whatever else is a space. Bytes: of UTF-8."""
    split: Literal["paragraphs", "lines"] = "paragraphs"
    """What is a document: what stands between blank lines, or a line."""
    context: int = 64
    """Longest document in characters; a longer one is cut."""
    transition: Literal["uniform", "absorbing"] = "absorbing"
    """The forward process."""
    epochs: int = 15
    """Passes over the documents; a finished run goes on with more."""
    width: int = 128
    """Features of a character in the Transformer, a multiple of 32."""
    depth: int = 2
    """Layers of the Transformer."""
    learning_rate: float = 3e-3
    """Peak learning rate: a linear rise over 200 steps, then half a cosine down to 0."""
    ema: float = 0.99
    """Decay of the averaged weights that the samples are drawn with; it rises to this value."""
    sample_count: int = 8
    """Documents to draw."""

    def __post_init__(self) -> None:
        """Check what does not check itself further down."""
        super().__post_init__()
        if check_count("context", self.context) > MOST_CONTEXT:
            raise ValueError(f"context must be at most {MOST_CONTEXT}, got {self.context}")
        if self.width % Transformer.HEAD_WIDTH:
            raise ValueError(
                f"width must be a multiple of {Transformer.HEAD_WIDTH}, got {self.width}"
            )

    @property
    def num_symbols(self) -> int:
        """The characters of the alphabet."""
        return documents.SIZES[self.alphabet]

    def load(self) -> tuple[Items, Items]:
        """Return the documents, and the last 5 % of them."""
        both = documents.load(self.data, self.alphabet, self.split, self.context)
        count = max(1, round(HELD_OUT * len(both)))
        return both[:-count], both[-count:]

    def statistics(self, items: Items) -> Statistics:
        """Return the frequencies of the characters, and how many documents have each length."""
        lengths = torch.bincount(items.lengths(), minlength=self.context + 1)
        return super().statistics(items) | {"lengths": lengths.tolist()}

    def denoiser(self) -> nn.Module:
        """Return a fresh Transformer."""
        return Transformer(self.num_classes, self.num_steps, self.width, self.depth, self.mask_id)

    def draw(
        self,
        sample: Callable[..., Tensor],
        denoiser: nn.Module,
        statistics: Statistics,
        count: int,
        out: Path,
    ) -> list[Path]:
        """Print documents, as short and long as the training data's, and write them to a file."""
        lengths = spread(statistics["lengths"], count)
        mask = torch.arange(self.context) < lengths[:, None]
        tokens = sample(lambda x, t: denoiser(x, t, mask.to(x.device)), tuple(mask.shape))
        drawn = [
            documents.decode(row[:length], self.alphabet)
            for row, length in zip(tokens.cpu(), lengths.tolist(), strict=True)
        ]
        text = "\n\n".join(drawn) + "\n"
        tqdm.write(f"\n{text}")
        out.mkdir(parents=True, exist_ok=True)
        path = out / "samples.txt"
        path.write_text(text, encoding="utf-8")
        return [path]


def spread(histogram: list[float], count: int) -> Tensor:
    """Return ``count`` lengths at even quantiles, int64, of a histogram over 0, 1, 2 ..."""
    places = torch.arange(len(histogram)).repeat_interleave(torch.tensor(histogram).long())
    return places[(torch.arange(count) + 0.5).div(count).mul(len(places)).long()]
