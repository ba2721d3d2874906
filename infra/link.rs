//! How the program is linked where the linker is known: line tables compressed, and without the names of local symbols, which
//! the line tables have for our own code. Together half the size.

fn main() {
    println!("cargo::rerun-if-changed=infra/link.rs");
    let is = |name: &str, want: &str| std::env::var(name).is_ok_and(|value| value == want);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") {
        println!("cargo::rustc-link-arg-bins=-Wl,--compress-debug-sections=zlib,--discard-all");
    }
}
