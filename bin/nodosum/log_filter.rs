//! `nodosum log`: what a running node logs, shown and changed.

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{call, unexpected},
        protocol::{Command, LogView, Reply},
    },
    args::{Log, Read},
    exit::{Exit, Failure},
    output::{Column, Format, json_line, print, raw, render},
};

const COLUMNS: [Column<LogView>; 3] = [
    Column::text("FILTER", "filter", |log| log.filter.clone()),
    Column {
        title: "UNTIL",
        key: "until",
        wide: false,
        right: false,
        text: |log| log.until.clone().unwrap_or_else(|| "-".to_owned()),
        raw: |log| raw(log.until.as_ref()),
    },
    Column::text("CONFIGURED", "configured", |log| log.configured.clone()),
];

pub(crate) fn run(args: &Log) -> Result<Exit, Failure> {
    let (read, command) = match args {
        Log::Show(args) => (&args.read, Command::Log),
        Log::Set(args) => (
            &args.read,
            Command::SetLog {
                filter: Some(args.filter.clone()),
                for_seconds: args.duration.map(|duration| duration.as_secs_f64()),
            },
        ),
        Log::Reset(args) => (
            &args.read,
            Command::SetLog {
                filter: None,
                for_seconds: None,
            },
        ),
    };
    show(read, command)
}

fn show(read: &Read, command: Command) -> Result<Exit, Failure> {
    let Reply::Log(view) = call(&read.admin, command, &[], CALL_TIMEOUT)? else {
        return Err(unexpected());
    };
    let name = |log: &LogView| log.filter.clone();
    print(&match read.output {
        // The view says its schema itself, so that its line is the same object.
        Format::Jsonl => json_line(&view)?,
        Format::Table | Format::Wide | Format::Json | Format::Tsv | Format::Name => {
            let rows = std::slice::from_ref(&view);
            render(read.layout(), &COLUMNS, rows, name, &view)?
        }
    })?;
    Ok(Exit::Done)
}
