//! Turns: of the threads of a simulation one runs at a time, so that the same seed gives the same run.
//!
//! A job for a blocking thread begins in the turn of an async task of its own and runs at once. Where it waits for async work, the
//! async thread goes on; when that work is ready, the task gives the job its turn again. So no two threads of a simulation
//! ever run at once, nothing depends on which was faster, and the clock moves whenever nobody has a turn.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::store::EPOCH;
use crate::retry::{Plan, go_by, plan_here};

/// What the thread of a job is told.
enum Go {
    /// Do this.
    Begin(Box<dyn FnOnce() + Send>, Handle, Crew, Waker),
    /// What you wait for may be ready.
    On(Waker),
}

/// What it answers.
enum Back {
    Done,
    Waits,
}

/// The async side of a job's thread.
struct Thread {
    go: Sender<Go>,
    back: Receiver<Back>,
}

/// The threads of one simulation, and where its randomness comes from.
#[derive(Clone, Default)]
struct Crew {
    idle: Arc<Mutex<Vec<Thread>>>,
    all: Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>,
    plan: Option<Plan>,
    begun: Arc<OnceLock<Instant>>,
    trace: Arc<Mutex<Vec<String>>>,
}

/// The job's side.
struct Seat {
    go: Receiver<Go>,
    back: Sender<Back>,
    waker: Waker,
}

thread_local! {
    static CREW: RefCell<Option<Crew>> = const { RefCell::new(None) };
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
}

/// Why a job that waits at the end of a simulation is unwound.
struct Over;

/// Runs `whole` so that all threads of what it begins take turns; those that are left at its end are ended.
pub fn taking<T>(whole: impl FnOnce() -> T) -> T {
    let crew = Crew { plan: plan_here(), ..Crew::default() };
    CREW.set(Some(crew.clone()));
    let done = catch_unwind(AssertUnwindSafe(whole));
    CREW.set(None);
    crew.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let all = std::mem::take(&mut *crew.all.lock().unwrap_or_else(PoisonError::into_inner));
    for thread in all {
        let _ = thread.join();
    }
    done.unwrap_or_else(|why| resume_unwind(why))
}

/// Says whether this thread belongs to a simulation.
pub fn are_taken() -> bool {
    CREW.with_borrow(Option::is_some)
}

/// Says whether this is the thread of a job in a simulation.
pub fn is_job() -> bool {
    SEAT.with_borrow(Option::is_some)
}

/// Adds to what two runs of the same seed have in common.
pub fn note(line: impl FnOnce() -> String) {
    CREW.with_borrow(|crew| {
        let Some(crew) = crew else { return };
        let at = crew.begun.get_or_init(Instant::now).elapsed();
        let mut trace = crew.trace.lock().unwrap_or_else(PoisonError::into_inner);
        trace.push(format!("{at:?} {}", line()));
    });
}

/// What was noted so far.
pub fn trace() -> Vec<String> {
    CREW.with_borrow(|crew| {
        let trace = crew.as_ref().map(|crew| crew.trace.lock().unwrap_or_else(PoisonError::into_inner));
        trace.map(|trace| trace.clone()).unwrap_or_default()
    })
}

/// The time of day of a simulation, whose clocks all go right; none outside of one.
pub fn time_of_day() -> Option<SystemTime> {
    CREW.with_borrow(|crew| {
        let begun = *crew.as_ref()?.begun.get_or_init(Instant::now);
        Some(SystemTime::UNIX_EPOCH + EPOCH + begun.elapsed())
    })
}

impl Crew {
    fn thread(&self) -> Thread {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| {
            let (go, gone) = channel();
            let (tell, back) = channel();
            let thread =
                std::thread::Builder::new().name("job".into()).spawn(move || sit(gone, tell)).unwrap();
            self.all.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            Thread { go, back }
        })
    }
}

/// The loop of a job's thread.
fn sit(go: Receiver<Go>, back: Sender<Back>) {
    let mut go = Some(go);
    while let Some(Ok(Go::Begin(job, runtime, crew, waker))) = go.as_ref().map(Receiver::recv) {
        let _inside = runtime.enter();
        if let Some(plan) = &crew.plan {
            go_by(plan.clone());
        }
        CREW.set(Some(crew));
        let Some(receiver) = go.take() else { return };
        SEAT.set(Some(Seat { go: receiver, back: back.clone(), waker }));
        job();
        CREW.set(None);
        go = SEAT.take().map(|seat| seat.go);
        if back.send(Back::Done).is_err() {
            return;
        }
    }
}

/// Begins a job, in the turn of a task of its own.
pub fn spawn<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let crew = CREW.with_borrow(Clone::clone).unwrap_or_default();
    tokio::spawn(async move {
        let outcome = Arc::new(Mutex::new(None));
        let into = outcome.clone();
        let job = move || {
            let done = catch_unwind(AssertUnwindSafe(job));
            *into.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        };
        let mut job: Option<Box<dyn FnOnce() + Send>> = Some(Box::new(job));
        let thread = Mutex::new(crew.thread());
        std::future::poll_fn(|context| {
            let waker = context.waker().clone();
            let go = match job.take() {
                Some(job) => Go::Begin(job, Handle::current(), crew.clone(), waker),
                None => Go::On(waker),
            };
            let thread = thread.lock().unwrap_or_else(PoisonError::into_inner);
            let sent = thread.go.send(go);
            match sent.ok().and_then(|()| thread.back.recv().ok()) {
                Some(Back::Waits) => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
        let thread = thread.into_inner().unwrap_or_else(PoisonError::into_inner);
        crew.idle.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        let done = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        done.expect("a job has an outcome").unwrap_or_else(|why| resume_unwind(why))
    })
}

/// Waits in a job: others have their turn until `work` is ready.
pub fn wait<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        let waker = SEAT.with_borrow(|seat| seat.as_ref().map(|seat| seat.waker.clone())).expect("a job");
        if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done;
        }
        let is_on = SEAT.with_borrow_mut(|seat| {
            let seat = seat.as_mut().expect("a job");
            let told = seat.back.send(Back::Waits).ok().and_then(|()| seat.go.recv().ok());
            if let Some(Go::On(waker)) = told {
                seat.waker = waker;
                return true;
            }
            false
        });
        if !is_on {
            resume_unwind(Box::new(Over));
        }
    }
}
