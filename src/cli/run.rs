//! `run`: the service itself.

use clap::Args;

use super::ConfigFile;
use crate::service::{self, StopHandle};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Take over a data directory that belongs to another instance.
    #[arg(long)]
    adopt: bool,
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<u8> {
    let loaded = args.file.load()?;
    super::init_logging(&loaded.config)?;
    super::end_on_panic();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        file = ?loaded.file,
        variables = ?loaded.variables,
        "configuration loaded"
    );
    let (handle, signal) = service::stop_channel();
    stop_on_signals(handle)?;
    let summary = service::run(&loaded.config, args.adopt, &signal, |_running| {})?;
    Ok(if summary.clean { crate::exit::OK } else { crate::exit::DISK })
}

/// SIGTERM and SIGINT stop the service; a second one skips the drain.
pub(super) fn stop_on_signals(handle: StopHandle) -> anyhow::Result<()> {
    use anyhow::Context as _;
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start signal runtime")?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            signal(SignalKind::interrupt()).context("listen for SIGINT")?,
        )
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                    handle.stop();
                }
            });
        })
        .context("start signal thread")?;
    Ok(())
}
