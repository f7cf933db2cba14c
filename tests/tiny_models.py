"""Tiny random models of many kinds, and sampling from any of them without a cache."""

from __future__ import annotations

import torch
import transformers as hf

from r2v.clients.local.sampling import cumulative_NV, draw_NK, entropy_N, uniforms_KL
from r2v.clients.local.transcript import Encoder, segments

WINDOW = 7
_SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 1024, "initializer_range": 0.2,
}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "initializer_range": 0.2}
_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
_LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
CONFIGS = {
    "llama": (hf.LlamaConfig, {}),
    "qwen2": (hf.Qwen2Config, {}),
    "qwen2-sliding": (hf.Qwen2Config, {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    "qwen3": (hf.Qwen3Config, {"head_dim": 8}),
    "mistral": (hf.MistralConfig, {"sliding_window": WINDOW}),
    "gemma2": (hf.Gemma2Config, {"head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0}),
    "gemma3": (hf.Gemma3TextConfig, {"head_dim": 8, "sliding_window": WINDOW, "sliding_window_pattern": 2}),
    "phi3": (hf.Phi3Config, {"sliding_window": WINDOW}),
    "gpt-oss": (hf.GptOssConfig, {"head_dim": 8, "sliding_window": WINDOW, "num_local_experts": 4, **_EXPERTS}),
    "llama4": (hf.Llama4TextConfig, {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2,
                                     "attention_chunk_size": WINDOW}),
    "phi3-longrope": (hf.Phi3Config, {"rope_parameters": _LONGROPE}),
    "mamba2": (hf.Mamba2Config, {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}),
    "qwen3-next": (hf.Qwen3NextConfig, {"head_dim": 8, **_EXPERTS, **_LINEAR}),
    "gpt-neo": (hf.GPTNeoConfig, {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
                                  "window_size": WINDOW}),
    "mpt": (hf.MptConfig, {"d_model": 32, "n_layers": 2, "n_heads": 4}),
}  # fmt: skip


def tiny(name, tokenizer, **more):
    """The model of that name with random weights, large enough that its attention matters."""
    kind, options = CONFIGS[name]
    torch.manual_seed(0)
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")}
    config = kind(**{"vocab_size": len(tokenizer), **_SIZES, **ids, **options, **more})
    return hf.AutoModelForCausalLM.from_config(config).eval()


def encoded(context, encoder):
    """The tokens of a context."""
    tokens = list(encoder.bos)
    for text, is_action in segments(context.goal, context.observations, [a.text for a in context.actions]):
        tokens += encoder(text, action=is_action)
    return tokens


def naive(model, tokenizer, context, k, seed, *, temperature=0.7, top_p=0.95, length=16):
    """The same candidates by encoding everything again for every token."""
    prefix = encoded(context, Encoder(tokenizer))
    uniforms = uniforms_KL(seed, k, length)
    result = []
    for i in range(k):
        tokens, logp = [], 0.0
        for depth in range(length):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prefix + tokens]), use_cache=False).logits[:, -1]
            token = int(draw_NK(cumulative_NV(logits, temperature, top_p), torch.tensor([[uniforms[i, depth]]]))[0, 0])
            scores = torch.log_softmax(logits, -1)
            if depth == 0:
                entropy = float(entropy_N(scores.topk(20).values, scores.shape[-1])[0])
            logp += float(scores[0, token])
            tokens.append(token)
            if token == tokenizer.eos_token_id:
                break
        text = tokenizer.decode([t for t in tokens if t != tokenizer.eos_token_id], skip_special_tokens=True).strip()
        result.append((text, logp, entropy))
    return result
