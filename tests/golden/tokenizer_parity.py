#!/usr/bin/env python3
"""Compares the ids of `longhaul-tool tokenize` with Hugging Face tokenizers' on more than 50,000 texts, one tokenizer after
the other, and writes what it saw. Exits 1 if any text differs.

usage: tokenizer_parity.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--tool build/dev/bin/longhaul-tool] [--output FILE]

Texts come from a fixed seed: WordNet's glosses (Debian's wordnet-base), code, emoji, white space, numbers, contractions,
special tokens, scripts of the whole world, and random code points of every plane.

SmolLM2's tokenizer on Hugging Face's side is built here, with the tokenizers library, from the GGUF's tokens and merges
and the published pipeline of SmolLM2; a second one is the tokenizer.json that `longhaul-tool export-base` writes. The
llama3 and qwen2 tokenizers are tests/golden/data_*_tokenizer.json, trained by the tokenizers library itself.

Needs: tokenizers gguf numpy (CONTRIBUTING.md).
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import gguf
import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

GOLDEN = pathlib.Path(__file__).resolve().parent
ROOT = GOLDEN.parent.parent
SEED = 20250131
WORDNET = pathlib.Path("/usr/share/wordnet")
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>",
            "<tool_call>", "</think>", "<mask>", "<sep>", "<repo_name>", "<|im_", "|>", "<|", "im_end"]
SPACES = [" ", "  ", "   ", "        ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ", "\u00a0", "\u2003", "\u3000",
          "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\u200b", "\u200d", "\ufeff", "\u180e"]
EMOJI = ["🙂", "😂", "❤️", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵", "1️⃣", "🧑🏿‍🚀", "🚀", "🎉", "🤖", "🫠", "🪿", "☃", "✔️", "▶", "♀"]
WORDS = """the of and to in is that it was for on are as with his they at be this have from or one had by word but not
what all were we when your can said there use an each which she do how their if will up other about out many then them
I'm you're it's don't we'll they've he'd I'M YOU'RE IT'S DON'T rock'n'roll 'tis o'clock ſ'ſ naïve café Straße coöperate
Größe niño façade Ångström İstanbul ǅ ﬁne encyclopædia données été übermäßig señor résumé jalapeño smörgåsbord""".split()
CODE = ["def {a}({b}, *{c}):", "    return {a}[{n}:{m}] if {b} else None", "for (int {a} = 0; {a} < {n}; ++{a}) {{",
        "\t{a}->{b}({c}, &{a}[{n}]);", "std::vector<{a}> {b}{{{n}, {m}}};", "#include <{a}/{b}.h>", "if ({a} != nullptr && *{a} == '\\{n}') break;",
        "SELECT {a}.{b}, COUNT(*) FROM {c} WHERE {a} >= {n} GROUP BY {b};", "{{\"{a}\": [{n}, {m}.5e-{n}], \"{b}\": null}}",
        "<div class=\"{a}\" id='{b}'>{c}&nbsp;{n}</div>", "$ {a} --{b}={n} | grep -E '^{c}+' > /dev/null 2>&1", "// NOTE({a}): {b}_{c} = 0x{n}FF;",
        "fn {a}<'a, T: {b}>(&'a mut self) -> Result<T, {c}>", "@{a}.{b}(lambda {c}: {c} ** {n} % {m})", "https://{a}.example.org/{b}?{c}={n}#{m}",
        "    \"\"\"{a} {b}.\n\n    {c}: {n}\n    \"\"\"", "{a}\\begin{{{b}}} \\frac{{{n}}}{{{m}}} $\\alpha_{{{c}}}$"]
# First and last code point of blocks with letters, marks, digits and signs.
BLOCKS = [(0x21, 0x7e), (0xa1, 0x24f), (0x250, 0x36f), (0x370, 0x52f), (0x531, 0x5f4), (0x600, 0x77f), (0x900, 0xdff),
          (0xe01, 0xfff), (0x1000, 0x139f), (0x13a0, 0x17ff), (0x1800, 0x1cff), (0x1d00, 0x1fff), (0x2000, 0x2bff),
          (0x2c00, 0x2fff), (0x3001, 0x33ff), (0x3400, 0x4dbf), (0x4e00, 0x9fff), (0xa000, 0xabff), (0xac00, 0xd7a3),
          (0xe000, 0xf8ff), (0xf900, 0xfaff), (0xfb00, 0xfdff), (0xfe00, 0xffff), (0x10000, 0x10fff), (0x11000, 0x12fff),
          (0x13000, 0x16fff), (0x17000, 0x1b2ff), (0x1d000, 0x1d7ff), (0x1e000, 0x1efff), (0x1f000, 0x1faff),
          (0x20000, 0x323af), (0xe0000, 0xe01ef), (0xf0000, 0x10ffff)]


def glosses(rnd, count):
    lines = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in open(WORDNET / f"data.{part}", encoding="utf-8"):
            if not line.startswith(" "):
                lines.append(line.rstrip("\n") if len(lines) % 5 == 0 else line.partition("|")[2].strip())
    return rnd.sample(lines, count)


def number(rnd):
    kind = rnd.randrange(6)
    if kind == 0:
        return str(rnd.randrange(10 ** rnd.randrange(1, 18)))
    if kind == 1:
        return f"{rnd.randrange(10**9):,}"
    if kind == 2:
        return f"{rnd.random() * 10 ** rnd.randrange(-9, 9):.{rnd.randrange(8)}g}"
    if kind == 3:
        return f"0x{rnd.randrange(1 << 48):x}"
    if kind == 4:
        return "".join(chr(rnd.choice((0x660, 0x966, 0xff10, 0x1d7ce)) + rnd.randrange(10)) for _ in range(rnd.randrange(1, 7)))
    return rnd.choice(["½", "²³", "Ⅷ", "④", "十二", "1st", "2nd", "3.14", "1e-5", "10%", "€9.99", "-0", "1/2", "12:34:56", "v2.0.1"])


def code(rnd):
    name = lambda: rnd.choice(["self", "x", "tokens", "getValue", "max_len", "HTTPServer", "i", "data", "__init__", "größe", "β"])
    line = rnd.choice(CODE).format(a=name(), b=name(), c=name(), n=rnd.randrange(1000), m=rnd.randrange(100000))
    return rnd.choice(["", " ", "    ", "\t", "        "]) + line


def characters(rnd, low, high, count):
    text = "".join(chr(rnd.randrange(low, high + 1)) for _ in range(count))
    return "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000)


def mixture(rnd):
    parts = []
    for _ in range(rnd.randrange(1, 16)):
        kind = rnd.randrange(9)
        if kind == 0:
            parts.append(rnd.choice(SPACES))
        elif kind == 1:
            parts.append(rnd.choice(EMOJI))
        elif kind == 2:
            parts.append(number(rnd))
        elif kind == 3:
            parts.append(characters(rnd, *rnd.choice(BLOCKS), rnd.randrange(1, 5)))
        elif kind == 4:
            parts.append(rnd.choice(SPECIALS))
        elif kind == 5:
            parts.append(rnd.choice("'\"()[]{}<>.,;:!?-_=+*/\\|@#$%^&~`") * rnd.randrange(1, 5))
        else:
            parts.append(rnd.choice(["", " ", "\n"]) + rnd.choice(WORDS))
    return "".join(parts)


def texts():
    rnd = random.Random(SEED)
    lines = ["", " ", "\n", "\x00", "a", " a", "a ", "\U0010ffff", "'", "''", "'s", " 's", "1", "  1", "\r\n\r\n", "\ufffd"]
    lines += glosses(rnd, 20000)
    lines += [code(rnd) for _ in range(7000)]
    lines += ["\n".join(code(rnd) for _ in range(rnd.randrange(2, 8))) for _ in range(1000)]
    lines += [mixture(rnd) for _ in range(15000)]
    for _ in range(6000):
        lines.append(characters(rnd, *rnd.choice(BLOCKS), rnd.randrange(1, 24)))
    for _ in range(2000):
        lines.append(characters(rnd, 0, 0x10ffff, rnd.randrange(1, 16)))
    lines += ["".join(rnd.choice(SPACES) for _ in range(rnd.randrange(1, 20))) for _ in range(2000)]
    lines += ["".join(rnd.choice(EMOJI + ["", " "]) for _ in range(rnd.randrange(1, 20))) for _ in range(1500)]
    lines += [" ".join(rnd.choice(WORDS + [number(rnd)]) for _ in range(rnd.randrange(1, 40))) for _ in range(4000)]
    # Every assigned and unassigned code point of the planes in use, once, between letters.
    points = [chr(c) for c in [*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200)]]
    rnd.shuffle(points)
    lines += ["a".join(points[i:i + 64]) for i in range(0, len(points), 64)]
    lines.append("".join(rnd.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(200000)))
    lines.append("a" * 100000)
    lines.append(" " * 50000 + "x")
    return lines


def smollm2(path):
    """The published pipeline of SmolLM2 over the GGUF's tokens and merges."""
    fields = gguf.GGUFReader(path).fields
    strings = lambda key: [str(bytes(fields[key].parts[i]), "utf-8") for i in fields[key].data]
    tokens = strings("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in strings("tokenizer.ggml.merges")]
    types = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False)
                          for t, kind in zip(tokens, types) if kind == gguf.TokenType.USER_DEFINED])
    return tokenizer


