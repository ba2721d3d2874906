#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| packmirror_fuzz::bodies::run(data));
