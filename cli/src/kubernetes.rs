//! Clusters in Kubernetes: found through kubeconfig. `kubectl-ringfold`, the plugin of kubectl, is
//! this same program under another name.
pub mod forward;
pub mod replace;

use crate::Global;
use crate::error::{CliError, Exit};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use std::ffi::OsStr;
use std::path::Path;

const PLUGIN: &str = "kubectl-ringfold";

#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// In Kubernetes: name of the EventStoreCluster; not needed where the namespace has only one
    #[arg(long, global = true, conflicts_with = "endpoints")]
    pub cluster: Option<String>,
    /// In Kubernetes: its namespace [default: that of the context]
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// In Kubernetes: the context of kubeconfig [default: the current one]
    #[arg(long, global = true)]
    pub context: Option<String>,
}

/// Whether the program was called as kubectl's plugin.
pub fn is_plugin(program: &OsStr) -> bool {
    Path::new(program).file_stem().is_some_and(|name| name == PLUGIN)
}

/// Whether the cluster is to be found in Kubernetes.
pub fn is_meant(global: &Global) -> bool {
    let named = &global.kubernetes;
    let is_named = named.cluster.is_some() || named.namespace.is_some() || named.context.is_some();
    is_named || (global.is_plugin && global.endpoints.is_empty())
}

/// Commands that reach nodes by their URLs only, or that are the operator's there.
pub fn refuse(global: &Global, command: &str, instead: &str) -> Result<(), CliError> {
    match is_meant(global) {
        true => Err(CliError::usage(format!("{command} is not for a cluster in Kubernetes"))
            .action(instead)),
        false => Ok(()),
    }
}

/// The Kubernetes API, and the namespace that is meant.
async fn connect(args: &Args) -> Result<(Client, String), CliError> {
    let options = KubeConfigOptions { context: args.context.clone(), ..Default::default() };
    let config = match &args.context {
        Some(_) => Config::from_kubeconfig(&options).await.map_err(|e| e.to_string()),
        None => Config::infer().await.map_err(|e| e.to_string()),
    };
    let action = "see `kubectl config get-contexts`, or name one with --context";
    let config = config
        .map_err(|e| CliError::usage(format!("kubeconfig cannot be used: {e}")).action(action))?;
    let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)
        .map_err(|e| CliError::usage(format!("kubeconfig cannot be used: {e}")).action(action))?;
    Ok((client, namespace))
}

/// What the Kubernetes API said, while `what` was being done.
fn failed(what: impl std::fmt::Display, error: kube::Error) -> CliError {
    let (exit, message) = match &error {
        kube::Error::Api(status) => match status.code {
            404 => (Exit::NotFound, status.message.clone()),
            409 => (Exit::Unavailable, status.message.clone()),
            403 => (Exit::Refused, status.message.clone()),
            _ => (Exit::Other, status.message.clone()),
        },
        _ => (Exit::Unavailable, format!("the Kubernetes API cannot be reached: {error}")),
    };
    CliError::new(exit, format!("{what}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::Parser as _;

    fn global(args: &[&str]) -> Global {
        Cli::try_parse_from(["ringfold"].iter().chain(args)).unwrap().global
    }

    #[test]
    fn the_name_of_the_program_decides_whether_it_is_a_plugin() {
        for (program, is) in [
            ("kubectl-ringfold", true),
            ("/usr/local/bin/kubectl-ringfold", true),
            ("kubectl-ringfold.exe", true),
            ("ringfold", false),
            ("/opt/kubectl-ringfold/ringfold", false),
        ] {
            assert_eq!(is_plugin(OsStr::new(program)), is, "{program}");
        }
    }

    #[test]
    fn a_plugin_means_kubernetes_unless_nodes_are_named_and_others_must_name_it() {
        let plugin = |args: &[&str]| is_meant(&Global { is_plugin: true, ..global(args) });
        assert!(plugin(&["status"]));
        assert!(!plugin(&["status", "--endpoints", "http://a"]));
        assert!(!is_meant(&global(&["status"])));
        assert!(is_meant(&global(&["status", "--cluster", "demo"])));
        assert!(is_meant(&global(&["-n", "shop", "lookup", "a-1"])));
        let refused = refuse(&global(&["status", "-n", "shop"]), "bench", "use a pod").unwrap_err();
        assert_eq!((refused.exit, refused.action.as_deref()), (Exit::Usage, Some("use a pod")));
    }
}
