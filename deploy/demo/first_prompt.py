#!/usr/bin/env python3
"""Prints a question to ask the model: the first user message of a JSONL file of messages, or the beginning of its first text.

usage: first_prompt.py FILE
"""

import json
import sys

TEXT_CHARACTERS = 200


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if not isinstance(row, dict):
                continue
            if isinstance(row.get("text"), str) and row["text"].strip():
                print(row["text"][:TEXT_CHARACTERS])
                return
            for message in row.get("messages") or []:
                if isinstance(message, dict) and message.get("role") == "user" and isinstance(message.get("content"), str):
                    print(message["content"])
                    return
    sys.exit("first_prompt.py: %s has no row with a user message or a text" % sys.argv[1])


if __name__ == "__main__":
    main()
