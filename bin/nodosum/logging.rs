//! The log of the process: one line on standard error for each record.
//!
//! As text: time, level, target, message, fields. As JSON: one object with `ts`, `level`,
//! `target`, `msg` and the fields. Fields may hold what a peer said, so that the text form escapes
//! what would confuse a terminal.
//!
//! What is logged can change while the process runs: the filter of the configuration is the base, and
//! another one can take its place for a while. When its time is over, the next record that it lets
//! through puts the base back, so that no thread has to wait for that.

use std::{
    env,
    fmt::Write as _,
    io::Write as _,
    sync::OnceLock,
    time::{Duration, Instant},
};

use env_logger::{Builder, Logger, WriteStyle};
use jiff::Timestamp;
use log::{
    Log, Metadata, Record,
    kv::{Error, Key, Value, VisitSource},
};
use parking_lot::{Mutex, RwLock};
use serde_json::Value as Json;

use crate::{
    clock::{self, Wall},
    output::{clean, colours},
};

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

/// Starts logging by `filter`.
pub(crate) fn init(format: LogFormat, filter: &str) {
    let shared = Shared {
        logger: RwLock::new(logger(format, filter)),
        filters: Mutex::new(Filters {
            base: filter.to_owned(),
            other: None,
        }),
        format,
    };
    let max = shared.logger.read().filter();
    // A second start in one process would be a mistake of ours, and the first one goes on serving.
    if SHARED.set(shared).is_ok() && log::set_logger(&Switch).is_ok() {
        log::set_max_level(max);
    }
}

/// The filter that `RUST_LOG` asks for.
pub(crate) fn from_env() -> Option<String> {
    let filter = env::var("RUST_LOG").ok();
    filter.filter(|filter| !filter.is_empty())
}

/// Whether this is a filter; the error says what of it is not.
pub(crate) fn check_filter(filter: &str) -> Result<(), String> {
    let empty = filter.split(',').all(|part| part.trim().is_empty());
    if empty {
        return Err("an empty filter; 'off' logs nothing".to_owned());
    }
    let judged = env_filter::Builder::new().try_parse(filter).map(|_| ());
    judged.map_err(|error| error.to_string())
}

/// What is logged now, for `nodosum log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) filter: String,
    /// That of the configuration.
    pub(crate) base: String,
    /// When the base is put back.
    pub(crate) until: Option<String>,
}

/// Logs by the filter that the configuration has now. One that holds for a while stays in force.
pub(crate) fn set_base(filter: &str) {
    let Some(shared) = SHARED.get() else { return };
    let mut filters = shared.filters.lock();
    filter.clone_into(&mut filters.base);
    if filters.other.is_none() {
        shared.apply(filter);
    }
}

/// Logs by another filter, for so long or until [`reset`].
pub(crate) fn set_other(filter: &str, duration: Option<Duration>) {
    let Some(shared) = SHARED.get() else { return };
    let until = duration.and_then(|duration| clock::now().checked_add(duration));
    shared.filters.lock().other = Some(Other {
        filter: filter.to_owned(),
        until,
    });
    shared.apply(filter);
}

/// Puts the filter of the configuration back.
pub(crate) fn reset() {
    let Some(shared) = SHARED.get() else { return };
    let mut filters = shared.filters.lock();
    if filters.other.take().is_some() {
        shared.apply(&filters.base);
    }
}

/// `None` where nothing is logged.
pub(crate) fn in_force() -> Option<InForce> {
    let shared = SHARED.get()?;
    shared.end_what_is_over();
    let filters = shared.filters.lock();
    let wall = Wall::now();
    let other = filters.other.as_ref();
    Some(InForce {
        filter: other.map_or_else(|| filters.base.clone(), |other| other.filter.clone()),
        base: filters.base.clone(),
        until: other.and_then(|other| other.until).map(|at| wall.text(at)),
    })
}

static SHARED: OnceLock<Shared> = OnceLock::new();

struct Shared {
    logger: RwLock<Logger>,
    filters: Mutex<Filters>,
    format: LogFormat,
}

struct Filters {
    base: String,
    other: Option<Other>,
}

struct Other {
    filter: String,
    until: Option<Instant>,
}

impl Shared {
    fn apply(&self, filter: &str) {
        let logger = logger(self.format, filter);
        let max = logger.filter();
        *self.logger.write() = logger;
        log::set_max_level(max);
    }

    fn end_what_is_over(&self) {
        let mut filters = self.filters.lock();
        let until = filters.other.as_ref().and_then(|other| other.until);
        if until.is_some_and(|until| until <= clock::now()) {
            filters.other = None;
            self.apply(&filters.base);
        }
    }
}

/// What the `log` crate calls.
struct Switch;

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        SHARED
            .get()
            .is_some_and(|shared| shared.logger.read().enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        let Some(shared) = SHARED.get() else { return };
        shared.end_what_is_over();
        shared.logger.read().log(record);
    }

    fn flush(&self) {
        if let Some(shared) = SHARED.get() {
            shared.logger.read().flush();
        }
    }
}

fn logger(format: LogFormat, filter: &str) -> Logger {
    let mut builder = Builder::new();
    builder.parse_filters(filter);
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    builder.write_style(if colours(is_terminal) {
        WriteStyle::Always
    } else {
        WriteStyle::Never
    });
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
    builder.build()
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
    fn a_filter_is_judged_before_it_is_taken() {
        for good in [
            "info",
            "swim=debug,info",
            "off",
            "mesh=trace",
            DEFAULT_FILTER,
        ] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["", " , ", "swim=loud", "a=b=c"] {
            assert!(check_filter(bad).is_err(), "{bad:?}");
        }
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
