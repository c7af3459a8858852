//! Somebody who looks on: how far the views are, whether they hold what they should; and who has one rest now and then.

use std::time::Duration;

use serde_json::{Value, json};
use trivet::client::Admin;
use trivet::types::Error;

use super::super::Context;
use super::super::access::{Doors, Lost};
use super::super::worker::{lose, until_read, with};
use super::{BY_USER, MERGED, SUMS};
use crate::history::{Extra, Process};

const VIEWS: [&str; 3] = [BY_USER, SUMS, MERGED];
/// Longest time for one question.
const PATIENCE: Duration = Duration::from_secs(6);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(700);
/// Every so many looks it compares a view, and every so many it has the sums rest until the next look.
const COMPARE_EVERY: usize = 8;
const REST_EVERY: usize = 20;

/// Looks on until the stop signal.
pub(super) async fn run(context: &Context, doors: &Doors) -> anyhow::Result<()> {
    let (admin, mut process, mut stop) = (doors.admin(PATIENCE), context.history.process(), context.stop.clone());
    let mut rests = false;
    for turn in 0_usize.. {
        if tokio::time::timeout(LOOK, stop.wait_for(|stop| *stop)).await.is_ok() {
            break;
        }
        let view = VIEWS[turn % VIEWS.len()];
        if rests {
            rests = !pause(&mut process, &admin, false).await;
        } else if turn % REST_EVERY == REST_EVERY - 1 {
            rests = pause(&mut process, &admin, true).await;
        } else if turn % COMPARE_EVERY == COMPARE_EVERY - 1 {
            verify(&mut process, &admin, VIEWS[turn / COMPARE_EVERY % VIEWS.len()], Extra::new()).await;
        } else {
            describe(&mut process, &admin, view).await;
        }
    }
    Ok(())
}

/// Has the sums go on, should they rest.
pub(super) async fn resume(context: &Context, doors: &Doors) -> anyhow::Result<()> {
    let (admin, process) = (doors.admin(PATIENCE), tokio::sync::Mutex::new(context.history.process()));
    until_read("a view that rests", || async { pause(&mut *process.lock().await, &admin, false).await }).await
}

/// Compares every view when all is quiet.
pub(super) async fn verify_all(context: &Context, doors: &Doors) -> anyhow::Result<()> {
    let (admin, process) = (doors.admin(PATIENCE), tokio::sync::Mutex::new(context.history.process()));
    for view in VIEWS {
        until_read("a comparison", || async {
            verify(&mut *process.lock().await, &admin, view, with(Extra::new(), "quiet", 1)).await
        })
        .await?;
    }
    Ok(())
}

fn refused(error: Error) -> Lost {
    Lost { error, unknown: false }
}

async fn describe(process: &mut Process, admin: &Admin, view: &str) {
    let pending = process.invoke("describe", view, Value::Null);
    match admin.view(view).await {
        Ok(told) => {
            let lags = told.lags.into_iter().flatten();
            let lags: Vec<Value> = lags.map(|lag| json!({"table": lag.table, "building": lag.building})).collect();
            pending.ok(json!({"state": told.state.as_str(), "lags": lags}));
        }
        Err(error) => lose(pending, &refused(error)),
    }
}

async fn verify(process: &mut Process, admin: &Admin, view: &str, extra: Extra) -> bool {
    let pending = process.invoke_with("verify", view, Value::Null, extra);
    match admin.verify_view(view, None, false).await {
        Ok(found) => {
            let samples = found.samples.iter().take(5);
            let samples: Vec<String> = samples
                .map(|(key, difference)| format!("{} {}", difference.as_str(), String::from_utf8_lossy(key)))
                .collect();
            let told = json!({
                "rows": found.rows, "missing": found.missing, "invented": found.invented, "other": found.other,
                "unfit": found.unfit, "samples": samples,
            });
            pending.ok(told);
            true
        }
        Err(error) => {
            lose(pending, &refused(error));
            false
        }
    }
}

/// Has the sums rest, or go on; whether it may now be so.
async fn pause(process: &mut Process, admin: &Admin, paused: bool) -> bool {
    let pending = process.invoke_with("pause", SUMS, json!(paused), with(Extra::new(), "paused", paused));
    match admin.pause_view(SUMS, paused).await {
        Ok(_) => {
            pending.ok(json!(paused));
            true
        }
        Err(error) => {
            let unknown = error.kind().leaves_open();
            lose(pending, &Lost { error, unknown });
            // Whoever does not know has it go on.
            paused
        }
    }
}
