#!/bin/sh
# again.sh PID COMMAND...: runs the command, again whenever it ends, as long as process PID lives. Where
# it cannot even be started (no process is to be had, no memory), PID is told to finish: nginx does so
# once it has answered, and who started it starts all of it anew.
pid=$1
shift
trap 'kill -QUIT "$pid"' EXIT

while kill -0 "$pid" 2>/dev/null; do
    "$@" || echo "front: $2 ended with $?; it is started again" >&2
    sleep 1
done
trap - EXIT
