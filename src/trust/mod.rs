//! Trust.
/// identity
#[derive(Clone)]
pub struct Identity {}
