# Sourced by the other scripts: the places and pinned versions that more than one of them needs.
# shellcheck shell=bash disable=SC2034

BUF_VERSION=1.75.0
CARGO_DENY_VERSION=0.20.2
PIKA_VERSION=1.4.4

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Built or downloaded once a machine, shared by every clone; the version is part of the path, so raising it is enough.
tools="${XDG_CACHE_HOME:-$HOME/.cache}/courtier/tools"
buf="$tools/buf-$BUF_VERSION/node_modules/.bin/buf"
cargo_deny="$tools/cargo-deny-$CARGO_DENY_VERSION/bin/cargo-deny"

# debian RELEASE: a folder with that release of Debian in it and servers of ours, made by scripts/install-deps.
debian() { echo "$tools/debian-$1"; }

# Next to what cargo builds: `cargo clean` removes it too.
target="${CARGO_TARGET_DIR:-$root/target}"
[[ $target == /* ]] || target="$root/$target"
venv="$target/python-pika-$PIKA_VERSION"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "$*"
    exit 1
}
