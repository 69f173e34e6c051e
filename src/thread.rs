//! The one place where threads start.

use std::{
    io, thread,
    time::{Duration, Instant},
};

/// Workers run TLS handshakes on their stack; unoptimised builds need most of this. It is address
/// space, not memory: only touched pages count.
const STACK_BYTES: usize = 512 * 1_024;

/// The handle of a thread of ours.
pub(crate) type Handle = thread::JoinHandle<()>;

/// Starts a named thread. The name has at most 15 bytes, so that Linux shows all of it.
///
/// # Errors
///
/// What the system said when it refused the thread.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<Handle> {
    debug_assert!(name.len() <= 15, "{name} would be cut");
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(body)
}

/// Waits until `deadline` for a thread whose panics are caught inside. Returns its name if it has not
/// ended by then. The caller's own thread, which cannot wait for itself, counts as ended.
#[expect(clippy::disallowed_methods, reason = "threads end by the real clock")]
pub(crate) fn join_by(handle: Handle, deadline: Instant) -> Option<String> {
    let is_here = handle.thread().id() == thread::current().id();
    while !is_here && !handle.is_finished() && Instant::now() < deadline {
        thread::park_timeout(Duration::from_millis(2));
    }
    if handle.is_finished() {
        // There is nothing to learn from the result.
        let _ = handle.join();
        return None;
    }
    let name = handle.thread().name().unwrap_or_default().to_owned();
    (!is_here).then_some(name)
}

/// What a panic said, for a log line or an error.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
