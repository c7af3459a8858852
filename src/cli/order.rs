//! The verbs on orders that change something: setup, create, transition, archive. Those that read are in `order_read`.

use std::time::Duration;

use clap::Subcommand;
use trivet::orders::schema::{self, SetUp};
use trivet::orders::{ARCHIVE_LIMIT_MAX, Amount, ArchiveWish, Archived, Item, Move, NewOrder, Orders, Status};
use trivet::orders::{Submission, TransitionWish};
use trivet::runtime::random_u64;
use trivet::types::{Kind, Timestamp};

use super::exit::{Ended, Exit, Stop};
use super::{Global, order_read, render, time};

/// Submit, move, read, list and archive orders: an application made of tables and views.
///
/// An order is made once per business key, moves along a table of states, and keeps a trace of every step. Begin with
/// `trivet order setup`.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    Setup(Setup),
    Create(Create),
    Transition(Transition),
    Get(order_read::Get),
    Trace(order_read::Trace),
    List(order_read::List),
    Stats(order_read::Stats),
    Archive(Archive),
    Product(order_read::Product),
}

/// Creates the tables and views that orders need; what is there stays as it is.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet order setup\n  trivet order setup --shards 8 --dry-run")]
pub struct Setup {
    /// Shards of each table [default: one for each node]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shards: Option<u32>,
    /// Show what would be created, and create nothing
    #[arg(long)]
    dry_run: bool,
}

/// Submits an order, which then awaits payment.
///
/// A business key belongs to one order for ever: submitted again with the same content it answers with that order and says
/// that it is a duplicate; with another content it is refused.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet order create --user 42 --key cart-17 --amount 12.50\n  trivet order create --user 42 --key cart-18 --amount 20 --item p-1:2:6.25 --item p-2 -o json"
)]
pub struct Create {
    /// Whose order it is
    #[arg(long, value_name = "USER")]
    user: String,
    /// The business key: what makes the order one of a kind to you, such as the number of a cart
    #[arg(long, value_name = "KEY")]
    key: String,
    /// What it costs: a decimal number with at most two places
    #[arg(long, value_name = "AMOUNT", value_parser = parse_amount, allow_negative_numbers = true)]
    amount: Amount,
    /// An item, with its quantity [default: 1] and the price of one; may be given several times
    #[arg(long = "item", value_name = "PRODUCT[:QUANTITY[:PRICE]]", value_parser = parse_item)]
    items: Vec<Item>,
    /// When it was placed, as 2026-01-31T12:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = time::parse_version_or_time)]
    created: Option<Timestamp>,
    /// The id of this request, for repeating it [default: a new one]
    #[arg(long, value_name = "ID")]
    request: Option<String>,
}

/// Moves an order to another status and notes it in the order's trace.
///
/// awaiting_payment can become paid or cancelled; paid shipped; shipped completed; paid, shipped and completed can become
/// refunding; refunding becomes refunded, or goes back to where it came from. All else is refused, with what is allowed, and
/// exit code 3.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet order transition o-9z3k paid --who till\n  trivet order transition o-9z3k refunding --note 'arrived broken' --if-version 117637120008060935"
)]
pub struct Transition {
    /// The order's id
    order: String,
    /// Where it shall come to
    #[arg(value_parser = parse_status)]
    to: Status,
    /// Who does it
    #[arg(long, value_name = "NAME", default_value = "trivet")]
    who: String,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    /// Only if this is the order's version
    #[arg(long, value_name = "VERSION", value_parser = time::parse_version)]
    if_version: Option<Timestamp>,
    /// The id of this request, for repeating it [default: a new one]
    #[arg(long, value_name = "ID")]
    request: Option<String>,
}

/// Moves closed orders (completed, cancelled, refunded) that have not changed for a while to the archive.
///
/// They stay readable by their id, do not change any more, and leave the views by user. Stopped at any point, it goes on
/// when it is started again.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet order archive --older-than 90d --dry-run\n  trivet order archive --older-than 90d --limit 10000"
)]
pub struct Archive {
    /// Only orders that have not changed for so long
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    older_than: Duration,
    /// Move so many at most [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Show what would be moved, and move nothing
    #[arg(long)]
    dry_run: bool,
}

fn parse_amount(text: &str) -> Result<Amount, String> {
    Amount::parse(text).map_err(|error| error.message)
}

/// A status as typed.
pub fn parse_status(text: &str) -> Result<Status, String> {
    Status::parse(text).map_err(|error| error.message)
}

fn parse_item(text: &str) -> Result<Item, String> {
    let mut parts = text.splitn(3, ':');
    let product_id = parts.next().unwrap_or_default().to_owned();
    let quantity = match parts.next() {
        None => 1,
        Some(quantity) => quantity.parse().map_err(|_| format!("'{quantity}' is no quantity in '{text}'"))?,
    };
    let price = parts.next().map(parse_amount).transpose()?;
    Ok(Item { product_id, quantity, price })
}

/// Runs an order verb.
pub async fn run(verb: Verb, global: &Global) -> Ended {
    match verb {
        Verb::Setup(args) => setup(args, global).await,
        Verb::Create(args) => create(args, global).await,
        Verb::Transition(args) => transition(args, global).await,
        Verb::Get(args) => order_read::get(args, global).await,
        Verb::Trace(args) => order_read::trace(args, global).await,
        Verb::List(args) => order_read::list(args, global).await,
        Verb::Stats(args) => order_read::stats(args, global).await,
        Verb::Archive(args) => archive(args, global).await,
        Verb::Product(args) => order_read::product(args, global).await,
    }
}

