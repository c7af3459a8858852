//! A connection to a server: HTTP/2 over TCP, or, in a simulation, whatever the simulation puts in its place.
//!
//! Everything that speaks gRPC as a client connects here, so that a simulation can let the same clients and servers
//! speak through a network of its own making.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};
use tonic::transport::Endpoint;
use tower::util::BoxCloneSyncService;

/// An answer on its way.
type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, StdError>> + Send>>;

/// What stands for a connection in a simulation.
pub type Simulated = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, StdError>;

/// Connects in a simulation. The future fails as a connection attempt does: at once, or after its patience.
pub type Dial = dyn Fn(&str) -> Pin<Box<dyn Future<Output = Result<Simulated, StdError>> + Send>>;

thread_local! {
    static DIAL: RefCell<Option<Rc<Dial>>> = const { RefCell::new(None) };
}

/// From now on, connections made by this thread come from here; none: from the network again.
pub fn dial_with(dial: Option<Rc<Dial>>) {
    DIAL.with(|cell| *cell.borrow_mut() = dial);
}

/// A connection to a server. Clones share it.
#[derive(Clone)]
pub enum Channel {
    /// Over TCP.
    Tcp(tonic::transport::Channel),
    /// In a simulation.
    Simulated(Simulated),
}

impl Channel {
    /// Connects to `address` (`host:port`) with the settings of `endpoint`, which was made for it.
    pub async fn connect(address: &str, endpoint: &Endpoint) -> Result<Channel, StdError> {
        let dialling = DIAL.with(|dial| dial.borrow().as_ref().map(|dial| dial(address)));
        match dialling {
            Some(dialling) => Ok(Channel::Simulated(dialling.await?)),
            None => Ok(Channel::Tcp(endpoint.connect().await?)),
        }
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        match self {
            Channel::Tcp(channel) => channel.poll_ready(context).map_err(StdError::from),
            Channel::Simulated(channel) => channel.poll_ready(context),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Answering {
        match self {
            Channel::Tcp(channel) => {
                let answering = channel.call(request);
                Box::pin(async move { Ok(answering.await?) })
            }
            Channel::Simulated(channel) => channel.call(request),
        }
    }
}
