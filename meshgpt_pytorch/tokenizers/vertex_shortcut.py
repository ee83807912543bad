"""A short way for coordinates past the networks over faces: into the codes, and out of them."""

from math import log

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import Module

from meshgpt_pytorch.tokenizers.finite_scalar import FiniteScalarQuantizer

# of the bell over the bins, in bins: the blur of targets by default. Where it is wider, a small
# bias of the decoder towards frequent bins lowers the loss and gives the wrong bin
START_WIDTH = 0.4


class VertexShortcut(Module):
    """Lead each vertex's own coordinates to its codes, and its codes to its coordinates.

    Both ways are straight lines, so that what they learn holds for meshes never seen. What the
    networks over faces add is gated, and the gates start closed (Bachlechner et al. 2020, arXiv
    2003.04887): at first there is only the line to learn.

    Args:
        dim: width of a vertex where it is quantised.
        num_bins: bins of a coordinate.
    """

    def __init__(self, dim: int, num_bins: int) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.from_coordinates = nn.Linear(3, dim)
        self.to_coordinates = nn.Linear(dim, 3)
        self.encoder_gate = nn.Parameter(torch.zeros(dim))
        self.decoder_gate = nn.Parameter(torch.zeros(1))
        # the logarithm keeps the width above 0
        self.log_width = nn.Parameter(torch.full((1,), log(START_WIDTH)))

    @torch.no_grad()
    def start_as_identity(self, quantizer: FiniteScalarQuantizer) -> None:
        """Let the three axes of a quantizer be those of the coordinates, at first.

        From a random start, axes are skewed: it takes finer levels and longer to tell bins apart.
        Where an even number of cells makes a bin, its centre is the edge of two of them, and
        rounding would choose: there all coordinates are moved by half a cell, in and out.

        Args:
            quantizer: of three axes; its projections lose their biases.
        """
        project_in, project_out = quantizer.project_in, quantizer.project_out
        self.from_coordinates.weight.copy_(torch.linalg.pinv(project_in.weight))
        self.to_coordinates.weight.copy_(torch.linalg.pinv(project_out.weight))
        for linear in (self.from_coordinates, project_in, project_out, self.to_coordinates):
            linear.bias.zero_()
        is_edge = quantizer.cells % (2 * self.num_bins) == 0
        half_cell = is_edge / quantizer.cells
        project_in.bias.copy_(half_cell)
        self.to_coordinates.bias.copy_(-half_cell)

    def add_coordinates(
        self, features: Float[Tensor, "b nv d"], bins: Int[Tensor, "b nv 3"]
    ) -> Float[Tensor, "b nv d"]:
        """Add the coordinates of vertices to what their faces know of them.

        Args:
            features: vertices, averaged over their faces.
            bins: of their coordinates.

        Returns:
            features to quantise.
        """
        direct = _project(self.from_coordinates, self._centres(bins, features.dtype))
        # under autocast features are half precision, but the quantizer need not read them so
        dtype = torch.promote_types(features.dtype, self.encoder_gate.dtype)
        return (direct + features * self.encoder_gate).to(dtype)

    def add_logits(
        self,
        logits: Float[Tensor, "b nf c num_bins"],
        quantized: Float[Tensor, "b nf d_face"],
    ) -> Float[Tensor, "b nf c num_bins"]:
        """Add a bell over the bins, about the position that a vertex's codes stand for.

        Args:
            logits: of the coordinates of a face, from the decoder.
            quantized: vertices of a face, side by side.

        Returns:
            logits of the same shape.
        """
        corners = rearrange(quantized, "b nf (nvf d) -> b nf nvf d", d=len(self.encoder_gate))
        position = rearrange(_project(self.to_coordinates, corners), "b nf nvf c -> b nf (nvf c) 1")
        centres = self._centres(torch.arange(self.num_bins, device=logits.device), position.dtype)
        in_widths = (position - centres) * (self.num_bins / 2) * torch.exp(-self.log_width)
        return logits * self.decoder_gate - in_widths.square() / 2

    def _centres(self, bins: Tensor, dtype: torch.dtype) -> Tensor:
        return (bins.to(torch.promote_types(dtype, torch.float32)) + 0.5) * (2 / self.num_bins) - 1


def _project(linear: nn.Linear, x: Tensor) -> Tensor:
    # half precision cannot tell 128 bins apart
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))
