#!/usr/bin/env bash
# The alerts as a PrometheusRule of the operator:  deploy/kubernetes/monitoring/rules.sh | kubectl apply -f -
set -euo pipefail
cat << 'HEAD'
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: greenbench, namespace: greenbench}
spec:
HEAD
sed 's/^/  /' "$(dirname "$0")/../../prometheus/alerts.yaml"
