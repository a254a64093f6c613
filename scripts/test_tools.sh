#!/usr/bin/env bash
# The end-to-end tests use Debian's Chromium and Prometheus and the validators of deploy/, and skip what misses its
# program. On a machine that only tests (CI=true, root, apt) they are installed, so that nothing is skipped there;
# elsewhere they are named.
set -euo pipefail
cd "$(dirname "$0")/.."
exec 9< scripts/test_tools.sh # `make test` asks from two sides at once: the second waits for the first
if command -v flock >/dev/null; then flock 9; fi
[ "${CI:-}" = true ] && { scripts/validate_deploy.sh install || true; }
if [ ! -e .venv-deploy/.installed ]; then
  echo "test tools: no validators of deploy/, so their tests are skipped; install: scripts/validate_deploy.sh install"
fi
missing=()
for program in chromium prometheus; do
  command -v "$program" >/dev/null || missing+=("$program")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "test tools: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 && exit 0
fi
echo "test tools: no ${missing[*]}, so their tests are skipped; install them with: apt-get install ${missing[*]}"
