"""Makes the tiny checkpoints beside it with Hugging Face's transformers: `python tests/loaders/make_checkpoints.py`.

Needs torch and transformers, which the tests do not. Every parameter is random, norms and biases too, so that none is
mistaken for another.
"""

import json
import pathlib

import numpy as np
import torch
import transformers as hf

FOLDER = pathlib.Path(__file__).parent / "checkpoints"
TOKENS = np.array([[1, 7, 3, 12, 30, 2, 9, 4, 22, 15], [5, 5, 31, 0, 8, 19, 27, 11, 6, 2]])
IMAGES = np.random.default_rng(0).standard_normal((2, 8, 8, 2)).astype(np.float32)
SIZES = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 32}
DEEP = SIZES | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
}
MODELS = {
    "gpt2": hf.GPT2LMHeadModel(
        hf.GPT2Config(
            bos_token_id=1,
            eos_token_id=2,
            n_layer=2,
            n_embd=16,
            n_head=4,
            n_inner=24,
            n_positions=12,
            vocab_size=32,
            initializer_range=0.2,
        )
    ),
    "bert": hf.BertModel(hf.BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=12)),
    "bert_masked": hf.BertForMaskedLM(hf.BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=12)),
    "llama": hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **DEEP, tie_word_embeddings=False, rope_parameters=LLAMA3 | {"original_max_position_embeddings": 16}
        )
    ),
    "qwen3": hf.Qwen3ForCausalLM(hf.Qwen3Config(**DEEP, head_dim=6, tie_word_embeddings=True)),
    "olmo2": hf.Olmo2ForCausalLM(hf.Olmo2Config(**DEEP, tie_word_embeddings=False)),
    "gemma2": hf.Gemma2ForCausalLM(
        hf.Gemma2Config(
            **DEEP,
            head_dim=6,
            query_pre_attn_scalar=5,
            sliding_window=4,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
    "gemma3": hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **DEEP,
            head_dim=6,
            query_pre_attn_scalar=5,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=GEMMA3_ROPE,
        )
    ),
    "vit": hf.ViTForImageClassification(
        hf.ViTConfig(
            **{k: v for k, v in SIZES.items() if k != "vocab_size"},
            num_hidden_layers=2,
            image_size=8,
            patch_size=4,
            num_channels=2,
            num_labels=3,
        )
    ),
}


def main() -> None:
    """Writes config.json, model.safetensors and expected.npz of each model."""
    for name, model in MODELS.items():
        folder = FOLDER / name
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.3 * noise if parameter.ndim > 1 else parameter.data + 0.3 * noise
        # Eager: the other ways do not bound scores.
        model.set_attn_implementation("eager")
        model.eval().save_pretrained(folder)
        with torch.no_grad():
            # Torch has the channels first.
            out = model(torch.from_numpy(IMAGES).movedim(-1, 1) if name == "vit" else torch.from_numpy(TOKENS))
        fields = {"y": out.last_hidden_state, "pooled": out.pooler_output} if name == "bert" else {"y": out.logits}
        np.savez(
            folder / "expected.npz", x=IMAGES if name == "vit" else TOKENS, **{k: v.numpy() for k, v in fields.items()}
        )
        (folder / "generation_config.json").unlink(missing_ok=True)
        print(
            name,
            json.loads((folder / "config.json").read_text())["model_type"],
            sum(p.numel() for p in model.parameters()),
        )


if __name__ == "__main__":
    main()
