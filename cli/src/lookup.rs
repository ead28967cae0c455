//! `ringfold lookup`: states.
use crate::Global;
use crate::connect::connect;
use crate::error::{CliError, Exit};
use crate::output::Out;
use crate::record::StateRecord;
use futures::StreamExt;
use ringfold_client::{Consistency, ListOptions, LookupOptions};

const IN_FLIGHT: usize = 64;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(required_unless_present = "category")]
    streams: Vec<String>,
    /// The states of all streams of this category instead
    #[arg(long, conflicts_with = "streams")]
    category: Option<String>,
    /// With --category: at most so many states
    #[arg(long, requires = "category")]
    max: Option<u64>,
    /// How fresh: linearizable, lease, or stale
    #[arg(long, default_value = "linearizable")]
    consistency: Consistency,
    /// Wait until this position of the stream's partition is applied, as an append returned it
    #[arg(long, default_value_t = 0, conflicts_with = "category")]
    min_position: u64,
}

pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    let mut out = Out::new(global.output);
    if args.max == Some(0) {
        return Ok(0);
    }
    let client = connect(global).await?;
    if args.category.is_some() {
        let options = ListOptions {
            category: args.category,
            max_count: args.max,
            consistency: args.consistency,
            ..ListOptions::default()
        };
        let mut states = client.list_states(options);
        while let Some(state) = states.next().await {
            match state {
                Ok(state) => out.show(&StateRecord::from(state))?,
                Err(e) => {
                    out.flush()?;
                    return Err(e.into());
                }
            }
        }
        out.flush()?;
        return Ok(0);
    }
    let options = LookupOptions { consistency: args.consistency, min_position: args.min_position };
    let mut missing = Vec::new();
    let mut states = futures::stream::iter(&args.streams)
        .map(|stream| {
            let client = client.clone();
            async move { (stream, client.lookup_with(stream, options).await) }
        })
        .buffered(IN_FLIGHT);
    while let Some((stream, state)) = states.next().await {
        match state {
            Ok(Some(state)) => out.show(&StateRecord::from(state))?,
            Ok(None) => missing.push(stream.as_str()),
            Err(e) => {
                out.flush()?;
                return Err(CliError::from(e).context(format_args!("lookup of {stream}")));
            }
        }
    }
    out.flush()?;
    if missing.is_empty() {
        return Ok(0);
    }
    let message = format!("no stream has the name {}", missing.join(", "));
    Err(CliError::new(Exit::NotFound, message).action("`ringfold list` tells what there is"))
}
