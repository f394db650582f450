#!/usr/bin/env python3
"""Makes tests/golden/data_*: small byte-level BPE tokenizers with ids from Hugging Face tokenizers, and chat templates
with the text that Transformers renders. Run: pip install tokenizers transformers jinja2 gguf numpy, then this file.

Made with tokenizers 0.23.3, transformers 5.23.0, Jinja2 3.1.6, gguf 0.19.0.
"""

import json
import os
import random
import sys

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import data_templates  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SENTENCES = """The quick brown fox jumps over the lazy dog, and it's not tired; they'll say we've won, I'm sure.
Long jobs haul heavy loads: 12 layers, 4096 tokens, 0.00025 learning rate, 98.7% done in 1,234 seconds.
Größe, Straße und Übermut; l'été à Orléans coûte 3,50 € par café; ¿Dónde está la niña? Çok güzel!
Съешь же ещё этих мягких французских булок, да выпей чаю. Η γρήγορη αλεπού πηδάει.
我们训练一个小模型，学习率为零点一。日本語のテキストも、カタカナとひらがな。 한국어 문장도 있습니다.
مرحبا بالعالم، كيف حالك؟ שלום עולם, מה שלומך? नमस्ते दुनिया, आप कैसे हैं? สวัสดีชาวโลก
def forward(self, x: Tensor) -> Tensor:\n    return self.norm(x + self.attn(x))  # residual\n
for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }\n\tif (sum != 0.0f) printf("%d\\n", (int)sum);\n
SELECT id, name FROM jobs WHERE state = 'running' AND gpu_count >= 8 ORDER BY created_at DESC LIMIT 100;
<div class="note"><p>Hello &amp; goodbye</p></div> {"role": "user", "content": "What is 2 + 2?"}
🙂 👩‍👩‍👧 🇩🇪 👍🏽 ❤️ 🚀🚀🚀 — “quoted” … ‘single’ ½ ² Ⅷ ١٢٣ ４５ ∑∫√∞ ≤≥ → ⇒
https://example.com/path?query=1&other=two#frag user.name+tag@example.org /usr/local/bin --flag=value
""".split("\n")

PIECES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", " \n\n", "\u3000", "\u00a0", "\u2028", "\x85", "\x0b", "a",
          "B", "hello", " world", "'s", "'S", "'ſ", "'LL", "'re", " 've", "'", "''d", "1", "23", "456", "7890", "١٢", "²",
          "Ⅷ", "½", "é", "e\u0301", "A\u030a", "Å", "cafe\u0301", "café", "漢字", "かな", "한국어", "ᄒ\u1161ᆫ", "العربية",
          "हिन्दी", "🙂", "👩‍👩‍👧", "🇩🇪", "!", "...", "_", "(x)", "¿", "ß", "\u200b", "\u00ad", "\ufeff", "=>", "def f(x):",
          "\\n", "ﬁ", "Ω", "K", "longhaul", " longhaul", "nano", " nano ", "<mask>", " <mask> ", "<sep>", " <sep> ",
          "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "|>", "<|begin_of_text|>", "<|eot_id|>", "<tool_call>",
          "<think>", "\x01", "\x00", "\x7f", "\ud7ff", "\ue000", "\uffff", "\U0010ffff"]


def corpus(rnd):
    words = [w for s in SENTENCES for w in s.replace("\\n", "\n").split(" ")]
    lines = [s.replace("\\n", "\n") for s in SENTENCES] * 5
    for _ in range(1500):
        lines.append(" ".join(rnd.choice(words) for _ in range(rnd.randrange(3, 14))))
    return lines


def test_lines(rnd):
    lines = ["", " ", "\n", "a", "  a", "a  ", "a \n b", "   \n\n  x", "x\t\t y", "'s's'S'T'Ve'LLama", "1234567 89 ٣٤٥٦", "ſ'ſ'ſt"]
    words = [w for s in SENTENCES for w in s.replace("\\n", "\n").split(" ")]
    for _ in range(700):
        lines.append(" ".join(rnd.choice(words) for _ in range(rnd.randrange(1, 12))))
    for _ in range(1000):
        lines.append("".join(rnd.choice(PIECES) for _ in range(rnd.randrange(1, 14))))
    for _ in range(250):
        indent = " " * rnd.randrange(0, 17)
        lines.append(indent + "".join(rnd.choice("abcxyz_()[]{}=+-*/<>!.,:;\"'\\#@0123456789 \t") for _ in range(40)))
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00), (0x1E00, 0x2070),
              (0x2070, 0x2800), (0x3040, 0x3100), (0x4E00, 0x9000), (0xAC00, 0xD7A4), (0xF900, 0xFB50), (0x1F300, 0x1F650)]
    for _ in range(250):
        low, high = rnd.choice(blocks)
        lines.append("".join(chr(rnd.randrange(low, high)) for _ in range(rnd.randrange(1, 12))))
    return [l.encode("utf-8", "ignore").decode() for l in lines]


