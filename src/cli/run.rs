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
    let log_level = super::init_logging(&loaded.config)?;
    super::end_on_panic();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        file = ?loaded.file,
        variables = ?loaded.variables,
        "configuration loaded"
    );
    let (handle, signal) = service::stop_channel();
    let (wanted, reload) = crossbeam_channel::bounded(1);
    stop_on_signals(handle, Some(wanted))?;
    let file = args.file.clone();
    let reload = service::Reload { wanted: reload, load: Box::new(move || file.load()) };
    let summary = service::run(&loaded, args.adopt, log_level, &signal, reload, |_running| {})?;
    Ok(if summary.clean { crate::exit::OK } else { crate::exit::DISK })
}

/// SIGTERM and SIGINT stop the service; a second one skips the drain. SIGHUP has the configuration read again.
pub(super) fn stop_on_signals(
    handle: StopHandle,
    reload: Option<crossbeam_channel::Sender<()>>,
) -> anyhow::Result<()> {
    use anyhow::Context as _;
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start signal runtime")?;
    let (mut terminate, mut interrupt, mut hangup) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            signal(SignalKind::hangup()).context("listen for SIGHUP")?,
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
                        _ = hangup.recv(), if reload.is_some() => {
                            // One that waits already reads what is there by then.
                            let _waits = reload.as_ref().map(|reload| reload.try_send(()));
                            continue;
                        }
                    }
                    handle.stop();
                }
            });
        })
        .context("start signal thread")?;
    Ok(())
}
