//! A deterministic simulator of whole clusters.
#![allow(dead_code, reason = "each target that includes this uses a part of it")]

pub(crate) mod campaign;
pub(crate) mod check;
pub(crate) mod conditions;
pub(crate) mod generate;
pub(crate) mod hostile;
pub(crate) mod planted;
pub(crate) mod queue;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod script;
pub(crate) mod shrink;
pub(crate) mod tally;
pub(crate) mod world;
