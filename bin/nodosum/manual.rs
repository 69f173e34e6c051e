//! `nodosum completions` and `nodosum man`: both from the parser's own description of itself.

use std::fs;

use clap::CommandFactory as _;

use crate::{
    args::{Cli, Completions, Man},
    exit::{Exit, Failure},
    output::{note, print_bytes},
};

pub(crate) fn completions(args: &Completions) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nodosum", &mut script);
    print_bytes(&script)?;
    Ok(Exit::Done)
}

/// The page of the command itself, or a directory with one for each command.
pub(crate) fn man(args: &Man) -> Result<Exit, Failure> {
    let failed =
        |error: std::io::Error| Failure::failed(format!("cannot write the manual: {error}"));
    let Some(dir) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .map_err(failed)?;
        print_bytes(&page)?;
        return Ok(Exit::Done);
    };
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(failed)?;
    note(&format!("the pages are in {}", dir.display()));
    Ok(Exit::Done)
}
