//! Words and figures for people, and making what others have written harmless in a page.
//!
//! Whatever came from a peer (names, tags, reasons, versions, what applications say) is shown through
//! [`Safe`]: the characters of HTML as entities, and characters that move a cursor, hide or reorder text
//! as `\u{…}`, so that a reader sees what is really there.

use std::{
    fmt::{self, Display, Write as _},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

/// Shows a text as text, wherever in an HTML page, also within a quoted attribute.
pub(crate) struct Safe<T>(pub(crate) T);

impl<T: Display> Display for Safe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.write_str("&amp;")?,
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                c if is_treacherous(c) => write!(self.0, "{}", c.escape_unicode())?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Control characters, line and paragraph separators, and the bidirectional and zero-width formatting
/// characters (Unicode UAX #9 §2 and the "Trojan Source" list).
fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The time of day in UTC, to the second.
pub(crate) fn clock(at: SystemTime) -> String {
    let at = Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH);
    at.strftime("%H:%M:%S").to_string()
}

/// A duration with about three digits: `410 µs`, `3.2 s`, `2m 05s`, `5d 3h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0 if duration < Duration::from_micros(1_000) => format!("{} µs", duration.as_micros()),
        0 if duration < Duration::from_millis(10) => {
            format!("{:.1} ms", duration.as_secs_f64() * 1e3)
        }
        0 if duration < Duration::from_micros(999_500) => {
            format!("{:.0} ms", duration.as_secs_f64() * 1e3)
        }
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes}m {:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h {minutes:02}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A duration that may be unknown.
pub(crate) fn maybe(known: Option<Duration>) -> String {
    known.map_or_else(|| "–".to_owned(), duration)
}

/// Bytes: `812 B`, `1.4 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64 / 1_024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1_024.0 {
            break;
        }
        value /= 1_024.0;
        unit = next;
    }
    if value < 99.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// A count with its digits in groups: `1 234 567`, with narrow spaces.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 * 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// One or many: `1 dial`, `7 dials`.
pub(crate) fn plural(number: u64, one: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{} {one}s", count(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_treacherous_characters_are_shown_as_text() {
        let hostile =
            "<script>alert('x')</script>\"><img onerror=1> a&b \u{202e}evil\u{1b}[2J\n\u{200b}é";
        assert_eq!(
            Safe(hostile).to_string(),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&gt;&lt;img onerror=1&gt; a&amp;b \
             \\u{202e}evil\\u{1b}[2J\\u{a}\\u{200b}é"
        );
    }

    #[test]
    fn figures_read_naturally() {
        let shown = [
            0.000_41, 0.003_21, 0.25, 0.999_9, 3.21, 42.0, 125.0, 7_500.0, 300_000.0,
        ]
        .map(|seconds| duration(Duration::from_secs_f64(seconds)));
        assert_eq!(
            shown,
            [
                "410 µs", "3.2 ms", "250 ms", "1.0 s", "3.2 s", "42 s", "2m 05s", "2h 05m",
                "3d 11h"
            ]
        );
        assert_eq!(
            [0, 1_023, 1_536, 300 << 10, 5 << 40].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "300 KiB", "5.0 TiB"]
        );
        assert_eq!(
            [7, 1_234, 1_234_567].map(count),
            ["7", "1\u{202f}234", "1\u{202f}234\u{202f}567"]
        );
        assert_eq!(
            [0, 1, 2].map(|n| plural(n, "dial")),
            ["0 dials", "1 dial", "2 dials"]
        );
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(86_399_500);
        assert_eq!(crate::views::rfc3339(at), "1970-01-01T23:59:59.500000Z");
        assert_eq!(clock(at), "23:59:59");
    }
}
