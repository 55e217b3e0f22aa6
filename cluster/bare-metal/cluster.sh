#!/usr/bin/env bash
# A Ray cluster on your own hosts. This script runs on your machine and calls node.sh on each host over ssh.
#
#   cluster.sh up                starts the head, then the workers
#   cluster.sh deploy FILE       deploys a Serve configuration, such as one written by `rerank-service config`
#   cluster.sh add HOST          starts one worker that the hosts file lists
#   cluster.sh remove HOST       drains one worker, then stops it; with --force, even if no other node has room for its replicas
#   cluster.sh down              shuts down the service, then stops all nodes, the head last
#
# The hosts file (HOSTS, default: `hosts` next to this script) has one host per line, the head first. After the host come
# its options of `ray start`; see hosts.example. Every host needs the package in RERANK_BIN, and the weights in the folders
# that the Serve configuration names. REMOTE (default: ssh -o BatchMode=yes) is called with a host and a command line.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
HOSTS=${HOSTS:-$here/hosts}
REMOTE=${REMOTE:-ssh -o BatchMode=yes}
RERANK_STATE=${RERANK_STATE:-.rerank-service} # a folder on each host, relative to the home folder unless it starts with /
TOKEN=${TOKEN:-$HOME/.rerank-service/cluster_token}
GCS_PORT=${GCS_PORT:-6379}
DASHBOARD_PORT=${DASHBOARD_PORT:-8265}

main() {
    local command=${1:-}
    shift || true
    case $command in
        up | down | deploy | add | remove) "$command" "$@" ;;
        *)
            sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
            exit 2
            ;;
    esac
}

up() {
    write_token
    local host
    host=$(head_host)
    install_on "$host"
    node "$host" start head --port "$GCS_PORT" --dashboard-port "$DASHBOARD_PORT" "$(options_of "$host")"
    while read -r host; do add "$host"; done < <(worker_hosts)
}

add() {
    install_on "$1"
    node "$1" start worker "$(head_host):$GCS_PORT" "$(options_of "$1")"
}

deploy() {
    local head
    head=$(head_host)
    copy "$1" "$head" "$RERANK_STATE/serve.yaml"
    node "$head" deploy "$RERANK_STATE/serve.yaml" "http://127.0.0.1:$DASHBOARD_PORT"
}

remove() {
    node "$1" drain "$(head_host):$GCS_PORT" "${@:2}"
    node "$1" stop
}

down() {
    local head host
    head=$(head_host)
    # The service is shut down first, because a node with replicas would try to move them before it stops.
    node "$head" undeploy "http://127.0.0.1:$DASHBOARD_PORT" || echo "cluster.sh: the service could not be shut down" >&2
    while read -r host; do node "$host" stop || echo "cluster.sh: $host could not be stopped" >&2; done < <(worker_hosts)
    node "$head" stop
}

write_token() {
    [[ -s $TOKEN ]] && return
    mkdir -p "$(dirname "$TOKEN")"
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$TOKEN")
}

install_on() {
    copy "$here/node.sh" "$1" "$RERANK_STATE/node.sh"
    copy "$TOKEN" "$1" "$RERANK_STATE/auth_token"
}

copy() { # LOCAL HOST PATH
    $REMOTE "$2" "umask 077 && mkdir -p '$(dirname "$3")' && cat >'$3'" <"$1"
}

node() { # HOST ARGUMENTS
    local host=$1
    shift
    local given
    given="NODE_IP=$host RERANK_STATE=\$(cd '$RERANK_STATE' && pwd) RERANK_HAPROXY=${RERANK_HAPROXY:-1}"
    [[ -z ${RERANK_BIN:-} ]] || given+=" RERANK_BIN='$RERANK_BIN'"
    $REMOTE "$host" "$given bash '$RERANK_STATE/node.sh' $*" </dev/null
}

lines() { grep -Ev '^[[:space:]]*(#|$)' "$HOSTS"; }
head_host() { lines | head -n 1 | cut -d' ' -f1; }
worker_hosts() { lines | tail -n +2 | cut -d' ' -f1; }
options_of() { lines | awk -v host="$1" '$1 == host { sub(/^[^ ]+ */, ""); print }'; }

main "$@"
