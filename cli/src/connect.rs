//! The client, from the global arguments; its errors, as ours.
use crate::Global;
use crate::error::{CliError, Exit};
use ringfold_client::{Client, ClientConfig, ClientError, ServerError};
use std::time::Duration;

/// Connects to the cluster.
pub async fn connect(global: &Global) -> Result<Client, CliError> {
    let mut config = ClientConfig::new(global.endpoints.clone());
    config.deadline = Duration::from_millis(global.timeout_ms);
    let endpoints = global.endpoints.join(",");
    Client::connect(config).await.map_err(|e| {
        let error = CliError::from(e).context(format_args!("cannot reach {endpoints}"));
        match error.action {
            Some(_) => error,
            None => error.action(
                "start a cluster with `ringfold dev`, or name a running one with --endpoints or RINGFOLD_ENDPOINTS",
            ),
        }
    })
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
