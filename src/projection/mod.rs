//! How the rows of a view follow from the rows of its sources: pure functions, the same for upkeep and for comparison.
//!
//! A [`Definition`] says which documents a view is made of, which it leaves out, under which tag and in which order its
//! rows lie. A [`Projector`] is a definition made ready: it turns what happened to one row of a source into [`Effect`]s
//! on rows of the view. Effects say all that is needed to carry them out, so that the shard of the view, which replays
//! them from its log, knows nothing of definitions; [`apply`] does that against what is stored. [`Recompute`] makes the
//! rows of a view from the rows of its sources alone.
//!
//! Promise: whatever the history of the sources, in whatever pieces and however folded ([`coalesce`]) it was taken in,
//! the view is byte for byte what [`Recompute`] makes of the sources as they are then. Everything is deterministic: no
//! clock, no randomness, no floating-point sums.
//!
//! All rows of a view under one tag lie in one shard and are changed together. Beside the rows that people see there
//! are hidden ones under the same tag ([`hides`]): the members of a group, from which its least and greatest are known
//! when the one before leaves, and its totals.
//!
//! Left out: reading changes and sending effects (`node::views`), storing them (`shard::intake`).

mod apply;
mod decimal;
mod definition;
mod document;
mod effect;
mod filter;
mod key;
mod order;
mod projector;
mod recompute;
#[cfg(test)]
mod tests;

pub use apply::{Members, apply};
pub use definition::{Aggregate, BadDocuments, DEFINITION_BYTES_MAX, Definition, Function, Kind, OrderBy, Source};
pub use effect::{Change, Effect, coalesce};
pub use key::{VIEW_KEY_BYTES_MAX, hides, tag_of_text};
pub use projector::{Projected, Projector};
pub use recompute::Recompute;
