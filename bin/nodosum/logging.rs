//! The log of the process: one line on standard error for each record.
//!
//! As text: time, level, target, message, fields. As JSON: one object with `ts`, `level`,
//! `target`, `msg` and the fields. `RUST_LOG` filters. Fields may hold what a peer said, so that
//! the text form escapes what would confuse a terminal.

use std::{env, fmt::Write as _, io::Write as _};

use env_logger::Builder;
use jiff::Timestamp;
use log::{
    Record,
    kv::{Error, Key, Value, VisitSource},
};
use serde_json::Value as Json;

use crate::output::clean;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One object a line
    Json,
}

/// What is logged without `RUST_LOG`. quiche reports at INFO what belongs to one packet.
pub(crate) const DEFAULT_FILTER: &str = "info,quiche=warn";

/// Starts logging.
pub(crate) fn init(format: LogFormat, default_filter: &str) {
    let chosen = env::var("RUST_LOG")
        .ok()
        .filter(|filter| !filter.is_empty());
    let mut builder = Builder::new();
    builder.parse_filters(chosen.as_deref().unwrap_or(default_filter));
    match format {
        LogFormat::Text => builder.format(|out, record| {
            let style = out.default_level_style(record.level());
            let level = record.level();
            let line = text(Timestamp::now(), record);
            let (before, after) = line.split_at(line.find(' ').map_or(0, |at| at + 1));
            let after = after.strip_prefix(level.as_str()).unwrap_or(after);
            writeln!(out, "{before}{style}{level}{style:#}{after}")
        }),
        LogFormat::Json => {
            builder.format(|out, record| writeln!(out, "{}", json(Timestamp::now(), record)))
        }
    };
    // A second start in one process would be a mistake of ours, and the first one goes on serving.
    let _ = builder.try_init();
}

fn text(now: Timestamp, record: &Record<'_>) -> String {
    let mut line = format!(
        "{now:.3} {:5} {:9} {}",
        record.level(),
        record.target(),
        clean(&record.args().to_string())
    );
    for (key, value) in fields(record) {
        let value = match value {
            Json::String(text) if !is_plain(&text) => {
                format!("\"{}\"", clean(&text).replace('"', "\\\""))
            }
            Json::String(text) => text,
            other => other.to_string(),
        };
        let _ = write!(line, " {key}={value}");
    }
    line
}

/// Whether a field's value can stand in a line without quotes.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"')
}

fn json(now: Timestamp, record: &Record<'_>) -> String {
    let mut line = String::from("{");
    let first = [
        ("ts", format!("{now:.3}")),
        ("level", record.level().to_string()),
        ("target", record.target().to_owned()),
        ("msg", record.args().to_string()),
    ];
    let mut taken: Vec<String> = Vec::new();
    let rest = fields(record).into_iter();
    for (key, value) in first
        .map(|(key, value)| (key.to_owned(), Json::from(value)))
        .into_iter()
        .chain(rest)
    {
        // A key twice in one object would hide one of them from most readers.
        let key = if taken.contains(&key) {
            format!("field_{key}")
        } else {
            key
        };
        let comma = if taken.is_empty() { "" } else { "," };
        let _ = write!(line, "{comma}{}:{value}", Json::from(key.as_str()));
        taken.push(key);
    }
    line.push('}');
    line
}

fn fields(record: &Record<'_>) -> Vec<(String, Json)> {
    let mut collected = Fields(Vec::new());
    // The visitor never fails.
    let _ = record.key_values().visit(&mut collected);
    collected.0
}

struct Fields(Vec<(String, Json)>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        self.0.push((key.to_string(), typed(&value)));
        Ok(())
    }
}

/// Numbers and truth values stay what they are; everything else becomes its text.
fn typed(value: &Value<'_>) -> Json {
    if let Some(value) = value.to_bool() {
        return value.into();
    }
    if let Some(value) = value.to_u64() {
        return value.into();
    }
    if let Some(value) = value.to_i64() {
        return value.into();
    }
    if let Some(value) = value.to_f64() {
        return value.into();
    }
    value.to_string().into()
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    fn with_record(run: impl FnOnce(&Record<'_>)) {
        let fields = [
            ("peer", Value::from("n2")),
            ("count", Value::from(3_u64)),
            ("reason", Value::from("bad \u{202e}name")),
            ("msg", Value::from("mine")),
        ];
        run(&Record::builder()
            .level(Level::Info)
            .target("mesh")
            .args(format_args!("connected"))
            .key_values(&fields.as_slice())
            .build());
    }

    #[test]
    fn a_json_line_has_the_fixed_keys_first_and_every_field_typed() {
        with_record(|record| {
            assert_eq!(
                json(Timestamp::UNIX_EPOCH, record),
                "{\"ts\":\"1970-01-01T00:00:00.000Z\",\"level\":\"INFO\",\"target\":\"mesh\",\
                 \"msg\":\"connected\",\"peer\":\"n2\",\"count\":3,\
                 \"reason\":\"bad \u{202e}name\",\"field_msg\":\"mine\"}"
            );
        });
    }

    #[test]
    fn a_text_line_quotes_and_escapes_what_needs_it() {
        with_record(|record| {
            assert_eq!(
                text(Timestamp::UNIX_EPOCH, record),
                "1970-01-01T00:00:00.000Z INFO  mesh      connected peer=n2 count=3 \
                 reason=\"bad \\u{202e}name\" msg=mine"
            );
        });
    }
}
