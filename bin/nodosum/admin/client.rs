//! The commands' end of the admin socket.

use std::{
    io::{BufReader, ErrorKind, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use super::{
    protocol::{
        Command, Envelope, MAX_REPLY_LINE, ReadError, Reply, VERSION, read_json, read_payload,
    },
    socket,
};
use crate::{args::Admin, exit::Failure};

/// How long a node may take for an answer beyond the time-out that the command itself has.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that has asked its one question.
pub(crate) struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Sends a command, with its payload, to the node.
    ///
    /// `timeout` is that of the command itself; `None` waits for as long as the node lives.
    pub(crate) fn ask(
        admin: &Admin,
        command: Command,
        payload: &[u8],
        timeout: Option<Duration>,
    ) -> Result<Self, Failure> {
        let asked = admin
            .path
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty());
        let stream = match asked {
            Some(path) => socket::connect(path)?,
            None => socket::connect_only()?,
        };
        let mut line = serde_json::to_vec(&Envelope {
            version: VERSION,
            command,
        })
        .map_err(|error| Failure::failed(format!("cannot write the request: {error}")))?;
        line.push(b'\n');
        stream
            .set_write_timeout(Some(PATIENCE))
            .map_err(|error| lost(error.into()))?;
        stream
            .set_read_timeout(timeout.map(|timeout| timeout + PATIENCE))
            .map_err(|error| lost(error.into()))?;
        let sent = (&stream)
            .write_all(&line)
            .and_then(|()| (&stream).write_all(payload));
        match sent {
            // A node that refuses at once closes its end, and says why in what can still be read.
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(lost(error.into())),
        }
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// The next line of the answer; an error that the node reports becomes the command's own.
    pub(crate) fn reply(&mut self) -> Result<Reply, Failure> {
        match read_json(&mut self.reader, MAX_REPLY_LINE).map_err(lost)? {
            Reply::Error {
                exit,
                message,
                hint,
            } => Err(Failure {
                exit,
                message,
                hint,
            }),
            reply => Ok(reply),
        }
    }

    /// The bytes that an answer announced.
    pub(crate) fn payload(&mut self, length: u64) -> Result<Vec<u8>, Failure> {
        read_payload(&mut self.reader, length).map_err(lost)
    }
}

/// Asks and takes the one line of the answer.
pub(crate) fn call(
    admin: &Admin,
    command: Command,
    payload: &[u8],
    timeout: Duration,
) -> Result<Reply, Failure> {
    Client::ask(admin, command, payload, Some(timeout))?.reply()
}

/// The answer does not belong to the question: a node of another make.
pub(crate) fn unexpected() -> Failure {
    Failure::failed("the node gave an answer that does not belong to the question")
}

fn lost(error: ReadError) -> Failure {
    match error {
        ReadError::Malformed(error) => {
            Failure::failed(format!("the node's answer is not understood: {error}"))
        }
        ReadError::TooLong(longest) => {
            Failure::failed(format!("the node's answer has more than {longest} bytes"))
        }
        ReadError::Closed => Failure::unreachable("the node ended before it answered"),
        ReadError::Io(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
        {
            Failure::unreachable("the node did not answer in time")
        }
        ReadError::Io(error) => Failure::unreachable(format!("lost the node: {error}")),
    }
}
