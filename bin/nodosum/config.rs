//! `nodosum config`: files with settings, written, judged and shown. What they mean is in
//! [`settings`](crate::settings).

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    path::Path,
};

use nodosum::Node;
use serde::Serialize;

use crate::{
    args::{Config, ConfigCheck, ConfigFormat, ConfigInit, ConfigShow},
    exit::{Exit, Failure},
    output::{json_line, print},
    run::{configure, judge, load_identity},
    seeds,
    settings::{self, Setting},
};

/// The object of `config show -o json`.
#[derive(Debug, Serialize)]
struct SettingsView<'a> {
    schema: u32,
    settings: &'a [Setting],
}

pub(crate) fn run(args: &Config) -> Result<Exit, Failure> {
    match args {
        Config::Init(args) => init(args),
        Config::Check(args) => check(args),
        Config::Show(args) => show(args),
    }
}

fn init(args: &ConfigInit) -> Result<Exit, Failure> {
    let text = settings::template();
    match &args.out {
        Some(path) => write_new(path, &text)?,
        None => print(&text)?,
    }
    Ok(Exit::Done)
}

/// What somebody has written is never overwritten.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| {
            let failure = Failure::failed(format!("cannot write {}: {error}", path.display()));
            match error.kind() {
                ErrorKind::AlreadyExists => failure.hint("choose another --out FILE"),
                _ => failure,
            }
        })
}

fn check(args: &ConfigCheck) -> Result<Exit, Failure> {
    let settings = settings::load_file(Some(&args.file))?;
    judge(&settings.run)?;
    let identity = load_identity(settings.run.tls_dir.as_deref())?;
    let listed = match &settings.run.seeds_file {
        Some(path) => seeds::read(path).map_err(Failure::configuration)?,
        None => Vec::new(),
    };
    let builder = configure(Node::builder(identity.clone()), &settings.run, &listed)?;
    builder
        .check()
        .map_err(|error| Failure::configuration(error.to_string()))?;
    print(&format!(
        "{} is good: node {} of cluster {}\n",
        args.file.display(),
        identity.node(),
        identity.cluster()
    ))?;
    Ok(Exit::Done)
}

fn show(args: &ConfigShow) -> Result<Exit, Failure> {
    let settings = settings::load(&["config", "show"])?;
    let text = match args.output {
        ConfigFormat::Toml => settings::to_toml(&settings.rows, args.origin),
        ConfigFormat::Json => json_line(&SettingsView {
            schema: 1,
            settings: &settings.rows,
        })?,
    };
    print(&text)?;
    Ok(Exit::Done)
}
