#!/bin/sh
# Checks compose.yaml, the Caddyfile and the files of Prometheus with their own programs, as far as these are installed.
set -eu
cd "$(dirname "$0")/.."

has() {
    command -v "$1" >/dev/null 2>&1
}

if has docker && docker compose version >/dev/null 2>&1; then
    for profile in local supabase pooler caddy monitoring commander; do
        docker compose --profile "$profile" config --quiet
    done
fi
if has caddy; then
    log=$(caddy validate --adapter caddyfile --config docker/Caddyfile 2>&1) || {
        printf '%s\n' "$log" >&2
        exit 1
    }
fi
if has promtool; then
    log=$(promtool check rules docker/monitoring/alerts.yml 2>&1 &&
        promtool check config docker/monitoring/prometheus.yml 2>&1 &&
        promtool check config --syntax-only docker/monitoring/prometheus.compose.yml 2>&1) || {
        printf '%s\n' "$log" >&2
        exit 1
    }
fi
