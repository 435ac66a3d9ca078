//! What a long preparation says while it works.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

/// A step of the preparation and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is done: `fetching from the Hub`, `reading the corpus`, `training the tokenizer`, `tokenizing`.
    pub stage: &'static str,
    /// Bytes of text done.
    pub done: u64,
    /// Bytes of text in all, where known.
    pub total: Option<u64>,
}

/// Hears how far a preparation is; an error that it returns ends the preparation, which leaves nothing half-written.
pub type OnProgress<'a> = dyn Fn(Progress) -> Result<()> + 'a;

/// The error by which a listener stops a preparation that a person no longer wants.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

/// One step of a preparation: counts the bytes done and tells of them.
pub struct Stage<'a> {
    name: &'static str,
    done: Cell<u64>,
    progress: &'a OnProgress<'a>,
}

impl<'a> Stage<'a> {
    /// A step at its beginning.
    pub fn new(name: &'static str, progress: &'a OnProgress<'a>) -> Self {
        Self { name, done: Cell::new(0), progress }
    }

    /// Tells that so many more bytes are done.
    ///
    /// # Errors
    /// Whatever stops the preparation.
    pub fn add(&self, bytes: usize) -> Result<()> {
        self.done.set(self.done.get() + bytes as u64);
        (self.progress)(Progress { stage: self.name, done: self.done.get(), total: None })
    }

    /// Tells that there is no more to do.
    ///
    /// # Errors
    /// Whatever stops the preparation.
    pub fn end(&self) -> Result<()> {
        let done = self.done.get();
        (self.progress)(Progress { stage: self.name, done, total: Some(done) })
    }
}

/// A bar on the standard error for each stage that takes over two seconds; hidden where that is no terminal.
pub fn bar() -> impl Fn(Progress) {
    let current: RefCell<Option<(&'static str, Instant, Option<ProgressBar>)>> = RefCell::new(None);
    move |progress: Progress| {
        let mut current = current.borrow_mut();
        if current.as_ref().is_none_or(|(stage, _, _)| *stage != progress.stage) {
            if let Some((_, _, Some(old))) = current.take() {
                old.finish_and_clear();
            }
            *current = Some((progress.stage, Instant::now(), None));
        }
        if let Some((stage, started, shown)) = current.as_mut()
            && (shown.is_some() || started.elapsed() >= PATIENCE)
        {
            let bar = shown.get_or_insert_with(|| new_bar(stage, progress.total));
            bar.set_position(progress.done);
            if progress.total.is_some_and(|total| progress.done >= total) {
                bar.finish_and_clear();
            }
        }
    }
}

fn new_bar(stage: &'static str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{msg} {wide_bar} {bytes}/{total_bytes} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {bytes} {elapsed}"),
    };
    let bar = bar.with_finish(ProgressFinish::AndClear);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(stage);
    bar
}

/// Stages shorter than this show nothing.
const PATIENCE: Duration = Duration::from_secs(2);
