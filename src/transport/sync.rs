//! The locks and atomics by which threads hand each other work, under one name, so that a model check
//! can run the very same code with others in their place (`tests/model`). What is built on these alone
//! is in `handoff`, `slot` and `due`.

pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, fence};

pub(super) use parking_lot::{Condvar, Mutex, MutexGuard};