/// The orders of the cluster.
pub async fn connect(global: &Global) -> Ended<Orders> {
    Ok(Orders::new(global.connect().await?))
}

async fn setup(args: Setup, global: &Global) -> Ended {
    let wish = SetUp { shards: args.shards.unwrap_or(0), dry_run: args.dry_run };
    let made = schema::set_up(&global.connect().await?, &wish).await?;
    if global.json() {
        say!("{}", render::set_up_json(&made));
    } else {
        say_text!("{}", render::set_up(&made));
    }
    Ok(Exit::Ok)
}

/// The id of a request: the one given, or a new one.
fn request_id(given: Option<String>) -> String {
    given.unwrap_or_else(|| format!("trivet-{:016x}", random_u64()))
}

/// Tells who does not know what became of a request how to find out.
fn with_request<T>(result: trivet::types::Result<T>, id: &str) -> Ended<T> {
    result.map_err(|error| {
        let open = matches!(error.kind(), Kind::Undetermined | Kind::Internal);
        let stop = Stop::from(error);
        if !open {
            return stop;
        }
        let message = format!("{}; repeat the command with --request {id} to be sure of it", stop.message);
        Stop { message, ..stop }
    })
}

async fn create(args: Create, global: &Global) -> Ended {
    let submission = Submission {
        business_key: args.key,
        user_id: args.user,
        amount: args.amount,
        items: args.items,
        created_ms: args.created.map(Timestamp::millis),
    };
    let new = NewOrder { request_id: request_id(args.request), submission };
    let answer = with_request(connect(global).await?.create(&new).await, &new.request_id)?;
    if global.json() {
        say!("{}", render::created_json(&answer)?);
    } else {
        let said = if answer.body.duplicate { "submitted before as" } else { "created" };
        say!("{said} {}", render::order_line(&answer.body.found));
    }
    Ok(Exit::Ok)
}

async fn transition(args: Transition, global: &Global) -> Ended {
    let id = request_id(args.request);
    let step = Move { to: args.to, who: args.who, note: args.note, request_id: id.clone() };
    let wish = TransitionWish { order_id: args.order, step, if_version: args.if_version };
    let answer = with_request(connect(global).await?.transition(&wish).await, &id)?;
    if global.json() {
        say!("{}", render::moved_json(&answer)?);
    } else {
        let said = if answer.body.repeated { "had moved" } else { "moved" };
        say!("{said} to {}: {}", answer.body.step.to, render::order_line(&answer.body.found));
    }
    Ok(Exit::Ok)
}

async fn archive(args: Archive, global: &Global) -> Ended {
    let orders = connect(global).await?;
    let mut wish = ArchiveWish { older_than: args.older_than, dry_run: args.dry_run, ..ArchiveWish::default() };
    let mut all = Archived::default();
    loop {
        let left = args.limit.map_or(u64::MAX, |limit| limit.saturating_sub(all.order_ids.len() as u64));
        if left == 0 {
            break;
        }
        wish.limit = u32::try_from(left).unwrap_or(ARCHIVE_LIMIT_MAX).min(ARCHIVE_LIMIT_MAX);
        let done = orders.archive(&wish).await.map_err(|error| {
            // What was moved stays moved; a look at the order says so too.
            let stop = Stop::from(error);
            if all.order_ids.is_empty() { stop } else { stop.about(format!("after {} orders", all.order_ids.len())) }
        })?;
        let done = done.body;
        all.examined += done.examined;
        all.order_ids.extend(done.order_ids);
        all.resumed += done.resumed;
        all.changed += done.changed;
        all.unreadable += done.unreadable;
        all.page_token = done.page_token;
        wish.page_token.clone_from(&all.page_token);
        if wish.page_token.is_none() {
            break;
        }
    }
    if global.json() {
        say!("{}", render::archived_json(&all, args.dry_run));
    } else {
        say_text!("{}", render::archived(&all, args.dry_run));
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use trivet::types::Reason;

    use super::*;

    #[test]
    fn items_are_typed_with_what_is_known() {
        let item =
            |text| parse_item(text).map(|item| (item.product_id, item.quantity, item.price.map(|p| p.to_string())));
        assert_eq!(item("p-1"), Ok(("p-1".into(), 1, None)));
        assert_eq!(item("p-1:3"), Ok(("p-1".into(), 3, None)));
        assert_eq!(item("p-1:3:6.5"), Ok(("p-1".into(), 3, Some("6.50".into()))));
        for wrong in ["p-1:", "p-1:many", "p-1:1:free", "p-1:-1"] {
            assert!(parse_item(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_open_outcome_names_the_request() {
        let error = trivet::types::Error::new(Reason::ResultUndetermined, "it is open");
        let stop = with_request::<()>(Err(error), "r-1").expect_err("open");
        assert!(stop.message.ends_with("--request r-1 to be sure of it"), "{}", stop.message);
        let error = trivet::types::Error::new(Reason::KeyTaken, "it is taken");
        assert!(!with_request::<()>(Err(error), "r-1").expect_err("refused").message.contains("--request"));
    }
}
