//! How a command ends: the exit codes that scripts rely on, and errors as people read them.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::output::Paint;

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Exit {
    /// 0: it was done.
    Done,
    /// 1: it was tried and failed.
    Failed,
    /// 2: the command line makes no sense; clap uses the same.
    Usage,
    /// 3: the node that was to carry it out cannot be reached.
    Unreachable,
    /// 4: a condition did not hold in time, or nothing matched.
    Unmet,
    /// 5: bad configuration: certificates, names, addresses, permissions.
    Configuration,
    /// 128 + n: ended by this signal.
    Signal(u8),
}

impl Exit {
    /// The number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Unmet => 4,
            Self::Configuration => 5,
            Self::Signal(number) => 128_u8.saturating_add(number),
        }
    }
}

/// A command that did not do what it was asked to, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// One sentence, lower case, no full stop. Empty: there is nothing to say.
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, message)
    }

    pub(crate) fn unmet(message: impl Into<String>) -> Self {
        Self::new(Exit::Unmet, message)
    }

    pub(crate) fn configuration(message: impl Into<String>) -> Self {
        Self::new(Exit::Configuration, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As it is shown: every line that says `error:` or `hint:` with that word in its colour.
    pub(crate) fn painted(&self, paint: Paint) -> String {
        let text = self.to_string();
        let lines = text.lines().map(|line| {
            let (error, hint) = (line.strip_prefix("error:"), line.strip_prefix("hint:"));
            match (error, hint) {
                (Some(rest), _) => format!("{}{rest}\n", paint.red("error:")),
                (None, Some(rest)) => format!("{}{rest}\n", paint.yellow("hint:")),
                (None, None) => format!("{line}\n"),
            }
        });
        lines.collect()
    }

    /// Standard output could not be written. A reader that has seen enough, such as `head`, is no
    /// failure: the command then ends quietly with 0.
    pub(crate) fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::new(Exit::Done, "")
        } else {
            Self::failed(format!("cannot write the output: {error}"))
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.message.is_empty() {
            writeln!(f, "error: {}", self.message)?;
        }
        if let Some(hint) = &self.hint {
            writeln!(f, "hint: {hint}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_that_scripts_rely_on() {
        let all = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::Unreachable,
            Exit::Unmet,
            Exit::Configuration,
            Exit::Signal(2),
            Exit::Signal(15),
        ];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 4, 5, 130, 143]);
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure() {
        let failure = Failure::output(io::ErrorKind::BrokenPipe.into());
        assert_eq!(
            (failure.exit, failure.to_string().as_str()),
            (Exit::Done, "")
        );
        assert_eq!(
            Failure::output(io::ErrorKind::StorageFull.into()).exit,
            Exit::Failed
        );
    }

    #[test]
    fn the_hint_follows_the_error_on_a_line_of_its_own() {
        let failure = Failure::unreachable("cannot reach it").hint("start it");
        assert_eq!(
            failure.to_string(),
            "error: cannot reach it\nhint: start it\n"
        );
    }
}
