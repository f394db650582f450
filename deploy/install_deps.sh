#!/usr/bin/env bash
# Installs what building, testing and the demo need, on Debian 12. One apt-get; nothing when everything is there.
#   deploy/install_deps.sh          everything
#   deploy/install_deps.sh --demo   without the packages that only tests/run.sh needs
set -euo pipefail
exec </dev/null

build_packages=(
  g++ cmake ninja-build mold ccache pkg-config ca-certificates git
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev libabsl-dev
  prometheus-cpp-dev libsqlite3-dev libssl-dev libspdlog-dev
  libcli11-dev libyaml-cpp-dev nlohmann-json3-dev libpcre2-dev libicu-dev libdnnl-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  python3 python3-pip python3-venv wordnet-base
)
# promtool comes with prometheus; openssl makes the certificates of the TLS tests; e2fsprogs and mount a small disk of its own
# for a scheduler that fills it; patch plants bugs.
test_packages=(prometheus clang-format-14 openssl e2fsprogs mount patch)

packages=("${build_packages[@]}")
case "${1:-}" in
  "") packages+=("${test_packages[@]}") ;;
  --demo) ;;
  *)
    echo "usage: $0 [--demo]" >&2
    exit 2
    ;;
esac

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "install_deps.sh: this machine has no apt-get; install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

installed=$(dpkg-query --show --showformat='${Package} ${db:Status-Status}\n' 2>/dev/null | awk '$2 == "installed" { print $1 }')
missing=()
for package in "${packages[@]}"; do
  grep --quiet --line-regexp --fixed-strings -- "$package" <<<"$installed" || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then
  exit 0
fi

as_root=()
if [ "$(id --user)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install_deps.sh: run as root, or install sudo; missing packages: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "installing ${#missing[@]} packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get --quiet --quiet update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get --quiet --quiet install --yes --no-install-recommends "${missing[@]}"
