//! Places of choices in the queue and in the engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;

/// Places that choices take up: counted while they exist, whatever ends them.
pub struct Places {
    shared: Arc<Shared>,
    choices: usize,
    waiting: bool,
}

impl Places {
    /// Places in the queue, if there are so many.
    pub fn take(shared: &Arc<Shared>, choices: usize) -> Option<Self> {
        let limit = shared.queue.saturating_add(shared.parallel);
        let room = |active: usize| active.checked_add(choices).filter(|&active| active <= limit);
        shared.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        shared.waiting.fetch_add(choices, Ordering::Relaxed);
        Some(Self { shared: Arc::clone(shared), choices, waiting: true })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.choices
    }

    /// Some of them, `choices` at most, by themselves.
    pub fn split(&mut self, choices: usize) -> Self {
        let choices = choices.min(self.choices);
        self.choices -= choices;
        Self { shared: Arc::clone(&self.shared), choices, waiting: self.waiting }
    }

    /// Their choices wait no longer.
    pub fn begin(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.shared.waiting.fetch_sub(self.choices, Ordering::Relaxed);
        }
    }

    /// Their choices wait again.
    pub fn wait(&mut self) {
        if !std::mem::replace(&mut self.waiting, true) {
            self.shared.waiting.fetch_add(self.choices, Ordering::Relaxed);
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.begin();
        self.shared.active.fetch_sub(self.choices, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::metrics::Metrics;
    use proptest::prelude::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    proptest! {
        /// Whatever is done with places, in whatever order they are dropped, and if a panic drops them: the counts are those of
        /// the places that exist, and zero at the end.
        #[test]
        fn counts_are_those_of_the_places_that_exist(
            steps in proptest::collection::vec((0usize..6, 0usize..8, 0usize..5), 0..60),
            limit in 1usize..30,
        ) {
            let shared = Arc::new(Shared {
                waiting: AtomicUsize::new(0), active: AtomicUsize::new(0), closed: AtomicBool::new(false),
                queue: limit, parallel: 0, metrics: Arc::new(Metrics::new()),
            });
            let mut all: Vec<Places> = Vec::new();
            for (step, at, choices) in steps {
                let at = at % all.len().max(1);
                match step {
                    0 => {
                        let before = shared.active.load(Ordering::Relaxed);
                        let taken = Places::take(&shared, choices);
                        prop_assert_eq!(taken.is_some(), before + choices <= limit);
                        all.extend(taken);
                    }
                    _ if all.is_empty() => {}
                    1 => {
                        let part = all[at].split(choices);
                        all.push(part);
                    }
                    2 => all[at].begin(),
                    3 => all[at].wait(),
                    4 => drop(all.remove(at)),
                    _ => {
                        let lost = all.remove(at);
                        let _ = catch_unwind(AssertUnwindSafe(move || {
                            let _lost = lost;
                            std::panic::resume_unwind(Box::new(()));
                        }));
                    }
                }
                let count = |of: &dyn Fn(&&Places) -> bool| all.iter().filter(|p| of(p)).map(Places::count).sum::<usize>();
                prop_assert_eq!(shared.active.load(Ordering::Relaxed), count(&|_| true));
                prop_assert_eq!(shared.waiting.load(Ordering::Relaxed), count(&|places| places.waiting));
            }
            drop(all);
            prop_assert_eq!((shared.active.load(Ordering::Relaxed), shared.waiting.load(Ordering::Relaxed)), (0, 0));
        }
    }
}
