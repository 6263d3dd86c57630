"""Shapes known by name: what is published in these repositories' config.json.

Vision towers and prediction heads are left out, as mlx_lm.convert leaves them out.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _qwen3_5(**sizes: int) -> Config:
    """Return the config of a Qwen3.5: three gated delta layers, then one of gated attention."""
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen3_5_moe_text",
            "attention_bias": False,
            "attn_output_gate": True,
            "dtype": "bfloat16",
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_act": "silu",
            "layer_types": [
                "full_attention" if layer % 4 == 3 else "linear_attention"
                for layer in range(sizes["num_hidden_layers"])
            ],
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_value_head_dim": 128,
            "max_position_embeddings": 262144,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000.0,
                "rope_type": "default",
            },
            "shared_expert_intermediate_size": sizes["moe_intermediate_size"],
            "tie_word_embeddings": False,
            "vocab_size": 248320,
            **sizes,
        },
    }


PRESETS: dict[str, Config] = {
    "qwen3.5-35b-a3b": _qwen3_5(  # Qwen/Qwen3.5-35B-A3B
        hidden_size=2048,
        linear_num_value_heads=32,
        moe_intermediate_size=512,
        num_attention_heads=16,
        num_experts=256,
        num_experts_per_tok=8,
        num_hidden_layers=40,
    ),
    "qwen3.5-122b-a10b": _qwen3_5(  # Qwen/Qwen3.5-122B-A10B
        hidden_size=3072,
        linear_num_value_heads=64,
        moe_intermediate_size=1024,
        num_attention_heads=32,
        num_experts=256,
        num_experts_per_tok=8,
        num_hidden_layers=48,
    ),
    "qwen3.5-397b-a17b": _qwen3_5(  # Qwen/Qwen3.5-397B-A17B
        hidden_size=4096,
        linear_num_value_heads=64,
        moe_intermediate_size=1024,
        num_attention_heads=32,
        num_experts=512,
        num_experts_per_tok=10,
        num_hidden_layers=60,
    ),
    "qwen3-30b-a3b": {  # Qwen/Qwen3-30B-A3B
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "mixtral-8x7b": {  # mistralai/Mixtral-8x7B-Instruct-v0.1
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32000,
    },
}
