"""Options of the transformer that tests of generation go through."""

import pytest

GATELOOPS_OFF = {"coarse_pre_gateloop_depth": 0, "fine_pre_gateloop_depth": 0}

MODEL_OPTIONS = {
    "default": {},
    "quads": {"quads": True},
    "1 quantizer": {"num_quantizers": 1},
    "3 quantizers": {"num_quantizers": 3},
    "4 quantizers": {"num_quantizers": 4},
    "quads, 4 quantizers": {"quads": True, "num_quantizers": 4},
    "no gate loops": GATELOOPS_OFF,
    "coarse pre gate loop alone": GATELOOPS_OFF | {"coarse_pre_gateloop_depth": 2},
    "coarse post gate loop alone": GATELOOPS_OFF | {"coarse_post_gateloop_depth": 2},
    "fine pre gate loop alone": GATELOOPS_OFF | {"fine_pre_gateloop_depth": 2},
    "all gate loops, heinsen": {"coarse_post_gateloop_depth": 1, "gateloop_use_heinsen": True},
    "3 sos tokens": {"num_sos_tokens": 3},
    "3 sos tokens, post gate loop": {"num_sos_tokens": 3, "coarse_post_gateloop_depth": 1},
    "wider coarse stage": {"dim": (24, 16)},
    "wider fine stage": {"dim": (16, 24), "fine_attn_depth": 2},
    "other heads in the fine stage": {"fine_attn_dim_head": 4, "fine_attn_heads": 3},
    "no flash": {"flash_attn": False},
    "no attention": {"attn_depth": 0, "fine_attn_depth": 0},
    "vertices copied": {"copy_vertices": True},
    "vertices copied, quads, 3 quantizers, unequal widths": {
        "copy_vertices": True,
        "quads": True,
        "num_quantizers": 3,
        "dim": (24, 16),
    },
    "vertices copied, 1 quantizer": {"copy_vertices": True, "num_quantizers": 1},
}

# between them, these hold each option that is said to be exact, with a value that matters
ATTN_OPTIONS = {
    "none": {},
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True, "alibi_num_heads": 1},
    "sandwich norm": {"sandwich_norm": True, "use_rmsnorm": True},
    "post norm": {"pre_norm": False},
    "simple rmsnorm": {"use_simple_rmsnorm": True},
    "scalenorm": {"use_scalenorm": True, "ff_swish": True, "ff_glu": True},
    "qk norm": {"attn_qk_norm": True},
    "qk norm, scaled": {
        "attn_qk_norm": True,
        "attn_qk_norm_dim_scale": True,
        "attn_num_mem_kv": 2,
    },
    "kv heads": {"attn_kv_heads": 1},
    "one kv head": {"attn_one_kv_head": True, "ff_relu_squared": True},
    "value residual": {"add_value_residual": True, "learned_value_residual_mix": False},
    "feed forward": {"ff_mult": 2, "ff_no_bias": True},
    "no flash": {"attn_flash": False, "layer_dropout": 0.5},
    "one stream": {"num_residual_streams": 1},
}

TEXT_OPTIONS = {
    "default": {},
    "film": {"text_cond_with_film": True},
    "adaptive rmsnorm": {"coarse_adaptive_rmsnorm": True},
    "fine cross attention": {"fine_cross_attend_text": True},
    "all, unequal widths, quads": {
        "text_cond_with_film": True,
        "coarse_adaptive_rmsnorm": True,
        "fine_cross_attend_text": True,
        "coarse_post_gateloop_depth": 1,
        "dim": (24, 16),
        "quads": True,
    },
    "film, vertices copied": {"text_cond_with_film": True, "copy_vertices": True},
    "all, no memory": {
        "text_cond_with_film": True,
        "coarse_adaptive_rmsnorm": True,
        "fine_cross_attend_text": True,
        "cross_attn_num_mem_kv": 0,
        "num_sos_tokens": 1,
        "attn_kwargs": {},
    },
}

GUIDANCE = {
    "not guided": {},
    "guided": {"cond_scale": 3.0},
    "guided across": {"cond_scale": 3.0, "remove_parallel_component": True, "rescale_phi": 0.6},
}


def parametrize(name, cases):
    return pytest.mark.parametrize(
        name, [pytest.param(case, id=key) for key, case in cases.items()]
    )
