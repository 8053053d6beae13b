#!/bin/sh
# certificate.sh DIR [NAME...]: a self-signed pair, DIR/tls.crt and DIR/tls.key, to try TLS out, for
# localhost, 127.0.0.1, front and the NAMEs. A pair that is there is kept.
set -eu

dir=${1:?certificate.sh DIR [NAME...]}
shift
if [ -e "$dir/tls.crt" ] && [ -e "$dir/tls.key" ]; then
    exit 0
fi
names=DNS:localhost,DNS:front,IP:127.0.0.1
for name; do
    case $name in
        *[!0-9.]*) names=$names,DNS:$name ;;
        *) names=$names,IP:$name ;;
    esac
done
umask 077
mkdir -p "$dir"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 \
    -subj /CN=front -addext "subjectAltName=$names" -addext "extendedKeyUsage=serverAuth" \
    -keyout "$dir/tls.key" -out "$dir/tls.crt" 2>/dev/null ||
    { echo "front: openssl could not make a certificate in $dir" >&2; exit 1; }
chmod 644 "$dir/tls.crt"
