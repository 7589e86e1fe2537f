//! File descriptors: as many as the system allows, and some of them kept back from clients.
//!
//! A connection of a client takes one. Were clients to take all, the gateway could neither accept a probe, nor reconnect to the broker
//! or the database, nor open a file.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept back for the broker's and the database's connections, the management API, and files.
const RESERVE: usize = 256;

/// Raises the soft limit of this process to the hard one. Shells and container runtimes leave it at 1,024, for programs that use
/// `select`, which this one does not.
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        let limit = limit.current;
        tracing::warn!(%error, limit, "cannot raise the limit of open files (ulimit -n); it stays as it is");
    }
}

/// How many connections of clients the limit leaves room for.
pub(super) fn left_for_clients() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        without_reserve(usize::try_from(limit).unwrap_or(usize::MAX))
    })
}

/// Of a small limit a quarter is kept back.
fn without_reserve(limit: usize) -> usize {
    limit - RESERVE.min(limit / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_kept_back_of_any_limit() {
        assert_eq!(without_reserve(256), 192);
        assert_eq!(without_reserve(1_024), 768);
        assert_eq!(without_reserve(65_536), 65_280);
        assert_eq!(without_reserve(3), 3);
    }
}
