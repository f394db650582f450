#!/usr/bin/env python3
"""Checks of the source tree that no compiler makes: the include table of ARCHITECTURE.md, tests that are not built or
are named and not there, file lengths, unfinished words.

Prints one line a violation and exits 1 if there is any.
"""

import fnmatch
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_LINES = 500
SOURCE = {".cc", ".h", ".cu", ".cuh", ".py", ".sh", ".proto", ".cmake"}

# First path component (or whole name) of an angle or quoted include -> the library's name in the table.
LIBRARIES = [
    (re.compile(r"^longhaul/v1/.*\.grpc\.pb\.h$"), "grpc"),
    (re.compile(r"^(longhaul/v1/|google/).*\.h$"), "proto"),
    (re.compile(r"^(grpcpp|grpc)/"), "grpc"),
    (re.compile(r"^absl/"), "absl"),
    (re.compile(r"^nlohmann/"), "nlohmann"),
    (re.compile(r"^openssl/"), "openssl"),
    (re.compile(r"^spdlog/"), "spdlog"),
    (re.compile(r"^sqlite3\.h$"), "sqlite"),
    (re.compile(r"^prometheus/"), "prometheus"),
    (re.compile(r"^CLI/"), "CLI11"),
    (re.compile(r"^yaml-cpp/"), "yaml-cpp"),
    (re.compile(r"^pcre2\.h$"), "pcre2"),
    (re.compile(r"^unicode/"), "icu"),
    (re.compile(r"^(oneapi/dnnl/)?dnnl.*\.hp*$"), "dnnl"),
    (re.compile(r"^omp\.h$"), "openmp"),
    (re.compile(r"^(cuda|cublas|cudnn|nvml|nvrtc|curand)"), "cuda"),
    (re.compile(r"^(gtest|gmock|benchmark)/"), "gtest"),
]


# Headers of POSIX and Linux, beside the C++ standard library's, whose names have neither slash nor dot.
SYSTEM = set("""
arpa/inet.h dirent.h dlfcn.h fcntl.h immintrin.h limits.h malloc.h netinet/in.h netinet/tcp.h nmmintrin.h poll.h pthread.h pwd.h
sched.h signal.h spawn.h string.h sys/epoll.h sys/eventfd.h sys/file.h sys/inotify.h sys/ioctl.h sys/mman.h
sys/prctl.h sys/random.h sys/resource.h sys/signalfd.h sys/socket.h sys/stat.h sys/sysmacros.h sys/statvfs.h sys/syscall.h
sys/types.h sys/uio.h sys/un.h sys/wait.h termios.h time.h unistd.h""".split())


def is_system(name):
    return name in SYSTEM or re.fullmatch(r"[a-z_0-9]+", name) is not None


def tracked():
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [p for p in out.stdout.splitlines() if (ROOT / p).is_file()]


