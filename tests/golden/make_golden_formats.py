#!/usr/bin/env python3
"""Makes tests/golden/formats_*.{gguf,safetensors,json} and nf4_cuda.safetensors.

Needs: pip install numpy gguf safetensors ml_dtypes. Deterministic: a second run gives the same bytes.
Usage: make_golden_formats.py [NF4_CUDA]
NF4_CUDA is a safetensors file of vectors made by bitsandbytes' CUDA kernels: per case C the tensors C.input, C.packed,
C.absmax, C.dequant, C.dq_absmax_u8, C.dq_nested_absmax, C.dq_offset, C.dq_dequant, and code, nested_code. Without it
the committed subset stays as it is.
"""

import json
import pathlib
import struct
import sys

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import quants
from safetensors.numpy import save, save_file

OUT = pathlib.Path(__file__).resolve().parent


def random_blocks(rng, qtype, rows, cols):
    """Stored rows of a type that the package cannot quantise: random bytes with halves that are small and finite."""
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    raw = rng.integers(0, 256, (rows * cols // block, size), dtype=np.uint8)
    halves = {Q.Q4_K: [0, 2], Q.Q6_K: [208]}[qtype]
    for at in halves:
        raw[:, at:at + 2] = (rng.standard_normal(len(raw)) * 0.01).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, -1)


def make_quants(rng):
    """Every block type, and what the package makes of it."""
    rows, cols = 4, 512
    writer = gguf.GGUFWriter(str(OUT / "formats_quants.gguf"), "quants")
    expected = {}
    for qtype in (Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q8_0, Q.Q4_K, Q.Q6_K):
        values = (rng.standard_normal((rows, cols)) * 0.05).astype(np.float32)
        values[0, :32] = 0.0
        values[1, 5] = 7.5
        if qtype in (Q.Q4_K, Q.Q6_K):
            stored = random_blocks(rng, qtype, rows, cols)
        elif qtype == Q.F32:
            stored = values
        elif qtype == Q.F16:
            stored = values.astype(np.float16)
        else:
            stored = quants.quantize(values, qtype)
        name = qtype.name.lower()
        writer.add_tensor(name, stored, raw_dtype=qtype if stored.dtype == np.uint8 else None)
        expected[name] = quants.dequantize(stored, qtype).astype(np.float32).reshape(rows, cols)
    finish(writer)
    save_file(expected, OUT / "formats_quants_expected.safetensors")


def make_metadata():
    """Every metadata type."""
    writer = gguf.GGUFWriter(str(OUT / "formats_metadata.gguf"), "metadata")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000)
    writer.add_uint32("t.u32", 4000000000)
    writer.add_int32("t.i32", -2000000000)
    writer.add_uint64("t.u64", 2**63 + 5)
    writer.add_int64("t.i64", -(2**62))
    writer.add_float32("t.f32", 0.1)
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.bool", True)
    writer.add_string("t.string", "gr\u00fc\u00df dich")
    writer.add_array("t.ints", [3, -4, 5])
    writer.add_array("t.floats", [0.5, -1.25])
    writer.add_array("t.strings", ["a", "", "\u20ac"])
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LAYERS, HIDDEN, INTER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2, 64, 96, 4, 2, 16, 80


def tiny_weights(rng):
    """Hugging Face names, float32 values that bfloat16 holds exactly."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    dims = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        dims |= {
            layer + "input_layernorm.weight": (HIDDEN,),
            layer + "post_attention_layernorm.weight": (HIDDEN,),
            layer + "self_attn.q_proj.weight": (q, HIDDEN),
            layer + "self_attn.k_proj.weight": (kv, HIDDEN),
            layer + "self_attn.v_proj.weight": (kv, HIDDEN),
            layer + "self_attn.o_proj.weight": (HIDDEN, q),
            layer + "mlp.gate_proj.weight": (INTER, HIDDEN),
            layer + "mlp.up_proj.weight": (INTER, HIDDEN),
            layer + "mlp.down_proj.weight": (HIDDEN, INTER),
        }
    return {n: (rng.standard_normal(d) * 0.1).astype(ml_dtypes.bfloat16).astype(np.float32) for n, d in dims.items()}


def permute(weights, heads):
    """Rows of q or k as llama.cpp's converter stores them."""
    rows, cols = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def make_tiny_gguf(weights):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    writer = gguf.GGUFWriter(str(OUT / "formats_tiny.gguf"), "llama")
    writer.add_type("model")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    expected = {}
    for name, values in weights.items():
        target = names.get_name(name, try_suffixes=(".weight",))
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else 0
        qtype = Q.F32 if values.ndim == 1 else Q.Q8_0 if "embed" in name else Q.Q4_1
        stored_values = permute(values, heads) if heads else values
        stored = stored_values if qtype == Q.F32 else quants.quantize(stored_values, qtype)
        writer.add_tensor(target, stored, raw_dtype=None if qtype == Q.F32 else qtype)
        read = quants.dequantize(stored, qtype).astype(np.float32).reshape(values.shape)
        if heads:  # the inverse, written independently of permute: row by row
            half = HEAD_DIM // 2
            back = np.empty_like(read)
            for row in range(values.shape[0]):
                head, pair, side = row // HEAD_DIM, row % HEAD_DIM // 2, row % 2
                back[head * HEAD_DIM + side * half + pair] = read[row]
            read = back
        expected[name] = read
    finish(writer)
    save_file(expected, OUT / "formats_tiny_expected.safetensors")


