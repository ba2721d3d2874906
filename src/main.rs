//! The `packmirror` binary: arguments in, exit code out.

fn main() -> std::process::ExitCode {
    packmirror::cli::main()
}
