//! How messages lie on a QUIC stream. Pure: bytes in, bytes out.
//!
//! A stream opens with a preamble that says what it carries:
//!
//! ```text
//! kind: u8      1 control · 2 messages · 3 requests · 4 replies · 5 raw · 6 sync
//!               7 one large request · 8 one large reply
//! name: u8 len, len bytes    the application; absent for 1 and 6
//! ```
//!
//! Then frames follow, each at most 64 KiB of body:
//!
//! ```text
//! flags: u8     bit 0: more frames of the same unit follow; the others are 0
//! length: u24   of the body, big endian
//! body
//! ```
//!
//! A unit (one message, request, reply, control or sync frame) is the bodies of its frames put
//! together. Units of one stream never interleave; a large one is followed by the next. Streams of
//! kinds 7 and 8 have one unit and end with it, so that it holds no other up. The unit of
//! a request starts with `id: u64, timeout_ms: u32`, that of a reply with `id: u64, status: u8`.
//! Memory for a unit grows with the bytes that arrive, never with what they announce.

use std::borrow::Cow;

/// The largest body of one frame.
pub const MAX_FRAME_BYTES: usize = 64 * 1_024;

/// The longest application name.
pub const MAX_NAME_BYTES: usize = 64;

const HEADER_BYTES: usize = 4;
const MORE: u8 = 1;

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamKind {
    /// The node's own conversation.
    Control,
    /// One-way messages of an application.
    Messages,
    /// Requests of an application.
    Requests,
    /// Replies to an application's requests.
    Replies,
    /// Bytes of an application, unframed.
    Raw,
    /// An exchange of membership.
    Sync,
    /// One request of an application, and the end.
    LargeRequest,
    /// One reply to an application's request, and the end.
    LargeReply,
}

impl StreamKind {
    fn to_wire(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Messages => 2,
            Self::Requests => 3,
            Self::Replies => 4,
            Self::Raw => 5,
            Self::Sync => 6,
            Self::LargeRequest => 7,
            Self::LargeReply => 8,
        }
    }

    fn from_wire(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Control,
            2 => Self::Messages,
            3 => Self::Requests,
            4 => Self::Replies,
            5 => Self::Raw,
            6 => Self::Sync,
            7 => Self::LargeRequest,
            8 => Self::LargeReply,
            _ => return None,
        })
    }

    fn has_name(self) -> bool {
        match self {
            Self::Control | Self::Sync => false,
            Self::Messages | Self::Requests | Self::Replies | Self::Raw => true,
            Self::LargeRequest | Self::LargeReply => true,
        }
    }

    /// Whether its stream carries one unit and ends with it.
    pub fn is_single(self) -> bool {
        matches!(self, Self::LargeRequest | Self::LargeReply)
    }
}

/// What a stream says of itself in its first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preamble {
    /// What it carries.
    pub kind: StreamKind,
    /// Of which application; empty for control and sync.
    pub app: String,
}

impl Preamble {
    /// The preamble's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind.to_wire()];
        if self.kind.has_name() {
            debug_assert!((1..=MAX_NAME_BYTES).contains(&self.app.len()));
            bytes.push(self.app.len() as u8);
            bytes.extend_from_slice(self.app.as_bytes());
        }
        bytes
    }
}

/// Why a stream is not what this protocol speaks. The connection is closed with `Protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// The preamble names an unknown kind or a malformed application.
    #[error("stream preamble is malformed")]
    Preamble,
    /// Reserved bits are set.
    #[error("frame has reserved bits set")]
    Reserved,
    /// A frame or a unit is larger than it may be.
    #[error("frame or message is larger than allowed")]
    TooLarge,
    /// An empty frame that announces more: it would cost and never end.
    #[error("empty frame inside a message")]
    Empty,
    /// A request or reply too short for its header.
    #[error("request or reply without header")]
    Short,
}

