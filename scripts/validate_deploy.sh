#!/usr/bin/env bash
# Check deploy/ with the tools that read it. They go into .venv-deploy, which may be thrown away at any time.
#   scripts/validate_deploy.sh                all checks
#   scripts/validate_deploy.sh kubernetes     one of: dockerfile compose kubernetes shell prometheus dashboards
#   scripts/validate_deploy.sh install        only install
# promtool is Debian's (package prometheus), npm installs Grafana's schema; without one of them its check ends with 3.
# shellcheck disable=SC2329  # the checks are called by name
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.venv-deploy
checks=(dockerfile compose kubernetes shell prometheus dashboards)
missing=3

install() {
  local stamp
  stamp=$(cat requirements/validators.lock "$0" | sha256sum | cut -d' ' -f1)
  [ "$(cat "$tools/.installed" 2>/dev/null)" = "$stamp" ] && return
  echo "validate_deploy: installing the validators into $tools"
  [ -x "$tools/bin/python" ] || "${PYTHON:-python3}" -m venv "$tools"
  "$tools/bin/pip" install -qq --disable-pip-version-check --no-deps --requirement requirements/validators.lock
  if command -v npm >/dev/null; then
    npm install --silent --no-audit --no-fund --prefix "$tools/node" @grafana/schema@12.2.0 typescript@5.9.3
  fi
  echo "$stamp" > "$tools/.installed"
}

wants() {
  command -v "$1" >/dev/null || {
    echo "validate_deploy: no $1 here; install it with: apt-get install $2"
    exit "$missing"
  }
}

check_dockerfile() { "$tools/bin/hadolint" --failure-threshold style deploy/docker/Dockerfile; }

check_compose() {
  "$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec deploy/compose/compose.yaml
  # Compose itself: variables, merges, references between services, volumes and configs
  GRAFANA_PASSWORD=x MODEL=m "$tools/bin/docker-compose" -f deploy/compose/compose.yaml --profile gateway config --quiet
}

check_kubernetes() {
  local folder built
  built=$(mktemp -d)
  for folder in . candidates/flash-attn3 candidates/sdpa sweep load gateway; do
    "$tools/bin/kubectl" kustomize "deploy/kubernetes/$folder" > "$built/k8s-${folder//\//-}.yaml"
  done
  "$tools/bin/kubernetes-validate" --strict --no-warn "$built"/*.yaml
  "$tools/bin/python" scripts/validate_monitors.py < "$built/k8s-..yaml"
  deploy/kubernetes/monitoring/rules.sh | "$tools/bin/python" scripts/validate_monitors.py
  rm -r "$built"
}

check_shell() { "$tools/bin/shellcheck" deploy/slurm/*.sbatch deploy/kubernetes/monitoring/rules.sh scripts/*.sh; }

check_prometheus() {
  wants promtool prometheus
  promtool check config deploy/prometheus/prometheus.yml
  promtool test rules deploy/prometheus/alerts_test.yaml
}

# Grafana's dashboards are what its TypeScript says they are; an unknown key is an error there
check_dashboards() {
  wants node nodejs
  local name file
  for file in deploy/grafana/dashboards/*.json; do
    name=$(basename "$file" .json)
    { echo "import type { Dashboard } from '@grafana/schema'; export const board: Dashboard ="; cat "$file"; } \
      > "$tools/node/$name.ts"
  done
  "$tools/node/node_modules/.bin/tsc" --noEmit --strict --skipLibCheck --module esnext --moduleResolution bundler \
    "$tools"/node/*.ts
}

run() {
  local code=0
  (set -e; "check_$1") || code=$?
  case $code in
    0) echo "ok      $1" ;;
    "$missing") echo "skipped $1" ;;
    *) echo "FAILED  $1" ;;
  esac
  return "$code"
}

install
worst=0
case "${1:-all}" in
  install) ;;
  all) for name in "${checks[@]}"; do run "$name" || worst=$?; done ;;
  *) run "$1" || worst=$? ;;
esac
exit "$worst"
