//! `ringfold append`: one event.
use crate::Global;
use crate::connect::connect;
use crate::error::{CliError, Exit};
use crate::output::{Out, Record};
use ringfold_client::{Expected, NewEvent, Uuid};
use serde::Serialize;
use std::io::Read;

/// Beyond what a cluster takes by default, so that it is the cluster that names the limit.
const INPUT_MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// `<category>-<id>`, for example customer-42
    stream: String,
    /// What happened, for example Registered
    #[arg(long = "type", value_name = "TYPE")]
    event_type: String,
    /// JSON, @FILE, or - for stdin
    #[arg(long, default_value = "{}", allow_hyphen_values = true)]
    data: String,
    /// About the event: JSON, @FILE, or - for stdin
    #[arg(long, allow_hyphen_values = true)]
    metadata: Option<String>,
    /// What must be true of the stream: any, none, exists, or its last revision
    #[arg(long, default_value = "any", value_name = "any|none|exists|N")]
    expect: Expected,
    /// UUID: an id that is appended twice is stored once. Without it: a new one
    #[arg(long)]
    id: Option<Uuid>,
    /// Version of the data's shape
    #[arg(long, default_value_t = 0)]
    schema_version: u32,
    /// Of the data, where it is not JSON
    #[arg(long, default_value = "application/json")]
    content_type: String,
}

#[derive(Serialize)]
struct AppendRecord {
    stream: String,
    revision: u64,
    position: u64,
    r#type: String,
    id: Uuid,
    partition: u32,
}

impl Record for AppendRecord {
    const HEADERS: &'static [&'static str] = &["STREAM", "REVISION", "POSITION", "ID"];
    fn row(&self) -> Vec<String> {
        vec![
            self.stream.clone(),
            self.revision.to_string(),
            self.position.to_string(),
            self.id.to_string(),
        ]
    }
}

pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    if args.data == "-" && args.metadata.as_deref() == Some("-") {
        return Err(CliError::usage("--data and --metadata cannot both come from stdin"));
    }
    let mut event = NewEvent::new(&args.event_type, input(&args.data)?)
        .schema_version(args.schema_version)
        .content_type(&args.content_type);
    if let Some(metadata) = &args.metadata {
        event = event.metadata(input(metadata)?);
    }
    if let Some(id) = args.id {
        event = event.id(id);
    }
    let id = event.get_id();
    let client = connect(global).await?;
    let appended = (client.append(&args.stream, vec![event], args.expect).await).map_err(|e| {
        let error = CliError::from(e).context(format_args!("append to {}", args.stream));
        match error.exit {
            Exit::Unknown => error.action(format!(
                "run it again with --id {id}: it is stored once, and the answer tells its revision"
            )),
            _ => error,
        }
    })?;
    let mut out = Out::new(global.output);
    out.show(&AppendRecord {
        stream: args.stream,
        revision: appended.last_revision,
        position: appended.last_position,
        r#type: args.event_type,
        id,
        partition: appended.partition,
    })?;
    out.flush()?;
    Ok(0)
}

/// The text itself, what is in @FILE, or what comes from stdin for -.
fn input(text: &str) -> Result<Vec<u8>, CliError> {
    let failed = |what: &str, e| CliError::usage(format!("cannot read {what}: {e}"));
    let mut bytes = Vec::new();
    let read = match (text, text.strip_prefix('@')) {
        ("-", _) => std::io::stdin()
            .take(INPUT_MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| failed("stdin", e))?,
        (_, Some(path)) => std::fs::File::open(path)
            .and_then(|file| file.take(INPUT_MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|e| failed(path, e))?,
        (text, None) => return Ok(text.as_bytes().to_vec()),
    };
    if read as u64 > INPUT_MAX_BYTES {
        return Err(CliError::usage(format!(
            "{text} holds over {INPUT_MAX_BYTES} bytes, far more than an event may"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_text_or_a_file() {
        assert_eq!(input("{\"a\":1}").unwrap(), b"{\"a\":1}");
        assert_eq!(input("-1").unwrap(), b"-1");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "from a file").unwrap();
        let at = format!("@{}", path.display());
        assert_eq!(input(&at).unwrap(), b"from a file");
        let error = input("@/does/not/exist").unwrap_err();
        assert!(error.message.contains("/does/not/exist"), "{error:?}");
        assert_eq!(error.exit, Exit::Usage);
    }
}
