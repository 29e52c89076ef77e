#!/usr/bin/env bash
# The default tests that need no torch, on every Python that is claimed, each in a fresh environment with its newest JAX:
#
#   tests/pythons.sh                  # 3.11 3.12 3.13
#   tests/pythons.sh 3.13 tests/text  # one version; what follows goes to pytest
#
# PYTHONS=DIR keeps the environments there for the next time. UV=FILE is an executable uv, which installs more quickly than pip.
# JAX_COMPILATION_CACHE_DIR=DIR keeps compiled programs.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=()
while [[ ${1:-} =~ ^3\.[0-9]+$ ]]; do
  versions+=("$1")
  shift
done
[ ${#versions[@]} -gt 0 ] || versions=(3.11 3.12 3.13)
folder=${PYTHONS:-$(mktemp -d)}
[ -n "${PYTHONS:-}" ] || trap 'rm -rf "$folder"' EXIT

interpreter() { # of a version: on the path, or pyenv's
  local python
  for python in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    if "$python" -c pass 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "no python$1 here" >&2
  return 1
}

for version in "${versions[@]}"; do
  python=$(interpreter "$version")
  environment="$folder/$version"
  if [ ! -e "$environment/complete" ]; then
    "$python" -m venv --clear "$environment"
    if [ -n "${UV:-}" ]; then # pip then finds its requirements met, and installs whatever is missing
      "$UV" pip install -q --python "$environment/bin/python" -r pyproject.toml --extra test-without-torch --extra gpu-compile || true
    fi
    "$environment/bin/pip" install -q --no-compile -e ".[test-without-torch,gpu-compile]"
    "$environment/bin/pip" install -q --no-compile --no-deps trl # ships the official chat templates; the rest of it needs torch
    touch "$environment/complete"
  fi
  "$environment/bin/python" -c 'import sys, jax, flax; print("Python", sys.version.split()[0], "jax", jax.__version__, "flax", flax.__version__)'
  JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$environment/jax_cache}" "$environment/bin/python" -m pytest "$@"
done
