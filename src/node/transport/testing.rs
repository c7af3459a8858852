//! For tests of what stands on nodes: the traffic between them, on real sockets, in one process.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use super::PeerService;
use crate::node::Node;

/// Serves a node's peers until the runtime ends.
pub async fn serve(listener: TcpListener, node: Arc<Node>) {
    let server = tonic::transport::Server::builder().add_service(PeerService::server(node));
    let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
}
