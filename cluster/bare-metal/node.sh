#!/usr/bin/env bash
# One node of a Ray cluster without Kubernetes. Runs on that host: by hand, from a service manager, or from cluster.sh.
#
#   node.sh start head                [options of `ray start`]
#   node.sh start worker HEAD:PORT    [options of `ray start`]
#   node.sh deploy FILE DASHBOARD     a Serve configuration; on the head
#   node.sh undeploy DASHBOARD        ends what is deployed; on the head
#   node.sh drain HEAD:PORT [--force] its replicas are started elsewhere and finish what they have
#   node.sh stop                      ends this node's processes, and no others
#
# Environment, each with its default:
#   NODE_IP           this host's first address    the address the other nodes reach it at
#   RERANK_BIN        /opt/rerank-service/bin      where the package is installed
#   RERANK_STATE      ~/.rerank-service            token, log and process id of this node
#   RERANK_HAPROXY    1                            0 leaves HTTP to Serve's own proxies
#   RERANK_DRAIN_S    240                          longest that draining may take
#
# Ray asks for a token (RERANK_STATE/auth_token): whoever can reach its ports without one could run code here.
set -euo pipefail

NODE_IP=${NODE_IP:-$(hostname -I | cut -d' ' -f1)}
RERANK_BIN=${RERANK_BIN:-/opt/rerank-service/bin}
RERANK_STATE=${RERANK_STATE:-$HOME/.rerank-service}
token=$RERANK_STATE/auth_token
state=$RERANK_STATE/$NODE_IP # by address, so that one machine can be several nodes
START_LIMIT_S=120
STOP_LIMIT_S=45 # Ray drains for up to 30 s by itself when it is told to stop

main() {
    local command=${1:-}
    shift || true
    case $command in
        start | deploy | undeploy | drain | stop) "${command}_node" "$@" ;;
        *)
            sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
            exit 2
            ;;
    esac
}

start_node() {
    local role=$1
    shift
    mkdir -p "$state"
    is_running && fail "this node runs already, as process $(<"$state/pid")"
    local address=(--head)
    if [[ $role == worker ]]; then
        address=(--address "$1")
        shift
    fi
    environment
    # A session of its own: stop_node ends it whole, whatever else runs here.
    setsid "$RERANK_BIN/ray" start "${address[@]}" --node-ip-address "$NODE_IP" --block "$@" \
        >"$state/log" 2>&1 </dev/null &
    echo $! >"$state/pid"
    wait_until_started
}

wait_until_started() {
    local limit=$((SECONDS + START_LIMIT_S))
    until grep -q 'Ray runtime started' "$state/log"; do
        is_running || fail "Ray did not start; the end of $state/log:
$(tail -n 20 "$state/log")"
        ((SECONDS < limit)) || fail "Ray has not started within $START_LIMIT_S s; see $state/log"
        sleep 0.2
    done
    echo "node $NODE_IP runs, process $(<"$state/pid"), log $state/log"
}

deploy_node() {
    environment
    "$RERANK_BIN/rerank-service" check "$1"
    "$RERANK_BIN/serve" deploy --address "$2" "$1"
}

undeploy_node() {
    environment
    "$RERANK_BIN/serve" shutdown --yes --address "$1"
}

drain_node() {
    environment
    "$RERANK_BIN/rerank-service" drain --address "$1" --node-ip "$NODE_IP" --deadline-s "${RERANK_DRAIN_S:-240}" "${@:2}"
}

stop_node() {
    if ! is_running; then
        echo "node $NODE_IP does not run"
        return
    fi
    local pid limit=$((SECONDS + STOP_LIMIT_S))
    pid=$(<"$state/pid")
    kill -TERM "$pid" # `ray start --block` ends what it started
    while is_running && ((SECONDS < limit)); do sleep 0.2; done
    # What is left of its session, by the session's id: workers have process groups of their own.
    local left
    left=$(ps -o pid= --sid "$pid" || true)
    # shellcheck disable=SC2086 # process ids, one a word
    [[ -z $left ]] || kill -KILL $left 2>/dev/null || true
    rm -f "$state/pid"
    echo "node $NODE_IP is stopped"
}

environment() {
    unset RAY_ADDRESS
    [[ -s $token ]] || fail "$token is missing: cluster.sh writes it, or: ray get-auth-token --generate"
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token PATH=$RERANK_BIN:$PATH
    local haproxy=()
    [[ ${RERANK_HAPROXY:-1} == 0 ]] || haproxy=(--haproxy)
    eval "$("$RERANK_BIN/rerank-service" environment "${haproxy[@]}")"
}

is_running() {
    [[ -f $state/pid ]] && kill -0 "$(<"$state/pid")" 2>/dev/null
}

fail() {
    echo "node.sh: $1" >&2
    exit 1
}

main "$@"