def ours(tool, model, lines_file, add_special):
    command = [tool, "tokenize", "--model", str(model), "--input", str(lines_file)]
    out = subprocess.run(command + (["--add-special"] if add_special else []), check=True, stdout=subprocess.PIPE).stdout
    return [json.loads(line) for line in out.splitlines()]


def compare(name, lines, our_ids, reference, add_special, report):
    their_ids = [e.ids for e in reference.encode_batch(lines, add_special_tokens=add_special)]
    assert len(our_ids) == len(their_ids) == len(lines)
    differing = [i for i in range(len(lines)) if our_ids[i] != their_ids[i]]
    digest = hashlib.sha256(json.dumps(their_ids).encode()).hexdigest()
    report(f"{name}: {len(lines)} texts, {sum(map(len, their_ids))} tokens, {len(differing)} differ; ids {digest[:16]}")
    for i in differing[:5]:
        report(f"  {lines[i][:60]!a}: ours {our_ids[i][:20]}, theirs {their_ids[i][:20]}")
    return len(differing)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--tool", default=str(ROOT / "build/dev/bin/longhaul-tool"))
    parser.add_argument("--output", default=str(GOLDEN / "tokenizer_parity.txt"))
    arguments = parser.parse_args()
    written = []

    def report(line):
        print(line, flush=True)
        written.append(line)

    lines = texts()
    report(f"tokenizers {tokenizers.__version__}, seed {SEED}: {len(lines)} texts, "
           f"{sum(len(line.encode()) for line in lines)} bytes")
    bad = 0
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        lines_file = work / "lines.jsonl"
        lines_file.write_text("".join(json.dumps(line) + "\n" for line in lines))

        ids = ours(arguments.tool, arguments.model, lines_file, False)
        bad += compare("SmolLM2 (GGUF)", lines, ids, smollm2(arguments.model), False, report)
        exported = work / "exported"
        subprocess.run([arguments.tool, "export-base", "--model", arguments.model, "--out", str(exported)], check=True,
                       stdout=subprocess.DEVNULL)
        reference = Tokenizer.from_file(str(exported / "tokenizer.json"))
        bad += compare("SmolLM2 (exported tokenizer.json)", lines, ids, reference, False, report)
        shutil.rmtree(exported)

        for style in ("llama3", "qwen2", "smollm"):
            folder = work / style
            folder.mkdir()
            file = GOLDEN / f"data_{style}_tokenizer.json"
            shutil.copy(file, folder / "tokenizer.json")
            ids = ours(arguments.tool, folder, lines_file, True)
            bad += compare(f"{style} (golden tokenizer.json)", lines, ids, Tokenizer.from_file(str(file)), True, report)
    pathlib.Path(arguments.output).write_text("\n".join(written) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
