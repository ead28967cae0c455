//! Programs that tests call as a person would, and waiting.
use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Runs kubectl, and gives what it prints.
///
/// # Panics
/// When it fails.
pub fn kubectl(args: &[&str]) -> String {
    succeeded(args, run(args, ""))
}

/// The same with something to read.
///
/// # Panics
/// When it fails.
pub fn kubectl_with(args: &[&str], input: &str) -> String {
    succeeded(args, run(args, input))
}

/// Runs kubectl, and gives what it says of the failure.
///
/// # Panics
/// When it does not fail.
pub fn kubectl_fails(args: &[&str], input: &str) -> String {
    let output = run(args, input);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "kubectl {} was not refused: {said}", args.join(" "));
    said
}

fn succeeded(args: &[&str], output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {}: {}: {said}", args.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn run(args: &[&str], input: &str) -> Output {
    let mut child = Command::new("kubectl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is in the PATH");
    // A program that does not read its input ends it.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("kubectl ends")
}

/// The image of `node`, `operator` or `cli`.
pub fn image(of: &str) -> String {
    let images = std::env::var("RINGFOLD_TEST_IMAGES")
        .unwrap_or_else(|_| format!("localhost/ringfold:{}", env!("CARGO_PKG_VERSION")));
    let (prefix, tag) = images.rsplit_once(':').expect("RINGFOLD_TEST_IMAGES is PREFIX:TAG");
    format!("{prefix}-{of}:{tag}")
}

/// Repeats `check` until it gives a value. For `max` to be generous costs nothing where it succeeds.
///
/// # Panics
/// When it does not within `max`, with what was waited for and the last reason.
pub async fn eventually<T>(
    what: &str,
    max: Duration,
    mut check: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + max;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(why) if Instant::now() > deadline => panic!("{what}: not within {max:?}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
