#!/usr/bin/env python3
"""Turns WordNet's noun glosses into chat rows: Define the noun "lighthouse". -> its gloss.

One row a lemma, its most common sense; no gloss twice, so that nothing of the held-out rows is in the training rows. The
choice and the order follow the SHA-256 of the lemma: the same on every machine. Standard library only.
"""

import argparse
import hashlib
import json
import os
import sys


def read_glosses(path):
    """Synset offset -> gloss. A line: offset, ..., '|', gloss; the licence stands on lines that begin with blanks."""
    glosses = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(" "):
                continue
            facts, _, gloss = line.partition("|")
            glosses[facts.split(" ", 1)[0]] = gloss.strip()
    return glosses


def read_first_senses(path):
    """Lemma -> offset of its most common sense. A line: lemma pos n_synsets n_pointers pointers... n_senses n_tagged offsets..."""
    senses = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(" "):
                continue
            fields = line.split()
            first_offset = 4 + int(fields[3]) + 2
            senses[fields[0]] = fields[first_offset]
    return senses


def choose_rows(glosses, senses, count):
    rows = []
    used = set()
    for lemma in sorted(senses, key=lambda word: hashlib.sha256(word.encode()).hexdigest()):
        gloss = glosses[senses[lemma]]
        if len(rows) == count:
            break
        if not lemma.replace("_", "").isalpha() or not gloss or gloss in used:
            continue
        used.add(gloss)
        question = 'Define the noun "%s".' % lemma.replace("_", " ")
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": gloss}]})
    return rows


def write_rows(path, rows):
    temporary = path + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", default="/usr/share/wordnet", help="folder with data.noun and index.noun")
    parser.add_argument("--train", required=True, help="JSONL to write")
    parser.add_argument("--eval", required=True, help="JSONL to write, held out")
    parser.add_argument("--train-rows", type=int, default=2000)
    parser.add_argument("--eval-rows", type=int, default=200)
    arguments = parser.parse_args()
    try:
        glosses = read_glosses(os.path.join(arguments.wordnet, "data.noun"))
        senses = read_first_senses(os.path.join(arguments.wordnet, "index.noun"))
    except OSError as error:
        sys.exit("prepare_wordnet.py: %s: %s (Debian's package wordnet-base has it)" % (error.filename, error.strerror))
    rows = choose_rows(glosses, senses, arguments.train_rows + arguments.eval_rows)
    if len(rows) < arguments.train_rows + arguments.eval_rows:
        sys.exit("prepare_wordnet.py: WordNet has only %d usable nouns" % len(rows))
    write_rows(arguments.train, rows[: arguments.train_rows])
    write_rows(arguments.eval, rows[arguments.train_rows :])
    print("%d rows to train, %d held out" % (arguments.train_rows, arguments.eval_rows))


if __name__ == "__main__":
    main()
