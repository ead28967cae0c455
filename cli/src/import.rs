//! `ringfold import`: JSON lines, as fast as the cluster takes them.
mod cut;

use crate::Global;
use crate::connect::connect;
use crate::error::{CliError, Exit};
use crate::output::{Out, Record, bytes_bar, thousands};
use cut::{Cut, Cutter, LineError, read_line};
use indicatif::ProgressBar;
use ringfold_client::{Appender, Client, ClientError, Code, Expected, Pending};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::time::Instant;
use tokio::sync::mpsc;

/// A window is on its way while the next one waits here and another is being read.
const WINDOWS_WAITING: usize = 1;
const LINE_MAX_BYTES: u64 = 8 << 20;

pub const AFTER_HELP: &str = r#"A line: {"stream": "customer-42", "type": "Registered", "data": {"name": "Ada"}}
and optionally "id" (UUID), "metadata" (JSON), "schema_version", "content_type", and "data_base64" or
"metadata_base64" where they are not JSON. What `ringfold read -o json` shows can be imported."#;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file of JSON lines, or - for stdin
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Goes into derived ids: name each input whose lines have no ids otherwise, so that equal
    /// lines of two inputs are two events
    #[arg(long, default_value = "")]
    source: String,
}

#[derive(Serialize)]
struct ImportRecord {
    events: u64,
    appends: u64,
    seconds: f64,
    events_per_s: f64,
}

impl Record for ImportRecord {
    const HEADERS: &'static [&'static str] = &["EVENTS", "APPENDS", "SECONDS", "EVENTS/S"];
    fn row(&self) -> Vec<String> {
        vec![
            thousands(self.events),
            thousands(self.appends),
            format!("{:.1}", self.seconds),
            thousands(self.events_per_s as u64),
        ]
    }
}

pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    let (input, length): (Box<dyn Read + Send>, _) = if args.file.as_os_str() == "-" {
        (Box::new(io::stdin()), None)
    } else {
        let name = args.file.display();
        let file = File::open(&args.file)
            .map_err(|e| CliError::usage(format!("cannot read {name}: {e}")))?;
        let length = file.metadata().ok().filter(|m| m.is_file()).map(|m| m.len());
        (Box::new(file), length)
    };
    let client = connect(global).await?;
    let bar = bytes_bar(length);
    let (send, mut windows) = mpsc::channel(WINDOWS_WAITING);
    let reader = {
        let bar = bar.clone();
        tokio::task::spawn_blocking(move || read_windows(input, &args.source, &bar, &send))
    };
    let started = Instant::now();
    let mut import = Import { appender: client.appender(), client, events: 0, appends: 0 };
    let mut result = Ok(());
    while let Some(window) = windows.recv().await {
        result = import.store(window).await;
        if result.is_err() {
            break;
        }
        let per_s = import.events as f64 / started.elapsed().as_secs_f64();
        bar.set_message(format!(
            "{} events, {}/s",
            thousands(import.events),
            thousands(per_s as u64)
        ));
    }
    // The reader stops at the next window; where it waits for stdin, nobody waits for it.
    drop(windows);
    let result = match result {
        Ok(()) => match reader.await {
            Ok(read) => read,
            Err(e) => Err(CliError::other(format!("the reader failed: {e}"))),
        },
        Err(e) => Err(e),
    };
    bar.finish_and_clear();
    result.map_err(|e| {
        let stored = thousands(import.events);
        let mut e = e.context(format_args!("stopped after {stored} events"));
        if e.action.is_none() && matches!(e.exit, Exit::Unavailable | Exit::Unknown) {
            e.action = Some("run it again: what is stored is not stored twice".into());
        }
        e
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let mut out = Out::new(global.output);
    out.show(&ImportRecord {
        events: import.events,
        appends: import.appends,
        seconds,
        events_per_s: import.events as f64 / seconds,
    })?;
    out.flush()?;
    Ok(0)
}

impl From<LineError> for CliError {
    fn from(e: LineError) -> Self {
        CliError::usage(e.to_string()).action(
            "mend the line and run it again: what is stored already is not stored twice, \
             as long as the lines before it stay as they are",
        )
    }
}

/// Reads and cuts everything, until the other side goes away. Blocks.
fn read_windows(
    input: impl Read,
    source: &str,
    bar: &ProgressBar,
    send: &mpsc::Sender<Vec<Cut>>,
) -> Result<(), CliError> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    let mut cutter = Cutter::default();
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let read = (&mut input)
            .take(LINE_MAX_BYTES)
            .read_until(b'\n', &mut text)
            .map_err(|e| CliError::other(format!("line {line}: cannot read the input: {e}")))?;
        if read == 0 {
            break;
        }
        if read as u64 == LINE_MAX_BYTES && text.last() != Some(&b'\n') {
            let fault = format!("it has over {LINE_MAX_BYTES} bytes");
            return Err(LineError { line, fault }.into());
        }
        bar.inc(read as u64);
        if let Some(event) = read_line(line, &text, source)?
            && let Some(window) = cutter.push(event)
            && send.blocking_send(window).is_err()
        {
            return Ok(());
        }
    }
    if let Some(window) = cutter.finish() {
        // Gone only after an error of its own.
        let _ = send.blocking_send(window);
    }
    Ok(())
}

