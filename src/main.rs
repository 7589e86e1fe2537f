//! The `courtier` binary. Everything is in the library.

use std::process::ExitCode;

/// glibc's allocator costs the publish path a tenth of its throughput.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    courtier::cli::main()
}
