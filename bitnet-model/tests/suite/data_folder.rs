//! Files of the data folder beside the project, which some tests read and not every machine has. Other crates' tests include
//! this file.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Set to anything but `0` and nothing, it makes a test fail whose data is not there.
const REQUIRE: &str = "BITNET_REQUIRE_DATA";

/// A file or folder of the data folder. Where it is absent, says what is skipped, past the capture of the test harness.
///
/// # Panics
/// If it is absent and [`REQUIRE`] is set.
#[track_caller]
pub fn shared(name: &str) -> Option<PathBuf> {
    let required = std::env::var_os(REQUIRE).is_some_and(|value| !value.is_empty() && value != "0");
    let found = match look(name, required) {
        Ok(found) => found,
        Err(reason) => panic!("{reason}"),
    };
    if found.is_none() {
        let test = std::panic::Location::caller();
        // `eprintln!` would be swallowed in a test that passes. A closed stderr hides a line and changes no result.
        let _ =
            writeln!(std::io::stderr(), "skipped: {}, line {}: no {name} in ../shared/data", test.file(), test.line());
    }
    found
}

fn look(name: &str, required: bool) -> Result<Option<PathBuf>, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    match (path.exists(), required) {
        (true, _) => Ok(Some(path)),
        (false, false) => Ok(None),
        (false, true) => Err(format!("{REQUIRE} is set, and there is no {}", path.display())),
    }
}

#[test]
fn absent_data_fails_where_it_is_required() {
    assert_eq!(look("no/such.file", false), Ok(None));
    let reason = look("no/such.file", true).expect_err("it is not there");
    assert!(
        reason.starts_with("BITNET_REQUIRE_DATA is set, and there is no ") && reason.ends_with("no/such.file"),
        "{reason}"
    );
}
