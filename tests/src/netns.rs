//! A network of its own for a test: each node in a namespace, joined by a bridge in one more, which
//! the test's clients are in. Needs root and `ip` on Linux.
//!
//! A direction between two nodes is cut by sending to a hardware address that nobody has: what is
//! sent is lost without a word, as when a cable is out, and needs no firewall. Clients reach every
//! node always: it is the nodes that lose each other.
//!
//! Namespaces have no names. Processes hold them that die with the test, however it ends, and with
//! the last process in it a namespace and its interfaces are gone.
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::cluster::spawn;

/// Nobody has it.
const NOWHERE: &str = "02:00:00:00:ff:ff";

/// A bridge with `n` nodes.
#[derive(Debug)]
pub struct Net {
    hub: Namespace,
    nodes: Vec<Namespace>,
}

#[derive(Debug)]
struct Namespace {
    holder: Child,
    file: File,
}

impl Net {
    /// # Errors
    /// Says what is missing: root, or `ip`, or what the kernel refuses.
    pub fn new(nodes: usize) -> Result<Arc<Self>, String> {
        // SAFETY: geteuid has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            return Err("a network of its own needs root".into());
        }
        let hub = Namespace::new()?;
        let nodes = (0..nodes).map(|_| Namespace::new()).collect::<Result<Vec<_>, _>>()?;
        hub.ip("link set lo up\nlink add br0 type bridge\naddr add 10.77.0.254/24 dev br0\nlink set br0 up\n")?;
        for (i, node) in nodes.iter().enumerate() {
            let pid = node.holder.id();
            hub.ip(&format!(
                "link add v{i} type veth peer name eth0 netns {pid}\nlink set v{i} master br0 up\n"
            ))?;
            let (host, hardware) = (host(i), hardware(i));
            node.ip(&format!(
                "link set lo up\naddr add {host}/24 dev eth0\nlink set eth0 address {hardware} up\n"
            ))?;
        }
        let net = Self { hub, nodes };
        net.heal();
        Ok(Arc::new(net))
    }

    /// Where node `i` listens. There may be more nodes than places, one after the other: a place is
    /// free again once its node has left for good.
    pub fn host(&self, i: usize) -> String {
        host(self.place(i))
    }

    fn place(&self, i: usize) -> usize {
        i % self.nodes.len()
    }

    /// The command will run where node `i` is.
    pub fn enter(&self, i: usize, command: &mut Command) {
        enter_with(self.nodes[self.place(i)].file.as_raw_fd(), command);
    }

    /// Runs a test's future where clients are. The thread stays there: call it on a test's own.
    ///
    /// # Panics
    /// When the runtime cannot be made.
    pub fn block_on<T>(self: &Arc<Self>, test: impl Future<Output = T>) -> T {
        enter(self.hub.file.as_raw_fd()).expect("the clients' namespace");
        let net = self.clone();
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || {
                enter(net.hub.file.as_raw_fd()).expect("the clients' namespace");
            })
            .build()
            .expect("a runtime")
            .block_on(test)
    }

    /// What `from` sends to `to` is lost from now on; the other direction stays.
    pub fn cut(&self, from: usize, to: usize) {
        self.point(self.place(from), &[(self.place(to), NOWHERE.to_string())]);
    }

    /// Two nodes lose each other.
    pub fn partition(&self, a: usize, b: usize) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// A node loses all others.
    pub fn isolate(&self, node: usize) {
        for other in (0..self.nodes.len()).filter(|o| *o != self.place(node)) {
            self.partition(node, other);
        }
    }

    /// All reach all.
    pub fn heal(&self) {
        for from in 0..self.nodes.len() {
            let others = (0..self.nodes.len()).filter(|to| *to != from);
            self.point(from, &others.map(|to| (to, hardware(to))).collect::<Vec<_>>());
        }
    }

    /// Between places.
    fn point(&self, from: usize, to: &[(usize, String)]) {
        let line = |(to, hardware): &(usize, String)| {
            let host = host(*to);
            format!("neigh replace {host} lladdr {hardware} dev eth0 nud permanent\n")
        };
        let lines: String = to.iter().map(line).collect();
        self.nodes[from].ip(&lines).expect("a neighbour is set");
    }
}

fn host(i: usize) -> String {
    format!("10.77.0.{}", i + 1)
}

fn hardware(i: usize) -> String {
    format!("02:00:00:00:00:{:02x}", i + 1)
}

impl Namespace {
    fn new() -> Result<Self, String> {
        let mut command = Command::new("sleep");
        command.arg("infinity").stdin(Stdio::null());
        // SAFETY: unshare is a mere system call, which may stand between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut holder = spawn(command).map_err(|e| format!("a network namespace: {e}"))?;
        match File::open(format!("/proc/{}/ns/net", holder.id())) {
            Ok(file) => Ok(Self { holder, file }),
            Err(e) => {
                let _ = holder.kill();
                let _ = holder.wait();
                Err(format!("a network namespace: {e}"))
            }
        }
    }

    /// Runs lines of `ip` here.
    fn ip(&self, lines: &str) -> Result<(), String> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        enter_with(self.file.as_raw_fd(), &mut command);
        let mut child = command.spawn().map_err(|e| format!("ip (package iproute2): {e}"))?;
        let mut stdin = child.stdin.take().ok_or("ip has no stdin")?;
        stdin.write_all(lines.as_bytes()).map_err(|e| e.to_string())?;
        drop(stdin);
        let out = child.wait_with_output().map_err(|e| e.to_string())?;
        match out.status.success() {
            true => Ok(()),
            false => Err(format!("ip: {lines}{}", String::from_utf8_lossy(&out.stderr))),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn enter(namespace: RawFd) -> io::Result<()> {
    // SAFETY: setns takes a descriptor, which its owner keeps open.
    match unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn enter_with(namespace: RawFd, command: &mut Command) {
    // SAFETY: setns is a mere system call, which may stand between fork and exec; the descriptor is
    // inherited by the fork.
    unsafe {
        command.pre_exec(move || enter(namespace));
    }
}
