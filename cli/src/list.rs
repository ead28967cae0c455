//! `ringfold list`: streams.
use crate::Global;
use crate::connect::connect;
use crate::error::CliError;
use crate::output::Out;
use crate::record::StreamRecord;
use futures::StreamExt;
use ringfold_client::{Consistency, ListOptions};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only streams of this category
    #[arg(long)]
    category: Option<String>,
    /// Only names that begin so
    #[arg(long)]
    prefix: Option<String>,
    /// Only names after this one, in byte order
    #[arg(long)]
    after: Option<String>,
    /// At most so many
    #[arg(long)]
    max: Option<u64>,
    /// How fresh: linearizable, lease, or stale
    #[arg(long, default_value = "linearizable")]
    consistency: Consistency,
}

pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    let mut out = Out::new(global.output);
    if args.max == Some(0) {
        return Ok(0);
    }
    let client = connect(global).await?;
    let mut streams = client.list_streams(ListOptions {
        category: args.category,
        prefix: args.prefix,
        after: args.after,
        max_count: args.max,
        consistency: args.consistency,
        partition: None,
    });
    while let Some(stream) = streams.next().await {
        match stream {
            Ok(stream) => out.show(&StreamRecord::from(stream))?,
            Err(e) => {
                out.flush()?;
                return Err(e.into());
            }
        }
    }
    out.flush()?;
    Ok(0)
}