struct Import {
    client: Client,
    appender: Appender,
    events: u64,
    appends: u64,
}

impl Import {
    /// Stores a window's appends, all in flight at once; done when all have their answers.
    async fn store(&mut self, window: Vec<Cut>) -> Result<(), CliError> {
        let mut pending: Vec<Pending> = Vec::with_capacity(window.len());
        for cut in &window {
            let events = cut.events.clone();
            pending.push(self.appender.push(&cut.stream, events, Expected::Any).await);
        }
        let mut again = Vec::new();
        let mut failed = None;
        for (cut, pending) in window.iter().zip(pending) {
            match pending.await {
                Ok(_) => {
                    self.events += cut.events.len() as u64;
                    self.appends += 1;
                }
                Err(e) if one_by_one(&e, cut) => again.push(cut),
                Err(e) => failed = failed.or(Some(at_lines(e, &cut.stream, &cut.lines))),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        // An input that has grown since it was imported is cut otherwise: some of an append is
        // stored. Its events keep their order, and those that are there are answered as stored. Of
        // an append that is refused, this names the line.
        for cut in &again {
            for (i, event) in cut.events.iter().enumerate() {
                let events = vec![event.clone()];
                let stored = self.client.append(&cut.stream, events, Expected::Any).await;
                stored.map_err(|e| at_lines(e, &cut.stream, &cut.lines[i..=i]))?;
                self.events += 1;
                self.appends += 1;
            }
        }
        for cut in &again {
            self.appender.resume(&cut.stream);
        }
        Ok(())
    }
}

fn one_by_one(e: &ClientError, cut: &Cut) -> bool {
    let code = e.server_error().map(|e| e.code);
    match e.reason() {
        "EARLIER_APPEND_FAILED" => true,
        "EVENT_ID_CONFLICT" => cut.events.len() > 1,
        _ => code == Some(Code::InvalidArgument) && cut.events.len() > 1,
    }
}

fn at_lines(e: ClientError, stream: &str, lines: &[u64]) -> CliError {
    let told = match lines {
        [line] => format!("line {line}"),
        [first, .., last] => format!("{} lines from {first} to {last}", lines.len()),
        [] => "no line".into(),
    };
    CliError::from(e).context(format_args!("{told}, stream {stream}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(input: &[u8]) -> (Result<(), CliError>, usize) {
        let (send, mut receive) = mpsc::channel(100);
        let result = read_windows(input, "", &ProgressBar::hidden(), &send);
        drop(send);
        let mut events = 0;
        while let Ok(window) = receive.try_recv() {
            events += window.iter().map(|c| c.events.len()).sum::<usize>();
        }
        (result, events)
    }

    #[test]
    fn the_last_line_needs_no_end_and_empty_ones_count() {
        let line = r#"{"stream":"a","type":"T"}"#;
        let (result, events) = windows(format!("{line}\n\n{line}").as_bytes());
        assert!(result.is_ok());
        assert_eq!(events, 2);
        let (result, events) = windows(format!("{line}\n\n{{").as_bytes());
        assert!(result.unwrap_err().message.starts_with("line 3: "));
        assert_eq!(events, 0);
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_memory() {
        let (result, _) = windows(&vec![b'x'; LINE_MAX_BYTES as usize + 5]);
        let error = result.unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.message.starts_with("line 1: it has over"), "{error:?}");
    }
}
