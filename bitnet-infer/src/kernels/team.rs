//! Threads that answer at once.
//!
//! Decoding a token hands out some hundred small pieces of work, of 10 to 100 microseconds each, with a few microseconds
//! between them. A pool whose idle threads go to sleep pays a wake-up for each, which on a virtual machine takes as long as
//! the work. A team stays awake from the beginning of a forward pass to its end ([`engaged`]) and sleeps otherwise.
//!
//! A piece of work is cut into numbered parts; whoever is free takes the next number, the caller among them, so a thread
//! that the system has given to somebody else holds up nothing but the part it has begun. What a part computes does not
//! depend on who computes it.
//!
//! Outside of [`engaged`], on another thread meanwhile, and in parts of parts, rayon's current pool does the work.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use rayon::prelude::*;

/// Keeps the team awake while `work` runs on this thread, if it is free and as large as rayon's current pool.
pub(crate) fn engaged<R>(work: impl FnOnce() -> R) -> R {
    let threads = rayon::current_num_threads();
    if threads == 1 || threads > MOST_THREADS || TEAM_OF_THIS_THREAD.get().is_some() {
        return work();
    }
    let team = TEAM.get_or_init(|| Team::new(threads));
    let Ok(_engagement) = team.engagement.try_lock() else { return work() };
    if team.threads != threads {
        return work();
    }
    team.awake.store(true, Ordering::Relaxed);
    TEAM_OF_THIS_THREAD.set(Some(team));
    let result = catch_unwind(AssertUnwindSafe(work));
    TEAM_OF_THIS_THREAD.set(None);
    team.awake.store(false, Ordering::Relaxed);
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs `work` on every item, on all threads; a panic of one is passed on once all have ended.
pub(crate) fn each<T: Send>(items: Vec<T>, work: impl Fn(T) + Send + Sync) {
    if items.len() <= 1 || rayon::current_num_threads() == 1 {
        return items.into_iter().for_each(work);
    }
    match TEAM_OF_THIS_THREAD.get() {
        Some(team) if items.len() < MOST_PARTS => {
            let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
            team.run(items.len(), &|part| {
                let item = lock(&items[part]).take();
                work(item.expect("every part is taken once"));
            });
        }
        _ => items.into_par_iter().with_max_len(1).for_each(work),
    }
}

/// The results of `work` for every item, in order; `least` items at a time are worth handing out.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], least: usize, work: impl Fn(&T) -> R + Send + Sync) -> Vec<R> {
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    let tasks = items.chunks(least.max(1)).zip(results.chunks_mut(least.max(1)));
    each(tasks.collect(), |(items, results)| {
        items.iter().zip(results).for_each(|(item, result)| *result = Some(work(item)));
    });
    results.into_iter().map(|result| result.expect("every item has been worked on")).collect()
}

struct Team {
    threads: usize,
    /// Held by the thread whose forward pass the team serves.
    engagement: Mutex<()>,
    /// Whether there is such a thread.
    awake: AtomicBool,
    /// The number of the piece of work (upper half), its parts, and the next part that nobody has begun (16 bits each).
    /// One number, so that a thread that comes late cannot take a part of a piece that it has not seen.
    state: AtomicU64,
    /// Parts of the current piece that have ended.
    ended: AtomicUsize,
    work: UnsafeCell<Work>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
}

/// The work of a piece, without the lifetime of what it borrows.
type Work = *const (dyn Fn(usize) + Sync);

// SAFETY: `work` is the one field that is not safe to share. It is written only by the thread that holds the engagement,
// while every part of the piece before has ended, and read only by threads that have begun a part of the present one,
// which orders the read behind the write (`state`: release, acquire) and before the next (`ended`: release, acquire).
// What it points to is `Sync`.
unsafe impl Sync for Team {}
// SAFETY: as above.
unsafe impl Send for Team {}

impl Team {
    fn new(threads: usize) -> Self {
        for index in 1..threads {
            let name = format!("bitnet-{index}");
            // A machine that has no thread to give is served by fewer.
            let _ = thread::Builder::new().name(name).spawn(|| TEAM.wait().serve());
        }
        Self {
            threads,
            engagement: Mutex::new(()),
            awake: AtomicBool::new(false),
            state: AtomicU64::new(0),
            ended: AtomicUsize::new(0),
            work: UnsafeCell::new(&|_| {}),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        }
    }

