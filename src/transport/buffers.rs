//! Room for what is received and sent at once, shared by all connections of the process.
//!
//! A batch needs 64 KiB, a connection that is idle needs nothing: so whoever is about to read or
//! write a socket takes a buffer and gives it back when the turn is over. There are never more in
//! use than threads at work, and never more kept than [`MAX_KEPT`].

use parking_lot::Mutex;

use super::udp::RECEIVE_BYTES;

/// Buffers kept for the next turn. More threads at work than this are more than the machine has
/// processors, and then an allocation is the least of their delays.
const MAX_KEPT: usize = 64;

static KEPT: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A buffer of [`RECEIVE_BYTES`], given back when dropped.
#[derive(Debug)]
pub(super) struct Buffer(Box<[u8]>);

/// Takes a buffer. What is in it is of no meaning.
pub(super) fn take() -> Buffer {
    let kept = KEPT.lock().pop();
    Buffer(kept.unwrap_or_else(|| vec![0; RECEIVE_BYTES].into_boxed_slice()))
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        let mut kept = KEPT.lock();
        if kept.len() < MAX_KEPT {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_no_more_are_kept_than_the_limit() {
        let taken: Vec<Buffer> = (0..2 * MAX_KEPT).map(|_| take()).collect();
        assert!(taken.iter().all(|buffer| buffer.len() == RECEIVE_BYTES));
        drop(taken);
        assert!(KEPT.lock().len() <= MAX_KEPT);
    }
}