/// Whether `name` is an application name: 1 to 64 of letters, digits, `.`, `_` and `-`.
pub fn is_app_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Cuts a unit, given in parts, into frames and hands each to `push`.
pub fn encode_unit(head: &[u8], payload: &[u8], mut push: impl FnMut(Vec<u8>)) {
    let total = head.len() + payload.len();
    let mut at = 0;
    loop {
        let body = (total - at).min(MAX_FRAME_BYTES);
        let more = at + body < total;
        let mut frame = Vec::with_capacity(HEADER_BYTES + body);
        frame.push(if more { MORE } else { 0 });
        frame.extend_from_slice(&(body as u32).to_be_bytes()[1..]);
        let from_head = head.len().saturating_sub(at).min(body);
        if from_head > 0 {
            frame.extend_from_slice(&head[at..at + from_head]);
        }
        let start = (at + from_head).saturating_sub(head.len());
        frame.extend_from_slice(&payload[start..start + body - from_head]);
        push(frame);
        at += body;
        if !more {
            return;
        }
    }
}

/// Appends a unit that fits one frame, given in parts.
pub fn append_unit(head: &[u8], payload: &[u8], out: &mut Vec<u8>) {
    let body = head.len() + payload.len();
    debug_assert!(body <= MAX_FRAME_BYTES);
    out.push(0);
    out.extend_from_slice(&(body as u32).to_be_bytes()[1..]);
    out.extend_from_slice(head);
    out.extend_from_slice(payload);
}

/// Reads the preamble and then units from the bytes of one stream, in whatever pieces they come.
#[derive(Debug)]
pub struct Decoder {
    max_unit_bytes: usize,
    preamble: Vec<u8>,
    header: Vec<u8>,
    /// Body bytes of the current frame still to come, and whether more frames follow it.
    current: Option<(usize, bool)>,
    unit: Vec<u8>,
}

impl Decoder {
    /// A decoder for one stream. `max_unit_bytes` bounds what one unit may grow to.
    pub fn new(max_unit_bytes: usize) -> Self {
        Self {
            max_unit_bytes,
            preamble: Vec::new(),
            header: Vec::new(),
            current: None,
            unit: Vec::new(),
        }
    }

    /// Changes the bound on units, once the preamble told what the stream carries.
    pub fn set_max_unit_bytes(&mut self, max_unit_bytes: usize) {
        self.max_unit_bytes = max_unit_bytes;
    }

    /// Takes bytes of the preamble off the front of `input`; `Some` when it is complete.
    ///
    /// # Errors
    ///
    /// [`FramingError::Preamble`] for an unknown kind or a malformed name.
    pub fn preamble(&mut self, input: &mut &[u8]) -> Result<Option<Preamble>, FramingError> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.preamble.push(byte);
            let kind = StreamKind::from_wire(self.preamble[0]).ok_or(FramingError::Preamble)?;
            if !kind.has_name() {
                return Ok(Some(Preamble {
                    kind,
                    app: String::new(),
                }));
            }
            let Some(&len) = self.preamble.get(1) else {
                continue;
            };
            if len == 0 || usize::from(len) > MAX_NAME_BYTES {
                return Err(FramingError::Preamble);
            }
            if self.preamble.len() == 2 + usize::from(len) {
                let app = std::str::from_utf8(&self.preamble[2..])
                    .ok()
                    .filter(|app| is_app_name(app))
                    .ok_or(FramingError::Preamble)?;
                return Ok(Some(Preamble {
                    kind,
                    app: app.to_owned(),
                }));
            }
        }
        Ok(None)
    }

    /// Takes bytes off the front of `input` up to the end of one unit and returns it; `None` when
    /// the input ends first. A unit that lies in the input in one piece is not copied.
    ///
    /// # Errors
    ///
    /// [`FramingError`] when the bytes break the format or a limit.
    pub fn unit<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Cow<'a, [u8]>>, FramingError> {
        loop {
            let Some((left, more)) = self.current else {
                if self.header.is_empty()
                    && let Some((header, rest)) = input.split_first_chunk()
                {
                    self.current = Some(self.frame_header(*header)?);
                    *input = rest;
                } else if let Some((&byte, rest)) = input.split_first() {
                    *input = rest;
                    self.header.push(byte);
                    if let Ok(header) = <[u8; HEADER_BYTES]>::try_from(&*self.header) {
                        self.current = Some(self.frame_header(header)?);
                        self.header.clear();
                    }
                } else {
                    return Ok(None);
                }
                continue;
            };
            let take = left.min(input.len());
            let (body, rest) = input.split_at(take);
            *input = rest;
            let is_whole = take == left && !more;
            if is_whole && self.unit.is_empty() {
                self.current = None;
                return Ok(Some(Cow::Borrowed(body)));
            }
            self.unit.extend_from_slice(body);
            if take < left {
                self.current = Some((left - take, more));
                return Ok(None);
            }
            self.current = None;
            if is_whole {
                return Ok(Some(Cow::Owned(std::mem::take(&mut self.unit))));
            }
        }
    }

    fn frame_header(&self, header: [u8; HEADER_BYTES]) -> Result<(usize, bool), FramingError> {
        let [flags, length @ ..] = header;
        if flags & !MORE != 0 {
            return Err(FramingError::Reserved);
        }
        let more = flags & MORE != 0;
        let body = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if body > MAX_FRAME_BYTES || self.unit.len() + body > self.max_unit_bytes {
            return Err(FramingError::TooLarge);
        }
        if more && body == 0 {
            return Err(FramingError::Empty);
        }
        Ok((body, more))
    }

    /// Bytes held of the unit that is not complete.
    pub fn buffered(&self) -> usize {
        self.unit.len()
    }

    /// Whether the stream may end here: not inside a unit.
    pub fn is_at_boundary(&self) -> bool {
        self.current.is_none() && self.header.is_empty() && self.unit.is_empty()
    }
}

