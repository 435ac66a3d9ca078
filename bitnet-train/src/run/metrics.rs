//! What a run tells: a progress bar, `metrics.jsonl`, TensorBoard. A log that fails is reported once and never ends a run.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bitnet_infer::tell;
use bitnet_model::files::write_atomic;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::diagnostics::CodeReport;
use super::events::EventWriter;
use super::folder::RunFolder;

/// The numbers of one optimizer step.
#[derive(Clone, Copy, Debug)]
pub struct StepMetrics {
    /// Steps taken, this one included.
    pub step: u64,
    /// Training loss of this step, nats per token.
    pub loss: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Weight decay of this step.
    pub weight_decay: f64,
    /// Global gradient norm before clipping.
    pub gradient_norm: f64,
    /// Training tokens per second since the last report; time spent on validation and checkpoints does not count.
    pub tokens_per_second: f64,
}

/// The numbers of one validation.
#[derive(Clone, Copy, Debug)]
pub struct ValidationMetrics {
    /// Steps taken.
    pub step: u64,
    /// Nats per token.
    pub loss: f64,
    /// Bits per byte of the held-out text.
    pub bits_per_byte: f64,
}

/// Writes every kind of report.
pub struct Reporter {
    lines: Lines<File>,
    /// Whether it was said that `metrics.jsonl` cannot be written.
    lines_warned: bool,
    /// Given up after the first failure.
    events: Option<EventWriter>,
    bar: ProgressBar,
    interactive: bool,
    last_rate: f64,
}

impl Reporter {
    /// Reports to `folder`, from `first_step` of `steps` on. Lines of an interrupted session that lie after `first_step` are
    /// removed, so that each step appears once.
    ///
    /// # Errors
    /// If `metrics.jsonl` cannot be opened.
    pub fn new(folder: &RunFolder, first_step: u64, steps: u64) -> Result<Self> {
        let path = folder.metrics();
        keep_lines_until(&path, first_step)?;
        let lines = OpenOptions::new().create(true).append(true).open(&path);
        let lines = Lines::new(lines.with_context(|| format!("{}: cannot open", path.display()))?);
        let interactive = std::io::stderr().is_terminal();
        let bar = ProgressBar::new(steps).with_position(first_step);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} [{elapsed_precise} < {eta_precise}]")
            .context("a fixed template parses")?;
        bar.set_style(style);
        bar.reset_eta();
        let mut reporter = Self { lines, lines_warned: false, events: None, bar, interactive, last_rate: 0.0 };
        match EventWriter::create(&folder.events(), first_step) {
            Ok(events) => reporter.events = Some(events),
            Err(e) => reporter.say(&format!("warning: {}: no TensorBoard log: {e}", folder.events().display())),
        }
        Ok(reporter)
    }

    /// A line for the person who watches.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| tell!("{text}"));
    }

    /// Shows a step on the bar; cheap enough for every step.
    pub fn tick(&self, step: u64, loss: f64) {
        if self.interactive {
            self.bar.set_position(step);
            self.bar.set_message(format!("loss {loss:.4}  {:.0} tok/s", self.last_rate));
        }
    }

    /// Shows how far a validation is.
    pub fn progress_of_validation(&self, done: usize, all: usize) {
        if self.interactive {
            self.bar.set_message(format!("validating, window {done} of {all}"));
        }
    }

    /// Reports a training step.
    pub fn step(&mut self, m: &StepMetrics) {
        let perplexity = m.loss.exp();
        self.line(&json!({
            "kind": "train", "step": m.step, "loss_nats": m.loss, "perplexity": perplexity,
            "learning_rate": m.learning_rate, "weight_decay": m.weight_decay, "gradient_norm": m.gradient_norm,
            "tok_per_s": m.tokens_per_second,
        }));
        self.scalars(
            m.step,
            &[
                ("train/loss", m.loss),
                ("train/perplexity", perplexity),
                ("train/learning_rate", m.learning_rate),
                ("train/weight_decay", m.weight_decay),
                ("train/gradient_norm", m.gradient_norm),
                ("train/tokens_per_second", m.tokens_per_second),
            ],
        );
        self.last_rate = m.tokens_per_second;
        let text = format!("loss {:.4}  {:.0} tok/s  lr {:.2e}", m.loss, m.tokens_per_second, m.learning_rate);
        if self.interactive {
            self.bar.set_position(m.step);
            self.bar.set_message(text);
        } else {
            let left = self.bar.length().unwrap_or(0).saturating_sub(m.step);
            tell!("step {}/{}  {text}  norm {:.2}  {left} to go", m.step, m.step + left, m.gradient_norm);
        }
    }

    /// Reports the quantizers.
    pub fn codes(&mut self, step: u64, reports: &[CodeReport]) {
        if reports.is_empty() {
            return;
        }
        self.line(&json!({ "kind": "codes", "step": step, "layers": reports }));
        let tags: Vec<(String, f64)> = reports
            .iter()
            .flat_map(|r| {
                let tag = |kind: &str, value| (format!("codes/{}/{kind}", r.name), value);
                let shares = [tag("minus", r.minus), tag("zero", r.zero), tag("plus", r.plus)];
                let flips = [tag("flipped", r.flipped), tag("flipped_in_step", r.flipped_in_step)];
                shares.into_iter().chain(flips).chain([tag("scale", r.scale)])
            })
            .collect();
        let tags: Vec<(&str, f64)> = tags.iter().map(|(tag, value)| (tag.as_str(), *value)).collect();
        self.scalars(step, &tags);
    }

    /// Reports a validation.
    pub fn validation(&mut self, m: &ValidationMetrics) {
        let perplexity = m.loss.exp();
        self.line(&json!({
            "kind": "validation", "step": m.step, "loss_nats": m.loss, "perplexity": perplexity,
            "bits_per_byte": m.bits_per_byte,
        }));
        let scalars = [
            ("validation/loss", m.loss),
            ("validation/perplexity", perplexity),
            ("validation/bits_per_byte", m.bits_per_byte),
        ];
        self.scalars(m.step, &scalars);
        self.say(&format!(
            "step {}: validation loss {:.4} nats/token, perplexity {perplexity:.2}, {:.4} bits/byte",
            m.step, m.loss, m.bits_per_byte
        ));
    }

    /// Reports a sample of text.
    pub fn sample(&mut self, step: u64, text: &str) {
        self.line(&json!({ "kind": "sample", "step": step, "text": text }));
        self.say(&format!("--- step {step} ---\n{text}\n---"));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&mut self, value: &Value) {
        if let Err(e) = self.lines.write(value)
            && !std::mem::replace(&mut self.lines_warned, true)
        {
            self.say(&format!("warning: metrics.jsonl: cannot write: {e}"));
        }
    }

    fn scalars(&mut self, step: u64, values: &[(&str, f64)]) {
        if let Some(events) = &mut self.events
            && let Err(e) = events.scalars(step, values.iter().copied())
        {
            self.events = None;
            self.say(&format!("warning: TensorBoard log given up: {e}"));
        }
    }
}

