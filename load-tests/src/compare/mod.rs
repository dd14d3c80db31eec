//! stub
use anyhow::Result;
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {}
pub(crate) fn run(_: &CompareArgs) -> Result<bool> {
    Ok(true)
}
