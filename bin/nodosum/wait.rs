//! `nodosum wait`: until the node sees enough of the cluster.

use std::{thread, time::Duration};

use crate::{
    admin::{
        client::{call, unexpected},
        protocol::{Command, Reply},
    },
    args::Wait,
    clock::Deadline,
    exit::{Exit, Failure},
};

/// How often to look for a node that does not answer yet.
const RETRY: Duration = Duration::from_millis(50);

/// Asks the node to wait. The node may still be starting, so that not reaching it is an answer
/// only at the time-out.
pub(crate) fn run(args: &Wait) -> Result<Exit, Failure> {
    let deadline = Deadline::after(args.timeout);
    let nothing_else = args.members.is_none() && args.connected.is_none();
    loop {
        let remaining = deadline.remaining();
        let command = Command::Wait {
            members: args.members,
            connected: args.connected,
            ready: args.ready || nothing_else,
            timeout_seconds: remaining.as_secs_f64(),
        };
        match call(&args.admin, command, &[], remaining) {
            Ok(Reply::Done) => return Ok(Exit::Done),
            Ok(_) => return Err(unexpected()),
            Err(failure) if failure.exit == Exit::Unreachable && !deadline.is_over() => {
                thread::sleep(RETRY.min(deadline.remaining()));
            }
            Err(failure) => return Err(failure),
        }
    }
}