def include_table():
    """Rows `| folder | may include |` between the markers in ARCHITECTURE.md, longest folder first."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    body = re.search(r"<!-- include table -->(.*?)<!-- end -->", text, re.S).group(1)
    rows = {}
    for line in body.splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if len(cells) == 2 and cells[0].startswith("`"):
            allowed = set(re.findall(r"`([^`]+)`", cells[1]))
            for folder in re.findall(r"`([^`]+)`", cells[0]):
                rows[folder] = allowed
    return rows


def row_of(path, rows):
    best = None
    for folder in rows:
        if path == folder or path.startswith(folder + "/"):
            if best is None or len(folder) > len(best):
                best = folder
    return best


def check_includes(files, problems):
    rows = include_table()
    folders = sorted(rows, key=len, reverse=True)
    for path in files:
        if pathlib.Path(path).suffix not in {".cc", ".h", ".cu", ".cuh"} or path.startswith("tests/"):
            continue
        row = row_of(path, rows)
        if row is None:
            problems.append(f"{path}: its folder has no row in ARCHITECTURE.md's include table")
            continue
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+["<]([^">]+)[">]', line)
            if not match:
                continue
            name = match.group(1)
            if name.startswith("tests/"):
                problems.append(f"{path}:{number}: includes {name}; nothing outside tests includes tests")
                continue
            target = next((lib for pattern, lib in LIBRARIES if pattern.match(name)), None)
            if target is None:
                target = next((f for f in folders if name == f or name.startswith(f + "/")), None)
            if target == row or is_system(name):
                continue
            if target is None:
                problems.append(f"{path}:{number}: includes {name}, which is of no folder and no library of the table")
                continue
            if not any(target == a or target.startswith(a + "/") for a in rows[row]):
                problems.append(f"{path}:{number}: {row} may not include {name} ({target})")


def check_built(files, problems):
    """A test that no CMakeLists.txt names is never run."""
    for path in files:
        if not path.startswith("tests/") or not path.endswith("_test.cc"):
            continue
        file = pathlib.Path(path)
        lists = ROOT / file.parent / "CMakeLists.txt"
        words = re.split(r"[\s()]+", lists.read_text()) if lists.is_file() else []
        if file.name not in words:
            problems.append(f"{path}: {file.parent}/CMakeLists.txt does not name it: it is never built")


def check_failpoints(files, problems):
    """base/failpoints.h lists every failpoint of the code, and no other."""
    header = (ROOT / "base/failpoints.h").read_text()
    body = header[header.index("Every place") : header.index("#pragma once")]
    listed = set()
    for line in body.splitlines()[1:]:
        names = re.match(r"//   ((?:\w+, )*\w+)", line)
        listed.update(names.group(1).split(", ") if names else [])
    found = {}
    for path in files:
        if path.endswith(".cc") and not path.startswith("tests/"):
            for name in re.findall(r'\bFailpoint\("(\w+)"( \+)?', (ROOT / path).read_text()):
                found[name[0] + ("N" if name[1] else "")] = path
    for name in sorted(found.keys() - listed):
        problems.append(f"{found[name]}: failpoint {name} is not in base/failpoints.h's table")
    for name in sorted(listed - found.keys()):
        problems.append(f"base/failpoints.h: lists {name}, which the code does not have")


def check_named_tests(files, problems):
    """A test that a document gives for a promise, or a patch of tests/mutations for a bug, is there to be run."""
    tests = set()
    for path in files:
        if path.startswith("tests/") and path.endswith(".cc"):
            text = (ROOT / path).read_text()
            tests.update(".".join(t) for t in re.findall(r"\bTEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\)", text))
    name = re.compile(r"`(\*?[A-Z]\w*\*?\.(?:\*|[A-Z]\w*\*?))`")
    for path in files:
        if path.endswith(".md"):
            named = [n for n in name.findall((ROOT / path).read_text()) if "Service." not in n]  # those are RPCs
        elif path.startswith("tests/mutations/"):
            # Of a test with a parameter gtest has "Instance/Suite.Test/0".
            named = [f.strip("/") for f in re.findall(r"^Filter: (.*)$", (ROOT / path).read_text(), re.M)]
        else:
            continue
        for one in named:
            if not any(fnmatch.fnmatchcase(test, one) for test in tests):
                problems.append(f"{path}: names {one}, and there is no such test")


def check_planted_bugs(files, problems):
    """A planted bug that does not apply any more proves nothing."""
    for path in files:
        if path.startswith("tests/mutations/") and path.endswith(".patch"):
            applied = subprocess.run(["git", "apply", "--check", path], cwd=ROOT, capture_output=True, text=True, check=False)
            if applied.returncode != 0:
                problems.append(f"{path}: does not apply: {applied.stderr.strip().splitlines()[-1]}")


def check_texts(files, problems):
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|HACK|not implemented|placeholder)\b", re.I)
    conflict = re.compile(r"^(<<<<<<<|>>>>>>>) ")
    for path in files:
        suffix = pathlib.Path(path).suffix
        if suffix not in SOURCE and suffix != ".md" and not path.endswith("CMakeLists.txt"):
            continue
        lines = (ROOT / path).read_text().splitlines()
        for number, line in enumerate(lines, 1):
            if conflict.match(line):
                problems.append(f"{path}:{number}: a merge conflict was committed")
        if suffix == ".md":
            continue
        if len(lines) > MAX_LINES:
            problems.append(f"{path}: {len(lines)} lines; the limit is {MAX_LINES}")
        if path == "tests/check_tree.py":
            continue
        for number, line in enumerate(lines, 1):
            if unfinished.search(line):
                problems.append(f"{path}:{number}: unfinished work: {line.strip()[:80]}")


def main():
    files = tracked()
    problems = []
    check_includes(files, problems)
    check_built(files, problems)
    check_failpoints(files, problems)
    check_named_tests(files, problems)
    check_planted_bugs(files, problems)
    check_texts(files, problems)
    print("\n".join(problems) or f"{len(files)} files: includes, tests, lengths and texts are in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
