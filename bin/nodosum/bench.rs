//! `nodosum bench`: the thread scaling of benches/, on the machine where the binary is.

#[path = "../../benches/scaling/mod.rs"]
mod scaling;

pub(crate) use scaling::Scale;

use crate::exit::{Exit, Failure};

pub(crate) fn run(args: &Scale) -> Result<Exit, Failure> {
    scaling::run(args, &["bench"], &mut std::io::stdout()).map_err(Failure::failed)?;
    Ok(Exit::Done)
}
