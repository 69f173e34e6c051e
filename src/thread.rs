//! The one place where threads start.

use std::{io, thread};

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

/// What a panic said, for a log line or an error.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
