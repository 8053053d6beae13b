#!/bin/sh
# Makes what depends on the environment, in /tmp, and becomes nginx. `entrypoint.sh -t` checks only.
#
# UPSTREAM           host name or address of Triton (triton); a name may stand for many addresses.
#                    No search domains are tried: in Kubernetes write it in full
# ADMIN_TOKEN        Triton's; without it nobody gets at models, statistics, traces, logging
# TLS_DIR            folder with tls.crt and tls.key (/etc/nginx/tls); else a pair is made
# MAX_BODY MAX_JSON  largest body, and largest JSON in it, in k or m (16m, 4m)
# MAX_REQUESTS       requests in hand from one address (256); each takes the memory of its body
# MAX_STREAMS        of these, answers that come in parts, and calls of OpenAI's interface that may (64)
# STREAM_IDLE        for the next part, or the next message of the client (300s)
# STREAM_LIFETIME    for all of a stream; it ends with the first part after that (1h)
# ADMIN_RATE         calls from one address that want the token (5r/s, and 20 at once)
# UPSTREAM_TIMEOUT   for Triton to answer (300s)
# RESOLVER           name server (those of /etc/resolv.conf)
# WORKERS            processes of nginx (auto: one a core)
# HOST HTTP_PORT GRPC_PORT TLS_PORT OPENAI_PORT                where it listens
# UPSTREAM_HTTP_PORT UPSTREAM_GRPC_PORT UPSTREAM_HEALTH_PORT   where Triton does
# UPSTREAM_OPENAI_PORT                                         where the gateway beside it does
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

# seconds NAME TIME
seconds() {
    number=${2%[smh]}
    case $number in
        "" | *[!0-9]*) die "$1 must be a time such as 90s, 10m or 1h, not $2" ;;
    esac
    case $2 in
        *h) number=$((number * 3600)) ;;
        *m) number=$((number * 60)) ;;
    esac
    echo "$number"
}

HERE=$(cd "$(dirname "$0")" && pwd)
RUN_DIR=${RUN_DIR:-/tmp/front}
MODULES=${MODULES:-/usr/lib/nginx/modules}
: "${UPSTREAM:=triton}" "${UPSTREAM_TIMEOUT:=300s}" "${MAX_REQUESTS:=256}" "${WORKERS:=auto}" "${ADMIN_RATE:=5r/s}"
: "${HOST:=0.0.0.0}" "${HTTP_PORT:=8000}" "${GRPC_PORT:=8001}" "${TLS_PORT:=8443}"
: "${OPENAI_PORT:=8004}" "${UPSTREAM_OPENAI_PORT:=8004}"
: "${MAX_STREAMS:=64}" "${STREAM_IDLE:=300s}"
: "${UPSTREAM_HTTP_PORT:=8000}" "${UPSTREAM_GRPC_PORT:=8001}" "${UPSTREAM_HEALTH_PORT:=8003}"
: "${ACCESS_LOG:=/dev/stdout}" "${TLS_DIR:=/etc/nginx/tls}" "${TLS_MADE:=/tmp/tls}"
: "${RESOLVER:=$(awk '/^nameserver/ { print ($2 ~ /:/) ? "[" $2 "]" : $2 }' /etc/resolv.conf | xargs)}"
MAX_BODY_BYTES=$(bytes MAX_BODY "${MAX_BODY:-16m}")
MAX_JSON_BYTES=$(bytes MAX_JSON "${MAX_JSON:-4m}")
STREAM_SECONDS=$(seconds STREAM_LIFETIME "${STREAM_LIFETIME:-1h}")
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

# Where streams are not part of nginx itself, they are a module.
: > "$RUN_DIR/modules.conf"
for module in ngx_stream_module.so ngx_stream_js_module.so; do
    [ ! -e "$MODULES/$module" ] || echo "load_module $MODULES/$module;" >> "$RUN_DIR/modules.conf"
done
rm -f "$RUN_DIR/streams.sock" # a killed one leaves it behind

fill=
for name in $(grep -oh '\${[A-Z_]*}' "$HERE"/*.conf | tr -d '${}' | sort -u); do
    eval "value=\$$name"
    case $value in
        "" | *[!A-Za-z0-9._:/\[\]\ -]*) die "$name is '$value', which cannot be" ;;
    esac
    fill="$fill;s|\${$name}|$value|g"
done
for file in "$HERE"/*.conf; do
    sed "$fill" "$file" > "$RUN_DIR/$(basename "$file")"
done
{ [ "${1:-}" = -t ] || exec sh "$HERE/again.sh" $$ \
    bash "$HERE/peers.sh" "$UPSTREAM" "$UPSTREAM_HEALTH_PORT" "$RUN_DIR/ready" $$; } &
exec "${NGINX_BIN:-nginx}" -c "$RUN_DIR/nginx.conf" -e stderr "$@"
