"""What the autoencoder's methods return, where it is more than one thing."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


class LossBreakdown(NamedTuple):
    """Parts of the loss: reconstruction (a scalar) and commitment (one for each quantizer)."""

    recon_loss: Float[Tensor, ""]
    commit_loss: Float[Tensor, " q"]


class LossOutput(NamedTuple):
    """Total loss, and its parts."""

    loss: Float[Tensor, ""]
    breakdown: LossBreakdown


class ReconOutput(NamedTuple):
    """Reconstructed face coordinates ``b nf nvf 3`` (nan where padded), and the total loss."""

    recon_faces: Float[Tensor, "b nf nvf 3"]
    loss: Float[Tensor, ""]


class ReconLossOutput(NamedTuple):
    """Reconstructed face coordinates (nan where padded), the total loss, and its parts."""

    recon_faces: Float[Tensor, "b nf nvf 3"]
    loss: Float[Tensor, ""]
    breakdown: LossBreakdown


class EncodedFaces(NamedTuple):
    """Face features, and the coordinate bins they were made from."""

    face_embed: Float[Tensor, "b nf d"]
    face_coordinates: Int[Tensor, "b nf c"]


class QuantizedFaces(NamedTuple):
    """Quantised faces ``b nf (nvf d)``, codes ``b (nf nvf) q`` (pad_id where padded), losses."""

    quantized: Float[Tensor, "b nf d"]
    codes: Int[Tensor, "b n q"]
    commit_loss: Float[Tensor, " q"]


class DecodedFaces(NamedTuple):
    """Face coordinates ``b nf nvf 3`` (nan where padded), and the mask of faces that exist."""

    face_coords: Float[Tensor, "b nf nvf 3"]
    face_mask: Bool[Tensor, "b nf"]


class DiscreteFaces(NamedTuple):
    """Face coordinates, the bins they are centres of, and the mask of faces that exist."""

    face_coords: Float[Tensor, "b nf nvf 3"]
    discrete_coords: Int[Tensor, "b nf nvf 3"]
    face_mask: Bool[Tensor, "b nf"]
