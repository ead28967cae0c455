//! How `dev scale` asks the running `dev` for nodes: over a Unix socket with an abstract name that
//! ends in the first port, so it is found as the ports are and leaves no file behind. A line of JSON
//! each way. One asks at a time, and only the same user or root.
use super::plan::NodePlan;
use crate::error::{CliError, Exit};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use uuid::Uuid;

const VERSION: u32 = 1;
const LINE_BYTES_MAX: u64 = 64 << 10;
/// `dev` may have to remove an old folder before it starts a node.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What is asked of `dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    Nodes,
    /// Further nodes, with the next numbers.
    Start {
        count: u32,
    },
    /// These are no members any more: they end by themselves or are ended, and are forgotten.
    Retire {
        numbers: Vec<u32>,
    },
}

/// The nodes that `dev` has now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub cluster_id: Uuid,
    pub nodes: Vec<RunningNode>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningNode {
    pub number: u32,
    pub name: String,
    pub endpoint: String,
}

impl From<&NodePlan> for RunningNode {
    fn from(plan: &NodePlan) -> Self {
        Self { number: plan.number, name: plan.name.clone(), endpoint: plan.endpoint() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub message: String,
    pub action: Option<String>,
}

impl From<CliError> for Refusal {
    fn from(e: CliError) -> Self {
        Self { message: e.message, action: e.action }
    }
}

pub type Answer = Result<Running, Refusal>;

#[derive(Serialize, Deserialize)]
struct Line<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize, Deserialize)]
struct Asked {
    ask: Ask,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answered {
    Nodes(Running),
    Refused(Refusal),
}

/// A question for whoever owns the processes.
pub struct Call {
    pub ask: Ask,
    pub reply: oneshot::Sender<Answer>,
}

fn address(port: u16) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("ringfold-dev-{port}"))
}

/// Serves questions one after the other, which come to `calls`, for as long as the runtime lives.
pub fn listen(port: u16, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let listener = unix::UnixListener::bind_addr(&address(port)?)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let turn = Arc::new(Semaphore::new(1));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if !is_ours(&stream) {
                continue;
            }
            let (calls, turn) = (calls.clone(), turn.clone());
            match turn.try_acquire_owned() {
                // Whoever asks has the turn until he hangs up. What he cannot be told is his loss.
                Ok(turn) => drop(tokio::spawn(async move {
                    let _turn = turn;
                    let _ = serve(stream, &calls).await;
                })),
                Err(_) => {
                    let mut stream = BufReader::new(stream);
                    let busy =
                        refusal("another `ringfold dev scale` is at work", "wait for its end");
                    let _ = write(&mut stream, &Answered::Refused(busy)).await;
                }
            }
        }
    });
    Ok(())
}

fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::getuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

fn refusal(message: impl Into<String>, action: &str) -> Refusal {
    Refusal { message: message.into(), action: Some(action.into()) }
}

async fn serve(stream: UnixStream, calls: &mpsc::Sender<Call>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(line) = read(&mut stream).await? {
        let answer = match asked(&line) {
            Ok(ask) => {
                let (reply, answer) = oneshot::channel();
                match calls.send(Call { ask, reply }).await {
                    Ok(()) => answer.await.unwrap_or_else(|_| Err(ending())),
                    Err(_) => Err(ending()),
                }
            }
            Err(refusal) => Err(refusal),
        };
        let answered = match answer {
            Ok(running) => Answered::Nodes(running),
            Err(refusal) => Answered::Refused(refusal),
        };
        write(&mut stream, &answered).await?;
    }
    Ok(())
}

fn ending() -> Refusal {
    refusal("`ringfold dev` is ending", "start it again")
}

fn asked(line: &str) -> Result<Ask, Refusal> {
    let other = || {
        refusal(
            format!("the running `ringfold dev` speaks version {VERSION} of this"),
            "use the `ringfold` that runs the cluster",
        )
    };
    let line: Line<serde_json::Value> = serde_json::from_str(line).map_err(|_| other())?;
    if line.version != VERSION {
        return Err(other());
    }
    serde_json::from_value(line.content).map(|a: Asked| a.ask).map_err(|_| other())
}

/// The next line; None: the other side has hung up.
async fn read(stream: &mut BufReader<UnixStream>) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = stream.take(LINE_BYTES_MAX).read_line(&mut line).await?;
    if read > 0 && !line.ends_with('\n') {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((read > 0).then_some(line))
}

async fn write<T: Serialize>(stream: &mut BufReader<UnixStream>, content: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Line { version: VERSION, content })?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// The running `dev`, which nobody else can ask as long as this lives.
pub struct Dev {
    stream: BufReader<UnixStream>,
}

