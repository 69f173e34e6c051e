//! `nodosum join`, `leave`, `force-leave`.

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{call, unexpected},
        protocol::{Command, Reply},
    },
    args::{ForceLeave, Join, Leave},
    exit::{Exit, Failure},
    output::{clean, print},
};

pub(crate) fn join(args: &Join) -> Result<Exit, Failure> {
    let command = Command::Join {
        seeds: args.seeds.clone(),
        timeout_seconds: args.timeout.as_secs_f64(),
    };
    let reply = call(&args.admin, command, &[], args.timeout)?;
    let Reply::Joined { answered } = reply else {
        return Err(unexpected());
    };
    print(&format!(
        "{answered} of {} seeds answered\n",
        args.seeds.len()
    ))?;
    Ok(Exit::Done)
}

pub(crate) fn leave(args: &Leave) -> Result<Exit, Failure> {
    let command = Command::Leave {
        timeout_seconds: args.timeout.as_secs_f64(),
    };
    let reply = call(&args.admin, command, &[], args.timeout)?;
    let Reply::Left {
        confirmed,
        unconfirmed,
    } = reply
    else {
        return Err(unexpected());
    };
    let s = if confirmed.len() == 1 { "" } else { "s" };
    let mut text = format!("left; {} member{s} confirmed it", confirmed.len());
    if !unconfirmed.is_empty() {
        text.push_str(&format!(", not {}", clean(&unconfirmed.join(", "))));
    }
    text.push('\n');
    print(&text)?;
    Ok(Exit::Done)
}

pub(crate) fn force_leave(args: &ForceLeave) -> Result<Exit, Failure> {
    let command = Command::ForceLeave {
        node: args.node.to_string(),
    };
    let Reply::Done = call(&args.admin, command, &[], CALL_TIMEOUT)? else {
        return Err(unexpected());
    };
    Ok(Exit::Done)
}
