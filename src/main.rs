//! The `packmirror` binary: arguments in, exit code out.

/// Gives memory back after a sync, which the system's allocator does not do for a process of many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, version 3, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Milliseconds after which freed pages go back to the system: the allocator's own second is long beside an answer.
const PURGE_AFTER: std::ffi::c_long = 10;

fn main() -> std::process::ExitCode {
    // SAFETY: it sets a number that the environment has not set, and no other thread runs yet.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set_default(PURGE_DELAY, PURGE_AFTER);
    }
    // A node has many threads that use a little of many pages: with huge ones it holds nearly twice the memory.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    packmirror::cli::main()
}