    /// Runs `work` for parts `0..parts`; called by the thread that holds the engagement.
    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        assert!(parts < MOST_PARTS, "{parts} parts");
        // Parts of parts go elsewhere.
        let team = TEAM_OF_THIS_THREAD.take();
        // SAFETY: the write happens while no part runs: the engagement admits one piece at a time, and `run` returns when
        // all of its parts have ended. For the same reason nobody uses the pointer after the lifetime that it forgets.
        unsafe { *self.work.get() = std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Work>(work) };
        self.ended.store(0, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> 32) + 1;
        // Sequentially consistent with `sleep`: either a thread about to sleep sees this, or this sees it asleep.
        self.state.store((number << 32) | ((parts as u64) << 16), Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.bed));
            self.alarm.notify_all();
        }
        while self.take_part() {}
        let mut waited = 0;
        while self.ended.load(Ordering::Acquire) < parts {
            pause(&mut waited);
        }
        TEAM_OF_THIS_THREAD.set(team);
        if let Some(panic) = lock(&self.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Takes the next part, if there is one, and runs it.
    fn take_part(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        let (parts, next) = ((state >> 16) & 0xffff, state & 0xffff);
        if next >= parts {
            return false;
        }
        if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            // SAFETY: this thread has begun a part of the present piece, and has not ended it: `work` is not written, and
            // what it points to lives, until then.
            let work = unsafe { &**self.work.get() };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(next as usize))) {
                *lock(&self.panic) = Some(panic);
            }
            self.ended.fetch_add(1, Ordering::Release);
        }
        true
    }

    /// What a thread of the team does all its life.
    fn serve(&self) {
        let mut waited = 0;
        loop {
            if self.take_part() {
                waited = 0;
            } else if waited < if self.awake.load(Ordering::Relaxed) { PATIENCE_AWAKE } else { PATIENCE } {
                pause(&mut waited);
            } else {
                self.sleep();
                waited = 0;
            }
        }
    }

    fn sleep(&self) {
        let bed = lock(&self.bed);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let nothing_to_do = |_: &mut ()| {
            let state = self.state.load(Ordering::SeqCst);
            (state & 0xffff) >= ((state >> 16) & 0xffff)
        };
        drop(self.alarm.wait_while(bed, nothing_to_do));
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for a moment; after the first hundred microseconds or so in a way that lets others have the core.
fn pause(waited: &mut usize) {
    *waited += 1;
    if *waited > PATIENCE { thread::yield_now() } else { std::hint::spin_loop() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

static TEAM: OnceLock<Team> = OnceLock::new();

thread_local! {
    /// The team that this thread has engaged.
    static TEAM_OF_THIS_THREAD: Cell<Option<&'static Team>> = const { Cell::new(None) };
}

/// Looks at an empty desk before the core is offered to others: some 100 microseconds.
const PATIENCE: usize = 4096;

/// The same before a thread goes to sleep within a forward pass: some milliseconds.
const PATIENCE_AWAKE: usize = PATIENCE + 4096;

/// Parts are counted in 16 bits.
const MOST_PARTS: usize = 1 << 16;

/// Beyond that a pool that sleeps is the better neighbour.
const MOST_THREADS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of_squares(n: usize) -> usize {
        let total = AtomicUsize::new(0);
        each((0..n).collect(), |i: usize| {
            total.fetch_add(i * i, Ordering::Relaxed);
        });
        total.into_inner()
    }

    #[test]
    fn every_item_is_worked_on_once() {
        let expected = |n: usize| (0..n).map(|i| i * i).sum::<usize>();
        for n in [0, 1, 2, 3, 100, 1000, MOST_PARTS] {
            assert_eq!(sum_of_squares(n), expected(n));
            engaged(|| assert_eq!(sum_of_squares(n), expected(n)));
        }
        for i in 0..20_000 {
            engaged(|| assert_eq!(sum_of_squares(i % 7), expected(i % 7)));
        }
    }

    #[test]
    fn threads_may_come_at_the_same_time_and_parts_may_have_parts() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        engaged(|| {
                            each(vec![50, 60, 70], |n| {
                                assert_eq!(sum_of_squares(n), (0..n).map(|i| i * i).sum::<usize>())
                            })
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_is_passed_on_and_the_team_goes_on() {
        for _ in 0..50 {
            let run = || engaged(|| each((0..10).collect(), |i: usize| assert_ne!(i, 5, "the fifth")));
            assert!(catch_unwind(run).is_err());
            engaged(|| assert_eq!(sum_of_squares(4), 14));
        }
    }
}