impl Dev {
    /// Finds the `dev` whose node-0 listens, or would, on this port.
    pub fn connect(port: u16) -> Result<Self, CliError> {
        let connect = || {
            let stream = unix::UnixStream::connect_addr(&address(port)?)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        let stream = connect().map_err(|e| {
            let message = format!("no `ringfold dev` with --port {port} can be asked here: {e}");
            CliError::new(Exit::Unavailable, message)
                .action("start it: only the `dev` that runs the nodes can start and end them")
        })?;
        if !is_ours(&stream) {
            let message = format!("the `ringfold dev` with --port {port} is another user's");
            return Err(CliError::other(message).action("scale it as that user"));
        }
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub async fn ask(&mut self, ask: Ask) -> Result<Running, CliError> {
        let exchange = async {
            write(&mut self.stream, &Asked { ask }).await?;
            read(&mut self.stream).await?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let failed = |what: &dyn std::fmt::Display| {
            CliError::new(Exit::Unavailable, format!("`ringfold dev` does not answer: {what}"))
                .action("see what it says in its terminal, and run this again")
        };
        let line = match tokio::time::timeout(ANSWER_WITHIN, exchange).await {
            Ok(line) => line.map_err(|e| failed(&e))?,
            Err(_) => return Err(failed(&format_args!("{} s passed", ANSWER_WITHIN.as_secs()))),
        };
        let line: Line<Answered> = serde_json::from_str(&line).map_err(|e| failed(&e))?;
        match line.content {
            Answered::Nodes(running) => Ok(running),
            Answered::Refused(refusal) => {
                let mut error = CliError::other(refusal.message);
                error.action = refusal.action;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port that names no socket of another test or of a real cluster.
    fn port() -> u16 {
        use std::sync::atomic::{AtomicU16, Ordering};
        static NEXT: AtomicU16 = AtomicU16::new(0);
        1 + (std::process::id() % 100) as u16 * 10 + NEXT.fetch_add(1, Ordering::Relaxed)
    }

    fn running(count: u32) -> Running {
        let node = |number| RunningNode {
            number,
            name: format!("node-{number}"),
            endpoint: "http://127.0.0.1:1".into(),
        };
        Running { cluster_id: Uuid::from_u128(7), nodes: (0..count).map(node).collect() }
    }

    #[tokio::test]
    async fn questions_are_answered_in_turn_and_refusals_say_what_to_do() {
        let (calls, mut asked) = mpsc::channel(1);
        let port = port();
        listen(port, calls).unwrap();
        tokio::spawn(async move {
            while let Some(call) = asked.recv().await {
                let answer = match call.ask {
                    Ask::Nodes => Ok(running(2)),
                    Ask::Start { count } => Ok(running(2 + count)),
                    Ask::Retire { .. } => Err(refusal("no", "wait")),
                };
                call.reply.send(answer).unwrap();
            }
        });
        let mut dev = Dev::connect(port).unwrap();
        assert_eq!(dev.ask(Ask::Nodes).await.unwrap(), running(2));
        assert_eq!(dev.ask(Ask::Start { count: 3 }).await.unwrap(), running(5));
        let refused = dev.ask(Ask::Retire { numbers: vec![1] }).await.unwrap_err();
        assert_eq!((refused.message.as_str(), refused.action.as_deref()), ("no", Some("wait")));

        let busy = Dev::connect(port).unwrap().ask(Ask::Nodes).await.unwrap_err();
        assert!(busy.message.contains("at work"), "{busy:?}");
        drop(dev);
        let mut again = Dev::connect(port).unwrap();
        for _ in 0..100 {
            match again.ask(Ask::Nodes).await {
                Ok(answer) => return assert_eq!(answer, running(2)),
                // The turn is given back as soon as the end of the first is seen.
                Err(_) => again = Dev::connect(port).unwrap(),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the turn is not given back");
    }

    #[tokio::test]
    async fn a_dev_that_ends_and_one_that_is_not_there_are_told() {
        let port = port();
        let missing = Dev::connect(port).err().unwrap();
        assert!(missing.message.contains("no `ringfold dev`"), "{missing:?}");
        assert_eq!(missing.exit, Exit::Unavailable);
        let (calls, asked) = mpsc::channel(1);
        drop(asked);
        listen(port, calls).unwrap();
        let ended = Dev::connect(port).unwrap().ask(Ask::Nodes).await.unwrap_err();
        assert!(ended.message.contains("is ending"), "{ended:?}");
    }

    #[test]
    fn another_version_and_nonsense_are_refused() {
        assert_eq!(asked(r#"{"version":1,"ask":"nodes"}"#), Ok(Ask::Nodes));
        let start = r#"{"version":1,"ask":{"start":{"count":2}}}"#;
        assert_eq!(asked(start), Ok(Ask::Start { count: 2 }));
        for other in [r#"{"version":2,"ask":"nodes"}"#, r#"{"version":1,"ask":"sing"}"#, "x", ""] {
            assert!(asked(other).unwrap_err().message.contains("version 1"), "{other}");
        }
    }
}
