//! Where the settings of a node come from: flags, variables, a TOML file, defaults, in this order.
//!
//! The settings are the flags of `nodosum run`, and nothing is written down twice: a key of the file
//! is the long name of a flag with `_` for `-` (`seeds` and `tags` in the plural), its values are read
//! by the same parsers, and its description is the flag's help. The values of the file become the
//! defaults of the parser, which then reads the command line and the variables over them; it also
//! tells where each value came from.
//!
//! A file that is not understood in full is refused in full, every mistake with its line.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fmt::Write as _,
    fs::File,
    io::Read as _,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory as _, FromArgMatches as _,
    parser::ValueSource,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use crate::{
    args::{Cli, Run},
    exit::Failure,
    output::clean,
};

/// The largest file that is read; a mistyped path should end in a message, not in memory.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// How many mistakes are told at once.
const MAX_MISTAKES: usize = 20;

/// How alike two keys must be for one to be proposed for the other (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.75;

/// What a node runs with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) run: Run,
    pub(crate) rows: Vec<Setting>,
}

impl Settings {
    /// Puts the rows of these keys back to what they were.
    pub(crate) fn keep(&mut self, before: &Self, keys: &[&str]) {
        for row in &mut self.rows {
            let old = before.rows.iter().find(|old| old.key == row.key);
            if let Some(old) = old.filter(|old| keys.contains(&old.key.as_str())) {
                row.clone_from(old);
            }
        }
    }
}

/// One setting, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) values: Vec<String>,
    /// Whether it takes several.
    pub(crate) many: bool,
    /// `--bind`, `NODOSUM_BIND`, `nodosum.toml:3` or `default`; `unset` without a value.
    pub(crate) origin: String,
}

/// One key of the file.
#[derive(Debug)]
struct Entry {
    id: String,
    line: usize,
    values: Vec<String>,
}

/// The settings by this process's command line, whose subcommands are `path`, as things stand now.
pub(crate) fn load(path: &[&str]) -> Result<Settings, Failure> {
    resolve(path, env::args_os().collect())
}

/// The settings that a file alone amounts to, with the variables and defaults, but no flag.
pub(crate) fn load_file(file: Option<&Path>) -> Result<Settings, Failure> {
    let mut line = vec![OsString::from("nodosum"), "run".into()];
    if let Some(file) = file {
        line.extend([OsString::from("--config"), file.into()]);
    }
    resolve(&["run"], line)
}

fn resolve(path: &[&str], line: Vec<OsString>) -> Result<Settings, Failure> {
    let refused = |error: clap::Error| Failure::configuration(reason(&error));
    let leaf = |matches: &ArgMatches| -> Result<ArgMatches, Failure> {
        let mut matches = matches.clone();
        for name in path {
            matches = matches
                .remove_subcommand()
                .filter(|(found, _)| found == name)
                .map(|(_, inner)| inner)
                .ok_or_else(|| Failure::usage(format!("not a '{name}' command")))?;
        }
        Ok(matches)
    };
    let first = Cli::command()
        .try_get_matches_from(&line)
        .map_err(refused)?;
    let file = leaf(&first)?.get_one::<PathBuf>("config").cloned();
    let entries = match &file {
        Some(file) => read_file(file)?,
        None => Vec::new(),
    };
    let command = with_defaults(Cli::command(), path, &entries);
    let matches = leaf(&command.try_get_matches_from(&line).map_err(refused)?)?;
    let run = Run::from_arg_matches(&matches).map_err(refused)?;
    let rows = keys()
        .iter()
        .map(|(key, arg)| setting(key, arg, &matches, file.as_deref(), &entries))
        .collect();
    Ok(Settings { run, rows })
}

