#!/usr/bin/env bash
# Copies binaries and the shared libraries they need into one folder that runs on a GPU machine where nothing of ours is
# installed, wherever the folder lies.
#
#   deploy/bundle_cuda.sh FOLDER BINARY...
#
# FOLDER/BINARY finds its libraries in FOLDER/lib (every binary of ours is linked with that path). Not copied: the C and
# C++ runtime, of which the GPU machine's is as new or newer (built on Debian 12: glibc 2.36, GCC 12; Ubuntu 24.04 has
# 2.39 and 14; an older one would not do, and mixing two would be worse), and CUDA, cuDNN and the driver, which belong to
# the device. Debug information is left out.
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
folder=$1
shift

system='^(linux-vdso|ld-linux-x86-64|libc|libm|libdl|librt|libpthread|libresolv|libutil|libstdc\+\+|libgcc_s)\.so'
device='^(libcuda|libcudart|libcublas|libcublasLt|libcudnn[a-z_]*|libnvrtc[a-z-]*|libnvJitLink|libnvidia-ml)\.so'

mkdir -p "$folder/lib"
for binary in "$@"; do
  name=$(basename "$binary")
  if ! readelf --dynamic "$binary" | grep --quiet --fixed-strings 'RPATH)' ||
    ! readelf --dynamic "$binary" | grep --quiet --fixed-strings '$ORIGIN/lib'; then
    echo "bundle_cuda.sh: $binary is not linked with the path \$ORIGIN/lib" >&2
    exit 1
  fi
  strip --strip-debug -o "$folder/$name" "$binary"
  # "NAME => PATH (ADDRESS)", "NAME => not found", "PATH (ADDRESS)".
  while read -r library path; do
    if [[ $library =~ $system || $library =~ $device ]]; then continue; fi
    if [ ! -f "$path" ]; then
      echo "bundle_cuda.sh: $binary needs $library, which is not on this machine" >&2
      exit 1
    fi
    [ -f "$folder/lib/$library" ] || strip --strip-debug -o "$folder/lib/$library" "$path"
  done < <(ldd "$binary" | sed -En 's#^\s*(\S+) => (/\S+) \(.*#\1 \2#p; s#^\s*(\S+) => not found.*#\1 missing#p')
done

du -sh "$folder" | cut -f1 | sed "s#^#$folder: #"
