//! Requests on a stream: four bytes of length, eight of id, the payload. The same for every
//! candidate whose stream carries bytes, in both directions.

use std::{
    io,
    time::{Duration, Instant},
};

const LENGTH_BYTES: usize = 4;
const ID_BYTES: usize = 8;

/// The client's half: what it has asked, and whether a reply is right.
pub(crate) struct Requests {
    payload: Vec<u8>,
    next: u64,
    /// By id, modulo how many may be outstanding.
    sent_at: Vec<Option<Instant>>,
}

impl Requests {
    pub(crate) fn new(payload_bytes: usize, outstanding: usize) -> Self {
        Self {
            payload: payload(payload_bytes),
            next: 0,
            sent_at: vec![None; outstanding],
        }
    }

    /// Appends the next request.
    pub(crate) fn put(&mut self, out: &mut Vec<u8>, now: Instant) {
        let length = (ID_BYTES + self.payload.len()) as u32;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.next.to_be_bytes());
        out.extend_from_slice(&self.payload);
        let place = self.place(self.next);
        self.sent_at[place] = Some(now);
        self.next += 1;
    }

    /// Takes a reply, which is the request itself.
    pub(crate) fn take(&mut self, frame: &[u8], now: Instant) -> io::Result<Duration> {
        let wrong = || io::Error::other("a reply that was not asked for, or not what was asked");
        let (head, payload) = frame
            .split_at_checked(LENGTH_BYTES + ID_BYTES)
            .ok_or_else(wrong)?;
        let id = u64::from_be_bytes(head[LENGTH_BYTES..].try_into().map_err(|_| wrong())?);
        let place = self.place(id);
        let sent_at = self.sent_at[place].take().ok_or_else(wrong)?;
        if payload != self.payload || id >= self.next {
            return Err(wrong());
        }
        Ok(now.saturating_duration_since(sent_at))
    }

    /// Forgets what is outstanding, where it may be lost; returns how much that was.
    pub(crate) fn forget(&mut self) -> usize {
        let lost = self.sent_at.iter().flatten().count();
        self.sent_at.fill(None);
        lost
    }

    fn place(&self, id: u64) -> usize {
        (id % self.sent_at.len() as u64) as usize
    }
}

/// Bytes that no two requests' ids can be taken for.
pub(crate) fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 37 + 11) as u8).collect()
}

/// The length of the whole frame at the beginning of `bytes`, if it is whole.
pub(crate) fn whole(bytes: &[u8]) -> Option<usize> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = u32::from_be_bytes(*length) as usize;
    (rest.len() >= length).then_some(LENGTH_BYTES + length)
}

/// How many of `bytes` are whole frames.
pub(crate) fn whole_frames(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(length) = whole(&bytes[at..]) {
        at += length;
    }
    at
}

/// What has been received and not yet been taken.
pub(crate) struct Received {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl Received {
    /// Room for many requests of the largest size.
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; 16 << 10],
            from: 0,
            to: 0,
        }
    }

    /// Where the next bytes go. Never empty: what waits here is less than one frame.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.from > 0 {
            self.bytes.copy_within(self.from..self.to, 0);
            self.to -= self.from;
            self.from = 0;
        }
        &mut self.bytes[self.to..]
    }

    pub(crate) fn filled(&mut self, bytes: usize) {
        self.to += bytes;
    }

    /// All whole frames, to be sent back as they are.
    pub(crate) fn take_frames(&mut self) -> &[u8] {
        let from = self.from;
        self.from += whole_frames(&self.bytes[from..self.to]);
        &self.bytes[from..self.from]
    }

    /// The next whole frame.
    pub(crate) fn take_frame(&mut self) -> Option<&[u8]> {
        let from = self.from;
        self.from += whole(&self.bytes[from..self.to])?;
        Some(&self.bytes[from..self.from])
    }
}