def train(lines, pre, normalizer, vocab, drop_bytes=""):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = [c for c in pre_tokenizers.ByteLevel.alphabet() if c not in drop_bytes]
    tokenizer.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False, special_tokens=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add(tokenizer, specials, others=()):
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.add_tokens(list(others))


def make_llama3(lines):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raw = json.loads(train(lines, pre, None, 900).to_str())
    raw["model"]["ignore_merges"] = True
    for word in ("Ġlonghaul", "longhaul", "...", "Ġworld"):  # tokens that no merge makes
        raw["model"]["vocab"].setdefault(word, len(raw["model"]["vocab"]))
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    add(tokenizer, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                                      special_tokens=[("<|begin_of_text|>", bos)])])
    return tokenizer


def make_qwen2(lines):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = train(lines, pre, normalizers.NFC(), 900)
    plain = [AddedToken(t, special=False, normalized=False) for t in ("<tool_call>", "</tool_call>", "<think>", "</think>")]
    add(tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], plain + [AddedToken("café", normalized=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def make_smollm(lines):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer = train(lines, pre, None, 800, drop_bytes="\u0101\u0102")  # bytes 1 and 2 have no token
    add(tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        [AddedToken("<mask>", lstrip=True, normalized=False, special=True),
         AddedToken("<sep>", rstrip=True, normalized=False), AddedToken("nano", single_word=True, normalized=False)])
    return tokenizer


def write_gguf(tokenizer, template, path):
    model = json.loads(tokenizer.to_str())
    texts = {i: t for t, i in model["model"]["vocab"].items()}
    types = {i: gguf.TokenType.NORMAL for i in texts}
    for token in model["added_tokens"]:
        texts[token["id"]] = token["content"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    size = max(texts) + 1
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([texts[i] for i in range(size)])
    writer.add_token_types([types[i] for i in range(size)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_pad_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_unk_token_id(tokenizer.token_to_id("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decodings(tokenizer, ids, rnd):
    """Cut at random places, so that characters stay open at the end."""
    out = []
    for row in rnd.sample([r for r in ids if len(r) > 3], 150):
        part = row[:rnd.randrange(1, len(row))]
        out.append([part, tokenizer.decode(part, skip_special_tokens=False), tokenizer.decode(part, skip_special_tokens=True)])
    return out


def masks(tokenizer, style):
    """ids and masks from a rendering written by hand here, checked against the template's own text."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    rows = []
    for messages in data_templates.CONVERSATIONS:
        if any(m["role"] == "tool" for m in messages):
            continue
        text, spans = data_templates.BY_HAND[style](messages)
        rendered, _ = data_templates.render(data_templates.TEMPLATES[style], messages, None, False)
        assert rendered == text, (style, rendered, text)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        train_mask = [int(any(b < e <= stop for b, stop in spans)) for _, e in encoding.offsets]
        rows.append({"messages": messages, "text": text, "ids": encoding.ids, "train": train_mask})
    return rows


def dump(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def main():
    rnd = random.Random(20240607)
    training = corpus(rnd)
    lines = test_lines(rnd)
    golden = {"lines": lines, "tokenizers": {}}
    makers = {"llama3": make_llama3, "qwen2": make_qwen2, "smollm": make_smollm}
    styles = {"llama3": "llama3", "qwen2": "qwen2.5", "smollm": "smollm2"}
    for name, make in makers.items():
        tokenizer = make(training)
        with open(os.path.join(HERE, f"data_{name}_tokenizer.json"), "w", encoding="utf-8") as f:
            f.write(tokenizer.to_str(pretty=False) + "\n")
        ids = [e.ids for e in tokenizer.encode_batch(lines, add_special_tokens=True)]
        golden["tokenizers"][name] = {"ids": ids, "decoded": decodings(tokenizer, ids, rnd),
                                      "masks": masks(tokenizer, styles[name]), "template": styles[name]}
        if name == "smollm":
            write_gguf(tokenizer, data_templates.TEMPLATES["smollm2"], os.path.join(HERE, "data_smollm.gguf"))
    dump("data_tokens.json", golden)
    dump("data_templates.json", data_templates.golden())


if __name__ == "__main__":
    main()
