"""For which options of a decoder a step computes what the module does."""

from typing import Any

from torch import nn
from torch.nn import Module
from x_transformers import Decoder
from x_transformers.x_transformers import (
    GLU,
    AdaptiveRMSNorm,
    Attention,
    FeedForward,
    LayerNorm,
    Residual,
    RMSNorm,
)

NORMS = (AdaptiveRMSNorm, LayerNorm, RMSNorm)

# parts of a decoder and of its attention that a step leaves out, so that they must not be there
DECODER_EXTRAS = (
    "rotary_pos_emb",
    "polar_pos_emb",
    "rel_pos",
    "residual_attn",
    "cross_residual_attn",
    "post_branch_fn_needs_condition",
    "softclamp_output",
    "unet_skips",
    "reinject_input",
)
ATTENTION_EXTRAS = (
    "max_attend_past",
    "use_latent_q",
    "use_latent_kv",
    "qkv_receive_diff_residuals",
    "laser",
    "to_v_gate",
    "to_output_gate",
    "to_v_head_gate",
    "qk_norm",
    "q_rmsnorm",
    "k_rmsnorm",
    "value_rmsnorm",
    "data_dependent_alibi",
    "rel_proj_pos_bias",
    "head_scale",
    "orthog_projected_values",
    "orthog_projected_values_per_head",
    "hybrid_module",
    "sublayer_dropout",
)
ATTEND_EXTRAS = (
    "inverted_attention",
    "pre_softmax_talking_heads",
    "post_softmax_talking_heads",
    "pre_scale_post_talking_heads",
    "selective",
    "cog_signed",
    "l2_distance",
    "add_zero_kv",
    "head_learned_sink",
    "softclamp_logits",
    "cope",
    "flash_pack_seq",
    "sparse_topk",
)


def has_none(module: Module, names: tuple[str, ...]) -> bool:
    """Tell whether none of these options of a module is switched on."""
    return not any(isinstance(v := getattr(module, n, None), Module) or v for n in names)


def can_step(decoder: Decoder) -> bool:
    """Tell whether a step of this module computes what a decoder of these options does."""
    is_plain = decoder.num_residual_streams == 1 and has_none(decoder, DECODER_EXTRAS)
    if not is_plain or type(decoder.final_norm) not in NORMS:
        return False
    extras = (*decoder.layer_integrators, *decoder.skip_combines)
    return all(part is None for part in extras) and all(map(can_step_layer, decoder.layers))


def can_step_layer(layer: Any) -> bool:
    """Tell whether a step knows all that one layer of a decoder does."""
    (pre_norm, post_branch_norm, post_main_norm), block, residual = layer
    if post_branch_norm is not None or post_main_norm is not None:
        return False
    if type(pre_norm) not in NORMS or type(residual) is not Residual:
        return False
    if residual.residual_scale is not None or residual.scale_residual_constant != 1:
        return False
    if isinstance(block, FeedForward):
        gated = [part for part in block.modules() if isinstance(part, GLU)]
        return all(getattr(glu, "up_softclamp_value", None) is None for glu in gated)
    if not isinstance(block, Attention) or block.kv_heads != block.heads:
        return False
    is_linear = isinstance(block.to_out, nn.Linear)
    # without a learned key, a row whose text was dropped would attend to nothing
    is_finite = block.causal or block.num_mem_kv > 0
    has_extras = not (has_none(block, ATTENTION_EXTRAS) and has_none(block.attend, ATTEND_EXTRAS))
    return is_linear and is_finite and not has_extras
