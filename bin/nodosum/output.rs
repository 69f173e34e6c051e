//! What commands print: tables for people, JSON and TSV for programs.
//!
//! A command describes its rows once, as columns with two faces: a text for people (`0.4 ms`) and
//! a raw value in base units for programs (`0.0004`). The format decides which one is shown. JSON
//! comes from the same row types, whose field names are the public keys.
//!
//! Everything that a peer could have chosen passes through [`clean`] before it reaches a terminal.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    sync::OnceLock,
    time::Duration,
};

use serde::Serialize;

use crate::exit::Failure;

/// Output formats of the read commands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people
    #[default]
    Table,
    /// The same with more columns
    Wide,
    /// One object
    Json,
    /// One object for each row
    Jsonl,
    /// Tab-separated, base units
    Tsv,
    /// Names only
    Name,
}

/// One column of a table.
pub(crate) struct Column<T> {
    pub(crate) title: &'static str,
    /// Its name in TSV; as in JSON.
    pub(crate) key: &'static str,
    /// Shown by `-o wide` and TSV only.
    pub(crate) wide: bool,
    pub(crate) right: bool,
    pub(crate) text: fn(&T) -> String,
    pub(crate) raw: fn(&T) -> String,
}

impl<T> Column<T> {
    /// A column whose raw value is its text.
    pub(crate) const fn text(
        title: &'static str,
        key: &'static str,
        text: fn(&T) -> String,
    ) -> Self {
        Self {
            title,
            key,
            wide: false,
            right: false,
            text,
            raw: text,
        }
    }

    /// A column that reads differently for people and programs; numbers stand right.
    pub(crate) const fn number(
        title: &'static str,
        key: &'static str,
        text: fn(&T) -> String,
        raw: fn(&T) -> String,
    ) -> Self {
        Self {
            title,
            key,
            wide: false,
            right: true,
            text,
            raw,
        }
    }
}

/// The same column, shown by the wide formats only.
pub(crate) const fn wide<T>(mut column: Column<T>) -> Column<T> {
    column.wide = true;
    column
}

/// How rows are to be printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    pub(crate) header: bool,
}

/// A row as an object of its own.
#[derive(Serialize)]
struct JsonLine<'a, T> {
    schema: u32,
    #[serde(flatten)]
    row: &'a T,
}

/// Renders rows in the asked-for format. `whole` is the object of `-o json`.
pub(crate) fn render<T: Serialize>(
    layout: Layout,
    columns: &[Column<T>],
    rows: &[T],
    name: fn(&T) -> String,
    whole: &impl Serialize,
) -> Result<String, Failure> {
    Ok(match layout.format {
        Format::Table => table(columns, rows, layout, Paint::stdout()),
        Format::Wide => table(columns, rows, layout, Paint::stdout()),
        Format::Tsv => tsv(columns, rows, layout.header),
        Format::Name => rows.iter().map(|row| clean(&name(row)) + "\n").collect(),
        Format::Json => json_line(whole)?,
        Format::Jsonl => {
            let mut lines = String::new();
            for row in rows {
                lines.push_str(&json_line(&JsonLine { schema: 1, row })?);
            }
            lines
        }
    })
}

/// One object on one line.
pub(crate) fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    let mut line = serde_json::to_string(value)
        .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
    line.push('\n');
    Ok(line)
}

