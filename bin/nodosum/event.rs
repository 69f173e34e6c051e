//! `nodosum event`: telling every node something small.

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{call, unexpected},
        protocol::{Command, Reply},
    },
    args::Event,
    exit::{Exit, Failure},
    messages::payload,
};

pub(crate) fn run(args: &Event) -> Result<Exit, Failure> {
    let payload = payload(&args.payload)?;
    let command = Command::Event {
        name: args.name.clone(),
        payload_bytes: payload.len() as u64,
    };
    let Reply::Done = call(&args.admin, command, &payload, CALL_TIMEOUT)? else {
        return Err(unexpected());
    };
    Ok(Exit::Done)
}
