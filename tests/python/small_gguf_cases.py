"""What tiny models of the classes that are written to GGUF are made of; see ``small_gguf``."""

from typing import Any

_MOE = {"num_experts_per_tok": 2}
_QWEN_MOE = {**_MOE, "num_experts": 6, "moe_intermediate_size": 32}
_LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 512, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}  # fmt: skip
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
_GEMMA_3_ROPE = {
    "full_attention": {**_LINEAR, "rope_theta": 100000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_GRANITE = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}  # fmt: skip
_DEEPSEEK = {
    **_MOE, "n_routed_experts": 4, "num_key_value_heads": 4, "n_shared_experts": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "topk_method": "greedy", "routed_scaling_factor": 1.5, "norm_topk_prob": False,
}  # fmt: skip
_SCORED = {
    **_MOE, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": True,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
_MAMBA_2 = {
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 2, "mamba_d_state": 16,
    "mamba_chunk_size": 8,
}  # fmt: skip
_SECTIONS = {**_DEFAULT, "mrope_section": [3, 3, 2]}
_HALF_SECTIONS = {**_DEFAULT, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "depth": 1, "embed_dim": 32, "num_heads": 2,
    "out_hidden_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}  # fmt: skip
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 32,
}  # fmt: skip
_NEMOTRON_H = {
    "mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 2, "ssm_state_size": 16,
    "chunk_size": 8, "head_dim": 32,
}  # fmt: skip
_LLAMA_4 = {
    "num_experts_per_tok": 1, "num_local_experts": 4, "intermediate_size_mlp": 96,
    "intermediate_size": 32, "num_hidden_layers": 4, "interleave_moe_layer_step": 2,
    "head_dim": 16, "rope_parameters": _LLAMA_3,
}  # fmt: skip
_FULL = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
_TIED = {"tie_word_embeddings": True}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, positions of Llama 3": ("Llama", {"rope_parameters": _LLAMA_3}),
    "llama, linear positions": ("Llama", {"rope_parameters": _LINEAR}),
    "llama, yarn": ("Llama", {"rope_parameters": {**_YARN, "attention_factor": 1.3}}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mixtral": ("Mixtral", {**_MOE, "num_local_experts": 4, "sliding_window": None}),
    "ministral3": (
        "Ministral3",
        {
            "head_dim": 32,
            "rope_parameters": {
                **_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 8,
            },
        },
    ),
    "granite": ("Granite", _GRANITE),
    "granite, biases, tied": (
        "Granite", {**_GRANITE, **_TIED, "attention_bias": True, "mlp_bias": True},
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "use_sliding_window": False}),
    "arcee": ("Arcee", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3, yarn": ("Qwen3", {"head_dim": 32, "rope_parameters": _YARN}),
    "qwen2moe": ("Qwen2Moe", {**_QWEN_MOE, "shared_expert_intermediate_size": 96}),
    "qwen2moe, tied": (
        "Qwen2Moe", {**_QWEN_MOE, **_TIED, "shared_expert_intermediate_size": 96},
    ),
    "qwen3moe": ("Qwen3Moe", {**_QWEN_MOE, "head_dim": 32, "norm_topk_prob": True}),
    "qwen3moe, of 256": (
        "Qwen3Moe",
        {
            **_QWEN_MOE, "hidden_size": 256, "moe_intermediate_size": 256, "vocab_size": 400,
            "norm_topk_prob": True,
        },
    ),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", {**_GEMMA, "num_hidden_layers": 3}),
    "gemma3": ("Gemma3Text", {**_GEMMA, "num_hidden_layers": 7}),
    "gemma3, linear positions": (
        "Gemma3Text", {**_GEMMA, "num_hidden_layers": 7, "rope_parameters": _GEMMA_3_ROPE},
    ),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3, long positions": (
        "Phi3",
        {
            "sliding_window": None, "max_position_embeddings": 1024,
            "original_max_position_embeddings": 512, "rope_parameters": _LONG,
        },
    ),
    "phi2": ("Phi", {"partial_rotary_factor": 0.5}),
    "command-r": ("Cohere", {"logit_scale": 0.25}),
    "cohere2": ("Cohere2", {"sliding_window": 8, "num_hidden_layers": 5, "logit_scale": 0.25}),
    "olmo2": ("Olmo2", {}),
    "olmo2, tied": ("Olmo2", _TIED),
    "olmo3": ("Olmo3", {"sliding_window": 8, "num_hidden_layers": 5}),
    "olmoe": ("Olmoe", {**_MOE, "num_experts": 4, "num_key_value_heads": 4}),
    "stablelm": ("StableLm", {"use_qkv_bias": True}),
    "stablelm, parallel": ("StableLm", {"use_parallel_residual": True}),
    "starcoder2": ("Starcoder2", {"use_bias": True, "sliding_window": None}),
    "glm4": ("Glm4", {"attention_bias": True, "head_dim": 16}),
    "exaone4": ("Exaone4", {**_FULL, "rope_parameters": _LLAMA_3}),
    "seed_oss": ("SeedOss", {"attention_bias": True, "head_dim": 32}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 32}),
    "nemotron": ("Nemotron", {"partial_rotary_factor": 0.5, **_TIED}),
    "gpt-oss": (
        "GptOss",
        {
            **_MOE, "num_local_experts": 4, "head_dim": 32, "sliding_window": 8,
            "num_hidden_layers": 3, "rope_parameters": {**_YARN, "truncate": True},
        },
    ),
    "deepseek2": ("DeepseekV2", _DEEPSEEK),
    "deepseek2, yarn": (
        "DeepseekV2",
        {**_DEEPSEEK, "rope_parameters": {**_YARN, "mscale": 0.7, "mscale_all_dim": 0.7}},
    ),
    "deepseek2, queries of full rank": (
        "DeepseekV2", {**_DEEPSEEK, "q_lora_rank": None, "num_hidden_layers": 27},
    ),
    "glm": ("Glm", {"head_dim": 16}),
    "hunyuan-dense": ("HunYuanDenseV1", {"head_dim": 32}),
    "olmo": ("Olmo", {"clip_qkv": 0.5}),
    "granitemoe": ("GraniteMoe", {**_GRANITE, **_MOE, "num_local_experts": 4}),
    "granitemoe, shared": (
        "GraniteMoeShared",
        {**_GRANITE, **_MOE, "num_local_experts": 4, "shared_intermediate_size": 96},
    ),
    "glm4moe": (
        "Glm4Moe", {**_SCORED, "attention_bias": True, "use_qk_norm": True, "head_dim": 32},
    ),
    "dots1": (
        "Dots1",
        {**_SCORED, "num_key_value_heads": 4, "norm_topk_prob": False, "n_shared_experts": 2},
    ),
    "ernie4_5-moe": (
        "Ernie4_5_Moe",
        {
            "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32,
            "moe_num_shared_experts": 2, "head_dim": 32,
        },
    ),
    "hunyuan-moe": ("HunYuanMoEV1", {"num_experts": 4, "moe_topk": 2, "head_dim": 32}),
    "deepseek3": (
        "DeepseekV3",
        {**_DEEPSEEK, **_SCORED, "n_routed_experts": 8, "n_group": 4, "topk_group": 2},
    ),
    "minimax-m2": (
        "MiniMaxM2",
        {
            **_MOE, "num_local_experts": 4, "head_dim": 32,
            "rope_parameters": {**_DEFAULT, "partial_rotary_factor": 0.5},
        },
    ),
    "mamba": ("Mamba", {"state_size": 16}),
    "falcon-mamba": ("FalconMamba", {"state_size": 16}),
    "mamba2": (
        "Mamba2",
        {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 2, "chunk_size": 8},
    ),
    "bamba": ("Bamba", {**_MAMBA_2, "attn_layer_indices": [1]}),
    "granitehybrid": (
        "GraniteMoeHybrid",
        {
            **_GRANITE, **_MAMBA_2, "layer_types": ["mamba", "attention"], "num_local_experts": 0,
            "shared_intermediate_size": 96,
        },
    ),
    "granitehybrid, experts and positions": (
        "GraniteMoeHybrid",
        {
            **_GRANITE, **_MAMBA_2, **_MOE, "layer_types": ["mamba", "attention"],
            "num_local_experts": 4, "shared_intermediate_size": 96,
            "position_embedding_type": "rope",
        },
    ),
    "jamba": (
        "Jamba",
        {
            **_MOE, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 32}),
    "lfm2moe": (
        "Lfm2Moe",
        {
            **_MOE, "num_experts": 4, "num_dense_layers": 1, "moe_intermediate_size": 32,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    "dbrx": (
        "Dbrx",
        {
            "d_model": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 10000.0},
            "ffn_config": {
                "hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2,
            },
        },
    ),
    "afmoe": (
        "Afmoe",
        {
            **_MOE, "num_experts": 4, "num_shared_experts": 1, "moe_intermediate_size": 32,
            "num_hidden_layers": 4, "num_dense_layers": 1, "sliding_window": 8, "head_dim": 32,
            "mup_enabled": True, "route_scale": 1.5,
        },
    ),
    "exaone-moe": (
        "ExaoneMoe",
        {
            **_MOE, "num_experts": 4, "num_shared_experts": 2, "moe_intermediate_size": 32,
            "num_hidden_layers": 4, "sliding_window": 8,
        },
    ),
    "glm4moe, solar": ("SolarOpen", {**_SCORED, "first_k_dense_replace": 0, "head_dim": 32}),
    "deepseek2, glm": ("Glm4MoeLite", {**_DEEPSEEK, **_SCORED, "n_routed_experts": 4}),
    "deepseek2, youtu": ("Youtu", _DEEPSEEK),
    "gpt2": ("GPT2", {}),
    "apertus": ("Apertus", {}),
    "minicpm3": (
        "MiniCPM3",
        {
            "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
            "v_head_dim": 16, "num_key_value_heads": 4,
        },
    ),
    "qwen3next": (
        "Qwen3Next",
        {
            **_DELTA, **_QWEN_MOE, "linear_num_value_heads": 4,
            "shared_expert_intermediate_size": 96,
        },
    ),
    "qwen2vl": (
        "Qwen2VL", {"text_config": {"rope_parameters": _SECTIONS, "rms_norm_eps": 1e-9}},
    ),
    "qwen2vl, 2.5": (
        "Qwen2_5_VL", {"text_config": {"rope_parameters": _SECTIONS, "rms_norm_eps": 1e-9}},
    ),
    "qwen3vl": ("Qwen3VL", {"text_config": {"rope_parameters": _SECTIONS, "head_dim": 16}}),
    "qwen3vlmoe": (
        "Qwen3VLMoe", {"text_config": {**_QWEN_MOE, "rope_parameters": _SECTIONS, "head_dim": 16}},
    ),
    "inside, llama": ("Llava", {"text_config": {"model_type": "llama"}}),
    "inside, gemma3": ("Gemma3", {"text_config": {**_GEMMA, "model_type": "gemma3_text"}}),
    "inside, lfm2": (
        "Lfm2Vl",
        {"text_config": {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}},
    ),
    "inside, mistral3": ("Mistral3", {"text_config": {"model_type": "ministral3", "head_dim": 32}}),
    "qwen35": ("Qwen3_5Text", _DELTA),
    "qwen35moe": (
        "Qwen3_5MoeText", {**_DELTA, **_QWEN_MOE, "shared_expert_intermediate_size": 96},
    ),
    "llama4": (
        "Llama4Text", _LLAMA_4,
    ),
    "nemotron_h": (
        "NemotronH",
        {**_NEMOTRON_H, "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]},
    ),
    "nemotron_h, experts": (
        "NemotronH",
        {
            **_NEMOTRON_H, **_SCORED, "moe_shared_expert_intermediate_size": 96,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        },
    ),
    "jais2": ("Jais2", {"attention_bias": True, "mlp_bias": True}),
    "paddleocr": ("PaddleOCRVL", {"text_config": {"rope_parameters": _SECTIONS, "head_dim": 16}}),
    "inside, exaone4": ("Exaone4_5_", {"text_config": {**_FULL, "model_type": "exaone4"}}),
    "inside, qwen35": ("Qwen3_5", {"text_config": {**_DELTA, "model_type": "qwen3_5_text"}}),
    "inside, qwen35moe": (
        "Qwen3_5Moe",
        {
            "text_config": {
                **_DELTA, **_QWEN_MOE, "shared_expert_intermediate_size": 96,
                "model_type": "qwen3_5_moe_text",
            },
        },
    ),
    "inside, llama4": ("Llama4", {"text_config": {**_LLAMA_4, "model_type": "llama4_text"}}),
    "inside, minicpm": ("MiniCPMV4_6", {"text_config": {**_DELTA, "model_type": "qwen3_5_text"}}),
    "inside, voxtral": (
        "Voxtral", {"text_config": {"model_type": "llama"}, "audio_config": VISION},
    ),
    "glm4, 4v": ("Glm4v", {"text_config": {"rope_parameters": _HALF_SECTIONS}}),
    "glm4, ocr": ("GlmOcr", {"text_config": {"rope_parameters": _SECTIONS}}),
    "glm4moe, 4v": (
        "Glm4vMoe",
        {
            "text_config": {
                **_SCORED, "attention_bias": True, "rope_parameters": _HALF_SECTIONS,
            },
        },
    ),
    "hunyuan_vl": (
        "HunYuanVL",
        {
            "text_config": {
                "head_dim": 32, "tie_word_embeddings": True,
                "rope_parameters": {
                    "rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 100.0, "factor": 1.0,
                    "mrope_section": [4, 8, 4],
                },
            },
        },
    ),
    "kimi-linear": (
        "KimiLinear",
        {
            **_DEEPSEEK, **_SCORED, "q_lora_rank": None, "linear_head_dim": 16,
            "linear_num_heads": 4, "num_local_experts": 4, "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "qk_nope_head_dim": 24,
        },
    ),
    "mimo2": (
        "MiMoV2Flash",
        {
            **_SCORED, "head_dim": 32, "v_head_dim": 16, "num_hidden_layers": 3,
            "sliding_window": 8, "num_key_value_heads": 1, "routed_scaling_factor": 1.0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gemma3n": (
        "Gemma3nText",
        {
            "head_dim": 8, "sliding_window": 8, "num_hidden_layers": 22, "num_kv_shared_layers": 2,
            "intermediate_size": 256, "vocab_size_per_layer_input": 200,
        },
    ),
    "inside, cohere2": (
        "Cohere2Vision",
        {"text_config": {"model_type": "cohere2", "sliding_window": 8, "logit_scale": 0.25}},
    ),
    "inside, command-r": (
        "AyaVision", {"text_config": {"model_type": "cohere", "logit_scale": 0.25}},
    ),
    "deepseek2-ocr": (
        "DeepseekOcr2",
        {
            "vision_config": {
                "sam_config": {
                    "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "mlp_dim": 32, "downsample_channels": [32, 32],
                },
                "encoder_config": {
                    "vocab_size": 8, "hidden_size": 32, "intermediate_size": 32,
                    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
                },
            },
            "text_config": {
                **_MOE, "n_routed_experts": 4, "n_shared_experts": 2, "moe_intermediate_size": 32,
                "routed_scaling_factor": 1.5, "mlp_layer_types": ["dense", "sparse"],
                "num_key_value_heads": 4,
            },
        },
    ),
    "step35": (
        "Step3p7",
        {
            "text_config": {
                **_MOE, "num_hidden_layers": 3, "num_sliding_attention_heads": 6, "head_dim": 16,
                "pad_token_id": 2,
                "n_routed_experts": 4, "moe_intermediate_size": 32, "share_expert_dim": 96,
                "moe_router_scaling_factor": 1.5, "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "swiglu_limits": [0, 0.2, 0], "swiglu_limits_shared": [0, 0, 0.1],
                "rope_parameters": {
                    "full_attention": {**_LLAMA_3, "partial_rotary_factor": 0.5},
                    "sliding_attention": _DEFAULT,
                },
            },
        },
    ),
    "gptneox": ("GPTNeoX", {"rope_parameters": {**_DEFAULT, "partial_rotary_factor": 0.5}}),
    "gptneox, one after the other": (
        "GPTNeoX", {"use_parallel_residual": False, "hidden_act": "gelu_fast"},
    ),
    "bloom": ("Bloom", {}),
    "falcon": ("Falcon", {}),
    "falcon, groups": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, own keys": ("Falcon", {"multi_query": False}),
    "starcoder": ("GPTBigCode", {}),
    "starcoder, own keys": ("GPTBigCode", {"multi_query": False}),
    "mpt": ("Mpt", {"attn_config": {"clip_qkv": 0.6}, "max_seq_len": 128}),
}  # fmt: skip
"""What a case shows → prefix of the classes in transformers, and what a config says."""
