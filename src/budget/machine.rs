//! How much memory there is: what the control group may take, and what the machine has.

use std::{fs, path::Path};

/// Where no limit can be found out.
const UNKNOWN: usize = 512 * 1024 * 1024;

/// Three quarters of what the process's control group may take, and at most a quarter of the machine's memory.
pub fn default_budget() -> usize {
    let root = Path::new("/");
    budget(group_limit(root), machine(root))
}

fn budget(group: Option<usize>, machine: Option<usize>) -> usize {
    let group = group.map(|bytes| bytes / 4 * 3);
    let machine = machine.map(|bytes| bytes / 4);
    let least = group.into_iter().chain(machine).min();
    least.unwrap_or(UNKNOWN)
}

/// The least limit of the process's control group and those around it, of version 2 or 1
/// (<https://docs.kernel.org/admin-guide/cgroup-v2.html>).
fn group_limit(root: &Path) -> Option<usize> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next(), parts.next());
        let (mount, file) = match controllers {
            Some("") => ("sys/fs/cgroup", "memory.max"),
            Some(list) if list.split(',').any(|one| one == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        // A container sees its own group as the root, whatever its path is called outside.
        let path = path.unwrap_or_default().trim_start_matches('/');
        let own = root.join(mount).join(path);
        let around = own
            .ancestors()
            .take_while(|dir| dir.starts_with(root.join(mount)));
        around.filter_map(|dir| limit(&dir.join(file))).collect()
    });
    limits.min()
}

/// `max`, and what version 1 says for it, a number near 2^63, are no limits.
fn limit(file: &Path) -> Option<usize> {
    let bytes: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (bytes < 1 << 60).then(|| usize::try_from(bytes).ok())?
}

fn machine(root: &Path) -> Option<usize> {
    let all = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = all
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn machine_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        root
    }

    #[test]
    fn the_least_limit_of_the_group_and_those_around_it_counts() {
        let two = machine_with(&[
            ("proc/self/cgroup", "0::/pod/courtier\n"),
            ("sys/fs/cgroup/pod/courtier/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "536870912\n"),
        ]);
        assert_eq!(group_limit(two.path()), Some(512 * MIB));
        // As a container sees it: its own path is not there.
        let inside = machine_with(&[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "268435456\n"),
        ]);
        assert_eq!(group_limit(inside.path()), Some(256 * MIB));
        let one = machine_with(&[
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/1\n"),
            (
                "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes",
                "268435456\n",
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ]);
        assert_eq!(group_limit(one.path()), Some(256 * MIB));
        let none = machine_with(&[("proc/self/cgroup", "0::/\n")]);
        assert_eq!(group_limit(none.path()), None);
    }

    #[test]
    fn the_machines_memory_is_read() {
        let root = machine_with(&[(
            "proc/meminfo",
            "MemTotal:       2097152 kB\nMemFree: 1 kB\n",
        )]);
        assert_eq!(machine(root.path()), Some(2048 * MIB));
    }

    #[test]
    fn the_budget_is_a_part_of_the_group_and_of_the_machine() {
        assert_eq!(budget(Some(512 * MIB), Some(24_576 * MIB)), 384 * MIB);
        assert_eq!(budget(None, Some(4096 * MIB)), 1024 * MIB);
        assert_eq!(budget(Some(8192 * MIB), Some(8192 * MIB)), 2048 * MIB);
        assert_eq!(budget(None, None), UNKNOWN);
    }
}
