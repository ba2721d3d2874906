//! Sparse patterns and paths. The work is bounded by the product of their lengths, and what they take by the file's.
use bytes::Bytes;

use crate::bound::{Allowed, within};
use crate::byte;
use crate::pack::filter::sparse::{Patterns, Verdict};

/// The target: a length, a path of that length, and a file of patterns.
pub fn run(mut data: &[u8]) {
    let length = usize::from(byte(&mut data).unwrap_or(0)).min(data.len());
    let (path, file) = data.split_at(length);
    // Paths come from trees and hold no NUL; they have no slash in front.
    if path.contains(&0) || path.starts_with(b"/") {
        return;
    }
    let room = 4096 + 32 * file.len() as u64;
    let product = ((path.len() + 4) * (file.len() + 4)) as u64;
    let allowed = Allowed::new(64 + 2 * file.len() as u64 + product, room);
    let parse = |file: &[u8]| Patterns::parse(Bytes::copy_from_slice(file), &allowed);
    let judge = |file: &[u8], is_dir: bool| -> Verdict {
        let allowed = Allowed::new(64 + 2 * file.len() as u64 + product, u64::MAX);
        parse(file).expect("room").judge(path, is_dir, &allowed).expect("enough steps")
    };
    within(4096 + 64 * file.len(), || {
        for is_dir in [true, false] {
            let verdict = judge(file, is_dir);
            if verdict == Verdict::NotMatched {
                assert!(file.contains(&b'!'), "nothing else takes out again");
            }
            // The last match decides, and comments are none.
            let more = [file, b"\n#x\n"].concat();
            assert_eq!(judge(&more, is_dir), verdict);
            // Whatever stands before what decides.
            if verdict != Verdict::Undecided {
                let before = [b"q\n!q\n", file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file)].concat();
                if !file.starts_with(b"\xef\xbb\xbf") {
                    assert_eq!(judge(&before, is_dir), verdict);
                }
            }
        }
    });
    assert_eq!(allowed.bytes(), room, "what was held is given back");
}
