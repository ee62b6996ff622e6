//! Arguments in, exit code out.

use std::process::ExitCode;

/// Steady resident memory for a process that runs for years.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    monasca_persister::cli::main()
}
