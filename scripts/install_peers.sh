#!/usr/bin/env bash
# Install the peers of the client's benchmark, each in an environment of its own; do nothing where they are.
# `vllm bench serve` needs no installing: it comes with .venv-vllm. GuideLLM brings torch (6 GB).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

for pin in guidellm==0.8.1 aiperf==0.13.0; do
  venv=.venv-${pin%%==*}
  [ "$(cat "$venv/.installed" 2>/dev/null)" = "$pin" ] && continue
  echo "bench-peers: installing $pin into $venv"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$pin" 2>"$venv/install.log" ||
    { cat "$venv/install.log" >&2; exit 1; }
  echo "$pin" > "$venv/.installed"
done
