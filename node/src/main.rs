//! `ringfold-node`: one node of a cluster.
use ringfold_node::config::{self, Loaded, LogFormat, Settings};
use ringfold_node::stop::Stop;
use ringfold_node::{panics, server};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_SETTINGS: i32 = 2;

#[allow(clippy::print_stdout, clippy::print_stderr)] // A command's output, before there is a log.
fn main() {
    let settings = match config::load_process() {
        Ok(Loaded::Run(settings)) => *settings,
        Ok(Loaded::Print(text)) => return println!("{text}"),
        Err(e) => {
            eprintln!("ringfold-node: {e}");
            std::process::exit(EXIT_SETTINGS);
        }
    };
    start_log(&settings);
    panics::end_process_on_panic();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run(settings)),
        Err(e) => {
            eprintln!("ringfold-node: the runtime cannot be started: {e}");
            1
        }
    };
    std::process::exit(ended);
}

fn start_log(settings: &Settings) {
    let filter = EnvFilter::new(&settings.log_level);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(false).init(),
    }
}

/// Each partition's database keeps some files open; the usual soft limit is 1,024.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

async fn run(settings: Settings) -> i32 {
    let told = Stop::default();
    let on_signal = told.clone();
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut term), Ok(mut int)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            tracing::error!("signals cannot be handled: the node only ends when it is killed");
            return;
        };
        for next in [&on_signal.asked, &on_signal.at_once] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            next.cancel();
        }
    });
    match server::run(settings, told).await {
        Ok(()) => 0,
        Err(e) => {
            tracing::error!(error = %e, "the node ended");
            e.exit_code()
        }
    }
}
