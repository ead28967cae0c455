//! Load for a Ringfold cluster, measured: lookups, appends, pipelined appends, imports; and what
//! they are compared with. Figures are ratios against a peer in the same run.

pub mod all;
mod cluster;
pub mod cpu;
pub mod echo;
#[cfg(feature = "layers")]
pub mod layers;
pub mod load;
pub mod measure;
#[cfg(feature = "rocks")]
pub mod rocks;
pub mod scale;
pub mod sync;

pub use load::{
    AppendArgs, ImportArgs, LookupArgs, TargetArgs, append, append_stream, import, lookup,
};
pub use measure::{LoadArgs, Report};
