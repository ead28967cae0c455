//! What goes to stdout: one JSON object a line, or tables. What goes to stderr: news for a person.
use crate::error::CliError;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

/// Rows of one table: longer lists get a new one, so that they need no memory.
const ROWS_MAX: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For a person
    Table,
    /// One object a line; field names are stable (docs/cli.md)
    Json,
}

/// What is shown of something: all of it as JSON, the most useful as a row.
pub trait Record: Serialize {
    const HEADERS: &'static [&'static str];
    fn row(&self) -> Vec<String>;
}

/// Stdout. A reader that went away is no error: see `closed`.
pub struct Out<W: Write = BufWriter<anstream::Stdout>> {
    format: Format,
    to: W,
    headers: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Out {
    pub fn new(format: Format) -> Self {
        Self::to(format, BufWriter::new(anstream::stdout()))
    }
}

impl<W: Write> Out<W> {
    pub fn to(format: Format, to: W) -> Self {
        Self { format, to, headers: &[], rows: Vec::new() }
    }

    /// Shows a record.
    pub fn show<R: Record>(&mut self, record: &R) -> Result<(), CliError> {
        match self.format {
            Format::Json => self.json(record),
            Format::Table => {
                if self.headers != R::HEADERS || self.rows.len() == ROWS_MAX {
                    self.print_table()?;
                    self.headers = R::HEADERS;
                }
                self.rows.push(record.row());
                Ok(())
            }
        }
    }

    /// Writes one JSON object as one line.
    pub fn json<T: Serialize>(&mut self, value: &T) -> Result<(), CliError> {
        serde_json::to_writer(&mut self.to, value).map_err(io::Error::from)?;
        self.to.write_all(b"\n")?;
        Ok(())
    }

    /// Writes what shows itself, for a person.
    pub fn text(&mut self, text: &impl fmt::Display) -> Result<(), CliError> {
        write!(self.to, "{text}")?;
        Ok(())
    }

    fn print_table(&mut self) -> Result<(), CliError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut table = comfy_table::Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_content_arrangement(comfy_table::ContentArrangement::Dynamic)
            .set_header(self.headers)
            .add_rows(self.rows.drain(..));
        for line in table.lines() {
            // Without the padding of the first column.
            let line = line.strip_prefix(' ').unwrap_or(&line);
            writeln!(self.to, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// Shows what waits.
    pub fn flush(&mut self) -> Result<(), CliError> {
        self.print_table()?;
        self.to.flush()?;
        Ok(())
    }
}

/// A line on stderr, for a person.
pub fn say(what: fmt::Arguments<'_>) {
    // Nobody to tell it to, if stderr is closed.
    let _ = writeln!(anstream::stderr(), "ringfold: {what}");
}

pub fn draw_target() -> ProgressDrawTarget {
    // Hidden by itself where stderr is no terminal.
    ProgressDrawTarget::stderr_with_hz(10)
}

/// A spinner on stderr.
pub fn spinner(message: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, draw_target()).with_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A progress bar on stderr over `length` bytes, or a counter where that is unknown. The message
/// tells what is done.
pub fn bytes_bar(length: Option<u64>) -> ProgressBar {
    let template = match length {
        Some(_) => "{bar:30} {percent:>3} %  {msg}  {eta} left",
        None => "{spinner} {binary_bytes}  {msg}",
    };
    styled(ProgressBar::with_draw_target(length, draw_target()), template)
}

/// A progress bar of one's own template, to be drawn by a `MultiProgress`.
pub fn bar(template: &str) -> ProgressBar {
    styled(ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden()), template)
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// 1572864 as 1.50 MiB.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// Unix time in milliseconds as a person reads it, UTC.
pub fn time(ms: i64) -> String {
    let (days, ms) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Days since 0000-03-01, in eras of 400 years (Howard Hinnant's civil_from_days).
    let z = days + 719_468;
    let (era, of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, ms) = (ms / 1_000 % 60, ms % 1_000);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}")
}

/// 1234567 as 1,234,567.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Row {
        stream: String,
        revision: u64,
    }

    impl Record for Row {
        const HEADERS: &'static [&'static str] = &["STREAM", "REVISION"];
        fn row(&self) -> Vec<String> {
            vec![self.stream.clone(), self.revision.to_string()]
        }
    }

    fn shown(format: Format, rows: u64) -> String {
        let mut bytes = Vec::new();
        let mut out = Out::to(format, &mut bytes);
        for revision in 0..rows {
            let stream = "a-1\"".into();
            out.show(&Row { stream, revision }).unwrap();
        }
        out.flush().unwrap();
        drop(out);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_one_object_a_line() {
        assert_eq!(
            shown(Format::Json, 2),
            "{\"stream\":\"a-1\\\"\",\"revision\":0}\n{\"stream\":\"a-1\\\"\",\"revision\":1}\n"
        );
        assert_eq!(shown(Format::Json, 0), "");
    }

    #[test]
    fn a_table_has_a_header_and_a_line_a_row() {
        let text = shown(Format::Table, 2);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines, [["STREAM", "REVISION"], ["a-1\"", "0"], ["a-1\"", "1"]]);
        assert_eq!(shown(Format::Table, 0), "");
    }

    #[test]
    fn a_long_table_starts_again() {
        let text = shown(Format::Table, ROWS_MAX as u64 + 1);
        assert_eq!(text.matches("STREAM").count(), 2);
        assert_eq!(text.lines().count(), ROWS_MAX + 3);
    }

    #[test]
    fn times_are_utc() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_400_123, "2000-02-29 00:00:00.123"),
            (1_767_225_599_999, "2025-12-31 23:59:59.999"),
            (-1, "1969-12-31 23:59:59.999"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn numbers_are_grouped() {
        let all = [0, 999, 1000, 1_234_567].map(thousands);
        assert_eq!(all, ["0", "999", "1,000", "1,234,567"]);
    }
}