fn setting(
    key: &str,
    arg: &Arg,
    matches: &ArgMatches,
    file: Option<&Path>,
    entries: &[Entry],
) -> Setting {
    let id = arg.get_id().as_str();
    let values: Vec<String> = matches
        .get_raw(id)
        .into_iter()
        .flatten()
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    let entry = entries.iter().find(|entry| entry.id == id);
    let origin = match (matches.value_source(id), entry, file) {
        (Some(ValueSource::CommandLine), ..) => format!("--{}", arg.get_long().unwrap_or(id)),
        (Some(ValueSource::EnvVariable), ..) => arg
            .get_env()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        (_, Some(entry), Some(file)) => format!("{}:{}", file.display(), entry.line),
        (Some(_), ..) => "default".to_owned(),
        (None, ..) => "unset".to_owned(),
    };
    Setting {
        key: key.to_owned(),
        values,
        many: is_many(arg),
        origin,
    }
}

fn is_many(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// Every key and the flag behind it, in the order of the help.
fn keys() -> Vec<(String, Arg)> {
    let command = Cli::command();
    let run = command.find_subcommand("run");
    run.into_iter()
        .flat_map(Command::get_arguments)
        .filter(|arg| !matches!(arg.get_id().as_str(), "config" | "color" | "help"))
        .filter_map(|arg| Some((key(arg.get_long()?, is_many(arg)), arg.clone())))
        .collect()
}

fn key(long: &str, many: bool) -> String {
    let plural = if many { "s" } else { "" };
    format!("{}{plural}", long.replace('-', "_"))
}

fn with_defaults(command: Command, path: &[&str], entries: &[Entry]) -> Command {
    match path.split_first() {
        Some((name, rest)) => {
            command.mut_subcommand(name, |inner| with_defaults(inner, rest, entries))
        }
        None => entries.iter().fold(command, |command, entry| {
            command.mut_arg(&entry.id, |arg| arg.default_values(entry.values.clone()))
        }),
    }
}

fn read_file(path: &Path) -> Result<Vec<Entry>, Failure> {
    let refused = |error: std::io::Error| {
        Failure::configuration(format!("cannot read {}: {error}", path.display()))
            .hint("'nodosum config init' writes one to begin with")
    };
    let mut text = String::new();
    let file = File::open(path).map_err(refused)?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(refused)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::configuration(format!(
            "{} has more than {MAX_FILE_BYTES} bytes",
            path.display()
        )));
    }
    parse(&text).map_err(|mistakes| {
        let told: Vec<String> = mistakes
            .iter()
            .take(MAX_MISTAKES)
            .map(|(line, what)| format!("{}:{line}: {}", path.display(), clean(what)))
            .collect();
        Failure::configuration(told.join("\nerror: "))
            .hint("'nodosum config init' prints every key with its meaning")
    })
}

/// A line and what is wrong there.
type Mistake = (usize, String);

fn parse(text: &str) -> Result<Vec<Entry>, Vec<Mistake>> {
    let line = |span: &Range<usize>| {
        let before = text.as_bytes().get(..span.start).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    };
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().unwrap_or_default();
        vec![(line(&at), error.message().to_owned())]
    })?;
    let keys = keys();
    let mut mistakes = Vec::new();
    let mut entries = Vec::new();
    for (name, value) in table.get_ref() {
        let here = line(&name.span());
        let name = name.get_ref().as_ref();
        let Some((key, arg)) = keys.iter().find(|(key, _)| key == name) else {
            mistakes.push((here, unknown(name, &keys)));
            continue;
        };
        match values(value.get_ref(), is_many(arg), name == "tags")
            .and_then(|values| judged(arg, values))
        {
            Ok(values) => entries.push(Entry {
                id: arg.get_id().to_string(),
                line: here,
                values,
            }),
            Err(why) => mistakes.push((here, format!("{key}: {why}"))),
        }
    }
    mistakes.sort();
    if mistakes.is_empty() {
        entries.sort_by_key(|entry| entry.line);
        Ok(entries)
    } else {
        Err(mistakes)
    }
}

