//! `nodosum tags`: the node's labels, shown and changed while it runs.

use serde::Serialize;

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{call, unexpected},
        protocol::{Command, Reply},
    },
    args::{Tags, repeated_tag},
    exit::{Exit, Failure},
    output::{Column, print, render},
};

#[derive(Debug, Serialize)]
struct Tag {
    key: String,
    value: String,
}

const COLUMNS: [Column<Tag>; 2] = [
    Column::text("TAG", "key", |tag| tag.key.clone()),
    Column::text("VALUE", "value", |tag| tag.value.clone()),
];

pub(crate) fn run(args: &Tags) -> Result<Exit, Failure> {
    if let Some(key) = repeated_tag(&args.set) {
        return Err(Failure::usage(format!("tag {key:?} is given twice")));
    }
    let both = |(key, _): &&(String, String)| args.delete.contains(key);
    if let Some((key, _)) = args.set.iter().find(both) {
        return Err(Failure::usage(format!("tag {key:?} is set and deleted")));
    }
    let command = Command::Tags {
        set: args.set.iter().cloned().collect(),
        delete: args.delete.clone(),
    };
    let Reply::Tags(view) = call(&args.read.admin, command, &[], CALL_TIMEOUT)? else {
        return Err(unexpected());
    };
    let rows: Vec<_> = view
        .tags
        .iter()
        .map(|(key, value)| Tag {
            key: key.clone(),
            value: value.clone(),
        })
        .collect();
    let name = |tag: &Tag| tag.key.clone();
    print(&render(args.read.layout(), &COLUMNS, &rows, name, &view)?)?;
    Ok(Exit::Done)
}
