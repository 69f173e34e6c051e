//! `nodosum completions` and `nodosum man`: both from the parser's own description of itself.

use std::fs;

use clap::CommandFactory as _;

use crate::{
    args::{Cli, Completions, EXIT_CODES, Man},
    exit::{Exit, Failure},
    output::{note, print_bytes},
};

pub(crate) fn completions(args: &Completions) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nodosum", &mut script);
    print_bytes(&script)?;
    Ok(Exit::Done)
}

/// The command as the manual has it.
fn documented() -> clap::Command {
    let command = Cli::command();
    let example = command.get_after_help().map(ToString::to_string);
    let example = example.unwrap_or_default();
    command.after_help(format!("{example}\n\n{EXIT_CODES}"))
}

/// The page of the command itself, or a directory with one for each command.
pub(crate) fn man(args: &Man) -> Result<Exit, Failure> {
    let failed =
        |error: std::io::Error| Failure::failed(format!("cannot write the manual: {error}"));
    let Some(dir) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(documented())
            .render(&mut page)
            .map_err(failed)?;
        print_bytes(&page)?;
        return Ok(Exit::Done);
    };
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(documented(), dir))
        .map_err(failed)?;
    note(&format!("the pages are in {}", dir.display()));
    Ok(Exit::Done)
}
