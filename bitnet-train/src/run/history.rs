//! `sessions.jsonl`: a line for the start of a run and for each resume, with what it ran on and what had changed since the last.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bitnet_model::files::read_bounded;
use serde_json::{Value, json};

use super::environment;
use super::folder::RunFolder;
use crate::config::Run;

/// A value of the config or of the environment that is not what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its name, with dots for nesting; `environment.NAME` for what does not come from the config.
    pub key: String,
    /// What it was; null: not there.
    pub from: Value,
    /// What it is; null: not there.
    pub to: Value,
}

/// Adds a line for a session that begins at `step`, and tells what differs from the session before; nothing where none was
/// recorded.
///
/// # Errors
/// If the file cannot be read or written.
pub fn record(folder: &RunFolder, run: &Run, step: u64) -> Result<Option<Vec<Change>>> {
    let path = folder.sessions();
    let mut text = match path.exists() {
        true => String::from_utf8_lossy(&read_bounded(&path, LONGEST)?).into_owned(),
        false => String::new(),
    };
    let environment = environment::describe(&run.config.train, rayon::current_num_threads());
    let now = json!({ "config": serde_json::to_value(run.written()?)?, "environment": environment });
    let last = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).next_back();
    let changes = last.map(|last| changes(&last, &now));
    let shown = changes
        .as_ref()
        .map(|changes| changes.iter().map(|c| json!({ "key": c.key, "from": c.from, "to": c.to })).collect::<Vec<_>>());
    let line = json!({
        "kind": if step == 0 { "start" } else { "resume" },
        "step": step,
        "unix_time": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "changed": shown,
        "environment": now["environment"],
        "config": now["config"],
    });
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text += &format!("{line}\n");
    folder.write("sessions.jsonl", &text).context("cannot record this session")?;
    Ok(changes)
}

fn changes(last: &Value, now: &Value) -> Vec<Change> {
    let flat = |value: &Value| {
        let mut out = BTreeMap::new();
        flatten("", &value["config"], &mut out);
        flatten("environment", &value["environment"], &mut out);
        out
    };
    let (before, after) = (flat(last), flat(now));
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let of = |map: &BTreeMap<String, Value>, key: &String| map.get(key).cloned().unwrap_or(Value::Null);
    let change = |key: &String| Change { key: key.clone(), from: of(&before, key), to: of(&after, key) };
    keys.into_iter().map(change).filter(|change| change.from != change.to).collect()
}

fn flatten(name: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    let Value::Object(entries) = value else {
        out.insert(name.to_owned(), value.clone());
        return;
    };
    for (key, value) in entries {
        flatten(&if name.is_empty() { key.clone() } else { format!("{name}.{key}") }, value, out);
    }
}

/// Thousands of sessions.
const LONGEST: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_value_that_differs_at_any_depth() {
        let last = json!({"config": {"a": {"x": 1, "y": [1, 2]}, "b": 1}, "environment": {"cpu": "one"}});
        let now = json!({"config": {"a": {"x": 2, "y": [1, 2]}, "c": "new"}, "environment": {"cpu": "two"}});
        let found: Vec<_> = changes(&last, &now).into_iter().map(|c| (c.key, c.from, c.to)).collect();
        let expected = [
            ("a.x", json!(1), json!(2)),
            ("b", json!(1), Value::Null),
            ("c", Value::Null, json!("new")),
            ("environment.cpu", json!("one"), json!("two")),
        ];
        assert_eq!(found, expected.map(|(key, from, to)| (key.to_owned(), from, to)));
        assert_eq!(changes(&now, &now), []);
    }
}
