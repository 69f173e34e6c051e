//! A deterministic simulator of whole clusters: the same seed is the same run, to the last bit.
//!
//! `script` says what happens in a run, `generate` draws a script for every seed, `world` (with
//! `acts`, `applications`, `network`, `connections`, `conditions`, `hostile`, `registry`, `queue`) plays it, `check`
//! holds the safety invariants against every step, `run` adds agreement and rest at the end,
//! `campaign` plays many seeds and `tally` counts what happened, `shrink` makes a script small that
//! breaks something, and `planted` breaks the cores on purpose.
//!
//! Nothing here reads a clock, but for a starting point and for how long a campaign took.

#![allow(dead_code, reason = "each target that includes this uses a part of it")]

pub(crate) mod acts;
pub(crate) mod applications;
pub(crate) mod campaign;
pub(crate) mod check;
pub(crate) mod conditions;
pub(crate) mod connections;
pub(crate) mod generate;
pub(crate) mod hostile;
pub(crate) mod network;
pub(crate) mod planted;
pub(crate) mod queue;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod script;
pub(crate) mod shrink;
pub(crate) mod tally;
pub(crate) mod world;