def make_tiny_hf(weights):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256,
        "vocab_size": VOCAB, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }
    (OUT / "formats_hf_config.json").write_text(json.dumps(config, indent=2) + "\n")
    first = {n: w.astype(ml_dtypes.bfloat16) for n, w in weights.items() if not n.startswith("model.layers.1.")}
    second = {n: w for n, w in weights.items() if n.startswith("model.layers.1.")}
    files = ["formats_hf_00001.safetensors", "formats_hf_00002.safetensors"]
    for file, part in zip(files, (first, second)):
        save_file(part, OUT / file, metadata={"format": "pt"})
    save_file(weights, OUT / "formats_hf_expected.safetensors")


def make_writer_bytes(rng):
    """A file of the reference library, to compare the writer's bytes with."""
    tensors = {
        "z.f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.f32": np.array([1.5], np.float32),
        "m.bf16": np.array([1, 2, 3], ml_dtypes.bfloat16),
        "m.f16": np.array([[1], [2]], np.float16),
        "i.i64": np.array([-1, 2**40], np.int64),
        "u.u8": np.arange(5, dtype=np.uint8),
        "scalar.f32": np.array(2.5, np.float32),
        "empty.f32": np.zeros((0, 4), np.float32),
        "quote\"\u00e9\n.i32": np.array([7], np.int32),
        "flag.bool": np.array([True, False, True]),
    }
    (OUT / "formats_writer.safetensors").write_bytes(save(tensors, {"format": "pt"}))


def read_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    metadata = header.pop("__metadata__")
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = np.frombuffer(raw[8 + n + begin:8 + n + end], dtypes[entry["dtype"]])
        tensors[name] = data.reshape(entry["shape"])
    return tensors, metadata


def make_nf4_subset(path):
    """Every kind of case; the large ones cut to whole nested blocks (256 absmaxes), so that each part stays exact."""
    tensors, metadata = read_safetensors(path)
    rows_kept = {"normal_bf16": 64, "uniform_f32": 16}
    out = {"code": tensors["code"], "nested_code": tensors["nested_code"]}
    kept_metadata = {k: metadata[k] for k in ("bitsandbytes", "torch", "device")}
    for case in sorted(n[:-len(".input")] for n in tensors if n.endswith(".input")):
        facts = json.loads(metadata[case])
        rows = rows_kept.get(case, facts["shape"][0])
        elements = rows * facts["shape"][1]
        blocks = -(-elements // facts["blocksize"])
        assert rows == facts["shape"][0] or blocks % 256 == 0
        facts["cut"] = rows != facts["shape"][0]
        facts["shape"][0] = rows
        kept_metadata[case] = json.dumps(facts)
        for part, count in (("input", rows), ("dequant", rows), ("dq_dequant", rows), ("packed", (elements + 1) // 2),
                            ("absmax", blocks), ("dq_absmax_u8", blocks), ("dq_nested_absmax", -(-blocks // 256)),
                            ("dq_offset", 1)):
            out[f"{case}.{part}"] = np.ascontiguousarray(tensors[f"{case}.{part}"][:count])
    save_sorted(out, OUT / "nf4_cuda.safetensors", kept_metadata)


def save_sorted(tensors, path, metadata):
    """As the reference library writes it, but with the metadata's keys sorted: the library's order changes by run."""
    raw = save(tensors, {"format": "pt"})
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    header = {"__metadata__": dict(sorted(metadata.items()))} | {k: v for k, v in header.items() if k != "__metadata__"}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + n:])


def main():
    rng = np.random.default_rng(11)
    make_quants(rng)
    make_metadata()
    weights = tiny_weights(rng)
    make_tiny_gguf(weights)
    make_tiny_hf(weights)
    make_writer_bytes(rng)
    if len(sys.argv) > 1:
        make_nf4_subset(sys.argv[1])


if __name__ == "__main__":
    main()
