//! A simulated Kubernetes with a simulated data plane, and the product's own decisions on it.
//!
//! Everything follows from a seed. Each write of the operator checks what must hold at that moment, so
//! a broken promise is found where it is broken; see [`Sim::broken`].
mod cluster;
mod environment;
mod sides;
mod tests;

use cluster::{SimClaim, SimPod};
