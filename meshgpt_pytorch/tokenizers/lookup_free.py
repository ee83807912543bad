"""Lookup-free quantisation whose entropy loss never touches the whole codebook.

The softmax over the ``2 ** bits`` corners of a cube factorises into one sigmoid a bit, so the
entropy of a vector is the sum of the entropies of its bits. The library computes it over all
corners: with 16384 of them that is nine tenths of an autoencoder's training step.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from vector_quantize_pytorch import LFQ, ResidualLFQ
from vector_quantize_pytorch.lookup_free_quantization import Return


class FactorizedLFQ(LFQ):
    """``LFQ`` in training with a mask, in ``O(n bits)`` instead of ``O(n 2 ** bits)``.

    With a mask the library takes the entropy of the codebook vector by vector too (its average
    over the batch has no batch axis left), so the two entropies cancel at ``diversity_gamma = 1``.
    That is what upstream trains with, and what is reproduced here.
    """

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        inv_temperature: float = 100.0,
        return_loss_breakdown: bool = False,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Return:
        """Quantise vectors to the corners of a cube.

        Args:
            x: vectors, d the number of bits.
            inv_temperature: sharpness of the distribution over corners in the entropy.
            return_loss_breakdown: left to the library.
            mask: True for the vectors that losses count.

        Returns:
            quantised vectors, straight through; their ids ``b n``; and the auxiliary loss.
        """
        if not self.training or mask is None or return_loss_breakdown:
            return super().forward(x, inv_temperature, return_loss_breakdown, mask)

        unclamped = x.float()
        clamp = self.soft_clamp_input_value
        value = unclamped if clamp is None else (unclamped / clamp).tanh() * clamp
        is_positive = value > 0
        quantized = is_positive.float() * (2 * self.codebook_scale) - self.codebook_scale
        indices = (is_positive * self.mask).sum(dim=-1)

        # means over the vectors that count; taking them out would ask the device for their number
        share = mask / mask.sum()
        entropy_loss = self.entropy_loss(value, share, inv_temperature)
        distance = (value - quantized).square().mean(dim=-1)
        commit_loss = (distance.masked_fill(~mask, 0.0) * share).sum()
        loss = entropy_loss * self.entropy_loss_weight + commit_loss * self.commitment_loss_weight
        straight_through = value + (quantized - value).detach()
        return Return(straight_through.to(x.dtype), indices, loss)

    def entropy_loss(
        self, vectors: Float[Tensor, "b n d"], share: Float[Tensor, "b n"], inv_temperature: float
    ) -> Float[Tensor, ""]:
        """Reward vectors near a corner, and corners that are all used."""
        loss = vectors.new_zeros(())
        if self.diversity_gamma != 1:
            log_odds = 4 * inv_temperature * self.codebook_scale * vectors
            entropy_of_bits = F.softplus(log_odds) - log_odds * log_odds.sigmoid()
            entropy = entropy_of_bits.sum(dim=-1).masked_fill(share == 0, 0.0)
            loss = (1 - self.diversity_gamma) * (entropy * share).sum()
        if self.experimental_softplus_entropy_loss:
            loss = F.softplus(loss + self.entropy_loss_offset)
        return loss


def factorize_entropy(quantizer: ResidualLFQ) -> ResidualLFQ:
    """Make the layers of a quantizer compute their entropy bit by bit, where it factorises.

    Args:
        quantizer: residual lookup-free quantizer; changed in place, weights and names untouched.

    Returns:
        the quantizer.
    """
    for layer in quantizer.layers:
        assert isinstance(layer, LFQ), "layers of ResidualLFQ are LFQ"
        is_plain = not (layer.spherical or layer.orthogonal_rotation) and layer.num_codebooks == 1
        is_whole = layer.frac_per_sample_entropy == 1
        if is_plain and is_whole and isinstance(layer.activation, nn.Identity):
            # the library builds its layers itself and offers no choice of their class
            layer.__class__ = FactorizedLFQ
    return quantizer
