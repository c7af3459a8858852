//! How a view keeps pace while its source is written to: looks at it beside the load, and tells what it saw.
//!
//! Two questions are asked again and again. *How old is the view?* A read that takes any age answers with the age that it can
//! prove. *When does somebody see an order of their own?* An order is written, and the list of its user is read with the
//! token of the write: the time from the acknowledgement to a list that has the order, which is checked.
//!
//! Both are calls like any other, at a low rate, by a client of their own, and count nowhere else.

use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join;
use hdrhistogram::Histogram;
use trivet::client::{Client, Table};
use trivet::runtime::sleep;
use trivet::types::{Error, ReadLevel, Reason, ScanBounds, Token};

use super::Shared;
use super::workload::order;

/// Between two looks at the age.
const AGE_EVERY: Duration = Duration::from_millis(20);
/// Between two orders of one's own.
const OWN_EVERY: Duration = Duration::from_millis(100);
/// The user whose orders they are. It has so many at most.
const OWN_USER: &str = "bench-own";
const OWN_ORDERS: u64 = 20;

/// What was seen of a view.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ViewFigures {
    /// Its name.
    pub view: String,
    /// Proven ages.
    pub age: Spread,
    /// From the acknowledgement of an order to a list that has it.
    pub own: Spread,
}

/// A distribution of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Spread {
    /// How many there are.
    pub samples: u64,
    /// The median in microseconds.
    pub p50_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Spread {
    fn of(times: &Histogram<u64>) -> Spread {
        Spread {
            samples: times.len(),
            p50_us: times.value_at_quantile(0.5),
            p99_us: times.value_at_quantile(0.99),
            max_us: times.max(),
        }
    }
}

/// Looks until the run has ended.
pub(super) async fn look(shared: &Shared, client: &Client, source: &str, view: &str) -> Result<ViewFigures, Error> {
    let (source, table) = (client.table(source), client.table(view));
    let (age, own) = try_join(ages(shared, &table), own_orders(shared, &source, &table)).await?;
    Ok(ViewFigures { view: view.to_owned(), age, own })
}

async fn ages(shared: &Shared, view: &Table) -> Result<Spread, Error> {
    let mut times = histogram();
    let mut number = 0_u64;
    while !shared.pace.is_over() {
        number += 1;
        let key = [b"{", &shared.workload.user(number)[..], b"}"].concat();
        let answer = view.get_with(key, ReadLevel::Any).await?;
        if let Some(age) = answer.header.age.filter(|_| shared.pace.measures(shared.pace.now())) {
            times.saturating_record(micros(age));
        }
        sleep(AGE_EVERY).await;
    }
    Ok(Spread::of(&times))
}

async fn own_orders(shared: &Shared, source: &Table, view: &Table) -> Result<Spread, Error> {
    let mut times = histogram();
    let mut number = 0;
    while !shared.pace.is_over() {
        number += 1;
        let id = format!("own{:02}", number % OWN_ORDERS);
        let document = order(id.as_bytes(), OWN_USER.as_bytes(), number);
        let written = source.put(id.clone(), document.clone()).await?.body.timestamp;
        let acknowledged = shared.pace.now();
        let level = ReadLevel::AtLeast(Token { timestamp: written });
        let rows = view.at(level).scan(ScanBounds::Tag(Bytes::from_static(OWN_USER.as_bytes()))).collect().await?;
        let now = shared.pace.now();
        let suffix = format!("/{id}");
        if !rows.iter().any(|row| row.key.ends_with(suffix.as_bytes())) {
            let text = format!("a list read with the token of order {id} does not have it");
            return Err(Error::new(Reason::Internal, text));
        }
        if shared.pace.measures(now) {
            times.saturating_record(micros(now - acknowledged));
        }
        sleep(OWN_EVERY).await;
    }
    Ok(Spread::of(&times))
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, super::record::LATENCY_US_MAX, 3).expect("the bounds are valid")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
