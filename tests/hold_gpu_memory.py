#!/usr/bin/env python3
"""Takes the first GPU's memory but for LEAVE_MIB, prints what it holds, and keeps it until its standard input ends.

usage: hold_gpu_memory.py LEAVE_MIB
"""

import ctypes
import sys

STEP_BYTES = 64 << 20


def main():
    leave_bytes = int(sys.argv[1]) << 20
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        status = getattr(cuda, name)(*arguments)
        if status != 0:
            sys.exit("hold_gpu_memory.py: %s failed with CUDA error %d" % (name, status))

    device, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    held = 0
    while True:
        free, total, block = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
        call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        take = min(free.value - leave_bytes, 1 << 30) // STEP_BYTES * STEP_BYTES
        if take <= 0:
            break
        call("cuMemAlloc_v2", ctypes.byref(block), ctypes.c_size_t(take))
        held += take
    print("holds %d MiB, leaves %d of %d" % (held >> 20, free.value >> 20, total.value >> 20), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
