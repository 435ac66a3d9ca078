//! What a process has taken of the machine's memory, and how much there is.

use std::fs::read_to_string;
use std::path::Path;

/// The largest resident memory of this process so far, in bytes, where the system tells it.
pub fn peak_memory() -> Option<u64> {
    let status = read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Bytes of memory that this process may take: the machine's, or fewer where a control group (a container, a job) has a limit;
/// none where the system does not tell.
pub fn machine_memory() -> Option<u64> {
    let text = read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = line.split_whitespace().next()?.parse::<u64>().ok()? << 10;
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(limit_of(Path::new("/sys/fs/cgroup"), &groups).map_or(total, |limit| limit.min(total)))
}

/// The lowest limit of the control groups that `listing` (`/proc/self/cgroup`) names, and of those around them. A container may
/// see its own group as the root while the listing names it as the machine does; then the root is what counts.
fn limit_of(root: &Path, listing: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in listing.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            controllers if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            // `max`, where there is no limit, is no number.
            let text = read_to_string(root.join(group).join(file)).unwrap_or_default();
            limits.extend(text.trim().parse::<u64>().ok());
        }
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_lowest_limit_of_the_groups_counts() {
        let root = tempfile::tempdir().expect("temp dir");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "3000\n");
        write("memory/c/memory.limit_in_bytes", "2000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let limit = |listing: &str| limit_of(root.path(), listing);
        assert_eq!(limit("0::/a/b\n"), Some(3000));
        assert_eq!(limit("0::/\n"), None);
        assert_eq!(limit("4:cpu,memory:/c\n0::/a/b\n"), Some(2000));
        assert_eq!(limit("4:memory:/elsewhere\n"), Some(9_223_372_036_854_771_712));
        assert_eq!(limit("nonsense\n"), None);
    }

    #[test]
    fn this_machine_has_memory() {
        if Path::new("/proc/meminfo").exists() {
            assert!(machine_memory().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