/// The first bytes of a request's unit.
pub const REQUEST_HEAD_BYTES: usize = 12;

/// The first bytes of a reply's unit.
pub const REPLY_HEAD_BYTES: usize = 9;

/// How a request ended at its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyStatus {
    /// The payload is the reply.
    Ok,
    /// The handler answered with an error; the payload is its message.
    Error,
    /// There is no such application, or it takes no requests.
    NoHandler,
    /// The request waited longer than its sender would.
    Expired,
}

/// The head of a request.
pub fn request_head(id: u64, timeout_ms: u32) -> [u8; REQUEST_HEAD_BYTES] {
    let mut head = [0; REQUEST_HEAD_BYTES];
    head[..8].copy_from_slice(&id.to_be_bytes());
    head[8..].copy_from_slice(&timeout_ms.to_be_bytes());
    head
}

/// The id of a request, given its unit.
pub fn request_id(unit: &[u8]) -> Option<u64> {
    let id = unit.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*id))
}

/// Splits a request's unit into id, time-out in milliseconds and payload.
///
/// # Errors
///
/// [`FramingError::Short`] when it has no complete head.
pub fn split_request(unit: Cow<'_, [u8]>) -> Result<(u64, u32, Vec<u8>), FramingError> {
    let (id, rest) = unit.split_first_chunk::<8>().ok_or(FramingError::Short)?;
    let (timeout_ms, _) = rest.split_first_chunk::<4>().ok_or(FramingError::Short)?;
    let (id, timeout_ms) = (u64::from_be_bytes(*id), u32::from_be_bytes(*timeout_ms));
    Ok((id, timeout_ms, without_head(unit, REQUEST_HEAD_BYTES)))
}

/// The head of a reply.
pub fn reply_head(id: u64, status: ReplyStatus) -> [u8; REPLY_HEAD_BYTES] {
    let mut head = [0; REPLY_HEAD_BYTES];
    head[..8].copy_from_slice(&id.to_be_bytes());
    head[8] = match status {
        ReplyStatus::Ok => 0,
        ReplyStatus::Error => 1,
        ReplyStatus::NoHandler => 2,
        ReplyStatus::Expired => 3,
    };
    head
}

/// Splits a reply's unit into id, status and payload. A status of a newer version is an error.
///
/// # Errors
///
/// [`FramingError::Short`] when it has no complete head.
pub fn split_reply(unit: Cow<'_, [u8]>) -> Result<(u64, ReplyStatus, Vec<u8>), FramingError> {
    let (id, rest) = unit.split_first_chunk::<8>().ok_or(FramingError::Short)?;
    let id = u64::from_be_bytes(*id);
    let status = match rest.first().ok_or(FramingError::Short)? {
        0 => ReplyStatus::Ok,
        2 => ReplyStatus::NoHandler,
        3 => ReplyStatus::Expired,
        _ => ReplyStatus::Error,
    };
    Ok((id, status, without_head(unit, REPLY_HEAD_BYTES)))
}

