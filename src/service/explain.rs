//! Reasons for what is refused before our own code sees it.
//!
//! A message that is no protobuf or longer than any may be, and a method that does not exist, are refused by the gRPC
//! server itself, with a bare code. [`Explained`] stands around a service and gives such a status its reason; all other
//! answers pass untouched, at the price of one look at their headers.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::Map;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use crate::wire;

type Request = http::Request<Body>;
type Response = http::Response<Body>;
type Answered = Result<Response, Infallible>;

/// A service all of whose refusals have a reason.
#[derive(Clone, Debug)]
pub struct Explained<S>(pub S);

impl<S: NamedService> NamedService for Explained<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request, Response = Response, Error = Infallible>> Service<Request> for Explained<S> {
    type Response = Response;
    type Error = Infallible;
    type Future = Map<S::Future, fn(Answered) -> Answered>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let explained: fn(Answered) -> Answered = |answered| answered.map(explain);
        self.0.call(request).map(explained)
    }
}

/// The answer for services that nobody serves here.
pub async fn unknown_service() -> Response {
    explain(Status::unimplemented("").into_http())
}

/// A refusal comes with its status among the headers; an answer has it at the end.
fn explain(response: Response) -> Response {
    if !response.headers().contains_key("grpc-status") {
        return response;
    }
    let status = Status::from_header_map(response.headers());
    match status.and_then(|status| wire::explain(&status)) {
        Some(explained) => explained.into_http(),
        None => response,
    }
}
