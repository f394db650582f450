#!/usr/bin/env python3
"""Makes tests/golden/engine_{llama_tied,llama_untied,qwen3,qwen3_yarn,llama_dynamic,llama_longrope,llama_nf4}/: tiny
models of real structure, a PEFT adapter with random B, and what Transformers and PEFT compute for them: logits, loss,
the gradient of every A and B.

engine_llama_nf4 is engine_llama_tied quantised by bitsandbytes and saved by Transformers; its expectations are those of
the weights that bitsandbytes dequantises, with engine_llama_tied's adapter and documents. bitsandbytes runs its torch
kernels here, which agree with its CUDA kernels. Its native CPU kernels do not: they round an absmax near the middle of
two codes either way, and with AVX-512 they take a wrong absmax where in_features is no multiple of the block.

Needs: torch transformers peft bitsandbytes safetensors numpy (CONTRIBUTING.md). Deterministic: a second run gives the
same bytes. Made with torch 2.11.0 (dynamic and longrope with 2.15.0), transformers 5.24.0, peft 0.21.2,
bitsandbytes 0.50.2.

Transformers works partly in f32 whatever the model's type (RMSNorm, rotary tables), so the f64 run replaces those two
forward functions by their formulas in f64. The script asserts that the plain f32 run agrees.
"""

import ctypes
import json
import math
import os
import pathlib
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # the models have no name that a hub could know
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # no compiled kernels: plain torch adds in one order


def refuse_native_bitsandbytes(path):
    if "bitsandbytes" in str(path):
        raise OSError("not here: the torch kernels are wanted")
    return load_library(path)


load_library, ctypes.cdll.LoadLibrary = ctypes.cdll.LoadLibrary, refuse_native_bitsandbytes

import bitsandbytes.cextension
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

OUT = pathlib.Path(__file__).resolve().parent
DOCUMENTS = [23, 9, 1, 14]  # tokens; a document of one has no target
RANK, ALPHA = 3, 12
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMON = dict(vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, attention_bias=False,
              initializer_range=0.1, dtype="bfloat16", bos_token_id=1, eos_token_id=2, pad_token_id=0)
# Wavelengths of head_dim 12 lie below, within and above the band from 64/4 to 64/1 that llama3 scaling smooths.
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
# Of head_dim 20's ten frequencies two stay, one lies within the ramp and the others are divided by the factor.
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
        "beta_fast": 4.0, "beta_slow": 1.0}
# Of head_dim 12; a context of 16 is exceeded.
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0]}
# What the engine takes for a sequence's length, in Transformers the longest one so far: the rows of the tests' plan.
LENGTH = 48
PATCHED = ((modeling_llama.LlamaRMSNorm, modeling_llama.LlamaRotaryEmbedding),
           (modeling_qwen3.Qwen3RMSNorm, modeling_qwen3.Qwen3RotaryEmbedding))


def norm_forward(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


def rotary_forward(self, x, position_ids):
    """Angles from inverse frequencies in f64, the llama3 bands and yarn's ramp by the published formulas."""
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
    scale = 1.0
    if rope["rope_type"] == "yarn":
        inverse, scale = yarn(rope, inverse, dim)
        theirs, their_scale = ROPE_INIT_FUNCTIONS["yarn"](self.config)
        assert torch.allclose(inverse.float(), theirs, rtol=1e-6, atol=0) and abs(scale - their_scale) < 1e-12
    if rope["rope_type"] == "dynamic":
        times = LENGTH / self.config.max_position_embeddings
        theta = rope["rope_theta"] * (rope["factor"] * times - (rope["factor"] - 1)) ** (dim / (dim - 2))
        inverse = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        check_rope(self.config, inverse, scale)
    if rope["rope_type"] == "longrope":
        inverse = inverse / torch.tensor(rope["long_factor"], dtype=torch.float64)
        original = rope["original_max_position_embeddings"]
        scale = math.sqrt(1 + math.log(self.config.max_position_embeddings / original) / math.log(original))
        check_rope(self.config, inverse, scale)
    angles = position_ids[..., None].double() * inverse
    both = torch.cat([angles, angles], -1)
    return (scale * both.cos()).to(x.dtype), (scale * both.sin()).to(x.dtype)


def check_rope(config, inverse, scale):
    theirs, their_scale = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, seq_len=LENGTH)
    assert torch.allclose(inverse.float(), theirs, rtol=1e-6, atol=0) and abs(scale - their_scale) < 1e-12


def fix_length(model):
    """Transformers' own frequencies of a sequence of LENGTH, whatever comes: else they would follow each document."""
    rotary = model.get_base_model().model.rotary_emb
    kind = rotary.config.rope_parameters["rope_type"]
    if kind in ("dynamic", "longrope"):
        inverse, rotary.attention_scaling = ROPE_INIT_FUNCTIONS[kind](rotary.config, seq_len=LENGTH)
        rotary.register_buffer("inv_freq", inverse, persistent=False)
        rotary.rope_type = "default"


