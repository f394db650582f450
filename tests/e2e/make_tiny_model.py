#!/usr/bin/env python3
"""Writes a Hugging Face folder of a tiny Llama with random weights, so that a fine-tune takes seconds.

Two layers, hidden 64, byte-level BPE of 256 bytes and a few merges, ChatML template. The same bytes for the same seed.
Standard library only.

usage: make_tiny_model.py DIR [--seed N]
"""

import argparse
import array
import json
import os
import random
import struct
import sys

LAYERS = 2
HIDDEN = 64
INTERMEDIATE = 128
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 16
POSITIONS = 512
WEIGHT_STD = 0.08

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("e", "r"), ("Ġ", "the"), ("Ġ", "a"), ("o", "n"), ("in", "g")]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_characters():
    """GPT-2's map of bytes to printable characters, in byte order."""
    keep = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    table, extra = {}, 0
    for byte in range(256):
        if byte in keep:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(0x100 + extra)
            extra += 1
    return [table[byte] for byte in range(256)]


def vocabulary():
    words = SPECIALS + byte_characters() + ["".join(pair) for pair in MERGES]
    return {word: index for index, word in enumerate(words)}


def tensors(vocab_size):
    """(name, shape) in the file's order."""
    result = [("model.embed_tokens.weight", [vocab_size, HIDDEN])]
    for layer in range(LAYERS):
        prefix = "model.layers.%d." % layer
        result += [
            (prefix + "input_layernorm.weight", [HIDDEN]),
            (prefix + "mlp.down_proj.weight", [HIDDEN, INTERMEDIATE]),
            (prefix + "mlp.gate_proj.weight", [INTERMEDIATE, HIDDEN]),
            (prefix + "mlp.up_proj.weight", [INTERMEDIATE, HIDDEN]),
            (prefix + "post_attention_layernorm.weight", [HIDDEN]),
            (prefix + "self_attn.k_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN]),
            (prefix + "self_attn.o_proj.weight", [HIDDEN, HEADS * HEAD_DIM]),
            (prefix + "self_attn.q_proj.weight", [HEADS * HEAD_DIM, HIDDEN]),
            (prefix + "self_attn.v_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN]),
        ]
    return result + [("model.norm.weight", [HIDDEN])]


def write_weights(path, vocab_size, seed):
    generator = random.Random(seed)
    header, data = {"__metadata__": {"format": "pt"}}, bytearray()
    for name, shape in tensors(vocab_size):
        count = 1
        for size in shape:
            count *= size
        if len(shape) == 1:
            values = array.array("f", [1.0]) * count
        else:
            values = array.array("f", (generator.gauss(0, WEIGHT_STD) for _ in range(count)))
        if sys.byteorder == "big":
            values.byteswap()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * count]}
        data += values.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)


def config(vocab):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "torch_dtype": "float32",
        "vocab_size": len(vocab), "bos_token_id": vocab["<|im_start|>"], "eos_token_id": vocab["<|im_end|>"],
    }


def tokenizer(vocab):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": vocab[text], "content": text, **flags} for text in SPECIALS],
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
            "merges": [" ".join(pair) for pair in MERGES],
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    os.makedirs(arguments.dir, exist_ok=True)
    vocab = vocabulary()
    write_json(os.path.join(arguments.dir, "config.json"), config(vocab))
    write_json(os.path.join(arguments.dir, "tokenizer.json"), tokenizer(vocab))
    write_json(
        os.path.join(arguments.dir, "tokenizer_config.json"),
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
         "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE},
    )
    write_weights(os.path.join(arguments.dir, "model.safetensors"), len(vocab), arguments.seed)


if __name__ == "__main__":
    main()
