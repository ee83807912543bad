"""Finite scalar quantisation whose residual codes are the digits of a position."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import Module

from meshgpt_pytorch.tokenizers.checks import check_is_positive

MAX_CELLS = 2**20


class FiniteScalarQuantizer(Module):
    """Round features to a fine grid in few dimensions, and write each position digit by digit.

    Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): there is no codebook to
    learn, and features that are near each other stay so. The cube from -1 to 1 is cut into
    ``levels ** num_quantizers`` cells along each axis. The first code holds the first digit of
    each axis in base ``levels``, the next code the next digits.

    The library's ``ResidualFSQ`` bends its input by a tanh, so that a straight map to coordinates
    cannot be learned; here the cube is straight, and has a wall.

    Args:
        dim: width of a feature.
        levels: digits of a code along each axis; a code has ``prod(levels)`` ids.
        num_quantizers: codes of a feature, coarse to fine.

    Raises:
        ValueError: an axis with less than 2 levels, or with more cells than float32 tells apart.
    """

    levels: Tensor
    basis: Tensor
    cells: Tensor

    def __init__(self, dim: int, *, levels: Sequence[int], num_quantizers: int) -> None:
        super().__init__()
        check_is_positive(fsq_levels=levels)
        if min(levels) < 2 or max(levels) ** num_quantizers > MAX_CELLS:
            raise ValueError(
                f"fsq_levels must be at least 2, and no more than {MAX_CELLS} raised to the power "
                f"of num_quantizers, got {tuple(levels)} with num_quantizers={num_quantizers}; "
                "(24, 24, 24) with 2 is usual"
            )
        self.codebook_size = prod(levels)
        self.num_quantizers = num_quantizers
        self.project_in = nn.Linear(dim, len(levels))
        self.project_out = nn.Linear(len(levels), dim)
        basis = [prod(levels[:axis]) for axis in range(len(levels))]
        # has no elements: its shape keeps weights from loading into another grid, in which they
        # would fit and mean something else
        grid = torch.empty(num_quantizers, *levels, 0, dtype=torch.long)
        self.register_buffer("grid", grid)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.register_buffer("cells", self.levels**num_quantizers, persistent=False)

    def forward(
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b n d"], Int[Tensor, "b n q"], Float[Tensor, " q"]]:
        """Quantise features.

        Args:
            x: features.

        Returns:
            quantised features, straight through inside the cube; codes ``b n q``; and the mean
            squared distance to the cube, as the first of ``q`` commitment losses.
        """
        position = self._project(self.project_in, x)
        inside = position.clamp(-1.0, 1.0)
        cell = ((inside + 1) / 2 * self.cells).floor().clamp(min=0).long()
        digits = self._digits_of_cells(cell.minimum(self.cells - 1))
        grid = self._position_of_digits(digits).to(inside.dtype)
        quantized = self._project(self.project_out, inside + (grid - inside).detach())
        codes = reduce(digits * self.basis, "b n q a -> b n q", "sum")
        outside = (position - inside).square().mean()
        return quantized.to(x.dtype), codes, F.pad(outside[None], (0, self.num_quantizers - 1))

    def get_output_from_indices(self, indices: Int[Tensor, "b n q"]) -> Float[Tensor, "b n d"]:
        """Look codes up: the centre of their cell. A code of -1 adds nothing.

        Args:
            indices: codes, coarse to fine.

        Returns:
            quantised features.
        """
        missing = rearrange(indices == -1, "b n q -> b n q 1")
        ids = rearrange(indices, "b n q -> b n q 1").clamp(min=0)
        digits = ids // self.basis % self.levels
        position = self._position_of_digits(digits, missing)
        weight = self.project_out.weight
        return self._project(self.project_out, position).to(weight.dtype)

    def _digits_of_cells(self, cell: Int[Tensor, "b n a"]) -> Int[Tensor, "b n q a"]:
        powers = [self.levels**place for place in reversed(range(self.num_quantizers))]
        return torch.stack([cell // power % self.levels for power in powers], dim=-2)

    def _position_of_digits(
        self,
        digits: Int[Tensor, "b n q a"],
        missing: Tensor | None = None,
    ) -> Float[Tensor, "b n a"]:
        places = torch.arange(1, self.num_quantizers + 1, device=digits.device)
        cells = (self.levels ** rearrange(places, "q -> q 1")).to(self._dtype)
        steps = (2 * digits + 1 - self.levels) / cells
        if missing is not None:
            steps = steps.masked_fill(missing, 0.0)
        return reduce(steps, "b n q a -> b n a", "sum")

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.project_in.weight.dtype, torch.float32)

    def _project(self, linear: nn.Linear, x: Tensor) -> Tensor:
        # half precision cannot tell the cells apart
        dtype = self._dtype
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))
