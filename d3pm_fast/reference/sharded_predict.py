"""What logits say of tokens whose classes are sharded over the ranks of a process group."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._collectives import gathered
from .._no_law import check_drawn
from ..records import Sharding, TokenRandom
from .draws import NONE, TILE
from .logspace import compute_dtype
from .philox import uniforms_at
from .predict import Law, results
from .sharded import whole_logits


def sharded_predict(
    logits: Tensor, known: Tensor, random: TokenRandom, samples: bool, excluded: int, of: Sharding
) -> tuple[Tensor, Tensor]:
    """Return what :func:`predict` does of whole rows, the same on all ranks.

    A rank sends all others 64 bytes a row, and for a draw 24 more.
    """
    first = of.shard.first
    classes = torch.arange(first, first + logits.shape[-1], device=logits.device)
    rows = logits.double().masked_fill(classes == excluded, -torch.inf)
    own = Law.of(pad(rows, (0, 1), value=-torch.inf))  # of no class, too
    own = own._replace(argmax=own.argmax + first)
    nothing = (-torch.inf, 0.0, -torch.inf, 0.0, 0.0)
    own = Law(*(x.where(own.top > -torch.inf, y) for x, y in zip(own, nothing, strict=True)))
    e = (rows - own.top.unsqueeze(-1)).exp().nan_to_num(nan=0.0)
    tiles = _tiles(e, first)
    sums = tiles.sum(dim=-1)
    each = gathered(torch.stack((*own, *_ends(sums)), dim=-1).double(), of.group).unbind(-1)
    laws, ends = Law(*each[:5]), torch.stack(each[5:], dim=-1)
    law, scales = _merged(laws)
    token = law.argmax
    if samples:
        masses = (laws.others + (laws.top > -torch.inf)) * scales
        scale = scales[of.rank].unsqueeze(-1)
        own_tiles = tiles * scale.unsqueeze(-1), sums * scale
        token = _draw(*own_tiles, masses, ends * scales.unsqueeze(-1), random, of)
    logit = rows.masked_fill(token.unsqueeze(-1) != classes, -torch.inf)
    logit = gathered(_largest(logit), of.group).amax(dim=0)
    log_p = law.log_prob(logit)
    tokens, numbers = results(token, log_p, log_p, law, known)
    if logits.device.type == "cpu":
        read = tokens[..., 0].where(known == NONE, 0)
        check_drawn(read, known, lambda token: whole_logits(logits[token], of))
    return tokens, numbers.to(compute_dtype(logits.dtype))


def _tiles(e: Tensor, first: int) -> Tensor:
    """Return the masses of classes from ``first`` on by tiles, ``(*S, n, TILE)``."""
    if e.shape[-1] == 0:
        return e.new_zeros(*e.shape[:-1], 0, TILE)
    padded = pad(e, (first % TILE, -(first + e.shape[-1]) % TILE))
    tiles: Tensor = padded.unflatten(-1, (-1, TILE))
    return tiles


def _largest(rows: Tensor) -> Tensor:
    largest: Tensor = pad(rows, (0, 1), value=-torch.inf).amax(dim=-1)
    return largest


def _ends(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the first and the last tile, which others may have parts of."""
    if sums.shape[-1] == 0:
        return 2 * (sums.new_zeros(sums.shape[:-1]),)
    return sums[..., 0], sums[..., -1]


def _merged(laws: Law) -> tuple[Law, Tensor]:
    """Return the law of all ranks' classes from theirs, ``(R, *S)``, and each one's scale in it."""
    top = laws.top.amax(dim=0)
    less = (laws.top - top).masked_fill(laws.top == -torch.inf, -torch.inf)
    scales = less.exp()
    has_top = torch.zeros_like(scales).scatter(0, laws.top.argmax(dim=0, keepdim=True), 1).bool()
    # The 1 of the largest class is in no sum.
    others = laws.others + (~has_top & (scales > 0))
    surprise = scales * (laws.surprise + less.masked_fill(scales == 0, 0) * others)
    argmax = laws.argmax.where(has_top, 0).sum(dim=0).long()
    second = torch.cat((laws.second, laws.top.masked_fill(has_top, -torch.inf))).amax(dim=0)
    merged = Law(top, argmax, second, (scales * others).sum(dim=0), surprise.sum(dim=0))
    return merged, scales


def _draw(
    tiles: Tensor, sums: Tensor, masses: Tensor, ends: Tensor, random: TokenRandom, of: Sharding
) -> Tensor:
    """Return the classes that :func:`draw_in_tiles` draws from whole rows.

    Args:
        tiles: the masses of this rank's tiles, ``(*S, n, TILE)``, 0 for classes of others.
        sums: of each.
        masses: what each rank has of a row, ``(R, *S)``.
        ends: of that in its first and its last tile, ``(R, *S, 2)``.
        random: of the tokens.
        of: the sharding.
    """
    rank, mine = of.rank, _tiles_of(of, of.rank)
    whole, ahead = sums.clone(), torch.zeros_like(sums)  # on earlier ranks, of the same tile
    for other in range(len(masses)):
        theirs = _tiles_of(of, other)
        both = zip((*theirs[:1], *theirs[-1:]), ends[other].unbind(-1), strict=False)
        for tile, part in dict(both).items() if other != rank else ():
            if tile in mine:
                whole[..., tile - mine[0]] += part
                ahead[..., tile - mine[0]] += part * (other < rank)
    before = masses[:rank].sum(dim=0) - ahead[..., :1].sum(dim=-1)
    running = before.unsqueeze(-1) + whole.cumsum(dim=-1)
    pairs = torch.tensor(mine, dtype=torch.int64, device=sums.device)
    takes, draws = uniforms_at(random, pairs)
    taken = (pairs + 1) * (takes * running < whole)
    last_taken = pad(taken, (1, 0)).amax(dim=-1)
    tile = gathered(last_taken, of.group).amax(dim=0).unsqueeze(-1) - 1
    here = pairs == tile
    target = ((draws * whole - ahead) * here).sum(dim=-1, keepdim=True)
    chosen = (tiles * here.unsqueeze(-1)).sum(dim=-2)
    passes = (chosen > 0) & (chosen.cumsum(dim=-1) > target)
    classes = tile * TILE + torch.arange(TILE, device=sums.device)
    found = classes.where(passes, of.num_logits).amin(dim=-1)
    last = classes.where(chosen > 0, NONE).amax(dim=-1)
    found, last = gathered(torch.stack((found, last), dim=-1), of.group).unbind(-1)
    found, last = found.amin(dim=0), last.amax(dim=0)
    return found.where(found < of.num_logits, last)


def _tiles_of(of: Sharding, rank: int) -> range:
    """Return the tiles that a rank has classes of."""
    first, end = rank * of.size, min((rank + 1) * of.size, of.num_logits)
    return range(first // TILE, -(-end // TILE)) if first < end else range(0)
