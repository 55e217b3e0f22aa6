#!/usr/bin/env bash
# One node of a Ray cluster without Kubernetes. It runs on the host: by hand, by a service manager, or by cluster.sh.
#
#   node.sh start head                [options of `ray start`]
#   node.sh start worker HEAD:PORT    [options of `ray start`]
#   node.sh deploy FILE DASHBOARD     deploys a Serve configuration; on the head
#   node.sh undeploy DASHBOARD        shuts down the service; on the head
#   node.sh drain HEAD:PORT [--force] moves this node's replicas to other nodes and waits
#   node.sh stop                      stops this node's processes and no others
#
# Environment, each with its default:
#   NODE_IP           this host's first address    address at which other nodes reach this one
#   RERANK_BIN        /opt/rerank-service/bin      folder with the package's programs
#   RERANK_STATE      ~/.rerank-service            folder for this node's token, log and process id
#   RERANK_HAPROXY    1                            0 uses Serve's own proxies instead of HAProxy
#   RERANK_DRAIN_S    240                          longest time to drain
#
# Ray is started with a token (RERANK_STATE/auth_token). Without it, anyone who can reach Ray's ports could run code here.
set -euo pipefail

NODE_IP=${NODE_IP:-$(hostname -I | cut -d' ' -f1)}
RERANK_BIN=${RERANK_BIN:-/opt/rerank-service/bin}
RERANK_STATE=${RERANK_STATE:-$HOME/.rerank-service}
token=$RERANK_STATE/auth_token
state=$RERANK_STATE/$NODE_IP # per address, so that one machine can run several nodes
START_LIMIT_S=120
STOP_LIMIT_S=45 # Ray itself drains for up to 30 s when it stops

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
    is_running && fail "this node is already running, as process $(<"$state/pid")"
    local address=(--head)
    if [[ $role == worker ]]; then
        address=(--address "$1")
        shift
    fi
    environment
    # Ray starts in a new session, so that stop_node can end all processes of that session and no others.
    setsid "$RERANK_BIN/ray" start "${address[@]}" --node-ip-address "$NODE_IP" --block "$@" \
        >"$state/log" 2>&1 </dev/null &
    echo $! >"$state/pid"
    wait_until_started
}

wait_until_started() {
    local limit=$((SECONDS + START_LIMIT_S))
    until grep -q 'Ray runtime started' "$state/log"; do
        is_running || fail "Ray did not start; the last lines of $state/log:
$(tail -n 20 "$state/log")"
        ((SECONDS < limit)) || fail "Ray has not started within $START_LIMIT_S s; see $state/log"
        sleep 0.2
    done
    echo "node $NODE_IP is running, process $(<"$state/pid"), log $state/log"
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
        echo "node $NODE_IP is not running"
        return
    fi
    local pid limit=$((SECONDS + STOP_LIMIT_S))
    pid=$(<"$state/pid")
    kill -TERM "$pid" # `ray start --block` stops the processes it started
    while is_running && ((SECONDS < limit)); do sleep 0.2; done
    # The remaining processes are found by the session's id, because workers have their own process groups.
    local left
    left=$(ps -o pid= --sid "$pid" || true)
    # shellcheck disable=SC2086 # one word per process id
    [[ -z $left ]] || kill -KILL $left 2>/dev/null || true
    rm -f "$state/pid"
    echo "node $NODE_IP is stopped"
}

environment() {
    unset RAY_ADDRESS
    [[ -s $token ]] || fail "$token is missing: cluster.sh writes it; by hand: ray get-auth-token --generate"
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
