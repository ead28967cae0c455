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
    succeeded("kubectl", args, run(args, ""))
}

/// The same with something to read.
///
/// # Panics
/// When it fails.
pub fn kubectl_with(args: &[&str], input: &str) -> String {
    succeeded("kubectl", args, run(args, input))
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

/// Runs helm with something to read, and gives what it prints.
///
/// # Panics
/// When it fails.
pub fn helm(args: &[&str], input: &str) -> String {
    succeeded("helm", args, call("helm", args, input))
}

fn succeeded(program: &str, args: &[&str], output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {}: {said}", args.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn run(args: &[&str], input: &str) -> Output {
    call("kubectl", args, input)
}

fn call(program: &str, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} in the PATH: {e}"));
    // A program that does not read its input ends it.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("its end")
}

/// Takes a Kubernetes node's power, or gives it back.
///
/// # Panics
/// When that fails.
pub fn power(node: &str, on: bool) {
    let number = node.trim_start_matches("node");
    script(&["node", if on { "start" } else { "stop" }, number]);
}

/// Runs `tests/kubernetes/cluster`, and gives what it prints.
///
/// # Panics
/// When that fails.
pub fn script(args: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster");
    succeeded(script, args, call(script, args, ""))
}

/// The API server hangs until this is dropped.
pub struct HungApiServer(());

impl HungApiServer {
    /// # Panics
    /// When that fails.
    pub fn begin() -> HungApiServer {
        script(&["api", "stop"]);
        HungApiServer(())
    }
}

impl Drop for HungApiServer {
    fn drop(&mut self) {
        script(&["api", "start"]);
    }
}

/// The image of `node`, `operator` or `cli`.
pub fn image(of: &str) -> String {
    let (registry, name, tag) = image_parts(of);
    format!("{registry}/{name}:{tag}")
}

/// Its registry with the path there, its name and its tag.
pub(crate) fn image_parts(of: &str) -> (String, String, String) {
    let images = std::env::var("RINGFOLD_TEST_IMAGES")
        .unwrap_or_else(|_| format!("localhost/ringfold:{}", env!("CARGO_PKG_VERSION")));
    let parts = images.rsplit_once(':').and_then(|(p, tag)| Some((p.rsplit_once('/')?, tag)));
    let ((registry, name), tag) = parts.expect("RINGFOLD_TEST_IMAGES is REGISTRY/PREFIX:TAG");
    (registry.to_owned(), format!("{name}-{of}"), tag.to_owned())
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
