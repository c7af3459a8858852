//! `trivet.v1.Kv`: each unary call is one question to the node; scans follow their pages; who follows changes goes to
//! `follow`, streams of calls to `pipeline`.

use std::pin::Pin;
use std::time::Duration;

use futures::stream::{self, Stream};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::deadline;
use super::edge::{Edge, stopping_error};
use super::follow::Follower;
use super::metrics::Method;
use super::pipeline::{ANSWER_BYTES_MAX, pipeline, too_large};
use crate::runtime::Instant;
use crate::types::{self, Error, ScanRequest};
use crate::wire::proto::v1::{self, kv_server};
use crate::wire::{Question, to_status};

/// The implementation behind `KvServer`.
pub struct Kv {
    edge: Edge,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Kv {
    /// Serves what stands behind this edge.
    pub fn new(edge: Edge) -> Kv {
        Kv { edge }
    }

    async fn unary<Q, A>(&self, method: Method, request: Request<Q>) -> Result<Response<A>, Status>
    where
        Q: Question,
        A: TryFrom<types::Response, Error = Error> + Message,
    {
        let patience = deadline::granted(deadline::asked(request.metadata()));
        let decoded = request.into_inner().decode(self.edge.limits());
        let (table, question) = decoded.map_err(|error| self.refused(&error))?;
        let response = self.edge.call(method, &table, question, patience).await.map_err(|error| to_status(&error))?;
        let answer = A::try_from(response).map_err(|error| self.refused(&error))?;
        match answer.encoded_len() {
            size if size > ANSWER_BYTES_MAX => Err(self.refused(&too_large(size))),
            _ => Ok(Response::new(answer)),
        }
    }

    fn refused(&self, error: &Error) -> Status {
        self.edge.meters().failed(error);
        to_status(error)
    }
}

#[tonic::async_trait]
impl kv_server::Kv for Kv {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        self.unary(Method::Get, request).await
    }

    async fn batch_get(&self, request: Request<v1::BatchGetRequest>) -> Result<Response<v1::BatchGetResponse>, Status> {
        self.unary(Method::BatchGet, request).await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary(Method::Put, request).await
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary(Method::Delete, request).await
    }

    async fn increment(&self, request: Request<v1::IncrementRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary(Method::Increment, request).await
    }

    async fn compare_and_swap(
        &self,
        request: Request<v1::CompareAndSwapRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary(Method::CompareAndSwap, request).await
    }

    async fn batch(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary(Method::Batch, request).await
    }

    async fn scan_page(&self, request: Request<v1::ScanRequest>) -> Result<Response<v1::ScanResponse>, Status> {
        self.unary(Method::ScanPage, request).await
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Result<Response<v1::ScanResponse>, Status> {
        self.unary(Method::History, request).await
    }

    async fn rollback(&self, request: Request<v1::RollbackRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary(Method::Rollback, request).await
    }

    type ScanStream = Answers<v1::ScanResponse>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let mut pages = Pages::open(self.edge.clone(), request).map_err(|error| self.refused(&error))?;
        // The first page decides whether the call fails as a whole.
        let first = pages.next().await.map_err(|error| to_status(&error))?;
        let rest = stream::try_unfold(pages, |mut pages| async move {
            match pages.is_over() {
                true => Ok(None),
                false => pages.next().await.map(|page| Some((page, pages))).map_err(|error| to_status(&error)),
            }
        });
        let all = stream::StreamExt::chain(stream::iter([Ok(first)]), rest);
        Ok(Response::new(Box::pin(all)))
    }

    async fn changes_page(
        &self,
        request: Request<v1::ChangesRequest>,
    ) -> Result<Response<v1::ChangesResponse>, Status> {
        self.unary(Method::ChangesPage, request).await
    }

    type ChangesStream = Answers<v1::ChangesResponse>;

    async fn changes(&self, request: Request<v1::ChangesRequest>) -> Result<Response<Self::ChangesStream>, Status> {
        let mut follower = Follower::open(self.edge.clone(), request).map_err(|error| self.refused(&error))?;
        // The first page decides whether the call fails as a whole.
        let first = follower.next().await.map_err(|error| to_status(&error))?;
        let all = stream::StreamExt::chain(stream::iter(first.map(Ok)), follower.pages());
        Ok(Response::new(Box::pin(all)))
    }

    type PipelineStream = Answers<v1::PipelineResponse>;

    async fn pipeline(
        &self,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        Ok(Response::new(Box::pin(pipeline(self.edge.clone(), request.into_inner()))))
    }
}

/// A scan under way: the next page is asked for when the one before has been taken by the connection, so a slow
/// reader costs one page.
struct Pages {
    edge: Edge,
    table: String,
    scan: ScanRequest,
    /// Rows still wanted; none: all there are.
    wanted: Option<u64>,
    /// When the caller stops waiting for the whole.
    deadline: Option<Instant>,
    over: bool,
}

impl Pages {
    fn open(edge: Edge, request: Request<v1::ScanRequest>) -> types::Result<Pages> {
        let deadline = whole_deadline(&edge, request.metadata());
        let question = request.into_inner();
        // Over all pages here; of one page everywhere else.
        let wanted = Some(question.limit).filter(|&limit| limit != 0);
        let (table, request) = question.decode(edge.limits())?;
        let types::Request::Scan(scan) = request else { return Err(Error::internal("a scan decodes to a scan")) };
        Ok(Pages { edge, table, scan, wanted, deadline, over: false })
    }

    fn is_over(&self) -> bool {
        self.over
    }

    async fn next(&mut self) -> types::Result<v1::ScanResponse> {
        if self.edge.stopping().is_cancelled() {
            return Err(stopping_error());
        }
        let rows_max = self.edge.limits().page_rows_max;
        self.scan.rows_max = self.wanted.map_or(rows_max, |wanted| rows_max.min(wanted as usize));
        let request = types::Request::Scan(self.scan.clone());
        let response = self.edge.call(Method::Scan, &self.table, request, self.patience()).await?;
        let page = v1::ScanResponse::try_from(response)?;
        self.scan.cursor.clone_from(&page.cursor);
        self.wanted = self.wanted.map(|wanted| wanted.saturating_sub(page.count));
        self.over = page.cursor.is_none() || self.wanted == Some(0);
        Ok(page)
    }

    fn patience(&self) -> Duration {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(self.edge.clock().now()));
        left.unwrap_or(deadline::DEFAULT).min(deadline::DEFAULT)
    }
}

/// A stream may take as long as its caller waits, which is not bounded by what one call may take.
fn whole_deadline(edge: &Edge, metadata: &MetadataMap) -> Option<Instant> {
    edge.clock().now().checked_add(deadline::asked(metadata)?)
}
