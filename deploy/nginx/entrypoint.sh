#!/bin/sh
# Makes what depends on the environment, in /tmp, and becomes nginx. `entrypoint.sh -t` checks only.
#
# UPSTREAM           host name or address of Triton (triton); a name may stand for many addresses.
#                    No search domains are tried: in Kubernetes write it in full
# ADMIN_TOKEN        Triton's; without it nobody gets at models, statistics, traces, logging
# TLS_DIR            folder with tls.crt and tls.key (/etc/nginx/tls); else a pair is made
# MAX_BODY MAX_JSON  largest body, and largest JSON in it, in k or m (16m, 4m)
# MAX_REQUESTS       requests in hand from one address (256); each takes the memory of its body
# ADMIN_RATE         calls from one address that want the token (5r/s, and 20 at once)
# UPSTREAM_TIMEOUT   for Triton to answer (300s)
# RESOLVER           name server (those of /etc/resolv.conf)
# WORKERS            processes of nginx (auto: one a core)
# HOST HTTP_PORT GRPC_PORT TLS_PORT                            where it listens
# UPSTREAM_HTTP_PORT UPSTREAM_GRPC_PORT UPSTREAM_HEALTH_PORT   where Triton does
set -eu

die() { echo "front: $*" >&2; exit 1; }

# bytes NAME SIZE
bytes() {
    number=${2%[km]}
    case $number in
        "" | *[!0-9]*) die "$1 must be a size such as 16m or 512k, not $2" ;;
    esac
    case $2 in
        *m) number=$((number * 1048576)) ;;
        *k) number=$((number * 1024)) ;;
    esac
    echo "$number"
}

HERE=$(cd "$(dirname "$0")" && pwd)
RUN_DIR=${RUN_DIR:-/tmp/front}
MODULES=${MODULES:-/usr/lib/nginx/modules}
: "${UPSTREAM:=triton}" "${UPSTREAM_TIMEOUT:=300s}" "${MAX_REQUESTS:=256}" "${WORKERS:=auto}" "${ADMIN_RATE:=5r/s}"
: "${HOST:=0.0.0.0}" "${HTTP_PORT:=8000}" "${GRPC_PORT:=8001}" "${TLS_PORT:=8443}"
: "${UPSTREAM_HTTP_PORT:=8000}" "${UPSTREAM_GRPC_PORT:=8001}" "${UPSTREAM_HEALTH_PORT:=8003}"
: "${ACCESS_LOG:=/dev/stdout}" "${TLS_DIR:=/etc/nginx/tls}" "${TLS_MADE:=/tmp/tls}"
: "${RESOLVER:=$(awk '/^nameserver/ { print ($2 ~ /:/) ? "[" $2 "]" : $2 }' /etc/resolv.conf | xargs)}"
MAX_BODY_BYTES=$(bytes MAX_BODY "${MAX_BODY:-16m}")
MAX_JSON_BYTES=$(bytes MAX_JSON "${MAX_JSON:-4m}")
BODY_BUFFER_BYTES=$((MAX_BODY_BYTES + 1))  # one of the full size must not go to a file

mkdir -p "$RUN_DIR"
for file in "$TLS_DIR" "$TLS_DIR/tls.crt" "$TLS_DIR/tls.key"; do
    [ ! -e "$file" ] || [ -r "$file" ] || die "user $(id -u) may not read $file"
done
if [ ! -e "$TLS_DIR/tls.crt" ]; then
    echo "front: no tls.crt in $TLS_DIR, so TLS has a self-signed pair of $TLS_MADE;" \
        "mount tls.crt and tls.key at $TLS_DIR to have your own" >&2
    TLS_DIR=$TLS_MADE
    sh "$HERE/certificate.sh" "$TLS_DIR"
fi
TLS_CERTIFICATE=$TLS_DIR/tls.crt
TLS_KEY=$TLS_DIR/tls.key

digest=
[ -z "${ADMIN_TOKEN:-}" ] || digest=$(printf %s "$ADMIN_TOKEN" | sha256sum | cut -d " " -f 1)
unset ADMIN_TOKEN
(umask 077 && echo "js_var \$admin_sha256 '${digest:-nobody}';" > "$RUN_DIR/admin.conf")

fill=
for name in $(grep -o '\${[A-Z_]*}' "$HERE/nginx.conf" | tr -d '${}' | sort -u); do
    eval "value=\$$name"
    case $value in
        "" | *[!A-Za-z0-9._:/\[\]\ -]*) die "$name is '$value', which cannot be" ;;
    esac
    fill="$fill;s|\${$name}|$value|g"
done
sed "$fill" "$HERE/nginx.conf" > "$RUN_DIR/nginx.conf"
{ [ "${1:-}" = -t ] || exec sh "$HERE/again.sh" $$ \
    bash "$HERE/peers.sh" "$UPSTREAM" "$UPSTREAM_HEALTH_PORT" "$RUN_DIR/ready" $$; } &
exec "${NGINX_BIN:-nginx}" -c "$RUN_DIR/nginx.conf" -e stderr "$@"
