//! The `packmirror` binary: arguments in, exit code out.

/// Gives memory back after a sync, which the system's allocator does not do for a process of many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // A node has many threads that use a little of many pages: with huge ones it holds nearly twice the memory.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    packmirror::cli::main()
}
