//! What a person may order over HTTP. Each order can be given again without harm, and is said in the log with its
//! outcome.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wal::{Position, WalError};

use super::backlog::{UNREADABLE, chosen};
use super::blocking::blocking;
use super::routes::Problem;
use super::site::Site;
use crate::control::{OnHold, Stage};
use crate::dead_letters::{DeadLetterError, LetterFilter, LetterOrder, Outcome, Verb};
use crate::orders::{Order, Orders};
use crate::pipeline::PipelineView;

/// How long an order that another thread carries out has, before the answer says that it is still at it.
const ORDER_WAIT: Duration = Duration::from_secs(8);
/// What is wrong with an order that failed.
const NOT_CARRIED_OUT: &str = "not carried out";

/// Which pipelines.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Which {
    /// This one; all unless said.
    pipeline: Option<String>,
}

/// Which stage of which pipelines.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WhichStage {
    /// This one; all unless said.
    pipeline: Option<String>,
    /// This one; both unless said.
    stage: Option<Stage>,
}

/// What is paused now.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct HeldNow {
    /// The pipeline.
    pipeline: &'static str,
    /// What pauses.
    held: OnHold,
    /// What waits in its log.
    backlog_records: u64,
}

fn failed(detail: String) -> Problem {
    Problem { status: StatusCode::INTERNAL_SERVER_ERROR, title: NOT_CARRIED_OUT, detail }
}

fn decide(
    site: &Site,
    name: Option<&str>,
    change: impl Fn(OnHold) -> OnHold,
) -> Result<Vec<HeldNow>, Problem> {
    let mut now = Vec::new();
    for view in chosen(site, name)? {
        let held = change(view.held());
        site.parts.control.decide(view.name, held).map_err(|error| failed(error.to_string()))?;
        view.hold(held);
        let backlog_records = view.wal.status().backlog_records;
        now.push(HeldNow { pipeline: view.name, held, backlog_records });
    }
    Ok(now)
}

fn with(held: OnHold, stage: Option<Stage>, value: bool) -> OnHold {
    match stage {
        None => OnHold { intake: value, delivery: value },
        Some(Stage::Intake) => OnHold { intake: value, ..held },
        Some(Stage::Delivery) => OnHold { delivery: value, ..held },
    }
}

/// Pauses; the group does not notice, and what is under way is finished.
pub(super) async fn pause(site: Site, which: WhichStage) -> Result<Vec<HeldNow>, Problem> {
    decide(&site, which.pipeline.as_deref(), |held| with(held, which.stage, true))
}

/// Goes on.
pub(super) async fn resume(site: Site, which: WhichStage) -> Result<Vec<HeldNow>, Problem> {
    decide(&site, which.pipeline.as_deref(), |held| with(held, which.stage, false))
}

/// Takes nothing more from Kafka and delivers what is there: for work on this machine. `resume` ends it.
pub(super) async fn drain(site: Site, which: Which) -> Result<Vec<HeldNow>, Problem> {
    decide(&site, which.pipeline.as_deref(), |_| OnHold { intake: true, delivery: false })
}

/// Where a log stands after a checkpoint.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Checkpointed {
    pipeline: &'static str,
    durable: u64,
    delivered: u64,
    reclaimed: u64,
}

/// Makes what is delivered durable as such, and gives back the space that its hold-back allows.
pub(super) async fn checkpoint(site: Site, which: Which) -> Result<Vec<Checkpointed>, Problem> {
    let views = chosen(&site, which.pipeline.as_deref())?;
    blocking(UNREADABLE, move || {
        let mut done = Vec::new();
        for view in views {
            let now = site.parts.inspect.uptime();
            view.wal.checkpoint(view.redelivery.hold_back_clock(now))?;
            let status = view.wal.status();
            done.push(Checkpointed {
                pipeline: view.name,
                durable: status.durable.get(),
                delivered: status.delivered.get(),
                reclaimed: status.reclaimed.get(),
            });
        }
        Ok::<_, WalError>(done)
    })
    .await
}

/// What is to be logged from now on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewLevel {
    /// As `logging.level`: `info`, or `info,monasca_persister=debug`.
    level: String,
}

/// What is logged now.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LevelNow {
    level: String,
    before: String,
}

/// Changes the log's level until the next start.
pub(super) async fn log_level(site: Site, new: NewLevel) -> Result<LevelNow, Problem> {
    let before = site.parts.log_level.current();
    site.parts.log_level.set(&new.level).map_err(|error| Problem {
        status: StatusCode::UNPROCESSABLE_ENTITY,
        title: "bad level",
        detail: error.to_string(),
    })?;
    Ok(LevelNow { level: new.level, before })
}

