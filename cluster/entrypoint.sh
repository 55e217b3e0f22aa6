#!/bin/sh
# The image's entrypoint serves the models or the file that its arguments name, with the options of `rerank-service serve`.
# If the first argument is a program, the entrypoint runs the program instead: KubeRay and `ray up` start shells.
#   docker run IMAGE                                  serves the embedded model
#   docker run IMAGE BAAI/bge-reranker-v2-m3          serves this model
#   docker run IMAGE rerank-service models            runs a program
set -eu

# If the root file system is read-only, Ray's token and other small files go to /tmp.
if [ ! -w "${HOME:-/}" ]; then
    HOME=$(mktemp -d)
    export HOME
fi

case ${1-} in
    /bin/* | /usr/* | /opt/*/bin/*) exec "$@" ;;
    '' | -* | */*) ;; # nothing, an option, a hub id or a path
    *) if command -v "$1" >/dev/null; then exec "$@"; fi ;;
esac
# Logs of requests go to `docker logs`.
exec rerank-service serve --verbose --host 0.0.0.0 "$@"