fn without_head(unit: Cow<'_, [u8]>, head_bytes: usize) -> Vec<u8> {
    match unit {
        Cow::Borrowed(unit) => unit[head_bytes..].to_vec(),
        Cow::Owned(mut unit) => {
            unit.drain(..head_bytes);
            unit
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(head: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_unit(head, payload, |frame| bytes.extend(frame));
        bytes
    }

    #[test]
    fn units_come_back_whole_however_the_bytes_are_cut() {
        let payloads = [
            vec![],
            vec![1],
            vec![2; 65_536],
            vec![3; 65_537],
            vec![4; 200_000],
        ];
        let mut stream = Vec::new();
        for payload in &payloads {
            stream.extend(frames(b"", payload));
        }
        for step in [1, 3, 4, 5, 1_000, 65_540, stream.len()] {
            let mut decoder = Decoder::new(1 << 20);
            let mut units = Vec::new();
            for piece in stream.chunks(step) {
                let mut input = piece;
                while let Some(unit) = decoder.unit(&mut input).unwrap() {
                    units.push(unit);
                }
                assert!(input.is_empty());
            }
            assert_eq!(units, payloads, "in pieces of {step}");
            assert!(decoder.is_at_boundary());
        }
    }

    #[test]
    fn a_head_and_a_payload_become_one_unit() {
        let payload = vec![9; 70_000];
        let bytes = frames(&request_head(7, 5_000), &payload);
        let unit = Decoder::new(1 << 20)
            .unit(&mut bytes.as_slice())
            .unwrap()
            .unwrap();
        assert_eq!(request_id(&unit), Some(7));
        assert_eq!(split_request(unit), Ok((7, 5_000, payload)));
        let bytes = frames(&reply_head(8, ReplyStatus::Error), b"no");
        let mut appended = vec![9];
        append_unit(&reply_head(8, ReplyStatus::Error), b"no", &mut appended);
        assert_eq!(appended[1..], bytes, "in one piece it is the same");
        let unit = Decoder::new(100)
            .unit(&mut bytes.as_slice())
            .unwrap()
            .unwrap();
        assert_eq!(
            split_reply(unit),
            Ok((8, ReplyStatus::Error, b"no".to_vec()))
        );
    }

    #[test]
    fn limits_and_reserved_bits_are_refused_before_any_body_arrives() {
        let decode = |mut bytes: &'static [u8]| Decoder::new(1_000).unit(&mut bytes);
        assert_eq!(decode(&[0, 0, 3, 233]), Err(FramingError::TooLarge));
        assert_eq!(decode(&[0, 255, 255, 255]), Err(FramingError::TooLarge));
        assert_eq!(decode(&[2, 0, 0, 1]), Err(FramingError::Reserved));
        assert_eq!(decode(&[1, 0, 0, 0]), Err(FramingError::Empty));
        assert_eq!(split_request(vec![0; 11].into()), Err(FramingError::Short));
        assert_eq!(split_reply(vec![0; 8].into()), Err(FramingError::Short));
    }

    #[test]
    fn many_small_frames_cannot_grow_a_unit_past_its_limit() {
        let mut decoder = Decoder::new(1_000);
        let frame = [1, 0, 0, 100]
            .iter()
            .copied()
            .chain([7; 100])
            .collect::<Vec<u8>>();
        let outcome = (0..11).find_map(|_| decoder.unit(&mut frame.as_slice()).err());
        assert_eq!(outcome, Some(FramingError::TooLarge));
    }

    #[test]
    fn preambles_are_read_byte_by_byte_and_refused_when_malformed() {
        for (kind, app) in [
            (StreamKind::Control, ""),
            (StreamKind::Sync, ""),
            (StreamKind::Messages, "orders"),
            (StreamKind::Replies, &"x".repeat(64)),
            (StreamKind::LargeRequest, "orders"),
            (StreamKind::LargeReply, "orders"),
        ] {
            let preamble = Preamble {
                kind,
                app: app.to_owned(),
            };
            let bytes = preamble.encode();
            let mut decoder = Decoder::new(10);
            let mut seen = None;
            for byte in &bytes {
                assert_eq!(seen, None);
                seen = decoder.preamble(&mut &[*byte][..]).unwrap();
            }
            assert_eq!(seen, Some(preamble));
        }
        for bad in [
            &[0_u8][..],
            &[9],
            &[2, 0],
            &[2, 65],
            &[2, 1, b'/'],
            &[2, 2, 0xc3, 0x28],
        ] {
            assert_eq!(
                Decoder::new(10).preamble(&mut &bad[..]),
                Err(FramingError::Preamble)
            );
        }
    }
}
