//! Words and numbers for people, and input that is checked.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bitnet_model::files::text;
use serde::Serialize;

/// Writes to stdout; a closed pipe is an error, not a panic.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes a value as JSON to stdout.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    Ok(print(&(serde_json::to_string_pretty(value)? + "\n"))?)
}

/// A number of bytes in powers of 1024.
pub fn bytes(count: usize) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} bytes");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// A count with a suffix, as model sizes are given.
pub fn count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// Reads a text of at most [`TEXT_LIMIT`] bytes; `origin` names it in errors.
///
/// # Errors
/// If it cannot be read, is longer, or is not UTF-8 (with the offset of the first wrong byte).
pub fn read_text(source: impl Read, origin: &str) -> Result<String> {
    let mut bytes = Vec::new();
    source.take(TEXT_LIMIT + 1).read_to_end(&mut bytes).with_context(|| format!("{origin}: cannot read"))?;
    if bytes.len() as u64 > TEXT_LIMIT {
        bail!("{origin}: is longer than {TEXT_LIMIT} bytes");
    }
    Ok(text::owned(bytes, origin)?)
}

/// Reads a text file, which must not be empty.
///
/// # Errors
/// As [`read_text`].
pub fn read_text_file(path: &Path) -> Result<String> {
    let origin = path.display().to_string();
    let file = File::open(path).with_context(|| format!("{origin}: cannot open"))?;
    let text = read_text(file, &origin)?;
    if text.is_empty() {
        bail!("{origin}: is empty");
    }
    Ok(text)
}

/// Longest text that is read.
const TEXT_LIMIT: u64 = 1 << 30;
