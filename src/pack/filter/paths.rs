//! Directories met on a tree walk, and what the patterns of a filter say of them.
//!
//! A directory is its name and the one above, so that long names cost once. What the sets of patterns say is a bit each.
//! Relies on: no more sets than bits (`rules`). Elsewhere: patterns (`sparse`), the walk (`trees`).
use std::collections::HashMap;
use std::sync::Arc;

use super::rules::Rules;
use super::sparse::Verdict;
use crate::pack::meter::{Halt, Meter};
use crate::pack::tally::Tally;

/// What a directory takes beside its name.
const DIRECTORY: usize = 160;

/// A set of sets of patterns.
type Sets = u64;

/// The directories, numbered; 0 is the root.
pub struct Paths<'a> {
    rules: Option<&'a Rules<'a>>,
    meter: &'a dyn Meter,
    tally: Tally<'a>,
    known: Vec<Directory>,
    numbers: HashMap<(u32, Arc<[u8]>), u32>,
    /// The path of the directory looked at last, with a slash behind it.
    here: (u32, Vec<u8>),
}

struct Directory {
    above: u32,
    name: Arc<[u8]>,
    selected: Sets,
}

impl<'a> Paths<'a> {
    /// Starts with the root.
    pub fn new(rules: Option<&'a Rules<'a>>, meter: &'a dyn Meter) -> Result<Self, Halt> {
        let rules = rules.filter(|rules| !rules.sparse().is_empty());
        let root = Directory { above: 0, name: Arc::default(), selected: 0 };
        let (known, tally) = (vec![root], Tally::new(meter));
        let mut paths = Self { rules, meter, tally, known, numbers: HashMap::new(), here: (0, Vec::new()) };
        // git starts with "not selected" (`filter_sparse_oid__init`).
        paths.known[0].selected = paths.judge(0, b"", true)?;
        Ok(paths)
    }

    /// The number of the directory `name` in `dir`; always 0 if there are no patterns.
    pub fn down(&mut self, dir: u32, name: &[u8]) -> Result<u32, Halt> {
        if self.rules.is_none() {
            return Ok(0);
        }
        let key = (dir, Arc::from(name));
        if let Some(&number) = self.numbers.get(&key) {
            return Ok(number);
        }
        self.tally.add((name.len() + DIRECTORY) as u64)?;
        let selected = self.judge(dir, name, true)?;
        // Each takes memory, so that they end long before the numbers do.
        let number = self.known.len() as u32;
        self.known.push(Directory { above: dir, name: Arc::clone(&key.1), selected });
        self.numbers.insert(key, number);
        Ok(number)
    }

    /// Says whether all patterns select the file `name` in `dir`.
    pub fn keeps(&mut self, dir: u32, name: &[u8]) -> Result<bool, Halt> {
        let Some(rules) = self.rules else { return Ok(true) };
        Ok(self.judge(dir, name, false)?.count_ones() as usize == rules.sparse().len())
    }

    /// Which sets of patterns select `name` in `dir`; the undecided ones do if they select `dir`.
    fn judge(&mut self, dir: u32, name: &[u8], is_dir: bool) -> Result<Sets, Halt> {
        let Some(rules) = self.rules else { return Ok(0) };
        let above = self.known.get(dir as usize).map_or(0, |dir| dir.selected);
        self.go_to(dir)?;
        let here = self.here.1.len();
        self.here.1.extend_from_slice(name);
        let mut selected = 0;
        for (n, patterns) in rules.sparse().iter().enumerate() {
            let is_selected = match patterns.judge(&self.here.1, is_dir, self.meter)? {
                Verdict::Matched => 1,
                Verdict::NotMatched => 0,
                Verdict::Undecided => above >> n & 1,
            };
            selected |= is_selected << n;
        }
        self.here.1.truncate(here);
        Ok(selected)
    }

    /// Writes the path of `dir`.
    fn go_to(&mut self, dir: u32) -> Result<(), Halt> {
        if self.here.0 == dir {
            return Ok(());
        }
        let (mut names, mut at) = (Vec::new(), dir);
        while let Some(directory) = self.known.get(at as usize).filter(|_| at != 0) {
            names.push(&directory.name);
            at = directory.above;
        }
        self.here.1.clear();
        for name in names.iter().rev() {
            self.here.1.extend_from_slice(name);
            self.here.1.push(b'/');
        }
        self.here.0 = dir;
        // A path is no longer than the names that are held already; deep ones are work.
        self.meter.step((self.here.1.len() / 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use bstr::BStr;
    use bytes::Bytes;

    use super::*;
    use crate::git::filter::Filter;
    use crate::pack::Gid;
    use crate::pack::filter::rules::{BadRules, SparseBlobs};
    use crate::pack::filter::trees::TreeError;
    use crate::pack::testing::Allowed;

    /// Two blobs of patterns.
    struct Two;

    impl SparseBlobs for Two {
        fn find(&mut self, name: &BStr) -> Result<Option<Gid>, TreeError> {
            Ok(Some(if name == "0" { 0 } else { 1 }))
        }

        fn read(&mut self, blob: Gid) -> Result<Bytes, BadRules> {
            Ok(Bytes::from_static([&b"/src/\n!*.o\n"[..], b"*.c\n*.o\n"][blob as usize]))
        }
    }

    fn rules(meter: &Allowed) -> Rules<'_> {
        let filter = Filter::parse(b"combine:sparse:oid=0+sparse:oid=1").unwrap();
        Rules::compile(&filter, &mut Two, meter).unwrap()
    }

    #[test]
    fn a_file_is_kept_where_all_sets_select_it() {
        let meter = Allowed::new(1000, 1 << 20);
        let rules = rules(&meter);
        let mut paths = Paths::new(Some(&rules), &meter).unwrap();
        let src = paths.down(0, b"src").unwrap();
        let deep = paths.down(src, b"deep").unwrap();
        assert_eq!((src, deep, paths.down(0, b"src").unwrap()), (1, 2, 1));
        let kept =
            [(0, "a.c"), (src, "a.c"), (src, "a.o"), (src, "a.h"), (deep, "b.c"), (0, "a.c"), (deep, "b.o")]
                .map(|(dir, name)| paths.keeps(dir, name.as_bytes()).unwrap());
        assert_eq!(kept, [false, true, false, false, true, false, false]);
        assert_eq!(
            Paths::new(None, &meter).unwrap().down(0, b"src"),
            Ok(0),
            "without patterns there is one place"
        );
    }

    #[test]
    fn names_cost_once_and_end_with_the_meter() {
        let meter = Allowed::new(u64::MAX, 4 << 20);
        {
            let rules = rules(&meter);
            let mut paths = Paths::new(Some(&rules), &meter).unwrap();
            let mut dir = 0;
            let name = [b'a'; 1000];
            let made =
                (0..100_000).take_while(|_| paths.down(dir, &name).map(|next| dir = next).is_ok()).count();
            assert!((3000..4000).contains(&made), "{made} directories of 1000 bytes in 4 MiB");
        }
        assert_eq!(meter.bytes(), 4 << 20, "all is given back");
        let meter = Allowed::new(100_000, u64::MAX);
        let rules = rules(&meter);
        let mut paths = Paths::new(Some(&rules), &meter).unwrap();
        let mut dir = 0;
        let deep = (0..100_000).take_while(|_| paths.down(dir, b"a").map(|next| dir = next).is_ok()).count();
        assert!(deep < 10_000, "paths grow, and so does the work: {deep}");
    }
}