fn unknown(name: &str, keys: &[(String, Arg)]) -> String {
    let nearest = keys
        .iter()
        .map(|(key, _)| (strsim::jaro_winkler(name, key), key))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        Some((_, key)) => format!("unknown key {name:?}; did you mean {key:?}?"),
        None => format!("unknown key {name:?}"),
    }
}

/// A value as the flag would have it.
fn values(value: &DeValue<'_>, many: bool, is_tags: bool) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(list) if many => list.iter().map(|item| one(item.get_ref())).collect(),
        DeValue::Array(_) => Err("takes one value, not a list".to_owned()),
        DeValue::Table(table) if is_tags => table
            .iter()
            .map(|(key, value)| Ok(format!("{}={}", key.get_ref(), one(value.get_ref())?)))
            .collect(),
        single => Ok(vec![one(single)?]),
    }
}

fn one(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Float(number) => Ok(number.to_string()),
        DeValue::Boolean(truth) => Ok(truth.to_string()),
        DeValue::Datetime(_) => Err("a date is no value here; write it in quotes".to_owned()),
        DeValue::Array(_) | DeValue::Table(_) => Err("takes text".to_owned()),
    }
}

/// Has the flag's own parser judge the values.
fn judged(arg: &Arg, values: Vec<String>) -> Result<Vec<String>, String> {
    let long = arg.get_long().unwrap_or_default();
    let flags = values.iter().map(|value| format!("--{long}={value}"));
    let line = ["nodosum".to_owned(), "run".to_owned()]
        .into_iter()
        .chain(flags);
    match Cli::command().try_get_matches_from(line) {
        Ok(_) => Ok(values),
        Err(error) => Err(reason(&error)),
    }
}

/// What clap says, in one line and without the flag that nobody wrote.
fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let told = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ");
    let told = told.strip_prefix("error: ").unwrap_or(&told).to_owned();
    match (told.find(" for '--"), told.find("': ")) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{}", &told[..from], &told[to + 1..])
        }
        (Some(from), None) => match told[from + 6..].find('\'') {
            Some(length) => format!("{}{}", &told[..from], &told[from + 7 + length..]),
            None => told,
        },
        _ => told,
    }
}

/// The settings as a file that means the same; with `origin`, each line says where it comes from.
pub(crate) fn to_toml(rows: &[Setting], origin: bool) -> String {
    let mut out = String::new();
    let mut tags = None;
    for row in rows.iter().filter(|row| row.origin != "unset") {
        let from = if origin {
            format!("  # {}", clean(&row.origin))
        } else {
            String::new()
        };
        if row.key == "tags" {
            // A table goes last: keys after it would belong to it.
            tags = Some((row, from));
            continue;
        }
        let _ = writeln!(out, "{} = {}{from}", row.key, toml_value(row));
    }
    if let Some((row, from)) = tags {
        let _ = writeln!(out, "\n[tags]{from}");
        for tag in &row.values {
            let (key, value) = tag.split_once('=').unwrap_or((tag, ""));
            let _ = writeln!(out, "{} = {}", toml_text(key), toml_text(value));
        }
    }
    out
}

fn toml_value(row: &Setting) -> String {
    if row.many {
        let values: Vec<_> = row.values.iter().map(|value| toml_text(value)).collect();
        return format!("[{}]", values.join(", "));
    }
    toml_text(row.values.first().map_or("", String::as_str))
}

/// A TOML string. JSON's escapes are a part of TOML's.
fn toml_text(text: &str) -> String {
    serde_json::Value::from(clean(text)).to_string()
}

