"""Text as documents of characters, cut to a length and padded."""

import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .items import Items

Alphabet = Literal["letters", "bytes"]
LETTERS = " " + ascii_lowercase
FIRST = ord("a") - 1
SIZES: dict[Alphabet, int] = {"letters": len(LETTERS), "bytes": 256}
SEPARATORS = {"paragraphs": r"\n\s*\n", "lines": r"\n"}


def load(path: Path, alphabet: Alphabet, separator: str, length: int) -> Items:
    """Return the documents of a text file: tokens uint8 ``(N, length)``, and their mask.

    A document that is longer than ``length`` becomes several, as equal in length as can be.

    Args:
        path: the file, in UTF-8.
        alphabet: see :func:`encode`.
        separator: what is a document, ``"paragraphs"`` (between blank lines) or ``"lines"``.
        length: the longest document.

    Raises:
        ValueError: the file is no text, or there are fewer than two documents in it.
    """
    text = read(path)
    documents = [encode(part, alphabet) for part in re.split(SEPARATORS[separator], text)]
    pieces = [
        piece
        for document in documents
        if len(document)
        for piece in np.array_split(document, -(-len(document) // length))
    ]
    if len(pieces) < 2:
        hint = "" if alphabet == "bytes" else "; --alphabet bytes is for other letters than a to z"
        raise ValueError(f"{path} must have two documents or more, got {len(pieces)}{hint}")
    return pad(pieces, length)


def read(path: Path) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a folder, not UTF-8, or has zero bytes, as no text has.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no text file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"FILE must be a text file, {path} is a folder") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    if "\0" in text:
        raise ValueError(f"{path} is not text in UTF-8: it has zero bytes")
    return text


def encode(text: str, alphabet: Alphabet) -> np.ndarray:
    """Return the tokens of a text without the space around it, uint8 ``(L,)``.

    ``"bytes"`` are those of UTF-8. ``"letters"`` are the 27 characters of text8: space is 0, a to
    z are 1 to 26; capitals lose their size, and whatever else stands between letters is a space.
    """
    if alphabet == "bytes":
        return np.frombuffer(text.strip().encode(), np.uint8)
    letters = re.sub("[^a-z]+", " ", text.lower()).strip().encode()
    return np.frombuffer(letters, np.uint8).clip(FIRST) - FIRST


def decode(tokens: Tensor, alphabet: Alphabet) -> str:
    """Return the text of tokens ``(L,)``."""
    if alphabet == "bytes":
        return bytes(tokens.tolist()).decode(errors="replace")
    return "".join(LETTERS[token] for token in tokens.tolist())


def pad(documents: Sequence[np.ndarray], length: int) -> Items:
    """Return documents as rows of ``length`` tokens, zeros behind their ends."""
    lengths = torch.tensor([len(document) for document in documents])
    mask = torch.arange(length) < lengths[:, None]
    x0 = torch.zeros(mask.shape, dtype=torch.uint8)
    x0[mask] = torch.from_numpy(np.concatenate(documents))
    return Items(x0, mask)