/// JSON objects, one a line.
struct Lines<W> {
    out: W,
    /// Whether the last line may be incomplete.
    torn: bool,
}

impl<W: Write> Lines<W> {
    fn new(out: W) -> Self {
        Self { out, torn: false }
    }

    /// Appends a line; one that an earlier failure cut off stays alone, so that it spoils no other.
    fn write(&mut self, value: &Value) -> io::Result<()> {
        let end_of_torn = if self.torn { "\n" } else { "" };
        // One write, so that a kill leaves whole lines and at most one torn one.
        let written = self.out.write_all(format!("{end_of_torn}{value}\n").as_bytes());
        self.torn = written.is_err();
        written
    }
}

/// Rewrites a metrics file without the lines of later steps and without a torn last line.
fn keep_lines_until(path: &std::path::Path, step: u64) -> Result<()> {
    // A torn last line may end inside a character.
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("{}: cannot read", path.display())),
    };
    let earlier = |line: &&str| {
        let parsed: Option<Value> = serde_json::from_str(line).ok();
        parsed.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step)
    };
    let kept: String = text.lines().filter(earlier).flat_map(|line| [line, "\n"]).collect();
    Ok(write_atomic(path, kept.as_bytes())?)
}

/// Tokens per second of training alone: a watch that can be stopped.
pub struct TokenRate {
    tokens: u64,
    busy: Duration,
    since: Instant,
}

impl TokenRate {
    /// A running watch.
    pub fn start() -> Self {
        Self { tokens: 0, busy: Duration::ZERO, since: Instant::now() }
    }

    /// Counts tokens of a step that has just ended.
    pub fn add(&mut self, tokens: u64) {
        self.tokens += tokens;
        self.busy += self.since.elapsed();
        self.since = Instant::now();
    }

    /// Time until now does not count.
    pub fn skip(&mut self) {
        self.since = Instant::now();
    }

    /// The rate since the last call.
    pub fn take(&mut self) -> f64 {
        let rate = self.tokens as f64 / self.busy.as_secs_f64().max(1e-9);
        (self.tokens, self.busy) = (0, Duration::ZERO);
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for `room` more bytes.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fits = bytes.len().min(self.room);
            self.room -= fits;
            self.bytes.extend_from_slice(&bytes[..fits]);
            if fits == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(fits) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_is_cut_off_spoils_no_other() {
        let mut lines = Lines::new(Disk { bytes: Vec::new(), room: 18 });
        lines.write(&json!({ "step": 10 })).expect("fits");
        lines.write(&json!({ "step": 20 })).expect_err("full");
        lines.write(&json!({ "step": 30 })).expect_err("still full");
        lines.out.room = 100;
        lines.write(&json!({ "step": 40 })).expect("there is room again");
        lines.write(&json!({ "step": 50 })).expect("fits");
        let text = String::from_utf8(lines.out.bytes).expect("text");
        assert_eq!(text, "{\"step\":10}\n{\"step\n{\"step\":40}\n{\"step\":50}\n");
    }

    #[test]
    fn a_resume_drops_later_and_torn_lines() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        fs::write(file.path(), b"{\"step\":10}\n{\"step\":20}\n{\"step\":30}\n{\"ste\xc3").expect("write");
        keep_lines_until(file.path(), 20).expect("rewritten");
        assert_eq!(fs::read_to_string(file.path()).expect("read"), "{\"step\":10}\n{\"step\":20}\n");
    }
}
