//! Selection: which objects a request gets.
//!
//! For a want/have pair without shallow boundaries the answer is the union, over the commits that
//! the wants reach and the haves do not, of the commit and the objects it introduced first. Each
//! object of such a commit's tree was introduced by it or by an ancestor, and an ancestor is either
//! sent too, or the client has it with all it introduced. So no tree is read. An object that came in on
//! several branches side by side is left out if the client has one of them: that makes the answer the
//! exact difference, as far as the limits let the haves' history be looked at.
//!
//! Shallow boundaries cut ancestors away. Then each sent commit brings all it introduced (`first`
//! and `again`: whatever its parents' trees lack), and a commit whose parents are not sent
//! brings its whole tree, by a tree walk, less what trees of the haves hold at the same
//! paths; what they hold there instead can be the base of a delta. Filters by path walk trees as well.
//!
//! The result may hold a little more than the client lacks, never less.
//!
//! Relies on: the graph's introductions (`layer::graph`), boundaries (`history::shallow`), compiled filters (`filter::rules`).
//! Elsewhere: how the objects lie in the answer (`layout`), whether a want is reachable (`history::reach`).
use gix_object::Kind;
use roaring::RoaringBitmap;

use crate::pack::filter::rules::Rules;
use crate::pack::filter::trees::{TreeError, TreeLimits, TreeWalk};
use crate::pack::history::shallow::Shallow;
use crate::pack::history::walk::{Boundary, COMMIT, History};
use crate::pack::meter::{Halt, Meter};
use crate::pack::set::{GidMap, GidSet, Gids};
use crate::pack::{Gid, Source, Stack};

/// How many haves serve as bases when a boundary's tree is walked.
const BASES: usize = 2;
/// How many haves next older and next younger than a boundary are looked at to find them: several may share a tree.
const NEAR: usize = 8;

/// A fetch, in gids of the stack.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query<'a> {
    /// What the client asked for: objects of any type.
    pub wants: &'a [Gid],
    /// What the client has, as far as it counts ([`crate::pack::history::negotiate`]).
    pub haves: &'a [Gid],
    /// The client's `shallow` lines that name commits of the stack.
    pub client_shallow: &'a [Gid],
    /// The change of the boundary, if the client asked for one.
    pub shallow: Option<&'a Shallow>,
    /// The filter, compiled.
    pub filter: Option<&'a Rules<'a>>,
    /// Tags that come along if what they lead to is sent (`include-tag`): tag, and what it peels to.
    pub tags: &'a [(Gid, Gid)],
}

/// Bounds of the work one request may cause.
#[derive(Debug, Clone, Copy)]
pub struct SelectLimits {
    /// Tree walks.
    pub trees: TreeLimits,
    /// Commits of the client visited for each commit that is sent, to find out what else the client has.
    pub steps: u32,
    /// The same for the answer as a whole: at least and at most.
    pub all_steps: (u32, u32),
}

impl Default for SelectLimits {
    fn default() -> Self {
        Self { trees: TreeLimits::default(), steps: 20, all_steps: (1_000, 100_000) }
    }
}

/// The objects of an answer.
pub struct Selection<'s> {
    /// Canonical gids of the objects to send.
    pub objects: RoaringBitmap,
    client: Option<Client<'s>>,
}

/// What is known of the client's objects.
struct Client<'s> {
    stack: &'s Stack,
    boundary: Boundary<'s, Stack>,
    /// Objects in trees of the haves.
    owned: GidSet,
    /// For objects found in a tree walk: what the haves have at the same path.
    before: GidMap<Gid>,
    /// Whether the client has everything that is reachable from its commits.
    whole: bool,
}

impl<'s> Selection<'s> {
    /// Makes a selection of given objects, for a receiver of which nothing is known.
    pub fn of(objects: RoaringBitmap) -> Self {
        Self { objects, client: None }
    }

