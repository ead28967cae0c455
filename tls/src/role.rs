//! What a certificate is for.
use rustls::pki_types::CertificateDer;

/// In ascending order of what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Appends and reads.
    Client,
    /// Administers the cluster as well.
    Admin,
    /// Is one of its nodes.
    Node,
}

impl Role {
    /// The URI among the certificate's subject alternative names that says so. One without any is a
    /// client's.
    pub fn uri(self) -> &'static str {
        match self {
            Role::Client => "ringfold:role:client",
            Role::Admin => "ringfold:role:admin",
            Role::Node => "ringfold:role:node",
        }
    }

    pub(crate) fn of(certificate: Option<&CertificateDer<'_>>) -> Role {
        let parsed = certificate.and_then(|c| webpki::EndEntityCert::try_from(c).ok());
        let Some(parsed) = parsed else { return Role::Client };
        let all = [Role::Node, Role::Admin];
        let named = |role: &Role| parsed.valid_uri_names().any(|uri| uri == role.uri());
        all.into_iter().find(named).unwrap_or(Role::Client)
    }
}
