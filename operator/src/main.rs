//! `ringfold-operator`.
use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering};

use anyhow::Context as _;
use clap::Parser;
use ringfold_operator::{check, controller, lease::Election, metrics};

/// Brings Ringfold clusters to what their EventStoreCluster resources ask for.
#[derive(Parser)]
#[command(version)]
struct Settings {
    /// Namespaces whose clusters are looked after, with commas between them; without it: all
    #[arg(long, env = "RINGFOLD_OPERATOR_NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Image of the nodes of new clusters that name none
    #[arg(long, env = "RINGFOLD_OPERATOR_NODE_IMAGE")]
    node_image: String,
    /// Namespace of the Lease: where the operator runs
    #[arg(long, env = "RINGFOLD_OPERATOR_LEASE_NAMESPACE")]
    lease_namespace: String,
    /// Name of the Lease
    #[arg(long, env = "RINGFOLD_OPERATOR_LEASE_NAME", default_value = "ringfold-operator")]
    lease_name: String,
    /// Name of this process, such as its pod's
    #[arg(long, env = "RINGFOLD_OPERATOR_IDENTITY")]
    identity: String,
    /// Where health and metrics are served
    #[arg(long, env = "RINGFOLD_OPERATOR_HTTP_LISTEN", default_value = "0.0.0.0:2603")]
    http_listen: SocketAddr,
    /// error, warn, info, debug or trace, also by module
    #[arg(long, env = "RINGFOLD_OPERATOR_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// Looks whether an operator holds the Lease and whether its rights suffice, says so, and ends
    #[arg(long)]
    check: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&settings.log_level))
        .with_writer(std::io::stderr)
        .init();
    let client = kube::Client::try_default()
        .await
        .context("the Kubernetes API is not configured: run in a pod, or with KUBECONFIG")?;
    let namespaces: Vec<_> = settings.namespaces.into_iter().filter(|n| !n.is_empty()).collect();
    if settings.check {
        let (namespace, name) = (&settings.lease_namespace, &settings.lease_name);
        let said = check::until_right(&client, &namespaces, namespace, name).await?;
        tracing::info!("{said}");
        return Ok(());
    }
    let metrics = Arc::new(metrics::Metrics::default());
    let serve = tokio::spawn(metrics::serve(settings.http_listen, metrics.clone()));
    // A pod that was made anew under the same name is another holder.
    let me = format!("{}_{}", settings.identity, uuid::Uuid::new_v4());
    let mut election =
        Election::new(client.clone(), &settings.lease_namespace, &settings.lease_name, &me);
    metrics.ready.store(true, Ordering::Relaxed);
    tokio::select! {
        () = election.acquire() => {}
        served = serve => anyhow::bail!("{} cannot be listened on: {served:?}", settings.http_listen),
        _ = stopped() => return Ok(()),
    }
    metrics.leads.set(1);
    tracing::info!(me, "holds the Lease");
    let run =
        controller::run(client, &namespaces, settings.node_image, metrics, &settings.identity);
    let lost = tokio::select! {
        () = run => None,
        why = election.hold() => Some(why),
    };
    match lost {
        None => {
            election.release().await;
            Ok(())
        }
        // At once, in the middle of whatever it was: another may act now.
        Some(why) => {
            tracing::error!(why, "the Lease is lost: ending");
            std::process::exit(1)
        }
    }
}

async fn stopped() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
