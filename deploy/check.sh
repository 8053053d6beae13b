#!/usr/bin/env bash
# Everything below deploy/, and the files at the root that belong to it, each by its own program's
# check. A program that is not here is named at the end; with REQUIRE_PROGRAMS set, that is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH:/usr/sbin
missing=()

# What is checked stands in functions of one condition each: within `check`, -e does not hold.
check() { # NAME PROGRAM COMMAND...
    local name=$1 program=$2 said
    shift 2
    if ! command -v "$program" >/dev/null; then
        missing+=("$name ($program)")
    elif ! said=$("$@" 2>&1); then
        printf 'deploy: %s\n%s\n' "$name" "$said" >&2
        exit 1
    fi
}

if docker compose version >/dev/null 2>&1; then
    compose() { docker compose "$@"; }
    composer=docker
else
    compose() { docker-compose "$@"; }
    composer=docker-compose
fi

combined() { # every way in which README and docs combine the compose files
    local more
    for more in "" "-f docker-compose.gpu.yml" "-f docker-compose.tracing.yml" "-f docker-compose.hosts.yml"; do
        # shellcheck disable=SC2086 # two words
        AGENT_TOKEN=for-the-check compose -f docker-compose.yml $more config -q || return
    done
}

rendered() {
    kubectl kustomize deploy/kubernetes | kubernetes-validate --strict --quiet -k "$1" /dev/stdin
}

front() {
    local folder
    folder=$(mktemp -d)
    env -u HOST UPSTREAM=127.0.0.1 RUN_DIR="$folder" TLS_MADE="$folder/tls" \
        sh deploy/nginx/entrypoint.sh -t && rm -r "$folder"
}

rules() (
    cd deploy/prometheus \
        && promtool check config prometheus.yml \
        && promtool check rules rules/*.yml \
        && promtool test rules rules/tests/*.yml
)

check "Dockerfile" hadolint hadolint --ignore DL3008 Dockerfile # Debian keeps no old versions
check "compose files" check-jsonschema check-jsonschema --builtin-schema vendor.compose-spec docker-compose*.yml
check "compose files, combined" "$composer" combined
check "nginx" nginx front
check "Prometheus" promtool rules
check "Grafana" python python -m deploy.grafana.dashboard --check
check "Kubernetes, plain" kubernetes-validate kubernetes-validate --strict --quiet deploy/kubernetes/{base/{front,network,triton},ray/network}.yaml
for version in 1.37 1.34; do
    check "Kubernetes $version" kubectl rendered "$version"
done

if [ ${#missing[@]} -gt 0 ]; then
    printf 'deploy: not checked, for want of a program: %s\n' "${missing[@]}" >&2
    [ -z "${REQUIRE_PROGRAMS:-}" ]
fi
