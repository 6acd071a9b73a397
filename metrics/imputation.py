"""What stands in the place of removed positions when it is guessed from those around them."""

import torch
from jaxtyping import Bool, Float
from skimage.restoration import inpaint_biharmonic
from torch import Tensor
from torch.nn.functional import pad

COARSEST, DAMPING, ITERATIONS = 8, 0.8, 500
"""Of the solver: side of the coarsest grid, share of a Jacobi step, and after how many cycles it gives up (not met)."""

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Of the residual of the linear system, relative to its right side and to the first: far below the noise added."""


def linear(x: Float[Tensor, "n *shape"], missing: Bool[Tensor, "n *axes"]) -> Float[Tensor, "n *shape"]:
    r"""Linear imputation (`rong2022consistent`): each missing value is the weighted mean of its neighbours.

    Of the eight neighbours of a pixel those beside it have weight 1/6 and those at its corners 1/12, renormalized at
    the border; all missing pixels of a picture solve $v_p \sum_q w_{pq} = \sum_q w_{pq} v_q$ together. What is linear
    in the position is reproduced, where what is missing does not touch the border. Of a signal both neighbours have
    weight 1/2: linear interpolation, constant beyond the ends. A sample of which nothing is left becomes zero.
    """
    where = missing.unsqueeze(1)
    known = x.masked_fill(where, 0)
    if x.ndim == 3:
        return torch.where(where, _interpolated(known, where), x)
    found = _solved(known.float() if x.dtype not in TOLERANCE else known, where)
    return torch.where(where, found.to(x.dtype), x)


def biharmonic(x: Float[Tensor, "n *shape"], missing: Bool[Tensor, "n *axes"]) -> Float[Tensor, "n *shape"]:
    """Inpainting by the biharmonic equation, as scikit-image solves it (`damelin2018surface`), a sample at a time.

    A sample of which nothing is left becomes zero.
    """
    filled = torch.zeros_like(x)
    for row, (sample, where) in enumerate(zip(x, missing, strict=True)):
        if not where.all():
            values = sample.double().movedim(0, -1).cpu().numpy()
            found = inpaint_biharmonic(values, where.cpu().numpy(), channel_axis=-1)
            filled[row] = torch.from_numpy(found).movedim(-1, 0).to(x)
    return torch.where(missing.unsqueeze(1), filled, x)


def _interpolated(known: Float[Tensor, "n c t"], missing: Bool[Tensor, "n 1 t"]) -> Float[Tensor, "n c t"]:
    length = known.shape[-1]
    place = torch.arange(length, device=known.device).expand_as(missing)
    before = place.masked_fill(missing, -1).cummax(-1).values
    after = place.masked_fill(missing, length).flip(-1).cummin(-1).values.flip(-1)
    # Beyond the first or last known value there is only one; of nothing known, nothing.
    left, right = torch.where(before < 0, after, before), torch.where(after == length, before, after)
    ends = [end.clamp(0, length - 1).expand_as(known) for end in (left, right)]
    share = (place - left).to(known.dtype) / (right - left).clamp(min=1)
    return known.gather(-1, ends[0]).lerp(known.gather(-1, ends[1]), share.expand_as(known))


def _solved(known: Float[Tensor, "n c h w"], missing: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
    """The missing values by conjugate gradients with a multigrid preconditioner, all pictures and channels at once."""
    grids = _grids(missing, known.dtype)
    hidden, weights = grids[0]
    right = hidden * _neighbours(known)
    guess = hidden * _coarse_guess(known, missing)
    residual = right - hidden * (weights * guess - _neighbours(guess))
    # Also of the first residual: where all around is zero, so is the right side, and no guess but zero would do.
    enough = TOLERANCE[known.dtype] ** 2 * (_dot(right, right) + _dot(residual, residual))
    direction, power = torch.zeros_like(guess), torch.ones_like(enough)
    # What is long and thin soon has no coarser grid, and then takes as many steps as it is long.
    for _ in range(ITERATIONS + max(known.shape[-2:])):
        # A picture that has converged stays as it is, so that nothing depends on what else is in its batch.
        going = _dot(residual, residual) > enough
        if not going.any():
            break
        better = _cycle(residual, grids)
        before, power = power, _dot(residual, better)
        direction = better + torch.where(going, power / before, 0) * direction
        image = hidden * (weights * direction - _neighbours(direction))
        step = torch.where(going, power / _dot(direction, image), 0)
        guess = guess + step * direction
        residual = residual - step * image
    return guess


def _coarse_guess(known: Float[Tensor, "n c h w"], missing: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
    """The same problem on a picture of half the size, whose pixels are means of what is known of four."""
    if min(known.shape[-2:]) <= COARSEST:
        return torch.zeros_like(known)
    count, total = (_quartered(each) for each in ((~missing).to(known.dtype), known))
    mean = total / count.clamp(min=1)
    return _finer(torch.where(count == 0, _solved(mean, count == 0), mean), known.shape)


Grid = tuple[Float[Tensor, "n 1 _ _"], Float[Tensor, "1 1 _ _"]]
"""Where values are missing, and the sum of the weights of the neighbours that a position has."""


def _grids(missing: Bool[Tensor, "n 1 h w"], dtype: torch.dtype) -> list[Grid]:
    """The picture and coarser ones, on which a position is missing if all four that it stands for are."""
    hidden = missing.to(dtype)
    grids = [(hidden, _neighbours(torch.ones_like(hidden[:1])))]
    if min(hidden.shape[-2:]) > COARSEST:
        grids += _grids(_quartered(1 - hidden) == 0, dtype)
    return grids


def _cycle(residual: Float[Tensor, "n c h w"], grids: list[Grid]) -> Float[Tensor, "n c h w"]:
    """About the error, by a multigrid V-cycle: damped Jacobi steps here, and what they leave on coarser grids."""
    hidden, weights = grids[0]
    error = DAMPING * hidden * residual / weights
    if len(grids) > 1:
        left = hidden * (residual - weights * error + _neighbours(error))
        error = error + hidden * _finer(_cycle(grids[1][0] * _coarser(left), grids[1:]), left.shape)
    for _ in range(1 if len(grids) > 1 else COARSEST):
        error = error + DAMPING * hidden * (residual - weights * error + _neighbours(error)) / weights
    return error


def _finer(values: Float[Tensor, "n c h2 w2"], shape: torch.Size) -> Float[Tensor, "n c h w"]:
    """Twice as many positions on both axes, bilinearly between those that there are and zero beyond."""
    for axis in (-1, -2):
        values = values.transpose(-1, axis)
        left, right = pad(values, (1, 0))[..., :-1], pad(values, (0, 1))[..., 1:]
        values = torch.stack([3 * values + left, 3 * values + right], -1).flatten(-2)[..., : shape[axis]] / 4
        values = values.transpose(-1, axis)
    return values


def _coarser(values: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """The transpose of `_finer`, without which the preconditioner were not symmetric."""
    for axis in (-1, -2):
        values = values.transpose(-1, axis)
        values = pad(values, (0, values.shape[-1] % 2))
        result = 3 * (values[..., ::2] + values[..., 1::2])
        result[..., 1:] += values[..., 1:-1:2]
        result[..., :-1] += values[..., 2::2]
        values = (result / 4).transpose(-1, axis)
    return values


def _quartered(values: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Sums over squares of four pixels."""
    values = pad(values, (0, values.shape[-1] % 2, 0, values.shape[-2] % 2))
    values = values[..., ::2, :] + values[..., 1::2, :]
    return values[..., ::2] + values[..., 1::2]


def _neighbours(values: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The weighted sum of the eight neighbours: 1/6 beside, 1/12 at the corners, nothing beyond the border."""
    rows = 2 * values
    rows[..., 1:, :] += values[..., :-1, :]
    rows[..., :-1, :] += values[..., 1:, :]
    both = 2 * rows
    both[..., 1:] += rows[..., :-1]
    both[..., :-1] += rows[..., 1:]
    return (both - 4 * values) / 12


def _dot(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
    return (a * b).sum((-2, -1), keepdim=True)
