//! One node of a cluster, and what it is asked alone.
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use ringfold_proto::v1::cluster_client::ClusterClient;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use ringfold_proto::v1::{
    MembershipListRequest, MembershipListResponse, NodeStatusRequest, NodeStatusResponse,
    SafeToStopRequest, SafeToStopResponse, TopologyRequest, TopologyResponse,
    TransferLeadersRequest, TransferLeadersResponse,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;

use super::calls::{LOOPBACK, RPC_MAX, timed, url, within};
use super::process::has_ended;
use crate::shim::Shim;

pub struct Node {
    pub name: String,
    pub host: String,
    pub client_port: u16,
    pub peer_port: u16,
    pub data_dir: PathBuf,
    pub log_path: PathBuf,
    pub(super) child: Option<Child>,
    /// It is no member any more.
    pub is_removed: bool,
    pub(super) is_secure: bool,
    pub(super) shim: Option<Shim>,
    pub(super) store: EventStoreClient<Channel>,
    pub(super) admin: ClusterClient<Channel>,
}

impl Node {
    pub fn url(&self) -> String {
        url(&self.host, self.client_port, self.is_secure)
    }

    /// Where its health and metrics are: on another address of loopback, so that no port is taken.
    pub fn http(&self) -> Option<String> {
        (self.host == LOOPBACK).then(|| format!("127.0.0.2:{}", self.client_port))
    }

    /// Status and text of an HTTP answer; `None`: nobody answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let get = async {
            let mut stream = TcpStream::connect(self.http()?).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            let (head, text) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, text.to_owned()))
        };
        tokio::time::timeout(RPC_MAX, get).await.ok()?
    }

    /// Its process runs: was started, and has not ended by itself either.
    pub fn serves(&self) -> bool {
        self.child.as_ref().is_some_and(|child| !has_ended(child))
    }

    /// Its process was started and has ended by itself, and nobody has read its exit code yet.
    pub fn has_ended(&self) -> bool {
        self.child.as_ref().is_some_and(has_ended)
    }

    /// Of its process, also of one that has ended by itself.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn store(&self) -> EventStoreClient<Channel> {
        self.store.clone()
    }

    pub fn admin(&self) -> ClusterClient<Channel> {
        self.admin.clone()
    }

    pub fn shim(&self) -> &Shim {
        self.shim.as_ref().expect("Settings::shim")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// # Errors
    /// The call's own.
    pub async fn status(&self) -> Result<NodeStatusResponse, tonic::Status> {
        let mut admin = self.admin();
        within(admin.node_status(timed(NodeStatusRequest {}, RPC_MAX)), RPC_MAX).await
    }

    /// # Errors
    /// The call's own.
    pub async fn topology(&self) -> Result<TopologyResponse, tonic::Status> {
        let mut admin = self.admin();
        within(admin.topology(timed(TopologyRequest {}, RPC_MAX)), RPC_MAX).await
    }

    /// # Errors
    /// The call's own.
    pub async fn membership(&self) -> Result<MembershipListResponse, tonic::Status> {
        let mut admin = self.admin();
        within(admin.membership_list(timed(MembershipListRequest {}, RPC_MAX)), RPC_MAX).await
    }

    /// # Errors
    /// The call's own.
    pub async fn transfer_leaders(&self) -> Result<TransferLeadersResponse, tonic::Status> {
        let max = Duration::from_secs(10);
        let mut admin = self.admin();
        within(admin.transfer_leaders(timed(TransferLeadersRequest::default(), max)), max).await
    }

    /// # Errors
    /// The call's own.
    pub async fn safe_to_stop(&self) -> Result<SafeToStopResponse, tonic::Status> {
        let mut admin = self.admin();
        let request = SafeToStopRequest::default();
        within(admin.safe_to_stop(timed(request, RPC_MAX)), RPC_MAX).await
    }
}
