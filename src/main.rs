//! Arguments in, exit code out.

/// Steady resident memory for a process that runs for years.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    monasca_persister::exit::leave(monasca_persister::cli::main())
}
