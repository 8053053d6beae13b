#!/bin/sh
# entrypoint.sh ARGUMENTS...: `python -m build_scripts.build` as whoever owns the model repository, which may
# be a folder of the host: so what is built there is his. Root becomes him; anybody else builds as he is.
# Without arguments, all that is missing or stale is built but for the recipes that LATER names.
set -eu

SRV=${SRV:-/srv}
SERVER=10001 # the user of the images that serve
cd "$SRV"
if [ $# = 0 ]; then
    for name in ${LATER:-}; do
        [ ! -e "model_repository/$name/recipe.toml" ] || set -- "$@" "--except=$name"
    done
fi
set -- python -m build_scripts.build "$@"

hidden=$(find model_repository ! -perm -o=r -o -type d ! -perm -o=x | head -n 1)
if [ -n "$hidden" ] && [ "$(stat -c %u model_repository)" != "$SERVER" ]; then
    echo "build: user $SERVER, who serves, may not read $hidden; on the host: chmod -R o+rX model_repository" >&2
fi
if [ "$(id -u)" = 0 ]; then
    owner=$(stat -c %u:%g model_repository)
    [ "$(stat -c %u:%g build)" = "$owner" ] || chown -R "$owner" build
    set -- setpriv --reuid "${owner%:*}" --regid "${owner#*:}" --clear-groups "$@"
fi
exec "$@"
