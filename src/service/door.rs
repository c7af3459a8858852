//! The way from the edge to the node behind it.

use std::sync::Arc;

use crate::control::Control;
use crate::node::{Context, Node};
use crate::types::{Request, Response, Result};

#[cfg(test)]
type Fake = dyn Fn(Request, Context) -> futures::future::BoxFuture<'static, Result<Response>> + Send + Sync;

/// What stands behind the edge.
#[derive(Clone)]
pub enum Door {
    /// A node and what decides for its cluster.
    Node(Arc<Node>, Arc<Control>),
    /// A function of a test.
    #[cfg(test)]
    Fake(Arc<Fake>),
}

impl Door {
    /// The node and its control.
    pub fn node(&self) -> Option<(&Arc<Node>, &Arc<Control>)> {
        match self {
            Door::Node(node, control) => Some((node, control)),
            #[cfg(test)]
            Door::Fake(_) => None,
        }
    }

    /// Answers a request for the data of a table, here or elsewhere, by the context's deadline.
    pub async fn execute(&self, table: &str, request: Request, context: Context) -> Result<Response> {
        match self {
            Door::Node(node, _) => node.execute(table, request, context).await,
            #[cfg(test)]
            Door::Fake(answer) => answer(request, context).await,
        }
    }
}
