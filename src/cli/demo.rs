//! `demo`: the main job on embedded defaults, without anything to set up.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::running::{Running, TokenArgs};
use crate::config::{Config, Loaded, StoreKind};
use crate::demo::broker::{DemoBroker, Topics};
use crate::{exit, service};

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// End after this time, for example 20s; without it the demo runs until Ctrl-C.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Where the log and the store are kept; a second demo begins anew.
    #[arg(long, default_value = "demo-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Where HTTP answers.
    #[arg(long, default_value = "127.0.0.1:8091", value_name = "ADDRESS")]
    bind: std::net::SocketAddr,
}

pub(super) fn demo(args: &DemoArgs) -> anyhow::Result<u8> {
    let mut config = Config { data_dir: args.data_dir.clone(), ..Config::default() };
    config.http.bind = args.bind;
    config.store.kind = StoreKind::Sled;
    config.wal.hold_back = Duration::from_secs(5);
    config.logging.level = "warn".to_owned();
    let log_level = super::init_logging(&config)?;
    super::end_on_panic();

    let topics =
        Topics { metrics: config.metrics.topic.clone(), alarms: config.alarms.topic.clone() };
    let mut broker = DemoBroker::start(topics)?;
    config.kafka.bootstrap_servers = vec![broker.bootstrap().to_owned()];
    begin_anew(&config.data_dir)?;
    let program = program();

    let (handle, signal) = service::stop_channel();
    super::run::stop_on_signals(handle.clone(), None)?;
    println!(
        "monasca-persister demo: this machine's own metrics -> Kafka (in this process) -> log -> sled store\n"
    );
    let duration = args.duration;
    let (show_stop, show_stopped) = crossbeam_channel::bounded::<()>(0);
    let mut shown = None;
    let summary = service::run(
        &Loaded::of(config),
        false,
        log_level,
        &signal,
        service::Reload::never(),
        |running| {
            let url = format!("http://{}", running.http);
            println!("HTTP      {url}/          (try {url}/api/v1/backlog?pretty)");
            println!("query     {program} query --url {url}");
            println!("alarms    {url}/api/v1/query/alarms");
            match duration {
                Some(duration) => {
                    println!("end       after {}\n", humantime::format_duration(duration))
                }
                None => println!("end       Ctrl-C\n"),
            }
            let ends_at = duration.map(|duration| Instant::now() + duration);
            shown = std::thread::Builder::new()
                .name("demo-display".to_owned())
                .spawn(move || {
                    while let Err(crossbeam_channel::RecvTimeoutError::Timeout) =
                        show_stopped.recv_timeout(Duration::from_secs(2))
                    {
                        show(&url);
                        if ends_at.is_some_and(|at| Instant::now() >= at) {
                            handle.stop();
                            return;
                        }
                    }
                })
                .ok();
        },
    )?;
    drop(show_stop);
    if let Some(thread) = shown
        && thread.join().is_err()
    {
        eprintln!("the demo's display panicked");
    }
    broker.stop_feeding();
    println!("\n{}", summary.line());
    println!(
        "sent: {} messages; what came after the stop is still in the demo's broker",
        broker.sent()
    );
    println!("everything is kept in {}; read it again with:", args.data_dir.display());
    println!("  {program} query --data-dir {}", args.data_dir.display());
    Ok(if summary.clean { exit::OK } else { exit::DISK })
}

/// One line about what flows, from the running service's own answers.
fn show(url: &str) {
    let Ok(running) = Running::at(url, &TokenArgs::default()) else { return };
    let Ok(backlog) = running.get("/api/v1/backlog") else { return };
    let Ok(backlog) = serde_json::from_str::<serde_json::Value>(&backlog.body) else { return };
    let mut line = String::new();
    for pipeline in ["metrics", "alarms"] {
        use std::fmt::Write as _;
        let number = |key: &str| {
            backlog
                .pointer(&format!("/pipelines/{pipeline}/{key}"))
                .and_then(serde_json::Value::as_u64)
                .unwrap_or(0)
        };
        // Writing to a String does not fail.
        let _infallible = write!(
            line,
            "{pipeline}: {} in the log, {} delivered, {} waiting   ",
            number("durable"),
            number("delivered"),
            number("records")
        );
    }
    println!("{}", line.trim_end());
}

/// This program as a person in the current directory types it.
fn program() -> String {
    let Ok(program) = std::env::current_exe() else { return "monasca-persister".to_owned() };
    let here = std::env::current_dir().unwrap_or_default();
    program.strip_prefix(here).unwrap_or(&program).display().to_string()
}

/// Marks a directory as a demo's own, so that no other is ever removed.
const MARKER: &str = ".monasca-persister-demo";

/// The in-process broker starts empty each time, and the log of an earlier demo would wait for its offsets: each demo
/// begins anew.
fn begin_anew(dir: &std::path::Path) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let marker = dir.join(MARKER);
    if marker.exists() {
        std::fs::remove_dir_all(dir)
            .with_context(|| format!("remove the data of an earlier demo in {}", dir.display()))?;
    }
    let used = dir.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    anyhow::ensure!(
        !used,
        "{} is not empty and not from an earlier demo: choose another --data-dir",
        dir.display()
    );
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    std::fs::write(&marker, "").with_context(|| format!("write {}", marker.display()))
}