    /// Says whether anything is known of the client's objects.
    pub fn knows_client(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.whole || !client.owned.is_roomless())
    }

    /// An object of the client, of the same type, that lies where `gid` does; known for what a tree walk found.
    pub fn predecessor(&self, gid: Gid) -> Option<Gid> {
        self.client.as_ref()?.before.get(&gid).copied()
    }

    /// Says whether the client surely has an object, so that it may be the base of a delta.
    ///
    /// May look further down the haves' history, within the limit; "no" can mean "not known".
    pub fn surely_has(&mut self, gid: Gid, meter: &dyn Meter) -> Result<bool, Halt> {
        let Some(client) = &mut self.client else { return Ok(false) };
        if client.owned.contains(gid) || !client.whole {
            return Ok(client.owned.contains(gid));
        }
        if client.stack.kind(gid) == Kind::Commit {
            return Ok(client.boundary.client_has(gid));
        }
        introduced_to_client(client.stack, &mut client.boundary, gid, meter)
    }
}

/// What the wants name, tags followed.
#[derive(Default)]
struct Wanted {
    commits: Vec<Gid>,
    trees: Vec<Gid>,
    /// Tags, trees and blobs named by a want or by a wanted tag, in any case part of the answer.
    given: Vec<Gid>,
}

/// Selects the objects of the answer to `query`. Commits visited and objects selected count on `meter`.
pub fn select<'s>(
    stack: &'s Stack,
    source: &dyn Source,
    query: &Query<'_>,
    limits: &SelectLimits,
    meter: &dyn Meter,
) -> Result<Selection<'s>, TreeError> {
    let unshallow = query.shallow.map_or(&[][..], |shallow| &shallow.unshallow);
    let mut wanted = wanted(stack, query.wants, query.haves);
    for &commit in unshallow {
        // As upload-pack's send_unshallow: the client has the commit and now lacks its parents. git
        // takes that for granted; here the haves must lead to it, else it is sent like any other:
        // clients that deepened by `deepen-not` before may list boundaries they never got.
        stack.each_parent(commit, |parent| wanted.commits.push(parent));
    }
    let had: Vec<Gid> = query.haves.iter().filter_map(|&have| stack.to_commit(have)).collect();
    let have_cut: Gids = query.client_shallow.iter().copied().collect();
    let mut want_cut = have_cut.clone();
    unshallow.iter().for_each(|commit| _ = want_cut.remove(commit));
    want_cut.extend(query.shallow.iter().flat_map(|shallow| &shallow.shallow));
    let is_shallow = !have_cut.is_empty() || !want_cut.is_empty();
    let mut boundary = Boundary::paint(stack, &wanted.commits, &had, want_cut.clone(), have_cut, meter)?;
    let (least, most) = limits.all_steps;
    let sent = u32::try_from(boundary.missing().len()).unwrap_or(u32::MAX);
    boundary.allow(sent.saturating_mul(limits.steps).clamp(least, most.max(least)));

    let bases = had.iter().chain(unshallow.iter().filter(|&&commit| boundary.is_had(commit)));
    let mut bases: Vec<(u32, Gid)> = bases.map(|&commit| (stack.generation(commit), commit)).collect();
    bases.sort_unstable();
    let mut picking = Picking {
        stack,
        boundary: &boundary,
        filter: query.filter,
        had: &bases,
        is_shallow,
        walk: TreeWalk::new(stack, source, query.filter, &limits.trees, meter)?,
        objects: GidSet::new(stack.len()),
        meter,
    };
    if query.filter.is_some_and(Rules::by_path) {
        picking.by_path(&want_cut)?;
    } else {
        picking.by_introduction(&want_cut)?;
    }
    if query.filter.is_some() && !wanted.trees.is_empty() {
        // What is also the root of a sent commit is filtered as such: git then forgets that it was asked for.
        let root = |&commit: &Gid| stack.commit(commit).map(|commit| commit.tree());
        let roots: Gids = picking.boundary.missing().iter().filter_map(root).collect();
        wanted.trees.retain(|tree| !roots.contains(tree));
    }
    for &tree in &wanted.trees {
        picking.walk.given(tree, &mut picking.objects)?;
    }
    let Picking { walk, mut objects, .. } = picking;
    if !had.is_empty() {
        leave_out_had(stack, &mut boundary, &mut objects, meter)?;
    }
    // What was asked for by its id passes every filter (git's NOT_USER_GIVEN), unless the client has it.
    wanted.given.iter().for_each(|&gid| _ = objects.insert(gid));
    wanted.commits.iter().filter(|&&gid| !boundary.is_had(gid)).for_each(|&gid| _ = objects.insert(gid));
    for &(tag, peeled) in query.tags {
        if objects.contains(peeled) {
            tag_chain(stack, tag).for_each(|gid| _ = objects.insert(gid));
        }
    }
    let (owned, before) = walk.into_owned();
    let whole = !had.is_empty() && !is_shallow && query.filter.is_none();
    let client = Client { stack, boundary, owned, before, whole };
    Ok(Selection { objects: objects.to_roaring(), client: Some(client) })
}

