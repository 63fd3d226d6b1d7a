"""Constructor arguments that a file may set: a closed list of keys, each with plain values.

Invariant: nothing is imported, built or opened here. The list has no arguments that reach a file, the network or code
(`checkpoint_path`, `pretrained`, `cache_dir`, `pretrained_cfg_overlay`, a layer given as a class, a dictionary with
`type`), so a config.json or a checkpoint cannot use them. Arguments that the user types are not checked here.
"""

import re
from collections.abc import Callable
from typing import Any

from timm.layers import get_act_layer, get_norm_layer

LARGEST = 65536  # greatest value of any number: pixels, channels, tokens
MOST_LAYERS = 1024  # in all stages together
MOST_VALUES = 256  # in one list

# Keys of timm's constructors and of ours whose values are numbers, flags, None, or lists of these.
_NUMBERS = """
    aa_stem_only abs_win_pos_embed always_partition attn_drop_rate attn_groups attn_head_dim_reduction attn_mlp
    attn_mlp_ratio attn_only_layer_scale attn_pool_mlp_ratio attn_pool_num_heads attn_ratio aux_logits avg_down
    base_dim base_dims base_width bidirectional block_ratio block_reduce_first bn_size bottle_ratio
    bottleneck_width_ratio cardinality ch_div channel_multiplier channels class_token cls_attn_layers cls_ratio
    conv_bias conv_init conv_mlp conv_ratio cpe_act crop_scale d2_scales deepen_factor depth depth_mult
    depth_token_only depths dim dim_mul dims distilled down_kernel_size down_pad down_patch_size down_stride
    downsample_expand_ratios downsample_kernel_size downsample_padding downsample_ratio downsamples
    drop_block_rate drop_block_size drop_path_rate drop_rate dynamic_img_pad dynamic_img_size embed_dim
    embed_dims eta expand_first expand_groups expand_ratio expansion_ratio extra_norm_period extra_norm_stage
    fc_norm feature_dim ffn ffn_ratio final_chs final_norm first_stride fix_init fix_stem fixed_input_size
    focal_levels focal_windows fused_conv fused_downsample global_att_blocks global_attn_indexes
    global_block_counts global_pos_size group group_size groups growth_rate growth_rates head_bias head_dim
    head_hidden_size head_init_scale head_mul head_norm head_norm_first head_widths heads hidden_sizes
    image_size img_scale img_size in_chans inc_sec init_channels init_values initial_chs inner_dim inplanes
    input_3x3 intermediate_size is_downsample_block k_r k_sec kernel_size kernel_sizes kernels key_dim
    layer_scale layer_scale_init_value layer_scale_init_values layers layerscale_value legacy linear lkc_use_act
    local_conv_size local_up_to_layer locality_strength ls_init_value mask_unit_attn mask_unit_size
    mbconv_expand_ratio memory_efficient merge_size mix_block_ratio mlp_bias mlp_ratio mlp_ratio_token_only
    mlp_ratios msfa_indices msfa_output_resolution multi_conv n_div neck_chans no_block_attn no_embed_class
    norm_eps normalize_modulator num_blocks num_blocks_list num_features num_heads num_heads_inner
    num_heads_outer num_init_features num_kv_heads num_levels num_reg_tokens num_rnn_layers num_vit out_chs
    outlook_attention output_stride parallel_depth partial_dim patch_drop_rate patch_kernel patch_norm
    patch_padding patch_size patch_sizes patch_stride patchify_channels_last pool_first pool_include_prefix
    pool_size pooling_kernel_size pooling_scale pos_drop_rate pos_embed_align_corners pos_embed_antialias
    pos_embed_grid_size pos_embed_use_grid_sample position_embedding_size pre_norm pre_norm_act preact
    pretrained_window_sizes proj_bias proj_drop_rate q_pool q_stride qk_dim qk_norm qkv_bias qkv_fused reduction
    ref_feat_shape reg_tokens rel_pos_dim reparam replace_stem_pool repmixer_kernel_size res_scale_init_values
    rope_grid_offset rope_jitter_coords rope_mrope_section rope_ref_feat_shape rope_rescale_coords
    rope_rotate_half rope_shift_coords rope_temperature rope_theta scale scale_attn_inner scale_attn_inner_norm
    scale_attn_norm scale_mlp scale_mlp_norm se_downsamples se_from_exp se_ratio sep_pos_embed sequential_attn
    serial_depths shared_rel_pos shortcut_bias shortcut_root small small_kernels sr_ratios ssd_expand stages
    standardize state_dim std_conv_eps stem_bias stem_chs stem_expand_ratio stem_hidden_dim stem_kernel_size
    stem_mid_norm stem_norm stem_size stem_stride stem_use_scale_branch stem_width strict_img_size stride
    strides swiglu_align_to swiglu_mlp tokens_norm transformer_depths transformer_drop_path
    transition_compression_ratio units use_abs_pos use_abs_pos_emb use_clipped_linears use_conv use_expand_proj
    use_fc_norm use_grn use_lab use_layer_scale use_mlp_head use_msfa use_overlap_down use_pos_emb use_pos_embed
    use_post_norm use_post_norm_in_modulation use_post_transformer_norm use_pre_transformer_norm use_rel_pos
    use_rel_pos_bias use_rope use_rot_pos_emb use_shared_rel_pos_bias v2 vit_stem w0 wa widen_factor width
    width_factor width_mult widths window_ratio window_size window_sizes window_spec wm wss zero_init_fc
    zero_init_last
"""
NUMBERS = frozenset(_NUMBERS.split())
LAYER_COUNTS = ("depth", "depths", "layers", "num_blocks", "num_blocks_list", "num_rnn_layers", "stages", "units")
# Keys whose value is a word or a list of words, with which the constructor selects one of its own options.
_WORDS = """
    attn_stage attn_type attn_types attn_upsample down_op feature_location global_pool interaction
    local_mbconv_norm mode pad_type padding pos_embed pos_embed_interp_mode post_layers qkv rel_pos_type
    rope_grid_indexing rope_type spatial_conv stem_type stride_mode union version weight_init
"""
WORDS = frozenset(_WORDS.split())
# Keys whose value is a word in timm's tables of layers, and timm's function that looks it up there.
LAYERS: dict[str, Callable] = {"act_layer": get_act_layer, "norm_layer": get_norm_layer}
_WORD = re.compile(r"[A-Za-z0-9_]{0,32}")
_PHRASE = re.compile(r"[\w \-]{0,64}")


