#!/usr/bin/env python3
"""Makes tests/golden/engine_{llama_tied,llama_untied,qwen3}/: tiny models of real structure, a PEFT adapter with random B,
and what Transformers and PEFT compute for them: logits, loss, the gradient of every A and B.

Needs: torch transformers peft safetensors numpy. Deterministic: a second run gives the same bytes.

Transformers works partly in f32 whatever the model's type (RMSNorm, rotary tables), so the f64 run replaces those two
forward functions by their formulas in f64. The plain f32 run is stored as well; the script asserts that the two agree.
"""

import json
import math
import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

OUT = pathlib.Path(__file__).resolve().parent
DOCUMENTS = [23, 9, 14]
RANK, ALPHA = 4, 12
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMON = dict(vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, attention_bias=False,
              initializer_range=0.08, dtype="bfloat16", bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}


def norm_forward(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


def rotary_forward(self, x, position_ids):
    """Angles from inverse frequencies in f64, the llama3 bands by the published formula."""
    rope = self.config.rope_parameters
    dim = self.config.head_dim
    inverse = rope["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope["rope_type"] == "llama3":
        length = rope["original_max_position_embeddings"]
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        wavelength = 2 * math.pi / inverse
        smooth = (length / wavelength - low) / (high - low)
        between = (1 - smooth) * inverse / factor + smooth * inverse
        scaled = torch.where(wavelength > length / low, inverse / factor, between)
        inverse = torch.where(wavelength < length / high, inverse, scaled)
    angles = position_ids[..., None].double() * inverse
    both = torch.cat([angles, angles], -1)
    return both.cos().to(x.dtype), both.sin().to(x.dtype)


def randomise(model):
    """Norm weights away from 1, and B away from PEFT's zero, which would make every gradient of A zero."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_((1 + 0.3 * torch.randn_like(p)).to(torch.bfloat16))
            elif "lora_B" in name:
                p.copy_(0.05 * torch.randn_like(p))


def run(model, documents):
    """Every document alone; the loss is divided once, by the targets of all of them."""
    dtype = next(model.parameters()).dtype
    targets = sum((labels != -100).sum().item() for _, labels in documents)
    logits, total = [], 0
    for ids, labels in documents:
        out = model(input_ids=ids[None]).logits[0]
        logits.append(out)
        total = total + torch.nn.functional.cross_entropy(out[:-1].to(dtype), labels[1:], ignore_index=-100,
                                                          reduction="sum")
    loss = total / targets
    model.zero_grad()
    loss.backward()
    gradients = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if "lora_" in n}
    return torch.cat(logits).detach(), loss.detach(), gradients


def make(name, config, cls, norm, rotary):
    folder = OUT / f"engine_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(sum(map(ord, name)))
    base = cls(config).float()
    with torch.no_grad():
        for p in base.parameters():
            p.copy_(p.to(torch.bfloat16))
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = f"tiny-{name}"
    randomise(model)
    documents = []
    for length in DOCUMENTS:
        ids = torch.randint(3, config.vocab_size, (length,))
        labels = torch.where(torch.rand(length) < 0.3, torch.tensor(-100), ids)
        documents.append((ids, labels))

    logits32, loss32, gradients32 = run(model, documents)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    weights = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in cls.named_parameters(model.get_base_model())
               if "lora_" not in n}
    weights = {n.replace(".base_layer", ""): w for n, w in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_diff_dict(), indent=1, sort_keys=True) + "\n")

    originals = norm.forward, rotary.forward
    norm.forward, rotary.forward = norm_forward, rotary_forward
    logits64, loss64, gradients64 = run(model.double(), documents)
    norm.forward, rotary.forward = originals
    assert (logits32 - logits64).norm() < 1e-5 * logits64.norm(), name
    for key, g in gradients64.items():
        assert (gradients32[key] - g).norm() < 1e-4 * g.norm(), (name, key)

    expected = {"logits": logits64, "loss": loss64.reshape(1), "logits_f32": logits32, "loss_f32": loss32.reshape(1),
                "ids": torch.cat([i for i, _ in documents]).int(), "labels": torch.cat([l for _, l in documents]).int(),
                "lengths": torch.tensor(DOCUMENTS, dtype=torch.int32)}
    for key, g in gradients64.items():
        expected["grad." + key] = g
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    print(name, "loss", loss64.item(), "bytes", sum(f.stat().st_size for f in folder.iterdir()))


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, tied in (("llama_tied", True), ("llama_untied", False)):
        make(name, LlamaConfig(**COMMON, rope_parameters=LLAMA3, tie_word_embeddings=tied), LlamaForCausalLM,
             modeling_llama.LlamaRMSNorm, modeling_llama.LlamaRotaryEmbedding)
    make("qwen3", Qwen3Config(**COMMON, head_dim=24, tie_word_embeddings=True,
                              rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}), Qwen3ForCausalLM,
         modeling_qwen3.Qwen3RMSNorm, modeling_qwen3.Qwen3RotaryEmbedding)


if __name__ == "__main__":
    main()