/// Takes out trees and blobs that a commit of the client introduced as well.
fn leave_out_had(
    stack: &Stack,
    boundary: &mut Boundary<'_, Stack>,
    objects: &mut GidSet,
    meter: &dyn Meter,
) -> Result<(), Halt> {
    let is_content = |gid: &Gid| matches!(stack.kind(*gid), Kind::Tree | Kind::Blob);
    let mut had = Vec::new();
    for gid in objects.iter().filter(is_content) {
        if introduced_to_client(stack, boundary, gid, meter)? {
            had.push(gid);
        }
    }
    had.into_iter().for_each(|gid| objects.remove(gid));
    Ok(())
}

/// Says whether a commit of the client introduced a tree or blob.
fn introduced_to_client(
    stack: &Stack,
    boundary: &mut Boundary<'_, Stack>,
    gid: Gid,
    meter: &dyn Meter,
) -> Result<bool, Halt> {
    let mut asked = 0;
    let mut introducers = stack.introducers(gid).inspect(|_| asked += 1);
    let found = introducers.any(|commit| boundary.client_has(commit));
    meter.step(asked)?;
    Ok(found)
}

/// Follows wanted tags, as `handle_commit` in git's `revision.c`.
fn wanted(stack: &Stack, wants: &[Gid], haves: &[Gid]) -> Wanted {
    let haves: Gids = haves.iter().copied().collect();
    let mut wanted = Wanted::default();
    for &want in wants {
        wanted.given.extend(tag_chain(stack, want).filter(|tag| !haves.contains(tag)));
        let target = stack.peel(want);
        match stack.kind(target) {
            Kind::Commit => wanted.commits.push(target),
            Kind::Tree => {
                wanted.trees.push(target);
                wanted.given.push(target);
            }
            Kind::Blob => wanted.given.push(target),
            Kind::Tag => {}
        }
    }
    wanted
}

/// A tag and the tags it leads to.
fn tag_chain(stack: &Stack, tag: Gid) -> impl Iterator<Item = Gid> + '_ {
    let is_tag = |gid: &Gid| stack.kind(*gid) == Kind::Tag;
    std::iter::successors(Some(tag).filter(is_tag), move |&tag| stack.tag_target(tag).filter(is_tag))
}

/// A selection being made.
struct Picking<'p, 'w, 's> {
    stack: &'s Stack,
    boundary: &'p Boundary<'s, Stack>,
    filter: Option<&'w Rules<'w>>,
    /// Commits of the client with their generations, sorted.
    had: &'p [(u32, Gid)],
    is_shallow: bool,
    walk: TreeWalk<'w>,
    objects: GidSet,
    meter: &'p dyn Meter,
}

