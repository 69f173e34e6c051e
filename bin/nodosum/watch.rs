//! `--watch`: a read command again and again.

use std::{thread, time::Duration};

use crate::{
    args::{Read, Watch},
    exit::{Exit, Failure},
    output::{Format, is_terminal, print},
};

/// Moves the cursor to the top left corner and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Runs `once` and prints what it returns; with `--watch`, until it fails or is interrupted.
///
/// On a terminal, tables are drawn over one another; elsewhere a blank line separates them.
pub(crate) fn run(
    watch: &Watch,
    read: &Read,
    mut once: impl FnMut() -> Result<(String, Exit), Failure>,
) -> Result<Exit, Failure> {
    let Some(interval) = watch.interval else {
        let (text, exit) = once()?;
        print(&text)?;
        return Ok(exit);
    };
    let for_people = matches!(read.output, Format::Table | Format::Wide);
    let redraw = for_people && is_terminal();
    let mut first = true;
    loop {
        let (text, _) = once()?;
        let before = match (redraw, for_people && !first) {
            (true, _) => CLEAR,
            (false, true) => "\n",
            (false, false) => "",
        };
        print(&format!("{before}{text}"))?;
        first = false;
        pause(interval);
    }
}

/// Waits for the next round. Interrupting the command ends the process, so that nothing else has
/// to wake this up.
fn pause(interval: Duration) {
    thread::sleep(interval);
}
