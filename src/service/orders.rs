//! `trivet.orders.v1.Orders`: the messages of the service, in front of the library that does the work.
//!
//! Orders stand on the routing client alone, so this node is a client of its own cluster here: it connects to its own port
//! when the first call comes, and from there finds the leaders as any program does. A call that is not answered in time may
//! be half done; its repeat, with the same request id, finishes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::deadline::{self, Effect};
use super::edge::Edge;
use super::metrics::Method;
use crate::client::{Client, Options};
use crate::orders::{self, ArchiveWish, ListWish, NewOrder, ReadWish, TransitionWish};
use crate::runtime::timeout_at;
use crate::types::{Answer, Error, Result};
use crate::wire::proto::orders::v1::{self, orders_server};
use crate::wire::to_status;

/// Longest wait for this node's own port to answer for the first time.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// The implementation behind `OrdersServer`.
pub struct Orders {
    edge: Edge,
    library: Library,
}

/// The library, once it is connected.
#[derive(Clone)]
pub struct Library {
    endpoint: String,
    orders: Arc<Mutex<Option<orders::Orders>>>,
}

impl Library {
    /// A library that connects to this port when it is first needed.
    pub fn of(port: SocketAddr) -> Library {
        // A port that is open on every address has none of its own.
        let address = match port.ip() {
            IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            address => address,
        };
        Library { endpoint: SocketAddr::new(address, port.port()).to_string(), orders: Arc::default() }
    }

    async fn orders(&self) -> Result<orders::Orders> {
        let mut orders = self.orders.lock().await;
        if let Some(orders) = &*orders {
            return Ok(orders.clone());
        }
        let options = Options { deadline: CONNECT_MAX, ..Options::default() };
        let client = Client::connect(std::slice::from_ref(&self.endpoint), options).await?;
        Ok(orders.insert(orders::Orders::new(client)).clone())
    }

    /// Lets go of the connection to this node's own port, which would keep the port from closing in order.
    pub fn close(&self) {
        // Who holds it is connecting, and will find the port closed.
        if let Ok(mut orders) = self.orders.try_lock() {
            orders.take();
        }
    }
}

/// Said of a call that only asked and was not answered in time.
const UNANSWERED: &str = "the tables of orders did not answer in time";
/// Said of one that may have changed something.
const UNCONFIRMED: &str = "it was not finished in time and may be half done: repeat it with the same request id";

impl Orders {
    /// Serves the orders of the cluster that `library` is connected to.
    pub fn new(edge: Edge, library: Library) -> Orders {
        Orders { edge, library }
    }

    async fn call<Q, W, B, A, F>(
        &self,
        method: Method,
        effect: Effect,
        request: Request<Q>,
        work: impl FnOnce(orders::Orders, W) -> F,
    ) -> Result<Response<A>, Status>
    where
        W: TryFrom<Q, Error = Error>,
        F: Future<Output = Result<Answer<B>>>,
        A: From<Answer<B>>,
    {
        let started = self.edge.clock().now();
        let patience = deadline::granted(deadline::asked(request.metadata()));
        let result = async {
            let _place = self.edge.admit()?;
            let wish = W::try_from(request.into_inner())?;
            let answered = async { work(self.library.orders().await?.within(patience), wish).await };
            timeout_at(started + patience, answered)
                .await
                .unwrap_or_else(|| Err(effect.too_late(UNANSWERED, UNCONFIRMED)))
        }
        .await;
        self.edge.answered(method, started);
        result.map(|answer| Response::new(answer.into())).map_err(|error| {
            self.edge.meters().failed(&error);
            to_status(&error)
        })
    }
}

#[tonic::async_trait]
impl orders_server::Orders for Orders {
    async fn create_order(
        &self,
        request: Request<v1::CreateOrderRequest>,
    ) -> Result<Response<v1::CreateOrderResponse>, Status> {
        let work = async |orders: orders::Orders, new: NewOrder| orders.create(&new).await;
        self.call(Method::CreateOrder, Effect::Change, request, work).await
    }

    async fn transition(
        &self,
        request: Request<v1::TransitionRequest>,
    ) -> Result<Response<v1::TransitionResponse>, Status> {
        let work = async |orders: orders::Orders, wish: TransitionWish| orders.transition(&wish).await;
        self.call(Method::Transition, Effect::Change, request, work).await
    }

    async fn get_order(&self, request: Request<v1::GetOrderRequest>) -> Result<Response<v1::GetOrderResponse>, Status> {
        let work = async |orders: orders::Orders, wish: ReadWish| orders.get(&wish.id, wish.level).await;
        self.call(Method::GetOrder, Effect::None, request, work).await
    }

    async fn list_user_orders(
        &self,
        request: Request<v1::ListUserOrdersRequest>,
    ) -> Result<Response<v1::ListUserOrdersResponse>, Status> {
        let work = async |orders: orders::Orders, wish: ListWish| orders.list(&wish).await;
        self.call(Method::ListUserOrders, Effect::None, request, work).await
    }

    async fn user_stats(
        &self,
        request: Request<v1::UserStatsRequest>,
    ) -> Result<Response<v1::UserStatsResponse>, Status> {
        let work = async |orders: orders::Orders, wish: ReadWish| orders.user_stats(&wish.id, wish.level).await;
        self.call(Method::UserStats, Effect::None, request, work).await
    }

    async fn archive(&self, request: Request<v1::ArchiveRequest>) -> Result<Response<v1::ArchiveResponse>, Status> {
        let work = async |orders: orders::Orders, wish: ArchiveWish| orders.archive(&wish).await;
        self.call(Method::Archive, Effect::Change, request, work).await
    }

    async fn get_product(
        &self,
        request: Request<v1::GetProductRequest>,
    ) -> Result<Response<v1::GetProductResponse>, Status> {
        let work = async |orders: orders::Orders, wish: ReadWish| orders.product(&wish.id, wish.level).await;
        self.call(Method::GetProduct, Effect::None, request, work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_reaches_itself() {
        let endpoint = |text: &str| Library::of(text.parse().expect("an address")).endpoint;
        assert_eq!(endpoint("0.0.0.0:7401"), "127.0.0.1:7401");
        assert_eq!(endpoint("[::]:7401"), "[::1]:7401");
        assert_eq!(endpoint("10.0.0.7:7401"), "10.0.0.7:7401");
    }
}
