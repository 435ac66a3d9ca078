//! TensorBoard event files, through tensorboard-rs's record writer over a file of our own.
//!
//! Its `SummaryWriter` panics on a full disk or a missing folder; here an error is an error, and the caller decides that a
//! lost log never ends a run.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::Message;
use tensorboard_proto::event::{Event, SessionLog, SessionLog_SessionStatus};
use tensorboard_proto::summary::{Summary, Summary_Value};
use tensorboard_rs::record_writer::RecordWriter;

/// An event file that scalars are appended to.
pub struct EventWriter {
    records: RecordWriter<File>,
}

impl EventWriter {
    /// A new event file in `folder`; what earlier files say of steps after `first_step` no longer counts.
    ///
    /// # Errors
    /// If the folder or the file cannot be made.
    pub fn create(folder: &Path, first_step: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{:010}.{}.{}", now.as_secs(), std::process::id(), first_step);
        let file = File::create(folder.join(name))?;
        let mut writer = Self { records: RecordWriter::new(file) };
        let mut version = Event::new();
        version.set_file_version("brain.Event:2".into());
        writer.write(version, 0)?;
        // TensorBoard drops events of an earlier session from this step on; that of the checkpoint itself stays.
        let mut session = SessionLog::new();
        session.set_status(SessionLog_SessionStatus::START);
        let mut start = Event::new();
        start.set_session_log(session);
        writer.write(start, if first_step == 0 { 0 } else { first_step + 1 })?;
        Ok(writer)
    }

    /// Appends scalars of one step.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars<'a>(&mut self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> io::Result<()> {
        let mut summary = Summary::new();
        for (tag, value) in values {
            let mut entry = Summary_Value::new();
            entry.set_tag(tag.to_owned());
            entry.set_simple_value(value as f32);
            summary.value.push(entry);
        }
        let mut event = Event::new();
        event.set_summary(summary);
        self.write(event, step)?;
        self.records.flush()
    }

    fn write(&mut self, mut event: Event, step: u64) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        event.set_wall_time(now.as_secs_f64());
        event.set_step(i64::try_from(step).unwrap_or(i64::MAX));
        let bytes = event.write_to_bytes().map_err(io::Error::other)?;
        self.records.write(&bytes)
    }
}
