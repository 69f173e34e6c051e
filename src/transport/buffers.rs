//! Room for what is received and sent at once, shared by all connections of the process.
//!
//! A batch needs 64 KiB, a connection that is idle needs nothing: so whoever is about to read or
//! write a socket takes a buffer and gives it back when the turn is over; there are never more of
//! those in use than threads at work. Large pieces of what waits to be sent are in buffers as well,
//! within the limits of the outbox, until the peer has acknowledged them: an allocator gives so much
//! back to the system and gets it again, page by page. Never more than [`MAX_KEPT`] are kept.

use bytes::Bytes;
use parking_lot::Mutex;

use super::udp::RECEIVE_BYTES;

/// Buffers kept for the next time, 4 MiB: what one busy stream has under way by default, and more
/// threads at work than most machines have processors.
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

/// A copy of `bytes` that is kept until nobody refers to it any more: in a buffer, if they nearly fill
/// one, so that what is held is not much more than what is counted.
pub(super) fn copy_of(bytes: &[u8]) -> Bytes {
    if bytes.len() < RECEIVE_BYTES / 8 * 7 || bytes.len() > RECEIVE_BYTES {
        return Bytes::copy_from_slice(bytes);
    }
    let mut buffer = take();
    buffer[..bytes.len()].copy_from_slice(bytes);
    let length = bytes.len();
    Bytes::from_owner(Filled { buffer, length })
}

/// A buffer of which the front is in use.
struct Filled {
    buffer: Buffer,
    length: usize,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
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

    #[test]
    fn a_copy_has_all_bytes_whatever_their_number() {
        for length in [0, 1, RECEIVE_BYTES - 1, RECEIVE_BYTES, RECEIVE_BYTES + 1] {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let copies = [copy_of(&bytes), copy_of(&bytes)];
            assert!(copies.iter().all(|copy| *copy == bytes), "{length}");
        }
    }
}
