//! What waits: in numbers, by whom, and record by record.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wal::{DiskFs, WalError, inventory};

use super::blocking::blocking;
use super::routes::Problem;
use super::site::Site;
use crate::inspect::Backlog;
use crate::peek::{self, By, Census, Effort, Group, PageOf, RecordPage};
use crate::pipeline::{PipelineView, log_dir};

/// There is an answer before the request's time is over.
const EFFORT: Effort = Effort { records_max: 2_000_000, time_max: Duration::from_secs(5) };
/// How long a question waits for others; what is left of a request's time is for its own answer.
const LOOK_WAIT: Duration = Duration::from_secs(4);
/// What is wrong when a log cannot be read.
pub(super) const UNREADABLE: &str = "the log cannot be read";
const TOP_DEFAULT: usize = 20;
const TOP_MAX: usize = 1000;
const PAGE_DEFAULT: usize = 20;
const PAGE_MAX: usize = 1000;

/// How the backlog is to be told apart.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BacklogParameters {
    /// Also count the waiting records by this.
    by: Option<By>,
    /// Most groups listed, 20 unless said.
    top: Option<usize>,
    /// Only this pipeline's groups.
    pipeline: Option<String>,
}

/// What waits, and whose it is if that was asked.
#[derive(Serialize, JsonSchema)]
pub(super) struct BacklogAnswer {
    #[serde(flatten)]
    backlog: Backlog,
    #[serde(skip_serializing_if = "Option::is_none")]
    census: Option<Census>,
}

pub(super) async fn backlog(
    site: Site,
    parameters: BacklogParameters,
) -> Result<BacklogAnswer, Problem> {
    let backlog = site.parts.inspect.backlog();
    let Some(by) = parameters.by else {
        return Ok(BacklogAnswer { backlog, census: None });
    };
    let top = parameters.top.unwrap_or(TOP_DEFAULT).min(TOP_MAX);
    let views = chosen(&site, parameters.pipeline.as_deref())?;
    let census = looking(&site, move || {
        let (mut groups, mut records, mut complete) = (Vec::<Group>::new(), 0_u64, true);
        for view in views {
            let mut found = HashMap::new();
            let (looked_at, all) =
                peek::census(&view.wal, view.name, view.kind, by, EFFORT, &mut found)?;
            records = records.saturating_add(looked_at);
            complete &= all;
            groups.extend(found.into_values());
        }
        let groups_total = groups.len();
        let groups = peek::ranked(by, groups, top);
        Ok(Census { by, groups, groups_total, records, complete })
    })
    .await?;
    Ok(BacklogAnswer { backlog, census: Some(census) })
}

/// Which page of which pipeline.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordParameters {
    /// The pipeline, `metrics` unless said.
    pipeline: Option<String>,
    /// From this position on: `next` of the page before.
    from: Option<u64>,
    /// Most records, 20 unless said.
    limit: Option<usize>,
    /// Only those of this tenant.
    tenant: Option<String>,
    /// Only those of this metric.
    metric: Option<String>,
}

pub(super) async fn records(
    site: Site,
    parameters: RecordParameters,
) -> Result<RecordPage, Problem> {
    let RecordParameters { pipeline: name, from, limit, tenant, metric } = parameters;
    let view = pipeline(&site, name.as_deref().unwrap_or("metrics"))?;
    let of = PageOf {
        from: from.unwrap_or(0),
        limit: limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX),
        tenant,
        metric,
    };
    looking(&site, move || peek::page(&view.wal, view.name, view.kind, &of, EFFORT)).await
}

/// Whose segments.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SegmentParameters {
    /// Only this pipeline's.
    pipeline: Option<String>,
}

/// The files of one log.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LogFiles {
    /// The pipeline.
    pipeline: &'static str,
    /// The directory.
    directory: String,
    /// Which log it is.
    log_id: Option<String>,
    /// How many times it was opened.
    incarnation: u64,
    /// Files with records, oldest first.
    segments: Vec<Segment>,
    /// Files that stand ready, and others without records.
    unused: Vec<String>,
    /// What is wrong with headers, links and names.
    flaws: Vec<String>,
}

/// One file of a log.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Segment {
    /// Its number.
    number: u64,
    /// Its name in the directory.
    file: String,
    /// Position of its first record.
    from: u64,
    /// Position after its last record; unknown for a damaged one.
    to: Option<u64>,
    /// Bytes of the file.
    bytes: u64,
    /// When it was made, milliseconds since the epoch.
    created_ms: Option<u64>,
    /// Everything in it is delivered: it goes when its hold-back is over.
    delivered: bool,
}

pub(super) async fn segments(
    site: Site,
    parameters: SegmentParameters,
) -> Result<Vec<LogFiles>, Problem> {
    let views = chosen(&site, parameters.pipeline.as_deref())?;
    let data_dir = site.parts.data_dir.clone();
    looking(&site, move || views.iter().map(|view| log_files(&data_dir, view)).collect()).await
}

fn log_files(data_dir: &std::path::Path, view: &PipelineView) -> Result<LogFiles, WalError> {
    let directory = log_dir(data_dir, view.name);
    let shown = directory.display().to_string();
    let fs = DiskFs::open_existing(&directory).map_err(|source| WalError::Io {
        op: "open",
        path: shown.clone(),
        source: Arc::new(source),
    })?;
    let found = inventory(&fs)?;
    let delivered = view.wal.delivered();
    let segments = found.segments.iter().map(|segment| Segment {
        number: segment.number.get(),
        file: segment.file.clone(),
        from: segment.base.get(),
        to: segment.last.map(wal::Position::get),
        bytes: segment.bytes,
        created_ms: segment.created_ms,
        delivered: segment.last.is_some_and(|last| last <= delivered),
    });
    Ok(LogFiles {
        pipeline: view.name,
        directory: shown,
        log_id: found.log_id.map(|id| id.to_string()),
        incarnation: found.incarnation.get(),
        segments: segments.collect(),
        unused: found.unused,
        flaws: found.flaws.iter().map(|flaw| format!("{flaw:?}")).collect(),
    })
}

/// The pipeline of this name, or all of them.
pub(super) fn chosen(site: &Site, name: Option<&str>) -> Result<Vec<Arc<PipelineView>>, Problem> {
    match name {
        Some(name) => Ok(vec![pipeline(site, name)?]),
        None => Ok(site.parts.inspect.pipelines().to_vec()),
    }
}

fn pipeline(site: &Site, name: &str) -> Result<Arc<PipelineView>, Problem> {
    let views = site.parts.inspect.pipelines();
    views.iter().find(|view| view.name == name).cloned().ok_or_else(|| {
        let known: Vec<&str> = views.iter().map(|view| view.name).collect();
        Problem {
            status: StatusCode::NOT_FOUND,
            title: "no such pipeline",
            detail: format!("`{name}` does not run here; there are: {}", known.join(", ")),
        }
    })
}

/// Reads files when few others do; who asks while many look is told to ask again.
async fn looking<T: Send + 'static>(
    site: &Site,
    read: impl FnOnce() -> Result<T, WalError> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::time::timeout(LOOK_WAIT, site.looks.acquire()).await {
        Ok(Ok(_seat)) => blocking(UNREADABLE, read).await,
        Ok(Err(_)) | Err(_) => Err(Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            title: "too many questions",
            detail: "others read the log now; ask again".to_owned(),
        }),
    }
}