/// A file with every key: its meaning, its default or an example, commented out.
pub(crate) fn template() -> String {
    let mut out = String::from(
        "# Configuration of a nodosum node: nodosum run --config THIS-FILE\n\
         #\n\
         # Flags override variables (NODOSUM_BIND and so on), which override this file. Durations are\n\
         # text with a unit, such as \"250ms\" or \"7d\". Paths are relative to the working directory.\n\
         # With HUP a running node takes over: certificates, seeds, tags, log. The rest needs a restart.\n\
         # 'nodosum config check FILE' judges it, 'nodosum config show --origin' tells what holds.\n",
    );
    for (key, arg) in keys().iter().filter(|(key, _)| key != "tags") {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // The default stands below, where there is a fixed one.
        let help = match (
            help.find(" [default: "),
            arg.get_default_values().is_empty(),
        ) {
            (Some(at), false) => &help[..at],
            _ => &help,
        };
        let variable = arg
            .get_env()
            .map(|name| name.to_string_lossy().into_owned());
        let variable = variable
            .map(|name| format!(" ({name})"))
            .unwrap_or_default();
        let default = arg.get_default_values().first();
        let value = default.map(|value| value.to_string_lossy().into_owned());
        let value = value.unwrap_or_else(|| example(key).to_owned());
        let value = toml_text(&value);
        let value = if is_many(arg) {
            format!("[{value}]")
        } else {
            value
        };
        let _ = write!(out, "\n# {help}{variable}\n#{key} = {value}\n");
    }
    out.push_str("\n# Labels of this node (NODOSUM_TAG, one)\n#[tags]\n#zone = \"a\"\n");
    out
}

/// What stands in the file where there is no default.
fn example(key: &str) -> &'static str {
    match key {
        "node" => "n1",
        "cluster" => "prod",
        "gossip_bind" => "10.0.0.1:7947",
        "advertise" => "203.0.113.5:7946",
        "gossip_advertise" => "203.0.113.5:7947",
        "seeds" => "10.0.0.2:7946",
        "seeds_file" => "/etc/nodosum/seeds",
        "tls_dir" => "/etc/nodosum/tls",
        "admin" => "/run/nodosum/n1.sock",
        "ports_file" => "/run/nodosum/ports.json",
        "state_dir" => "/var/lib/nodosum",
        "http" => "127.0.0.1:7980",
        "http_names" => "n1.example.org",
        _ => "",
    }
}

/// The settings of the node in this process, for those who ask it.
static IN_USE: Mutex<Vec<Setting>> = Mutex::new(Vec::new());

pub(crate) fn publish(settings: &Settings) {
    IN_USE.lock().clone_from(&settings.rows);
}

pub(crate) fn in_use() -> Vec<Setting> {
    IN_USE.lock().clone()
}