def fault_of_argument(key: object, value: Any) -> str:
    """What is wrong with one argument of a timm model in a file, as the end of a sentence; "" if nothing is."""
    if not isinstance(key, str):
        return f"the key {key!r}, which is no word"
    if key in NUMBERS:
        if not is_numbers(value):
            return f"{key}={shorten(value)}, which must be numbers of at most {LARGEST:,}"
        layers = sum(number for number in _flat(value) if number and number > 0) if key in LAYER_COUNTS else 0
        return f"{key}={shorten(value)}, more than {MOST_LAYERS:,} layers" if layers > MOST_LAYERS else ""
    if key in LAYERS:
        return "" if _is_layer(key, value) else f"{key}={shorten(value)}, which is not in timm's table of layers"
    if key in WORDS:
        words = value if isinstance(value, list | tuple) else [value]
        plain = all(
            word is None or isinstance(word, bool) or (isinstance(word, str) and _WORD.fullmatch(word))
            for word in words
        )
        return "" if plain and len(words) <= MOST_VALUES else f"{key}={shorten(value)}, which must be one plain word"
    return f"the argument {shorten(key)}, which is not in the list of those that a file may set"


def _is_layer(key: str, value: Any) -> bool:
    if not (isinstance(value, str) and _WORD.fullmatch(value)):
        return False
    try:
        return LAYERS[key](value) is not None
    except (AssertionError, KeyError):
        return False


def fault_of_own_argument(key: object, value: Any) -> str:
    """Like `fault_of_argument`, for a network that the user named: any key, but only numbers and plain words."""
    if not (isinstance(key, str) and key.isidentifier()):
        return f"the key {shorten(key)}, which is no name of an argument"
    if is_numbers(value) or is_phrases(value):
        return ""
    return f"{key}={shorten(value)}, which is neither numbers nor plain words"


def is_numbers(value: Any, depth: int = 0) -> bool:
    """True for finite numbers of a bounded size, flags, None, or lists of them up to three levels deep."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return abs(value) <= LARGEST  # False for NaN; an integer of any length is compared, not converted
    if isinstance(value, list | tuple):
        return depth < 3 and len(value) <= MOST_VALUES and all(is_numbers(item, depth + 1) for item in value)
    return False


def is_phrases(value: Any) -> bool:
    """True for a word or phrase without a dot, a colon or a slash, or a list of such."""
    values = value if isinstance(value, list | tuple) else [value]
    return len(values) <= MOST_VALUES and all(isinstance(v, str) and _PHRASE.fullmatch(v) for v in values)


def shorten(value: Any) -> str:
    """A value for an error sentence: printable, at most 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flat(value: Any) -> list:
    return [n for item in value for n in _flat(item)] if isinstance(value, list | tuple) else [value]
