//! Directories met on a tree walk, and what the patterns of a filter say of them.
//!
//! A directory is its name and the one above, so that long names cost once. What the sets of patterns say is a bit each.
//! Relies on: no more sets than bits (`rules`). Elsewhere: patterns (`sparse`), the walk (`trees`).
use std::collections::HashMap;
use std::sync::Arc;

use super::meter::{Halt, Meter};
use super::rules::Rules;
use super::sparse::Verdict;
use super::tally::Tally;

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