/// The keys whose values differ.
pub(crate) fn changed(before: &[Setting], after: &[Setting]) -> BTreeSet<String> {
    let values = |rows: &[Setting], key: &str| {
        rows.iter()
            .find(|row| row.key == key)
            .map(|row| row.values.clone())
    };
    after
        .iter()
        .filter(|row| values(before, &row.key).as_ref() != Some(&row.values))
        .map(|row| row.key.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let told = parse(text).unwrap_err().into_iter();
        told.map(|(line, what)| format!("{line}: {what}")).collect()
    }

    fn settled(text: &str, flags: &[&str]) -> Settings {
        let path = env::temp_dir().join(format!(
            "nd-settings-{}-{:?}.toml",
            std::process::id(),
            std::thread::current().id()
        ));
        fs::write(&path, text).unwrap();
        let mut line: Vec<OsString> = vec!["nodosum".into(), "run".into(), "--config".into()];
        line.push(path.clone().into());
        line.extend(flags.iter().map(OsString::from));
        let settings = resolve(&["run"], line).unwrap();
        fs::remove_file(path).unwrap();
        settings
    }

    fn origin<'a>(settings: &'a Settings, key: &str) -> &'a str {
        let row = settings.rows.iter().find(|row| row.key == key).unwrap();
        row.origin
            .rsplit_once('/')
            .map_or(&row.origin, |(_, file)| {
                file.rsplit_once(':').map_or(file, |(_, line)| line)
            })
    }

    #[test]
    fn flags_override_the_file_and_the_file_overrides_defaults() {
        let text = "bind = \"127.0.0.1:5\"\nremember_for = \"2d\"\nseeds = [\"a:1\", \"b:2\"]\n\n\
                    [tags]\nzone = \"a,b\"\nrack = 7\n";
        let settings = settled(text, &["--remember-for", "1h"]);
        assert_eq!(settings.run.bind, "127.0.0.1:5".parse().unwrap());
        assert_eq!(settings.run.remember_for.as_secs(), 3_600);
        assert_eq!(settings.run.seeds, ["a:1", "b:2"]);
        let tags = [("rack", "7"), ("zone", "a,b")];
        let tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut found = settings.run.tags.clone();
        found.sort();
        assert_eq!(found, tags);
        let origins = ["bind", "seeds", "remember_for", "profile", "node"];
        assert_eq!(
            origins.map(|key| origin(&settings, key)),
            ["1", "3", "--remember-for", "default", "unset"]
        );
    }

    #[test]
    fn a_list_on_the_command_line_replaces_the_one_in_the_file() {
        let settings = settled("seeds = [\"a:1\", \"b:2\"]\n", &["--seed", "c:3"]);
        assert_eq!(settings.run.seeds, ["c:3"]);
        assert!(settled("seeds = []\n", &[]).run.seeds.is_empty());
    }

    #[test]
    fn every_mistake_is_told_with_its_line_and_the_nearest_key() {
        assert_eq!(
            mistakes(
                "bnid = \"x\"\nbind = \"nowhere\"\n\nremember_for = 5\nseed = \"a:1\"\n[zzz]\na = 1\n"
            ),
            [
                "1: unknown key \"bnid\"; did you mean \"bind\"?",
                "2: bind: invalid value 'nowhere': invalid socket address syntax",
                "4: remember_for: invalid value '5': not a duration; write it with a unit, such as \
                 250ms, 30s or 90d",
                "5: unknown key \"seed\"; did you mean \"seeds\"?",
                "6: unknown key \"zzz\"",
            ]
        );
        assert_eq!(
            mistakes("profile = \"moon\"\nbind = [\"a\"]\n"),
            [
                "1: profile: invalid value 'moon' [possible values: lan, wan, local]",
                "2: bind: takes one value, not a list",
            ]
        );
        assert!(mistakes("a = \n")[0].starts_with("1: "));
        assert!(mistakes("bind = \"x\"\nbind = \"y\"\n")[0].starts_with("2: "));
    }

    #[test]
    fn what_is_shown_is_a_file_that_means_the_same() {
        let text =
            "node = \"n1\"\nseeds = [\"a:1\"]\nlog = \"debug\"\n[tags]\n\"a.b\" = \"c \\\" d\"\n";
        let before = settled(text, &[]);
        let shown = to_toml(&before.rows, true);
        let after = settled(&shown, &[]);
        assert_eq!(
            changed(&before.rows, &after.rows),
            BTreeSet::new(),
            "{shown}"
        );
        let other = settled("node = \"n2\"\n", &[]);
        let keys: Vec<_> = changed(&before.rows, &other.rows).into_iter().collect();
        assert_eq!(keys, ["log", "node", "seeds", "tags"]);
    }

    #[test]
    fn the_template_names_every_key_and_is_valid_with_all_of_them_in_force() {
        let text = template();
        assert!(parse(&text).unwrap().is_empty(), "all is commented out");
        let all: String = text
            .lines()
            .map(|line| {
                let is_setting = line.starts_with('#') && !line.starts_with("# ") && line != "#";
                format!("{}\n", if is_setting { &line[1..] } else { line })
            })
            .collect();
        let entries = parse(&all).unwrap_or_else(|mistakes| panic!("{mistakes:?} in {all}"));
        assert_eq!(entries.len(), keys().len());
    }
}
