//! Client of a Ringfold cluster.
//!
//! A [`Client`] keeps the map of partitions and their leaders and goes straight there. It tries
//! again, with the same event ids, what may succeed on another try, within one deadline per call.
//! An append that ends without an answer is reported as [`ClientError::Unknown`], never as absent.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ringfold_client::{Client, ClientConfig, Consistency, Expected, NewEvent, StateExt};
//!
//! let client = Client::connect(ClientConfig::new(["http://127.0.0.1:2600"])).await?;
//! let event = NewEvent::json("Moved", &serde_json::json!({"city": "Bremen"}))?;
//! let appended = client.append("customer-42", vec![event], Expected::Any).await?;
//! let state = client.lookup("customer-42", Consistency::Linearizable).await?;
//! if let Some(state) = state {
//!     assert!(state.revision >= appended.last_revision);
//!     let customer: serde_json::Value = state.json()?;
//!     assert_eq!(customer["city"], "Bremen");
//! }
//! # Ok(())
//! # }
//! ```

mod admin;
mod appender;
mod client;
mod config;
mod connector;
mod error;
mod event;
mod nodes;
mod pages;
mod retry;

pub use appender::{Appender, Pending};
pub use client::Client;
pub use config::{ClientConfig, RetryConfig};
pub use connector::{Connection, Connector};
pub use error::{ClientError, ERROR_DOMAIN, ServerError};
pub use event::{
    Appended, Consistency, Expected, ListOptions, LookupOptions, NewEvent, ReadOptions,
    RecordedEventExt, StateExt,
};
pub use nodes::partition_of;
pub use ringfold_proto::v1::{
    BootstrapRequest, BootstrapResponse, Liveness, Member, MemberState, MembershipChange,
    MembershipChangeKind, MembershipChangesResponse as MembershipNews, MembershipEntry,
    MembershipListResponse as Membership, NodeFacts, NodeStatusResponse as NodeStatus, Partition,
    RecordedEvent, Reducer, Replica, ReplicaState, ReplicaStatus, SafeToStopResponse, State,
    StateError, StreamInfo, TopologyResponse as Topology, TransferLeadersResponse,
};
pub use ringfold_proto::v1::{
    DrainProgress, Move, MoveReason, RebalancePlanResponse as RebalancePlan,
};
pub use tonic::Code;
pub use uuid::Uuid;