impl Picking<'_, '_, '_> {
    /// Filters by type and size need the graph only.
    fn by_introduction(&mut self, want_cut: &Gids) -> Result<(), TreeError> {
        let contents = self.filter.is_none_or(Rules::keeps_contents);
        let sent: GidSet = self.sent();
        for &gid in self.boundary.missing() {
            self.objects.insert(gid);
            if !contents {
                continue;
            }
            if want_cut.contains(&gid) && !self.parents_are_sent(gid, &sent) {
                self.whole_tree(gid, None)?;
            } else {
                let objects = &mut self.objects;
                introductions(self.stack, gid, self.is_shallow, objects, self.meter)?;
            }
        }
        if let Some(rules) = self.filter {
            let stack = self.stack;
            let dropped: Vec<Gid> = self
                .objects
                .iter()
                .filter(|&gid| !rules.keeps(stack.kind(gid), || stack.size(gid)))
                .collect();
            dropped.into_iter().for_each(|gid| self.objects.remove(gid));
        }
        Ok(())
    }

    /// Filters by path walk the tree of every sent commit.
    ///
    /// Where the client has history, trees that no sent commit introduced are the client's and are
    /// not entered. Boundaries have no such list, so trees of the haves are compared instead.
    fn by_path(&mut self, want_cut: &Gids) -> Result<(), TreeError> {
        let cut = self.boundary.missing().iter().any(|commit| want_cut.contains(commit));
        let mut within = None;
        if !self.had.is_empty() && !cut {
            let within = within.insert(GidSet::new(self.stack.len()));
            for &gid in self.boundary.missing() {
                introductions(self.stack, gid, true, within, self.meter)?;
            }
        }
        for &gid in self.boundary.missing() {
            if self.filter.is_none_or(|rules| rules.keeps(Kind::Commit, || 0)) {
                self.objects.insert(gid);
            }
            self.whole_tree(gid, within.as_ref())?;
        }
        Ok(())
    }

    fn sent(&self) -> GidSet {
        let mut sent = GidSet::new(if self.is_shallow { self.stack.len() } else { 0 });
        self.boundary.missing().iter().for_each(|&gid| _ = sent.insert(gid));
        sent
    }

    fn parents_are_sent(&self, commit: Gid, sent: &GidSet) -> bool {
        let mut all = true;
        self.stack.each_parent(commit, |parent| all &= sent.contains(parent));
        all
    }

    fn whole_tree(&mut self, commit: Gid, within: Option<&GidSet>) -> Result<(), TreeError> {
        let Some(row) = self.stack.commit(commit) else { return Ok(()) };
        let bases = if within.is_some() { Vec::new() } else { self.bases(commit, row.generation()) };
        self.walk.root(row.tree(), &bases, within, &mut self.objects)
    }

    /// Trees that the client has and that are likely close to that of `commit`.
    fn bases(&self, commit: Gid, generation: u32) -> Vec<Gid> {
        let mut close: Vec<Gid> = Vec::new();
        self.stack.each_parent(commit, |parent| {
            if self.boundary.is_had(parent) {
                close.push(parent);
            }
        });
        // The nearest in age are the neighbours of the place where this one would be.
        let at = self.had.partition_point(|&(have, _)| have < generation);
        let near = at.saturating_sub(NEAR)..self.had.len().min(at + NEAR);
        let mut haves = self.had.get(near).unwrap_or_default().to_vec();
        haves.sort_unstable_by_key(|&(have, gid)| (have.abs_diff(generation), gid));
        close.extend(haves.into_iter().map(|(_, have)| have));
        let mut trees: Vec<Gid> =
            close.iter().filter_map(|&have| Some(self.stack.commit(have)?.tree())).collect();
        let mut seen = Gids::default();
        trees.retain(|&tree| seen.insert(tree));
        trees.truncate(BASES);
        trees
    }
}

/// Adds what a commit introduced: with `again`, all that its parents' trees lack.
fn introductions(
    stack: &Stack,
    gid: Gid,
    again: bool,
    objects: &mut GidSet,
    meter: &dyn Meter,
) -> Result<(), Halt> {
    let Some(commit) = stack.commit(gid) else { return Ok(()) };
    let again = again.then(|| commit.again());
    let found = commit.first().chain(again.into_iter().flatten()).map(|gid| objects.insert(gid)).count();
    meter.step(COMMIT + found as u64)
}
