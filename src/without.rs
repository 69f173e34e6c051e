//! What this process is to do without.

/// Whether the environment variable `NODOSUM_WITHOUT`, words separated by commas, names something that is
/// to be done without: to tell whether a network card or a sandbox fails at it, and for tests.
pub(crate) fn is_without(what: &str) -> bool {
    let without = std::env::var("NODOSUM_WITHOUT").unwrap_or_default();
    without.split(',').any(|word| word.trim() == what)
}