def yarn(rope, inverse, dim):
    """Frequencies with many turns in the original context stay, slow ones are divided, between them a ramp."""
    def pair_of(turns):
        length = rope["original_max_position_embeddings"]
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low = max(math.floor(pair_of(rope["beta_fast"])), 0)
    high = min(math.ceil(pair_of(rope["beta_slow"])), dim - 1)
    divided = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return (1 - divided) * inverse + divided * inverse / rope["factor"], 0.1 * math.log(rope["factor"]) + 1


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
    targets = sum((labels[1:] != -100).sum().item() for _, labels in documents)
    logits, total = [], 0
    for ids, labels in documents:
        out = model(input_ids=ids[None]).logits[0]
        logits.append(out)
        total = total + torch.nn.functional.cross_entropy(out[:-1], labels[1:], ignore_index=-100, reduction="sum")
    loss = total / targets
    model.zero_grad()
    loss.backward()
    gradients = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if "lora_" in n}
    return torch.cat(logits).detach(), loss.detach(), gradients


def run_f64(model, documents):
    originals = [(norm.forward, rotary.forward) for norm, rotary in PATCHED]
    for norm, rotary in PATCHED:
        norm.forward, rotary.forward = norm_forward, rotary_forward
    result = run(model.double(), documents)
    for (norm, rotary), original in zip(PATCHED, originals):
        norm.forward, rotary.forward = original
    return result


def random_documents(vocab):
    documents = []
    for length in DOCUMENTS:
        ids = torch.randint(3, vocab, (length,))
        labels = torch.where(torch.rand(length) < 0.3, torch.tensor(-100), ids)
        documents.append((ids, labels))
    return documents


def save_adapter(model, folder):
    """As PEFT saves it, but for the order of target_modules, which is a set to PEFT and differs from run to run."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def save_expected(folder, name, model, documents):
    logits32, loss32, gradients32 = run(model.float(), documents)
    logits, loss, gradients = run_f64(model, documents)
    assert (logits32 - logits).norm() < 1e-5 * logits.norm(), name
    assert abs(loss32 - loss) < 1e-5 * loss, name
    expected = {"logits": logits, "loss": loss.reshape(1),
                "ids": torch.cat([i for i, _ in documents]).int(), "labels": torch.cat([l for _, l in documents]).int(),
                "lengths": torch.tensor(DOCUMENTS, dtype=torch.int32)}
    for key, g in gradients.items():
        assert (gradients32[key] - g).norm() < 1e-4 * g.norm() and g.norm() > 0, (name, key)
        expected["grad." + key] = g
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    for file in folder.rglob("*.*"):
        file.chmod(0o644)
    print(name, "loss", loss.item(), "bytes", sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()))


def base_weights(model):
    return {n.replace(".base_layer", ""): p for n, p in model.get_base_model().named_parameters() if "lora_" not in n}


def make(name, config, cls):
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
    fix_length(model)
    save_adapter(model, folder / "adapter")
    weights = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in base_weights(model).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    facts = dict(config.to_diff_dict(), architectures=[cls.__name__])
    (folder / "config.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    documents = random_documents(config.vocab_size)
    save_expected(folder, name, model, documents)
    return model, documents


def make_nf4(name, source, model, documents):
    """The source's folder through Transformers and bitsandbytes; then the same model over the dequantised weights."""
    folder = OUT / f"engine_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as alone:  # without the adapter, which Transformers would load too
        for file in ("config.json", "model.safetensors"):
            shutil.copy(OUT / f"engine_{source}" / file, alone)
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                 bnb_4bit_compute_dtype=torch.bfloat16)
        quantised = AutoModelForCausalLM.from_pretrained(alone, quantization_config=nf4, dtype=torch.bfloat16,
                                                         device_map={"": "cpu"})
    quantised.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert type(bitsandbytes.cextension.lib).__name__ == "ErrorHandlerMockBNBNativeLibrary"
    weights = base_weights(model)
    replaced = 0
    with torch.no_grad():
        for key, p in quantised.named_parameters():
            if not hasattr(p, "quant_state"):
                continue
            dequantised = dequantize_4bit(p.data, p.quant_state)
            assert dequantised.dtype == torch.bfloat16 and dequantised.shape == weights[key].shape
            weights[key].copy_(dequantised)
            replaced += 1
    assert replaced == 7 * COMMON["num_hidden_layers"]
    assert any(".quant_state." in key for key in load_file(folder / "model.safetensors"))
    save_expected(folder, name, model, documents)


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    llama, documents = make("llama_tied", LlamaConfig(**COMMON, rope_parameters=LLAMA3, tie_word_embeddings=True),
                            LlamaForCausalLM)
    make_nf4("llama_nf4", "llama_tied", llama, documents)
    make("llama_untied", LlamaConfig(**COMMON, rope_parameters=LLAMA3, tie_word_embeddings=False), LlamaForCausalLM)
    make("qwen3", Qwen3Config(**COMMON, head_dim=20, tie_word_embeddings=True,
                              rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}), Qwen3ForCausalLM)
    make("qwen3_yarn", Qwen3Config(**COMMON, head_dim=20, tie_word_embeddings=True, rope_parameters=YARN),
         Qwen3ForCausalLM)
    for name, rope, positions in (("dynamic", DYNAMIC, 16), ("longrope", LONGROPE, 64)):
        facts = dict(COMMON, max_position_embeddings=positions)
        make(f"llama_{name}", LlamaConfig(**facts, rope_parameters=rope, tie_word_embeddings=True), LlamaForCausalLM)


if __name__ == "__main__":
    main()