/// An order that the pipeline carries out within a second.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Ordered {
    pipeline: &'static str,
    order: &'static str,
    /// It was carried out; otherwise it is as soon as it can be, also after a restart.
    done: bool,
}

async fn order(
    site: &Site,
    which: &Which,
    order: Order,
    name: &'static str,
) -> Result<Vec<Ordered>, Problem> {
    let views = chosen(site, which.pipeline.as_deref())?;
    for view in &views {
        let orders = Orders::of(&site.parts.data_dir, view.name);
        orders.give(&order).map_err(|error| failed(error.to_string()))?;
    }
    let deadline = Instant::now() + ORDER_WAIT;
    let is_done = |view: &Arc<PipelineView>| {
        let pending = Orders::of(&site.parts.data_dir, view.name).pending();
        !pending.iter().any(|(_, waiting)| *waiting == order)
    };
    while Instant::now() < deadline && !views.iter().all(is_done) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let outcome =
        views.iter().map(|view| Ordered { pipeline: view.name, order: name, done: is_done(view) });
    Ok(outcome.collect())
}

/// Takes note of gaps and of what is lost: the status forgets them.
pub(super) async fn acknowledge(site: Site, which: Which) -> Result<Vec<Ordered>, Problem> {
    order(&site, &which, Order::Acknowledge, "acknowledge").await
}

/// Goes on with partitions that stopped at a gap.
pub(super) async fn accept(site: Site, which: Which) -> Result<Vec<Ordered>, Problem> {
    order(&site, &which, Order::Accept, "accept").await
}

/// Which dead letters, and that it is meant.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LetterChoice {
    /// Conditions that must all hold; without any, `all` is needed.
    filter: LetterFilter,
    /// All there are.
    all: bool,
    /// How many are meant, repetitions included, as the answer without it has said. Without it nothing is done.
    confirm: Option<u64>,
}

/// What becomes, or would become, of dead letters.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LetterAnswer {
    /// Letters that are meant, repetitions included.
    meant: u64,
    /// What was done; absent when nothing was: send `confirm` with the number of `meant`.
    outcome: Option<Outcome>,
    /// The order was given and is still being carried out.
    pending: bool,
}

/// Has dead letters delivered anew.
pub(super) async fn retry(site: Site, choice: LetterChoice) -> Result<LetterAnswer, Problem> {
    letters(site, choice, Verb::Retry).await
}

/// Removes dead letters for good.
pub(super) async fn purge(site: Site, choice: LetterChoice) -> Result<LetterAnswer, Problem> {
    letters(site, choice, Verb::Drop).await
}

async fn letters(site: Site, choice: LetterChoice, verb: Verb) -> Result<LetterAnswer, Problem> {
    let LetterChoice { filter, all, confirm } = choice;
    if filter.is_everything() != all {
        return Err(Problem {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            title: "which letters?",
            detail: "conditions in `filter`, or `all` without any".to_owned(),
        });
    }
    let (meant, end) = count(&site, filter.clone()).await?;
    match confirm {
        None => return Ok(LetterAnswer { meant, outcome: None, pending: false }),
        Some(confirm) if confirm != meant => {
            return Err(Problem {
                status: StatusCode::CONFLICT,
                title: "not what was confirmed",
                detail: format!("{meant} letters are meant, {confirm} were confirmed: look again"),
            });
        }
        Some(_) => {}
    }
    let orders = site.parts.letter_orders.clone();
    let order = LetterOrder { verb, filter, end: end.get() };
    let name = orders.give(&order).map_err(|error| failed(error.to_string()))?;
    let deadline = Instant::now() + ORDER_WAIT;
    while Instant::now() < deadline {
        let outcome = orders.outcome(&name).map_err(|error| failed(error.to_string()))?;
        if outcome.is_some() {
            return Ok(LetterAnswer { meant, outcome, pending: false });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(LetterAnswer { meant, outcome: None, pending: true })
}

async fn count(site: &Site, filter: LetterFilter) -> Result<(u64, Position), Problem> {
    let inspect = Arc::clone(&site.parts.inspect);
    blocking(NOT_CARRIED_OUT, move || {
        let mut meant = 0_u64;
        let end = inspect.dead_letters().walk(Position::ZERO, |position, letter| {
            meant = meant.saturating_add(u64::from(filter.matches(position, &letter)));
            ControlFlow::Continue(())
        })?;
        Ok::<_, DeadLetterError>((meant, end))
    })
    .await
}
