//! `ringfold read`: a stream's events.
use crate::Global;
use crate::connect::connect;
use crate::error::CliError;
use crate::output::Out;
use crate::record::EventRecord;
use futures::StreamExt;
use ringfold_client::{Consistency, ReadOptions};

#[derive(Debug, clap::Args)]
pub struct Args {
    stream: String,
    /// First revision to read [default: the first event, or the last one with --backwards]
    #[arg(long)]
    from: Option<u64>,
    /// From the last event to the first
    #[arg(long)]
    backwards: bool,
    /// At most so many events
    #[arg(long)]
    max: Option<u64>,
    /// How fresh: linearizable, lease, or stale
    #[arg(long, default_value = "linearizable")]
    consistency: Consistency,
    /// Wait until this position of the stream's partition is applied, as an append returned it
    #[arg(long, default_value_t = 0)]
    min_position: u64,
}

pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    let mut out = Out::new(global.output);
    if args.max == Some(0) {
        return Ok(0);
    }
    let client = connect(global).await?;
    let options = ReadOptions {
        from_revision: args.from,
        backwards: args.backwards,
        max_count: args.max,
        consistency: args.consistency,
        min_position: args.min_position,
    };
    let mut events = client.read(&args.stream, options);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => out.show(&EventRecord::from(event))?,
            Err(e) => {
                out.flush()?;
                return Err(CliError::from(e).context(format_args!("read {}", args.stream)));
            }
        }
    }
    out.flush()?;
    Ok(0)
}
