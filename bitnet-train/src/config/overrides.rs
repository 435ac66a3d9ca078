//! `--set key.path=value`: changes to a parsed TOML file before it is read as a config.

use toml::{Table, Value};

/// Applies `section.key=value` to `table`. The value is TOML; what is no TOML is taken as a string, so that
/// `--set data.source.path=corpus.txt` needs no quotes in quotes.
///
/// # Errors
/// If there is no `=`, or the path runs through something that is no section.
pub(super) fn apply(table: &mut Table, assignment: &str) -> Result<(), String> {
    let (path, text) = assignment
        .split_once('=')
        .ok_or_else(|| format!("--set {assignment}: expected KEY=VALUE, such as train.steps=200"))?;
    let value = parse_value(text.trim());
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(|| format!("--set {assignment}: the key is empty"))?;
    let mut section = table;
    for key in keys {
        let entry = section.entry(key).or_insert_with(|| Value::Table(Table::new()));
        section = entry.as_table_mut().ok_or_else(|| format!("--set {assignment}: `{key}` is not a section"))?;
    }
    // Another kind of source, tokenizer or schedule has other keys: those of the old kind would be refused as unknown.
    if last == "type" && section.get("type") != Some(&value) {
        section.clear();
    }
    section.insert(last.to_owned(), value);
    Ok(())
}

fn parse_value(text: &str) -> Value {
    let parsed: Result<Table, _> = format!("value = {text}").parse();
    match parsed.ok().and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        None => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str, assignments: &[&str]) -> Result<Table, String> {
        let mut table: Table = text.parse().expect("valid TOML");
        assignments.iter().try_for_each(|a| apply(&mut table, a)).map(|()| table)
    }

    #[test]
    fn values_are_toml_or_else_strings() {
        let found =
            after("[a]\nx = 1", &["a.x=2", "a.y = [0.5, 1]", "a.path=some/file.txt", "b.c.on=true", "a.t=\"3\""]);
        let expected: Table =
            "[a]\nx = 2\ny = [0.5, 1]\npath = 'some/file.txt'\nt = '3'\n[b.c]\non = true".parse().expect("valid TOML");
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn a_new_type_drops_the_old_types_keys() {
        let found = after("[s]\ntype = 'a'\nx = 1", &["s.type=b", "s.y=2"]).expect("applies");
        assert_eq!(found["s"], Value::Table("type = 'b'\ny = 2".parse().expect("valid TOML")));
    }

    #[test]
    fn nonsense_is_refused() {
        for (assignment, expected) in
            [("steps", "expected KEY=VALUE"), ("=1", "the key is empty"), ("a.x.y=1", "`x` is not a section")]
        {
            let message = after("[a]\nx = 1", &[assignment]).expect_err(expected);
            assert!(message.contains(expected), "{message}");
        }
    }
}
