//! `completions` and `man`: made of the very definition of the command line.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use crate::exit;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  monasca-persister completions bash > /usr/share/bash-completion/completions/monasca-persister"
)]
pub(crate) struct CompletionArgs {
    /// For which shell.
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  monasca-persister man | man -l -\n  monasca-persister man --to /usr/local/share/man/man1"
)]
pub(crate) struct ManArgs {
    /// A page for each command into this directory, instead of the main one to standard output.
    #[arg(long, value_name = "DIRECTORY")]
    to: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionArgs) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "monasca-persister", &mut script);
    print_text(script)
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<u8> {
    let command = Cli::command();
    match &args.to {
        Some(dir) => clap_mangen::generate_to(command, dir)
            .with_context(|| format!("write to {}", dir.display()))?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).context("write the manual")?;
            return print_text(page);
        }
    }
    Ok(exit::OK)
}

fn print_text(text: Vec<u8>) -> anyhow::Result<u8> {
    print!("{}", String::from_utf8(text).context("print")?);
    Ok(exit::OK)
}