fn table<T>(columns: &[Column<T>], rows: &[T], layout: Layout, paint: Paint) -> String {
    let header = layout.header;
    let wide = matches!(layout.format, Format::Wide);
    let columns: Vec<_> = columns
        .iter()
        .filter(|column| wide || !column.wide)
        .collect();
    let mut lines = Vec::new();
    if header {
        lines.push(
            columns
                .iter()
                .map(|column| column.title.to_owned())
                .collect::<Vec<_>>(),
        );
    }
    lines.extend(rows.iter().map(|row| {
        columns
            .iter()
            .map(|column| clean(&(column.text)(row)))
            .collect()
    }));
    let width = |index: usize| lines.iter().map(|line| line[index].chars().count()).max();
    let widths: Vec<_> = (0..columns.len())
        .map(|index| width(index).unwrap_or(0))
        .collect();
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        for ((cell, column), width) in line.iter().zip(&columns).zip(&widths) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            let (before, after) = if column.right {
                (pad, String::new())
            } else {
                (String::new(), pad)
            };
            // States have a colour beside their word; what a peer chose never does.
            let cell = if matches!(column.title, "STATUS" | "STATE" | "CONN") {
                paint.state(cell)
            } else {
                cell.clone()
            };
            let _ = write!(text, "{before}{cell}{after}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

fn tsv<T>(columns: &[Column<T>], rows: &[T], header: bool) -> String {
    let mut out = String::new();
    let mut line = |cells: Vec<String>| {
        out.push_str(&cells.join("\t"));
        out.push('\n');
    };
    if header {
        line(columns.iter().map(|column| column.key.to_owned()).collect());
    }
    for row in rows {
        line(
            columns
                .iter()
                .map(|column| clean(&(column.raw)(row)))
                .collect(),
        );
    }
    out
}

/// Makes a string harmless for a terminal: control characters, which move the cursor or break
/// columns, and the invisible characters that reorder text are written as `\u{…}`.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_treacherous(c) {
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, line and paragraph separators, and the bidirectional and zero-width
/// formatting characters (Unicode UAX #9 §2 and the "Trojan Source" list).
fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A duration for people, with about three digits: `0.41 ms`, `3.2 s`, `2m 05s`, `5d 3h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0 if duration < Duration::from_millis(10) => {
            format!("{:.2} ms", duration.as_secs_f64() * 1e3)
        }
        0 if duration < Duration::from_micros(999_500) => {
            format!("{:.0} ms", duration.as_secs_f64() * 1e3)
        }
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3_600 => format!("{minutes}m {:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h {minutes:02}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Seconds from a view, for people; `-` when there are none.
pub(crate) fn seconds(seconds: Option<f64>) -> String {
    let known = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    known.map_or_else(|| "-".to_owned(), duration)
}

/// An optional value for programs; empty when there is none.
pub(crate) fn raw<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// Bytes for people: `812 B`, `1.4 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    // A table is read by people: the precision that f64 loses above 2^53 is not shown anyway.
    let mut value = bytes as f64 / 1_024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1_024.0 {
            break;
        }
        value /= 1_024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// Writes to standard output at once.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to standard output at once.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(Failure::output)
}

/// Writes a note for people to standard error. Nobody reading it is no reason to fail.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether standard output is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// What `--color` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Colour {
    /// As the environment and the terminal suggest
    #[default]
    Auto,
    Always,
    Never,
}

static COLOUR: OnceLock<Colour> = OnceLock::new();

/// Makes `--color` hold for everything that is printed from now on. The first call counts.
pub(crate) fn set_colour(colour: Colour) {
    let _ = COLOUR.set(colour);
}

/// Whether a stream gets colours: by `--color`, then `NO_COLOR`, then `CLICOLOR_FORCE`, then
/// `TERM=dumb`, then whether it is a terminal.
pub(crate) fn colours(terminal: bool) -> bool {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    match COLOUR.get().copied().unwrap_or_default() {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => wants_colour(variable, terminal),
    }
}

/// Colours for one stream, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    colour: bool,
}

impl Paint {
    pub(crate) fn stdout() -> Self {
        Self {
            colour: colours(is_terminal()),
        }
    }

    pub(crate) fn stderr() -> Self {
        Self {
            colour: colours(io::stderr().is_terminal()),
        }
    }

