//! What the system says of this process and its threads, where it says it (`/proc`, Linux).

use std::{collections::BTreeMap, fs, time::Duration};

/// Threads that are looked at; a node with more peers has more, and they are much alike.
const MAX_THREADS: usize = 512;

/// The first part of the name of every thread of nodosum.
const PREFIX: &str = "nd-";

/// How many descriptors this process has open.
pub(crate) fn open_fds() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    // Reading the directory has one of its own.
    u64::try_from(entries).ok()?.checked_sub(1)
}

/// The memory that this process has resident, in bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

/// The processor time that this process has used, in user and system mode.
pub(crate) fn cpu_time() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold anything; fields 14 and 15 count from before it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    let ticks = rustix::param::clock_ticks_per_second();
    let nanos = u128::from(user + system) * 1_000_000_000 / u128::from(ticks.max(1));
    Some(Duration::from_nanos(u64::try_from(nanos).ok()?))
}

/// When this process started, in seconds since the epoch.
pub(crate) fn started_at() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    #[expect(clippy::cast_precision_loss, reason = "seconds with two decimals")]
    let seconds = boot as f64 + ticks as f64 / per_second as f64;
    Some(seconds)
}

/// A thread of nodosum in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) name: String,
    /// What it is for.
    pub(crate) role: &'static str,
    /// The processor time that it has used.
    pub(crate) cpu: Duration,
}

/// The threads of all nodes of this process, by their numbers.
pub(crate) fn threads() -> BTreeMap<u32, Thread> {
    let Ok(entries) = fs::read_dir("/proc/self/task") else {
        return BTreeMap::new();
    };
    let threads = entries.take(MAX_THREADS).filter_map(|entry| {
        let path = entry.ok()?.path();
        let id: u32 = path.file_name()?.to_str()?.parse().ok()?;
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let name = name.trim_end().to_owned();
        let role = role(name.strip_prefix(PREFIX)?);
        // Nanoseconds on a processor, nanoseconds waiting for one, number of turns.
        let schedule = fs::read_to_string(path.join("schedstat")).ok()?;
        let nanos: u64 = schedule.split_whitespace().next()?.parse().ok()?;
        let cpu = Duration::from_nanos(nanos);
        Some((id, Thread { name, role, cpu }))
    });
    threads.collect()
}

fn role(name: &str) -> &'static str {
    let roles = [
        ("reactor", "membership, mesh, listener"),
        // Before the shorter one, which it begins with.
        ("peers", "many connections"),
        ("peer", "one connection"),
        ("work", "handlers of applications"),
        ("time", "deadlines of connections"),
        ("resolve", "names of seeds"),
        ("roster", "state directory"),
        ("http", "this page and metrics"),
        ("admin", "admin socket"),
    ];
    let known = roles.iter().find(|(start, _)| name.starts_with(start));
    known.map_or("other", |(_, role)| role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_memory_descriptors_and_time() {
        assert!(open_fds().unwrap() > 2);
        assert!(resident_bytes().unwrap() > 100_000);
        assert!(cpu_time().is_some());
        assert!(started_at().unwrap() > 1e9);
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let handle = crate::thread::spawn("nd-peer-77", move || {
            let _ = stopped.recv();
        });
        // The name is set by the thread itself, a moment after it starts.
        let found = (0..1_000).any(|_| {
            std::thread::yield_now();
            let threads = threads();
            threads
                .values()
                .any(|t| t.name == "nd-peer-77" && t.role == "one connection")
        });
        assert!(found);
        drop(stop);
        handle.unwrap().join().unwrap();
    }
}
