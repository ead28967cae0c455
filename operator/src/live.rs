//! The edges: the Kubernetes API and the nodes. What is decided lies elsewhere.
mod certificates;
mod kubernetes;
mod observe;
mod plane;

pub use kubernetes::Live;
pub use observe::observe;
pub use plane::Plane;

#[cfg(test)]
mod calls;
