//! The client, from the global arguments; its errors, as ours.
use crate::Global;
use crate::error::{CliError, Exit};
use crate::kubernetes;
use ringfold_client::{Client, ClientConfig, ClientError, ServerError, Topology};
use std::time::Duration;
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(100);

/// Connects to the cluster.
pub async fn connect(global: &Global) -> Result<Client, CliError> {
    let mut config = match kubernetes::is_meant(global) {
        true => kubernetes::forward::config(global).await?,
        false => ClientConfig::new(global.endpoints()),
    };
    config.deadline = Duration::from_millis(global.timeout_ms);
    let endpoints = config.endpoints.join(",");
    Client::connect(config).await.map_err(|e| {
        let error = CliError::from(e).context(format_args!("cannot reach {endpoints}"));
        match error.action {
            Some(_) => error,
            None if kubernetes::is_meant(global) => {
                error.action("see `kubectl get esc` and `kubectl get pods` of its namespace")
            }
            None => error.action(
                "start a cluster with `ringfold dev`, or name a running one with --endpoints or RINGFOLD_ENDPOINTS",
            ),
        }
    })
}

/// The topology, from a node that knows members: one that has just started may not, and another one
/// is asked then.
pub async fn members_of(client: &Client, global: &Global) -> Result<Topology, CliError> {
    let end = Instant::now() + Duration::from_millis(global.timeout_ms);
    loop {
        let topology = client.topology().await?;
        if !topology.members.is_empty() {
            return Ok(topology);
        }
        if Instant::now() >= end {
            let message = "no node that answers belongs to a cluster yet";
            return Err(CliError::new(Exit::Unavailable, message).action(
                "wait until it has joined, or create a cluster with `ringfold bootstrap`",
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn answered(e: ServerError) -> CliError {
    let mut error = CliError::answered(e.code, &e.reason, &e.message, e.metadata);
    if error.reason.is_empty() {
        error.message = format!("{:?}: {}", e.code, error.message);
    }
    error
}

impl From<ClientError> for CliError {
    fn from(e: ClientError) -> Self {
        match e {
            ClientError::Refused(e) => answered(e),
            ClientError::Unavailable { tries, last } => {
                let mut error = answered(last)
                    .context(format_args!("no answer within the deadline, after {tries} tries"));
                if error.exit != Exit::NoRoom {
                    error.exit = Exit::Unavailable;
                }
                error
            }
            ClientError::Unknown { tries, last } => {
                let mut error = answered(last)
                    .context(format_args!("it may or may not be stored, after {tries} tries"));
                error.exit = Exit::Unknown;
                error
            }
            ClientError::Invalid(message) => CliError::usage(message),
            e => CliError::other(e.to_string()),
        }
    }
}
