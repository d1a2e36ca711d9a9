//! Which teams a caller may use.

use std::collections::HashSet;

/// The teams that a caller may use. Teams are compared byte by byte: names that look alike
/// are different teams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TeamScope {
    /// Each.
    All,
    /// Those in the set.
    Only(HashSet<String>),
}
