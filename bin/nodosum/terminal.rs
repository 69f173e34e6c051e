//! A terminal for a live view: whole screens out, single keys in, and always put back as it was.
//!
//! Raw mode and the other screen are undone when the value is dropped, and by the panic hook before
//! the message of a panic, which would otherwise be lost with the screen. Signals that end the process
//! are not taken here: the view asks [`Screen::key`] with a time limit and looks whether one came.

use std::{
    io::{self, Write as _},
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};
use signal_hook::consts::signal::{SIGHUP, SIGTERM};

use crate::exit::Failure;

/// The other screen, without the cursor; lines that are too long are cut instead of wrapped.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// How the terminal was, until it is that way again.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// A key that a view knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Character(char),
    Enter,
    Escape,
    Backspace,
    /// Ctrl-C, or a signal that asks the process to end.
    Interrupt,
}

/// The terminal while a view has it.
pub(crate) struct Screen {
    ended: Arc<AtomicBool>,
}

impl Screen {
    /// Takes the terminal of standard input and output.
    pub(crate) fn enter() -> Result<Self, Failure> {
        let failed =
            |error: io::Error| Failure::failed(format!("cannot use the terminal: {error}"));
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(failed)?;
        }
        let before = tcgetattr(io::stdin()).map_err(|error| failed(error.into()))?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock() = Some(before);
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
        }));
        let screen = Self { ended };
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)
            .map_err(|error| failed(error.into()))?;
        write(ENTER).map_err(failed)?;
        Ok(screen)
    }

    /// Columns and rows. A terminal that does not say has the classic size.
    pub(crate) fn size() -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (size.ws_col.into(), size.ws_row.into())
            }
            Ok(_) | Err(_) => (80, 24),
        }
    }

    /// Shows these lines, and nothing else. Drawn over what was there, so that nothing flickers.
    pub(crate) fn draw(&self, lines: &[String]) -> Result<(), Failure> {
        let (_, rows) = Self::size();
        let mut frame = String::from("\x1b[H");
        for (at, line) in lines.iter().take(rows).enumerate() {
            if at > 0 {
                frame.push_str("\r\n");
            }
            frame.push_str(line);
            frame.push_str("\x1b[0m\x1b[K");
        }
        frame.push_str("\x1b[J");
        write(&frame).map_err(Failure::output)
    }

    /// The next key, if one is hit in time.
    pub(crate) fn key(&self, patience: Duration) -> Result<Option<Key>, Failure> {
        let limit = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let stdin = io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            // A changed window size is a reason to draw again, which `None` leads to.
            Ok(0) | Err(Errno::INTR) => Ok(self.ended.load(Relaxed).then_some(Key::Interrupt)),
            Ok(_) => Ok(read_key()),
            Err(error) => Err(Failure::failed(format!("cannot read keys: {error}"))),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().take();
    if let Some(before) = before {
        // Nothing more can be done about a terminal that is gone.
        let _ = write(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &before);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// What one read gives is one key: sequences such as those of arrows come in one piece.
fn read_key() -> Option<Key> {
    let mut bytes = [0; 64];
    match rustix::io::read(io::stdin(), &mut bytes) {
        // The terminal is gone.
        Ok(0) => Some(Key::Interrupt),
        Ok(length) => key(&bytes[..length]),
        Err(Errno::INTR | Errno::AGAIN) => None,
        Err(_) => Some(Key::Interrupt),
    }
}

fn key(bytes: &[u8]) -> Option<Key> {
    match bytes {
        [3, ..] => Some(Key::Interrupt),
        [27] => Some(Key::Escape),
        // Arrows, function keys, pasted sequences.
        [27, ..] => None,
        [b'\r' | b'\n', ..] => Some(Key::Enter),
        [8 | 127, ..] => Some(Key::Backspace),
        bytes => {
            let text = std::str::from_utf8(bytes).ok()?;
            let first = text.chars().next()?;
            (!first.is_control()).then_some(Key::Character(first))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_and_sequences_are_no_keys() {
        assert_eq!(key(b"q"), Some(Key::Character('q')));
        assert_eq!(key("ä".as_bytes()), Some(Key::Character('ä')));
        assert_eq!(key(b"\r"), Some(Key::Enter));
        assert_eq!(key(b"\x7f"), Some(Key::Backspace));
        assert_eq!(key(b"\x03"), Some(Key::Interrupt));
        assert_eq!(key(b"\x1b"), Some(Key::Escape));
        assert_eq!(key(b"\x1b[A"), None);
        assert_eq!(key(b"\xff"), None);
        assert_eq!(key(b"\x01"), None);
    }
}
