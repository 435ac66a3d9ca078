//! What a long preparation says while it works.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A step of the preparation and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is done: `reading`, `training the tokenizer`, `tokenizing train`, `tokenizing validation`.
    pub stage: &'static str,
    /// Bytes of text done.
    pub done: u64,
    /// Bytes of text in all, where known.
    pub total: Option<u64>,
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
    bar.set_draw_target(ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(stage);
    bar
}

/// Stages shorter than this show nothing.
const PATIENCE: Duration = Duration::from_secs(2);
