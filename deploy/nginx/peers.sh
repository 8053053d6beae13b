#!/usr/bin/env bash
# Every second: which addresses behind a name say that they are ready, into a file for upstream.js.
# usage: peers.sh NAME PORT FILE PID; ends when process PID, nginx, has ended.
name=$1 port=$2 file=$3 nginx=$4

is_ready() {
    timeout 1 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET /ready HTTP/1.0\r\n\r\n" >&3 \
        && IFS= read -r status <&3 && [[ $status == *" 200 "* ]]' "$1" "$port" 2>/dev/null
}

while kill -0 "$nginx" 2>/dev/null; do
    addresses=$(getent ahostsv4 "$name" | awk '{ print $1 }' | sort -u)
    ready=$(for address in $addresses; do is_ready "$address" && echo "$address" & done; wait)
    echo "$ready" > "$file.new" && mv "$file.new" "$file"
    sleep 1
done
