//! Which life a node of a store is in: what a store that confirms rows before they are safe may have lost shows in it.

/// A node that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLife {
    /// Its name, the same in all its lives.
    pub node: String,
    /// Another number after each of its starts. `None`: it answers, but does not say.
    pub life: Option<i64>,
}
