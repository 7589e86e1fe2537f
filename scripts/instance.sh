# Sourced by scripts/rabbitmq and scripts/database: what every private server needs. Its processes and signals, its ports, its
# start, and the verbs that all have.
# shellcheck shell=bash disable=SC2034,SC2154
#
# Whoever sources it sets dir and verb, and defines
#   prepare           a fresh instance's name and ports
#   configure         the files that `launch` needs; at each start, DIR/env tells whether it is the first
#   launch            start the processes, set pid (the main one) and launched (all of them), and `save`
#   answers           does the server do its work?
#   save, load        DIR/env
#   stop_all SECONDS  end whatever runs of it, by force after so many seconds
#   crash             kill -9
#   freeze SIGNAL     STOP or CONT for all of it
#   url

# What stands at the top of the script, as its help.
usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

# ---------------------------------------------------------------------------------------------------- processes

# The mark by which we know our own processes again.
mark() { export COURTIER_INSTANCE="$dir"; }

# Waits until all threads of a process have stopped: SIGSTOP is sent at once, and obeyed a little later.
stands_still() {
    while [[ -n $(grep -L '^State:[[:space:]]*[TtZX]' /proc/"$1"/task/*/status 2>/dev/null || true) ]]; do
        sleep 0.01
    done
}

# Is this process id still one that we started for DIR? Ids are reused; signals go to nobody else's process.
ours() {
    [[ -n ${1:-} && -r /proc/$1/environ ]] || return 1
    # No pipe into grep -q: it ends at the first match, and the other side of the pipe would fail (pipefail).
    grep -qzxF "COURTIER_INSTANCE=$dir" "/proc/$1/environ" 2>/dev/null
}

# end PID SIGNAL SECONDS: true once it is gone. A zombie counts as gone: its environment is empty.
end() {
    local deadline=$((SECONDS + $3))
    ours "$1" || return 0
    kill "-$2" "$1" 2>/dev/null || true
    while ours "$1"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

running() { ours "$pid" || die "$name is not running"; }

# ---------------------------------------------------------------------------------------------------- ports, state

port_in_use() {
    local hex
    printf -v hex ':%04X ' "$1"
    grep -qF "$hex" /proc/net/tcp /proc/net/tcp6 2>/dev/null
}

# free_port NAME: into the variable of that name. Bash 5.2 cannot run a trap while it reads a `$(...)`.
# Below the range from which the kernel gives ports to clients, so that nobody gets ours while the server is down.
free_port() {
    local candidate tries
    for ((tries = 0; tries < 1000; tries++)); do
        candidate=$((15000 + (RANDOM * 32768 + RANDOM) % 14000))
        if ! port_in_use "$candidate"; then
            printf -v "$1" %s "$candidate"
            return
        fi
    done
    die "found no free port"
}

# save_env PREFIX NAME VALUE...
save_env() {
    local prefix=$1
    shift
    printf "export ${prefix}_%s=%q\n" "$@" >"$dir/env.new"
    mv "$dir/env.new" "$dir/env"
}

load_env() {
    [[ -f $dir/env ]] || die "no instance in $dir"
    dir=$(cd "$dir" && pwd)
    # shellcheck source=/dev/null
    source "$dir/env"
}

# ---------------------------------------------------------------------------------------------------- start

# From here to `unguard`, whatever ends us ends the server too.
guard() {
    trap abandon EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

unguard() { trap - EXIT INT TERM HUP; }

abandon() {
    local id
    stop_all 0
    # Children that did not carry our mark yet: they do only from their exec on.
    for id in $(jobs -pr); do kill -KILL "$id" 2>/dev/null || true; done
}

# bring_up SECONDS: false, with everything ended, when the server ends or does not answer in time.
bring_up() {
    local deadline=$((SECONDS + $1))
    launch
    until answers && ours "$pid"; do
        # kill -0 and not ours(), for the mark's sake; one call for each, as one for all is true if any is there.
        if ((SECONDS >= deadline)) || ! all_alive; then
            stop_all 0
            return 1
        fi
        sleep 0.1
    done
}

all_alive() {
    local id
    for id in "${launched[@]}"; do kill -0 "$id" 2>/dev/null || return 1; done
}

show_logs() {
    local log
    for log in "$dir"/log/*.log; do
        [[ -s $log ]] || continue
        say "the end of $log:"
        tail -n 25 "$log" >&2
    done
}

# Starts in the folder `dir`, which is there. An instance that was here keeps its ports, its name and its data.
start_here() {
    if [[ -f $dir/env ]]; then
        load
        ! ours "$pid" || die "$name runs already in $dir"
        start_again
    else
        start_fresh
    fi
}

start_fresh() {
    local attempt
    guard
    for attempt in 1 2 3; do
        prepare
        configure
        if bring_up 60; then
            unguard
            return
        fi
        # Somebody else may have taken a port since we looked.
        if ((attempt < 3)) && grep -qsiE 'eaddrinuse|already in use' "$dir"/log/*.log; then
            say "a port was taken meanwhile; trying others"
            rm -rf "$dir/data" "$dir/log" "$dir/env"
            continue
        fi
        break
    done
    show_logs
    # Without it the next start begins afresh.
    rm -f "$dir/env"
    die "$name did not start; its files are in $dir"
}

start_again() {
    guard
    # What is left of a server that was killed.
    stop_all 0
    configure
    if bring_up 60; then
        unguard
        return
    fi
    show_logs
    die "$name did not start again; its files are in $dir"
}

# ---------------------------------------------------------------------------------------------------- verbs

common_verb() {
    [[ $verb != stop || -f $dir/env ]] || exit 0
    case $verb in
    stop | kill | restart | pause | resume | url | status) load ;;
    *) usage ;;
    esac
    case $verb in
    stop) stop_all 30 ;;
    restart)
        stop_all 30
        start_again
        ;;
    url) url ;;
    *) running ;;&
    kill) crash || die "$name cannot be killed" ;;
    pause) freeze STOP ;;
    resume) freeze CONT ;;
    esac
}
