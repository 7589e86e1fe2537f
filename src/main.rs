//! The `courtier` binary. Everything is in the library.

use std::process::ExitCode;

/// Every message is many small allocations, made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    courtier::cli::main()
}