    pub(crate) fn none() -> Self {
        Self { colour: false }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.wrap("1;32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// A word that says how something is, in the colour that it has everywhere.
    pub(crate) fn state(self, word: &str) -> String {
        let code = match word.trim() {
            "alive" | "established" | "up" | "ok" => "32",
            "suspect" | "handshaking" | "draining" | "warn" => "33",
            "dead" | "down" | "fail" => "1;31",
            "left" => "2",
            _ => return word.to_owned(),
        };
        self.wrap(code, word)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn wants_colour(
    variable: impl Fn(&'static str) -> Option<std::ffi::OsString>,
    terminal: bool,
) -> bool {
    if variable("NO_COLOR").is_some() {
        return false;
    }
    if variable("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    terminal && variable("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pet {
        name: String,
        age_seconds: f64,
    }

    const COLUMNS: [Column<Pet>; 2] = [
        Column::text("NAME", "name", |pet| pet.name.clone()),
        Column::number(
            "AGE",
            "age_seconds",
            |pet| seconds(Some(pet.age_seconds)),
            |pet| pet.age_seconds.to_string(),
        ),
    ];

    fn rendered(format: Format, header: bool) -> String {
        let pets = [
            Pet {
                name: "a".into(),
                age_seconds: 0.000_41,
            },
            Pet {
                name: "long\t\x1b[2J".into(),
                age_seconds: 90.0,
            },
        ];
        render(
            Layout { format, header },
            &COLUMNS,
            &pets,
            |pet| pet.name.clone(),
            &"whole",
        )
        .unwrap()
    }

    #[test]
    fn a_table_aligns_and_escapes_its_cells() {
        let expected = "NAME                    AGE\n\
                        a                   0.41 ms\n\
                        long\\u{9}\\u{1b}[2J   1m 30s\n";
        assert_eq!(rendered(Format::Table, true), expected);
        assert_eq!(rendered(Format::Table, false).lines().count(), 2);
    }

    #[test]
    fn programs_get_base_units_and_the_keys_of_json() {
        assert_eq!(
            rendered(Format::Tsv, true),
            "name\tage_seconds\na\t0.00041\nlong\\u{9}\\u{1b}[2J\t90\n"
        );
        assert!(
            rendered(Format::Jsonl, true).starts_with(
                "{\"schema\":1,\"name\":\"a\",\"age_seconds\":0.00041}\n{\"schema\":1,"
            )
        );
        assert_eq!(rendered(Format::Json, true), "\"whole\"\n");
        assert_eq!(rendered(Format::Name, true), "a\nlong\\u{9}\\u{1b}[2J\n");
    }

    #[test]
    fn text_that_reorders_or_hides_itself_is_spelled_out() {
        assert_eq!(clean("päß ✓"), "päß ✓");
        assert_eq!(
            clean("\u{202e}live\u{2066}\u{200b}\u{feff}"),
            "\\u{202e}live\\u{2066}\\u{200b}\\u{feff}"
        );
        assert_eq!(clean("a\r\n\u{9b}"), "a\\u{d}\\u{a}\\u{9b}");
    }

    #[test]
    fn durations_and_bytes_read_naturally() {
        let texts = [0.000_41, 0.25, 0.999_9, 3.21, 125.0, 7_500.0, 300_000.0]
            .map(|seconds| duration(Duration::from_secs_f64(seconds)));
        assert_eq!(
            texts,
            [
                "0.41 ms", "250 ms", "1.0 s", "3.2 s", "2m 05s", "2h 05m", "3d 11h"
            ]
        );
        assert_eq!(
            [0, 1_023, 1_536, 5 << 40].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]
        );
    }

    #[test]
    fn colour_follows_the_usual_variables_in_their_order() {
        let wants = |set: &[(&str, &str)], terminal| {
            wants_colour(
                |name| {
                    set.iter()
                        .find(|(key, _)| *key == name)
                        .map(|(_, value)| value.into())
                },
                terminal,
            )
        };
        assert!(wants(&[], true));
        assert!(!wants(&[], false));
        assert!(!wants(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], true));
        assert!(wants(&[("CLICOLOR_FORCE", "1")], false));
        assert!(!wants(&[("TERM", "dumb")], true));
    }
}
