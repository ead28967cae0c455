//! `ringfold bootstrap`: creates a cluster out of nodes that were started by hand, once.
use crate::Global;
use crate::connect::connect;
use crate::error::CliError;
use crate::kubernetes;
use crate::output::{Out, Record};
use ringfold_client::{BootstrapRequest, Uuid};
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// UUID of the new cluster: said again with the same one, it changes nothing. Without it: a new one
    #[arg(long)]
    cluster_id: Option<Uuid>,
    /// A power of two, 1 to 1,024; fixed for the cluster's life
    #[arg(long, default_value_t = 64)]
    partitions: u32,
    /// 1, 3 or 5
    #[arg(long, default_value_t = 3)]
    replication_factor: u32,
    /// Partitions are placed once so many nodes have joined [default: the replication factor]
    #[arg(long)]
    initial_members: Option<u32>,
}

#[derive(Serialize)]
struct BootstrapRecord {
    cluster_id: String,
    node_id: u64,
    endpoint: String,
}

impl Record for BootstrapRecord {
    const HEADERS: &'static [&'static str] = &["CLUSTER", "FIRST NODE", "ENDPOINT"];
    fn row(&self) -> Vec<String> {
        vec![self.cluster_id.clone(), self.node_id.to_string(), self.endpoint.clone()]
    }
}

pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    // The node that is asked becomes the first member: there must be no doubt which.
    kubernetes::refuse(
        global,
        "bootstrap",
        "create an EventStoreCluster: the operator bootstraps it",
    )?;
    let endpoints = global.endpoints();
    let [endpoint] = &endpoints[..] else {
        return Err(CliError::usage(
            "--endpoints names several nodes, expected the one that is to be the first member",
        ));
    };
    let cluster_id = args.cluster_id.unwrap_or_else(Uuid::new_v4).to_string();
    let request = BootstrapRequest {
        cluster_id: cluster_id.clone(),
        partitions: args.partitions,
        replication_factor: args.replication_factor,
        initial_members: args.initial_members.unwrap_or(0),
        ..BootstrapRequest::default()
    };
    let client = connect(global).await?;
    let answer = client.bootstrap(endpoint, request).await.map_err(|e| {
        let error = CliError::from(e).context(format_args!("bootstrap of {cluster_id}"));
        match error.action {
            Some(_) => error,
            None => error.action(format!(
                "run it again with --cluster-id {cluster_id}: it changes nothing where it was done"
            )),
        }
    })?;
    let mut out = Out::new(global.output);
    out.show(&BootstrapRecord {
        cluster_id: answer.cluster_id,
        node_id: answer.node_id,
        endpoint: endpoint.clone(),
    })?;
    out.flush()?;
    Ok(0)
}
