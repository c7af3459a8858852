//! The verbs on orders that read: get, trace, list, stats, product.

use trivet::orders::{ListWish, PAGE_SIZE_MAX, Status};
use trivet::types::ReadLevel;

use super::exit::{Ended, Exit, Stop};
use super::{Global, data, order, render, text};

/// Orders shown without --limit.
const LIMIT_DEFAULT: u64 = 50;

/// How fresh an answer must be.
#[derive(Clone, Debug, clap::Args)]
pub struct Freshness {
    /// How fresh: linearizable, any, max-age=DURATION or at-least=VERSION (of an earlier answer)
    #[arg(long, value_name = "LEVEL", default_value = "linearizable", value_parser = data::parse_level)]
    level: ReadLevel,
}

/// Shows an order, whether it is live or archived. Exits with 3 if there is none.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet order get o-9z3k\n  trivet order get o-9z3k -o json --level any")]
pub struct Get {
    /// The order's id
    order: String,
    #[command(flatten)]
    freshness: Freshness,
}

/// Shows how an order came to be where it is: every step, who did it and why.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet order trace o-9z3k")]
pub struct Trace {
    /// The order's id
    order: String,
    #[command(flatten)]
    freshness: Freshness,
}

/// Lists a user's orders, newest first, from the view orders_by_user.
///
/// The view follows the orders within moments: to see an order that you have just created or moved, ask with --level
/// at-least=VERSION, the version that the command printed.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet order list 42\n  trivet order list 42 --status paid --status shipped --limit 10\n  trivet order list 42 --level at-least=117637120008060935 -o json"
)]
pub struct List {
    /// The user
    user: String,
    /// Only orders in this status; may be given several times
    #[arg(long, value_name = "STATUS", value_parser = order::parse_status)]
    status: Vec<Status>,
    /// Show so many at most
    #[arg(long, value_name = "N", default_value_t = LIMIT_DEFAULT, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Go on after the page that printed this token
    #[arg(long, value_name = "TOKEN")]
    page: Option<String>,
    #[command(flatten)]
    freshness: Freshness,
}

/// Counts and sums a user's orders that are neither cancelled nor refunded, from the view user_stats.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet order stats 42 --level max-age=5s")]
pub struct Stats {
    /// The user
    user: String,
    #[command(flatten)]
    freshness: Freshness,
}

/// Shows a product: base, specification and price together, from the view products. Exits with 3 if there is none.
///
/// The parts are written to the tables product_base, product_spec and product_price, as JSON documents with a product_id.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet put product_base p-1 '{\"product_id\": \"p-1\", \"name\": \"Tea\"}'\n  trivet order product p-1"
)]
pub struct Product {
    /// The product's id
    product: String,
    #[command(flatten)]
    freshness: Freshness,
}

/// Runs `get`.
pub async fn get(args: Get, global: &Global) -> Ended {
    let answer = order::connect(global).await?.get(&args.order, args.freshness.level).await?;
    if global.json() {
        say!("{}", render::found_json(&answer)?);
    } else {
        say_text!("{}", render::order(&answer));
    }
    Ok(Exit::Ok)
}

/// Runs `trace`.
pub async fn trace(args: Trace, global: &Global) -> Ended {
    let answer = order::connect(global).await?.get(&args.order, args.freshness.level).await?;
    for step in answer.body.order.trace.iter().filter(|_| global.json()) {
        say!("{}", serde_json::to_string(step).map_err(|error| Stop::error(error.to_string()))?);
    }
    if !global.json() {
        say_text!("{}", render::trace(&answer.body.order));
    }
    Ok(Exit::Ok)
}

/// Runs `list`.
pub async fn list(args: List, global: &Global) -> Ended {
    let orders = order::connect(global).await?;
    let mut wish = ListWish {
        user_id: args.user,
        statuses: args.status,
        page_token: args.page.as_deref().map(text::unhex).transpose().map_err(Stop::usage)?,
        level: args.freshness.level,
        ..ListWish::default()
    };
    let (mut shown, mut unreadable) = (0, 0);
    loop {
        wish.page_size = u32::try_from(args.limit - shown).unwrap_or(PAGE_SIZE_MAX).min(PAGE_SIZE_MAX);
        let answer = orders.list(&wish).await?;
        if global.json() {
            say_text!("{}", render::listed_json(&answer)?);
        } else {
            say_text!("{}", render::listed(&answer, shown == 0));
        }
        shown += answer.body.orders.len() as u64;
        unreadable += answer.body.unreadable;
        wish.page_token.clone_from(&answer.body.page_token);
        let Some(token) = &wish.page_token else {
            if !global.json() {
                say!("{}, {}", text::count(shown, "order"), render::age(&answer.header));
            }
            break;
        };
        if shown >= args.limit {
            eprintln!("there may be more: --page {}", text::hex(token));
            break;
        }
    }
    if unreadable > 0 {
        let rows = text::count(unreadable, "row");
        eprintln!(
            "left out {rows} of the view that cannot be read as orders: `trivet view verify orders_by_user` mends it"
        );
    }
    Ok(Exit::Ok)
}

/// Runs `stats`.
pub async fn stats(args: Stats, global: &Global) -> Ended {
    let answer = order::connect(global).await?.user_stats(&args.user, args.freshness.level).await?;
    if global.json() {
        say!("{}", render::stats_json(&answer));
    } else {
        say_text!("{}", render::stats(&answer));
    }
    Ok(Exit::Ok)
}

/// Runs `product`.
pub async fn product(args: Product, global: &Global) -> Ended {
    let answer = order::connect(global).await?.product(&args.product, args.freshness.level).await?;
    if global.json() {
        say!("{}", render::product_json(&answer)?);
    } else {
        say_text!("{}", render::product(&answer));
    }
    Ok(Exit::Ok)
}
