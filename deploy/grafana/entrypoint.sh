#!/bin/sh
# entrypoint.sh COMMAND...: becomes the command, Grafana's own start, with a password for the user admin:
# GRAFANA_PASSWORD, or else a random one, made at the first start and kept beside Grafana's data.
set -eu

kept=${GF_PATHS_DATA:-/var/lib/grafana}/admin-password

if [ "${GRAFANA_PASSWORD:-}" = admin ]; then
    echo "grafana: GRAFANA_PASSWORD is 'admin', which everybody tries first; choose another one, or none" >&2
    exit 1
fi
if [ -z "${GRAFANA_PASSWORD:-}" ] && [ ! -s "$kept" ]; then
    umask 077
    head -c 24 /dev/urandom | base64 | tr '+/' '-_' > "$kept.new"
    mv "$kept.new" "$kept"
    echo "grafana: made a password for the user admin; it is in $kept" >&2
fi
GF_SECURITY_ADMIN_PASSWORD=${GRAFANA_PASSWORD:-$(cat "$kept")}
unset GRAFANA_PASSWORD
export GF_SECURITY_ADMIN_PASSWORD
exec "$@"
