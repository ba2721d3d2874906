//! The `packmirror` binary: arguments in, exit code out.

/// Gives memory back after a sync, which the system's allocator does not do for a process of many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    packmirror::cli::main()
}
