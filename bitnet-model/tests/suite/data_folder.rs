//! Files of the data folder beside the project, which some tests read and not every machine has. Other crates' tests include
//! this file.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Set to anything but `0` and nothing, it makes a test fail whose data is not there.
const REQUIRE: &str = "BITNET_REQUIRE_DATA";

/// A file or folder of the data folder. Where it is absent, says which test is skipped, past the capture of the test harness.
///
/// # Panics
/// If it is absent and [`REQUIRE`] is set.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    let required = std::env::var_os(REQUIRE).is_some_and(|value| !value.is_empty() && value != "0");
    assert!(!required, "{REQUIRE} is set, and there is no {}", path.display());
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // `eprintln!` would be swallowed in a test that passes. A closed stderr hides a line and changes no result.
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs {}", path.display());
    None
}
