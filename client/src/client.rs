//! The client's calls.
use std::sync::Arc;

use futures::Stream;
use ringfold_proto::v1::{self, RecordedEvent, State, StreamInfo};

use crate::{
    Appended, Appender, ClientConfig, ClientError, Consistency, Expected, ListOptions,
    LookupOptions, NewEvent, ReadOptions,
};

#[derive(Clone)]
pub struct Client {
    inner: Arc<()>,
}

/// The partition of a stream: the top bits of its name's xxh3. `partitions` is a power of two.
pub fn partition_of(stream: &str, partitions: u32) -> u32 {
    let bits = partitions.max(1).trailing_zeros();
    let hash = xxhash_rust::xxh3::xxh3_64(stream.as_bytes());
    // A shift by 64 is no shift at all.
    hash.checked_shr(64 - bits).unwrap_or(0) as u32
}

impl Client {
    /// Connects: at least one endpoint must answer.
    pub async fn connect(_config: ClientConfig) -> Result<Client, ClientError> {
        todo!()
    }
    pub async fn append(&self, _stream: &str, _events: Vec<NewEvent>, _expected: Expected) -> Result<Appended, ClientError> {
        todo!()
    }
    /// Pipelined appends.
    pub fn appender(&self) -> Appender {
        todo!()
    }
    /// `None`: no such stream.
    pub async fn lookup(&self, _stream: &str, _consistency: Consistency) -> Result<Option<State>, ClientError> {
        todo!()
    }
    pub async fn lookup_with(&self, _stream: &str, _options: LookupOptions) -> Result<Option<State>, ClientError> {
        todo!()
    }
    /// A stream that does not exist: one error, `STREAM_NOT_FOUND`.
    pub fn read(&self, _stream: &str, _options: ReadOptions) -> impl Stream<Item = Result<RecordedEvent, ClientError>> + Send + Unpin + use<> {
        futures::stream::empty()
    }
    pub fn list_streams(&self, _options: ListOptions) -> impl Stream<Item = Result<StreamInfo, ClientError>> + Send + Unpin + use<> {
        futures::stream::empty()
    }
    pub fn list_states(&self, _options: ListOptions) -> impl Stream<Item = Result<State, ClientError>> + Send + Unpin + use<> {
        futures::stream::empty()
    }
    pub async fn topology(&self) -> Result<v1::TopologyResponse, ClientError> {
        todo!()
    }
    /// What that one node says of the cluster.
    pub async fn topology_of(&self, _endpoint: &str) -> Result<v1::TopologyResponse, ClientError> {
        todo!()
    }
    pub async fn node_status(&self, _endpoint: &str) -> Result<v1::NodeStatusResponse, ClientError> {
        todo!()
    }
    pub async fn bootstrap(&self, _endpoint: &str, _request: v1::BootstrapRequest) -> Result<v1::BootstrapResponse, ClientError> {
        todo!()
    }
    pub async fn safe_to_stop(&self, _node_id: u64) -> Result<v1::SafeToStopResponse, ClientError> {
        todo!()
    }
    pub async fn transfer_leaders(&self, _endpoint: &str) -> Result<v1::TransferLeadersResponse, ClientError> {
        todo!()
    }
    /// Highest position in this client's answers so far; 0: none.
    pub fn last_position(&self) -> u64 {
        todo!()
    }
}
